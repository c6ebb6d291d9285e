"""Topologies: equivalent hydrogens, stereocentres and their sign, backbone torsions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bgwork.molecule import molecular_observables
from bgwork.reference_checks import ReferenceError
from bgwork.reference_md import biased_torsions
from bgwork.system import load_system
from bgwork.topology import (
    Topology,
    backbone_torsions,
    chirality,
    equivalence_classes,
    equivalent_hydrogens,
    free_torsions,
    same_chirality,
    stereocentres,
)

# L-alanine looked at from its hydrogen: carboxyl, side chain and nitrogen appear clockwise ("CORN"); here H is on the +z axis
L_CENTRE = torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, 1, -0.3], [0.87, -0.5, -0.3], [-0.87, -0.5, -0.3]], dtype=torch.float64)


def topology(elements, bonds, names=None, residue_of=None):
    names = names or tuple(f"{e}{k}" for k, e in enumerate(elements))
    n = len(elements)
    return Topology(names=tuple(names), elements=tuple(elements), residues=("X",) * n, residue_of=residue_of or (0,) * n,
                    bonds=tuple(bonds), path=Path("x.pdb"))


def centre():
    """CA with HA, C (doubly oxygenated), CB and N."""
    return topology("CHCCNOO", [(0, 1), (0, 2), (0, 3), (0, 4), (2, 5), (2, 6)])


@pytest.fixture(scope="module")
def alanine():
    return load_system("ala2-vacuum")


def test_classes_follow_the_bonds_not_the_names():
    """Neopentane-like: four equal methyl groups, and one of them with a deuterium-like odd neighbour."""
    assert equivalence_classes(topology("CCCC", [(0, 1), (1, 2), (2, 3)])) == (0, 1, 1, 0)
    assert equivalence_classes(topology("CCCO", [(0, 1), (1, 2), (2, 3)])) == (0, 1, 2, 3)
    assert equivalence_classes(topology("CHHHH", [(0, k) for k in range(1, 5)])) == (0, 1, 1, 1, 1)


def test_far_away_differences_are_seen():
    """Two chains that differ only five bonds away have different first atoms."""
    chain = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8)]
    labels = equivalence_classes(topology("CCCCCCCCO", chain))
    assert labels[0] != labels[7]


def test_relabelling_atoms_relabels_the_classes():
    elements, bonds = "CCHHHHHO", [(0, 1), (0, 2), (0, 3), (0, 4), (1, 5), (1, 6), (1, 7)]
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0)).tolist()
    moved = topology("".join(elements[order.index(k)] for k in range(8)), [(order[i], order[j]) for i, j in bonds])
    a, b = equivalence_classes(topology(elements, bonds)), equivalence_classes(moved)
    assert all((a[i] == a[j]) == (b[order[i]] == b[order[j]]) for i in range(8) for j in range(8))


def test_alanine_dipeptide(alanine):
    names = alanine.topology.names
    groups = [{names[k] for k in group} for group in equivalent_hydrogens(alanine.topology)]
    assert groups == [{"H1", "H2", "H3"}, {"HB1", "HB2", "HB3"}, {"H1", "H2", "H3"}]
    (centre,) = stereocentres(alanine.topology, alanine.structure)
    assert names[centre.atom] == "CA" and "HA" not in {names[k] for k in centre.neighbours}
    assert backbone_torsions(alanine.topology) == {"phi": (4, 6, 8, 14), "psi": (6, 8, 14, 16)}
    assert len(alanine.topology) == 22 and len(alanine.topology.bonds) == 21


def test_the_structure_is_an_l_amino_acid(alanine):
    """The sign of (N, C, CB) around CA agrees with the CORN rule."""
    def at(name):
        return alanine.topology.atom(1, name)
    ours = chirality(alanine.structure[None], at("CA"), (at("N"), at("C"), at("CB")))
    assert ours.item() == chirality(L_CENTRE[None], 0, (4, 2, 3)).item() == 1.0


def test_chirality_changes_sign_under_reflection_only():
    (found,) = stereocentres(centre(), torch.cat([L_CENTRE, L_CENTRE[2:3] + 0.5, L_CENTRE[2:3] - 0.5]))
    x = torch.cat([L_CENTRE, torch.zeros(2, 3, dtype=torch.float64)])[None]
    q = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    q = q * torch.linalg.det(q).sign()
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    batch = torch.cat([x, x @ q + 3.0, x @ mirror, x @ q @ mirror])
    assert same_chirality(batch, (found,)).tolist() == [True, True, False, False]


def test_two_equal_substituents_make_no_stereocentre():
    assert stereocentres(topology("CHHCN", [(0, k) for k in range(1, 5)]), L_CENTRE) == ()
    assert len(stereocentres(topology("CHOFN", [(0, k) for k in range(1, 5)]), L_CENTRE)) == 1


def test_torsions_of_several_residues_are_numbered():
    names = ("N", "CA", "C") * 3
    bonds = [(k, k + 1) for k in range(8)]
    t = topology("NCC" * 3, bonds, names=names, residue_of=(0, 0, 0, 1, 1, 1, 2, 2, 2))
    assert backbone_torsions(t) == {"psi_1": (0, 1, 2, 3), "phi_2": (2, 3, 4, 5), "psi_2": (3, 4, 5, 6), "phi_3": (5, 6, 7, 8)}


def test_no_torsion_across_a_chain_break():
    t = topology("NCC" * 2, [(0, 1), (1, 2), (3, 4), (4, 5)], names=("N", "CA", "C") * 2, residue_of=(0, 0, 0, 1, 1, 1))
    assert backbone_torsions(t) == {}


def prolines(links):
    """Two residues N-CA-C in a chain of four, the second with a ring CA-CB-CD-N if `links` closes it."""
    names = ("C", "N", "CA", "C", "N", "CB", "CD")
    bonds = [(0, 1), (1, 2), (2, 3), (3, 4), (2, 5), (5, 6), *links]
    return topology("CNCCNCC", bonds, names=names, residue_of=(0, 1, 1, 1, 2, 1, 1))


def test_a_torsion_in_a_ring_is_not_free():
    """Proline's phi, whose bond N-CA its ring holds; its psi turns."""
    assert list(free_torsions(prolines([(1, 6)]))) == ["psi"] and list(free_torsions(prolines([]))) == ["phi", "psi"]
    functions = molecular_observables(prolines([(1, 6)]), torch.randn(7, 3, generator=torch.Generator().manual_seed(0)))
    assert {"phi_cos", "psi_cos"} <= set(functions) and not {"phi_positive", "phi_basin"} & set(functions)


def test_what_is_biased_turns():
    """By default all free torsions; one in a ring is refused by name."""
    assert biased_torsions(prolines([(1, 6)]), []) == ((1, 2, 3, 4),)
    with pytest.raises(ReferenceError, match="phi in reference.torsions lie in a ring"):
        biased_torsions(prolines([(1, 6)]), ["phi"])
    with pytest.raises(ReferenceError, match="unknown torsions chi"):
        biased_torsions(prolines([(1, 6)]), ["chi"])
