"""Objectives of flow maps: an exact map has no loss or no mean gradient, a wrong sign has one, and training on them finds the map."""

import pytest
import torch
from flow_maps import Breathing, random_average
from simple_fields import Linear

from bgwork.couplings import Independent
from bgwork.fields.mlp import MLP
from bgwork.fields.two_times import AverageVelocity
from bgwork.objectives.consistency import (
    EndTimes,
    InterpolantPairs,
    PairBatch,
    PathEnds,
    PathPairs,
    average_velocity_loss,
    consistency_loss,
    endpoint_loss,
    path_loss,
    teacher_paths,
)
from bgwork.objectives.flow_matching import FlowMatchingData
from bgwork.priors import Gaussian
from bgwork.records import Origin
from bgwork.samplers.flow import Flow
from bgwork.samplers.integrators import Grid
from bgwork.spaces import Euclidean, MeanFree

DW4, PLANE = MeanFree(n=4, d=2), Euclidean(n=1, d=2)
TRUE = Breathing()
ORIGIN = Origin(method="flow", system="test")
SPIN = Linear(torch.tensor([[0.3, -0.8], [0.5, -0.6]], dtype=torch.float64))


def seed(value=0):
    return torch.Generator().manual_seed(value)


def interpolant(batch=64, *, diagonal=0.3):
    """Pairs for the breathing flow: data N(0, 0.4^2), prior N(0, 1), independent coupling."""
    x1 = Gaussian(space=DW4, std=TRUE.data).sample(4000, generator=seed())
    points = FlowMatchingData(x1=x1, prior=Gaussian(space=DW4), coupling=Independent(), batch=batch, seed=1)
    return InterpolantPairs(points=points, ends=EndTimes(diagonal=diagonal))


def with_times_beyond(length):
    """A batch whose s is t + length, in float64."""
    drawn = interpolant()(0)
    t = 0.2 + 0.5 * drawn.t.double()
    return PairBatch(t=t, s=t + length, x=DW4.project(drawn.x.double()), velocity=drawn.velocity.double(), seconds=0.0)


@pytest.mark.parametrize("length", [0.3, -0.2, 0.0])
def test_the_identity_holds_for_an_exact_map_in_both_directions(length):
    batch, loss = with_times_beyond(length), average_velocity_loss(TRUE.velocity)
    assert loss(AverageVelocity(TRUE), batch).item() < 1e-24
    wrong = Breathing()
    wrong.factor.data.fill_(1.05)
    assert loss(AverageVelocity(wrong), batch).item() > 1e-5


@pytest.mark.parametrize("length", [0.3, -0.2])
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_consistency_holds_for_an_exact_map_up_to_the_teachers_midpoint_step(length, share):
    """The midpoint step's error in an average velocity is of second order, so the loss is of fourth."""
    long, short = (consistency_loss(TRUE.velocity, share=share)(AverageVelocity(TRUE), with_times_beyond(h)) for h in (length, length / 8))
    assert 0 < short < long / 8**3 and long < 1e-2


def test_consistency_without_stretch_is_the_teachers_velocity():
    loss = consistency_loss(TRUE.velocity, share=1.0)
    assert loss(AverageVelocity(TRUE), with_times_beyond(0.0)).item() < 1e-24


@pytest.mark.parametrize("make", [average_velocity_loss, consistency_loss])
def test_gradients_vanish_on_average_without_a_teacher(make):
    """The slope of the loss in a factor of U, over many batches: nought at 1 within four standard errors, not at 1.2."""
    options = {"share": 0.02} if make is consistency_loss else {}
    slopes = {}
    for factor in (1.0, 1.2):
        net = Breathing()
        net.factor.data.fill_(factor)
        U, loss, data = AverageVelocity(net), make(**options), interpolant(256)
        slopes[factor] = torch.stack([torch.autograd.grad(loss(U, data(k)), net.factor)[0] for k in range(40)])
    z = {factor: (g.mean() / (g.std() / len(g) ** 0.5)).item() for factor, g in slopes.items()}
    assert abs(z[1.0]) < 4 < z[1.2]


def test_targets_are_not_differentiated():
    """The gradient is that of half the loss's first factor: doubling the residual's own derivative in the target would change it."""
    net, batch = Breathing(), with_times_beyond(0.3)
    net.factor.data.fill_(1.2)
    U = AverageVelocity(net)
    grad = torch.autograd.grad(average_velocity_loss(TRUE.velocity)(U, batch), net.factor)[0]
    value, step = U(batch.t, batch.s, batch.x), 1e-6
    change = torch.func.jvp(U, (batch.t, batch.s, batch.x),
                            (torch.ones_like(batch.t), torch.zeros_like(batch.s), TRUE.velocity(batch.t, batch.x)))[1]
    target = TRUE.velocity(batch.t, batch.x) + 0.3 * change

    def frozen(factor):
        return ((value / 1.2 * factor - target) ** 2).mean()

    assert grad.item() == pytest.approx(((frozen(1.2 + step) - frozen(1.2 - step)) / (2 * step)).item(), rel=1e-6)


def test_a_power_weighs_each_sample_by_its_own_residual():
    U, batch = random_average("two hops"), with_times_beyond(0.3)
    rows = [PairBatch(t=batch.t[k : k + 1], s=batch.s[k : k + 1], x=batch.x[k : k + 1], velocity=batch.velocity[k : k + 1], seconds=0.0)
            for k in range(8)]
    squares = torch.stack([average_velocity_loss()(U, row) for row in rows]).detach()
    weighted = torch.stack([average_velocity_loss(power=0.5)(U, row) for row in rows]).detach()
    torch.testing.assert_close(weighted, squares / (squares + 1e-3).sqrt(), rtol=1e-9, atol=0)


def spinning(steps=8, **options):
    return Flow(prior=Gaussian(space=PLANE), field=SPIN, origin=ORIGIN, grid=Grid(integrator="rk4", steps=steps), **options)


def test_paths_are_the_executed_flows():
    teacher = spinning()
    paths = teacher_paths(teacher, 10, generator=seed())
    z = teacher.prior.sample(10, generator=seed())
    assert paths.x.shape == (10, 9, 1, 2) and paths.times.tolist() == [k / 8 for k in range(9)]
    torch.testing.assert_close(paths.x[:, 0], z.float())
    torch.testing.assert_close(paths.x[:, -1], teacher.forward(z).float())
    half = torch.linalg.matrix_exp(0.5 * SPIN.matrix)
    torch.testing.assert_close(paths.x[:, 4, 0], (z[:, 0] @ half.T).float(), rtol=0, atol=1e-4)


def test_pairs_of_paths_carry_the_average_velocity_and_the_times_asked_for():
    data = PathPairs(paths=teacher_paths(spinning(), 50, generator=seed()), batch=4000, seed=0, steps=(2, 4), on_grid=1.0, backward=0.25)
    batch = data(0)
    moved = torch.linalg.matrix_exp((batch.s - batch.t).double()[:, None, None] * SPIN.matrix)
    exact = (moved @ batch.x.double().mT).mT - batch.x
    torch.testing.assert_close(batch.velocity.double() * (batch.s - batch.t)[:, None, None], exact, rtol=0, atol=1e-4)
    length = (batch.s - batch.t).abs()
    assert set(length.tolist()) == {0.25, 0.5} and set((torch.minimum(batch.t, batch.s) / length % 1).tolist()) == {0.0}
    assert abs((batch.s < batch.t).float().mean().item() - 0.25) < 0.03 and abs((length == 0.5).float().mean().item() - 0.5) < 0.03
    anywhere = PathPairs(paths=data.paths, batch=4000, seed=0, on_grid=0.0, backward=0.0)(0)
    assert (anywhere.s > anywhere.t).all() and len(set(zip(anywhere.t.tolist(), anywhere.s.tolist(), strict=True))) == 36


@pytest.mark.parametrize("data", [interpolant(), PathPairs(paths=teacher_paths(spinning(), 20, generator=seed()), batch=8, seed=0)])
def test_a_step_always_draws_the_same_batch(data):
    one, again, next_one = data(3), data(3), data(4)
    for name in ("t", "s", "x", "velocity"):
        assert torch.equal(getattr(one, name), getattr(again, name)) and not torch.equal(getattr(one, name), getattr(next_one, name))
        assert getattr(one, name).dtype == torch.float32


def test_the_end_point_loss_measures_the_whole_map():
    paths = teacher_paths(spinning(), 50, generator=seed())
    batch = PathEnds(paths=paths, batch=16, seed=0)(2)
    assert torch.equal(batch.z, PathEnds(paths=paths, batch=16, seed=0)(2).z) and batch.x.dtype == torch.float32
    row = (paths.x[:, 0] == batch.z[3]).flatten(1).all(1)
    assert torch.equal(paths.x[row, -1], batch.x[3:4])
    U, x = random_average("mlp"), batch.z.double()
    for t, s in ((0.0, 0.25), (0.25, 1.0)):
        x = x + (s - t) * U(*torch.tensor([t, s], dtype=torch.float64), x)
    assert endpoint_loss((0.0, 0.25, 1.0))(U, batch).item() == pytest.approx((x - batch.x).square().mean().item(), rel=1e-9)


def test_end_times_cover_the_diagonal_and_both_directions():
    batch = interpolant(4000, diagonal=0.3)(0)
    assert abs((batch.s == batch.t).float().mean().item() - 0.3) < 0.03
    assert abs((batch.s < batch.t).float().mean().item() - 0.35) < 0.03


@pytest.mark.parametrize("kind", ["paths", "consistency", "ends"])
def test_training_on_a_known_flow_finds_its_map(kind):
    torch.manual_seed(0)
    teacher = spinning()
    data = PathPairs(paths=teacher_paths(teacher, 2000, generator=seed()), batch=128, seed=0)
    single = Linear(SPIN.matrix.float())
    if kind == "ends":
        data = PathEnds(paths=data.paths, batch=128, seed=0)
    loss = {"paths": path_loss, "ends": endpoint_loss((0.0, 0.5, 1.0)), "consistency": consistency_loss(single, share=0.5)}[kind]
    U = AverageVelocity(MLP(1, 2, hidden=32, depth=2, times=2))
    optimiser = torch.optim.Adam(U.parameters(), lr=5e-3)
    z = teacher.prior.sample(200, generator=seed(9))
    before = (U.move(0.0, 1.0, z) - teacher.forward(z)).square().mean()
    for k in range(400):
        optimiser.param_groups[0]["lr"] = 5e-3 * (1 - k / 400)
        value = loss(U, data(k))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    with torch.no_grad():
        there = U.move(0.5, 1.0, U.move(0.0, 0.5, z)) if kind == "ends" else U.move(0.0, 1.0, z)
        back = z if kind == "ends" else U.move(1.0, 0.0, teacher.forward(z))
    assert (there - teacher.forward(z)).square().mean() < 0.01 * before > (back - z).square().mean()


def test_what_cannot_be_asked_for():
    paths = teacher_paths(spinning(), 2, generator=seed())
    with pytest.raises(ValueError, match=r"8 intervals of the teacher's paths do not divide into \[3\] steps"):
        PathPairs(paths=paths, batch=4, seed=0, steps=(1, 3))
    with pytest.raises(ValueError, match="on_grid and backward must lie between 0 and 1, got 0.5 and 1.5"):
        PathPairs(paths=paths, batch=4, seed=0, on_grid=0.5, backward=1.5)
    with pytest.raises(ValueError, match="share of pairs with s = t"):
        EndTimes(diagonal=-0.1)
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\], got 0"):
        consistency_loss(share=0.0)
    with pytest.raises(ValueError, match="2 of 2 paths of the teacher diverged"):
        teacher_paths(Flow(prior=Gaussian(space=PLANE), field=Linear(torch.full((2, 2), float("nan")).double()), origin=ORIGIN), 2,
                      generator=seed())
