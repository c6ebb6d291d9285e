"""`bgwork reference --from`: what it replaces, and what XTC does to energies."""

from __future__ import annotations

import re

import mdtraj
import numpy as np
import pytest
from commands import call, files, refused
from frames import without_memory

from bgwork import store
from bgwork.system import load_system

PDB = (load_system("ala2-vacuum").path / "topology.pdb").resolve()
SETTINGS = ("--frame-time", "0.2", "--temperature", "300", "--out", "taken")


@pytest.fixture(scope="module")
def system():
    return load_system("ala2-vacuum")


@pytest.fixture(scope="module")
def x(system):
    return without_memory(system)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes frames under a name in the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(x, name):
        mdtraj.Trajectory(np.asarray(x), mdtraj.load(str(PDB)).topology).save(name)

    return write


def take(name: str, *options: str) -> object:
    return call("reference", "ala2-vacuum", "--from", name, *SETTINGS, *options)


def test_xtc_says_by_how_much_it_shifts_energies(system, x, write):
    write(x, "a.xtc")
    result = take("a.xtc")
    assert result.exit_code == 0, result.output
    said = re.search(r"precision of 0.001 nm, .* by about (\S+) ± (\S+) kT; DCD or HDF5", " ".join(result.stdout.split()))
    value, stderr = float(said[1]), float(said[2])
    taken = store.load_samples("taken/samples.npz")
    true = (system.target.u(taken.x) - system.target.u(x)).mean().item()
    assert 0.2 < true < 0.5 and abs(value - true) < 4 * stderr < 0.3 and "precision of 0.001 nm" in taken.note


def test_dcd_shifts_nothing_and_is_not_replaced_by_another_trajectory(x, write, tmp_path):
    write(x, "a.dcd")
    write(x[:800], "b.dcd")
    result = take("a.dcd")
    assert result.exit_code == 0 and "precision" not in result.output, result.output
    before = files(tmp_path)
    refused(take("b.dcd"), "taken/samples.npz holds 1000 configurations made by", "--out")
    refused(call("reference", "ala2-vacuum", "-n", "100", "--out", "taken"), "holds 1000 configurations")
    assert files(tmp_path) == before
    assert "replaced" in take("a.dcd").stderr
