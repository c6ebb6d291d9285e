"""Annealing towards targets with known log Z: kernels keep their temperature, weights stay proper, error bars cover."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from oracles import LINE, GaussianOracle, LineOracle, TwoWells, chains, double_well, propose
from simple_fields import Linear, folding, randomise

from bgwork.fields.mlp import MLP
from bgwork.priors import Gaussian, Uniform
from bgwork.protocols import Sampler, Target
from bgwork.records import Density, Estimate, Origin, WeightedSamples
from bgwork.reweighting import average, ess, expectation, log_z, weigh
from bgwork.samplers.flow import Flow
from bgwork.samplers.integrators import Grid
from bgwork.samplers.latent import AnnealedFlow, PulledBack
from bgwork.samplers.moves import CrankNicolson, Hamiltonian, Path, Rung, Walkers
from bgwork.samplers.resampling import Population, ancestral_ess, conditional_ess, in_islands, kish, resampled, reweighted, systematic
from bgwork.samplers.schedules import Schedule, next_beta
from bgwork.samplers.smc import SMC, AnnealedImportance, Rejuvenated
from bgwork.spaces import Euclidean, MeanFree, Torus
from bgwork.targets.gaussian_mixture import GaussianMixture

SPACES = [Euclidean(n=3, d=2), MeanFree(n=4, d=2)]
PLANE = Euclidean(n=1, d=2)
KERNELS = [Hamiltonian(), Hamiltonian(leapfrog=1, transitions=2), CrankNicolson(transitions=2)]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=["hmc", "mala", "crank-nicolson"])
every_space = pytest.mark.parametrize("space", SPACES, ids=["euclidean", "mean-free"])
TWO_STEPS = Schedule(betas=(0.4, 1.0), steps=(0.7, 0.5))


def seed(value: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(value)


def exactly(value: float) -> Estimate:
    return Estimate(value=value, stderr=0.0)


def square(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum((1, 2))


def right(x: torch.Tensor) -> torch.Tensor:
    return (x[:, 0, 0] > 0).double()


@dataclass
class Drawn:
    """A sampler of independent rows of anything that `propose` takes."""

    source: object
    density: Density = Density.EXACT

    @property
    def space(self):
        return self.source.space

    def sample(self, n, *, generator):
        return replace(propose(self.source, n, seed=int(torch.randint(2**31, (), generator=generator)), density=self.density), note="drawn")


def walls(*, outside: float) -> LineOracle:
    """u = x^2 / 2 for x > 0, and something else on the other half of the line; log Z = log(2 pi) / 2 - log 2."""
    return LineOracle(lambda x: torch.where(x > 0, x.square() / 2, outside), name="wall")


# kernels and paths

@every_space
@every_kernel
@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_kernels_leave_their_temperature_invariant(kernel, space, beta):
    target, prior = GaussianOracle(space=space, std=0.8, offset=2.0), Gaussian(space=space, std=2.0)
    path, std = Path(prior=prior, target=target), ((1 - beta) / 4.0 + beta / 0.64) ** -0.5
    x = Gaussian(space=space, std=std).sample(4000, generator=seed())
    walkers = Walkers(x=x, u_0=path.u_0(x), u=target.u(x))
    step, generator = 0.3 if isinstance(kernel, CrankNicolson) else 0.8 * std, seed(1)
    for _ in range(4):
        walkers, probability = kernel.move(path, beta, walkers, step, generator=generator)
    assert 0.3 < probability.mean() < 0.999 and (walkers.x != x).any(2).any(1).double().mean() > 0.5
    space.check(walkers.x)
    torch.testing.assert_close((walkers.u_0, walkers.u), (path.u_0(walkers.x), target.u(walkers.x)), rtol=0, atol=1e-10)
    for values, truth in ((square(walkers.x), space.dim * std**2), (square(walkers.x).square(), space.dim * (space.dim + 2) * std**4)):
        assert abs(values.mean().item() - truth) < 4 * values.std().item() / 4000**0.5


@every_kernel
def test_kernels_mix(kernel):
    """From the prior, moves at beta = 1 lead to the target."""
    target, prior = GaussianOracle(space=PLANE, std=0.5), Gaussian(space=PLANE, std=2.0)
    path, x = Path(prior=prior, target=target), prior.sample(2000, generator=seed())
    walkers, generator = Walkers(x=x, u_0=path.u_0(x), u=target.u(x)), seed(1)
    for _ in range(60):
        walkers, _ = kernel.move(path, 1.0, walkers, 0.3, generator=generator)
    values = square(walkers.x)
    assert abs(values.mean().item() - target.mean_square) < 4 * values.std().item() / 2000**0.5


@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_gradients_of_the_path(beta):
    target = TwoWells(d=2)
    for prior in (Gaussian(space=PLANE, std=2.0), None):
        rung, x = Rung(path=Path(prior=prior, target=target), beta=beta), torch.tensor([[[0.3, -0.8]], [[-1.0, 2.0]]], dtype=torch.float64)
        u, grad = rung.u_and_grad(x)
        torch.testing.assert_close(u, beta * target.u(x) - (0 if prior is None else (1 - beta) * prior.log_prob(x)))
        for k in range(2):
            h = torch.zeros_like(x).index_fill_(2, torch.tensor([k]), 1e-5)
            slope = (rung.u_and_grad(x + h)[0] - rung.u_and_grad(x - h)[0]) / 2e-5
            torch.testing.assert_close(grad[:, 0, k], slope, rtol=1e-6, atol=1e-7)


def test_overlap_is_never_accepted():
    path = Path(target=walls(outside=math.inf), prior=Gaussian(space=LINE))
    for broken in (math.inf, math.nan):
        path, x = replace(path, target=walls(outside=broken)), torch.full((500, 1, 1), 0.1, dtype=torch.float64)
        for kernel in (Hamiltonian(), CrankNicolson()):
            walkers, _ = kernel.move(path, 1.0, Walkers(x=x, u_0=path.u_0(x), u=path.target.u(x)), 0.7, generator=seed())
            assert (walkers.x > 0).all() and torch.isfinite(walkers.u).all() and (walkers.x != x).any()


def test_paths_refuse_what_they_cannot_do():
    target = GaussianOracle(space=PLANE)
    with pytest.raises(ValueError, match="give both one space"):
        Path(target=target, prior=Gaussian(space=LINE))
    with pytest.raises(ValueError, match="Euclidean and mean-free space"):
        Path(target=GaussianOracle(space=Torus(n=1, d=2)))
    with pytest.raises(ValueError, match="need a Gaussian prior"):
        SMC(prior=target, target=target, kernel=CrankNicolson()).sample(64, generator=seed())
    with pytest.raises(ValueError, match="has no gradient.*AnnealedFlow"):
        Path(target=target, prior=Blind(space=PLANE)).u_0_and_grad(torch.zeros(2, 1, 2))


class Blind(Gaussian):
    """A prior whose density cannot be differentiated."""

    def log_prob(self, x):
        return super().log_prob(x).detach()


@pytest.mark.parametrize("make", [
    lambda: Hamiltonian(leapfrog=0), lambda: Hamiltonian(jitter=1.0), lambda: Hamiltonian(transitions=0),
    lambda: CrankNicolson(first_step=0.0), lambda: CrankNicolson(acceptance=1.0)])
def test_bad_kernels_are_refused(make):
    with pytest.raises(ValueError, match="at least one leapfrog|jitter must be|must be at least 1, first_step positive"):
        make()


# populations

def population(log_w, *, islands=1):
    log_w = torch.tensor(log_w, dtype=torch.float64)
    n = len(log_w)
    zeros = torch.zeros(n, dtype=torch.float64)
    walkers = Walkers(x=torch.arange(n, dtype=torch.float64)[:, None, None], u_0=zeros, u=torch.arange(n, dtype=torch.float64))
    return Population(walkers=walkers, log_w=log_w, island=in_islands(n, islands), ancestor=torch.arange(n))


def test_systematic_draws_floor_or_ceiling_and_the_right_average():
    w = torch.tensor([0.0, 0.5, 0.02, 0.3, 0.18, 0.0], dtype=torch.float64)
    generator, counts = seed(), []
    for _ in range(4000):
        counts.append(torch.bincount(systematic(w.log(), generator=generator), minlength=6))
    counts = torch.stack(counts).double()
    assert ((counts - 6 * w).abs() < 1).all()
    assert ((counts.mean(0) - 6 * w).abs() <= 4 * counts.std(0) / 4000**0.5 + 1e-12).all()


def test_resampling_keeps_the_mass_of_every_island():
    before = population([0.0, 3.0, -1.0, 0.5, 0.5, 0.5, -math.inf, -math.inf, -math.inf], islands=3)
    after = resampled(before, 0.9, generator=seed())
    masses = [torch.zeros(3, dtype=torch.float64).index_add_(0, p.island, p.log_w.exp()) for p in (before, after)]
    torch.testing.assert_close(masses[1], masses[0], rtol=1e-12, atol=0)
    assert after.log_w[:3].unique().numel() == 1 and 1 in after.ancestor[:3]
    assert after.ancestor[3:].tolist() == [3, 4, 5, 6, 7, 8], "equal weights and dead islands stay as they are"
    assert after.walkers.x[:, 0, 0].tolist() == after.walkers.u.tolist() == after.ancestor.tolist()
    assert resampled(before, 0.0, generator=seed()).ancestor.tolist() == list(range(9))


def test_resampling_is_unbiased():
    before, generator, sums = population([0.3, 2.0, -1.0, 0.0]), seed(), []
    for _ in range(4000):
        after = resampled(before, 1.0, generator=generator)
        sums.append((after.log_w.exp() * after.walkers.u.square()).sum())
    sums = torch.stack(sums)
    assert abs(sums.mean() - (before.log_w.exp() * before.walkers.u.square()).sum()) < 4 * sums.std() / 4000**0.5


@pytest.mark.parametrize(("n", "islands"), [(10, 3), (7, 7), (9, 1), (100, 32)])
def test_islands_are_as_equal_as_can_be(n, islands):
    sizes = torch.bincount(in_islands(n, islands))
    assert len(sizes) == islands and sizes.sum() == n and sizes.max() - sizes.min() <= 1


def test_effective_fractions():
    w, v = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64).log(), torch.tensor([2.0, 1.0, 0.5, 3.0], dtype=torch.float64).log()
    assert kish(w) == pytest.approx(1 / (0.3 * 4))
    assert conditional_ess(w, v) == pytest.approx((0.2 + 0.4 + 0.15 + 0.6) ** 2 / (0.4 + 0.4 + 0.075 + 1.8))
    assert conditional_ess(torch.zeros(4), v) == pytest.approx(kish(v))


def test_the_next_temperature_keeps_what_was_asked_for():
    p = population([0.1 * k for k in range(50)])
    beta = next_beta(p, 0.2, keep=0.8)
    assert 0.2 < beta < 1
    assert conditional_ess(p.log_w, reweighted(p, beta - 0.2).log_w - p.log_w) == pytest.approx(0.8, abs=1e-6)
    assert next_beta(population([0.0, 0.0]), 0.2, keep=0.5) == 1.0


def test_ancestral_ess_counts_families():
    p = replace(population([0.0] * 8, islands=4), ancestor=torch.tensor([0, 0, 2, 3, 4, 5, 6, 6]))
    found = ancestral_ess(p)
    assert found.value == pytest.approx(64 / (8 * (4 + 1 + 1 + 1 + 1 + 4))) and found.stderr > 0
    weighted = population([0.0, 1.0, -2.0, 0.5])
    assert ancestral_ess(weighted).value == pytest.approx(kish(weighted.log_w)) and math.isnan(ancestral_ess(weighted).stderr)
    with pytest.raises(ValueError, match="all 2 weights are zero"):
        ancestral_ess(population([-math.inf, -math.inf]))


# proper weights

@every_space
@every_kernel
def test_log_z_of_a_gaussian(kernel, space):
    target = GaussianOracle(space=space, std=0.7, offset=-3.0)
    options = {"prior": Gaussian(space=space, std=2.0), "target": target, "kernel": kernel}
    for sampler in (SMC(**options), AnnealedImportance(**options, keep=0.95)):
        proposal = sampler.sample(1200, generator=seed())
        assert isinstance(sampler, Sampler) and proposal.density is Density.PATH and proposal.origin.method == sampler.method
        weighted = weigh(proposal, target)
        assert abs(log_z(weighted).z(exactly(target.log_z))) < 4 and log_z(weighted).stderr < 0.15
        assert abs(expectation(weighted, square).z(exactly(target.mean_square))) < 4


@every_space
def test_the_same_weights_are_proper_for_other_energies(space):
    """log_q is handed over, not weights: weighed with another target, the samples know its log Z too."""
    target, other = GaussianOracle(space=space, std=0.9), GaussianOracle(space=space, std=0.8, offset=5.0)
    for resample_below in (0.0, 1.0):
        sampler = SMC(prior=Gaussian(space=space, std=2.0), target=target, resample_below=resample_below, pilot=64)
        weighted = weigh(sampler.sample(1200, generator=seed(2)), other)
        assert abs(log_z(weighted).z(exactly(other.log_z))) < 4 and log_z(weighted).stderr < 0.15


def test_two_wells_that_importance_sampling_misses():
    target = TwoWells()
    prior = Gaussian(space=target.space, std=2.0)
    plain = weigh(propose(prior, 4000, seed=0), target)
    assert ess(plain).value < 0.01 and log_z(plain).stderr > 0.2
    sampler = SMC(prior=prior, target=target, kernel=Hamiltonian(leapfrog=3), pilot=64)
    weighted = weigh(sampler.sample(2000, generator=seed(1)), target)
    assert abs(log_z(weighted).z(exactly(target.log_z))) < 4 and log_z(weighted).stderr < 0.15
    assert abs(expectation(weighted, right).z(exactly(target.right))) < 4 and expectation(weighted, right).stderr < 0.1


@pytest.mark.parametrize("resample_below", [0.0, 0.5, 1.0])
def test_error_bars_of_log_z_cover(resample_below):
    """60 repetitions with one frozen schedule: |z| < 1 in 68 % of them, less a little for 20 islands; the mean of Z is unbiased."""
    target = GaussianOracle(space=PLANE, std=0.6, offset=1.0)
    sampler = SMC(prior=Gaussian(space=PLANE, std=2.0), target=target, kernel=Hamiltonian(leapfrog=2), islands=20, schedule=TWO_STEPS,
                  resample_below=resample_below)
    estimates = [log_z(weigh(sampler.sample(300, generator=seed(k)), target)) for k in range(60)]
    z = torch.tensor([e.z(exactly(target.log_z)) for e in estimates])
    assert abs((z.abs() < 1).double().mean().item() - 0.67) < 4 * math.sqrt(0.67 * 0.33 / 60) and (z.abs() < 2).double().mean() > 0.85
    ratio = torch.tensor([math.exp(e.value - target.log_z) for e in estimates])
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / 60**0.5


def test_error_bars_of_averages_cover_after_resampling():
    """Copies of one ancestor are correlated: taken as independent rows, they would give error bars that are too small."""
    target = GaussianOracle(space=SPACES[1], std=0.6)
    barely = Schedule(betas=(1.0,), steps=(0.01,))
    sampler = SMC(prior=Gaussian(space=SPACES[1], std=1.2), target=target, islands=20, schedule=barely, resample_below=1.0,
                  kernel=Hamiltonian(leapfrog=1))
    weighted = [weigh(sampler.sample(1000, generator=seed(k)), target) for k in range(60)]
    z, naive = (torch.tensor([expectation(regroup(w), square).z(exactly(target.mean_square)) for w in weighted])
                for regroup in (lambda w: w, lambda w: replace(w, proposal=replace(w.proposal, group=None))))
    assert abs((z.abs() < 1).double().mean().item() - 0.67) < 4 * math.sqrt(0.67 * 0.33 / 60)
    assert (naive.abs() < 1).double().mean() < 0.5


# what is frozen, counted and kept

@dataclass(frozen=True, kw_only=True)
class Recording(Hamiltonian):
    """Hamiltonian moves that note (beta, step, rows) of every call."""

    seen: list

    def move(self, path, beta, walkers, step, *, generator):
        self.seen.append((beta, step, len(walkers.x)))
        return super().move(path, beta, walkers, step, generator=generator)


def test_schedule_is_learned_on_a_pilot_and_then_frozen():
    target, seen = GaussianOracle(space=PLANE, std=0.3), []
    sampler = SMC(prior=Gaussian(space=PLANE, std=2.0), target=target, kernel=Recording(seen=seen), pilot=50)
    tuned = sampler.tune(generator=seed())
    assert tuned.betas[-1] == 1.0 and len(tuned.betas) > 2
    seen.clear()
    sampler.sample(700, generator=seed())
    frozen = [call for call in seen if call[2] == 700]
    assert [call[:2] for call in frozen] == list(zip(tuned.betas, tuned.steps, strict=True)) and frozen == seen[-len(frozen):]
    assert {call[2] for call in seen[:-len(frozen)]} == {50}
    seen.clear()
    again = replace(sampler, schedule=tuned).sample(700, generator=seed())
    assert seen == frozen and "tuned" not in again.note


def test_tuning_reaches_the_wanted_acceptance():
    target = GaussianOracle(space=SPACES[0], std=0.1)
    for kernel in (Hamiltonian(), CrankNicolson()):
        sampler = SMC(prior=Gaussian(space=SPACES[0], std=2.0), target=target, kernel=kernel)
        schedule = sampler.tune(generator=seed())
        x = GaussianOracle(space=SPACES[0], std=0.1).sample(1000, generator=seed())
        walkers = Walkers(x=x, u_0=sampler.path.u_0(x), u=target.u(x))
        _, probability = kernel.move(sampler.path, 1.0, walkers, schedule.steps[-1], generator=seed(1))
        assert probability.mean().item() == pytest.approx(kernel.acceptance, abs=0.15)


def test_every_energy_and_gradient_is_counted():
    target = GaussianOracle(space=PLANE, std=0.6)
    sampler = SMC(prior=Gaussian(space=PLANE), target=target, kernel=Hamiltonian(leapfrog=3, transitions=2), schedule=TWO_STEPS)
    cost = sampler.sample(100, generator=seed()).cost
    assert (cost.energy, cost.gradient) == (target.n_energy, target.n_gradient) == (100, 2 * 100 * (1 + 3 * 2))
    tuned = replace(sampler, schedule=None).sample(100, generator=seed()).cost
    assert (cost.energy + tuned.energy, cost.gradient + tuned.gradient) == (target.n_energy, target.n_gradient)


def test_same_seed_same_numbers():
    sampler = SMC(prior=Gaussian(space=PLANE), target=GaussianOracle(space=PLANE, std=0.5), pilot=32)
    a, b, c = (sampler.sample(64, generator=seed(k)) for k in (1, 1, 2))
    assert torch.equal(a.x, b.x) and torch.equal(a.log_q, b.log_q) and not torch.equal(a.x, c.x)


def test_groups_are_islands_and_independent_rows_have_none():
    options = {"prior": Gaussian(space=PLANE), "target": GaussianOracle(space=PLANE, std=0.5), "schedule": TWO_STEPS}
    proposal = SMC(islands=7, **options).sample(50, generator=seed())
    assert proposal.group.tolist() == in_islands(50, 7).tolist() and "7 islands" in proposal.note and "per ancestor" in proposal.note
    assert AnnealedImportance(**options).sample(50, generator=seed()).group is None


def test_islands_that_do_not_divide_n_stay_unbiased():
    target = GaussianOracle(space=PLANE, std=0.6, offset=2.0)
    sampler = SMC(prior=Gaussian(space=PLANE, std=2.0), target=target, islands=7, schedule=TWO_STEPS, resample_below=1.0)
    ratio = torch.tensor([math.exp(log_z(weigh(sampler.sample(17, generator=seed(k)), target)).value - target.log_z) for k in range(200)])
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / 200**0.5


def test_rows_without_weight_stay():
    """Half of the prior's draws lie where u = +inf, or where the energy fails."""
    for outside, failed in ((math.inf, 0), (math.nan, 1)):
        target = walls(outside=outside)
        sampler = AnnealedImportance(prior=Gaussian(space=LINE, std=2.0), target=target, pilot=64)
        weighted = weigh(sampler.sample(1000, generator=seed()), target)
        zero = weighted.log_w == -math.inf
        assert len(weighted) == 1000 and 420 < zero.sum() < 580 and weighted.n_failed == failed * zero.sum()
        assert torch.isfinite(weighted.proposal.log_q).all() and (weighted.x[zero] <= 0).all() and (weighted.x[~zero] > 0).all()
        assert abs(log_z(weighted).z(exactly(0.5 * math.log(2 * math.pi) - math.log(2)))) < 4
    note = SMC(prior=Gaussian(space=LINE), target=walls(outside=math.nan), pilot=64).sample(100, generator=seed()).note
    assert "of 100 drawn rows failed" in note


def test_islands_that_miss_the_target_count_as_zero():
    target = LineOracle(lambda x: torch.where(x > 2, x.square() / 2, math.inf), name="far wall")
    schedule = Schedule(betas=(1.0,), steps=(0.1,))
    sampler = SMC(prior=Gaussian(space=LINE), target=target, islands=200, schedule=schedule, resample_below=1.0)
    weighted = weigh(sampler.sample(4000, generator=seed()), target)
    assert (torch.zeros(200).index_add_(0, weighted.proposal.group, weighted.log_w.exp().float()) == 0).sum() > 50
    assert abs(log_z(weighted).z(exactly(math.log(math.sqrt(math.pi / 2) * math.erfc(2 / 2**0.5))))) < 4


# rejuvenation

def test_rejuvenation_keeps_log_z_and_makes_averages_better():
    target = double_well()
    source = Drawn(Gaussian(space=LINE, std=3.0))
    sampler = Rejuvenated(source=source, target=target, kernel=Hamiltonian(transitions=8), islands=50)
    schedule = sampler.tune(generator=seed())
    assert schedule.betas == (1.0,)
    start = sampler.start(5000, generator=seed(1))
    ended = sampler.run(start, schedule, generator=seed(2))
    plain, weighted = weigh(propose(source.source, 5000, seed=start.proposal.origin.seed), target), weigh(ended.proposal, target)
    assert log_z(weighted).value == pytest.approx(log_z(plain).value, abs=1e-9)
    assert abs(log_z(weighted).z(exactly(target.log_z))) < 4
    u = average(weighted, weighted.u)
    assert abs(u.z(exactly(target.average(target.u)))) < 4 and u.n_eff > 1.5 * average(plain, plain.u).n_eff
    assert abs(expectation(weighted, right).z(exactly(target.average(right)))) < 4
    assert ancestral_ess(ended.population).value < 1.05 * ess(plain).value < 0.6 < ess(weighted).value


def test_rejuvenation_cools_from_the_temperature_it_is_told():
    """A generator of exp(-u/4): weighed to exp(-.3 u) first, then cooled."""
    target, hot = GaussianOracle(space=SPACES[1], std=0.5, offset=-2.0), GaussianOracle(space=SPACES[1], std=1.0)
    sampler = Rejuvenated(source=Drawn(hot), target=target, hottest=0.3)
    schedule = sampler.tune(generator=seed())
    assert schedule.betas[0] == 0.3 and schedule.betas[-1] == 1.0 and len(schedule.betas) > 2
    weighted = weigh(sampler.sample(2000, generator=seed(1)), target)
    assert abs(log_z(weighted).z(exactly(target.log_z))) < 4 and log_z(weighted).stderr < 0.1
    assert abs(expectation(weighted, square).z(exactly(target.mean_square))) < 4
    assert weighted.proposal.origin.method == "GaussianOracle+rejuvenated" and weighted.proposal.note.endswith("start: drawn")


def test_improper_starts_are_refused_unless_accepted():
    target = GaussianOracle(space=PLANE)
    for density in (Density.UNCERTIFIED, Density.STOCHASTIC):
        sampler = Rejuvenated(source=Drawn(GaussianOracle(space=PLANE, std=1.2), density), target=target)
        with pytest.raises(ValueError, match=f"{density.value} samples have no proper weights"):
            sampler.sample(64, generator=seed())
        proposal = replace(sampler, accept=[density]).sample(64, generator=seed())
        assert proposal.density is density and proposal.origin.edits == (f"accepted {density.value} density",)
        with pytest.raises(ValueError, match="no proper weights"):
            weigh(proposal, target)


def test_unnormalised_starts_stay_unnormalised():
    target = GaussianOracle(space=PLANE)
    proposal = Rejuvenated(source=Drawn(target, Density.UNNORMALISED), target=target).sample(64, generator=seed())
    with pytest.raises(ValueError, match="log Z is unknown"):
        log_z(weigh(proposal, target))


class Chains:
    """A sampler of correlated rows."""

    space = PLANE

    def sample(self, n, *, generator):
        return chains(GaussianOracle(space=PLANE), 4, n // 4, memory=0.5, seed=0)


def test_correlated_starts_are_refused():
    with pytest.raises(ValueError, match="AR\\(1\\) samples are correlated"):
        Rejuvenated(source=Chains(), target=GaussianOracle(space=PLANE)).sample(64, generator=seed())


@pytest.mark.parametrize(("n", "message"), [(0, "positive integer"), (-1, "positive integer"), (True, "positive integer"),
                                            (31, "31 samples cannot be shared among 32 islands")])
def test_bad_counts_are_refused(n, message):
    target = GaussianOracle(space=PLANE)
    for sampler in (SMC(prior=target, target=target), Rejuvenated(source=Drawn(target), target=target)):
        with pytest.raises(ValueError, match=message):
            sampler.sample(n, generator=seed())
    assert target.n_energy == 0


@pytest.mark.parametrize("options", [{"keep": 1.0}, {"keep": 0.0}, {"resample_below": 1.5}, {"islands": 0}, {"pilot": 1}])
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match="must lie in|are needed, got"):
        SMC(prior=Gaussian(space=PLANE), target=GaussianOracle(space=PLANE), **options)


@pytest.mark.parametrize(("betas", "steps"), [
    ((), ()), ((0.5,), (1.0,)), ((0.5, 0.4, 1.0), (1.0,) * 3), ((0.0, 1.0), (1.0, 1.0)), ((1.0,), ()), ((1.0,), (0.0,))])
def test_bad_schedules_are_refused(betas, steps):
    with pytest.raises(ValueError, match="betas must rise|needs one positive step"):
        Schedule(betas=betas, steps=steps)


@pytest.mark.parametrize("hottest", [0.0, 1.5])
def test_bad_first_temperatures_are_refused(hottest):
    target = GaussianOracle(space=PLANE)
    with pytest.raises(ValueError, match="inverse temperature in \\(0, 1\\]"):
        Rejuvenated(source=Drawn(target), target=target, hottest=hottest)


def test_targets_out_of_reach_are_named():
    nowhere = LineOracle(lambda x: torch.full_like(x, math.inf), name="nowhere")
    with pytest.raises(ValueError, match="all 128 pilot rows have zero weight under nowhere"):
        SMC(prior=Gaussian(space=LINE), target=nowhere).sample(64, generator=seed())


def test_flows_are_not_priors():
    flow = plane_flow(Linear(torch.eye(2, dtype=torch.float64)))
    with pytest.raises(ValueError, match="Flow is a sampler, not a prior; anneal a flow with AnnealedFlow"):
        SMC(prior=flow, target=GaussianOracle(space=PLANE)).sample(64, generator=seed())


# flows in latent space

def plane_flow(field, *, steps=4, space=PLANE, **options):
    return Flow(prior=Gaussian(space=space), field=field, origin=Origin(method="flow", system="test"), grid=Grid(steps=steps, **options))


def test_the_pulled_back_target_is_the_path_from_q_to_the_target():
    flow, target = plane_flow(randomise(MLP(1, 2, hidden=8, depth=2))), GaussianMixture(torch.ones(1, 2), std=1.5)
    pulled, z = PulledBack(flow, target), flow.prior.sample(5, generator=seed())
    assert isinstance(pulled, Target)
    x = flow.forward(z)
    log_w = -target.u(x) - flow.log_prob(x)
    torch.testing.assert_close(pulled.u(z) + flow.prior.log_prob(z), -log_w, rtol=0, atol=1e-9)
    u, grad = pulled.u_and_grad(z)
    torch.testing.assert_close(u, pulled.u(z), rtol=0, atol=1e-12)
    for k in range(2):
        h = torch.zeros_like(z).index_fill_(2, torch.tensor([k]), 1e-5)
        torch.testing.assert_close(grad[:, 0, k], (pulled.u(z + h) - pulled.u(z - h)) / 2e-5, rtol=1e-6, atol=1e-7)
    assert pulled.n_pushed == 35 and pulled.n_energy == 35 and pulled.n_gradient == 5


@pytest.mark.parametrize("kernel", [CrankNicolson(), Hamiltonian(leapfrog=1)], ids=["crank-nicolson", "hmc"])
def test_annealed_flows_have_proper_weights(kernel):
    """The flow widens space, so that its determinants matter: log det DT = 0.9."""
    field = Linear(torch.tensor([[0.6, -0.8], [0.5, 0.3]], dtype=torch.float64))
    flow, target = plane_flow(field), GaussianOracle(space=PLANE, std=0.6, offset=-1.0)
    proposal = AnnealedFlow(flow=flow, target=target, kernel=kernel, pilot=32).sample(320, generator=seed())
    assert proposal.density is Density.PATH and proposal.certificate.clean and len(proposal.group.unique()) == 32
    weighted = weigh(proposal, target)
    torch.testing.assert_close(weighted.u, target.u(proposal.x))
    assert abs(log_z(weighted).z(exactly(target.log_z))) < 4 and log_z(weighted).stderr < 0.2
    assert abs(expectation(weighted, square).z(exactly(target.mean_square))) < 4
    assert (proposal.cost.energy, proposal.cost.gradient) == (target.n_energy - 320 - 320, target.n_gradient)
    assert proposal.cost.network == proposal.cost.jacobian > 320 * 2 * flow.evaluations


def test_a_folding_flow_is_not_certified_by_annealing():
    flow = plane_flow(folding(), space=LINE, steps=1, integrator="euler")
    proposal = AnnealedFlow(flow=flow, target=GaussianOracle(space=LINE), pilot=32).sample(64, generator=seed())
    assert proposal.density is Density.UNCERTIFIED and proposal.certificate.n_negative > 0
    with pytest.raises(ValueError, match="no proper weights"):
        weigh(proposal, GaussianOracle(space=LINE))


def test_weighted_samples_of_a_rejuvenated_flow():
    flow, target = plane_flow(randomise(MLP(1, 2, hidden=8, depth=2))), GaussianOracle(space=PLANE, std=1.1)
    proposal = Rejuvenated(source=flow, target=target, pilot=32).sample(400, generator=seed())
    weighted = weigh(proposal, target)
    assert isinstance(weighted, WeightedSamples) and proposal.certificate is None and "executed map" in proposal.note
    assert abs(log_z(weighted).z(exactly(target.log_z))) < 4
    assert proposal.cost.network == (400 + 32) * flow.evaluations


def test_uniform_priors_on_other_spaces_are_refused():
    torus = Torus(n=1, d=2)
    with pytest.raises(ValueError, match="Euclidean and mean-free space"):
        SMC(prior=Uniform(space=torus), target=GaussianOracle(space=torus)).sample(64, generator=seed())
