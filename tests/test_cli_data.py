"""Commands that take a user's data in and hand samples out: new-system, reference --from, export, retarget."""

from pathlib import Path

import mdtraj
import numpy as np
import pytest
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


def test_an_export_never_replaces_the_samples_that_it_reads(run):
    before = files(run)
    assert call("export", run).exit_code == 0 and (run / "exported.npz").exists()
    assert before < files(run)
    refused(call("export", run, "--out", run / "samples"), "would be lost")
    refused(call("export", run / "samples.npz", "--out", run / "samples"), "would be lost")
    assert before < files(run)


def test_exports_that_cannot_be_are_refused(run):
    before = files(run)
    refused(call("export", run, "--format", "gro"), "gro", "dcd")
    refused(call("export", run, "--format", "dcd"), "molecule")
    refused(call("export", run, "--resample", "0"), "0")
    refused(call("export", run, "--resample", "1000000000"), "of 40 samples", "more than 100 copies")
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


def one_message(result: object) -> str:
    """What is said, without line breaks: one error, and nothing was tried a second time."""
    assert result.stderr.count("Error: ") == 1
    return " ".join(result.stderr.split())


def test_a_pdb_file_without_its_hydrogens_makes_no_system(toy):
    lines = [line for line in PDB.read_text().splitlines() if line.startswith(("ATOM", "HETATM")) and line[76:78].strip() != "H"]
    Path("bare.pdb").write_text("\n".join([*lines, "END"]) + "\n")
    result = call("new-system", "bare.pdb", "--solvent", "vacuum", "--name", "bare")
    refused(result, "pdbfixer", "ACE 1: missing 3 H", "ALA 2: missing 5 H", "NME 3: missing 4 H")
    one_message(result)
    assert not Path("systems/bare").exists()


def swapped() -> None:
    """mine.pdb: the first two atoms change places, the frames with them."""
    lines = PDB.read_text().splitlines()
    first, second = (k for k, line in enumerate(lines) if line.startswith(("ATOM", "HETATM")) and line[6:11].strip() in ("1", "2"))
    lines[first], lines[second] = lines[second], lines[first]
    Path("mine.pdb").write_text("\n".join(line for line in lines if not line.startswith("CONECT")) + "\n")
    frames([1, 0, *range(2, 22)]).save("traj.dcd")


def frames(order: list[int] | None = None) -> mdtraj.Trajectory:
    """Twenty times the shipped structure, its atoms in another order if asked for (`atom_slice` would sort them)."""
    one = mdtraj.load(str(PDB))
    return mdtraj.Trajectory(one.xyz[:, order or slice(None)].repeat(20, 0), one.topology)


def fewer() -> None:
    """mine.pdb and traj.dcd with twelve atoms."""
    small = frames().atom_slice(range(12))
    small[0].save("mine.pdb")
    small.save("traj.dcd")


def cut() -> None:
    """traj.dcd without its last bytes."""
    mdtraj.load(str(PDB)).save("mine.pdb")
    frames().save("traj.dcd")
    Path("traj.dcd").write_bytes(Path("traj.dcd").read_bytes()[:-100])


def empty() -> None:
    """traj.dcd of no bytes."""
    cut()
    Path("traj.dcd").write_bytes(b"")


@pytest.mark.parametrize("top", [("--top", "mine.pdb"), ()])
@pytest.mark.parametrize(("write", "words", "bare"), [
    (swapped, ("mine.pdb", "another order"), ("100% of the frames have broken bonds", "another order", "--top")),
    (fewer, ("mine.pdb has 12 atoms", "has 22"), ("traj.dcd has 12 atoms", "has 22")),
    (cut, ("traj.dcd", "truncated"), ("traj.dcd", "truncated")), (empty, ("traj.dcd", "empty"), ("traj.dcd", "empty"))])
def test_trajectories_that_are_not_of_the_system(toy, write, words, bare, top):
    """With and without a PDB file that names the atoms."""
    write()
    before = files(toy.root)
    result = call("reference", "ala2-vacuum", "--from", "traj.dcd", *top, "--frame-time", "1", "--temperature", "300")
    assert result.exit_code == 2, (result.output, result.exception)
    said = one_message(result)
    assert "Traceback" not in said and all(word in said for word in (words if top else bare)), said
    assert files(toy.root) == before
