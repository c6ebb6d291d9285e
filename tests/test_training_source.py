"""Batches from a source that sees the model: one loop, bit-for-bit resumption, its figures in every row and in the header."""

import json
from dataclasses import dataclass, field, replace

import pytest
import torch
from test_training import assert_equal, weights

from bgwork import store
from bgwork.buffers import ReplayBuffer
from bgwork.fields.mlp import MLP
from bgwork.training import Source, TrainingConfig, TrainingError, TrainingJob, averaged, train


@dataclass
class Batch:
    x: torch.Tensor
    seconds: float = 0.0


@dataclass
class Echo:
    """A source whose batches depend on the current model, on the averaged one, and on all earlier batches through a buffer."""

    buffer: ReplayBuffer = field(default_factory=lambda: ReplayBuffer(24))
    refills: int = 0

    def batch(self, state):
        generator = torch.Generator().manual_seed(state.step)
        if state.step % 3 == 0:
            with torch.no_grad():
                x = torch.randn(8, 1, 2, generator=generator)
                t = torch.tensor(0.5)
                self.buffer.add({"x": x + state.model(t, x) + averaged(state)(t, x)})
            self.refills += 1
        return Batch(self.buffer.draw(8, generator=generator)["x"])

    def figures(self):
        return {"refills": self.refills}

    def state_dict(self):
        return {"refills": torch.tensor(self.refills), **{f"buffer.{k}": v for k, v in self.buffer.state_dict().items()}}

    def load_state_dict(self, tensors):
        self.refills = int(tensors["refills"])
        self.buffer.load_state_dict({k.removeprefix("buffer."): v for k, v in tensors.items() if k.startswith("buffer.")})


def loss(model, batch):
    return ((model(torch.tensor(0.3), batch.x) - batch.x.flip(2)) ** 2).mean()


def job(folder, **changes):
    folder.mkdir(exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MLP(1, 2, hidden=16, depth=2)
    config = TrainingConfig(steps=14, warmup=2, log_every=1, checkpoint_every=4, learning_rate=1e-2)
    made = TrainingJob(model=model, loss=loss, data=Echo(), config=config, folder=folder, meta={"system": "plane", "recipe": {}, "seed": 0})
    return replace(made, **changes)


class Kill(BaseException):
    pass


def killed_at(step):
    def kill(row):
        if row["step"] == step:
            raise Kill

    return kill


@pytest.mark.parametrize("step", [5, 7])  # the checkpoint after step 4 lies between refills; a kill after 7 loses a refill
def test_resuming_with_a_source_is_bit_for_bit(tmp_path, step):
    whole, cut = job(tmp_path / "whole"), job(tmp_path / "cut")
    train(whole, resume=False)
    with pytest.raises(Kill):
        train(replace(cut, on_log=killed_at(step)), resume=False)
    train(job(tmp_path / "cut"), resume=True)
    assert_equal(weights(whole.generator), weights(cut.generator))
    assert_equal(weights(whole.checkpoint), weights(cut.checkpoint))
    rows = [[json.loads(line) for line in j.metrics.read_text().splitlines()] for j in (whole, cut)]
    assert [(r["step"], r["loss"], r["refills"]) for r in rows[0]] == [(r["step"], r["loss"], r["refills"]) for r in rows[1]]


def test_the_source_is_asked_once_a_step_and_its_figures_are_kept(tmp_path):
    made = job(tmp_path / "run")
    assert isinstance(made.data, Source)
    train(made, resume=False)
    assert made.data.refills == 5
    assert store.load_checkpoint(made.generator)[1]["progress"]["refills"] == 5
    assert "refills" not in store.load_checkpoint(made.generator)[0]
    assert json.loads(made.metrics.read_text().splitlines()[0])["refills"] == 1


def test_a_checkpoint_without_the_sources_state_is_refused(tmp_path):
    made = job(tmp_path / "run")
    train(made, resume=False)
    tensors, meta = store.load_checkpoint(made.checkpoint)
    store.save_checkpoint(made.checkpoint, {k: v for k, v in tensors.items() if not k.startswith("source.")}, meta)
    with pytest.raises(TrainingError, match="does not fit"):
        train(job(tmp_path / "run"), resume=True)
