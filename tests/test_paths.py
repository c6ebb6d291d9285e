"""Noise schedules: rates, ends, inverses and the moments of Brownian bridges; fields in other coordinates."""

import math

import pytest
import torch
from exact_diffusions import control, score
from simple_fields import randomise

from bgwork.fields.affine import Affine
from bgwork.fields.mlp import MLP
from bgwork.fields.multihop import MultiHop, MultiHopConfig
from bgwork.fields.preconditioning import ControlPreconditioning, ScorePreconditioning
from bgwork.fields.probability_flow import velocity_of_control, velocity_of_score
from bgwork.paths import GeometricBrownian, GeometricNoise, LinearInterpolant, VariancePreserving, stops
from bgwork.spaces import Euclidean, MeanFree

TIMES = torch.linspace(0.02, 0.98, 7, dtype=torch.float64)
BROWNIAN = GeometricBrownian(std=2.0, ratio=0.05)


@pytest.mark.parametrize("path", [LinearInterpolant(), VariancePreserving(), GeometricNoise(ratio=0.01)], ids=str)
def test_rates_are_derivatives_and_the_prior_comes_first(path):
    before, now, after = (path.coefficients(TIMES + h) for h in (-1e-5, 0, 1e-5))
    assert torch.allclose((after.signal - before.signal) / 2e-5, now.signal_rate, atol=1e-8)
    assert torch.allclose((after.noise - before.noise) / 2e-5, now.noise_rate, atol=1e-8)
    x0, x1 = torch.randn(2, 7, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, v = path.point_and_velocity(TIMES, x0, x1)
    later, _ = path.point_and_velocity(TIMES + 1e-6, x0, x1)
    assert torch.allclose((later - x) / 1e-6, v, atol=1e-4)
    assert path.coefficients(torch.tensor(0.0)).noise == 1
    assert abs(path.coefficients(torch.tensor(1.0)).signal - 1) < 1e-7


def test_brownian_variance_is_the_integral_of_a_geometric_sigma():
    fine = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    nu = BROWNIAN.variance(fine)
    sigma = (nu.diff() / fine.diff()).sqrt()
    slopes = sigma.log().diff() / fine.diff()[:-1]
    assert torch.allclose(slopes, torch.full_like(slopes, math.log(BROWNIAN.ratio)), rtol=1e-3)
    assert nu[0] == 0 and abs(nu[-1] - 4) < 1e-12
    assert torch.allclose(BROWNIAN.time(BROWNIAN.variance(TIMES) / 4), TIMES, atol=1e-12)


def test_bridges_have_the_moments_of_conditioned_brownian_motion():
    """Against walks: B_t and B_1 drawn forwards, regressed on each other."""
    n, generator = 200_000, torch.Generator().manual_seed(1)
    t = torch.full((n,), 0.3, dtype=torch.float64)
    nu = BROWNIAN.variance(torch.tensor([0.3, 1.0], dtype=torch.float64))
    steps = torch.randn(2, n, generator=generator, dtype=torch.float64) * torch.stack([nu[0], nu[1] - nu[0]]).sqrt()[:, None]
    here, end = steps[0], steps.sum(0)
    noise = torch.randn(n, 1, 1, generator=generator, dtype=torch.float64)
    bridged = BROWNIAN.bridge(t, end[:, None, None], noise).flatten()
    for f in (lambda a: a * end, lambda a: a * a, lambda a: a * a * end * end):
        difference = f(bridged) - f(here)
        assert abs(difference.mean()) < 4 * difference.std() / n**0.5
    x1 = torch.ones(1, 1, 1, dtype=torch.float64)
    assert torch.allclose(BROWNIAN.bridge(torch.ones(1, dtype=torch.float64), x1, x1), x1)
    assert torch.equal(BROWNIAN.bridge(torch.zeros(1, dtype=torch.float64), x1, x1), 0 * x1)


def wrappers(space):
    noise = GeometricNoise(ratio=0.01)
    return {
        "score": lambda inner: Affine(inner, space, ScorePreconditioning(path=noise, prior_std=5.0, spread=0.7)),
        "control": lambda inner: Affine(inner, space, ControlPreconditioning(brownian=BROWNIAN, spread=0.7, curvature=2.0)),
        "flow of score": lambda inner: velocity_of_score(inner, space, noise, prior_std=5.0),
        "flow of control": lambda inner: velocity_of_control(inner, space, BROWNIAN)}


@pytest.mark.parametrize("name", ["score", "control", "flow of score", "flow of control"])
@pytest.mark.parametrize("space", [Euclidean(n=1, d=2), MeanFree(n=4, d=2)], ids=str)
def test_jacobians_of_wrapped_fields_are_those_of_autograd(name, space):
    small = MultiHopConfig(hidden=8, message=8, vectors=4, node_hidden=8)
    inner = randomise(MLP(1, 2, hidden=8, depth=2) if space.n == 1 else MultiHop(4, 2, small))
    field = wrappers(space)[name](inner)
    x = space.project(torch.randn(3, space.n, space.d, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    for t in (torch.tensor(0.4, dtype=torch.float64), TIMES[:3]):
        v, jacobian = field.value_and_jacobian(t, x)
        columns = torch.autograd.functional.jacobian(lambda y, t=t: field(t, y).sum(0), x)
        assert torch.allclose(v, field(t, x), atol=1e-12)
        assert torch.allclose(jacobian, columns.permute(2, 0, 1, 3, 4).flatten(3).flatten(1, 2), atol=1e-10)
        assert torch.allclose(field.value_and_divergence(t, x)[1], jacobian.diagonal(dim1=1, dim2=2).sum(1), atol=1e-10)


def test_an_untrained_preconditioned_network_solves_a_gaussian_target():
    """The inner network is zero at the start; the linear part is then the answer for N(0, spread^2)."""
    space, noise = Euclidean(n=1, d=2), GeometricNoise(ratio=0.01)
    x = torch.randn(7, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inner = MLP(1, 2, hidden=8, depth=2).double()
    found = Affine(inner, space, ScorePreconditioning(path=noise, prior_std=5.0, spread=0.7))(TIMES, x)
    assert torch.allclose(found, score(noise, prior_std=5.0, target_std=0.7)(TIMES)[:, None, None] * x)
    found = Affine(inner, space, ControlPreconditioning(brownian=BROWNIAN, spread=0.7, curvature=2.0))(TIMES, x)
    assert torch.allclose(found, control(BROWNIAN, target_std=0.7)(TIMES)[:, None, None] * x)


def test_the_networks_input_keeps_the_targets_scale():
    g = BROWNIAN.variance(TIMES) / 4
    control_scale = ControlPreconditioning(brownian=BROWNIAN, spread=0.7, curvature=2.0)(TIMES).scale
    score_scale = ScorePreconditioning(path=GeometricNoise(ratio=0.01), prior_std=5.0, spread=0.7)(TIMES).scale
    assert (control_scale * (0.49 * g**2 + 4 * g * (1 - g)).sqrt() / 0.7 - 1).abs().max() < 0.02
    assert (score_scale * (0.49 + 25 * 1e-4**TIMES).sqrt() / 0.7 - 1).abs().max() < 1e-12


def test_stops_rise_from_prior_to_data():
    assert stops(4).tolist() == [0, 0.25, 0.5, 0.75, 1]
    late = stops(10, power=2.0)
    assert late[0] == 0 and late[-1] == 1 and (late.diff().diff() < 0).all()
    with pytest.raises(ValueError, match="steps"):
        stops(0)
    with pytest.raises(ValueError, match="ratio"):
        GeometricNoise(ratio=1.0)
    with pytest.raises(ValueError, match="ratio"):
        GeometricBrownian(std=1.0, ratio=0.0)
