"""The executed map: its density against brute force and closed forms, and its work (its certificate: test_certificate.py)."""

import math

import pytest
import torch
from flows import FIELDS, LINE, PLANE, A, flow, made, seed
from oracles import GaussianOracle
from simple_fields import Linear, exploding, randomise

from bgwork.fields.mlp import MLP
from bgwork.priors import Gaussian
from bgwork.records import Density, Origin
from bgwork.samplers.flow import Flow
from bgwork.samplers.integrators import TABLEAUS, Grid, step, step_with_divergence, step_with_jacobian
from bgwork.samplers.ode import ContinuousFlow

every_integrator = pytest.mark.parametrize("integrator", TABLEAUS)


def whole_map(sampler, z):
    """T(z) for one configuration as a function that autograd sees through, all steps at once."""
    x = z[None]
    for t, h in sampler.grid.intervals:
        x = step(sampler.field, sampler.grid.tableau, t, h, x)
    return x[0]


@every_integrator
@pytest.mark.parametrize("name", FIELDS)
def test_log_q_is_the_determinant_of_the_whole_map(name, integrator):
    sampler = made(name, integrator=integrator, steps=3)
    proposal = sampler.sample(4, generator=seed())
    z = sampler.prior.sample(4, generator=seed())
    for k in range(4):
        jacobian = torch.autograd.functional.jacobian(lambda y: whole_map(sampler, y), z[k]).reshape(2 * [z[k].numel()])
        sign, log_det = torch.linalg.slogdet(jacobian)
        assert abs(log_det) > 1e-3
        assert proposal.sign[k] == sign
        assert proposal.log_q[k] == pytest.approx((sampler.prior.log_prob(z[k : k + 1]) - log_det).item(), abs=1e-10)
        torch.testing.assert_close(proposal.x[k], whole_map(sampler, z[k]), rtol=0, atol=1e-12)


def test_full_determinant_is_that_of_the_mean_free_subspace():
    sampler = made("egnn")
    z = sampler.prior.sample(1, generator=seed())
    jacobian = torch.autograd.functional.jacobian(lambda y: whole_map(sampler, y), z[0]).reshape(8, 8)
    helmert = torch.linalg.svd(torch.eye(4, dtype=torch.float64) - 0.25)[0][:, :3].contiguous()
    basis = torch.kron(helmert, torch.eye(2, dtype=torch.float64))  # orthonormal, 8 x 6
    inside = torch.linalg.slogdet(basis.T @ jacobian @ basis)[1]
    assert sampler.push(z).log_det.item() == pytest.approx(inside.item(), abs=1e-12)


@pytest.mark.parametrize("integrator,order", [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_linear_field_in_closed_form(integrator, order):
    steps, std = 3, 1.7
    one = sum(torch.linalg.matrix_power(A / steps, k) / math.factorial(k) for k in range(order + 1))
    matrix = torch.linalg.matrix_power(one, steps)
    proposal = flow(PLANE, Linear(A), integrator=integrator, steps=steps, std=std).sample(50, generator=seed())
    exact = torch.distributions.MultivariateNormal(torch.zeros(2).double(), std**2 * matrix @ matrix.T)
    torch.testing.assert_close(proposal.log_q, exact.log_prob(proposal.x[:, 0]), rtol=0, atol=1e-12)
    assert proposal.certificate.smallest_singular == pytest.approx(torch.linalg.svdvals(one)[-1].item(), abs=1e-12)


@every_integrator
def test_order_of_convergence(integrator):
    sampler = made("mlp")
    z = 2 * sampler.prior.sample(16, generator=seed())

    @torch.no_grad()
    def end(steps, which):
        x, integral = z, 0.0
        for t, h in Grid(integrator=which, steps=steps).intervals:
            x, increment = step_with_divergence(sampler.field, TABLEAUS[which], t, h, x)
            integral = integral + increment
        return torch.cat([x.flatten(), integral])

    truth = end(256, "rk4")
    ratio = (end(32, integrator) - truth).norm() / (end(64, integrator) - truth).norm()
    assert math.log2(ratio) == pytest.approx(TABLEAUS[integrator].order, abs=0.3)


@every_integrator
def test_the_three_kinds_of_step_agree(integrator):
    sampler = made("egnn")
    x = sampler.prior.sample(3, generator=seed())
    ends = [kind(sampler.field, TABLEAUS[integrator], 0.2, 0.3, x) for kind in (step, step_with_divergence, step_with_jacobian)]
    torch.testing.assert_close(ends[0], ends[1][0], rtol=0, atol=1e-13)
    torch.testing.assert_close(ends[0], ends[2][0], rtol=0, atol=1e-13)


def test_unequal_steps_and_doubling():
    times = (0.0, 0.5, 0.8, 1.0)
    grid = Grid(integrator="euler", steps=3, times=times)
    assert [t for t, _ in grid.intervals] == [0.0, 0.5, 0.8]
    assert grid.reversed[0] == (pytest.approx(1.0), pytest.approx(-0.2))
    assert [t for t, _ in grid.doubled().intervals] == pytest.approx([0.0, 0.25, 0.5, 0.65, 0.8, 0.9])
    assert Grid(integrator="rk4", steps=5).evaluations == 20


def test_density_integrates_to_one_over_the_plane():
    sampler = made("mlp", steps=2, batch=4096)
    axis = torch.linspace(-9, 9, 73, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)[:, None]
    q = sampler.log_prob(grid).exp()
    assert q.sum().item() * 0.25**2 == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", FIELDS)
def test_log_prob_of_own_samples_is_their_log_q(name):
    sampler = made(name)
    proposal = sampler.sample(8, generator=seed())
    inversion = sampler.invert(proposal.x)
    assert proposal.density is Density.EXACT and inversion.converged.all()
    torch.testing.assert_close(inversion.log_prob, proposal.log_q, rtol=0, atol=1e-9)
    torch.testing.assert_close(inversion.z, sampler.prior.sample(8, generator=seed()), rtol=0, atol=1e-9)
    assert inversion.error.max() < 1e-9 and inversion.iterations.min() >= 4


def test_a_float32_network_keeps_the_density_to_its_round_off():
    exact = made("two hops")
    single = made("two hops")
    single.field.float()
    a, b = exact.sample(32, generator=seed()), single.sample(32, generator=seed())
    assert b.x.dtype == b.log_q.dtype == torch.float64 and b.density is Density.EXACT
    torch.testing.assert_close(a.log_q, b.log_q, rtol=0, atol=1e-4)
    torch.testing.assert_close(single.log_prob(b.x), b.log_q, rtol=0, atol=1e-4)


def test_log_q_is_invariant_and_log_prob_independent_of_batch_mates():
    sampler = made("two hops", steps=2)
    x = sampler.sample(6, generator=seed()).x
    log_q = sampler.log_prob(x)
    rotation = torch.linalg.qr(torch.randn(2, 2, generator=seed(1), dtype=torch.float64))[0]
    permuted = x[:, torch.tensor([2, 0, 3, 1])]
    for moved, expected in ((x @ rotation.T, log_q), (permuted, log_q), (x.flip(0), log_q.flip(0)), (x[:1], log_q[:1])):
        torch.testing.assert_close(sampler.log_prob(moved), expected, rtol=0, atol=1e-9)


def test_no_bias_at_few_steps_where_the_divergence_integral_has_one():
    target = GaussianOracle(space=PLANE)
    errors = {}
    for kind in (Flow, ContinuousFlow):
        field = Linear(torch.diag(torch.tensor([-1.5, 0.9], dtype=torch.float64)))
        sampler = kind(prior=Gaussian(space=PLANE, std=4.0), field=field, origin=Origin(method="flow", system="test"), grid=Grid(steps=2))
        proposal = sampler.sample(20_000, generator=seed())
        w = torch.exp(-target.u(proposal.x) - proposal.log_q - target.log_z)
        errors[kind] = (w.mean() - 1).item() / (w.std().item() / math.sqrt(len(w)))
    assert abs(errors[Flow]) < 4 < abs(errors[ContinuousFlow])


def test_lost_trajectories_are_kept_and_counted():
    proposal = flow(LINE, exploding()).sample(200, generator=seed())
    lost = sampler_prior_draws(200) >= 1.5
    assert len(proposal) == 200 and 0 < lost.sum() < 200
    assert torch.equal(torch.isnan(proposal.x[:, 0, 0]), lost) and torch.equal(torch.isnan(proposal.log_q), lost)
    assert proposal.certificate.n_negative == lost.sum() and proposal.density is Density.UNCERTIFIED
    assert proposal.certificate.n_round_trip_failed == lost[:64].sum()


def sampler_prior_draws(n):
    return Gaussian(space=LINE).sample(n, generator=seed())[:, 0, 0]


def test_seconds_are_those_of_sampling(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    sampler = made("mlp", on_batch=lambda *_: clock.__setitem__(0, clock[0] + 1))
    certify = Flow._certify
    monkeypatch.setattr(Flow, "_certify", lambda *parts: (clock.__setitem__(0, 100.0), certify(*parts))[1])
    assert sampler.sample(10, generator=seed()).cost.seconds == 1


def test_evaluations_are_counted():
    for held_out in (None, torch.zeros(7, 1, 2).double()):
        proposal = made("mlp", round_trip=held_out).sample(10, generator=seed())
        trip = made("mlp").invert(proposal.x if held_out is None else held_out).cost
        assert proposal.cost.network == proposal.cost.jacobian == 10 * 8 and proposal.cost.seconds > 0
        assert proposal.note.endswith(f"at {trip.network} network evaluations and {trip.jacobian} Jacobians beyond sampling's")
    inversion = made("mlp").invert(torch.zeros(3, 1, 2).double())
    newton = 2 * int(inversion.iterations.sum())
    assert inversion.cost.jacobian == newton and inversion.cost.network == newton + 3 * 8 + 3 * 8


@pytest.mark.parametrize("options,message", [
    ({"integrator": "leapfrog"}, "unknown integrator 'leapfrog'; choose one of euler, midpoint, heun, rk4"),
    ({"steps": 0}, "steps must be a positive integer, got 0"),
    ({"steps": 2.5}, "steps must be a positive integer"),
    ({"steps": 2, "times": (0.0, 1.0)}, "2 steps need 3"),
    ({"steps": 2, "times": (0.0, 0.7, 0.7)}, "increase from 0 to 1"),
])
def test_impossible_grids_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Grid(**options)


def test_numbers_do_not_depend_on_the_number_of_threads():
    field = randomise(MLP(1, 2, hidden=8, depth=2))
    flow = Flow(prior=Gaussian(space=PLANE), field=field, origin=Origin(method="flow", system="plane"), batch=3)
    before = torch.get_num_threads()
    try:
        drawn = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            drawn.append(flow.sample(10, generator=torch.Generator().manual_seed(0)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(drawn[0].x, drawn[1].x) and torch.equal(drawn[0].log_q, drawn[1].log_q)
