"""Where exports go, what they share and replace, and HDF5 as mdtraj reads it."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import mdtraj
import numpy as np
import pytest
import torch
from ala2 import generated
from commands import call, files, refused

from bgwork import store
from bgwork.export import ExportError, export_samples
from bgwork.records import WeightedSamples
from bgwork.reweighting import resample
from bgwork.system import System, load_system
from bgwork.targets.force_fields import read_pdb
from bgwork.trajectories import read_trajectory


@pytest.fixture(scope="module")
def system() -> System:
    return load_system("ala2-vacuum")


@pytest.fixture(scope="module")
def weighted(system) -> WeightedSamples:
    return generated(system, 20)


@pytest.fixture
def drawn(weighted) -> WeightedSamples:
    """Frames of equal weight of the same samples."""
    return resample(weighted, 7, generator=torch.Generator().manual_seed(0))


def test_formats_share_the_weights_of_the_same_samples_only(system, weighted, drawn, tmp_path):
    export_samples(weighted, system, tmp_path / "x", kind="dcd")
    export_samples(weighted, system, tmp_path / "x", kind="xtc")
    before = files(tmp_path)
    with pytest.raises(ExportError, match="x_weights.npz belongs to .*x.dcd and .*x.xtc, whose samples are others than these.*--out"):
        export_samples(drawn, system, tmp_path / "x", kind="pdb")
    with pytest.raises(ExportError, match="x_weights.npz belongs to .*x.xtc, whose"):
        export_samples(drawn, system, tmp_path / "x", kind="dcd")
    assert files(tmp_path) == before


def test_one_trajectory_is_replaced_with_its_weights(system, weighted, drawn, tmp_path):
    export_samples(weighted, system, tmp_path / "x", kind="dcd")
    samples, structure, weights = export_samples(drawn, system, tmp_path / "x", kind="dcd")
    with np.load(weights) as file:
        assert len(file["weight"]) == mdtraj.load(str(samples), top=str(structure)).n_frames == 7


def test_weights_that_cannot_be_read_are_not_taken_for_ours(system, weighted, tmp_path):
    export_samples(weighted, system, tmp_path / "x", kind="dcd")
    (tmp_path / "x_weights.npz").write_bytes(b"something else")
    with pytest.raises(ExportError, match="belongs to"):
        export_samples(weighted, system, tmp_path / "x", kind="xtc")


@pytest.mark.parametrize("name", ["x.dcd", "x.XTC", "x.npz", "x.h5", "x.hdf5"])
def test_a_stem_with_a_suffix_is_refused(system, weighted, tmp_path, name):
    with pytest.raises(ExportError, match=f"{name} has a suffix, and every format adds its own; give .*x, and"):
        export_samples(weighted, system, tmp_path / name, kind="dcd")
    assert not list(tmp_path.iterdir())


def test_a_point_in_a_stem_is_none_of_our_suffixes(system, weighted, tmp_path):
    assert export_samples(weighted, system, tmp_path / "x.2", kind="npz") == (tmp_path / "x.2.npz",)


def test_hdf5_is_a_trajectory_of_mdtrajs_conventions(system, weighted, tmp_path):
    (path,) = export_samples(weighted, system, tmp_path / "x", kind="hdf5")
    with h5py.File(path) as file:
        assert file["coordinates"] == file["x"] and file["coordinates"].attrs["units"] == "nanometers"
        assert (file.attrs["conventions"], file.attrs["conventionVersion"], file.attrs["program"]) == ("Pande", "1.1", "bgwork")
        (topology,) = file["topology"][:]
    convert = mdtraj.formats.HDF5TrajectoryFile.convert_topology_to_dict
    theirs = convert(mdtraj.Topology.from_openmm(read_pdb(system.topology.path).topology), bond_metadata=False)
    for chain in theirs["chains"]:
        chain.pop("chain_id")
    assert json.loads(topology) == theirs
    assert torch.equal(read_trajectory(path, topology=system.topology), weighted.x)


def test_mdtraj_loads_the_hdf5(system, weighted, tmp_path):
    pytest.importorskip("tables")  # mdtraj's own reader is made with PyTables
    (path,) = export_samples(weighted, system, tmp_path / "x", kind="hdf5")
    trajectory = mdtraj.load(str(path))
    np.testing.assert_allclose(trajectory.xyz, weighted.x.numpy(), atol=1e-6)
    assert [str(atom) for atom in trajectory.topology.atoms] == list(system.topology.labels)
    assert trajectory.topology.n_bonds == len(system.topology.bonds)


def test_clusters_are_no_trajectories_in_hdf5(run):
    assert call("export", run, "--format", "hdf5").exit_code == 0
    with h5py.File(run / "exported.h5") as file:
        assert "x" in file and "coordinates" not in file and not file.attrs


@pytest.mark.parametrize(("out", "words"), [("here", ("here is a folder", "here/samples")), ("here/", ("folder",)), ("new/", ("folder",))])
def test_a_folder_is_no_name_for_an_export(run, out, words):
    Path("here").mkdir()
    before = files(Path())
    refused(call("export", run, "--out", out), *words)
    assert files(Path()) == before


def test_a_replaced_export_is_said_so(run):
    assert "replaced" not in call("export", run).stderr
    assert "replaced" in call("export", run).stderr and "exported.npz" in call("export", run).stderr


def test_xtc_says_what_it_loses(toy, weighted):
    store.save_samples(Path("samples.npz"), weighted)
    for kind, said in (("xtc", True), ("dcd", False)):
        result = call("export", "samples.npz", "--format", kind, "--out", f"as-{kind}")
        assert result.exit_code == 0 and ("energies of such frames are shifted" in result.stderr) == said, result.output


@pytest.mark.parametrize("command", [("export",), ("estimate",), ("retarget", "--factor", "1.1"), ("report",)], ids=lambda c: c[0])
@pytest.mark.parametrize("name", ["good.dcd", "good.XTC"])
def test_a_trajectory_is_no_samples_file(toy, command, name):
    Path(name).write_bytes(b"frames")
    result = call(command[0], name, *command[1:])
    refused(result, name, "folder" if command[0] == "report" else "bgwork reference SYSTEM --from")
    assert "pickle" not in result.stderr


def test_a_runs_folder_may_be_called_like_a_trajectory(run):
    folder = run.rename(run.parent / "run.dcd")
    assert call("export", folder).exit_code == 0


def test_a_report_of_a_file_is_refused_before_any_work(run, monkeypatch):
    monkeypatch.setattr("bgwork.runs.weighted_samples", lambda *_, **__: pytest.fail("read the samples"))
    refused(call("report", run / "samples.npz"), "is a file", f"give {run}")
    (run / "samples.npz").rename("mine.npz")
    refused(call("report", "mine.npz"), "mine.npz is a file", "as samples.npz")
