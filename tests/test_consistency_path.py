"""Path weights: proper for any network and any backward kernels, tuned on paths of their own and then frozen."""

import math
from dataclasses import replace

import pytest
import torch
from flow_maps import Breathing, random_average
from oracles import GaussianOracle, LineOracle

from bgwork.fields.two_times import AverageVelocity
from bgwork.priors import Gaussian
from bgwork.records import Density, Origin
from bgwork.reweighting import ess, weigh
from bgwork.samplers.consistency_path import JumpKernels, noising_std, noising_table, student_table
from bgwork.samplers.flow_map import even_times
from bgwork.samplers.jump_tuning import disagreement, energy, log_normal, regressed, tuned_to_data, tuned_to_energy, walk, walk_back
from bgwork.samplers.sde import PathSampler
from bgwork.spaces import Euclidean, MeanFree

LINE, PLANE, DW4 = Euclidean(n=1, d=1), Euclidean(n=1, d=2), MeanFree(n=4, d=2)
SPACES = {"mlp": PLANE, "egnn": DW4, "two hops": DW4}
KINDS = {"noising": noising_table, "student": student_table}
every_kind = pytest.mark.parametrize("kind", KINDS)


def seed(value=0):
    return torch.Generator().manual_seed(value)


def sampler(space, average, kind, *, steps, std=1.0, **options):
    table = KINDS[kind](even_times(steps), prior_std=std, **options)
    return PathSampler(start=Gaussian(space=space, std=std), kernels=JumpKernels(space=space, average=average, table=table),
                       origin=Origin(method="consistency path", system="test"))


def breathing(kind, *, steps=4, **options):
    return sampler(DW4, AverageVelocity(Breathing()), kind, steps=steps, **options)


def changed(paths, **shapes):
    """The same paths with other kernels."""
    return replace(paths, kernels=replace(paths.kernels, table=replace(paths.kernels.table, **shapes)))


def fitted(paths, target, **options):
    return replace(paths, kernels=tuned_to_energy(paths.kernels, paths.start, target, **options))


def check_proper(paths, target, *, n=2000):
    """Z and <|x|^2> within four standard errors; the samples' own spread of weights."""
    proposal = paths.sample(n, generator=seed(1))
    w = torch.exp(-target.u(proposal.x) - proposal.log_q - target.log_z)
    for f, truth in ((torch.ones_like(w), 1.0), (proposal.x.square().sum((1, 2)), target.mean_square)):
        assert abs((w * f).mean() - truth) < 4 * (w * f).std() / math.sqrt(n)
    assert (w.std() / math.sqrt(n)) < 0.1
    return w


@every_kind
@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("steps", [1, 4])
def test_weights_are_proper_for_any_network(kind, name, steps):
    options = {"noise": 0.5} if kind == "student" else {}
    paths = sampler(SPACES[name], random_average(name, size=0.2), kind, steps=steps, std=1.2, **options)
    paths = changed(paths, log_std=torch.full((steps,), -0.4).double())
    paths = replace(paths, kernels=regressed(paths.kernels, paths.start, n=500, generator=seed(8)))
    paths = changed(paths, back_log_std=paths.kernels.table.back_log_std - 0.05)
    w = check_proper(paths, GaussianOracle(space=SPACES[name], offset=1.3))
    assert w.std() > 0.1


@every_kind
@pytest.mark.parametrize("wrong", ["scale", "width"])
def test_wrong_backward_kernels_cost_effective_samples_and_nothing_else(kind, wrong):
    target = GaussianOracle(space=DW4, std=0.4)
    paths = fitted(breathing(kind), target, seed=5, n=500, iterations=0)
    table, factor = paths.kernels.table, {"noising": 0.85, "student": 0.98}[kind]
    worse = {"scale": {"back_scale": factor * table.back_scale}, "width": {"back_log_std": table.back_log_std - 0.15}}[wrong]
    good, bad = (check_proper(each, target) for each in (paths, changed(paths, **worse)))
    assert bad.var() > 1.3 * good.var()


def test_renoising_and_plain_noising_keep_the_marginals_of_the_interpolant():
    """c(t)^2 = (1-t)^2 s^2 + t^2 data^2 is the variance of every x_t, with a jump along the exact map from c(t) to c(tau)."""
    flow = Breathing(prior=1.7)
    times = even_times(5)
    kernels = noising_table(times, prior_std=1.7, overshoot=0.7)
    c = [flow.scale(torch.tensor(t).double()).item() for t in times]
    for k, reach in enumerate(kernels.reach[:-1]):
        jumped = flow.scale(torch.tensor(reach).double()).item()
        assert kernels.scale[k].item() ** 2 * jumped**2 + math.exp(2 * kernels.log_std[k].item()) == pytest.approx(c[k + 1] ** 2)
    for k in range(5):
        back = kernels.back_scale[k].item() ** 2 * c[k + 1] ** 2 + math.exp(2 * kernels.back_log_std[k].item())
        assert back == pytest.approx(c[k] ** 2)
    assert kernels.reach == pytest.approx((0.34, 0.54, 0.74, 0.94, 1.0)) and kernels.evaluations == 5
    assert noising_std(0.0, 0.5, 2.0) == pytest.approx(2.0)  # at time 0 nothing is left of x_tau


def test_a_short_overshot_step_is_the_reverse_of_noising():
    """With the exact flow, the covariance of neighbours agrees between the forward and the noising kernels up to higher order."""
    flow, gaps = Breathing(), []
    for h in (0.08, 0.04):
        t, end, tau = 0.5, 0.5 + h, 0.5 + 2 * h
        c = {time: flow.scale(torch.tensor(time).double()).item() for time in (t, end, tau)}
        gaps.append(abs(end / tau * c[tau] / c[t] * c[t] ** 2 - t / end * c[end] ** 2))
    assert gaps[1] < gaps[0] / 3.5


@every_kind
def test_tuning_pays_and_comes_close_to_what_is_possible(kind):
    target = GaussianOracle(space=DW4, std=0.4)
    first = breathing(kind)
    stages = (first, fitted(first, target, seed=5, n=128, iterations=0), fitted(first, target, seed=5, n=128, iterations=40))
    before, regression, after = (ess(weigh(each.sample(2000, generator=seed(2)), target)).value for each in stages)
    assert before + 0.05 < after > 0.8 and regression < after + 0.01


@every_kind
def test_tuning_to_data_lowers_the_divergence_of_backward_paths_without_an_energy(kind):
    target, first = GaussianOracle(space=DW4, std=0.4), breathing(kind)
    x1 = target.sample(400, generator=seed(7))
    after = replace(first, kernels=tuned_to_data(first.kernels, first.start, x1, seed=5, n=128, iterations=60))
    assert (target.n_energy, target.n_gradient) == (0, 0)
    regression = replace(first, kernels=regressed(first.kernels, first.start, n=128, generator=seed(5)))
    gap = {name: (-target.u(x1) - each.path_log_q(x1, generator=seed(6))).mean().item() - target.log_z
           for name, each in (("first", first), ("regression", regression), ("after", after))}
    assert -0.02 < gap["after"] < min(gap["first"], gap["regression"]) and gap["after"] < 0.3
    assert ess(weigh(after.sample(2000, generator=seed(2)), target)).value > 0.7


@every_kind
def test_backward_paths_of_tuning_and_of_the_sampler_are_weighed_alike(kind):
    paths = breathing(kind, steps=3)
    paths = changed(paths, back_log_std=paths.kernels.table.back_log_std + 0.2)
    x1 = GaussianOracle(space=DW4, std=0.4).sample(5, generator=seed(1))
    ours = walk_back(paths.kernels, paths.start, x1, generator=seed(3))
    torch.testing.assert_close(ours.detach(), paths.path_log_q(x1, generator=seed(3)), rtol=0, atol=1e-9)


def test_tuned_kernels_depend_on_their_own_seed_alone():
    target, first = GaussianOracle(space=DW4, std=0.4), breathing("noising", steps=2)
    one, same, other = (fitted(first, target, seed=s, n=32, iterations=5) for s in (5, 5, 6))
    shapes = one.kernels.table.shapes
    for a, b, c in zip(shapes, same.kernels.table.shapes, other.kernels.table.shapes, strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c) and not a.requires_grad
    before = [value.clone() for value in shapes]
    x = [one.sample(4, generator=seed(s)).x for s in (1, 2, 1)]
    assert torch.equal(x[0], x[2]) and not torch.equal(x[0], x[1])
    assert all(torch.equal(a, b) for a, b in zip(before, shapes, strict=True)) and target.n_gradient == 3 * 5 * 32


@every_kind
def test_regression_recovers_the_backward_kernels_of_a_linear_map(kind):
    """Forward kernels of the exact breathing flow are linear, so x_k given x_{k+1} is known: slope and residual of two Gaussians."""
    paths, flow = breathing(kind, steps=2), Breathing()
    table = regressed(paths.kernels, paths.start, n=20_000, generator=seed(1)).table
    c = [flow.scale(torch.tensor(t).double()).item() for t in table.times]
    variance = 1.0
    for k in range(2):
        jump = flow.scale(torch.tensor(table.reach[k]).double()).item() / c[k] * table.scale[k].item()
        back = flow.scale(torch.tensor(table.back[k]).double()).item() / c[k + 1]
        after = jump**2 * variance + math.exp(2 * table.log_std[k].item())
        assert table.back_scale[k].item() * back == pytest.approx(jump * variance / after, rel=0.04)
        assert math.exp(2 * table.back_log_std[k].item()) == pytest.approx(variance - (jump * variance) ** 2 / after, rel=0.04)
        variance = after


@every_kind
def test_paths_of_tuning_and_of_sampling_are_weighed_alike(kind):
    """The differentiable walk and the sampler, on the same noise."""
    paths = breathing(kind, steps=3)
    paths = changed(paths, back_log_std=paths.kernels.table.back_log_std + 0.2)  # equal widths would hide a wrong dimension
    proposal = paths.sample(5, generator=seed(3))
    x, log_q = walk(paths.kernels, paths.start, n=5, generator=seed(3))
    torch.testing.assert_close(x.detach(), proposal.x, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_q.detach(), proposal.log_q, rtol=0, atol=1e-9)


def test_log_q_is_that_of_the_path_in_closed_form():
    """One kernel, U = 0, on the mean-free space: every density is a Gaussian of dimension (n-1)d = 6."""
    paths = sampler(DW4, random_average("two hops", size=0.0), "student", steps=1, std=1.5, noise=0.4)
    with torch.no_grad():
        for p in paths.kernels.average.parameters():
            p.zero_()
    paths = changed(paths, back_log_std=torch.tensor([math.log(0.9)]).double())
    proposal, generator = paths.sample(6, generator=seed()), seed()
    z, noise = paths.start.sample(6, generator=generator), Gaussian(space=DW4).sample(6, generator=generator)
    off = 0.6 * noise
    torch.testing.assert_close(proposal.x, z + off, rtol=0, atol=1e-12)
    exact = sum(sign * (-y.square().sum((1, 2)) / (2 * s * s) - 3 * math.log(2 * math.pi * s * s))
                for sign, y, s in ((1, z, 1.5), (1, off, 0.6), (-1, off, 0.9)))
    torch.testing.assert_close(proposal.log_q, exact, rtol=0, atol=1e-7)


def test_kernels_integrate_to_one():
    axis = torch.linspace(-8, 8, 161, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)[:, None]
    assert log_normal(points, torch.tensor(0.2).double(), PLANE).exp().sum().item() * 0.1**2 == pytest.approx(1, abs=1e-6)


@every_kind
def test_density_evaluations_and_batches(kind):
    paths = breathing(kind, steps=3)
    proposal = paths.sample(20, generator=seed())
    assert proposal.density is Density.PATH and proposal.certificate is None and proposal.sign is None
    assert proposal.cost.network == 20 * {"noising": 3, "student": 6}[kind] and proposal.cost.jacobian == 0
    assert proposal.origin.seed == 0 and proposal.x.mean(1).abs().max() < 1e-12
    in_parts = replace(paths, kernels=replace(paths.kernels, batch=7)).sample(20, generator=seed())
    torch.testing.assert_close(in_parts.x, proposal.x, rtol=0, atol=1e-12)
    torch.testing.assert_close(in_parts.log_q, proposal.log_q, rtol=0, atol=1e-9)


def test_energies_enter_tuning_with_the_targets_own_gradient():
    x = torch.tensor([0.3, -1.2]).double().view(-1, 1, 1).requires_grad_()
    target = LineOracle(lambda y: y**4)
    u = energy(target, x)
    torch.testing.assert_close(u.detach(), x.detach()[:, 0, 0] ** 4)
    torch.testing.assert_close(torch.autograd.grad(u.sum(), x)[0], 4 * x.detach() ** 3)
    assert target.n_gradient == 2
    wall = LineOracle(lambda y: torch.where(y > 0, y.square(), math.inf))
    u = energy(wall, x)
    assert u.tolist() == [pytest.approx(0.09), math.inf]
    assert torch.autograd.grad(disagreement(-u), x)[0].isfinite().all()
    assert disagreement(-u.detach()).item() == pytest.approx(math.log(2), abs=1e-12)  # one row of weight, one of none


def test_disagreement_is_a_quarter_of_the_variance_of_a_normal_log_weight():
    log_w = 0.4 * torch.randn(200_000, generator=seed(), dtype=torch.float64) + 3
    assert disagreement(log_w).item() == pytest.approx(0.4**2 / 4, rel=0.02)
    assert disagreement(torch.full((5,), -7.0)).item() == pytest.approx(0, abs=1e-6)


def test_what_cannot_be_asked_for():
    with pytest.raises(ValueError, match="overshoot must be positive"):
        noising_table(even_times(3), prior_std=1.0, overshoot=0.0)
    with pytest.raises(ValueError, match="noise must be positive, got 0"):
        student_table(even_times(3), prior_std=1.0, noise=0.0)
    kernels = noising_table(even_times(3), prior_std=1.0)
    with pytest.raises(ValueError, match="the last one keeps noise too"):
        replace(kernels, log_std=torch.tensor([0.0, 0.0, -math.inf]).double())
    with pytest.raises(ValueError, match="4 times need 3 kernels"):
        replace(kernels, log_std=kernels.log_std[:2])
    with pytest.raises(ValueError, match="no path has a finite weight"):
        disagreement(torch.full((3,), -math.inf))
