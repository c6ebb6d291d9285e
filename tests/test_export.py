"""Exported files as a stranger reads them: with mdtraj, numpy and h5py alone."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import mdtraj
import numpy as np
import pytest
import torch
from ala2 import generated
from oracles import propose

from bgwork import export, store
from bgwork.conformation import has_positive_phi, residues
from bgwork.export import ARRAYS, FORMATS, TRAJECTORIES, ExportError, export_samples
from bgwork.records import WeightedSamples
from bgwork.reweighting import expectation, normalised_weights, resample, weigh
from bgwork.system import System, load_system

PRECISION = {"dcd": 1e-6, "xtc": 5.1e-4, "pdb": 5.1e-5}  # nm


@pytest.fixture(scope="module")
def system() -> System:
    return load_system("ala2-vacuum")


@pytest.fixture(scope="module")
def weighted(system) -> WeightedSamples:
    samples = generated(system, 60)
    return replace(samples, u=samples.u.index_fill(0, torch.tensor([4]), math.inf))


@pytest.mark.parametrize("kind", TRAJECTORIES)
def test_trajectories_for_mdtraj(kind, system, weighted, tmp_path):
    samples, topology, weights = export_samples(weighted, system, tmp_path / "new" / "samples", kind=kind)
    assert samples.name == f"samples.{kind}" and sorted(tmp_path.joinpath("new").iterdir()) == sorted([samples, topology, weights])
    trajectory = mdtraj.load(str(samples), top=str(topology))
    assert np.abs(trajectory.xyz - weighted.x.numpy()).max() < PRECISION[kind]
    assert [a.name for a in trajectory.topology.atoms] == list(system.topology.names)
    assert [a.element.symbol for a in trajectory.topology.atoms] == list(system.topology.elements)
    with np.load(weights, allow_pickle=False) as file:
        assert len(file["weight"]) == trajectory.n_frames and file["weight"].sum() == pytest.approx(1.0) and file["weight"][4] == 0
        np.testing.assert_array_equal(file["log_w"], weighted.log_w.numpy())


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_hold_everything(kind, system, weighted, tmp_path):
    (path,) = export_samples(weighted, system, tmp_path / "samples", kind=kind)
    if kind == "hdf5":
        with h5py.File(path) as file:
            found = {name: file[name].asstr()[()] if file[name].dtype.kind == "O" else file[name][()] for name in file}
    else:
        with np.load(path, allow_pickle=False) as file:
            found = dict(file)
    np.testing.assert_array_equal(found["x"], weighted.x.numpy())
    np.testing.assert_array_equal(found["weight"], normalised_weights(weighted).numpy())
    np.testing.assert_array_equal(-found["u"] - found["log_q"], (-weighted.u - weighted.proposal.log_q).numpy())
    assert list(found["atom"]) == list(system.topology.names) and list(found["residue"])[0] == "ACE"
    meta = json.loads(str(found["meta"]))
    assert (meta["system"], meta["length_unit"], meta["density"], meta["n_failed"]) == ("ala2-vacuum", "nm", "exact", 0)


SCRIPT = """
import sys, mdtraj, numpy
assert not any(name.startswith("bgwork") for name in sys.modules)
trajectory = mdtraj.load(sys.argv[1], top=sys.argv[2])
weight = numpy.load(sys.argv[3])["weight"]
phi = mdtraj.compute_phi(trajectory)[1][:, 0]
print("population", (weight * ((phi > 0) & (phi <= 2))).sum())
"""


def test_a_strangers_script_finds_our_population(system, weighted, tmp_path):
    files = export_samples(weighted, system, tmp_path / "samples", kind="dcd")
    done = subprocess.run([sys.executable, "-c", SCRIPT, *map(str, files)], capture_output=True, text=True, timeout=60, check=True)
    residue = residues(system.topology)[0]
    ours = expectation(weighted, lambda x: has_positive_phi(x, phi=residue.phi).double())
    (found,) = re.findall(r"^population (\S+)$", done.stdout, flags=re.MULTILINE)  # mdtraj's DCD reader may say something too
    assert float(found) == pytest.approx(ours.value, abs=1e-9)


def test_resampled_frames_are_an_equilibrium_trajectory(system, weighted, tmp_path):
    drawn = resample(weighted, 500, generator=torch.Generator().manual_seed(0))
    files = export_samples(drawn, system, tmp_path / "frames", kind="xtc")
    with np.load(files[2]) as file:
        np.testing.assert_allclose(file["weight"], 1 / 500)
        assert json.loads(str(file["meta"]))["edits"] == ["resampled 500 of 60 rows"]
        assert len(np.unique(file["group"])) < 60
    assert mdtraj.load(str(files[0]), top=str(files[1])).n_frames == 500


@pytest.mark.parametrize("stem", ["", ".", "/"])
def test_a_stem_that_names_no_file_is_refused(stem, system, weighted):
    with pytest.raises(ExportError, match="names no file"):
        export_samples(weighted, system, Path(stem), kind="npz")


def test_an_interruption_leaves_the_old_file(system, weighted, tmp_path, monkeypatch):
    stem = tmp_path / "samples"
    before = {path: path.read_bytes() for path in export_samples(weighted, system, stem, kind="dcd")}
    whole = export.WRITERS["dcd"]

    def broken(path, topology, x):
        whole(path, topology, x[:3])
        raise KeyboardInterrupt

    monkeypatch.setitem(export.WRITERS, "dcd", broken)
    with pytest.raises(KeyboardInterrupt):
        export_samples(weighted, system, stem, kind="dcd")
    assert (tmp_path / "samples.dcd").read_bytes() == before[tmp_path / "samples.dcd"]
    assert sorted(tmp_path.iterdir()) == sorted(before)


def test_what_a_trajectory_cannot_hold_is_refused_and_npz_takes_it(system, weighted, tmp_path):
    def moved(value: float) -> WeightedSamples:
        x = weighted.x.clone()
        x[7, 0, 0] = value
        return replace(weighted, proposal=replace(weighted.proposal, x=x))

    for kind in TRAJECTORIES:
        with pytest.raises(ExportError, match="1 of 60 samples have coordinates that are not numbers.*npz"):
            export_samples(moved(math.nan), system, tmp_path / "samples", kind=kind)
        with pytest.raises(ExportError, match=f"1e\\+09 nm, and a {kind} file has digits"):
            export_samples(moved(1e9), system, tmp_path / "samples", kind=kind)
    assert not list(tmp_path.iterdir())
    (path,) = export_samples(moved(math.nan), system, tmp_path / "samples", kind="npz")
    with np.load(path) as file:
        assert len(file["x"]) == 60 and file["weight"][7] == 0 and json.loads(str(file["meta"]))["n_failed"] == 1


@pytest.mark.parametrize("kind", ["dcd", "xtc", "pdb"])
def test_the_largest_coordinates_that_are_let_through_can_be_read(kind, system, weighted, tmp_path):
    x = weighted.x[:2].clone()
    x[1, 3, 2] = -export.LARGEST[kind]
    proposal = replace(weighted.proposal, x=x, log_q=weighted.proposal.log_q[:2])
    files = export_samples(replace(weighted, proposal=proposal, u=weighted.u[:2]), system, tmp_path / "far", kind=kind)
    trajectory = mdtraj.load(str(files[0]), top=str(files[1]))
    assert trajectory.xyz[1, 3, 2] == pytest.approx(-export.LARGEST[kind], rel=1e-5)


def test_clusters_go_to_arrays_only(tmp_path):
    dw4 = load_system("dw4")
    samples = weigh(propose(dw4.prior, 5, seed=0), dw4.target)
    with pytest.raises(ExportError, match="dw4 is no molecule.*npz"):
        export_samples(samples, dw4, tmp_path / "samples", kind="dcd")
    (path,) = export_samples(samples, dw4, tmp_path / "samples", kind="npz")
    with np.load(path) as file:
        assert file["x"].shape == (5, 4, 2) and "atom" not in file
    with pytest.raises(ExportError, match="the samples live on"):
        export_samples(samples, load_system("lj13"), tmp_path / "samples", kind="npz")


def test_refusals(system, weighted, tmp_path, monkeypatch):
    with pytest.raises(ExportError, match=f"unknown format 'mol2'; choose one of {', '.join(FORMATS)}"):
        export_samples(weighted, system, tmp_path / "samples", kind="mol2")
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"need h5py.*bgwork\[md\].*npz"):
        export_samples(weighted, system, tmp_path / "samples", kind="hdf5")
    (tmp_path / "a-file").write_text("")
    with pytest.raises(store.FileError, match="cannot write"):
        export_samples(weighted, system, tmp_path / "a-file" / "samples", kind="npz")
