"""Flow matching and the training loop: the minimiser is the known velocity, and resuming repeats an uninterrupted training bit for bit."""

import json
import math
import os
import signal
from dataclasses import replace

import pytest
import torch

from bgwork import store
from bgwork.couplings import Independent
from bgwork.fields.mlp import MLP
from bgwork.objectives.flow_matching import FlowMatchingData, flow_matching_loss
from bgwork.paths import LinearInterpolant, Times
from bgwork.priors import Gaussian
from bgwork.recipes import Request, load_recipe
from bgwork.spaces import Euclidean
from bgwork.system import load_system, reference_samples
from bgwork.training import TrainingConfig, TrainingError, TrainingJob, train

SPACE = Euclidean(n=1, d=2)


def job(folder, *, steps=12, seed=0, **config):
    folder.mkdir(exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MLP(1, 2, hidden=16, depth=2)
    x1 = 0.5 * torch.randn(500, 1, 2, generator=torch.Generator().manual_seed(1)) + 1
    data = FlowMatchingData(x1=x1, prior=Gaussian(space=SPACE), coupling=Independent(), batch=32, seed=seed, times=Times(late=0.5))
    settings = TrainingConfig(**{"steps": steps, "warmup": 2, "log_every": 2, "checkpoint_every": 4, **config})
    meta = {"system": "plane", "recipe": {}, "seed": seed}
    return TrainingJob(model=model, loss=flow_matching_loss, data=data, config=settings, folder=folder, meta=meta)


def weights(path):
    return store.load_checkpoint(path)[0]


def assert_equal(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_same_seed_trains_the_same_weights(tmp_path):
    for name in ("a", "b"):
        train(job(tmp_path / name), resume=False)
    assert_equal(weights(tmp_path / "a" / "generator.safetensors"), weights(tmp_path / "b" / "generator.safetensors"))


@pytest.mark.parametrize("settings", [{}, {"bfloat16": 0.5}, {"optimiser": "soap"}], ids=["adamw", "bfloat16", "soap"])
def test_resuming_after_an_interruption_is_bit_for_bit(tmp_path, settings):
    whole = job(tmp_path / "whole", **settings)
    train(whole, resume=False)
    cut = job(tmp_path / "cut", **settings)

    def interrupt(row):
        if row["step"] == 6:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(replace(cut, on_log=interrupt), resume=False)
    assert store.load_checkpoint(cut.checkpoint)[1]["progress"]["step"] == 6
    assert not cut.generator.exists()
    train(job(tmp_path / "cut", **settings), resume=True)
    assert_equal(weights(whole.generator), weights(cut.generator))
    assert_equal(weights(whole.checkpoint), weights(cut.checkpoint))
    rows = [[json.loads(line) for line in j.metrics.read_text().splitlines()] for j in (whole, cut)]
    assert [(r["step"], r["loss"]) for r in rows[0]] == [(r["step"], r["loss"]) for r in rows[1]]


def test_a_kill_loses_at_most_one_checkpoint_interval(tmp_path):
    whole, cut = job(tmp_path / "whole"), job(tmp_path / "cut")
    train(whole, resume=False)

    class Kill(BaseException):
        pass

    def kill(row):
        if row["step"] == 10:
            raise Kill

    with pytest.raises(Kill):
        train(replace(cut, on_log=kill), resume=False)
    assert store.load_checkpoint(cut.checkpoint)[1]["progress"]["step"] == 8
    with cut.metrics.open("a") as stream:
        stream.write('{"step": 1')  # a line cut short
    train(job(tmp_path / "cut"), resume=True)
    assert_equal(weights(whole.generator), weights(cut.generator))
    assert [json.loads(line)["step"] for line in cut.metrics.read_text().splitlines()] == [2, 4, 6, 8, 10, 12]


def test_nothing_is_overwritten_and_nothing_else_is_resumed(tmp_path):
    first = job(tmp_path / "run", steps=4)
    with pytest.raises(store.FileError, match="no checkpoint"):
        train(first, resume=True)
    train(first, resume=False)
    with pytest.raises(TrainingError, match="--resume"):
        train(job(tmp_path / "run", steps=4), resume=False)
    with pytest.raises(TrainingError, match="another seed"):
        train(job(tmp_path / "run", steps=4, seed=1), resume=True)


def test_other_data_are_not_resumed(toy):
    system = load_system(toy.system)
    recipe = load_recipe(system)
    a, b = (system.prior.sample(20, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    folder = toy.root / "run"
    folder.mkdir()
    train(recipe.job(Request(system=system, name="eqot-fm", folder=folder, data=a, seed=0)), resume=False)
    with pytest.raises(TrainingError, match="another data"):
        train(recipe.job(Request(system=system, name="eqot-fm", folder=folder, data=b, seed=0)), resume=True)


def test_metrics_of_an_abandoned_start_are_forgotten(tmp_path):
    fresh = job(tmp_path / "run", steps=2)
    fresh.metrics.write_text('{"step": 99, "loss": 0.0}\n')
    train(fresh, resume=False)
    assert [json.loads(line)["step"] for line in fresh.metrics.read_text().splitlines()] == [2]


@pytest.mark.slow
def test_the_shipped_recipe_resumes_bit_for_bit(tmp_path):
    """Equivariant OT in the worker, the multi-hop field, bfloat16, and the compiled step."""
    system = load_system("dw4")
    settings = ("steps=6", "checkpoint_every=3", "log_every=1", "evaluate_every=0", "bfloat16=0.5", "compiled=true")
    recipe = load_recipe(system, overrides=[f"training.{setting}" for setting in settings])
    x = reference_samples(system).x

    def made(folder, **options):
        folder.mkdir(exist_ok=True)
        return recipe.job(Request(system=system, name="eqot-fm", folder=folder, data=x, seed=0, **options))

    def interrupt(row):
        if row["step"] == 4:
            os.kill(os.getpid(), signal.SIGINT)

    train(made(tmp_path / "whole"), resume=False)
    with pytest.raises(KeyboardInterrupt):
        train(made(tmp_path / "cut", on_log=interrupt), resume=False)
    train(made(tmp_path / "cut"), resume=True)
    assert_equal(weights(tmp_path / "whole" / "checkpoint.safetensors"), weights(tmp_path / "cut" / "checkpoint.safetensors"))


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    bad = replace(job(tmp_path / "run"), loss=lambda model, batch: flow_matching_loss(model, batch) * torch.nan)
    with pytest.raises(TrainingError, match="step 0"):
        train(bad, resume=False)


def test_zero_steps_are_refused(tmp_path):
    with pytest.raises(TrainingError, match="positive"):
        train(job(tmp_path / "run", steps=0), resume=False)


def test_the_rate_warms_up_and_falls_to_zero():
    config = TrainingConfig(steps=100, warmup=10, learning_rate=1.0)
    assert [config.rate(k) for k in (0, 9)] == [0.1, 1.0]
    assert config.rate(55) == pytest.approx(0.5)
    assert config.rate(100) == pytest.approx(0.0)


def test_flow_matching_finds_the_velocity_between_two_gaussians(tmp_path):
    """For independent pairs of N(0, 1) and N(1, .5^2), v(t, x) = m + (t s^2 - (1-t)) / ((1-t)^2 + t^2 s^2) (x - t m)."""
    trained = job(tmp_path / "run", steps=500, learning_rate=1e-2, warmup=50)
    x1 = 0.5 * torch.randn(20000, 1, 2, generator=torch.Generator().manual_seed(3)) + 1
    trained = replace(trained, data=replace(trained.data, batch=256, x1=x1))
    state = train(trained, resume=False)
    t, x = torch.tensor([0.2, 0.5, 0.8]), torch.tensor([[0.3, 0.1], [0.9, 0.2], [1.1, 0.6]]).view(3, 1, 2)
    s2, tt = 0.25, t.view(3, 1, 1)
    exact = 1 + (tt * s2 - (1 - tt)) / ((1 - tt) ** 2 + tt**2 * s2) * (x - tt)
    state.model.load_state_dict(state.average, strict=False)
    assert (state.model(t, x) - exact).abs().max() < 0.1


def test_the_interpolant_starts_at_the_prior_and_ends_at_the_data():
    x0, x1 = torch.zeros(2, 1, 2), torch.ones(2, 1, 2)
    x, velocity = LinearInterpolant().point_and_velocity(torch.tensor([0.0, 1.0]), x0, x1)
    assert torch.equal(x, torch.stack([x0[0], x1[0]])) and torch.equal(velocity, x1 - x0)


def test_late_times_have_the_mean_of_their_mixture():
    t = Times(late=0.5).sample(40_000, generator=torch.Generator().manual_seed(0))
    mean, std = 0.5 * (1 / 2 + 2 / 3), t.std().item()  # E[1 - U^2] = 2/3
    assert abs(t.mean().item() - mean) < 4 * std / 200
    t = Times(late=0.25, early=0.5).sample(40_000, generator=torch.Generator().manual_seed(0))
    mean, std = 0.25 * (2 / 3 + 1 / 2) + 0.5 / 3, t.std().item()
    assert abs(t.mean().item() - mean) < 4 * std / 200
    with pytest.raises(ValueError, match="share"):
        Times(late=1.5)
    with pytest.raises(ValueError, match="logarithmic"):
        Times(late=0.5, logarithmic=0.6)


def test_logarithmic_times_are_even_in_the_logarithm_of_what_is_left():
    left = (1 - Times(logarithmic=1.0, nearest=1e-2).sample(40_000, generator=torch.Generator().manual_seed(0))).log() / math.log(1e-2)
    assert 0 <= left.min() and left.max() <= 1
    counts = torch.histc(left, 10, 0, 1)
    assert ((counts - 4_000).abs() < 4 * 60).all()  # binomial standard deviation: 60
    t = Times(late=0.3, logarithmic=0.5, nearest=1e-2).sample(40_000, generator=torch.Generator().manual_seed(0))
    mean = 0.3 * 2 / 3 + 0.5 * (1 - (1 - 1e-2) / math.log(1e2)) + 0.2 / 2
    assert abs(t.mean().item() - mean) < 4 * t.std().item() / 200
    with pytest.raises(ValueError, match="between 0 and 1, got 0"):
        Times(logarithmic=0.5, nearest=0.0)
