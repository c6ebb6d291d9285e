"""Annealing towards targets with known log Z: weights stay proper, error bars cover, what was tuned is frozen, work is counted."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from annealing import PLANE, SPACES, Drawn, every_kernel, every_space, exactly, right, seed, square, walls
from oracles import LINE, GaussianOracle, LineOracle, TwoWells, propose

from bgwork.priors import Gaussian, Uniform
from bgwork.protocols import Sampler
from bgwork.records import Density
from bgwork.reweighting import ess, expectation, log_z, weigh
from bgwork.samplers.moves import CrankNicolson, Hamiltonian, Walkers
from bgwork.samplers.resampling import in_islands
from bgwork.samplers.schedules import Schedule
from bgwork.samplers.smc import SMC, AnnealedImportance, Rejuvenated
from bgwork.spaces import Torus

TWO_STEPS = Schedule(betas=(0.4, 1.0), steps=(0.7, 0.5))


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


def test_targets_out_of_reach_are_named():
    nowhere = LineOracle(lambda x: torch.full_like(x, math.inf), name="nowhere")
    with pytest.raises(ValueError, match="all 128 pilot rows have zero weight under nowhere"):
        SMC(prior=Gaussian(space=LINE), target=nowhere).sample(64, generator=seed())


def test_uniform_priors_on_other_spaces_are_refused():
    torus = Torus(n=1, d=2)
    with pytest.raises(ValueError, match="Euclidean and mean-free space"):
        SMC(prior=Uniform(space=torus), target=GaussianOracle(space=torus)).sample(64, generator=seed())
