"""Flow sampling as a training: what is regressed on, counted, clipped and refused."""

from __future__ import annotations

import math

import pytest
import torch
from curved_walks import ORIGIN, SPACES, TARGETS, ExactDrift, near_pole, prior_of, seed
from oracles import GaussianOracle
from torch import Tensor, nn

from bgwork.fields.ambient import AmbientDrifts
from bgwork.fields.drift_reversal import GaussianStartDrifts, velocity_of_drift
from bgwork.objectives import flow_sampling
from bgwork.objectives.flow_sampling import CurvedFlowSampling, DriftsLoss, FlowSampling, walk_grid
from bgwork.objectives.replay import ReplaySettings, ReplaySource, regression_loss
from bgwork.paths import stops
from bgwork.priors import Gaussian, Uniform
from bgwork.reweighting import ess, log_z, weigh
from bgwork.samplers.geodesic import GeodesicKernels, WalkGrid
from bgwork.samplers.sde import PathSampler
from bgwork.spaces import Euclidean, MeanFree, Torus
from bgwork.targets.double_well import DoubleWell
from bgwork.targets.von_mises_fisher import VonMisesFisherMixture
from bgwork.training import TrainingConfig, TrainingJob, train


class ConstantDrifts(nn.Module):
    """A model that cannot learn anything: no drift."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return 0 * x * self.unused.to(x), 0 * x


def method_for(target, *, steps: int = 20) -> CurvedFlowSampling:
    return CurvedFlowSampling(prior=prior_of(target.space), drifts=lambda model: model, gamma=0.3, stops=stops(steps))


def job(target, model, folder, *, steps: int, learning_rate: float = 5e-3) -> TrainingJob:
    settings = ReplaySettings(capacity=2000, fresh=300, every=25, batch=256)
    source = ReplaySource(target=target, method=method_for(target), settings=settings, seed=0)
    config = TrainingConfig(steps=steps, warmup=10, log_every=50, learning_rate=learning_rate, ema=0.98)
    return TrainingJob(model=model, loss=DriftsLoss(space=target.space), data=source, config=config, folder=folder, meta={})


@pytest.mark.slow
def test_training_on_a_sphere_from_the_energy_alone_makes_the_weights_even(tmp_path):
    target = VonMisesFisherMixture.random(2, 3, concentration=8.0, seed=4)
    torch.manual_seed(0)
    work = job(target, AmbientDrifts(target.space, hidden=48, depth=3), tmp_path, steps=350)
    values = [ess_of(target, model) for model in (ConstantDrifts(), train(work, resume=False).model)]
    assert values[1] > 0.35 and values[1] > 2 * values[0]
    assert work.source.figures()["gradient_evaluations"] == 300 * math.ceil(350 / 25) == work.source.target.n_gradient


def ess_of(target, model: nn.Module) -> float:
    weighted = weigh(method_for(target, steps=40).sampler(model).sample(1000, generator=seed(5)), target)
    estimate = log_z(weighted)
    assert abs(estimate.value - target.log_z) < 4 * estimate.stderr
    return ess(weighted).value


def test_flat_method_regresses_the_forward_drift_alone():
    """The exact drift of a Gaussian is the minimiser: any other has a larger loss."""
    target = GaussianOracle(space=MeanFree(n=3, d=2), std=0.6)
    prior, drift = Gaussian(space=target.space), ExactDrift(target.space, s0=1.0, s1=0.6, gamma=0.5)
    method = FlowSampling(
        prior=prior, drifts=lambda model: GaussianStartDrifts(model, prior=prior, gamma=0.5), gamma=0.5, stops=stops(30))
    rows = method.measure(target, method.sampler(drift).sample(2000, generator=seed()))
    batch = method.regression(target, rows, generator=seed(1))
    assert batch.value.shape == (2000, 3, 2) and rows["log_w"].std() < 0.5
    losses = [regression_loss(ExactDrift(target.space, s0=1.0, s1=0.6, gamma=0.5, factor=factor), batch) for factor in (0.8, 1.0, 1.2)]
    assert losses[1] < min(losses[0], losses[2])


@pytest.mark.parametrize("space", [SPACES["two points on S2"], SPACES["H4"]], ids=["S2", "H4"])
def test_a_new_network_has_no_drift_and_another_one_is_tangent(space):
    x = near_pole(space, 30, 0)
    model = AmbientDrifts(space, hidden=16, depth=2)
    assert all((drift == 0).all() for drift in model(torch.tensor(0.3), x))
    nn.init.normal_(model.last.weight)
    for drift in model(torch.rand(30, generator=seed()), x):
        assert drift.dtype == torch.float64 and (space.tangent(x, drift) - drift).abs().max() < 1e-10 * (1 + drift.abs().max())
    forward, backward = model(torch.tensor(0.0), x)
    assert torch.equal(forward, backward)


def test_gradients_are_clipped_per_particle_and_counted():
    space = MeanFree(n=4, d=2)
    v = space.project(torch.randn(50, 4, 2, generator=seed(), dtype=torch.float64))
    short, share = flow_sampling.clip_per_particle(space, v, 0.7)
    assert share == (v.norm(dim=-1) > 0.7).double().mean().item() and 0 < share < 1
    torch.testing.assert_close(short.norm(dim=-1), v.norm(dim=-1).clamp_max(0.7))
    assert torch.equal(flow_sampling.clip_per_particle(space, v, math.inf)[0], v)


class Faulty(GaussianOracle):
    """An energy with something wrong about it."""

    def __init__(self, fault: str) -> None:
        super().__init__(space=MeanFree(n=3, d=2))
        self.fault = fault

    def u_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u, gradient = super().u_and_grad(x)
        return {"NaN": (u * math.nan, gradient), "energy": (u[:, None], gradient), "gradient": (u, gradient[:, :, :1])}[self.fault]


@pytest.mark.parametrize(("fault", "message"), [
    ("NaN", "none of 8 fresh samples of .* has a finite energy"), ("energy", r"an energy of shape \(8, 1\)"),
    ("gradient", r"gradient of shape \(8, 3, 1\)")])
def test_faulty_energies_are_refused(fault, message):
    target = Faulty(fault)
    method = FlowSampling(prior=Gaussian(space=target.space), drifts=lambda model: model, gamma=0.5, stops=stops(2))
    source = ReplaySource(target=target, method=method, settings=ReplaySettings(fresh=8), seed=0)
    with pytest.raises(ValueError, match=message):
        source._refill(ConstantDrifts(), seed())


def test_methods_and_targets_on_different_spaces_are_refused():
    proposal = method_for(TARGETS["vMF on S2"], steps=2).sampler(ConstantDrifts()).sample(4, generator=seed())
    with pytest.raises(ValueError, match="give both the same space"):
        method_for(TARGETS["vMF on S2"]).measure(TARGETS["vMF on S4"], proposal)
    with pytest.raises(ValueError, match="give both the same space"):
        method_for(TARGETS["vMF on S2"]).measure(DoubleWell(4, 2), proposal)


@pytest.mark.parametrize(("build", "message"), [
    (lambda: CurvedFlowSampling(prior=Uniform(space=Torus(n=1, d=2)), drifts=id, gamma=0.5, stops=stops(2)), "torsional adjoint sampling"),
    (lambda: FlowSampling(prior=Gaussian(space=Euclidean(n=1, d=2)), drifts=id, gamma=0.0, stops=stops(2)), "gamma must be positive"),
    (lambda: velocity_of_drift(ConstantDrifts(), prior=Gaussian(space=Euclidean(n=1, d=2)), gamma=math.nan), "gamma must be positive"),
    (lambda: WalkGrid(times=(0.0, 0.5), stds=(0.1,)), "times must increase from 0 to 1"),
    (lambda: WalkGrid(times=(0.0, 0.5, 1.0), stds=(0.1,)), "K steps need K . 1 times"),
    (lambda: WalkGrid(times=(0.0, 0.5, 1.0), stds=(0.0, 0.1)), "every step needs noise"),
    (lambda: AmbientDrifts(SPACES["S2"], depth=0), "at least 1")])
def test_impossible_settings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(("drifts", "message"), [
    (lambda t, x: (x, x), "the drift leaves Sphere"), (lambda t, x: (x[:, :, :2], x), "they must agree")])
def test_drifts_that_leave_the_space_are_refused(drifts, message):
    space = SPACES["S2"]
    kernels = GeodesicKernels(space=space, drifts=drifts, grid=walk_grid(0.2, stops(3)))
    with pytest.raises(ValueError, match=message):
        PathSampler(start=Uniform(space=space), kernels=kernels, origin=ORIGIN).sample(5, generator=seed())
