"""What is bonded to what in a molecule, as plain data, and what follows from it: equivalent hydrogens, stereocentres, backbone torsions."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Atoms and bonds of a molecule.

    Attributes:
        names: of the atoms, as in the PDB file, n of them.
        elements: their symbols.
        residues: name of each atom's residue.
        residue_of: index of each atom's residue, counted from 0.
        bonds: pairs of atom indices (i, j), i < j, each once.
        path: of the PDB file.
    """

    names: tuple[str, ...]
    elements: tuple[str, ...]
    residues: tuple[str, ...]
    residue_of: tuple[int, ...]
    bonds: tuple[tuple[int, int], ...]
    path: Path

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Such as "ALA2-CA", residues counted from 1."""
        atoms = zip(self.residues, self.residue_of, self.names, strict=True)
        return tuple(f"{residue}{number + 1}-{name}" for residue, number, name in atoms)

    @cached_property
    def neighbours(self) -> tuple[tuple[int, ...], ...]:
        """Atoms bonded to each atom, in increasing order."""
        found: dict[int, list[int]] = defaultdict(list)
        for i, j in self.bonds:
            found[i].append(j)
            found[j].append(i)
        return tuple(tuple(sorted(found[k])) for k in range(len(self)))

    def same_molecule(self, other: Topology | None) -> bool:
        """Whether another has the same elements in the same order with the same bonds."""
        return other is not None and (self.elements, set(self.bonds)) == (other.elements, set(other.bonds))

    def atom(self, residue: int, name: str) -> int | None:
        """Index of an atom by its residue's index and its name, or None."""
        found = [k for k in range(len(self)) if self.residue_of[k] == residue and self.names[k] == name]
        return found[0] if found else None


@dataclass(frozen=True, kw_only=True)
class Stereocentre:
    """An atom with four different substituents.

    Attributes:
        atom: its index.
        neighbours: three of its neighbours (a, b, c), the lightest left out.
        sign: of (x_a - x_atom) . ((x_b - x_atom) x (x_c - x_atom)) in the reference structure, +1 or -1.
    """

    atom: int
    neighbours: tuple[int, int, int]
    sign: int


def molecules(topology: Topology) -> tuple[tuple[int, ...], ...]:
    """Atoms of each connected piece of the bond graph, in increasing order."""
    left, found = set(range(len(topology))), []
    while left:
        piece, edge = set(), {min(left)}
        while edge:
            piece |= edge
            edge = {j for k in edge for j in topology.neighbours[k]} - piece
        left -= piece
        found.append(tuple(sorted(piece)))
    return tuple(found)


def equivalence_classes(topology: Topology) -> tuple[int, ...]:
    """A class for each atom; atoms that the bond graph can tell apart have different ones.

    Colour refinement: a colour starts as the element and becomes (colour, sorted colours of the neighbours) until nothing splits any more
    (Morgan 1965; Weisfeiler and Leman 1968).

    Returns:
        Labels from 0, in order of first appearance, n of them.
    """
    colours = _numbered(list(topology.elements))
    while True:
        refined = _numbered([(c, tuple(sorted(colours[j] for j in topology.neighbours[k]))) for k, c in enumerate(colours)])
        if len(set(refined)) == len(set(colours)):
            return tuple(colours)
        colours = refined


def _numbered(labels: list) -> list[int]:
    order = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return [order[label] for label in labels]


def equivalent_hydrogens(topology: Topology) -> tuple[tuple[int, ...], ...]:
    """Hydrogens on one and the same atom, which the force field cannot tell apart: groups of two or more indices.

    The energy is invariant under every permutation within a group. Dynamics that break no bond only reach the even ones: a methyl group
    turns (cyclic permutations of three) but is never turned inside out, and the two hydrogens of a CH2 never change places. A coupling
    that learns from such data may therefore use cyclic permutations of triples, and no others.
    """
    groups = [tuple(j for j in topology.neighbours[k] if topology.elements[j] == "H") for k in range(len(topology))]
    return tuple(group for group in groups if len(group) > 1)


def stereocentres(topology: Topology, reference: Tensor) -> tuple[Stereocentre, ...]:
    """Atoms with four neighbours of four different classes, and their handedness in a reference structure.

    Args:
        topology: of the molecule.
        reference: [n, 3] one structure.
    """
    classes = equivalence_classes(topology)
    found = []
    for k, near in enumerate(topology.neighbours):
        if len(near) == 4 and len({classes[j] for j in near}) == 4:
            a, b, c = sorted(near, key=lambda j: topology.elements[j] == "H")[:3]  # a stable sort: hydrogens last
            sign = int(chirality(reference[None], k, (a, b, c)).item())
            found.append(Stereocentre(atom=k, neighbours=(a, b, c), sign=sign))
    return tuple(found)


def handed_groups(topology: Topology, reference: Tensor) -> tuple[Stereocentre, ...]:
    """Atoms whose equivalent hydrogens are numbered in a sense that dynamics cannot change: CH3 and NH3 groups, and CH2 groups.

    The sign is that of three hydrogens around their atom, or of two hydrogens and the first other neighbour.

    Args:
        topology: of the molecule.
        reference: [n, 3] one structure.
    """
    found = []
    for group in equivalent_hydrogens(topology):
        (atom,) = topology.neighbours[group[0]]
        near = (*group, *(j for j in topology.neighbours[atom] if j not in group))
        if len(near) == 4:  # three neighbours lie in a plane, which has no sides
            sign = int(chirality(reference[None], atom, near[:3]).item())
            found.append(Stereocentre(atom=atom, neighbours=near[:3], sign=sign))
    return tuple(found)


def chirality(x: Tensor, atom: int, neighbours: tuple[int, int, int]) -> Tensor:
    """Sign of the triple product of three bonds, sign[(x_a - x_k) . ((x_b - x_k) x (x_c - x_k))], [B].

    Args:
        x: [B, n, 3].
        atom: index k of the centre.
        neighbours: (a, b, c).
    """
    a, b, c = (x[:, list(neighbours)].double() - x[:, None, atom].double()).unbind(1)
    return (a * torch.linalg.cross(b, c)).sum(1).sign()


def same_chirality(x: Tensor, centres: tuple[Stereocentre, ...]) -> Tensor:
    """Whether every stereocentre has the handedness of the reference structure, [B] bool."""
    right = torch.ones(len(x), dtype=torch.bool)
    for centre in centres:
        right &= chirality(x, centre.atom, centre.neighbours) == centre.sign
    return right


def beyond(topology: Topology, first: int, second: int) -> set[int]:
    """Atoms reached from `second` without crossing the bond to `first`; with `first` itself if they lie in a ring."""
    reached, edge = set(), {second}
    while edge:
        reached |= edge
        edge = {b for a in edge for b in topology.neighbours[a] if {a, b} != {first, second}} - reached
    return reached


def free_torsions(topology: Topology) -> dict[str, tuple[int, int, int, int]]:
    """Backbone torsions that can turn all the way round: proline's phi lies in a ring and cannot."""
    return {name: atoms for name, atoms in backbone_torsions(topology).items() if atoms[1] not in beyond(topology, atoms[1], atoms[2])}


def backbone_torsions(topology: Topology) -> dict[str, tuple[int, int, int, int]]:
    """Atoms of phi (C, N, CA, C) and psi (N, CA, C, N) of every amino acid that has them.

    Returns:
        By name: "phi" and "psi" where there is one of each, else "phi_2", ..., numbered by residue from 1.
    """
    found: dict[str, tuple[int, int, int, int]] = {}
    last = max(topology.residue_of) + 1
    for r in range(last):
        before, (n, ca, c), after = topology.atom(r - 1, "C"), (topology.atom(r, a) for a in ("N", "CA", "C")), topology.atom(r + 1, "N")
        if None in (n, ca, c):
            continue
        if before is not None and n in topology.neighbours[before]:
            found[f"phi_{r + 1}"] = (before, n, ca, c)
        if after is not None and after in topology.neighbours[c]:
            found[f"psi_{r + 1}"] = (n, ca, c, after)
    single = sum(name.startswith("phi") for name in found) == 1 and len(found) == 2
    return {name.split("_")[0] if single else name: atoms for name, atoms in found.items()}
