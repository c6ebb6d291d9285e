"""Flow sampling: regression targets against finite differences and closed forms, path weights of untrained walks, exact conversions."""

import math

import pytest
import torch
from oracles import GaussianOracle
from torch import Tensor, nn

from bgwork.curved import ConstantCurvature, Hyperboloid, Sphere
from bgwork.fields.ambient import AmbientDrifts
from bgwork.fields.drift_reversal import GaussianStartDrifts, velocity_of_drift
from bgwork.objectives import flow_sampling
from bgwork.objectives.flow_sampling import CurvedFlowSampling, DriftsLoss, FlowSampling, conditional_drifts, walk_grid
from bgwork.objectives.replay import ReplaySettings, ReplaySource, regression_loss
from bgwork.paths import stops
from bgwork.priors import Gaussian, Uniform, WrappedNormal, tangent_noise
from bgwork.records import Density, Origin
from bgwork.reweighting import ess, expectation, log_z, weigh
from bgwork.samplers.flow import Flow
from bgwork.samplers.geodesic import GeodesicKernels, WalkGrid
from bgwork.samplers.integrators import Grid
from bgwork.samplers.sde import PathSampler
from bgwork.spaces import Euclidean, MeanFree, Torus
from bgwork.targets.double_well import DoubleWell
from bgwork.targets.hyperbolic_mixture import HyperbolicMixture
from bgwork.targets.spin_chain import SpinChain
from bgwork.targets.von_mises_fisher import VonMisesFisherMixture
from bgwork.training import TrainingConfig, TrainingJob, train

ORIGIN = Origin(method="test", system="oracle")
SPACES = {
    "S2": Sphere(n=1, d=3), "S4": Sphere(n=1, d=5, curvature=0.5), "two points on S2": Sphere(n=2, d=3),
    "H2": Hyperboloid(n=1, d=3), "H4": Hyperboloid(n=1, d=5, curvature=-2.0), "R3": Euclidean(n=1, d=3), "mean-free": MeanFree(n=3, d=2)}
every_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())


def seed(value: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(value)


def near_pole(space, n: int, at: int) -> Tensor:
    pole = space.project(torch.eye(space.n, space.d, dtype=torch.float64) * (0.1 if isinstance(space, Hyperboloid) else 1.0))
    return WrappedNormal(space=space, mean=pole, std=0.6).sample(n, generator=seed(at))


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
    """(f - b) / 2 = g^2/2 grad log p_{t|0}, from p_{t|0}(x) = p_1(X_1) |dX_1/dx|, and (f + b) / 2 = dX_t/dt."""
    x0, x1, gamma, h = near_pole(space, 20, 0), near_pole(space, 20, 1), 0.8, 2e-4
    t = 0.05 + 0.9 * torch.rand(20, generator=seed(2), dtype=torch.float64)
    x, forward, backward = conditional_drifts(space, t, x0, x1, ascent(space, x1), gamma=gamma)

    def log_density(y: Tensor) -> Tensor:
        v = space.log(x0, y)
        whole = v / t[:, None, None]
        return reward(space.exp(x0, whole)) + (space.log_exp_det(whole) - space.log_exp_det(v)).sum(1)

    w = tangent_noise(space, x, generator=seed(3))
    near, far = (log_density(space.exp(x, k * h * w)) - log_density(space.exp(x, -k * h * w)) for k in (1, 2))
    slope = (8 * near - far) / (12 * h)
    torch.testing.assert_close(product(space, (forward - backward) / 2, w), gamma * t * slope, rtol=1e-6, atol=1e-6)
    ahead, behind = (conditional_drifts(space, t + k * h, x0, x1, 0 * x1, gamma=gamma)[0] for k in (1, -1))
    torch.testing.assert_close((forward + backward) / 2, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-5)


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


class ExactDrift(nn.Module):
    """f = v + gamma t score of flow sampling from N(0, s0^2) to N(0, s1^2), or a factor times it."""

    def __init__(self, space, *, s0: float, s1: float, gamma: float, factor: float = 1.0) -> None:
        super().__init__()
        self.n, self.d, self.space, self.s0, self.s1, self.gamma, self.factor = space.n, space.d, space, s0, s1, gamma, factor

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Of v and of g^2/2 score, as multiples of x."""
        t = torch.as_tensor(t, dtype=torch.float64)
        square = ((1 - t) * self.s0) ** 2 + (t * self.s1) ** 2
        return (t * self.s1**2 - (1 - t) * self.s0**2) / square, -self.gamma * t / square

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.factor * sum(self.rates(t)).reshape(-1, 1, 1) * self.space.project(x)

    def value_and_jacobian(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        size = self.n * self.d
        projection = self.space.project(torch.eye(size, dtype=torch.float64).view(size, self.n, self.d)).view(size, size)
        return self(t, x), (self.factor * sum(self.rates(t))).reshape(-1, 1, 1) * projection.expand(len(x), size, size)


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


# Path weights with drifts that nobody trained.


def untrained(space):
    """Drifts that have little to do with any target: forward and backward disagree, everywhere and more so later."""
    turn = torch.randn(space.d, space.d, generator=seed(3), dtype=torch.float64) / 2

    def drifts(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(space, Hyperboloid):
            home = space.log(x, space.origin(x))
            return 0.2 * t * home, -0.5 * t * home
        pole = space.project(torch.eye(space.n, space.d, dtype=torch.float64)).expand_as(x)
        pull, swirl = space.tangent(x, pole), space.tangent(x, torch.tanh(x @ turn))
        return 0.3 * pull + 0.3 * t * swirl, 0.3 * pull - 0.1 * t * swirl

    return drifts


TARGETS = {
    "vMF on S2": VonMisesFisherMixture.random(3, 3, concentration=2.0, seed=1),
    "vMF on S4": VonMisesFisherMixture.random(3, 5, concentration=2.0, seed=1),
    "Gaussians on H2": HyperbolicMixture.ring(2, radius=0.6, std=0.6),
    "Gaussians on H4": HyperbolicMixture.ring(2, 4, radius=0.6, std=0.4),
    "Heisenberg pair": SpinChain(2, coupling=1.0)}


def prior_of(space):
    if isinstance(space, Sphere):
        return Uniform(space=space)
    return WrappedNormal(space=space, mean=space.origin(torch.zeros(1, space.d)), std=0.7)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
@pytest.mark.parametrize("steps", [5, 20, 100])
def test_path_weights_give_the_known_log_z_at_any_number_of_steps(target, steps):
    kernels = GeodesicKernels(space=target.space, drifts=untrained(target.space), grid=walk_grid(0.2, stops(steps)))
    sampler = PathSampler(start=prior_of(target.space), kernels=kernels, origin=ORIGIN)
    weighted = weigh(sampler.sample(max(1000, 20_000 // steps), generator=seed(steps)), target)
    estimate = log_z(weighted)
    assert weighted.n_failed == 0 and weighted.proposal.density is Density.PATH
    assert abs(estimate.value - target.log_z) < 4 * estimate.stderr < 0.4
    assert ess(weighted).value < 0.8, "an untrained drift should not be this good: the test has lost its point"


@pytest.mark.parametrize("gamma", [1.0, 4.0])
def test_steps_that_wind_around_the_sphere_are_weighed_with_all_their_images(gamma):
    """With steps as long as the sphere is wide, log Z and an average come out only if every image is counted.

    Forward and backward drift must differ, or the images of both kernels cancel.
    """
    target, pole = TARGETS["vMF on S2"], torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    space, grid = target.space, walk_grid(gamma, stops(2))
    kernels = GeodesicKernels(space=space, drifts=lambda t, x: (space.tangent(x, pole.expand_as(x)), 0 * x), grid=grid)
    weighted = weigh(PathSampler(start=prior_of(target.space), kernels=kernels, origin=ORIGIN).sample(20_000, generator=seed()), target)
    exact, estimate = target.sample(20_000, generator=seed(1))[:, 0, 0], log_z(weighted)
    moment = expectation(weighted, lambda x: x[:, 0, 0])
    assert abs(estimate.value - target.log_z) < 4 * estimate.stderr < 0.1
    assert abs(moment.value - exact.mean().item()) < 4 * math.hypot(moment.stderr, exact.std().item() / math.sqrt(len(exact)))


def test_a_walk_counts_its_evaluations_and_repeats_itself():
    target, calls = TARGETS["vMF on S2"], []

    def drifts(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(x))
        return untrained(target.space)(t, x)

    kernels = GeodesicKernels(space=target.space, drifts=drifts, grid=walk_grid(0.2, stops(10)), batch=16)
    sampler = PathSampler(start=prior_of(target.space), kernels=kernels, origin=ORIGIN)
    first = sampler.sample(40, generator=seed())
    assert sum(calls) == first.cost.network == 40 * 11
    second = sampler.sample(40, generator=seed())
    assert torch.equal(first.x, second.x) and torch.equal(first.log_q, second.log_q)


# Training


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
