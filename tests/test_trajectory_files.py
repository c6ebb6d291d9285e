"""Files of trajectories as strangers name, damage and measure them."""

from __future__ import annotations

import json
import os

import h5py
import mdtraj
import numpy as np
import pytest
import torch

from bgwork import trajectories
from bgwork.reference_trajectory import from_trajectory
from bgwork.system import load_system, reference_samples
from bgwork.trajectories import TrajectoryError, check_structure, read_trajectory


@pytest.fixture(scope="module")
def system():
    return load_system("ala2-vacuum")


@pytest.fixture(scope="module")
def x(system):
    return reference_samples(system).x[:9]


@pytest.fixture
def written(system, tmp_path):
    """Writes configurations as a trajectory, and gives it another name."""
    def write(x, name, scale=1.0):
        top = mdtraj.load(str(system.topology.path)).topology
        path = tmp_path / f"written.{name.rsplit('.', 1)[1].lower()}"
        mdtraj.Trajectory(np.asarray(x) * scale, top).save(str(path))
        return path.rename(tmp_path / name)
    return write


@pytest.fixture
def hdf5(tmp_path):
    """Writes an HDF5 file with `coordinates` and the unit they name."""
    def write(values, units=None):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["coordinates"] = values
            if units is not None:
                file["coordinates"].attrs["units"] = units
        return tmp_path / "a.h5"
    return write


@pytest.mark.parametrize(("name", "tolerance"), [
    ("A.DCD", 1e-6), ("A.Xtc", 6e-4), ("A.PDB", 6e-5), ("Größe 1.dcd", 1e-6), ("Größe 2.xtc", 6e-4), ("Größe 3.pdb", 6e-5)])
def test_names_in_capitals_with_umlauts_and_spaces(system, written, x, name, tolerance):
    torch.testing.assert_close(read_trajectory(written(x, name), topology=system.topology), x, rtol=0, atol=tolerance)


def test_mdtrajs_remarks_on_headers_stay_out_of_our_results(system, written, x, capfd):
    read_trajectory(written(x, "a.dcd"), topology=system.topology)
    os.write(1, b"ours\n")
    assert capfd.readouterr().out == "ours\n"


def test_a_folder_and_a_file_that_may_not_be_read(system, written, x, monkeypatch, tmp_path):
    (tmp_path / "folder.dcd").mkdir()
    with pytest.raises(TrajectoryError, match="folder.dcd is a folder, not a trajectory"):
        read_trajectory(tmp_path / "folder.dcd", topology=system.topology)

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    path = written(x, "a.dcd")
    monkeypatch.setattr(trajectories.Path, "read_bytes", refuse)
    with pytest.raises(TrajectoryError, match="a.dcd cannot be read: Permission denied"):
        read_trajectory(path, topology=system.topology)


def test_hdf5_whose_coordinates_are_a_group(system, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("coordinates")
    with pytest.raises(TrajectoryError, match="a.h5: `coordinates` is a group, not a dataset"):
        read_trajectory(tmp_path / "a.h5", topology=system.topology)


@pytest.mark.parametrize(("values", "found"), [
    (np.full((2, 22, 3), b"0.1"), r"\[2, 22, 3\] of \|S3"), (["one", "two"], r"\[2\] of object"), (0.5, r"\[\] of float64"),
    (np.zeros((22, 3)), r"\[22, 3\] of float64"), (np.zeros((2, 22, 3), complex), r"\[2, 22, 3\] of complex128"),
    (h5py.Empty("f"), r"\[\] of float32")])
def test_hdf5_whose_coordinates_are_no_numbers(system, hdf5, values, found):
    with pytest.raises(TrajectoryError, match=f"`coordinates` is {found}, not \\[N, n, 3\\] of numbers"):
        read_trajectory(hdf5(values), topology=system.topology)


@pytest.mark.parametrize(("units", "scale"), [
    ("nanometers", 1.0), (b"nanometers", 1.0), ("angstroms", 10.0), ("Angstrom", 10.0), ("picometers", 1e3), (None, 1.0)])
@pytest.mark.parametrize("kind", ["<f8", ">f8"])
def test_hdf5_in_the_unit_it_names(system, hdf5, x, units, scale, kind):
    back = read_trajectory(hdf5((x.numpy() * scale).astype(kind), units), topology=system.topology)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-12)


def test_hdf5_in_a_unit_that_is_not_known(system, hdf5, x):
    with pytest.raises(TrajectoryError, match="`coordinates` are in 'furlongs'; known are nanometers"):
        read_trajectory(hdf5(x.numpy(), "furlongs"), topology=system.topology)


@pytest.mark.parametrize(("scale", "found", "due"), [(10.0, "Angstrom", "nm"), (0.1, "nm", "Angstrom")])
def test_lengths_in_another_unit_are_called_so(system, x, scale, found, due):
    with pytest.raises(TrajectoryError, match=f"bonds are {scale:g}.* times as long .* in {found} where the file's format has {due}"):
        check_structure(x * scale, topology=system.topology, structure=system.structure)


def test_torsions_of_a_molecule_are_not_called_no_molecule(tmp_path):
    with pytest.raises(TrajectoryError, match="ala2-torsions is a molecule of fixed bonds and angles.*in Cartesian coordinates only"):
        from_trajectory(load_system("ala2-torsions"), tmp_path / "a.dcd", frame_time=1.0, temperature=300.0)


def described(topology, order, rename=str):
    """mdtraj's JSON of a topology's atoms in another order, each residue's in one piece, under other names."""
    named = sorted({*zip(topology.residue_of, topology.residues, strict=True)})
    residues = [{"index": k, "name": name, "resSeq": k + 1, "atoms": []} for k, name in named]
    for index, k in enumerate(order):
        atom = {"index": index, "name": rename(topology.names[k]), "element": topology.elements[k]}
        residues[topology.residue_of[k]]["atoms"].append(atom)
    return json.dumps({"chains": [{"index": 0, "residues": residues}], "bonds": []}).encode()


def with_description(path, description):
    with h5py.File(path, "a") as file:
        file["topology"] = [description]
    return path


def test_hdf5_whose_atoms_are_described(system, hdf5, x):
    topology, order = system.topology, list(range(22))
    same = with_description(hdf5(x.numpy()), described(topology, order))
    torch.testing.assert_close(read_trajectory(same, topology=topology), x, rtol=0, atol=1e-12)
    other_names = with_description(hdf5(x.numpy()), described(topology, order, rename=lambda name: f"X{name}"))
    torch.testing.assert_close(read_trajectory(other_names, topology=topology), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rename", [str, lambda name: f"X{name}"], ids=["its names", "other names"])
def test_hdf5_with_atoms_in_another_order_is_refused(system, hdf5, x, rename):
    """Two hydrogens that change places are seen by their names alone, a carbon and a hydrogen without them too."""
    topology, order = system.topology, list(range(22))
    first, second = next((i, i + 1) for i in range(21) if topology.elements[i] != topology.elements[i + 1]
                         and topology.residue_of[i] == topology.residue_of[i + 1])
    order[first], order[second] = second, first
    path = with_description(hdf5(x.numpy()), described(topology, order, rename))
    with pytest.raises(TrajectoryError, match=f"atom {first + 1} of .*a.h5 is .*: another order of atoms"):
        read_trajectory(path, topology=topology)
    hydrogens = [k for k in range(22) if topology.elements[k] == "H"][:2]
    order = list(range(22))
    order[hydrogens[0]], order[hydrogens[1]] = hydrogens[1], hydrogens[0]
    path = with_description(hdf5(x.numpy()), described(topology, order))
    with pytest.raises(TrajectoryError, match="another order of atoms"):
        read_trajectory(path, topology=topology)
    assert torch.equal(read_trajectory(path, topology=topology, top=topology.path), x)


@pytest.mark.parametrize(("description", "match"), [
    (b"{", "its `topology` is not mdtraj's"), (b'{"chains": 3}', "its `topology` is not mdtraj's"),
    (b'{"chains": []}', "has 0 atoms")])
def test_hdf5_with_another_description_is_refused(system, hdf5, x, description, match):
    with pytest.raises(TrajectoryError, match=match):
        read_trajectory(with_description(hdf5(x.numpy()), description), topology=system.topology)
