"""Dynamics on a chain whose torsion populations are known by quadrature: plain, biased and reweighted, exchanged, and moved on."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from molecules import ATOMS, KT, chain_start, chain_target, population

from bgwork.observables import dihedral
from bgwork.records import Density, Estimate
from bgwork.reweighting import average, ess, expectation, resample, weigh
from bgwork.samplers.md import DynamicsError, Langevin, MolecularDynamics, decorrelate
from bgwork.samplers.metadynamics import TorsionBias, WellTempered, build_bias
from bgwork.samplers.replica_exchange import ReplicaExchange, Replicas
from bgwork.targets.openmm import OpenMMTarget

FAST = Langevin(step=0.002, friction=5.0)
BASIN = (0.0, 2.0)
STIFF = 5 / 2  # mean of u over three bonds and two angles
PI = math.pi


def exchange(*, rungs, **settings):
    return ReplicaExchange(target=chain_target(), start=chain_start().expand(10, rungs, 4, 3), steps=50, dynamics=FAST, **settings)


def in_basin(x, low=BASIN[0], high=BASIN[1]):
    phi = dihedral(x, atoms=ATOMS)
    return ((phi > low) & (phi <= high)).double()


def truth(low=BASIN[0], high=BASIN[1]):
    return Estimate(value=population(low, high), stderr=0.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def filled():
    settings = WellTempered(torsions=(ATOMS,), steps=200_000, every=200, height=0.5, factor=6.0)
    return build_bias(chain_target(), chain_start(), settings, dynamics=FAST, generator=generator())


@pytest.fixture(scope="module")
def walkers(filled):
    start = filled.x[torch.linspace(len(filled.x) // 2, len(filled.x) - 1, 20).long()]
    bias = filled.bias.capped(2 * KT)
    md = MolecularDynamics(target=chain_target(), start=start, bias=bias, burn_in=2000, thin=20, dynamics=FAST)
    return weigh(md.sample(20 * 700, generator=generator(1)), chain_target())


def test_metadynamics_crosses_every_barrier(filled):
    phi = filled.angles[:, 0]
    crossings = (in_basin(filled.x)[1:] != in_basin(filled.x)[:-1]).sum()
    assert crossings > 20
    torch.testing.assert_close(phi, dihedral(filled.x, atoms=ATOMS), rtol=0, atol=1e-9)


def test_bias_is_minus_the_free_energy(filled):
    """V = -(1 - 1/gamma) F + const of well-tempered metadynamics: basins filled in proportion to their depth."""
    grid = torch.linspace(-PI, PI, len(filled.bias.table), dtype=torch.float64)
    mass = torch.tensor([population(float(p) - 0.05, float(p) + 0.05) for p in grid[3:-3]])
    slope = np.polyfit((-KT * mass.log()).numpy(), filled.bias.table[3:-3].numpy(), 1)[0]
    assert slope == pytest.approx(-(1 - 1 / 6), abs=0.15)


def test_reweighted_walkers_have_the_known_populations(walkers):
    for low, high in (BASIN, (-PI, 0.0), (2.0, PI)):
        assert abs(expectation(walkers, partial(in_basin, low=low, high=high)).z(truth(low, high))) < 4
    assert 0.3 < ess(walkers).value < 0.999
    assert walkers.proposal.density is Density.UNNORMALISED


def test_biased_populations_without_weights_are_wrong(walkers):
    biased = in_basin(walkers.x)
    stderr = biased.view(-1, 20).mean(0).std().item() / 20**0.5
    assert abs(biased.mean().item() - truth().value) > 4 * stderr


def test_weights_are_the_bias(walkers, filled):
    """log w = V/kT up to the interpolation between grid points."""
    table, phi = filled.bias.capped(2 * KT).table, dihedral(walkers.x, atoms=ATOMS)
    grid = np.linspace(-PI, PI, len(table))
    assert np.abs(walkers.log_w.numpy() * KT - np.interp(phi.numpy(), grid, table.numpy())).max() < 0.5


def test_bias_of_two_torsions_keeps_their_order():
    """A table that rises along its first axis pushes the first angle, at every value of the second."""
    size = 25
    grid = torch.linspace(-PI, PI, size, dtype=torch.float64)
    table = (1.0 - grid.cos())[:, None] * 3.0 + (1.0 - (2 * grid).cos())[None, :] * 0.0
    bias = TorsionBias(torsions=(ATOMS, (3, 2, 1, 0)), table=table * (1.0 + 0.5 * grid.sin()[None, :]))
    target, x = chain_target(), chain_start()[None].repeat(3, 1, 1)
    x[1, 3, 2] += 0.1
    x[2, 0, 1] -= 0.1
    system = target.system()
    system.addForce(bias.force())
    v = (OpenMMTarget(system, space=target.space, kT=KT).u(x) - target.u(x)) * KT
    phi = dihedral(x, atoms=ATOMS)  # a torsion read backwards is the same angle
    torch.testing.assert_close(v, 3 * (1 - phi.cos()) * (1 + 0.5 * phi.sin()), rtol=0.02, atol=0.02)


def test_hills_of_two_torsions_lie_where_the_angles_were():
    settings = WellTempered(torsions=(ATOMS, (1, 2, 3, 0)), steps=20_000, every=100)
    run = build_bias(chain_target(), chain_start(), settings, dynamics=FAST, generator=generator(6))
    table = run.bias.table
    first, second = ((run.angles + PI) / (2 * PI) * (len(table) - 1)).round().long().unbind(1)
    assert table[first, second].mean() > 1.5 * table[second, first].mean()


def test_capping_leaves_deep_basins_alone(filled):
    table, capped = filled.bias.table, filled.bias.capped(4.0).table
    assert capped.max().item() == pytest.approx(table.max().item() - 4.0)
    low = table < table.max() - 4.0
    assert torch.equal(table[low], capped[low]) and low.any() and not low.all()


def test_replica_exchange_has_the_known_populations():
    proposal = exchange(rungs=3, temperatures=(300.0, 450.0, 675.0), burn_in=100).sample(10 * 500, generator=generator(2))
    weighted = weigh(proposal, chain_target())
    assert torch.equal(weighted.log_w.abs() < 1e-9, torch.ones(5000, dtype=torch.bool))
    for low, high in (BASIN, (-PI, 0.0)):
        assert abs(expectation(weighted, partial(in_basin, low=low, high=high)).z(truth(low, high))) < 4
    assert "0.6" in proposal.note


def short_ladders(**settings):
    return exchange(rungs=3, temperatures=(300.0, 450.0, 675.0), burn_in=3, thin=2, **settings)


def test_processes_leave_the_numbers_as_they_are():
    """Ladders in four processes, in one, and one after the other from one generator; what is drawn next is the same, too."""
    source, after = generator(7), generator(7)
    one, four = short_ladders().sample(10 * 8, generator=generator(7)), short_ladders(workers=4).sample(10 * 8, generator=after)
    assert torch.equal(one.x, four.x) and torch.equal(one.log_q, four.log_q) and one.note == four.note
    for ladder in range(10):
        _, energy, _ = short_ladders()._ladder(ladder, 8, lambda: None, generator=source)
        assert torch.equal(one.log_q.view(8, 10)[:, ladder], torch.from_numpy(-energy / chain_target().kT))
    assert torch.equal(after.get_state(), source.get_state())


def test_exchange_keeps_every_temperature():
    """Exact independent draws of harmonic energies at each rung stay exact draws, thousands of exchanges later."""
    kT, rounds, half_dof = np.array([1.0, 1.3, 1.7]), 4000, 10.0
    rng, source = np.random.default_rng(0), generator(3)
    means = np.zeros(3)
    replicas = Replicas.at(np.zeros((3, 1, 3)))
    for k in range(rounds):
        replicas.energy = rng.gamma(half_dof, kT)
        replicas.exchange(kT, parity=k % 2, generator=source)
        means += replicas.energy / rounds
    assert np.abs(means - half_dof * kT).max() < 4 * (half_dof / rounds) ** 0.5 * kT.max()
    assert 0.3 < (replicas.accepted / replicas.tried).min() < 0.95


def test_exchange_rescales_velocities():
    """Whenever two rungs swap, the kinetic energies in units of kT go with the configurations."""
    kT = np.array([1.0, 4.0])
    replicas = Replicas.at(np.zeros((2, 1, 3)))
    replicas.x[1], replicas.v[0], replicas.v[1] = 5.0, 1.0, 2.0
    replicas.energy = np.array([3.0, -3.0])
    replicas.exchange(kT, parity=0, generator=generator())
    assert replicas.x[0, 0, 0] == 5.0 and replicas.energy.tolist() == [-3.0, 3.0]
    assert replicas.v[:, 0, 0].tolist() == [1.0, 2.0]  # 2 / sqrt(4) at the cold rung, 1 x sqrt(4) at the hot one


def test_moving_on_keeps_equilibrium_and_separates_copies(walkers):
    """Resampled copies become distinct, and neither the stiff bonds nor the torsion notice."""
    equal = resample(walkers, 3000, generator=generator(4))
    x, accepted = decorrelate(chain_target(), equal.x, steps=10, step=0.004, generator=generator(5))
    assert 0.8 < accepted < 1.0
    u = chain_target().u(x)
    assert len(torch.unique(u)) > 0.95 * len(u) > len(torch.unique(equal.u))
    assert abs(average(equal, in_basin(x)).z(truth())) < 4
    assert abs(average(equal, u - torsion_energy(x)).z(Estimate(value=STIFF, stderr=0.0))) < 4
    assert x.mean(1).abs().max() < 1e-12


def torsion_energy(x):
    phi = dihedral(x, atoms=ATOMS)
    return (2.0 * (1 + torch.cos(phi - 0.5)) + 8.0 * (1 + torch.cos(2 * phi - 2.6))) / KT


def test_plain_dynamics_have_no_weights_and_repeat():
    md = MolecularDynamics(target=chain_target(), start=chain_start()[None].repeat(2, 1, 1), burn_in=100, thin=10, dynamics=FAST)
    a, b, c = (md.sample(31, generator=generator(seed)) for seed in (7, 7, 8))
    assert torch.equal(a.x, b.x) and not torch.equal(a.x, c.x)
    assert a.group.tolist() == ([0, 1] * 16)[:31] and a.origin.method == "md"
    torch.testing.assert_close(-a.log_q, chain_target().u(a.x))


@pytest.mark.parametrize(("call", "message"), [
    (lambda: MolecularDynamics(target=chain_target(), start=chain_start()[None], thin=0), "thin positive, got .* 0"),
    (lambda: WellTempered(torsions=()), "one to three torsions, got 0"),
    (lambda: WellTempered(torsions=(ATOMS,), factor=1.0), "factor > 1"),
    (lambda: exchange(rungs=2, temperatures=(310.0, 400.0)), "target's 300 K"),
    (lambda: exchange(rungs=2, temperatures=(300.0, 290.0)), "must rise"),
    (lambda: exchange(rungs=3, temperatures=(300.0, 400.0)), r"expected \[C, 2"),
    (lambda: MolecularDynamics(target=chain_target(), start=chain_start()[None], burn_in=0,
                               dynamics=Langevin(step=0.5)).sample(50, generator=generator()), "blew up .* shorter time step than 0.5"),
])
def test_refusals(call, message):
    with pytest.raises(DynamicsError, match=message):
        call()


@pytest.mark.slow
def test_error_bars_cover_the_truth(filled):
    """z of twelve independent runs of twenty walkers each."""
    z = []
    for seed in range(12):
        start = filled.x[torch.randint(len(filled.x) // 2, len(filled.x), (20,), generator=generator(seed))]
        md = MolecularDynamics(target=chain_target(), start=start, bias=filled.bias.capped(2 * KT), burn_in=2000, thin=20, dynamics=FAST)
        z.append(expectation(weigh(md.sample(20 * 300, generator=generator(seed)), chain_target()), in_basin).z(truth()))
    assert 0.5 < np.sqrt(np.mean(np.square(z))) < 1.7
