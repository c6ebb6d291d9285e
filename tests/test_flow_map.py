"""Flow maps: their laws, warm start, exact density of the executed map, and what happens where they fold."""

import itertools
import math

import pytest
import torch
from flow_maps import NETS, Breathing, Steady, random_average
from oracles import GaussianOracle
from simple_fields import folding, randomise, squashing

from bgwork.fields.mlp import MLP
from bgwork.fields.two_times import AverageVelocity, of_two_times, start_from
from bgwork.priors import Gaussian
from bgwork.records import Density, Origin
from bgwork.samplers.flow import Flow
from bgwork.samplers.flow_map import FlowMapSampler, even_times
from bgwork.samplers.integrators import Grid
from bgwork.spaces import Euclidean, MeanFree

LINE, PLANE, DW4 = Euclidean(n=1, d=1), Euclidean(n=1, d=2), MeanFree(n=4, d=2)
ORIGIN = Origin(method="flow map", system="test")
every_net = pytest.mark.parametrize("name", NETS)


def sampler(space, average, *, steps=2, std=1.0, **options):
    return FlowMapSampler(prior=Gaussian(space=space, std=std), average=average, origin=ORIGIN, times=even_times(steps), **options)


def made(name, **options):
    return sampler(PLANE if name == "mlp" else DW4, random_average(name), **options)


def seed(value=0):
    return torch.Generator().manual_seed(value)


def points(name, n=5):
    return made(name).prior.sample(n, generator=seed())


@every_net
def test_no_time_no_move(name):
    x, t = points(name), torch.linspace(0, 1, 5, dtype=torch.float64)
    assert torch.equal(random_average(name).move(t, t, x), x)
    assert (random_average(name).move(t, 1 - t, x) - x).abs().max() > 1e-3


@every_net
def test_both_times_matter_and_scalars_are_batches(name):
    U, x = random_average(name), points(name)
    t, s = torch.tensor(0.2, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    torch.testing.assert_close(U(t, s, x), U(t.expand(5), s.expand(5), x), rtol=0, atol=1e-12)
    assert (U(t, s, x) - U(t, s + 0.1, x)).abs().max() > 1e-5 < (U(t, s, x) - U(t + 0.1, s + 0.1, x)).abs().max()


@every_net
def test_jacobian_of_a_step(name):
    U, x = random_average(name), points(name, 3)
    y, jacobian = U.move_with_jacobian(0.7, 0.2, x)
    torch.testing.assert_close(y, U.move(0.7, 0.2, x), rtol=0, atol=1e-12)
    for k in range(3):
        brute = torch.autograd.functional.jacobian(lambda z: U.move(0.7, 0.2, z[None])[0], x[k]).reshape(jacobian[k].shape)
        torch.testing.assert_close(jacobian[k], brute, rtol=0, atol=1e-10)


@every_net
def test_a_student_starts_as_its_teacher(name):
    teacher, U, x = randomise(NETS[name](1), seed=3), random_average(name), points(name)
    start_from(U, teacher)
    t, s = torch.linspace(0, 1, 5, dtype=torch.float64), torch.rand(5, generator=seed(), dtype=torch.float64)
    torch.testing.assert_close(U(t, s, x), teacher(t, x), rtol=0, atol=1e-12)
    torch.testing.assert_close(U.instantaneous(t, x), teacher(t, x), rtol=0, atol=1e-12)
    for mine, theirs in zip(U.instantaneous.value_and_divergence(t, x), teacher.value_and_divergence(t, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


@every_net
def test_a_field_of_two_times_is_of_the_same_kind_and_size(name):
    single = NETS[name](1)
    wide, built, x = of_two_times(single), NETS[name](2), points(name).float()
    shapes = {key: value.shape for key, value in built.named_parameters()}
    assert {key: value.shape for key, value in wide.named_parameters()} == shapes
    randomise(wide).float()
    assert (wide(torch.tensor([0.3, 0.1]), x) - wide(torch.tensor([0.3, 0.6]), x)).abs().max() > 1e-4
    assert single(torch.tensor(0.3), x).abs().max() == 0  # the original is as it was
    with pytest.raises(ValueError, match="Linear cannot be made to take two times"):
        of_two_times(torch.nn.Linear(2, 2))


def test_a_student_of_another_kind_or_size_is_refused():
    with pytest.raises(ValueError, match="of its teacher's kind, got MLP for EGNN"):
        start_from(AverageVelocity(NETS["mlp"](2)), NETS["egnn"](1))
    wider = type(NETS["mlp"](1))(1, 2, hidden=17, depth=3)
    with pytest.raises(ValueError, match=r"first.weight is \(17, 11\), the student's \(16, 20\)"):
        start_from(AverageVelocity(NETS["mlp"](2)), wider)


def test_a_student_with_waves_starts_from_its_teacher_too():
    teacher = randomise(MLP(1, 2, hidden=8, depth=2, waves=3))
    U = AverageVelocity(randomise(of_two_times(teacher), seed=1))
    start_from(U, teacher)
    x, t = torch.randn(5, 1, 2, generator=seed(), dtype=torch.float64), torch.rand(5, generator=seed(1), dtype=torch.float64)
    torch.testing.assert_close(U(t, torch.rand(5, generator=seed(2), dtype=torch.float64), x), teacher(t, x), rtol=0, atol=1e-12)


def test_a_student_at_its_start_executes_its_teachers_euler_steps():
    teacher, U = randomise(NETS["two hops"](1)), random_average("two hops")
    start_from(U, teacher)
    flow = Flow(prior=Gaussian(space=DW4), field=teacher, origin=ORIGIN, grid=Grid(integrator="euler", steps=3))
    ours, theirs = (s.sample(6, generator=seed()) for s in (sampler(DW4, U, steps=3), flow))
    torch.testing.assert_close(ours.x, theirs.x, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.log_q, theirs.log_q, rtol=0, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_an_exact_map_has_the_targets_density_at_any_number_of_steps(steps):
    target = GaussianOracle(space=DW4, std=0.4)
    proposal = sampler(DW4, AverageVelocity(Breathing()), steps=steps).sample(50, generator=seed())
    torch.testing.assert_close(proposal.log_q, target.log_prob(proposal.x), rtol=0, atol=1e-10)
    assert proposal.density is Density.EXACT and f"flow map with {steps} steps" in proposal.note
    assert proposal.cost.network == proposal.cost.jacobian == 50 * steps


def test_an_exact_map_obeys_the_laws_of_a_flow():
    U, x = AverageVelocity(Breathing()), GaussianOracle(space=DW4).sample(6, generator=seed())
    for r, s, t in itertools.permutations((0.1, 0.45, 1.0)):
        torch.testing.assert_close(U.move(s, t, U.move(r, s, x)), U.move(r, t, x), rtol=0, atol=1e-12)
        torch.testing.assert_close(U.move(s, r, U.move(r, s, x)), x, rtol=0, atol=1e-12)


@every_net
@pytest.mark.parametrize("steps", [1, 3])
def test_log_q_is_the_determinant_of_the_whole_map(name, steps):
    maps = made(name, steps=steps)
    proposal, z = maps.sample(3, generator=seed()), maps.prior.sample(3, generator=seed())

    def whole(y):
        for t, s in itertools.pairwise(maps.times):
            y = y + (s - t) * maps.average(*torch.tensor([t, s], dtype=torch.float64), y)
        return y

    for k in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda y: whole(y[None])[0], z[k]).reshape(2 * [z[k].numel()])
        sign, log_det = torch.linalg.slogdet(jacobian)
        assert proposal.sign[k] == sign and abs(log_det) > 1e-3
        assert proposal.log_q[k] == pytest.approx((maps.prior.log_prob(z[k : k + 1]) - log_det).item(), abs=1e-10)


@every_net
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_weights_are_proper(name, steps):
    maps = made(name, steps=steps, std=1.2, batch=4096)
    target = GaussianOracle(space=maps.space, offset=1.3)
    proposal = maps.sample(2000, generator=seed(1))
    assert proposal.density is Density.EXACT
    w = torch.exp(-target.u(proposal.x) - proposal.log_q - target.log_z)
    assert w.std() > 0.1
    for f, truth in ((torch.ones_like(w), 1.0), (proposal.x.square().sum((1, 2)), target.mean_square)):
        assert abs((w * f).mean() - truth) < 4 * (w * f).std() / math.sqrt(len(w))


@every_net
def test_log_prob_of_own_samples_is_their_log_q(name):
    maps = made(name)
    proposal = maps.sample(8, generator=seed())
    inversion = maps.invert(proposal.x)
    assert inversion.converged.all()
    torch.testing.assert_close(inversion.log_prob, proposal.log_q, rtol=0, atol=1e-9)
    torch.testing.assert_close(inversion.z, maps.prior.sample(8, generator=seed()), rtol=0, atol=1e-9)
    assert inversion.cost.network == inversion.cost.jacobian + 2 * 2 * 8 == int(inversion.iterations.sum()) + 32


def test_density_integrates_to_one_over_the_plane():
    maps = made("mlp", batch=4096)
    axis = torch.linspace(-9, 9, 73, dtype=torch.float64)
    q = maps.log_prob(torch.cartesian_prod(axis, axis)[:, None]).exp()
    assert q.sum().item() * 0.25**2 == pytest.approx(1, abs=1e-6)


def test_a_folding_map_is_signed():
    target = GaussianOracle(space=LINE)
    for steps, label in ((1, Density.SIGNED), (8, Density.EXACT)):
        proposal = sampler(LINE, AverageVelocity(Steady(folding())), steps=steps, std=2.0, batch=4096).sample(5_000, generator=seed())
        w = torch.exp(-target.u(proposal.x) - proposal.log_q - target.log_z)
        biased = abs(w.mean() - 1) > 10 * w.std() / math.sqrt(len(w))
        signed = proposal.sign * w
        assert proposal.density is label and biased == (steps == 1) == (proposal.certificate.n_negative > 250)
        assert abs(signed.mean() - 1) < 4 * signed.std() / math.sqrt(len(w))


def test_targets_outside_the_image_lose_the_label_without_any_negative_determinant():
    held_out = torch.tensor([0.5, 2.0]).double().view(-1, 1, 1)
    proposal = sampler(LINE, AverageVelocity(Steady(squashing())), steps=1, round_trip=held_out).sample(10, generator=seed())
    assert proposal.density is Density.UNCERTIFIED
    assert (proposal.certificate.n_negative, proposal.certificate.n_round_trip_failed) == (0, 1)


@pytest.mark.parametrize("times", [(0.0,), (0.0, 0.5), (0.1, 1.0), (0.0, 0.7, 0.7, 1.0)])
def test_impossible_times_are_refused(times):
    with pytest.raises(ValueError, match="increase from 0 to 1"):
        FlowMapSampler(prior=Gaussian(space=PLANE), average=random_average("mlp"), origin=ORIGIN, times=times)
    with pytest.raises(ValueError, match="steps must be a positive integer, got 0"):
        even_times(0)


def test_a_network_for_another_space_is_refused():
    with pytest.raises(ValueError, match="moves 4 particles"):
        sampler(PLANE, random_average("egnn")).sample(2, generator=seed())
