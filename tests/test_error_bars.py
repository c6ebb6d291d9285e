"""Error bars under heavy-tailed weights, by their coverage: log-normal weights, whose averages are known in closed form."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from oracles import LINE, GaussianOracle, propose

from bgwork.error_bars import delta_stderr, weighted_stderr
from bgwork.free_energy import free_energy_difference
from bgwork.pareto import fit_tail, unseen_weight
from bgwork.profiles import free_energy_profile
from bgwork.records import Density, Estimate, Origin, Proposal, WeightedSamples
from bgwork.reweighting import expectation, log_z, normalised_weights, resample, weigh

REPLICATES = 300


def shifted(mu: float, n: int, seed: int) -> WeightedSamples:
    """Draws of N(0, 1) with the weights of N(mu, 1): log w = mu x - mu^2 / 2 is normal with s.d. mu, and Z = 1."""
    x = torch.randn(n, 1, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    log_q = -0.5 * x[:, 0, 0].square() - 0.5 * math.log(2 * math.pi)
    u = 0.5 * (x[:, 0, 0] - mu).square() + 0.5 * math.log(2 * math.pi)
    origin = Origin(system="shifted", method="normal", seed=seed)
    return WeightedSamples(proposal=Proposal(x=x, space=LINE, log_q=log_q, density=Density.EXACT, origin=origin), u=u, target="shifted")


def shares(estimate: Callable[[WeightedSamples], Estimate], truth: float, mu: float, *, n: int = 1000) -> tuple[float, float]:
    """How often the truth lies within two, and within four standard errors."""
    z = torch.tensor([abs(found.value - truth) / found.stderr for found in (estimate(shifted(mu, n, seed)) for seed in range(REPLICATES))])
    return (z < 2).double().mean().item(), (z < 4).double().mean().item()


def delta_alone(weighted: WeightedSamples) -> Estimate:
    """log Z with the scatter of the weights at hand for an error bar."""
    p = normalised_weights(weighted)
    return replace(log_z(weighted), stderr=delta_stderr(p - 1 / len(p), None))


@pytest.mark.parametrize("mu", [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0])
def test_log_z_is_covered_however_heavy_the_tail(mu):
    two, four = shares(log_z, 0.0, mu)
    assert two > 0.92 and four > 0.98


def test_the_delta_method_alone_would_not_cover():
    """Why the unseen weight is there: with the mildest of tails it changes nothing, with heavy ones all."""
    assert shares(delta_alone, 0.0, 0.5)[0] > 0.92
    assert shares(delta_alone, 0.0, 2.5)[0] < 0.88 and shares(delta_alone, 0.0, 4.0)[1] < 0.8


@pytest.mark.parametrize("mu", [1.0, 1.5, 2.0])
def test_averages_and_free_energies_are_covered(mu):
    """Of functions that do not grow into the tail; x itself is farther off than its error bar tells."""
    def step(x: torch.Tensor) -> torch.Tensor:
        return x[:, 0, 0] > mu

    assert min(shares(lambda w: expectation(w, lambda x: step(x).double()), 0.5, mu)) > 0.9
    assert min(shares(lambda w: expectation(w, lambda x: x[:, 0, 0].cos()), math.cos(mu) * math.exp(-0.5), mu)) > 0.9
    assert min(shares(lambda w: free_energy_difference(w, step, lambda x: ~step(x)), 0.0, mu)) > 0.9


def test_light_tails_keep_their_error_bars():
    weighted = weigh(propose(GaussianOracle(space=LINE, std=1.25), 2000, seed=0), GaussianOracle(space=LINE))
    assert 0 < unseen_weight(weighted) < 2 / 2000
    assert log_z(weighted).stderr == pytest.approx(delta_alone(weighted).stderr, rel=1e-3)


def test_unseen_weight_of_exact_pareto_weights():
    """w = U^-k: draws beyond the largest one, one in N, have a mean of w_max / (1 - k); fits scatter around that."""
    k, n, ratio = 0.5, 20_000, []
    for seed in range(30):
        uniform = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        base = shifted(1.0, n, seed)
        weighted = replace(base, u=-base.proposal.log_q + k * uniform.log())
        ratio.append(unseen_weight(weighted) / (normalised_weights(weighted).max().item() / (1 - k)))
    assert torch.tensor(ratio).median().item() == pytest.approx(1.0, abs=0.25)


def test_rules_of_the_unseen():
    weighted = shifted(1.0, 1000, 0)
    assert unseen_weight(resample(weighted, 500, generator=torch.Generator().manual_seed(0))) == 0
    assert unseen_weight(replace(weighted, u=-weighted.proposal.log_q)) == 0
    assert unseen_weight(weighted.take(torch.arange(24))) == 0 < unseen_weight(weighted.take(torch.arange(100)))
    few = replace(weighted, u=torch.where(torch.arange(1000) < 4, weighted.u, math.inf))
    assert unseen_weight(few) == math.inf == log_z(few).stderr
    dominated = replace(weighted, u=weighted.u + torch.where(torch.arange(1000) < 4, 0.0, 1e5))  # all positive, but four are everything
    assert unseen_weight(dominated) == math.inf == log_z(dominated).stderr
    ties = replace(weighted, u=-weighted.proposal.log_q + (torch.arange(1000) % 2))  # half of them share the largest weight
    assert unseen_weight(ties) == 0
    with pytest.raises(ValueError, match="none of 1000 weights is positive"):
        unseen_weight(replace(weighted, u=torch.full((1000,), math.inf, dtype=torch.float64)))


def test_a_tail_without_mean_has_no_finite_error_bar():
    heavy = next(w for w in (shifted(4.0, 1000, seed) for seed in range(20)) if fit_tail(w.log_w).k >= 1)
    assert log_z(heavy).stderr == expectation(heavy, lambda x: x[:, 0, 0]).stderr == math.inf
    assert expectation(heavy, lambda x: torch.ones(len(x), dtype=torch.float64)).stderr == 0  # an average that cannot be wrong
    difference = free_energy_difference(heavy, lambda x: x[:, 0, 0] > 1, lambda x: x[:, 0, 0] <= 1)
    assert math.isfinite(difference.value) and difference.stderr == math.inf
    profile = free_energy_profile(heavy, lambda x: x[:, 0, 0], torch.linspace(-3, 8, 5))
    assert (profile.stderr[torch.isfinite(profile.value)] == math.inf).all()
    one_bin = free_energy_profile(heavy, lambda x: x[:, 0, 0], torch.tensor([-20.0, 20.0]))
    assert not torch.isnan(one_bin.stderr).any()  # infinity times nothing left to be wrong about


def test_groups_enter_as_in_the_delta_method():
    p = torch.full((100,), 0.01, dtype=torch.float64)
    centred = torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    group = torch.arange(100) // 10
    assert weighted_stderr(p, centred, group=group, unseen=0.0) == delta_stderr(p * centred, group)
    variance = (p * centred.square()).sum().item()
    assert weighted_stderr(p, centred, group=group, unseen=0.3) ** 2 == pytest.approx(
        delta_stderr(p * centred, group) ** 2 + 0.09 * variance)
