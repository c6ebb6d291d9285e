"""Free-energy differences from a generator and MD together: coverage, chains, and what cannot be pooled."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from basins import covered, exact, left, quadrature_difference, right
from oracles import LINE, GaussianOracle, binomial_bounds, double_well, propose

from bgwork.free_energy import free_energy_difference, local_difference, log_z_bar, log_z_elsewhere, pooled_difference
from bgwork.records import Density, Proposal, WeightedSamples
from bgwork.reweighting import weigh


def md(target, n: int, *, seed: int, keep=None) -> Proposal:
    """Equilibrium samples of a line oracle as MD gives them, or those of them that `keep` picks."""
    proposal = propose(target, n, seed=seed, density=Density.UNNORMALISED)
    proposal = replace(proposal, log_q=-target.energy(proposal.x))
    if keep is None:
        return proposal
    rows = keep(proposal.x)
    return replace(proposal, x=proposal.x[rows], log_q=proposal.log_q[rows])


def joined(*proposals: Proposal) -> Proposal:
    return replace(proposals[0], x=torch.cat([p.x for p in proposals]), log_q=torch.cat([p.log_q for p in proposals]))


def pooled(target, q, n: int, reference: Proposal, *, seed: int) -> tuple:
    """The arguments of both differences but the basins."""
    return weigh(propose(q, n, seed=seed), target), weigh(reference, target), q.log_prob(reference.x)


@pytest.mark.parametrize("method", [pooled_difference, local_difference])
def test_difference_by_mbar_covers_and_is_not_too_long(method):
    target, q, n = double_well(), GaussianOracle(space=LINE, std=2.5), 60
    truth = quadrature_difference(target)
    found = [method(*pooled(target, q, 300, md(target, 400, seed=1000 + seed), seed=seed), left, right) for seed in range(n)]
    low, high = binomial_bounds(n, 0.9545)
    assert low < covered(found, truth) <= min(high, n)
    values = torch.tensor([e.value for e in found])
    assert torch.tensor([e.stderr for e in found]).mean().item() == pytest.approx(values.std().item(), rel=4 / math.sqrt(2 * n))
    assert abs(values.mean().item() - truth) < 4 * values.std().item() / math.sqrt(n)


def test_pooling_shortens_the_error_bar():
    target, q = double_well(), GaussianOracle(space=LINE, std=2.5)
    sets = pooled(target, q, 2000, md(target, 2000, seed=1), seed=0)
    both = pooled_difference(*sets, left, right)
    assert both.stderr < min(free_energy_difference(s, left, right).stderr for s in sets[:2])
    assert both.value == pytest.approx(-pooled_difference(*sets, right, left).value)


def test_local_difference_needs_no_crossing():
    """Equal numbers of MD samples from both wells, as two runs that never cross would give: pooled is misled, local is not."""
    target, q = double_well(), GaussianOracle(space=LINE, std=2.5)
    reference = joined(md(target, 3000, seed=1, keep=left), md(target, 12_000, seed=2, keep=right))
    truth = exact(quadrature_difference(target))
    sets = pooled(target, q, 3000, reference, seed=0)
    assert abs(local_difference(*sets, left, right).z(truth)) < 4
    assert abs(pooled_difference(*sets, left, right).z(truth)) > 6


@pytest.mark.parametrize("method", [pooled_difference, local_difference])
def test_difference_by_mbar_knows_the_chains(method):
    """Every sample of the reference five times over, grouped: the error bar of one alone, not a smaller one."""
    target, q = double_well(), GaussianOracle(space=LINE, std=2.5)
    reference = md(target, 500, seed=3)
    copies = replace(joined(*[reference] * 5), group=torch.arange(500).repeat(5))
    grouped, naive = (method(*pooled(target, q, 500, r, seed=0), left, right) for r in (copies, replace(copies, group=None)))
    assert naive.stderr < 0.85 * grouped.stderr
    assert grouped.stderr == pytest.approx(method(*pooled(target, q, 500, reference, seed=0), left, right).stderr, rel=0.2)


def test_what_cannot_be_pooled_is_an_error():
    target, q = double_well(), GaussianOracle(space=LINE, std=2.5)
    own, reference, log_q = pooled(target, q, 300, md(target, 400, seed=1), seed=0)
    biased = replace(reference, u=reference.u + 0.1 * reference.x[:, 0, 0])
    for method in (pooled_difference, local_difference):
        with pytest.raises(ValueError, match="unequal weights.*resample"):
            method(own, biased, log_q, left, right)
        with pytest.raises(ValueError, match="basin b"):
            method(own, reference, log_q, left, lambda x: x[:, 0, 0] > 100)
        with pytest.raises(ValueError, match="only up to a constant"):
            method(reference, reference, log_q, left, right)
    with pytest.raises(ValueError, match="both basins"):
        local_difference(own, reference, log_q, left, lambda x: x[:, 0, 0] > -2)
    with pytest.raises(ValueError, match="no reference sample lies in basin b; start a simulation"):
        local_difference(*pooled(target, q, 300, md(target, 400, seed=1, keep=left), seed=0), left, right)


def without(samples: WeightedSamples, row: int) -> WeightedSamples:
    keep = torch.arange(len(samples)) != row
    proposal = replace(samples.proposal, x=samples.x[keep], log_q=samples.proposal.log_q[keep])
    return replace(samples, proposal=proposal, u=samples.u[keep])


def test_pooled_error_bar_against_the_jackknife():
    """Leaving out one sample at a time, of the generator and of the reference; the basins differ in how often the generator goes there."""
    target, q = double_well(), GaussianOracle(space=LINE, std=1.3)
    own, reference, log_q = pooled(target, q, 60, md(target, 40, seed=1), seed=0)

    def inner(x: torch.Tensor) -> torch.Tensor:
        return x[:, 0, 0].abs() < 1.0

    def outer(x: torch.Tensor) -> torch.Tensor:
        return ~inner(x)

    variance = 0.0
    for drop, size in ((True, 60), (False, 40)):
        values = []
        for row in range(size):
            sets = (without(own, row), reference, log_q) if drop else (own, without(reference, row), log_q[torch.arange(40) != row])
            values.append(pooled_difference(*sets, inner, outer).value)
        variance += (size - 1) ** 2 / size * torch.tensor(values).var().item()
    assert pooled_difference(own, reference, log_q, inner, outer).stderr == pytest.approx(math.sqrt(variance), rel=0.1)


def tilted(target, x: torch.Tensor) -> torch.Tensor:
    """Another energy near the target's: the double well at a lower temperature."""
    return 1.15 * target.u(x)


def both(target, own: WeightedSamples, reference: WeightedSamples) -> torch.Tensor:
    return torch.cat([tilted(target, own.x), tilted(target, reference.x)])


def truth_elsewhere(target) -> tuple[float, float]:
    """log Z and F_right - F_left of `tilted`, by quadrature."""
    x = torch.linspace(-12, 12, 240_001, dtype=torch.float64)
    weight = torch.exp(-tilted(target, x[:, None, None]))
    return (weight.sum() * (x[1] - x[0])).log().item(), (weight[x < 0].sum() / weight[x > 0].sum()).log().item()


def test_another_energy_by_mbar_covers_and_is_not_too_long():
    """log Z and the difference between basins of an energy that nothing was drawn from."""
    target, q, n = double_well(), GaussianOracle(space=LINE, std=2.5), 60
    found = []
    for seed in range(n):
        own, reference, log_q = pooled(target, q, 300, md(target, 400, seed=1000 + seed), seed=seed)
        u = both(target, own, reference)
        found.append((log_z_elsewhere(own, log_q, reference.u, u), pooled_difference(own, reference, log_q, left, right, u_elsewhere=u)))
    low, high = binomial_bounds(n, 0.9545)
    for estimates, truth in zip(zip(*found, strict=True), truth_elsewhere(target), strict=True):
        values = torch.tensor([e.value for e in estimates])
        assert low < covered(estimates, truth) <= min(high, n)
        assert torch.tensor([e.stderr for e in estimates]).mean().item() == pytest.approx(values.std().item(), rel=4 / math.sqrt(2 * n))
        assert abs(values.mean().item() - truth) < 4 * values.std().item() / math.sqrt(n)


def test_the_sampled_energy_itself_is_bar():
    target, q = double_well(), GaussianOracle(space=LINE, std=2.5)
    own, reference, log_q = pooled(target, q, 300, replace(md(target, 400, seed=1), group=torch.arange(400) // 5), seed=0)
    u, group = torch.cat([own.u, reference.u]), reference.proposal.group
    same, known = log_z_elsewhere(own, log_q, reference.u, u, group=group), log_z_bar(own, log_q, reference.u, group=group)
    assert (same.value, same.stderr, same.n_eff) == pytest.approx((known.value, known.stderr, known.n_eff), rel=1e-6)
    same, known = (pooled_difference(own, reference, log_q, left, right, u_elsewhere=v) for v in (u, None))
    assert (same.value, same.stderr, same.n_eff) == pytest.approx((known.value, known.stderr, known.n_eff), rel=1e-9)


def test_failed_rows_weigh_nothing_elsewhere_either():
    target, q = double_well(), GaussianOracle(space=LINE, std=2.5)
    own, reference, log_q = pooled(target, q, 300, md(target, 400, seed=1), seed=0)
    failing = replace(own, u=own.u.index_fill(0, torch.tensor([3]), math.nan))
    gone = replace(own, u=own.u.index_fill(0, torch.tensor([3]), math.inf))
    u = both(target, own, reference)
    nowhere = u.index_fill(0, torch.tensor([3]), math.inf)
    for f in (lambda s, v: log_z_elsewhere(s, log_q, reference.u, v),
              lambda s, v: pooled_difference(s, reference, log_q, left, right, u_elsewhere=v)):
        assert f(failing, u) == f(gone, nowhere)
        with pytest.raises(ValueError, match=r"shape \(300,\).*\[700\]"):
            f(own, u[:300])
        with pytest.raises(ValueError, match="NaN at 1 of 700"):
            f(own, u.index_fill(0, torch.tensor([3]), math.nan))
