"""Maps learned from another energy's configurations, the flows before them, and what they carry over."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import call, refused
from maps import TINY, lay_out, options, trained
from test_training import assert_equal, weights

from bgwork import store
from bgwork.objectives.targeted import End, Ensemble, TargetedLoss, TargetedSource
from bgwork.provenance import tensor_fingerprint
from bgwork.recipes import RecipeError, Request, load_recipe
from bgwork.recipes.mapped import MappedNetwork
from bgwork.records import Density
from bgwork.runs import weighted_samples
from bgwork.samplers.internal_map import InternalMap
from bgwork.samplers.transport import rows_to_learn, rows_to_weigh
from bgwork.system import load_system, reference_samples
from bgwork.training import TrainingConfig, TrainingJob, TrainingState, train


@pytest.fixture(scope="module")
def systems():
    return load_system("ala2-vacuum"), load_system("ala2-obc2")


@pytest.fixture
def beside_data(tmp_path, monkeypatch):
    """A working directory with data of ala2-vacuum, and recipes for ala2-obc2."""
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path)


class Still(torch.nn.Module):
    """A field without weights."""


def network(systems):
    made = MappedNetwork(Still(), InternalMap(systems[0].topology))
    made.map.fit(reference_samples(systems[0]).x, reference_samples(systems[1]).x)
    return made


def source(systems, *, share=0.5, batch_size=4, broken=None):
    start, end = (Ensemble(x=reference_samples(system).x, target=broken or system.differentiable_target) for system in systems)
    return TargetedSource(start=start, end=end, batch_size=batch_size, share=share, seed=0)


def state_of(model):
    return TrainingState(model=model, average={}, optimiser=torch.optim.AdamW(model.parameters()))


@pytest.mark.parametrize("share", (0.0, 0.3))
def test_the_loss_is_the_mean_work_from_both_ends_and_its_gradient_is_right(systems, share):
    """Along the gradient of each coefficient, against differences."""
    model, (vacuum, water) = network(systems), (system.differentiable_target for system in systems)
    batch = source(systems, share=share).batch(state_of(model))
    assert len(batch.end.x) == (4 if share else 0)

    def work():
        with torch.no_grad():
            image, log_det = model.map(batch.start.x)
            there = (water.u(image) - log_det).mean()
            if not share:
                return there
            x = model.map.inverse(batch.end.x)
            return (1 - share) * there + share * (vacuum.u(x) + model.map(x)[1]).mean()

    value = TargetedLoss(share)(model, batch)
    torch.testing.assert_close(value.detach(), work())
    value.backward()
    for p in (model.map.new_mean, model.map.linear, model.map.turn[1]):
        length, h = p.grad.norm(), 1e-6
        with torch.no_grad():
            p.add_(h * p.grad / length)
            up = work()
            p.sub_(2 * h * p.grad / length)
            down = work()
            p.add_(h * p.grad / length)
        torch.testing.assert_close((up - down) / (2 * h), length, rtol=1e-4, atol=0)


def test_gradients_beyond_the_cap_and_energies_that_fail_are_counted(systems):
    class Broken:
        """Every second row has no energy, the first a huge force."""

        def u_and_grad(self, x):
            u, gradient = torch.zeros(len(x), dtype=torch.float64), torch.zeros_like(x)
            u[1::2] = torch.inf
            gradient[0] = 1e6
            return u, gradient

    made = source(systems, broken=Broken())
    batch = made.batch(state_of(network(systems)))
    assert made.figures() == {"gradient_evaluations": 4, "capped_rows": 2, "failed_rows": 4}
    assert len(batch.start.x) == 2 and batch.start.gradient[0].norm().item() == pytest.approx(1e4)
    again = source(systems)
    again.load_state_dict(made.state_dict())
    assert again.figures() == made.figures()
    with pytest.raises(ValueError, match="no configuration of a batch has a finite energy"):
        TargetedLoss(0.5)(network(systems), batch._replace(end=End(*(value[:0] for value in batch.end))))


def test_training_lowers_the_work_and_resumes_bit_for_bit(systems, tmp_path):
    def job(folder, steps=12):
        folder.mkdir(exist_ok=True)
        config = TrainingConfig(steps=steps, learning_rate=3e-3, warmup=1, weight_decay=0.0, clip=50.0, ema=0.5, checkpoint_every=5,
                                log_every=1)
        meta = {"system": "ala2-obc2", "recipe": {}, "seed": 0}
        return TrainingJob(model=network(systems), loss=TargetedLoss(0.5), data=source(systems, batch_size=64), config=config,
                           folder=folder, meta=meta)

    whole, half = job(tmp_path / "whole"), job(tmp_path / "half")
    train(whole, resume=False)
    losses = [json.loads(line)["loss"] for line in whole.metrics.read_text().splitlines()]
    assert sum(losses[-3:]) < sum(losses[:3])
    stopped = job(tmp_path / "half")
    stopped.data.batch = stop_before(6, stopped.data.batch)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, resume=False)
    train(half, resume=True)
    assert_equal(weights(half.generator), weights(whole.generator))


def stop_before(step, batch):
    """Ctrl-C while the batch of a step is made."""
    def stopping(state):
        if state.step == step:
            os.kill(os.getpid(), signal.SIGINT)
        return batch(state)

    return stopping


def test_maps_are_learned_on_some_walkers_and_weigh_the_others(systems):
    data = reference_samples(systems[0])
    learned, weighed = rows_to_learn(data), rows_to_weigh(data, learned_on=tensor_fingerprint(data.x))
    assert (learned ^ weighed).all() and not set(data.group[learned].tolist()) & set(data.group[weighed].tolist())
    assert 0.2 < learned.double().mean() < 0.3
    assert rows_to_weigh(data, learned_on="of other data").all()
    with pytest.raises(ValueError, match="every 4th walker.*the data have 3 of them"):
        rows_to_learn(replace(data, group=data.group % 3))


def test_the_commands_from_end_to_end(beside_data):
    made = trained()
    assert made.exit_code == 0, (made.output, made.exception)
    moved = call("transport", "made", "-n", "60", "--out", "moved")
    assert moved.exit_code == 0, (moved.output, moved.exception)
    weighted, data = weighted_samples(Path("moved")), reference_samples(load_system("ala2-vacuum"))
    assert len(weighted) == 60 and weighted.proposal.density is Density.UNNORMALISED and weighted.target == "ala2-obc2"
    assert not set(weighted.proposal.group.tolist()) & set(data.group[rows_to_learn(data)].tolist())
    assert "Verdict" in moved.output and json.loads(Path("moved/report.json").read_text())["log_z"] is None
    again = call("transport", "made", "-n", "60", "--out", "moved")
    assert again.exit_code == 0 and "exist and are kept" in again.output + again.stderr
    drawn = call("sample", "made", "-n", "4", "--steps", "2", "--accept", "uncertified", "--out", "drawn")
    assert drawn.exit_code == 0, (drawn.output, drawn.exception)
    assert "map of internal coordinates" in weighted_samples(Path("drawn")).proposal.note
    on = call("train", "ala2-obc2", "--recipe", "mapped.toml", "--data", "moved/samples.npz", "--out", "on", *options(
        *TINY, "training.initial=made/generator.safetensors", "training.compiled=false"))
    assert on.exit_code == 0, (on.output, on.exception)
    first, second = (store.load_checkpoint(Path(name) / "generator.safetensors")[0] for name in ("made", "on"))
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert changed and all(name.startswith("field.") for name in changed)


def test_flows_are_trained_on_with_data_taken_back_through_the_map(beside_data, tmp_path):
    trained()
    system = load_system("ala2-obc2")
    recipe = load_recipe(system, "mapped.toml", overrides=["training.initial='made/generator.safetensors'", "training.compiled=false"])
    x = reference_samples(system).x
    job = recipe.job(Request(system=system, name="mapped", folder=tmp_path, seed=0, data=x))
    image = job.model.map(job.data.x1.double())[0]
    torch.testing.assert_close(image, x, rtol=0, atol=1e-5)
    assert (job.data.x1 - x).abs().max() > 1e-3


def test_a_flow_without_a_map_is_trained_on_before_the_map_of_another_generator(beside_data, tmp_path):
    """Its values as they were, a refinement that starts at nothing, and velocities freed from noise."""
    trained()
    system = load_system("ala2-obc2")
    settings = ["training.initial='ala2-vacuum/fm-pooled'", "training.map='made/generator.safetensors'", "training.pool=8",
                "training.compiled=false"]
    request = Request(system=system, name="framed", folder=tmp_path, seed=0, data=reference_samples(system).x)
    job = load_recipe(system, "framed.toml", overrides=settings).job(request)
    flow, made = (store.load_checkpoint(path)[0] for path in (
        load_system("ala2-vacuum").path / "generators" / "fm-pooled.safetensors", Path("made/generator.safetensors")))
    own = job.model.state_dict()
    assert all(torch.equal(own[f"field.inner.{name}"], value) for name, value in flow.items())
    assert all(torch.equal(own[name], value) for name, value in made.items() if name.startswith("map."))
    assert job.data.forces is not None and job.data.pools is not None
    assert not any(parameter.requires_grad for parameter in job.model.map.parameters())
    nowhere = load_recipe(system, "framed.toml", overrides=[*settings, "training.map=''"])
    with pytest.raises(RecipeError, match="weights missing"):
        nowhere.job(request)


def test_recipes_that_do_not_fit_are_refused(beside_data, tmp_path):
    refused(trained("--set", "start.system=lj13"), "lj13 is not the molecule of ala2-obc2")
    refused(trained("--set", "start.generator=unknown"), "unknown")
    assert not Path("made").exists() or not any(Path("made").iterdir())
    recipe = load_recipe(load_system("ala2-obc2"), "mapped.toml", overrides=["training.initial=''"])
    request = Request(system=load_system("ala2-obc2"), name="mapped", folder=tmp_path, seed=0, data=torch.zeros(2, 22, 3))
    with pytest.raises(RecipeError, match="training.initial"):
        recipe.job(request)
    with pytest.raises(RecipeError, match="lj13 has no topology"):
        recipe.network(load_system("lj13"))
