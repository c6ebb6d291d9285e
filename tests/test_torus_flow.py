"""Exact densities on a torus: the probability flow of a controlled Brownian motion, against wrapped normals and by quadrature."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.autograd.functional import jacobian

from bgwork.fields.probability_flow import WrappedVelocity
from bgwork.fields.torus import TorusMLP
from bgwork.generators import generator_path, load_trained
from bgwork.paths import GeometricBrownian, stops
from bgwork.priors import WrappedNormal
from bgwork.recipes import Choice
from bgwork.records import Density, Origin
from bgwork.reweighting import ess, log_z, weigh
from bgwork.samplers.integrators import Grid
from bgwork.samplers.torus import log_wrapped
from bgwork.samplers.torus_flow import TorusFlow
from bgwork.spaces import Torus
from bgwork.system import load_system

PLANE = Torus(n=1, d=2)
BROWNIAN = GeometricBrownian(std=2.5, ratio=0.1)


def velocity_of(size: float = 0.0, *, share: float = 0.05) -> WrappedVelocity:
    """Of a made-up control."""
    torch.manual_seed(0)
    control = TorusMLP(1, 2, hidden=16, depth=2)
    torch.nn.init.normal_(control.last.weight, std=size)
    return WrappedVelocity(control, PLANE, BROWNIAN, share=share)


def flow_of(size: float = 0.0, *, steps: int = 40, share: float = 0.05) -> TorusFlow:
    field = velocity_of(size, share=share)
    prior = WrappedNormal(space=PLANE, mean=torch.zeros(1, 2), std=BROWNIAN.std * field.share**0.5)
    grid = Grid(steps=steps, times=field.stops(stops(steps)))
    return TorusFlow(prior=prior, field=field, grid=grid, origin=Origin(method="flow", system="torus"), n_round_trip=32,
                     batch=1024)


def angles(n: int) -> torch.Tensor:
    return math.pi * (2 * torch.rand(n, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1)


@pytest.mark.parametrize("tau", [0.0, 0.4, 1.0])
def test_jacobian_is_the_derivative(tau):
    field, x, tau = velocity_of(0.5), angles(5), torch.tensor(tau)
    value, found = field.value_and_jacobian(tau, x)
    torch.testing.assert_close(value, field(tau, x))
    for row in range(5):
        expected = jacobian(lambda y: field(tau, y[None])[0].flatten(), x[row]).view(2, 2)
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(field(tau, x + 2 * math.pi), value)  # periodic


@pytest.mark.parametrize("variance", [0.05, 1.0, 6.0])
def test_score_is_that_of_the_wrapped_normal(variance):
    x = angles(6).requires_grad_()
    (expected,) = torch.autograd.grad(log_wrapped(PLANE, x, variance=variance).sum(), x)
    found = velocity_of()._score(x.detach(), variance)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_without_a_control_it_is_brownian_motion():
    """The flow from W(0, share nu_1) then ends in W(0, nu_1), and each of its samples has that density."""
    flow = replace(flow_of(steps=200), n_round_trip=0)  # whose certificate is for the other tests
    proposal = flow.sample(200, generator=torch.Generator().manual_seed(1))
    expected = log_wrapped(PLANE, proposal.x, variance=BROWNIAN.std**2)
    assert (proposal.log_q - expected).abs().median() < 5e-4 < 0.02 < expected.std()
    torch.testing.assert_close(proposal.log_q, expected, rtol=0, atol=2e-2)  # of draws opposite the origin, where the score turns round


def test_stops_run_from_zero_to_one():
    found = torch.tensor(velocity_of().stops(stops(12)))
    assert found[0] == 0 and found[-1] == 1 and (found.diff() > 0).all() and len(found) == 13


def test_samples_are_wrapped_and_find_their_way_back():
    flow = flow_of(0.3)
    proposal = flow.sample(60, generator=torch.Generator().manual_seed(2))
    assert proposal.density is Density.EXACT and proposal.x.abs().max() <= math.pi
    assert (flow.forward(flow.prior.sample(60, generator=torch.Generator().manual_seed(2))).abs() > math.pi).any()
    torch.testing.assert_close(flow.log_prob(proposal.x), proposal.log_q, rtol=0, atol=1e-9)
    torch.testing.assert_close(flow.log_prob(proposal.x + 2 * math.pi), proposal.log_q, rtol=0, atol=1e-9)


def test_density_integrates_to_one():
    """The trapezoidal rule, exact to all orders for smooth periodic functions: with a start that reaches all round."""
    edge = torch.arange(48, dtype=torch.float64) * (2 * math.pi / 48) - math.pi
    x = torch.cartesian_prod(edge, edge)[:, None]
    q = flow_of(0.3, steps=12, share=0.4).log_prob(x).exp()
    assert q.max() / q.min() > 1.5
    assert q.sum().item() * (2 * math.pi / 48) ** 2 == pytest.approx(1.0, abs=1e-4)


def test_a_share_that_is_none_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        velocity_of(share=1.0)


def test_the_shipped_generator_has_exact_weights():
    """Alanine dipeptide's seven torsions: the same log Z as by path weights, from far more effective samples."""
    system = load_system("ala2-torsions")
    made_by, trained = load_trained(generator_path("ala2-torsions"), system=system)
    density, path = (weigh(made_by.sampler_of(trained, Choice(integrator="wrapped", steps=steps, weights=weights)).sample(
        n, generator=torch.Generator().manual_seed(6)), system.target) for steps, weights, n in ((40, "density", 200), (None, "path", 600)))
    assert density.proposal.density is Density.EXACT
    assert abs(log_z(density).z(log_z(path))) < 4 and ess(density).value > 0.8 > ess(path).value + 0.2
