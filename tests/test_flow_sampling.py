"""Flow sampling: regression targets against finite differences and closed forms, exact conversions."""

import math

import pytest
import torch
from curved_walks import ORIGIN, SPACES, ExactDrift, near_pole, seed
from oracles import GaussianOracle
from torch import Tensor

from bgwork.curved import ConstantCurvature
from bgwork.fields.drift_reversal import GaussianStartDrifts, velocity_of_drift
from bgwork.objectives import flow_sampling
from bgwork.objectives.flow_sampling import conditional_drifts, walk_grid
from bgwork.paths import stops
from bgwork.priors import Gaussian, Uniform, tangent_noise
from bgwork.records import Density
from bgwork.reweighting import ess, log_z, weigh
from bgwork.samplers.flow import Flow
from bgwork.samplers.geodesic import GeodesicKernels
from bgwork.samplers.integrators import Grid
from bgwork.samplers.sde import PathSampler
from bgwork.spaces import Euclidean, MeanFree
from bgwork.targets.von_mises_fisher import VonMisesFisherMixture

every_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())


def product(space, a: Tensor, b: Tensor) -> Tensor:
    return space.inner(a, b).sum(1) if isinstance(space, ConstantCurvature) else (a * b).sum((1, 2))


def reward(x: Tensor) -> Tensor:
    """Some r(x) without symmetry, in ambient coordinates."""
    slope = torch.linspace(-1, 1.3, x[0].numel(), dtype=torch.float64).view_as(x[0])
    return torch.sin((slope * x).sum((1, 2))) + 0.3 * (slope.roll(1, 1) * x).tanh().square().sum((1, 2))


def ascent(space, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return space.gradient(x, torch.autograd.grad(reward(leaf).sum(), leaf)[0])


@every_space
def test_conditional_drifts_against_finite_differences(space):
    """(f - b) / 2 = g^2/2 grad log p_{t|0}, from p_{t|0}(x) = p_1(X_1) |dX_1/dx|, and (f + b) / 2 = dX_t/dt; fourth-order differences."""
    x0, x1, gamma, h = near_pole(space, 20, 0), near_pole(space, 20, 1), 0.8, 2e-4
    t = 0.05 + 0.9 * torch.rand(20, generator=seed(2), dtype=torch.float64)
    x, forward, backward = conditional_drifts(space, t, x0, x1, ascent(space, x1), gamma=gamma)

    def log_density(y: Tensor) -> Tensor:
        v = space.log(x0, y)
        whole = v / t[:, None, None]
        return reward(space.exp(x0, whole)) + (space.log_exp_det(whole) - space.log_exp_det(v)).sum(1)

    def interpolant(time: Tensor) -> Tensor:
        return conditional_drifts(space, time, x0, x1, 0 * x1, gamma=gamma)[0]

    w = tangent_noise(space, x, generator=seed(3))
    near, far = (log_density(space.exp(x, k * h * w)) - log_density(space.exp(x, -k * h * w)) for k in (1, 2))
    slope = (8 * near - far) / (12 * h)
    torch.testing.assert_close(product(space, (forward - backward) / 2, w), gamma * t * slope, rtol=1e-8, atol=1e-8)
    near, far = (interpolant(t + k * h) - interpolant(t - k * h) for k in (1, 2))
    torch.testing.assert_close((forward + backward) / 2, (8 * near - far) / (12 * h), rtol=1e-8, atol=1e-8)


@every_space
def test_drifts_at_both_ends_are_finite_and_start_and_end_where_they_should(space):
    x0, x1 = near_pole(space, 10, 0), near_pole(space, 10, 1)
    for t, place in ((0.0, x0), (1.0, x1)):
        x, forward, backward = conditional_drifts(space, torch.full((10,), t, dtype=torch.float64), x0, x1, ascent(space, x1), gamma=0.5)
        torch.testing.assert_close(x, place, rtol=0, atol=1e-10)
        assert torch.isfinite(forward).all() and torch.isfinite(backward).all()
        if t == 1:
            torch.testing.assert_close((forward - backward) / 2, 0.5 * ascent(space, x1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("space", [SPACES["S2"], SPACES["H2"]], ids=["S2", "H2"])
def test_small_angles_lose_no_digits(space):
    """1 - theta cot(theta) by its series below some angle and in closed form above: they agree where both hold."""
    theta = torch.tensor([0.05, 0.09, 0.0999999, 0.1000001, 0.11], dtype=torch.float64)
    closed = ((1 - space.cosine(theta) / space.sine_ratio(theta)).abs() / theta.square())
    torch.testing.assert_close(flow_sampling._cotangent_defect(space, theta), closed, rtol=1e-12, atol=0)
    assert flow_sampling._cotangent_defect(space, torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("target", [VonMisesFisherMixture.random(3, 3, concentration=3.0, seed=1),
                                    VonMisesFisherMixture.random(3, 5, concentration=3.0, seed=1)], ids=["S2", "S4"])
@pytest.mark.parametrize("t", [0.3, 0.8])
def test_mean_of_the_targets_is_the_score_on_spheres(target, t):
    """E<score, grad phi> = -E[laplacian phi] for phi = a . x, whose Laplacian on the unit sphere is -m phi, with exact end points."""
    space, n, gamma = target.space, 40_000, 0.7
    x1, x0 = target.sample(n, generator=seed()), Uniform(space=target.space).sample(n, generator=seed(1))
    pull = -space.gradient(x1, target.u_and_grad(x1)[1])
    x, forward, backward = conditional_drifts(space, torch.full((n,), t, dtype=torch.float64), x0, x1, pull, gamma=gamma)
    score = (forward - backward) / (2 * gamma * t)
    values = (score - space.m * x)[:, 0]
    assert (values.mean(0).abs() < 4 * values.std(0) / math.sqrt(n)).all()


# Gaussians, for which the drift is known: X_t ~ N(0, s_t^2), s_t^2 = (1-t)^2 s0^2 + t^2 s1^2, v = (s_t'/s_t) x, score = -x/s_t^2.


@pytest.mark.parametrize("space", [Euclidean(n=1, d=2), MeanFree(n=3, d=2)], ids=["R2", "mean-free"])
def test_probability_flow_and_reversal_are_exact_for_gaussians(space):
    drift, prior = ExactDrift(space, s0=1.5, s1=0.6, gamma=0.8), Gaussian(space=space, std=1.5)
    x = prior.sample(10, generator=seed())
    for t in torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=torch.float64):
        velocity, pull = (rate * x for rate in drift.rates(t))
        torch.testing.assert_close(velocity_of_drift(drift, prior=prior, gamma=0.8)(t, x), velocity, rtol=1e-12, atol=1e-12)
        forward, backward = GaussianStartDrifts(drift, prior=prior, gamma=0.8)(t, x)
        torch.testing.assert_close(forward, velocity + pull, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(backward, velocity - pull, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("factor", [1.0, 0.7])
def test_density_weights_of_a_converted_drift_are_exact_trained_or_not(factor):
    space = MeanFree(n=3, d=2)
    drift, prior = ExactDrift(space, s0=1.5, s1=0.6, gamma=0.8, factor=factor), Gaussian(space=space, std=1.5)
    flow = Flow(prior=prior, field=velocity_of_drift(drift, prior=prior, gamma=0.8), grid=Grid(steps=32), origin=ORIGIN)
    target = GaussianOracle(space=space, std=0.6, offset=0.3)
    weighted = weigh(flow.sample(4000, generator=seed()), target)
    assert weighted.proposal.density is Density.EXACT
    estimate = log_z(weighted)
    assert abs(estimate.value - target.log_z) < 4 * estimate.stderr + 1e-9
    assert ess(weighted).value > 0.995 if factor == 1 else 0.1 < ess(weighted).value < 0.9


def test_path_weights_of_the_exact_drift_become_constant_as_steps_shrink():
    space = Euclidean(n=1, d=2)
    drift, prior = ExactDrift(space, s0=1.0, s1=0.6, gamma=0.5), Gaussian(space=space)
    target, values = GaussianOracle(space=space, std=0.6), []
    for steps in (10, 40, 160):
        kernels = GeodesicKernels(space=space, drifts=GaussianStartDrifts(drift, prior=prior, gamma=0.5), grid=walk_grid(0.5, stops(steps)))
        weighted = weigh(PathSampler(start=prior, kernels=kernels, origin=ORIGIN).sample(4000, generator=seed()), target)
        values.append(weighted.log_w.var().item())
    assert values[1] < values[0] / 2 and values[2] < values[1] / 2 and values[2] < 0.05


@pytest.mark.parametrize("t", [0.0, 0.4, 0.9])
def test_regression_s_minimiser_is_the_known_drift_of_a_gaussian(t):
    """On the line E[value | X_t] is linear in X_t: least squares finds the slopes of f and b."""
    space, n = Euclidean(n=1, d=1), 100_000
    target = GaussianOracle(space=space, std=0.6)
    exact = ExactDrift(space, s0=1.5, s1=0.6, gamma=0.8)
    x0, x1 = Gaussian(space=space, std=1.5).sample(n, generator=seed()), target.sample(n, generator=seed(1))
    x, forward, backward = conditional_drifts(space, torch.full((n,), t, dtype=torch.float64), x0, x1, -x1 / 0.36, gamma=0.8)
    v, pull = exact.rates(torch.tensor(t, dtype=torch.float64))
    for value, slope in ((forward, v + pull), (backward, v - pull)):
        influence = (x * (value - slope * x)).flatten() / x.square().mean()
        assert abs(influence.mean().item()) < 4 * influence.std().item() / math.sqrt(n)
