"""The recipe of flow maps: every loss trains, students start from their teachers, and generators become samplers with either weights."""

import tomllib
from dataclasses import replace

import pytest
import torch
from toy import RECIPE

from bgwork.fields.two_times import AverageVelocity
from bgwork.generators import load_generator, load_trained
from bgwork.recipes import Choice, RecipeError, Request, Trained
from bgwork.recipes.distill import DistillRecipe
from bgwork.recipes.polish_map import MapPolishRecipe
from bgwork.records import Density, Origin
from bgwork.samplers.flow_map import FlowMapSampler
from bgwork.system import load_system
from bgwork.training import train

TRAINING = {"steps": 3, "batch": 8, "warmup": 1, "evaluate_every": 3, "evaluate_samples": 20, "log_every": 1, "checkpoint_every": 1}
LOSSES = ("paths", "ends", "average-velocity", "consistency")


def recipe(*, teacher=True, field=None, sampler=None, **training):
    values = {"objective": "distill", "field": field or tomllib.loads(RECIPE)["field"], "training": TRAINING | training,
              "sampler": {"steps": 2, "tuning": 2, "paths": 16} | (sampler or {})}
    if teacher:
        values["teacher"] = {"generator": "eqot-fm", "paths": 40, "steps": 8}
    return DistillRecipe.model_validate(values)


def request(toy, *, data=True):
    system = load_system(toy.system)
    x = system.differentiable_target.sample(50, generator=torch.Generator().manual_seed(2)) if data else None
    folder = toy.root / "run"
    folder.mkdir(exist_ok=True)
    return Request(system=system, name="distill", folder=folder, data=x, seed=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_student_starts_from_its_teacher_and_every_loss_moves_it(toy, loss):
    made = recipe(loss=loss, grids=[1, 2])
    assert made.needs_data == (loss not in ("paths", "ends"))
    job = made.job(request(toy, data=made.needs_data))
    teacher = load_trained(toy.generator)[1].network
    t, s, x = torch.rand(5), torch.rand(5), torch.randn(5, 1, 2)
    torch.testing.assert_close(job.model(t, s, x), teacher(t, x))
    before = [p.detach().clone() for p in job.model.parameters()]
    state = train(job, resume=False)
    assert state.step == 3 and job.generator.exists()
    assert any(not torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True))


def test_students_without_a_teacher_learn_from_data_alone(toy):
    for loss in ("average-velocity", "consistency"):
        job = recipe(teacher=False, loss=loss).job(request(toy))
        assert torch.isfinite(job.loss(job.model, job.data(0)))
    with pytest.raises(RecipeError, match=r'loss = "paths" needs a teacher.generator'):
        recipe(teacher=False).job(request(toy, data=False))


def test_a_teacher_with_another_field_is_refused(toy):
    with pytest.raises(RecipeError, match=r"does not fit the recipe.*is \[8.*\], not \[9"):
        recipe(field={"kind": "mlp", "hidden": 9, "depth": 1}).job(request(toy, data=False))
    with pytest.raises(RecipeError, match="does not fit the recipe"):
        recipe(field={"kind": "egnn"}).job(request(toy, data=False))


@pytest.mark.parametrize("tuning", [None, 20])
@pytest.mark.parametrize("backward", ["student", "noising"])
def test_samplers(toy, backward, tuning):
    made, system = recipe(sampler={"backward": backward}), load_system(toy.system)
    network = made.job(request(toy, data=False)).model
    held_out = tuning and system.target.sample(tuning, generator=torch.Generator().manual_seed(5))
    trained = Trained(network=network, system=system, prior=system.prior, origin=Origin(method="flow map", system="toy"), tuning=held_out)
    few = made.sampler_of(trained, made.default_choice())
    assert isinstance(few, FlowMapSampler) and few.times == (0.0, 0.5, 1.0)
    assert few.sample(4, generator=torch.Generator().manual_seed(0)).density is Density.EXACT
    path, again = (made.sampler_of(trained, Choice(integrator="flow-map", steps=3, weights="path")) for _ in range(2))
    proposal = path.sample(5, generator=torch.Generator().manual_seed(0))
    assert ("fitted to 20 configurations" if tuning else "fitted to the energy") in proposal.note
    assert (system.target.n_gradient == 0) == (tuning is not None)
    assert proposal.density is Density.PATH and proposal.cost.network == 5 * {"student": 6, "noising": 3}[backward]
    assert torch.equal(proposal.log_q, again.sample(5, generator=torch.Generator().manual_seed(0)).log_q)


def test_a_distilled_generator_is_loaded_and_distilled_further(toy):
    job = recipe().job(request(toy, data=False))
    train(job, resume=False)
    loaded = load_generator(job.generator)
    assert isinstance(loaded, FlowMapSampler) and isinstance(loaded.average, AverageVelocity)
    shipped = toy.system / "generators" / "distill.safetensors"
    shipped.write_bytes(job.generator.read_bytes())
    further = recipe(loss="ends", initial="distill").job(request(toy, data=False))
    for mine, theirs in zip(further.model.parameters(), loaded.average.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("own", ["forward", "reverse"])
def test_a_distilled_map_is_polished_at_its_number_of_steps(toy, own):
    job = recipe().job(request(toy, data=False))
    train(job, resume=False)
    (toy.system / "generators" / "distill.safetensors").write_bytes(job.generator.read_bytes())
    polish = MapPolishRecipe.model_validate({
        "objective": "polish-map", "field": tomllib.loads(RECIPE)["field"], "sampler": {"steps": 2}, "polish": {"share": 0.5, "own": own},
        "training": {key: value for key, value in TRAINING.items() if key != "batch"} | {"initial": "distill"}})
    (toy.root / "polished").mkdir()
    polished = polish.job(replace(request(toy), folder=toy.root / "polished"))
    start = [p.detach().clone() for p in polished.model.parameters()]
    loaded = load_generator(job.generator).average
    for a, b in zip(start, loaded.parameters(), strict=True):
        assert torch.equal(a, b)
    state = train(polished, resume=False)
    assert any(not torch.equal(a, b) for a, b in zip(start, state.model.parameters(), strict=True))
    system = load_system(toy.system)
    trained = Trained(network=state.model, system=system, prior=system.prior, origin=Origin(method="flow map", system="toy"))
    assert polish.sampler_of(trained, polish.default_choice()).times == (0.0, 0.5, 1.0)
    with pytest.raises(RecipeError, match="polished for 2 steps, not for 4"):
        polish.sampler_of(trained, Choice(integrator="flow-map", steps=4, weights="density"))
