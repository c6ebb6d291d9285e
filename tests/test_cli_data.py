"""Commands that take a user's data in and hand samples out: new-system, reference --from, export, retarget."""

from pathlib import Path

import numpy as np
from commands import call, files, refused

from bgwork.system import load_system

PDB = (load_system("ala2-vacuum").path / "topology.pdb").resolve()


def test_samples_are_exported_with_their_weights(run):
    result = call("export", run, "--format", "npz", "--out", run.parent / "out")
    assert result.exit_code == 0 and "out.npz" in result.stdout
    with np.load(run.parent / "out.npz", allow_pickle=False) as arrays:
        assert len(arrays["x"]) == 40
    assert call("export", run, "--resample", "7").exit_code == 0
    with np.load(run / "equilibrium.npz", allow_pickle=False) as arrays:
        assert len(arrays["x"]) == 7


def test_exports_that_cannot_be_are_refused(run):
    before = files(run)
    refused(call("export", run, "--format", "gro"), "gro", "dcd")
    refused(call("export", run, "--format", "dcd"), "molecule")
    refused(call("export", run, "--resample", "0"), "0")
    refused(call("export", run / "nothing"), "nothing")
    assert files(run) == before


def test_another_temperature_comes_with_its_effective_sample_size(run):
    result = call("retarget", run, "--factor", "1.2")
    assert result.exit_code == 0 and "log Z" in result.stdout and "expected" in result.stdout
    refused(call("retarget", run, "--factor", "-1"), "-1")
    refused(call("retarget", "nowhere", "--factor", "1.2"), "nowhere")


def test_a_pdb_file_becomes_a_system_once(toy):
    result = call("new-system", PDB, "--solvent", "vacuum", "--name", "mine")
    assert result.exit_code == 0 and "bgwork reference mine" in result.stdout, result.output
    assert load_system("mine").space.n == 22
    refused(call("new-system", PDB, "--name", "mine"), "mine", "--name")
    refused(call("new-system", PDB, "--forcefield", "nonsense.xml", "--name", "other"), "nonsense.xml")
    assert not Path("systems/other").exists()


def test_a_trajectory_needs_its_temperature_and_frame_time(toy):
    refused(call("reference", "ala2-vacuum", "--from", PDB), "--frame-time", "--temperature")
    refused(call("reference", "ala2-vacuum", "--from", PDB, "--frame-time", "1", "--temperature", "310"), "310")
    refused(call("reference", "toy", "--from", PDB, "--frame-time", "1", "--temperature", "300"), "not a molecule")
    assert not Path("runs/ala2-vacuum/reference/samples.npz").exists()
