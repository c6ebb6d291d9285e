"""Adjoint sampling and iDEM: regressions against closed forms, what they spend, and trainings that end in the target."""

import json
import math

import pytest
import torch
from curved_walks import ExactDrift
from exact_diffusions import control, score
from oracles import GaussianOracle, gaussian_mixture

from bgwork import store
from bgwork.buffers import tempered
from bgwork.fields.affine import Affine
from bgwork.fields.drift_reversal import GaussianStartDrifts
from bgwork.fields.mlp import MLP
from bgwork.fields.preconditioning import ControlPreconditioning, ScorePreconditioning
from bgwork.objectives.adjoint_sampling import AdjointSampling, BridgeMatchingData
from bgwork.objectives.flow_sampling import FlowSampling
from bgwork.objectives.idem import IteratedDenoisingEnergyMatching, noised_score, richardson_score, weighted_force
from bgwork.objectives.replay import ReplaySettings, ReplaySource, clip_per_particle, regression_loss
from bgwork.objectives.weighted_adjoint import WeightedAdjointSampling
from bgwork.paths import GeometricBrownian, GeometricNoise, stops
from bgwork.priors import Gaussian
from bgwork.records import Density, Origin, Proposal
from bgwork.reweighting import ess, log_z, weigh
from bgwork.samplers.kernels import control_table, score_table
from bgwork.spaces import Euclidean, MeanFree
from bgwork.training import TrainingConfig, TrainingJob, train

PLANE = Euclidean(n=1, d=2)
TARGET_STD = 0.7
BROWNIAN = GeometricBrownian(std=1.5, ratio=0.1)
NOISE = GeometricNoise(ratio=0.02)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def adjoint(space=PLANE, *, clip=1e6, steps=20):
    return AdjointSampling(space=space, brownian=BROWNIAN, table=control_table(BROWNIAN, stops(steps)), clip=clip, scale=1.0)


def idem(space=PLANE, *, samples=64, clip=1e6, richardson=False):
    return IteratedDenoisingEnergyMatching(
        prior=Gaussian(space=space, std=2.2), largest=2.0, path=NOISE, table=score_table(NOISE, stops(20), prior_std=2.0, spread=1.0),
        samples=samples, clip=clip, spread=1.0, richardson=richardson)


def weighted_adjoint(space=PLANE):
    return WeightedAdjointSampling(**vars(adjoint(space)))


def flow_sampling(space=PLANE, *, clip=1e6):
    prior = Gaussian(space=space, std=1.2)
    return FlowSampling(prior=prior, gamma=0.5, stops=stops(20), clip=clip,
                        drifts=lambda drift: GaussianStartDrifts(drift, prior=prior, gamma=0.5))


def slope(x, value):
    """Least-squares slope of value on x, with its standard error."""
    x, value = x.flatten().double(), value.flatten().double()
    found = (x * value).sum() / x.square().sum()
    return found, ((value - found * x) * x).square().sum().sqrt() / x.square().sum()


@pytest.mark.parametrize("space", [PLANE, MeanFree(n=3, d=2)], ids=str)
def test_the_regression_of_adjoint_sampling_is_the_exact_control_of_a_gaussian(space):
    """With end points from the target, by the gradient and by bridge matching alike."""
    oracle, n = GaussianOracle(space=space, std=TARGET_STD), 40_000
    x1, origin = oracle.sample(n, generator=seeded()), Origin(method="exact", system="oracle")
    proposal = Proposal(x=x1, log_q=torch.zeros(n, dtype=torch.float64), space=space, density=Density.PATH, origin=origin)
    method = adjoint(space)
    by_gradient = method.regression(oracle, method.measure(oracle, proposal), generator=seeded(1))
    by_bridge = BridgeMatchingData(x1=proposal.x, method=method, batch=n, seed=0)(0)
    exact = control(BROWNIAN, target_std=TARGET_STD)
    for made in (by_gradient, by_bridge):
        residual = made.value.double() - exact(made.t.double())[:, None, None] * made.x.double()
        for low, high in ((0.0, 0.3), (0.3, 0.6), (0.6, 0.95)):
            rows = (made.t >= low) & (made.t < high)
            found, error = slope(made.x[rows], residual[rows])
            assert abs(found) < 4 * error and error < 0.05
    assert torch.allclose(by_bridge.weight.double(), (2.25 - BROWNIAN.variance(by_bridge.t.double())) ** 2, atol=1e-4)


def test_idems_estimator_is_the_exact_score_of_a_noised_mixture():
    oracle = gaussian_mixture()
    x = torch.tensor([-6.0, -4.0, 0.5, 3.0, 7.0], dtype=torch.float64)[:, None, None]
    sigma = torch.tensor([0.1, 0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    means, variance = torch.tensor([-5.0, 5.0], dtype=torch.float64), 1 + sigma[:, None] ** 2
    p = torch.softmax(torch.tensor([0.7, 0.3], dtype=torch.float64).log() - (x[:, 0] - means) ** 2 / (2 * variance), 1)
    exact = -(p * (x[:, 0] - means) / variance).sum(1)
    found = torch.stack([noised_score(oracle, x, sigma, samples=4000, generator=seeded(k))[:, 0, 0] for k in range(10)])
    assert ((found.mean(0) - exact).abs() < 4 * found.std(0) / 10**0.5 + 2e-3).all()
    assert (found.std(0) < 0.2).all()


def test_richardson_takes_the_bias_away():
    """The mean over many seeds of S_K with small K, against S_K with large K."""
    oracle = GaussianOracle(space=PLANE, std=0.5)
    x, sigma = torch.full((15000, 1, 2), 1.0, dtype=torch.float64), torch.full((15000,), 1.0, dtype=torch.float64)
    exact = -1 / (0.25 + 1)
    plain = noised_score(oracle, x, sigma, samples=64, generator=seeded(1)) - exact
    mended = richardson_score(oracle, x, sigma, samples=64, generator=seeded(1)) - exact
    error = mended.std() / math.sqrt(mended.numel())
    assert plain.mean().abs() > 6 * error
    assert mended.mean().abs() < plain.mean().abs() / 2
    with pytest.raises(ValueError, match="even"):
        richardson_score(oracle, x, sigma, samples=3, generator=seeded())


def test_the_weighted_force_ignores_overlaps_and_refuses_what_has_no_answer():
    u = torch.tensor([[1000.0, 1001.0, math.inf]], dtype=torch.float64)
    gradient = torch.tensor([1.0, 2.0, math.nan], dtype=torch.float64).view(1, 3, 1, 1)
    p = 1 / (1 + math.exp(-1))
    assert weighted_force(u, gradient).item() == pytest.approx(-(p + 2 * (1 - p)))
    with pytest.raises(ValueError, match="1 of 1 rows"):
        weighted_force(torch.full_like(u, math.inf), gradient)


def test_clipping_shortens_vectors_and_says_how_many():
    gradient = torch.tensor([[[3.0, 4.0], [0.3, 0.4]], [[0.0, 0.0], [30.0, 40.0]]], dtype=torch.float64)
    clipped, share = clip_per_particle(gradient, 5.0)
    assert torch.allclose(clipped, torch.tensor([[[3.0, 4.0], [0.3, 0.4]], [[0.0, 0.0], [3.0, 4.0]]], dtype=torch.float64))
    assert share == 0.25


def job(folder, method, field, target, *, steps, seed=0, **changes):
    folder.mkdir(exist_ok=True)
    settings = {"capacity": 2000, "fresh": 500, "every": 20, "batch": 200, **changes}
    source = ReplaySource(target=target, method=method, settings=ReplaySettings(**settings), seed=seed)
    config = TrainingConfig(steps=steps, warmup=20, learning_rate=1e-2, log_every=10, ema=0.99, checkpoint_every=30)
    return TrainingJob(model=field, loss=regression_loss, data=source, config=config, folder=folder,
                       meta={"system": "line", "recipe": {}, "seed": seed})


def network(kind, *, spread=1.0, scale=1.0):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inner = MLP(1, 2, hidden=32, depth=3, scale=scale)
    if kind == "flow-sampling":
        return inner
    precondition = {"adjoint": ControlPreconditioning(brownian=BROWNIAN, spread=spread, curvature=2.0),
                    "idem": ScorePreconditioning(path=NOISE, prior_std=2.0, spread=spread)}[kind.removeprefix("weighted-")]
    return Affine(inner, PLANE, precondition)


METHODS = {"adjoint": adjoint, "weighted-adjoint": weighted_adjoint, "flow-sampling": flow_sampling, "idem": idem}
EXACT = {"idem": score(NOISE, prior_std=2.0, target_std=TARGET_STD),
         "flow-sampling": lambda t: sum(ExactDrift(PLANE, s0=1.2, s1=TARGET_STD, gamma=0.5).rates(t))}
EFFECTIVE = {"weighted-adjoint": 0.2}  # the other methods draw their rows uniformly


@pytest.mark.parametrize("kind", METHODS)
def test_evaluations_are_those_that_the_energy_saw(tmp_path, kind):
    target = GaussianOracle(space=PLANE, std=TARGET_STD)
    made = job(tmp_path / "run", METHODS[kind](), network(kind), target, steps=40)
    train(made, resume=False)
    row = json.loads(made.metrics.read_text().splitlines()[-1])
    header = store.load_checkpoint(made.generator)[1]["progress"]
    for counts in (row, header):
        assert (counts["energy_evaluations"], counts["gradient_evaluations"]) == (target.n_energy, target.n_gradient)
    assert target.n_gradient == {"idem": 40 * 200 * 64}.get(kind, 2 * 500)
    assert row["u_05"] < row["u_50"] < row["u_95"] and row["refused"] == 0


@pytest.mark.parametrize("kind", METHODS)
def test_resuming_is_bit_for_bit(tmp_path, kind):
    class Kill(BaseException):
        pass

    def kill(row):
        if row["step"] == 50:
            raise Kill

    target, settings = GaussianOracle(space=PLANE, std=TARGET_STD), {"steps": 60, "effective": EFFECTIVE.get(kind, 0.5)}
    whole = job(tmp_path / "whole", METHODS[kind](), network(kind), target, **settings)
    train(whole, resume=False)
    cut = job(tmp_path / "cut", METHODS[kind](), network(kind), target, **settings)
    cut.__dict__["on_log"] = kill
    with pytest.raises(Kill):
        train(cut, resume=False)
    again = job(tmp_path / "cut", METHODS[kind](), network(kind), target, **settings)
    train(again, resume=True)
    a, b = (store.load_checkpoint(j.checkpoint)[0] for j in (whole, again))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    timeless = [[{k: v for k, v in json.loads(line).items() if "seconds" not in k} for line in j.metrics.read_text().splitlines()]
                for j in (whole, again)]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize("kind", METHODS)
def test_training_from_the_energy_alone_ends_in_the_target(tmp_path, kind):
    """A Gaussian narrower than the start; its control, drift and score are linear, and known."""
    target = GaussianOracle(space=PLANE, std=TARGET_STD)
    method = idem(samples=256) if kind == "idem" else METHODS[kind]()
    made = job(tmp_path / "run", method, network(kind), target, steps=300, effective=EFFECTIVE.get(kind, 1.0))
    state = train(made, resume=False)
    state.model.load_state_dict(state.average, strict=False)
    weighted = weigh(made.data.method.sampler(state.model).sample(2000, generator=seeded(5)), target)
    found = log_z(weighted)
    assert abs(found.value - target.log_z) < 4 * found.stderr
    assert ess(weighted).value > 0.8
    t, x = torch.full((2,), 0.6), torch.tensor([[[0.5, -0.3]], [[-0.8, 0.2]]])
    assert (state.model(t, x) - EXACT.get(kind, control(BROWNIAN, target_std=TARGET_STD))(t)[:, None, None] * x).abs().max() < 0.15


def test_bad_settings_and_hopeless_samples_are_refused(tmp_path):
    for settings, complaint in (({"every": 0}, "at least 1"), ({"effective": 1.5}, "between 0 and 1, got 1.5"),
                                ({"effective": math.nan}, "got nan")):
        with pytest.raises(ValueError, match=complaint):
            ReplaySettings(**settings)

    class Broken(GaussianOracle):
        def energy(self, x):
            return super().energy(x) * math.nan

    class WrongShape(GaussianOracle):
        def u_and_grad(self, x):
            u, gradient = super().u_and_grad(x)
            return u[:, None], gradient

    for target, complaint in ((WrongShape(space=PLANE), r"'u': \(500, 1\)"), (GaussianOracle(space=MeanFree(n=3, d=2)), "make them equal")):
        with pytest.raises(ValueError, match=complaint):
            train(job(tmp_path / "bad", adjoint(), network("adjoint"), target, steps=1), resume=False)
    with pytest.raises(ValueError, match="lacks u, u_and_grad"):
        ReplaySource(target=Gaussian(space=PLANE), method=adjoint(), settings=ReplaySettings(), seed=0)
    with pytest.raises(ValueError, match="none of 500"):
        train(job(tmp_path / "run", adjoint(), network("adjoint"), Broken(space=PLANE), steps=1), resume=False)


@pytest.mark.parametrize("kind", METHODS)
def test_rows_drawn_by_their_weight_follow_the_target_of_a_sampler_that_does_not(kind):
    n, target = 5000, GaussianOracle(space=PLANE, std=TARGET_STD)
    for effective in (0.0, 0.9, 1.0):
        settings = ReplaySettings(capacity=n, fresh=n, batch=n, effective=effective)
        source = ReplaySource(target=target, method=METHODS[kind](), settings=settings, seed=0)
        source._refill(network(kind), seeded())
        drawn, held = (rows["x"].square().sum((1, 2)) for rows in (source._draw(seeded(1)), source.buffer))
        log_p = source.buffer["log_p"] if effective < 1 else torch.full((n,), -math.log(n), dtype=torch.float64)
        share = 1 / (n * log_p.exp().square().sum())
        expected = {0.0: target.mean_square, 1.0: held.mean()}.get(effective, (log_p.exp() * held).sum())
        assert share > 0.05 and (effective != 0.9 or share == pytest.approx(0.9, abs=1e-6))
        assert abs(drawn.mean() - expected) < 4 * drawn.std() * ((1 + 1 / share) / n) ** 0.5
        assert (held.mean() - target.mean_square).abs() > 0.3


def test_tempered_weights_keep_the_share_asked_for():
    log_w = 3 * torch.randn(1000, generator=seeded(), dtype=torch.float64)
    p = tempered(log_w, 0.3).exp()
    assert p.sum() == pytest.approx(1) and 1 / (p.square().sum() * 1000) == pytest.approx(0.3, abs=1e-6)
    assert ((p.log().argsort() - log_w.argsort()) == 0).all()
    flat = 0.1 * log_w
    assert torch.allclose(tempered(flat, 0.3), torch.log_softmax(flat, 0))


@pytest.mark.parametrize("space", [PLANE, MeanFree(n=3, d=2)], ids=str)
def test_the_combined_regression_has_the_same_mean_and_hardly_any_noise(space):
    """For a Gaussian, whose curvature is the same everywhere, the noises of the two identities cancel but for its estimate."""
    oracle, n = GaussianOracle(space=space, std=TARGET_STD), 20_000
    x1, origin = oracle.sample(n, generator=seeded()), Origin(method="exact", system="oracle")
    proposal = Proposal(x=x1, log_q=oracle.log_prob(x1), space=space, density=Density.PATH, origin=origin)
    plain = adjoint(space)
    method = WeightedAdjointSampling(**vars(plain))
    rows = method.measure(oracle, proposal)
    assert rows["log_w"].std() < 1e-9 and len(rows["log_w"]) == n  # exact samples weigh alike
    exact, noise = control(BROWNIAN, target_std=TARGET_STD), []
    for made in (method.regression(oracle, rows, generator=seeded(1)), plain.regression(oracle, rows, generator=seeded(1))):
        residual = made.value - exact(made.t)[:, None, None] * made.x
        found, error = slope(made.x, residual)
        assert abs(found) < 4 * error + 0.01  # the curvature is estimated from the same rows
        noise.append(residual.square().mean().sqrt())
    assert noise[0] < 0.05 * noise[1]
