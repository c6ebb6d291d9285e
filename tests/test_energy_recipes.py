"""Recipes of diffusions and of samplers from the energy alone: trained for a few steps, sampled with both weights, bootstrapped."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from exact_diffusions import velocity
from oracles import GaussianOracle

from bgwork import figures_learning, store
from bgwork.generators import load_trained
from bgwork.learning import training_record
from bgwork.objectives.bootstrap import data_from, resampled
from bgwork.objectives.diffusion import SCHEDULES, score_of_velocity
from bgwork.provenance import file_fingerprint
from bgwork.recipes import RecipeError, Request, load_recipe, parse_recipe
from bgwork.recipes.adjoint import AdjointRecipe, WeightedAdjointRecipe
from bgwork.recipes.base import spent_behind
from bgwork.records import Density, Origin, Proposal
from bgwork.reweighting import log_z, weigh
from bgwork.spaces import Euclidean
from bgwork.system import load_system, reference_samples
from bgwork.training import train

FIELD = {"kind": "mlp", "hidden": 8, "depth": 2}
LOOP = {"steps": 6, "warmup": 1, "evaluate_every": 6, "evaluate_samples": 200, "checkpoint_every": 3, "log_every": 3}
REPLAY = {"capacity": 200, "fresh": 100, "every": 2, "batch": 20}
BROWNIAN = {"std": 3.0, "ratio": 0.1, "clip": 50.0, "curvature": 1.0}
VALUES = {
    "adjoint": {"process": BROWNIAN, "replay": REPLAY}, "weighted-adjoint": {"process": BROWNIAN, "replay": REPLAY, "effective": 0.3},
    "bridge-matching": {"process": BROWNIAN, "replay": REPLAY},
    "flow-sampling": {"process": {"start": 2.0, "gamma": 0.5, "clip": 50.0}, "replay": REPLAY},
    "idem": {"process": {"largest": 4.0, "ratio": 0.02, "samples": 16, "clip": 50.0}, "replay": REPLAY},
    "diffusion": {"schedule": {"kind": "variance-preserving"}}}


def recipe_of(objective, **changes):
    values = {"objective": objective, "field": FIELD, "training": LOOP, "sampler": {"steps": 10}, **VALUES.get(objective, {}), **changes}
    return parse_recipe(values, source="test")


def trained(toy, objective, *, folder="run", **changes):
    system, recipe = load_system(toy.system), recipe_of(objective, **changes)
    data = reference_samples(system).x if recipe.needs_data else None
    (toy.root / folder).mkdir()
    job = recipe.job(Request(system=system, name=objective, folder=toy.root / folder, seed=0, data=data))
    train(job, resume=False)
    return job


@pytest.mark.parametrize("objective", VALUES)
def test_trained_generators_hand_over_both_kinds_of_weights(toy, objective):
    job = trained(toy, objective)
    recipe, made = load_trained(job.generator)
    for weights, density in (("path", Density.PATH), ("density", Density.EXACT)):
        sampler = recipe.sampler_of(made, replace(recipe.default_choice(), weights=weights))
        weighted = weigh(sampler.sample(3000, generator=torch.Generator().manual_seed(1)), made.system.target)
        found = log_z(weighted)
        assert weighted.proposal.density is density
        assert weighted.proposal.origin.config_hash and weighted.proposal.origin.seed == 1
        assert abs(found.value) < 4 * found.stderr and found.stderr < 0.3


def test_a_diffusion_takes_its_widths_from_held_out_configurations_and_says_so(toy):
    recipe, made = load_trained(trained(toy, "diffusion").generator)
    x1 = made.system.target.sample(300, generator=torch.Generator().manual_seed(3))
    by_data, wider, by_prior = (recipe.sampler_of(replace(made, tuning=held), recipe.default_choice()) for held in (x1, 3 * x1, None))
    assert (wider.kernels.table.std > by_data.kernels.table.std).all()
    assert not torch.equal(by_prior.kernels.table.std, by_data.kernels.table.std)
    for sampler, words in ((by_data, "fitted to 300 configurations"), (by_prior, "of a Gaussian with the prior's spread")):
        assert words in sampler.sample(2, generator=torch.Generator().manual_seed(1)).note


@pytest.mark.parametrize("objective", ["adjoint", "weighted-adjoint", "flow-sampling", "idem"])
def test_headers_tell_what_the_energy_was_asked(toy, objective):
    progress = store.load_checkpoint(trained(toy, objective).generator)[1]["progress"]
    asked = {"idem": 6 * 20 * 16}.get(objective, 3 * 100)
    assert progress["gradient_evaluations"] == asked
    assert progress["energy_evaluations"] == (300 if objective == "idem" else 0)


@pytest.mark.parametrize("objective", ["adjoint", "flow-sampling", "idem"])
def test_replay_may_draw_rows_by_their_tempered_weights(toy, objective):
    assert "log_p" not in trained(toy, objective, folder="plain").data.buffer.state_dict()
    job = trained(toy, objective, replay=REPLAY | {"effective": 0.4})
    log_p = job.data.buffer["log_p"].view(2, 100)  # the last two of three refills
    assert torch.allclose(log_p.logsumexp(1), torch.zeros(2, dtype=torch.float64), atol=1e-9)
    assert (1 / log_p.exp().square().sum(1) > 0.399 * 100).all()


@pytest.mark.parametrize(("objective", "message"), [
    ("weighted-adjoint", "by weight anyway; set its key `effective`"), ("bridge-matching", "data, which have no weights")])
def test_replay_weights_are_refused_where_there_are_none_or_others(toy, objective, message):
    with pytest.raises(RecipeError, match=f"replay.effective = 0.4: .*{message}"):
        trained(toy, objective, replay=REPLAY | {"effective": 0.4})
    with pytest.raises(RecipeError, match="replay.effective: .* less than or equal to 1, got 1.5"):
        recipe_of(objective, replay=REPLAY | {"effective": 1.5})


def test_bridge_matching_is_a_start_for_adjoint_sampling(toy):
    start = trained(toy, "bridge-matching")
    (toy.system / "generators").mkdir(exist_ok=True)
    (toy.system / "generators" / "bridge.safetensors").write_bytes(start.generator.read_bytes())
    recipe = recipe_of("adjoint", training=LOOP | {"initial": "bridge"})
    job = recipe.job(Request(system=load_system(toy.system), name="adjoint", folder=toy.root / "next", seed=1))
    held = store.load_checkpoint(start.generator)[0]
    assert all(torch.equal(p, held[name]) for name, p in job.model.named_parameters())


def test_a_bootstrap_learns_from_the_weighted_samples_of_its_teacher(toy):
    teacher = trained(toy, "adjoint")
    settings = {"coupling": {"kind": "independent"}, "sampler": {"integrator": "midpoint", "steps": 4}}
    for weights in ("path", "density"):
        job = trained(toy, "bootstrap", folder=weights, **settings,
                      teacher={"generator": str(teacher.folder), "samples": 500, "weights": weights})
        header = store.load_checkpoint(job.generator)[1]
        assert header["teacher"]["energy"] == 500 and 0 < header["teacher"]["ess"] < 1 and header["data"]
        spent = store.load_checkpoint(teacher.generator)[1]["progress"]
        rows = [json.loads(line) for line in job.metrics.read_text().splitlines()]
        for told in (header["progress"], *rows):
            assert told["gradient_evaluations"] == spent["gradient_evaluations"] == 300 and told["energy_evaluations"] == 500
        assert len(job.data.x1) == 500 and header["teacher"]["distinct"] == len(job.data.x1.unique(dim=0))
    with pytest.raises(RecipeError, match="train it first"):
        trained(toy, "bootstrap", folder="none", **settings, teacher={"generator": "nobody"})


def test_a_polish_counts_from_the_very_beginning_where_no_data_stand_behind_it(toy):
    """Teacher, bootstrap, polish: 300 gradients and 500 energies to begin with, then 20 gradients a step."""
    teacher = trained(toy, "adjoint")
    grid = {"sampler": {"integrator": "midpoint", "steps": 4}}
    start = trained(toy, "bootstrap", folder="bootstrap", coupling={"kind": "independent"}, **grid,
                    teacher={"generator": str(teacher.folder), "samples": 500, "weights": "path"})
    shutil.copy(start.generator, toy.system / "generators" / "bootstrap.safetensors")
    job = polished(toy, "bootstrap", share=0.0, **grid)
    told = store.load_checkpoint(job.generator)[1]["progress"]
    assert (told["gradients"], told["energy_evaluations"], told["gradient_evaluations"]) == (120, 500, 420)
    record = record_of(job)
    assert record.spent == 920 and record.is_curve and [asked for asked, *_ in record.quantiles] == [840, 880, 920]
    assert all(low < middle < high for _, low, middle, high in record.quantiles)
    left, right = figures_learning.learning(record, None).axes
    assert left.lines[0].get_xdata().tolist() == right.lines[0].get_xdata().tolist() == [840, 880, 920]
    assert not record_of(start).is_curve and record_of(start).spent == 800
    assert record_of(polished(toy, "bootstrap", share=0.5, **grid)) is None, "nobody knows what the data cost"
    assert record_of(polished(toy, "eqot-fm", share=0.0, field=FIELD | {"depth": 1}, **grid)) is None, "nor those it was trained on"


def test_evaluations_behind_a_start_are_those_of_every_training_on_the_way(toy):
    """300 gradients, and 300 more from there; behind a start from data nobody knows how many."""
    for name, objective in (("first", "adjoint"), ("taught", "bridge-matching")):
        made = trained(toy, objective, folder=name)
        shutil.copy(made.generator, toy.system / "generators" / f"{name}.safetensors")
    for start, expected in (("first", {"energy_evaluations": 0, "gradient_evaluations": 600}), ("taught", {})):
        again = trained(toy, "adjoint", folder=f"from-{start}", training=LOOP | {"initial": start})
        shutil.copy(again.generator, toy.system / "generators" / f"from-{start}.safetensors")
        assert spent_behind(toy.system / "generators" / f"from-{start}.safetensors") == expected


def polished(toy, initial, *, share, **settings):
    return trained(toy, "polish", folder=f"{initial}, {share}", training=LOOP | {"initial": initial, "evaluate_every": 2},
                   polish={"batch": 20, "share": share}, **settings)


def record_of(job):
    return training_record(job.folder, {"generator": str(job.generator), "generator_fingerprint": file_fingerprint(job.generator)},
                           made_with="")


def test_a_bootstrap_shows_its_teacher_no_reference_samples(toy, monkeypatch):
    teacher, seen, own = trained(toy, "adjoint"), [], AdjointRecipe.sampler_of
    monkeypatch.setattr(AdjointRecipe, "sampler_of", lambda recipe, made, choice: seen.append(made) or own(recipe, made, choice))
    trained(toy, "bootstrap", folder="next", coupling={"kind": "independent"}, sampler={"integrator": "midpoint", "steps": 4},
            teacher={"generator": str(teacher.folder), "samples": 100, "weights": "path"})
    assert load_trained(teacher.generator)[1].tuning is not None
    assert seen and all(made.round_trip is None and made.tuning is None for made in seen)


def test_a_bootstrap_from_a_teacher_of_data_does_not_pretend_to_know_what_the_data_cost(toy):
    settings = {"coupling": {"kind": "independent"}, "sampler": {"integrator": "midpoint", "steps": 4}}
    job = trained(toy, "bootstrap", **settings, teacher={"generator": "eqot-fm", "samples": 100, "weights": "density"})
    header = store.load_checkpoint(job.generator)[1]
    assert header["teacher"]["energy"] == 100 and "energy_evaluations" not in header["progress"]


def test_resampled_rows_follow_the_target():
    space = Euclidean(n=1, d=2)
    target, n = GaussianOracle(space=space, std=1.0), 40_000
    wide = GaussianOracle(space=space, std=1.5)
    x = wide.sample(n, generator=torch.Generator().manual_seed(0))
    proposal = Proposal(x=x, log_q=wide.log_prob(x), space=space, density=Density.EXACT, origin=Origin(method="wide", system="oracle"))
    made = resampled(weigh(proposal, target), n, generator=torch.Generator().manual_seed(1))
    square = made.x.square().sum((1, 2))
    assert abs(made.ess.value - target.ess_from(1.5)) < 4 * made.ess.stderr
    assert abs(square.mean() - 2) < 4 * square.std() / (made.ess.value * n / 2) ** 0.5
    assert made.distinct < n

    class Wide:
        space = target.space

        def sample(self, count, *, generator):
            return proposal

    assert data_from(Wide(), target, n, generator=torch.Generator()).cost.energy == n


@pytest.mark.parametrize("kind", SCHEDULES)
def test_score_and_velocity_say_the_same(kind):
    path, t = SCHEDULES[kind], torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    x = torch.randn(7, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = velocity(path, prior_std=1.5, target_std=0.7)(t)[:, None, None] * x
    a, b, _, _ = path.coefficients(t)
    exact = -1 / ((0.7 * a) ** 2 + (1.5 * b) ** 2)
    assert torch.allclose(score_of_velocity(path, t, x, v, prior_std=1.5), exact[:, None, None] * x)


def test_the_shipped_recipes_of_energy_methods_need_no_data():
    both = ("adjoint", "weighted-adjoint")
    shipped = {"dw4": (*both, "flow-sampling", "idem", "bootstrap"), "lj55": both, "manywell32": both}
    for name, recipes in shipped.items():
        system = load_system(name)
        assert not any(load_recipe(system, recipe).needs_data for recipe in recipes)
    assert load_recipe(load_system("dw4"), "diffusion").needs_data
    assert isinstance(load_recipe(load_system("manywell32")), WeightedAdjointRecipe), "the one that system.toml names"


@pytest.mark.parametrize("name", ["dw4", "lj13", "gmm40"])
def test_the_teacher_of_a_shipped_bootstrap_is_another_recipe_of_the_system(name):
    system = load_system(name)
    teacher = load_recipe(system, "bootstrap").teacher
    assert teacher.weights in load_recipe(system, teacher.generator).weights
