"""What each method regresses on, on the line: for a Gaussian N(MEAN, STD^2) point, value, conditional mean and weight have closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import LINE, LineOracle

from bgwork.fields.drift_reversal import GaussianStartDrifts
from bgwork.objectives.adjoint_sampling import AdjointSampling
from bgwork.objectives.flow_sampling import FlowSampling
from bgwork.objectives.idem import IteratedDenoisingEnergyMatching
from bgwork.objectives.weighted_adjoint import WeightedAdjointSampling
from bgwork.paths import GeometricBrownian, GeometricNoise, stops
from bgwork.priors import Gaussian
from bgwork.records import Density, Origin, Proposal
from bgwork.samplers.kernels import control_table, score_table

MEAN, STD = 0.8, 0.6
START, GAMMA, LARGEST, SPREAD = 1.3, 0.7, 1.5, 0.9
BROWNIAN, NOISE = GeometricBrownian(std=1.4, ratio=0.2), GeometricNoise(ratio=0.1)
BANDS = ((0.0, 0.3), (0.3, 0.7), (0.7, 0.97))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def method_of(kind):
    prior, table = Gaussian(space=LINE, std=START), control_table(BROWNIAN, stops(5))
    adjoint = {"space": LINE, "brownian": BROWNIAN, "table": table, "clip": math.inf, "scale": SPREAD}
    if kind == "flow-sampling":
        return FlowSampling(prior=prior, gamma=GAMMA, stops=stops(5), drifts=lambda f: GaussianStartDrifts(f, prior=prior, gamma=GAMMA))
    if kind in ("idem", "idem, Richardson"):
        return IteratedDenoisingEnergyMatching(
            prior=prior, largest=LARGEST, path=NOISE, table=score_table(NOISE, stops(5), prior_std=LARGEST, spread=SPREAD), samples=1000,
            clip=math.inf, spread=SPREAD, richardson="," in kind)
    return AdjointSampling(**adjoint) if kind == "adjoint" else WeightedAdjointSampling(**adjoint)


def regression(kind, n=20_000):
    """End points of the target [n], and the regression's t, x, value and weight there, all [n]."""
    target = LineOracle(lambda x: (x - MEAN) ** 2 / (2 * STD**2))
    x1 = MEAN + STD * torch.randn(n, 1, 1, generator=seeded(), dtype=torch.float64)
    proposal = Proposal(x=x1, log_q=-target.u(x1), space=LINE, density=Density.PATH, origin=Origin(method="exact", system="line"))
    method = method_of(kind)
    made = method.regression(target, method.measure(target, proposal), generator=seeded(1))
    assert made.clipped == 0
    return x1.flatten(), made.t, made.x.flatten(), made.value.flatten(), made.weight


def brownian(t):
    """nu_t and nu_1 - nu_t, from the integral of a geometric sigma_t that falls by `ratio`."""
    total, square = BROWNIAN.std**2, BROWNIAN.ratio**2
    left = total * (square**t - square) / (1 - square)
    return total - left, left


def adjoint_mean(t, x):
    """(E[X_1 | X_t] - X_t) / (nu_1 - nu_t): bridge matching's form, which no line of the method computes."""
    nu, left = brownian(t)
    g = nu / (nu + left)
    expected = MEAN + g * STD**2 / (g**2 * STD**2 + g * left) * (x - g * MEAN)
    return (expected - x) / left


def flow_sampling_mean(t, x):
    """E[X_1 - X_0 | X_t] + gamma t grad log p_t: by velocity and score."""
    variance = (1 - t) ** 2 * START**2 + t**2 * STD**2
    offset = (x - t * MEAN) / variance
    return MEAN + (t * STD**2 - (1 - t) * START**2 - GAMMA * t) * offset


def idem_mean(t, x):
    """Score of N(MEAN, STD^2 + sigma_t^2)."""
    return -(x - MEAN) / (STD**2 + (LARGEST * NOISE.ratio**t) ** 2)


EXACT = {"adjoint": adjoint_mean, "weighted-adjoint": adjoint_mean, "flow-sampling": flow_sampling_mean, "idem": idem_mean,
         "idem, Richardson": idem_mean}


@pytest.mark.parametrize("kind", EXACT)
def test_the_conditional_mean_is_the_field_that_samples_the_target(kind):
    """E[value - exact | X_t] = 0: neither offset nor slope is left at early, middle or late times."""
    _, t, x, value, _ = regression(kind, n=2000 if "idem" in kind else 20_000)
    for low, high in BANDS:
        rows = (t >= low) & (t < high)
        residual, reach = (value - EXACT[kind](t, x))[rows], EXACT[kind](t, x)[rows].std()
        for moment in (residual, residual * (x[rows] - x[rows].mean()) / x[rows].std()):
            error = moment.std() / len(moment) ** 0.5
            assert abs(moment.mean()) < 4 * error + 2e-3 * reach and error < 0.05 * reach


def test_adjoint_sampling_s_points_and_values_row_by_row():
    x1, t, x, value, weight = regression("adjoint")
    torch.testing.assert_close(value, x1 / 1.4**2 - (x1 - MEAN) / STD**2)
    nu, left = brownian(t)
    standard((x - nu / (nu + left) * x1) / (nu * left / (nu + left)).sqrt(), apart_from=x1)
    assert (weight == SPREAD**2).all()


def test_weighted_adjoint_sampling_s_values_row_by_row():
    """Both identities mixed as lambda = 1 / (1 + (k - 1/nu_1)(nu_1 - nu_t)), with the curvature k as the rows show it."""
    x1, t, x, value, weight = regression("weighted-adjoint")
    curvature, (_, left) = ((x1 - MEAN) ** 2).mean() / STD**4, brownian(t)
    share = 1 / (1 + (curvature - 1 / 1.4**2) * left)
    by_gradient, by_bridge = x1 / 1.4**2 - (x1 - MEAN) / STD**2, (x1 - x) / left
    torch.testing.assert_close(value, share * by_gradient + (1 - share) * by_bridge, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(weight, left + 1 / curvature)


def test_flow_sampling_s_points_and_values_row_by_row():
    x1, t, x, value, weight = regression("flow-sampling")
    x0 = (x1 - GAMMA * (x1 - MEAN) / STD**2) - value
    torch.testing.assert_close(x, (1 - t) * x0 + t * x1)
    standard(x0 / START, apart_from=x1)
    assert (weight == 1).all()


@pytest.mark.parametrize("kind", ["idem", "idem, Richardson"])
def test_idem_s_points_and_weights_row_by_row(kind):
    x1, t, x, value, weight = regression(kind, n=6000)
    sigma = LARGEST * NOISE.ratio**t
    standard((x - x1) / sigma, apart_from=x1)
    torch.testing.assert_close(weight, sigma**2 * (SPREAD**2 + sigma**2) / SPREAD**2)
    assert (weight.sqrt() * (value - idem_mean(t, x))).abs().median() < 0.1


def standard(z, *, apart_from):
    """z are standard normal numbers, independent of x."""
    n, other = len(z), (apart_from - apart_from.mean()) / apart_from.std()
    for moment, expected, spread in ((z, 0, 1), (z**2, 1, math.sqrt(2)), (z**4, 3, math.sqrt(96)), (z * other, 0, 1)):
        assert abs(moment.mean() - expected) < 4 * spread / math.sqrt(n)
