"""Free-energy profiles and surfaces against quadrature and closed forms, with their bands."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from basins import left, right
from oracles import LINE, GaussianOracle, MissingMode, chains, double_well, gaussian_mixture, propose

from bgwork.error_bars import delta_stderr
from bgwork.free_energy import free_energy_difference, pooled, pooled_difference
from bgwork.profiles import free_energy_profile, free_energy_surface, pooled_profile, pooled_surface
from bgwork.records import Density
from bgwork.reweighting import weigh
from bgwork.spaces import Euclidean


def test_profile_against_quadrature():
    target = double_well()
    weighted = weigh(propose(GaussianOracle(space=LINE, std=2.5), 40_000, seed=0), target)
    edges = torch.linspace(-3, 3, 13, dtype=torch.float64)
    profile = free_energy_profile(weighted, lambda x: x[:, 0, 0], edges)
    density = [2 * target.average(lambda x, a=a: ((x[:, 0, 0] >= a) & (x[:, 0, 0] < a + 0.5)).double()) for a in edges[:-1].tolist()]
    z = (profile.value + torch.tensor(density, dtype=torch.float64).log()) / profile.stderr
    assert z.abs().max() < 4 and z.square().mean() < 3
    assert profile.outside == pytest.approx(target.average(lambda x: (x[:, 0, 0].abs() > 3).double()), abs=0.01)


def test_profile_of_an_empty_bin_and_of_bad_edges():
    weighted = weigh(propose(MissingMode(), 100, seed=0), gaussian_mixture())
    profile = free_energy_profile(weighted, lambda x: x[:, 0, 0], torch.tensor([-9.0, 0.0, 5.0]))
    assert profile.value[1] == math.inf and math.isnan(profile.stderr[1])
    assert profile.value[0].item() == pytest.approx(math.log(9))
    with pytest.raises(ValueError, match="must rise"):
        free_energy_profile(weighted, lambda x: x[:, 0, 0], torch.tensor([0.0, 0.0]))


def test_what_is_undefined_is_an_error_only_where_there_is_weight():
    weighted = weigh(propose(GaussianOracle(space=LINE, std=2.5), 100, seed=0), double_well())
    edges = torch.tensor([-9.0, 0.0, 9.0])

    def position(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x == weighted.x[7], math.nan, x)[:, 0, 0]

    def on_the_left(x: torch.Tensor) -> torch.Tensor:
        return torch.where(position(x).isnan(), math.nan, left(x).double())

    with pytest.raises(ValueError, match="the coordinate is not finite at 1 of 100"):
        free_energy_profile(weighted, position, edges)
    with pytest.raises(ValueError, match="the indicator of basin a is not finite at 1 of 100"):
        free_energy_difference(weighted, on_the_left, right)
    with pytest.raises(ValueError, match="the indicator of basin b is not finite at 1 of 100"):
        free_energy_difference(weighted, right, on_the_left)
    weightless = replace(weighted, u=weighted.u.index_fill(0, torch.tensor([7]), math.inf))
    assert free_energy_profile(weightless, position, edges).outside == 0.0
    assert free_energy_difference(weightless, on_the_left, right) == free_energy_difference(weightless, left, right)


def plane(x: torch.Tensor) -> torch.Tensor:
    return x[:, 0, 1]


def test_surface_of_a_gaussian():
    """Independent coordinates: F(s, t) = F(s) + F(t), each from the error function; the profile is the surface summed over t."""
    target = GaussianOracle(space=Euclidean(n=1, d=2))
    weighted = weigh(propose(GaussianOracle(space=target.space, std=1.3), 40_000, seed=0), target)
    edges = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)
    surface = free_energy_surface(weighted, (lambda x: x[:, 0, 0], plane), (edges, edges[::2]))
    assert surface.value.shape == (6, 3)

    def masses(e: torch.Tensor) -> torch.Tensor:
        return (torch.erf(e / math.sqrt(2)) / 2).diff()

    expected = -torch.log(torch.outer(masses(edges) / 0.5, masses(edges[::2]) / 1.0))
    z = (surface.value - expected) / surface.stderr
    assert z.abs().max() < 4 and 0.3 < z.square().mean() < 3
    profile = free_energy_profile(weighted, lambda x: x[:, 0, 0], edges)
    inside = free_energy_surface(weighted, (lambda x: x[:, 0, 0], plane), (edges, torch.tensor([-50.0, 50.0])))
    torch.testing.assert_close(inside.value[:, 0], profile.value + math.log(100))
    torch.testing.assert_close(inside.stderr[:, 0], profile.stderr)
    assert surface.outside == pytest.approx(1 - torch.erf(torch.tensor(1.5 / math.sqrt(2))).item() ** 2, abs=0.02)


def test_bands_know_the_chains_of_the_data():
    """Bin errors from the written-out square equal those of the block sums themselves."""
    markov = weigh(chains(GaussianOracle(), 20, 50, memory=0.9, seed=0), GaussianOracle())
    edges = torch.tensor([-1.0, 0.0, 0.7])
    profile = free_energy_profile(markov, lambda x: x[:, 0, 0], edges)
    s, p = markov.x[:, 0, 0], 1 / len(markov)
    for k, (a, b) in enumerate([(-1.0, 0.0), (0.0, 0.7)]):
        member = ((s >= a) & (s < b)).double()
        mass = member.mean().item()
        assert profile.stderr[k].item() == pytest.approx(delta_stderr(p * (member - mass), markov.proposal.group) / mass)
    alone = weigh(chains(GaussianOracle(), 1, 50, memory=0.9, seed=0), GaussianOracle())
    assert free_energy_profile(alone, lambda x: x[:, 0, 0], edges).stderr.isnan().all()


def sets(seed: int, n: int = 300, m: int = 400) -> tuple:
    """Samples of a wide generator, samples of the double well, and the generator's density at these."""
    target, q = double_well(), GaussianOracle(space=LINE, std=2.5)
    md = propose(target, m, seed=1000 + seed, density=Density.UNNORMALISED)
    md = replace(md, log_q=-target.energy(md.x))
    return weigh(propose(q, n, seed=seed), target), weigh(md, target), q.log_prob(md.x)


def positions(weighted, reference) -> torch.Tensor:
    return torch.cat([weighted.x, reference.x])[:, 0, 0]


def test_pooled_profile_covers_quadrature():
    """One error bar in twenty or so misses by more than two, in every bin, over 60 pools; and pooling makes them shorter."""
    edges, target = torch.linspace(-2.4, 2.4, 7, dtype=torch.float64), double_well()
    density = [target.average(lambda x, a=a: ((x[:, 0, 0] >= a) & (x[:, 0, 0] < a + 0.8)).double()) / 0.8 for a in edges[:-1].tolist()]
    truth, z, shorter = -torch.tensor(density, dtype=torch.float64).log(), [], []
    for seed in range(60):
        weighted, reference, log_q = sets(seed)
        found = pooled_profile(pooled(weighted, reference, log_q), positions(weighted, reference), edges)
        z.append((found.value - truth) / found.stderr)
        alone = [free_energy_profile(s, lambda x: x[:, 0, 0], edges).stderr for s in (weighted, reference)]
        shorter.append(found.stderr / torch.minimum(*alone))
    z = torch.stack(z)
    assert 0.9 < (z.abs() < 2).double().mean() < 0.99 and z.square().mean(0).max() < 2.2
    assert torch.stack(shorter).nanmedian() < 1


def test_two_pooled_bins_are_a_pooled_difference():
    """And chains count as in it: the same value and very nearly the same error bar; a map over the other sign has the same numbers."""
    weighted, reference, log_q = sets(0)
    reference = replace(reference, proposal=replace(reference.proposal, group=torch.arange(400) // 20))
    pool, x = pooled(weighted, reference, log_q), positions(weighted, reference)
    edges = torch.tensor([-50.0, 0.0, 50.0], dtype=torch.float64)
    profile, known = pooled_profile(pool, x, edges), pooled_difference(weighted, reference, log_q, left, right)
    assert (profile.value[1] - profile.value[0]).item() == pytest.approx(known.value, abs=1e-12) and profile.outside == 0
    share = math.exp(-profile.value[0].item()) * 50
    assert profile.stderr[0].item() / (1 - share) == pytest.approx(known.stderr, rel=0.01)
    surface = pooled_surface(pool, (x, x), (edges, edges))
    assert torch.isinf(surface.value[0, 1]) and torch.isnan(surface.stderr[0, 1])
    torch.testing.assert_close(surface.stderr.diagonal(), profile.stderr)
    torch.testing.assert_close(surface.value.diagonal(), profile.value + math.log(50))


def test_a_pooled_bin_of_one_sample_knows_how_little_that_is():
    """A sample far up in the tail, where reference samples never come, is no measurement to within a factor of e."""
    weighted, reference, log_q = sets(0)
    edges = torch.tensor([-50.0, 3.4, 50.0], dtype=torch.float64)
    found = pooled_profile(pooled(weighted, reference, log_q), positions(weighted, reference), edges)
    assert found.value[1] > 15 and found.stderr[1] > 2
