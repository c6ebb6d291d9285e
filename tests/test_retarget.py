"""Reweighting one set of samples to other targets: right answers, and effective sample sizes that were predicted."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from oracles import LINE, GaussianOracle, LineOracle, chains, propose

from bgwork.priors import Gaussian
from bgwork.records import Density, Estimate, WeightedSamples
from bgwork.retarget import predict, predict_temperature, retarget, retarget_temperature
from bgwork.reweighting import ess, expectation, log_z, weigh
from bgwork.samplers.smc import SMC
from bgwork.spaces import Euclidean, MeanFree

SPACE = MeanFree(n=4, d=2)


def exactly(value: float) -> Estimate:
    return Estimate(value=value, stderr=0.0)


def square(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum((1, 2))


def wide(n: int = 8000, *, std: float = 1.2, space=SPACE):
    """Samples of N(0, std^2), weighed with the unit Gaussian."""
    return weigh(propose(GaussianOracle(space=space, std=std), n, seed=0), GaussianOracle(space=space, offset=1.5))


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.3])
def test_temperature_of_a_gaussian(factor):
    """u = |x|^2 / 2 + c at kT' = factor kT is a Gaussian of variance factor with offset c / factor."""
    before = wide()
    found = retarget_temperature(before, factor=factor)
    truth = GaussianOracle(std=math.sqrt(factor), offset=1.5 / factor)
    assert abs(log_z(found.samples).z(exactly(truth.log_z))) < 4
    assert abs(expectation(found.samples, square).z(exactly(truth.mean_square))) < 4
    assert abs(found.measured.z(exactly(truth.ess_from(1.2)))) < 4
    assert found.before == ess(before) and found.samples.proposal is before.proposal
    assert found.samples.target == f"gaussian-oracle at {factor:g} kT"


def test_another_force_constant():
    before, stiffer = wide(), GaussianOracle(std=0.9, offset=-0.5)
    found = retarget(before, stiffer)
    assert stiffer.n_energy == len(before) and found.samples.proposal.cost.energy == 2 * len(before)
    assert abs(log_z(found.samples).z(exactly(stiffer.log_z))) < 4
    assert abs(expectation(found.samples, square).z(exactly(stiffer.mean_square))) < 4
    assert abs(found.measured.z(exactly(stiffer.ess_from(1.2)))) < 4
    torch.testing.assert_close((found.samples.x, found.samples.proposal.log_q), (before.x, before.proposal.log_q), rtol=0, atol=0)


def tilted(slope: float, *, name: str = "tilted") -> LineOracle:
    return LineOracle(lambda x: x.square() / 2 + slope * x, name=name)


@pytest.mark.parametrize(("old", "new"), [(0.0, 0.7), (0.4, 0.9), (0.6, 0.2), (0.5, -0.5)])
def test_the_log_normal_prediction_is_exact_for_gaussian_log_weights(old, new):
    """Samples of N(0, 1) for u = x^2/2 + s x: log w = -s x + const, ESS = exp(-s^2), whether the change leads away or back."""
    weighted = weigh(propose(GaussianOracle(space=LINE), 20_000, seed=1), tilted(old))
    found = retarget(weighted, tilted(new))
    assert abs(found.measured.z(exactly(math.exp(-(new**2))))) < 4
    off = found.predicted.log_normal.value - math.exp(-(new**2))
    assert abs(off) < 4 * math.hypot(found.predicted.log_normal.stderr, math.exp(old**2 - new**2) * found.before.stderr)
    assert abs(found.predicted.loss.z(exactly(new**2 - old**2))) < 4
    assert found.predicted.second_order == pytest.approx(found.before.value / (1 + new**2 - old**2), rel=0.1)


def test_error_bar_of_the_prediction_is_that_of_the_jackknife():
    target = tilted(0.6)
    proposal = propose(GaussianOracle(space=LINE), 150, seed=3)
    whole = weigh(proposal, target)
    change = 0.8 * whole.u
    left_out = []
    for k in range(150):
        rows = torch.arange(150) != k
        part = WeightedSamples(proposal=replace(proposal, x=proposal.x[rows], log_q=proposal.log_q[rows]), u=whole.u[rows], target="tilted")
        left_out.append(predict(part, change[rows]).loss.value)
    jackknife = torch.tensor(left_out).std(correction=0).item() * 149**0.5
    assert predict(whole, change).loss.stderr == pytest.approx(jackknife, rel=0.05)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_small_changes_of_temperature_are_predicted(factor):
    before = wide()
    found = retarget_temperature(before, factor=factor)
    assert found.predicted == predict_temperature(before, factor=factor)
    for value in (found.predicted.log_normal.value, found.predicted.second_order):
        assert value == pytest.approx(found.measured.value, rel=0.03)
    assert abs(found.measured.value / found.before.value - 1) > 0.01


def test_from_the_target_itself_the_heat_capacity_tells():
    """Equal weights: V = (1 - 1/factor)^2 Var(u), Var(u) = dim / 2."""
    target = GaussianOracle()
    weighted = weigh(propose(target, 20_000, seed=0), target)
    predicted = predict_temperature(weighted, factor=1.25)
    assert abs(predicted.loss.z(exactly(0.2**2 * target.space.dim / 2))) < 4
    assert predicted.log_normal.value == pytest.approx(math.exp(-predicted.loss.value), rel=1e-9)


def test_rows_that_the_new_target_forbids_lose_their_weight():
    weighted = weigh(propose(GaussianOracle(space=LINE), 4000, seed=0), GaussianOracle(space=LINE))
    for outside, failed in ((math.inf, False), (math.nan, True)):
        found = retarget(weighted, LineOracle(lambda x, v=outside: torch.where(x > 0, x.square() / 2, v), name="wall"))
        half = (weighted.x[:, 0, 0] > 0).double().mean().item()
        assert len(found.samples) == 4000 and (found.samples.n_failed > 0) == failed
        assert found.measured.value == pytest.approx(half) and found.predicted.log_normal.value == pytest.approx(half)


def test_energies_that_were_infinite_stay_infinite():
    """Rows without weight have no say in the prediction, whatever their energies."""
    weighted = weigh(propose(GaussianOracle(space=LINE), 4000, seed=0),
                     LineOracle(lambda x: torch.where(x > 0, x.square() / 2, math.inf), name="wall"))
    found = retarget_temperature(weighted, factor=0.9)
    assert (found.samples.u == math.inf).sum() == (weighted.u == math.inf).sum() > 1000
    assert found.predicted.log_normal.value == pytest.approx(found.measured.value, rel=0.02)


def test_sequential_monte_carlo_is_retargeted_too():
    """Path weights are proper for every energy; islands stay the groups."""
    target, cooler = GaussianOracle(std=0.9), GaussianOracle(std=0.9 * math.sqrt(0.85))
    proposal = SMC(prior=Gaussian(space=SPACE, std=2.0), target=target, pilot=64).sample(1600, generator=torch.Generator().manual_seed(0))
    found = retarget_temperature(weigh(proposal, target), factor=0.85)
    assert abs(log_z(found.samples).z(exactly(cooler.log_z))) < 4
    assert abs(expectation(found.samples, square).z(exactly(cooler.mean_square))) < 4


def test_markov_chains_are_retargeted_up_to_a_constant():
    target = GaussianOracle()
    found = retarget_temperature(weigh(chains(target, 40, 200, memory=0.5, seed=0), target), factor=0.9)
    assert abs(expectation(found.samples, square).z(exactly(0.9 * target.mean_square))) < 4
    with pytest.raises(ValueError, match="log Z is unknown"):
        log_z(found.samples)


def test_what_was_accepted_stays_said_once():
    target = GaussianOracle()
    weighted = weigh(propose(target, 100, seed=0, density=Density.STOCHASTIC), target, accept=[Density.STOCHASTIC])
    found = retarget(weighted, replace(target, std=1.1))
    assert found.samples.proposal.origin.edits == ("accepted stochastic density",)
    assert found.samples.proposal.density is Density.STOCHASTIC


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_bad_factors_are_refused(factor):
    for f in (retarget_temperature, predict_temperature):
        with pytest.raises(ValueError, match="must be positive and finite"):
            f(wide(10), factor=factor)


def test_other_spaces_are_refused():
    with pytest.raises(ValueError, match="sample the target's own space"):
        retarget(wide(10), GaussianOracle(space=Euclidean(n=4, d=2)))


def test_nothing_allowed_is_an_error():
    weighted = wide(10)
    with pytest.raises(ValueError, match="all 10 weights are zero"):
        predict(weighted, torch.full((10,), math.inf))
