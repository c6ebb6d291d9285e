"""Which atoms the coordinates of a trajectory are: those of the system, in its order, as far as the file names them."""

from __future__ import annotations

import json
from pathlib import Path

from bgwork.molecule import topology_of
from bgwork.targets.force_fields import read_pdb
from bgwork.topology import Topology

ALONE = "write the molecule alone, without solvent"


class TrajectoryError(ValueError):
    """A trajectory that cannot be taken over, with the remedy."""


def check_atoms(pdb: Path, topology: Topology) -> None:
    """Refuse a PDB file whose atoms are not those of a topology, in the same order.

    Raises:
        TrajectoryError: naming the counts, or the first atom that differs.
    """
    if Path(pdb) == topology.path:
        return
    other = topology_of(read_pdb(pdb).topology, Path(pdb))
    if len(other) != len(topology):
        raise TrajectoryError(f"{pdb} has {len(other)} atoms, {topology.path} has {len(topology)}; {ALONE}")
    _refuse_first_difference(topology.labels, other.labels, path=pdb, topology=topology)


def check_named_atoms(described: str, path: Path, topology: Topology) -> None:
    """Refuse a file that describes its atoms, as mdtraj's HDF5 does, if they are others or in another order.

    Programs call one and the same atom by several names. Where the file has names of its own, elements alone are compared.

    Args:
        described: mdtraj's JSON of chains, residues and atoms; nothing is checked if it is empty.
        path: of the file.
        topology: what the atoms must be.
    Raises:
        TrajectoryError: naming the counts, or the first atom that differs; for a description that cannot be read.
    """
    if not described:
        return
    try:
        residues = [residue for chain in json.loads(described)["chains"] for residue in chain["residues"]]
        atoms = sorted((int(atom["index"]), f"{residue['name']}{k + 1}-{atom['name']}", str(atom["element"]))
                       for k, residue in enumerate(residues) for atom in residue["atoms"])
    except (ValueError, KeyError, TypeError) as error:
        raise TrajectoryError(f"{path}: its `topology` is not mdtraj's: {error!r}; write it anew with mdtraj, or convert to DCD") from error
    if len(atoms) != len(topology):
        raise TrajectoryError(f"{path} has {len(atoms)} atoms, {topology.path} has {len(topology)}; {ALONE}")
    _, labels, elements = zip(*atoms, strict=True)
    same_names = sorted(labels) == sorted(topology.labels)
    ours, theirs = (topology.labels, labels) if same_names else (topology.elements, elements)
    _refuse_first_difference(ours, theirs, path=path, topology=topology)


def _refuse_first_difference(ours: tuple[str, ...], theirs: tuple[str, ...], *, path: Path, topology: Topology) -> None:
    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a != b:
            raise TrajectoryError(f"atom {k + 1} of {path} is {b}, of {topology.path} {a}: another order of atoms; "
                                  "reorder its coordinates (mdtraj: xyz[:, order]; atom_slice sorts), or make the system from this PDB")
