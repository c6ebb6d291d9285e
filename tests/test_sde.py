"""Path weights: proper at any number of steps with any drift, constant where the kernels are exact; and the flows of learned diffusions."""

import math
from dataclasses import replace

import pytest
import torch
from exact_diffusions import Disturbed, Scaling, control, score, velocity
from oracles import DW4_SPACE, GaussianOracle, MissingMode, double_well, gaussian_mixture
from simple_fields import randomise

from bgwork.fields.mlp import MLP
from bgwork.fields.multihop import MultiHop, MultiHopConfig
from bgwork.fields.probability_flow import control_stops, velocity_of_control, velocity_of_score
from bgwork.free_energy import forward_ess, log_z_bar
from bgwork.paths import GeometricBrownian, GeometricNoise, LinearInterpolant, VariancePreserving, stops
from bgwork.priors import Gaussian
from bgwork.records import Density, Origin
from bgwork.reweighting import ess, expectation, log_z, weigh
from bgwork.samplers.flow import Flow
from bgwork.samplers.integrators import Grid
from bgwork.samplers.kernels import FieldKernels, KernelTable, control_table, score_table, tuned, velocity_table
from bgwork.samplers.sde import GaussianKernel, PathSampler, PointPrior
from bgwork.spaces import Euclidean, MeanFree

ORIGIN = Origin(method="test", system="oracle")
TARGET_STD = 0.7
SPACES = [Euclidean(n=1, d=2), MeanFree(n=3, d=2)]
BROWNIAN = GeometricBrownian(std=2.0, ratio=0.05)
NOISE = GeometricNoise(ratio=0.01)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def made(kind, space, steps, *, network=None, target_std=TARGET_STD, spread=None):
    """A sampler of each kind, with the exact field for N(0, target_std^2), which a network may disturb."""
    times, spread = stops(steps), spread or target_std
    if kind == "control":
        start, exact = PointPrior(space=space), control(BROWNIAN, target_std=target_std)
        table = control_table(BROWNIAN, times, spread=spread)
    elif kind == "score":
        start = Gaussian(space=space, std=math.hypot(5.0, target_std))
        table, exact = score_table(NOISE, times, prior_std=5.0, spread=spread), score(NOISE, prior_std=5.0, target_std=target_std)
    else:
        path, start = {"linear": LinearInterpolant(), "preserving": VariancePreserving()}[kind], Gaussian(space=space, std=1.5)
        table = velocity_table(path, times, prior_std=1.5, spread=spread)
        exact = velocity(path, prior_std=1.5, target_std=target_std)
    field = Scaling(exact, space.n, space.d)
    field = Disturbed(field, network, share=0.1) if network else field
    return PathSampler(start=start, kernels=FieldKernels(space=space, field=field, table=table, batch=500), origin=ORIGIN)


@pytest.mark.parametrize("kind", ["linear", "preserving", "score", "control"])
@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("steps", [1, 4, 30])
def test_exact_kernels_weigh_all_samples_alike(kind, space, steps):
    oracle = GaussianOracle(space=space, std=TARGET_STD, offset=0.3)
    proposal = made(kind, space, steps).sample(50, generator=seeded())
    log_w = weigh(proposal, oracle).log_w
    assert proposal.density is Density.PATH and proposal.cost.network == 50 * steps
    assert (log_w - oracle.log_z).abs().max() < 1e-9


@pytest.mark.parametrize("kind", ["linear", "preserving", "score", "control"])
@pytest.mark.parametrize("steps", [5, 20, 100])
def test_an_untrained_drift_leaves_the_weights_proper(kind, steps):
    """The drift towards a single Gaussian and a random network, on two wells of known log Z."""
    oracle = double_well()
    network = randomise(MLP(1, 1, hidden=8, depth=2), seed=3)
    sampler = made(kind, oracle.space, steps, network=network, target_std=2.0, spread=2.0)
    weighted = weigh(sampler.sample(8000, generator=seeded(steps)), oracle)
    found, mean = log_z(weighted), expectation(weighted, lambda x: (x[:, 0, 0] > 0).double())
    assert abs(found.value - oracle.log_z) < 4 * found.stderr and found.stderr < 0.05
    assert abs(mean.value - oracle.average(lambda x: (x[:, 0, 0] > 0).double())) < 4 * mean.stderr


def test_wrong_drift_and_wrong_backward_kernels_on_the_mean_free_space():
    oracle = GaussianOracle(space=DW4_SPACE, std=TARGET_STD)
    network = randomise(MultiHop(4, 2, MultiHopConfig(hidden=8, message=8, vectors=4, node_hidden=8)), seed=1, size=0.3)
    sampler = made("linear", DW4_SPACE, 5, network=network)
    table = sampler.kernels.table
    wrong = replace(table, back=0.9 * table.back, back_std=0.9 * table.back_std)
    for kernels in (sampler.kernels, replace(sampler.kernels, table=wrong)):
        found = log_z(weigh(replace(sampler, kernels=kernels).sample(4000, generator=seeded(2)), oracle))
        assert abs(found.value - oracle.log_z) < 4 * found.stderr and found.stderr < 0.05


@pytest.mark.parametrize("kind", ["linear", "preserving", "score", "control"])
def test_paths_back_from_the_target_are_the_other_end_of_crooks_equality(kind):
    """E_pi[e^{-log w}] = 1 / Z and BAR = log Z whatever the drift; exact kernels give the same log w on every path, forward or backward."""
    oracle = double_well()
    network = randomise(MLP(1, 1, hidden=8, depth=2), seed=3)
    sampler = made(kind, oracle.space, 6, network=network, target_std=2.0, spread=2.0)
    x1 = oracle.sample(4000, generator=seeded(8))
    log_q, u = sampler.path_log_q(x1, generator=seeded(9)), oracle.u(x1)
    inverse = torch.exp(log_q + u + oracle.log_z)
    assert abs(inverse.mean() - 1) < 4 * inverse.std() / math.sqrt(4000) and inverse.std() > 0.05
    weighted = weigh(sampler.sample(4000, generator=seeded(4)), oracle)
    bar, forward = log_z_bar(weighted, log_q, u), forward_ess(weighted, log_q, u)
    assert abs(bar.value - oracle.log_z) < 4 * bar.stderr < 0.2
    assert abs(forward.value - ess(weighted).value) < 4 * math.hypot(forward.stderr, ess(weighted).stderr)
    gaussian = GaussianOracle(space=SPACES[1], std=TARGET_STD)
    y = gaussian.sample(20, generator=seeded())
    exact = -made(kind, SPACES[1], 6).path_log_q(y, generator=seeded()) - gaussian.u(y)
    assert (exact - gaussian.log_z).abs().max() < 1e-9


def test_paths_back_show_a_mode_that_no_forward_path_reaches():
    """One step that only adds noise, from the left mode alone: the weights agree with each other and are wrong by 30 %."""
    oracle, space, times = gaussian_mixture(), Euclidean(n=1, d=1), torch.tensor([0.0, 1.0]).double()
    one, nought, noise = (torch.full((1,), value).double() for value in (1.0, 0.0, 0.1))
    table = KernelTable(times=times, keep=one, gain=nought, std=noise, back=one, back_std=noise)
    field = Scaling(lambda t: 0 * t, space.n, space.d)
    sampler = PathSampler(start=MissingMode(), kernels=FieldKernels(space=space, field=field, table=table), origin=ORIGIN)
    weighted = weigh(sampler.sample(2000, generator=seeded(4)), oracle)
    x1 = oracle.sample(500, generator=seeded(8))
    forward = forward_ess(weighted, sampler.path_log_q(x1, generator=seeded(9)), oracle.u(x1))
    assert ess(weighted).value > 0.9 and forward.value < 0.01


def test_the_default_control_kernels_are_those_of_euler_maruyama():
    times = stops(7)
    table, nu = control_table(BROWNIAN, times), BROWNIAN.variance(times)
    assert torch.allclose(table.std**2, nu.diff(), rtol=1e-10) and torch.allclose(table.gain, nu.diff(), rtol=1e-10)
    table, h = score_table(NOISE, times, prior_std=5.0), (5 * NOISE.coefficients(times).noise) ** 2
    assert torch.allclose(table.std[:-1] ** 2, -h.diff()[:-1], rtol=1e-9) and torch.allclose(table.std[-1] ** 2, h[-2], rtol=1e-9)
    assert torch.allclose(table.gain[:-1], -h.diff()[:-1], rtol=1e-9)


@pytest.mark.parametrize("kind", ["linear", "score", "control"])
def test_tuned_variances_are_those_of_the_target(kind):
    """With exact means for a Gaussian the variances of maximum likelihood are known; a wrong spread is mended."""
    space = MeanFree(n=3, d=2)
    x1 = GaussianOracle(space=space, std=TARGET_STD).sample(20_000, generator=seeded(1))
    wrong = made(kind, space, 6, spread=5.0)
    found = tuned(wrong.kernels, x1, generator=seeded(2)).table.std
    exact = made(kind, space, 6).kernels.table.std
    assert ((found / exact - 1).abs() < 4 / math.sqrt(2 * 20_000 * space.dim)).all()
    assert ((wrong.kernels.table.std / exact - 1).abs() > 0.02).any()


def test_a_step_without_noise_is_refused():
    with pytest.raises(ValueError, match="last one included"):
        GaussianKernel(space=SPACES[0], x=torch.zeros(1, 1, 2), move=torch.zeros(1, 1, 2), std=0.0)
    with pytest.raises(ValueError, match="variance-exploding"):
        score_table(LinearInterpolant(), stops(4), prior_std=1.0)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_the_flow_of_an_exact_control_samples_a_gaussian(space):
    """Exactly in the limit of many steps: log q of the executed map against the target's density."""
    field = Scaling(control(BROWNIAN, target_std=TARGET_STD), space.n, space.d)
    grid = Grid(integrator="rk4", steps=40, times=control_stops(BROWNIAN, stops(40)))
    flow = Flow(prior=Gaussian(space=space, std=BROWNIAN.std), field=velocity_of_control(field, space, BROWNIAN), origin=ORIGIN, grid=grid)
    check_flow(flow, std=TARGET_STD, tolerance=2e-3)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_the_flow_of_an_exact_score_samples_a_noised_gaussian(space):
    field = Scaling(score(NOISE, prior_std=5.0, target_std=TARGET_STD), space.n, space.d)
    grid = Grid(integrator="rk4", steps=40)
    prior = Gaussian(space=space, std=math.hypot(5.0, TARGET_STD))
    flow = Flow(prior=prior, field=velocity_of_score(field, space, NOISE, prior_std=5.0), origin=ORIGIN, grid=grid)
    check_flow(flow, std=math.hypot(TARGET_STD, 0.05), tolerance=1e-3)


def check_flow(flow, *, std, tolerance):
    proposal = flow.sample(50, generator=seeded())
    assert proposal.density is Density.EXACT
    exact = GaussianOracle(space=flow.space, std=std).log_prob(proposal.x)
    assert (proposal.log_q - exact).abs().max() < tolerance
    z = flow.prior.sample(50, generator=seeded())
    assert torch.allclose(proposal.x, z * std / flow.prior.std, rtol=tolerance, atol=tolerance)


def test_the_flow_of_an_untrained_control_is_weighed_properly():
    oracle = gaussian_mixture()
    brownian = GeometricBrownian(std=6.0, ratio=0.1)
    field = randomise(MLP(1, 1, hidden=8, depth=2, scale=5.0), seed=5)
    grid = Grid(integrator="midpoint", steps=12, times=control_stops(brownian, stops(12)))
    flow = Flow(prior=Gaussian(space=oracle.space, std=6.0), field=velocity_of_control(field, oracle.space, brownian), origin=ORIGIN,
                grid=grid, batch=2000)
    found = log_z(weigh(flow.sample(10_000, generator=seeded(4)), oracle))
    assert abs(found.value) < 4 * found.stderr and found.stderr < 0.1
