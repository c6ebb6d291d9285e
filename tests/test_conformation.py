"""Backbone angles and basins against mdtraj; broken bonds and inverted centres are counted and weighed, never dropped."""

from __future__ import annotations

import math
from dataclasses import replace

import mdtraj
import numpy as np
import pytest
import torch
from ala2 import generated, share_of_left_handed, simulated, turned
from oracles import propose
from peptides import Peptide, peptide

from bgwork.conformation import (
    BASINS,
    basin,
    broken_bonds,
    delta_f,
    has_other_phi,
    has_positive_phi,
    intactness,
    ramachandran,
    residues,
    torsion_functions,
)
from bgwork.molecule import topology_of
from bgwork.priors import Gaussian
from bgwork.records import WeightedSamples
from bgwork.reweighting import weigh
from bgwork.spaces import MeanFree
from bgwork.system import load_system
from bgwork.topology import Topology, equivalent_hydrogens


def plain(molecule: Peptide) -> Topology:
    return topology_of(molecule.topology, "made-up.pdb")


def weighted(x: torch.Tensor, u: torch.Tensor) -> WeightedSamples:
    """Structures as samples of a flat proposal with these energies."""
    proposal = propose(Gaussian(space=MeanFree(n=x.shape[1], d=3), std=1.0), len(x), seed=0)
    return WeightedSamples(proposal=replace(proposal, x=x, log_q=torch.zeros(len(x), dtype=torch.float64)), u=u, target="made up")


@pytest.mark.parametrize("alanines", [1, 3])
def test_backbone_angles_against_mdtraj(alanines):
    molecule = peptide(alanines)
    x = molecule.perturbed(200, std=0.08)
    trajectory = mdtraj.Trajectory(x.float().numpy(), mdtraj.Topology.from_openmm(molecule.topology))
    phi, psi = mdtraj.compute_phi(trajectory), mdtraj.compute_psi(trajectory)
    found = residues(plain(molecule))
    assert [list(r.phi) for r in found] == phi[0].tolist() and [list(r.psi) for r in found] == psi[0].tolist()
    for k, residue in enumerate(found):
        angles = ramachandran(x, residue).numpy()
        theirs = np.stack([phi[1][:, k], psi[1][:, k]], 1)
        assert np.abs(np.angle(np.exp(1j * (angles - theirs)))).max() < 2e-3  # mdtraj is float32, and needs no good geometry here
        assert np.abs(angles).max() > 3  # the wrap is met
    names = ["phi", "psi"] if alanines == 1 else ["phi_2", "psi_2", "phi_3", "psi_3", "phi_4", "psi_4"]
    functions = torsion_functions(plain(molecule))
    assert sorted(functions) == sorted(names) and [r.name for r in found] == ([""] if alanines == 1 else ["2", "3", "4"])
    assert torch.equal(functions[names[1]](x), ramachandran(x, found[0])[:, 1])


@pytest.mark.parametrize(("phi", "psi", "name"), [(-75, 145, "extended"), (-60, -45, "right-handed"), (60, 45, "left-handed"),
                                                  (-150, -170, "extended"), (170, 20, "right-handed")])
def test_basins_of_known_conformations(phi, psi, name):
    x, residue = dihedral_at(math.radians(phi), math.radians(psi)), residues(plain(peptide()))[0]
    assert ramachandran(x, residue)[0].tolist() == pytest.approx([math.radians(phi), math.radians(psi)])
    assert BASINS[basin(x, residue=residue).item()] == name
    assert has_positive_phi(x, phi=residue.phi).item() == (name == "left-handed")
    assert has_other_phi(x, phi=residue.phi).item() == (name != "left-handed")


def dihedral_at(phi: float, psi: float) -> torch.Tensor:
    """Alanine dipeptide with given backbone angles, [1, n, 3]."""
    return turned(peptide().x, plain(peptide()), phi, psi)[None]


def test_broken_and_inverted_are_counted_and_weighed_and_stay():
    molecule = peptide()
    topology, x = plain(molecule), molecule.perturbed(10, std=0.002)
    x[3] = -x[3]  # the mirror image
    x[5, -1] += torch.sign(x[5, -1] - x[5, topology.neighbours[-1][0]]) * 0.2  # a hydrogen leaves, outwards
    methyl = equivalent_hydrogens(topology)[1]
    x[8, list(methyl[:2])] = x[8, list(methyl[1::-1])]  # two of its hydrogens exchanged
    x[7] = math.nan
    u = torch.full((10,), -10.0, dtype=torch.float64)
    u[3], u[5], u[8] = -8.0, 50.0, -9.0
    found = intactness(weighted(x, u), topology, molecule.x)
    assert (found.n, found.n_broken, found.n_inverted, found.n_renumbered) == (9, 1, 1, 2)
    total = 6 + math.exp(-2) + math.exp(-60) + math.exp(-1)
    assert found.renumbered.value == pytest.approx((math.exp(-2) + math.exp(-1)) / total)
    assert found.inverted.value == pytest.approx(math.exp(-2) / total) and found.inverted.stderr > 0
    assert found.broken.value == pytest.approx(math.exp(-60) / total)
    assert broken_bonds(x[:6], topology=topology, structure=molecule.x).tolist() == [0, 0, 0, 0, 0, 1]


def test_thermal_motion_breaks_nothing():
    molecule = peptide(3)
    x = molecule.perturbed(200, std=0.004)
    assert not broken_bonds(x, topology=plain(molecule), structure=molecule.x).any()
    found = intactness(weighted(x, torch.zeros(200, dtype=torch.float64)), plain(molecule), molecule.x)
    assert (found.n_broken, found.n_inverted, found.n_renumbered, found.inverted.value) == (0, 0, 0, 0.0)


def test_a_molecule_without_backbone_has_no_residues():
    assert residues(replace(plain(peptide()), names=("X",) * 22)) == ()


def test_delta_f_by_every_route():
    """Samples made up with a known population, and a log q that is u shifted: every route finds it, with its error bar."""
    system = load_system("ala2-vacuum")
    own = generated(system, 600, noise=0.0)
    reference = weigh(simulated(system, 600), system.target)
    log_q = -reference.u + 60.0
    residue, share = residues(system.topology)[0], share_of_left_handed()
    found = delta_f(own, residue, reference=reference, held_out=reference, log_q=log_q)
    assert sorted(found.by_route) == ["local", "pooled", "reference", "weights"] and not found.missing
    for name, value in found.by_route.items():
        if name != "local":  # which knows no populations but the generator's
            assert abs(value.value - math.log((1 - share) / share)) < 4 * value.stderr < 1, name
    assert found.by_route["pooled"].stderr < found.by_route["weights"].stderr
    assert found.by_route["local"].value == pytest.approx(found.by_route["weights"].value, abs=3 * found.by_route["weights"].stderr)


def test_routes_that_cannot_be_had_say_why():
    system = load_system("ala2-vacuum")
    own = generated(system, 50)
    residue = residues(system.topology)[0]
    found = delta_f(own, residue)
    assert list(found.by_route) == ["weights"]
    assert "no reference samples" in found.missing["reference"] and "not known" in found.missing["local"]
    nowhere = has_other_phi(own.x, phi=residue.phi)
    one_basin = own.take(nowhere)
    assert "no sample of positive weight lies in basin b" in delta_f(one_basin, residue).missing["weights"]
