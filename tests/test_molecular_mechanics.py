"""The torch energy of a System against OpenMM's Reference platform, term by term and whole."""

from __future__ import annotations

import math
import pickle

import openmm
import pytest
import torch
from openmm import app
from oracles import HarmonicMolecule, propose
from peptides import Peptide, peptide

from bgwork import units
from bgwork.geometry import angles, distances, torsions, wrap
from bgwork.reweighting import expectation, log_z, weigh
from bgwork.spaces import MeanFree
from bgwork.targets.cmap import correction_maps
from bgwork.targets.molecular_mechanics import MolecularMechanics
from bgwork.targets.openmm import OpenMMTarget

KJ = 1e-5  # kJ/mol, the agreement asked for
FF19SB = "amber19/protein.ff19SB.xml"
MOLECULES = {
    "ala2 vacuum": {}, "ala2 obc2": {"solvent": "obc2"}, "ala3 vacuum": {"alanines": 3},
    "ala3 obc2": {"alanines": 3, "solvent": "obc2"}, "ala2 with correction map": {"forcefield": FF19SB}}


def twins(system: openmm.System, **options: float) -> tuple[MolecularMechanics, OpenMMTarget]:
    """The torch and the OpenMM target, in kJ/mol."""
    space = MeanFree(n=system.getNumParticles(), d=3)
    return MolecularMechanics(system, space=space, kT=1.0, **options), OpenMMTarget(system, space=space, kT=1.0, **options)


def random_angles(molecule: Peptide, count: int) -> torch.Tensor:
    """Crumpled structures: every torsion is met at any angle, many atoms overlap, some are buried in one another."""
    generator = torch.Generator().manual_seed(5)
    scale = torch.linspace(0.5, 2.0, count, dtype=torch.float64)[:, None, None]
    x = scale * molecule.x + 0.08 * torch.randn(count, *molecule.x.shape, generator=generator, dtype=torch.float64)
    return x - x.mean(1, keepdim=True)


@pytest.mark.parametrize("name", MOLECULES)
def test_energies_and_forces_agree_with_openmm(name):
    molecule = peptide(**MOLECULES[name])
    ours, theirs = twins(molecule.system)
    for std in (0.0, 0.003, 0.01):
        x = molecule.perturbed(4, std=std)
        (u, grad), (u_openmm, grad_openmm) = ours.u_and_grad(x), theirs.u_and_grad(x)
        assert (u - u_openmm).abs().max() < KJ
        torch.testing.assert_close(grad, grad_openmm, rtol=1e-7, atol=1e-4)
    assert u.std() > 10


@pytest.mark.parametrize("name", MOLECULES)
def test_far_from_equilibrium_too(name):
    """Relative to the largest pair energy, since 1e-5 kJ/mol is below rounding at 1e9."""
    molecule = peptide(**MOLECULES[name])
    ours, theirs = twins(molecule.system)
    x = random_angles(molecule, 60)
    torch.testing.assert_close(ours.u(x), theirs.u(x), rtol=1e-9, atol=KJ)


def only(system: openmm.System, kind: type[openmm.Force]) -> openmm.System:
    """The System with the forces of one class alone."""
    copy = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    for k in reversed(range(copy.getNumForces())):
        if not isinstance(copy.getForce(k), kind):
            copy.removeForce(k)
    return copy


@pytest.mark.parametrize("kind", [openmm.HarmonicBondForce, openmm.HarmonicAngleForce, openmm.PeriodicTorsionForce, openmm.NonbondedForce,
                                  openmm.GBSAOBCForce, openmm.CMAPTorsionForce])
def test_every_term_alone(kind):
    options = {"forcefield": FF19SB} if kind is openmm.CMAPTorsionForce else {"solvent": "obc2"}
    molecule = peptide(3, **options)
    ours, theirs = twins(only(molecule.system, kind))
    for x in (molecule.perturbed(10, std=0.01), random_angles(molecule, 20)):
        torch.testing.assert_close(ours.u(x), theirs.u(x), rtol=1e-10, atol=KJ)
    assert ours.u(x).std() > 0.1


def test_exceptions_in_either_order_and_between_different_atoms():
    system, force = openmm.System(), openmm.NonbondedForce()
    for charge, sigma, epsilon in ((0.4, 0.3, 0.5), (-0.7, 0.2, 1.1), (0.3, 0.25, 0.0), (0.2, 0.35, 0.7)):
        system.addParticle(1.0)
        force.addParticle(charge, sigma, epsilon)
    force.addException(2, 0, 0.11, 0.31, 0.2)
    force.addException(3, 1, 0.0, 0.1, 0.0)
    system.addForce(force)
    ours, theirs = twins(system)
    x = 0.4 * torch.randn(50, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(ours.u(x), theirs.u(x), rtol=1e-11, atol=1e-9)


def test_born_radii_of_spheres_inside_one_another():
    """Two small atoms moved through a large one's descreening sphere, from outside to buried near its centre, and a scale above one."""
    system, force = openmm.System(), openmm.GBSAOBCForce()
    for charge, radius, scale in ((0.4, 0.5, 0.9), (-0.7, 0.12, 0.8), (0.3, 0.1, 1.2)):
        system.addParticle(1.0)
        force.addParticle(charge, radius, scale)
    system.addForce(force)
    ours, theirs = twins(system)
    distance = torch.linspace(0.02, 1.2, 60, dtype=torch.float64)
    x = torch.zeros(60, 3, 3, dtype=torch.float64)
    x[:, 1, 0], x[:, 2, 1] = distance, 0.7 * distance
    (u, grad), (u_openmm, grad_openmm) = ours.u_and_grad(x), theirs.u_and_grad(x)
    torch.testing.assert_close(u, u_openmm, rtol=1e-10, atol=KJ)
    torch.testing.assert_close(grad, grad_openmm, rtol=1e-7, atol=1e-4)


def test_correction_map_at_every_angle():
    """Two tables of random values, looked up all over the torus, at grid points and where an angle wraps."""
    values = torch.randn(2, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    force, system = openmm.CMAPTorsionForce(), openmm.System()
    for _ in range(5):
        system.addParticle(1.0)
    for table in values:
        force.addMap(8, table)
    force.addTorsion(1, 0, 1, 2, 3, 1, 2, 3, 4)
    force.addTorsion(0, 4, 3, 2, 1, 0, 2, 3, 4)
    system.addForce(force)
    ours, theirs = twins(system)
    x = MeanFree(n=5, d=3).project(torch.randn(300, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    torch.testing.assert_close(ours.u(x), theirs.u(x), rtol=0, atol=1e-9)
    flat = torch.tensor([[[0.0, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, -1e-18], [2, 1, 0]]], dtype=torch.float64)  # torsions -1e-18 and pi
    torch.testing.assert_close(ours.u(flat), theirs.u(flat), rtol=0, atol=1e-9)


def test_maps_of_different_sizes_are_refused():
    force = openmm.CMAPTorsionForce()
    for size in (4, 8):
        force.addMap(size, [0.0] * size**2)
    force.addTorsion(0, 0, 1, 2, 3, 1, 2, 3, 4)
    with pytest.raises(ValueError, match=r"sizes \[4, 8\]"):
        correction_maps(force)
    assert correction_maps(openmm.CMAPTorsionForce()) is None


def test_temperature_and_length_unit():
    """u = U/RT of positions in Angstrom."""
    molecule = peptide()
    space, kT = MeanFree(n=22, d=3), units.kT(300.0)
    ours = MolecularMechanics(molecule.system, space=space, kT=kT, nm=0.1)
    theirs = OpenMMTarget(molecule.system, space=space, kT=kT, nm=0.1)
    x = 10 * molecule.perturbed(3)
    for a, b in zip(ours.u_and_grad(x), theirs.u_and_grad(x)):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-5)


def test_meets_the_protocol_and_counts():
    molecule = peptide()
    target, x = twins(molecule.system)[0], molecule.perturbed(5)
    target.u(x), target.u_and_grad(x[:2]), target.u(x[:1].float().requires_grad_())
    assert (target.n_energy, target.n_gradient, target.n_nan) == (5, 3, 0)
    assert target.u(x.float()).dtype == torch.float64
    with pytest.raises(ValueError, match="expected"):
        target.u(x[:, :5])
    assert torch.equal(pickle.loads(pickle.dumps(target)).u(x), target.u(x))


def test_the_batch_does_not_matter():
    molecule = peptide(solvent="obc2")
    target, x = twins(molecule.system)[0], molecule.perturbed(7)
    alone = torch.cat([target.u(row[None]) for row in x])
    torch.testing.assert_close(target.u(x), alone, rtol=1e-13, atol=1e-10)
    target.batch = 2
    torch.testing.assert_close(target.u(x), alone, rtol=1e-13, atol=1e-10)


@pytest.mark.parametrize("name", MOLECULES)
def test_parameters_follow_the_configurations_to_another_device(name):
    """On the meta device, which has shapes and no numbers: a tensor left behind is an error there."""
    molecule = peptide(**MOLECULES[name])
    u = twins(molecule.system)[0]._energy(molecule.perturbed(3).to("meta"))
    assert u.device.type == "meta" and u.shape == (3,)


@pytest.mark.parametrize("options", [{"solvent": "obc2"}, {"forcefield": FF19SB}], ids=["obc2", "correction map"])
def test_differentiable_twice(options):
    """The second derivative along a direction against central differences of the gradient, which OpenMM confirms."""
    molecule = peptide(**options)
    target, x = twins(molecule.system)[0], molecule.perturbed(1)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(target.u(leaf).sum(), leaf, create_graph=True)
    (curvature,) = torch.autograd.grad((grad * direction).sum(), leaf)
    h = 1e-6
    numerical = (target.u_and_grad(x + h * direction)[1] - target.u_and_grad(x - h * direction)[1]) / (2 * h)
    torch.testing.assert_close(curvature, numerical, rtol=1e-5, atol=1e-5 * curvature.abs().max().item())


def test_invariant_under_motions_but_not_reflection():
    molecule = peptide(forcefield=FF19SB)
    target, x = twins(molecule.system)[0], molecule.perturbed(3)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).Q
    turn = turn * torch.linalg.det(turn)
    torch.testing.assert_close(target.u(x @ turn + 1.0), target.u(x), rtol=0, atol=1e-8)
    assert (target.u(-x) - target.u(x)).abs().min() > 1e-3  # the correction map knows left from right


def test_overlap_is_infinite_or_failed_never_low():
    molecule = peptide()
    target, x = twins(molecule.system)[0], molecule.perturbed(2)
    x[0, 0] = x[0, -1] + 1e-60
    u, grad = target.u_and_grad(x)
    assert not (u[0] < math.inf) and torch.isnan(grad[0]).all()
    assert torch.isfinite(u[1]) and torch.isfinite(grad[1]).all()


def test_a_weight_twin_at_another_place_shows():
    """The test itself: a charge changed by one per cent is far outside the agreement asked for."""
    molecule = peptide()
    other = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(molecule.system))
    force = next(f for f in other.getForces() if isinstance(f, openmm.NonbondedForce))
    charge, sigma, epsilon = force.getParticleParameters(0)
    force.setParticleParameters(0, 1.01 * charge, sigma, epsilon)
    x = molecule.perturbed(3)
    assert (twins(other)[0].u(x) - twins(molecule.system)[1].u(x)).abs().min() > 100 * KJ


def test_internal_coordinates_by_hand():
    x = torch.tensor([[[0.0, 2, 0], [0, 0, 0], [3, 0, 0], [3, 0, 1]]], dtype=torch.float64)
    assert distances(x, torch.tensor([[0, 1], [0, 2]]))[0].tolist() == pytest.approx([2.0, math.sqrt(13)])
    assert angles(x, torch.tensor([[0, 1, 2], [1, 0, 2]]))[0].tolist() == pytest.approx([math.pi / 2, math.atan2(3, 2)])
    assert torsions(x, torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]]))[0].tolist() == pytest.approx([math.pi / 2, math.pi / 2])
    assert wrap(torch.tensor([3.5, -math.pi, math.pi])).tolist() == pytest.approx([3.5 - 2 * math.pi, -math.pi, -math.pi])


def test_readers_cover_a_system_made_by_a_user():
    """Amber99SB-ILDN, the other force field of the literature."""
    molecule = peptide(forcefield="amber99sbildn.xml")
    assert isinstance(molecule.topology, app.Topology)
    ours, theirs = twins(molecule.system)
    x = molecule.perturbed(5)
    assert (ours.u(x) - theirs.u(x)).abs().max() < KJ


def ideal_system(molecule: HarmonicMolecule) -> openmm.System:
    """The oracle as a System whose kJ/mol are kT."""
    system, atoms = openmm.System(), range(molecule.n)
    bond, angle, torsion = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    for _ in atoms:
        system.addParticle(12.0)
    for k in atoms[:-1]:
        bond.addBond(k, k + 1, *molecule.bond)
    for k in atoms[:-2]:
        angle.addAngle(k, k + 1, k + 2, *molecule.angle)
    for k in atoms[:-3]:
        torsion.addTorsion(k, k + 1, k + 2, k + 3, *molecule.torsion)
    for force in (bond, angle, torsion):
        system.addForce(force)
    return system


def test_proper_weighting_of_an_ideal_molecule():
    """Samples of a softer molecule, weighed with the torch energy and with OpenMM's: log Z and averages in closed form."""
    molecule, softer = HarmonicMolecule(), HarmonicMolecule(bond=(0.15, 17_000.0), angle=(1.9, 50.0), torsion=(2, 0.9, 1.1))
    x = molecule.sample(5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(twins(ideal_system(molecule))[0].u(x), molecule.u(x), rtol=1e-9, atol=1e-9)
    for target in twins(ideal_system(molecule)):
        weighted = weigh(propose(softer, 20_000, seed=0), target)
        assert abs(log_z(weighted).value - molecule.log_z) < 4 * log_z(weighted).stderr < 0.05
        turned = expectation(weighted, lambda x: torsions(x, torch.tensor([[1, 2, 3, 4]]))[:, 0].sin())
        assert abs(turned.value - molecule.average_of("phi", torch.sin)) < 4 * turned.stderr
        length = expectation(weighted, lambda x: distances(x, torch.tensor([[0, 1]]))[:, 0])
        assert abs(length.value - molecule.average_of("r", lambda r: r)) < 4 * length.stderr
