"""Weights and estimates against oracles with known answers."""

import math
from dataclasses import replace

import pytest
import torch
from oracles import LINE, GaussianOracle, MissingMode, binomial_bounds, chains, double_well, gaussian_mixture, propose

from bgwork.priors import Gaussian
from bgwork.records import Density, Estimate, Origin, Proposal, WeightedSamples
from bgwork.reweighting import (
    average,
    effective_fraction,
    ess,
    expectation,
    log_z,
    max_weight,
    negative_mass,
    normalised_weights,
    resample,
    weigh,
)
from bgwork.spaces import Euclidean, MeanFree

SPACES = [Euclidean(n=3, d=2), MeanFree(n=4, d=2)]


def square(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum((1, 2))


def position(x: torch.Tensor) -> torch.Tensor:
    return x[:, 0, 0]


def wide(target: GaussianOracle, n: int, *, seed: int, std: float = 1.25) -> WeightedSamples:
    """Samples of the deliberately wrong scale `std`, weighed with the target."""
    return weigh(propose(GaussianOracle(space=target.space, std=std), n, seed=seed), target)


def covered(estimates: list[Estimate], truth: float, sigmas: float = 2.0) -> int:
    return sum(abs(e.value - truth) < sigmas * e.stderr for e in estimates)


@pytest.mark.parametrize("space", SPACES)
def test_wrong_scale_is_reweighted_to_known_answers(space):
    target = GaussianOracle(space=space, std=1.1, offset=-3.0)
    weighted = wide(target, 20_000, seed=0)
    exact = Estimate(value=target.log_z, stderr=0.0)
    assert abs(log_z(weighted).z(exact)) < 4
    assert abs(expectation(weighted, square).z(Estimate(value=target.mean_square, stderr=0.0))) < 4
    assert abs(ess(weighted).z(Estimate(value=target.ess_from(1.25), stderr=0.0))) < 4
    assert log_z(weighted).stderr < 0.01


def two_step_chain(space: Euclidean | MeanFree, n: int, *, backward: list[tuple[float, float]]) -> Proposal:
    """x0 ~ N(0, 1), x' ~ N(0.8 x, 0.7^2) twice; log q = log p0 + sum log q - sum log r with backward kernels N(b x', r^2)."""
    generator, noise = torch.Generator().manual_seed(0), Gaussian(space=space, std=0.7)
    x = Gaussian(space=space).sample(n, generator=generator)
    log_q = Gaussian(space=space).log_prob(x)
    for b, r in backward:
        after = 0.8 * x + noise.sample(n, generator=generator)
        log_q = log_q + noise.log_prob(after - 0.8 * x) - Gaussian(space=space, std=r).log_prob(x - b * after)
        x = after
    return Proposal(x=x, log_q=log_q, space=space, density=Density.PATH, origin=Origin(method="chain", system="oracle", seed=0))


@pytest.mark.parametrize("space", SPACES)
def test_path_weights_are_proper_whatever_the_backward_kernels(space):
    target, variance, reverse = GaussianOracle(space=space, offset=-3.0), [1.0], []
    for _ in range(2):  # the chain's own time reversal: all weights come from its end alone
        variance.append(0.8**2 * variance[-1] + 0.7**2)
        reverse.append((0.8 * variance[-2] / variance[-1], 0.7 * math.sqrt(variance[-2] / variance[-1])))
    right, wrong = (weigh(two_step_chain(space, 20_000, backward=r), target) for r in (reverse, [(0.5, 0.6), (0.9, 0.65)]))
    marginal = GaussianOracle(space=space, std=math.sqrt(variance[-1]))
    torch.testing.assert_close(right.proposal.log_q, marginal.log_prob(right.x), rtol=0, atol=1e-10)
    for weighted in (right, wrong):
        assert abs(log_z(weighted).z(Estimate(value=target.log_z, stderr=0.0))) < 4 and log_z(weighted).stderr < 0.05
        assert abs(expectation(weighted, square).z(Estimate(value=target.mean_square, stderr=0.0))) < 4
    assert ess(wrong).value < 0.7 * ess(right).value


def test_double_well_from_a_broad_gaussian():
    target = double_well()
    weighted = weigh(propose(GaussianOracle(space=LINE, std=2.5), 40_000, seed=1), target)
    assert abs(log_z(weighted).z(Estimate(value=target.log_z, stderr=0.0))) < 4
    for f in (position, lambda x: (position(x) > 0).double()):
        assert abs(expectation(weighted, f).z(Estimate(value=target.average(f), stderr=0.0))) < 4


def test_error_bars_cover_at_their_rate():
    """Over replicates the interval of two standard errors holds the truth 95.4 % of the time."""
    target, n = GaussianOracle(space=MeanFree(n=4, d=2)), 400
    runs = [wide(target, 1000, seed=seed) for seed in range(n)]
    low, high = binomial_bounds(n, 0.9545)
    assert low < covered([log_z(w) for w in runs], target.log_z) < high
    assert low < covered([expectation(w, square) for w in runs], target.mean_square) < high
    assert low < covered([ess(w) for w in runs[:200]], target.ess_from(1.25)) * n / 200 < high


def test_error_bars_of_chains_come_from_the_chains():
    """Correlated rows: the grouped error bar covers, the one that ignores the grouping does not."""
    target, n = GaussianOracle(space=LINE), 200
    runs = [weigh(chains(target, 40, 100, memory=0.95, seed=seed), target) for seed in range(n)]
    low, high = binomial_bounds(n, 0.948)  # two-sided t with 39 degrees of freedom at 2
    grouped = [expectation(w, position) for w in runs]
    assert low < covered(grouped, 0.0) < high
    naive = [expectation(replace(w, proposal=replace(w.proposal, group=None)), position) for w in runs]
    assert covered(naive, 0.0) < 0.6 * n
    n_eff = torch.tensor([e.n_eff for e in grouped]).mean().item()
    assert n_eff == pytest.approx(4000 * 0.05 / 1.95, rel=0.35)  # N (1 - memory) / (1 + memory), a little more for short chains


def test_error_bars_shrink_as_the_root_of_n():
    target = GaussianOracle()
    few, many = wide(target, 2_000, seed=3), wide(target, 32_000, seed=4)
    for estimate in (log_z, ess, lambda w: expectation(w, square)):
        assert estimate(few).stderr / estimate(many).stderr == pytest.approx(4.0, rel=0.2)


def test_log_z_is_refused_for_mcmc_but_averages_are_not():
    target = GaussianOracle()
    weighted = weigh(chains(target, 30, 50, memory=0.5, seed=0), target)
    with pytest.raises(ValueError, match="log Z is unknown for MCMC samples; ratios and averages only"):
        log_z(weighted)
    assert abs(expectation(weighted, square).z(Estimate(value=target.mean_square, stderr=0.0))) < 4
    assert ess(weighted).value == pytest.approx(1.0) and ess(weighted).stderr == 0.0


def test_a_single_chain_has_no_error_bar():
    target = GaussianOracle()
    weighted = weigh(chains(target, 1, 50, memory=0.5, seed=0), target)
    assert math.isnan(expectation(weighted, square).stderr) and math.isnan(ess(weighted).stderr)


def test_reverse_ess_cannot_see_a_missing_mode():
    """Why forward ESS exists: all is well by the weights' own account, and log Z is wrong by log 0.7."""
    target = gaussian_mixture()
    weighted = weigh(propose(MissingMode(), 5000, seed=0), target)
    assert ess(weighted).value > 0.999
    assert log_z(weighted).value == pytest.approx(math.log(0.7), abs=1e-3)


def test_failed_rows_count_and_weigh_nothing():
    target = GaussianOracle()
    proposal = propose(GaussianOracle(std=1.25), 1000, seed=0)
    x, log_q = proposal.x.clone(), proposal.log_q.clone()
    x[:3], x[3, 0, 0], log_q[5] = math.nan, math.inf, math.nan
    weighted = weigh(replace(proposal, x=x, log_q=log_q), target)
    assert len(weighted) == 1000 and weighted.n_failed == 5
    assert target.n_energy == 996 == weighted.proposal.cost.energy
    good = torch.ones(1000, dtype=torch.bool)
    good[[0, 1, 2, 3, 5]] = False
    dropped = weigh(replace(proposal, x=proposal.x[good], log_q=proposal.log_q[good]), target)
    assert log_z(weighted).value == pytest.approx(log_z(dropped).value + math.log(0.995), abs=1e-12)
    assert expectation(weighted, square).value == pytest.approx(expectation(dropped, square).value)


def test_infinite_energy_is_a_zero_weight_not_a_failure():
    weighted = wide(GaussianOracle(), 1000, seed=0)
    u = weighted.u.clone()
    u[:200] = math.inf
    weighted = replace(weighted, u=u)
    assert weighted.n_failed == 0
    assert (weighted.log_w[:200] == -math.inf).all() and (normalised_weights(weighted)[:200] == 0).all()
    assert math.isfinite(expectation(weighted, lambda x: 1 / (square(x) - square(weighted.x[:1]))).value)  # f need not exist there


def test_weights_that_say_nothing_are_errors():
    weighted = wide(GaussianOracle(), 10, seed=0)
    with pytest.raises(ValueError, match="all 10 weights are zero"):
        ess(replace(weighted, u=torch.full((10,), math.inf, dtype=torch.float64)))
    with pytest.raises(ValueError, match=r"all 10 weights are zero \(10 rows failed"):
        log_z(replace(weighted, u=torch.full((10,), -math.inf, dtype=torch.float64)))
    with pytest.raises(ValueError, match="n = 0"):
        weigh(propose(GaussianOracle(), 0, seed=0), GaussianOracle())
    with pytest.raises(ValueError, match="the target's own space"):
        weigh(propose(GaussianOracle(), 5, seed=0), GaussianOracle(space=LINE))


def test_functions_that_cannot_be_averaged_are_errors():
    weighted = wide(GaussianOracle(), 10, seed=0)
    with pytest.raises(ValueError, match="not finite at 10 of 10"):
        expectation(weighted, lambda x: torch.full((len(x),), math.nan))
    with pytest.raises(ValueError, match="one number for each"):
        expectation(weighted, lambda x: x)


@pytest.mark.parametrize("density", [Density.STOCHASTIC, Density.UNCERTIFIED])
def test_improper_densities_are_refused_unless_named(density):
    proposal = propose(GaussianOracle(), 5, seed=0, density=density)
    with pytest.raises(ValueError, match="no proper weights"):
        weigh(proposal, GaussianOracle())
    assert weigh(proposal, GaussianOracle(), accept=[density]).proposal.origin.edits == (f"accepted {density.value} density",)


def test_weights_do_not_depend_on_the_batch():
    proposal = propose(GaussianOracle(std=1.2), 100, seed=0)
    assert torch.equal(weigh(proposal, GaussianOracle(), batch=7).u, weigh(proposal, GaussianOracle()).u)


def test_resampling_keeps_averages_and_their_error_bars_honest():
    target, n = GaussianOracle(), 200
    before = [wide(target, 500, seed=seed, std=1.4) for seed in range(n)]
    runs = [resample(weighted, 500, generator=torch.Generator().manual_seed(seed)) for seed, weighted in enumerate(before)]
    assert runs[0].proposal.origin.edits == ("resampled 500 of 500 rows",)
    low, high = binomial_bounds(n, 0.9545)
    assert low < covered([expectation(w, square) for w in runs], target.mean_square) < high
    with pytest.raises(ValueError, match="log Z is unknown"):
        log_z(runs[0])


def test_copies_earn_no_effective_sample_size():
    """N multinomial draws give row i on average sum_j n_j^2 = N (1 + (N - 1) sum p^2), so that 1 / ESS grows by nearly one."""
    runs = [(w, resample(w, 2000, generator=torch.Generator().manual_seed(k))) for k, w in enumerate(wide(GaussianOracle(), 2000, seed=k)
            for k in range(20))]
    excess = torch.tensor([1 / ess(copies).value - 1 / ess(plain).value for plain, copies in runs])
    assert abs(excess.mean() - 1) < 4 * excess.std() / 20**0.5 < 0.2
    plain, copies = runs[0]
    assert ess(copies).value < ess(plain).value < ess(copies).value + 0.5 and ess(copies).stderr < 0.1
    assert max_weight(copies) == pytest.approx(copies.proposal.ancestor.unique(return_counts=True)[1].max().item() / 2000)
    assert copies.proposal.resampled and not plain.proposal.resampled
    again = resample(copies, 500, generator=torch.Generator().manual_seed(0))
    assert set(again.proposal.ancestor.tolist()) <= set(copies.proposal.ancestor.tolist()) and len(again) == 500
    unknown = replace(copies, proposal=replace(copies.proposal, ancestor=None))
    assert math.isnan(ess(unknown).value) and math.isnan(max_weight(unknown))


def test_families_fall_into_the_groups_of_their_rows():
    """Islands {0, 1}, {2, 3}: each is one block of the bootstrap, and its families count with their joint weight."""
    w, ancestor, island = torch.tensor([1.0, 1.0, 2.0, 0.0]).double(), torch.tensor([1, 1, 3, 2]), torch.tensor([0, 0, 1, 1])
    found = effective_fraction(w, ancestor=ancestor, group=island)
    assert found.value == pytest.approx(16 / (4 * (4 + 4))) and found.n_eff == pytest.approx(2.0)
    alike = effective_fraction(torch.tensor([2.0, 0.0, 2.0, 0.0]).double(), group=island)
    assert found.stderr == pytest.approx(alike.stderr) == 0.0
    assert effective_fraction(w, ancestor=ancestor, group=torch.zeros(4)).stderr != found.stderr  # NaN: one block says nothing


def test_negative_mass_of_a_known_fold():
    """x = T(z) = z^3/3 - z folds the line; |det| weights overcount by the negative mass, signed ones do not."""
    target = GaussianOracle(space=LINE, std=2.0)
    prior = GaussianOracle(space=LINE, std=2.0)
    z = prior.sample(200_000, generator=torch.Generator().manual_seed(0))
    slope = (z.square() - 1).flatten()
    proposal = replace(propose(prior, len(z), seed=0), x=z**3 / 3 - z, log_q=prior.log_prob(z) - slope.abs().log(), sign=slope.sign())
    weighted = weigh(proposal, target)
    mass = negative_mass(weighted)
    signed = Estimate(value=log_z(weighted).value - math.log1p(2 * mass.value), stderr=math.hypot(log_z(weighted).stderr, 2 * mass.stderr))
    assert mass.value > 20 * mass.stderr > 0
    assert abs(signed.z(Estimate(value=target.log_z, stderr=0.0))) < 4
    assert abs(log_z(weighted).z(Estimate(value=target.log_z, stderr=0.0))) > 20
    assert negative_mass(replace(weighted, proposal=replace(proposal, sign=-torch.ones_like(slope)))).value == math.inf
    with pytest.raises(ValueError, match="no determinant signs"):
        negative_mass(wide(GaussianOracle(), 10, seed=0))


def test_negative_mass_ignores_rows_that_failed():
    weighted = wide(GaussianOracle(), 100, seed=0)
    sign = torch.ones(100, dtype=torch.float64)
    sign[0], weighted.u[0] = math.nan, math.nan
    assert negative_mass(replace(weighted, proposal=replace(weighted.proposal, sign=sign))).value == 0.0


def test_largest_weight():
    weighted = wide(GaussianOracle(), 100, seed=0)
    assert max_weight(weighted) == pytest.approx((weighted.log_w.max() - weighted.log_w.logsumexp(0)).exp().item())


def test_estimates_repeat():
    assert ess(wide(GaussianOracle(), 500, seed=0)) == ess(wide(GaussianOracle(), 500, seed=0))


@pytest.mark.parametrize("level", [1.0, 0.1, -3e7, 0.0])
def test_a_constant_has_no_number_of_independent_samples(level):
    """Its scatter is round-off, and so is the ratio of one round-off to another."""
    weighted = weigh(propose(GaussianOracle(space=LINE, std=1.3), 777, seed=0), GaussianOracle(space=LINE))
    found = average(weighted, torch.full((777,), level, dtype=torch.float64))
    assert math.isnan(found.n_eff) and found.value == pytest.approx(level) and found.stderr <= 1e-15 * abs(level)
