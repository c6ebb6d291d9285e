"""Recipes: what is wrong is named, overrides reach the job, and what is written back is what was meant."""

import re
import shutil
import tomllib
from dataclasses import replace

import pytest
import torch
from toy import RECIPE

from bgwork import store
from bgwork.couplings import EquivariantOptimalTransport, Independent, OptimalTransport
from bgwork.fields.egnn import EGNN
from bgwork.fields.multihop import MultiHop
from bgwork.generators import load_generator
from bgwork.protocols import Sampler
from bgwork.recipes import RecipeError, Request, initial_network, list_recipes, load_recipe, parse_recipe, save_recipe
from bgwork.recipes.base import Trained
from bgwork.records import Origin
from bgwork.runs import RunError, SampleSettings, find_run
from bgwork.system import list_systems, load_system


def recipe(**tables):
    values = tomllib.loads(RECIPE)
    for table, changes in tables.items():
        values[table] = {key: value for key, value in {**values[table], **changes}.items() if value is not None}
    return parse_recipe(values, source="test")


def test_every_shipped_recipe_builds_its_network_and_sampler():
    for system in map(load_system, list_systems()):
        for name in list_recipes(system):
            recipe = load_recipe(system, name)
            trained = Trained(network=initial_network(recipe, system, seed=0), system=system, prior=system.prior,
                              origin=Origin(method=name, system=system.name))
            sampler = recipe.sampler_of(trained, recipe.default_choice())
            assert isinstance(sampler, Sampler) and sampler.space == system.space


def test_the_commands_know_every_recipe_s_own_way_of_sampling():
    for system in map(load_system, list_systems()):
        for name in list_recipes(system):
            recipe = load_recipe(system, name)
            asked, own = SampleSettings().on(recipe), recipe.default_choice()
            assert (asked.integrator, asked.steps, asked.weights) == (own.integrator, own.steps, own.weights)


@pytest.mark.parametrize("system, recipe, settings, told", [
    ("ala2-vacuum", "fm-more", {"steps": 8}, "chosen for 12 steps and not for 8"), ("ala2-vacuum", "fm-more", {"steps": 12}, ""),
    ("ala2-vacuum", "fm-more", {}, ""), ("ala2-vacuum", "fm-more", {"steps": 8, "overrides": ("sampler.ease=1",)}, ""),
    ("ala2-vacuum", "fm-more", {"overrides": ("sampler.steps=8",)}, ""), ("dw4", "eqot-fm", {"steps": 4}, "")])
def test_steps_that_a_shortened_grid_was_not_chosen_for_are_remarked_on(system, recipe, settings, told):
    remark = find_run(system, SampleSettings(n=1, **settings), recipe=recipe, folder=None).remark
    assert told in remark and bool(told) == bool(remark)


def test_overrides_of_a_generator_reach_its_grid_and_nothing_else():
    changed = find_run("ala2-vacuum", SampleSettings(n=1, steps=8, overrides=("sampler.ease=1", "sampler.stretch=1.5")), recipe="fm-more",
                       folder=None)
    own = find_run("ala2-vacuum", SampleSettings(n=1, steps=8), recipe="fm-more", folder=None)
    flow, before = changed.sampler(lambda *_: None), own.sampler(lambda *_: None)
    assert flow.grid.times == tuple(1 - (1 - k / 8) ** 2 for k in range(9)) != before.grid.times
    assert flow.prior.std / before.prior.std == pytest.approx(1.5 / 1.04)
    assert changed.fingerprint != own.fingerprint and changed.settings.decisive["overrides"] == ("sampler.ease=1", "sampler.stretch=1.5")
    assert "overrides" not in own.settings.decisive
    wrong_ones = {"training.steps=3": "no key of [sampler]", "sampler.foo=1": "allowed here: integrator, steps", "ease=1": "no key of"}
    for wrong, told in wrong_ones.items():
        with pytest.raises(RecipeError, match=re.escape(told)):
            find_run("ala2-vacuum", SampleSettings(n=1, overrides=(wrong,)), folder=None)


@pytest.mark.parametrize(("system", "recipe"), [("dw4", "polish"), ("lj13", "distill-polish")])
def test_a_grid_that_was_trained_cannot_be_changed(system, recipe):
    with pytest.raises(RecipeError, match="were trained with it"):
        find_run(system, SampleSettings(n=1, overrides=("sampler.steps=3",)), recipe=recipe, folder=None)


def test_steps_given_twice_are_refused():
    with pytest.raises(RunError, match="steps is given twice"):
        find_run("dw4", SampleSettings(n=1, steps=4, overrides=("sampler.steps=3",)), recipe="eqot-fm", folder=None)
    once = find_run("dw4", SampleSettings(n=1, overrides=("sampler.steps=3",)), recipe="eqot-fm", folder=None)
    assert once.settings.steps == once.sampler(lambda *_: None).grid.steps == 3


def test_overrides_reach_the_job(toy):
    system = load_system(toy.system)
    changed = load_recipe(system, overrides=["training.steps=7", "coupling.kind=ot", "field.hidden=5"])
    job = changed.job(Request(system=system, name="eqot-fm", folder=toy.root / "run", data=torch.randn(20, 1, 2), seed=3))
    assert (job.config.steps, changed.field.hidden) == (7, 5)
    assert isinstance(job.data.coupling, OptimalTransport)
    assert job.meta["recipe"]["training"]["steps"] == 7


@pytest.mark.parametrize("override", ["training.oversample.n_long_4_is_3=0.4", "training.oversample={n_long_4_is_3=0.4}"])
def test_overrides_reach_tables_in_tables(toy, override):
    assert load_recipe(load_system(toy.system), overrides=[override]).training.oversample == {"n_long_4_is_3": 0.4}


@pytest.mark.parametrize(("override", "names"), [
    ("training.step=7", "steps, learning_rate.*batch"), ("field.width=7", "hidden, depth"), ("optimizer=adam", "objective, description"),
    ("training.steps=many", "training.steps"), ("training.steps=0", "greater than or equal to 1"),
    ("training.steps", "table.key=value"),
    ("coupling.kind=sinkhorn", "'independent', 'ot', 'equivariant-ot', 'molecular' or 'soft-molecular'"),
    ("objective.kind=x", "objective"), ("training.steps=2.5", "integer"), ("training.steps.x=2", "'steps' in .* is not a table"),
    ("training..steps=2", "table.key=value"), ("training.oversample.n_long.x=2", "valid number")])
def test_a_wrong_override_is_named_with_what_is_allowed(toy, override, names):
    with pytest.raises(RecipeError, match=names):
        load_recipe(load_system(toy.system), overrides=[override])


def test_an_unknown_recipe_names_the_known_ones(toy):
    with pytest.raises(RecipeError, match="known recipes: eqot-fm"):
        load_recipe(load_system(toy.system), "magic")


def test_a_missing_key_is_named():
    values = tomllib.loads(RECIPE)
    del values["training"]["steps"]
    with pytest.raises(RecipeError, match="training.steps: Field required"):
        parse_recipe(values, source="test")


def test_a_recipe_that_is_not_toml_is_refused(toy):
    (toy.system / "recipes" / "broken.toml").write_text("objective = ")
    with pytest.raises(RecipeError, match="not readable TOML"):
        load_recipe(load_system(toy.system), "broken")


def test_the_saved_recipe_reads_back_as_itself(toy):
    path = toy.root / "resolved.toml"
    save_recipe(recipe(), path)
    assert load_recipe(load_system(toy.system), str(path)) == recipe()


def test_sections_build_what_they_name():
    system = load_system("dw4")
    for section, field in (({"kind": "multihop", "hidden": 8, "softening": 0.2}, MultiHop), ({"kind": "egnn", "hidden": 8}, EGNN)):
        values = {**tomllib.loads(RECIPE), "field": section}
        assert isinstance(parse_recipe(values, source="test").field.build(system), field)
    for kind, coupling in (("independent", Independent), ("equivariant-ot", EquivariantOptimalTransport)):
        assert isinstance(recipe(coupling={"kind": kind}).coupling.build(system), coupling)


@pytest.mark.parametrize(("name", "kind", "remedy"), [
    ("gmm40", "soft-molecular", "turns configurations, and gmm40 lives on .*; take \"ot\""),
    ("ala2-vacuum", "equivariant-ot", "the atoms of ala2-vacuum differ; take \"molecular\"")])
def test_a_coupling_by_symmetries_that_the_system_lacks_is_refused(name, kind, remedy):
    with pytest.raises(ValueError, match=remedy):
        recipe(coupling={"kind": kind}).coupling.build(load_system(name))


def test_power_shortens_the_last_steps_and_ease_the_first():
    even, late, both = (recipe(sampler={"steps": 8, **kind}).sampler.build() for kind in ({}, {"power": 2.0}, {"power": 2.0, "ease": 1.3}))
    assert late.times == tuple(1 - (1 - k / 8) ** 2 for k in range(9))
    first, last = ([grid.intervals[place][1] for grid in (even, late, both)] for place in (0, -1))
    assert first[0] == pytest.approx(1 / 8) and first[2] < 0.6 * first[1]
    assert last[1] < last[2] < last[0]
    assert recipe(sampler={"steps": 4, "ease": 2.0}).sampler.build().times == (0, 0.0625, 0.25, 0.5625, 1)
    assert both.times[0] == 0 and both.times[-1] == 1 and all(h > 0 for _, h in both.intervals)


@pytest.mark.parametrize("key", ["power", "ease"])
def test_symmetric_steps_start_from_a_uniform_grid(toy, key):
    values = tomllib.loads(RECIPE) | {"objective": "polish", "polish": {"step_sizes": "symmetric"}, "sampler": {"steps": 2, key: 1.5}}
    values["training"] = {"steps": 1, "initial": "eqot-fm"}
    del values["coupling"]
    with pytest.raises(RecipeError, match=rf"set sampler.{key} = 1, not 1.5"):
        parse_recipe(values, source="test").job(Request(
            system=load_system(toy.system), name="polish", folder=toy.root / "run", data=torch.randn(20, 1, 2), seed=5))


def test_a_stretched_prior_is_in_samples_and_densities(toy):
    system = load_system(toy.system)
    trained = Trained(network=load_generator(toy.generator).field, system=system, prior=system.prior,
                      origin=Origin(method="eqot-fm", system="toy"))
    plain, wide = (made.sampler_of(trained, made.default_choice()) for made in (recipe(), recipe(sampler={"stretch": 2.0})))
    assert wide.prior.std == 2 * plain.prior.std == 2 * system.prior.std
    drawn = wide.sample(500, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(wide.log_prob(drawn.x), drawn.log_q)
    assert not torch.allclose(plain.log_prob(drawn.x), drawn.log_q, atol=0.1)
    continuous = recipe(sampler={"stretch": 2.0}).sampler_of(trained, replace(recipe().default_choice(), weights="continuous"))
    assert continuous.prior.std == wide.prior.std


def test_training_can_start_from_a_generator_of_the_system(toy):
    system = load_system(toy.system)
    started = load_recipe(system, overrides=["training.initial=eqot-fm"])
    job = started.job(Request(system=system, name="more", folder=toy.root / "run", data=torch.randn(20, 1, 2), seed=5))
    shipped = load_generator(toy.generator).field.state_dict()
    assert all(torch.equal(value, shipped[name]) for name, value in job.model.state_dict().items())


def test_a_start_from_another_molecule_is_refused(tmp_path):
    system = load_system("ala3-obc2")
    text = (load_system("ala2-obc2").path / "recipes" / "fm.toml").read_text()
    values = tomllib.loads(text)
    values["training"] |= {"initial": "ala2-vacuum/fm-both", "compiled": False}
    request = Request(system=system, name="fm", folder=tmp_path, data=system.structure[None].float(), seed=0)
    with pytest.raises(RecipeError, match="ala2-vacuum is not the molecule of ala3-obc2"):
        parse_recipe(values, source="fm.toml").job(request)


def test_training_can_start_from_a_generator_of_another_system(toy):
    twin = toy.root / "systems" / "twin"
    shutil.copytree(toy.system, twin)
    shutil.rmtree(twin / "generators")
    (twin / "system.toml").write_text((twin / "system.toml").read_text().replace('name = "toy"', 'name = "twin"'))
    system = load_system("twin")
    request = Request(system=system, name="more", folder=toy.root / "run", data=torch.randn(20, 1, 2), seed=5)
    job = load_recipe(system, overrides=["training.initial=toy/eqot-fm"]).job(request)
    shipped = load_generator(toy.generator).field.state_dict()
    assert all(torch.equal(value, shipped[name]) for name, value in job.model.state_dict().items())
    known = {"eqot-fm": "twin/generators/eqot-fm", "nothing/eqot-fm": "unknown system", "toy/none": "toy/generators/none"}
    for start, error in known.items():
        with pytest.raises(ValueError, match=error):
            load_recipe(system, overrides=[f"training.initial={start}"]).job(request)


@pytest.mark.parametrize(("change", "misfit"), [
    ("depth=2", r"[1-9]\d* weights missing, 0 unknown"), ("hidden=9", r"is \[8.*\], not \[9.*\]")])
@pytest.mark.parametrize(("objective", "extra"), [
    ("flow-matching", {}), ("polish", {"coupling": None, "sampler": {"integrator": "midpoint", "steps": 2}}),
    ("polish-map", {"coupling": None, "sampler": {"steps": 2}})])
def test_a_generator_with_another_field_is_refused_as_a_start(toy, objective, extra, change, misfit):
    name, value = change.split("=")
    values = tomllib.loads(RECIPE) | {"objective": objective} | extra
    values["training"] = {key: v for key, v in values["training"].items() if key != "batch"} | {"initial": "eqot-fm"}
    made = {key: v for key, v in values.items() if v is not None}
    system = load_system(toy.system)
    request = Request(system=system, name="more", folder=toy.root / "run", data=torch.randn(20, 1, 2), seed=5)
    if objective == "polish-map":  # needs a flow map of the same sizes as the toy's field
        distilled(toy, made["field"])
    other = made | {"field": made["field"] | {name: int(value)}}
    with pytest.raises(RecipeError, match=rf"eqot-fm.safetensors does not fit the recipe's \[field\]: .*{misfit}; start from"):
        parse_recipe(other, source="test").job(request)
    parse_recipe(made, source="test").job(request)


def distilled(toy, field):
    """The weights of a flow map in place of the shipped generator's."""
    values = {"objective": "distill", "field": field, "training": {"steps": 1, "loss": "consistency"}}
    network = initial_network(parse_recipe(values, source="test"), load_system(toy.system), seed=0)
    store.save_checkpoint(toy.generator, dict(network.named_parameters()), {"kind": "generator"})


def test_a_rare_basin_can_be_drawn_more_often(toy):
    system = load_system("dw4")
    x = torch.cat([line_of_four(spacing=1.9, rows=950), line_of_four(spacing=3.0, rows=50)])  # 1 and 3 of 6 distances above 4
    oversampling = recipe(training={"oversample": {"n_long_4_is_3": 0.4}, "batch": 500}, field={"kind": "egnn", "hidden": 8, "depth": None})
    save_recipe(oversampling, toy.root / "resolved.toml")
    assert load_recipe(system, str(toy.root / "resolved.toml")) == oversampling
    batches = oversampling.job(Request(system=system, name="more", folder=toy.root / "run", data=x, seed=5)).data
    n, rare = 20 * 500, 0
    for step in range(20):
        batch = batches(step)
        x1 = batch.x + (1 - batch.t)[:, None, None] * batch.velocity
        rare += int((x1[:, 0] - x1[:, 3]).norm(dim=-1).gt(7).sum())
    assert abs(rare / n - 0.4) < 4 * (0.4 * 0.6 / n) ** 0.5
    chances = oversampling.training.chances(system, x)
    assert chances[:950].unique().numel() == chances[950:].unique().numel() == 1
    assert recipe().training.chances(system, x) is None


def line_of_four(*, spacing, rows):
    """Four particles in a row in the plane."""
    x = torch.zeros(rows, 4, 2)
    x[:, :, 0] = spacing * torch.tensor([-1.5, -0.5, 0.5, 1.5])
    return x


@pytest.mark.parametrize(("asked", "names"), [
    ({"n_long_5": 0.1}, "unknown observable 'n_long_5'.*known are pair_distance_mean"),
    ({"n_long_5 > 1": 0.1}, "unknown observable 'n_long_5'"),
    ({"pair_distance_max": 0.1}, "of dw4: pair_distance_max is from 9 to 9 and not 1 or 0; give a bound"),
    ({"n_long_4_is_2": 0.1}, "holds at some of the 10 configurations and not at the others, but n_long_4_is_2 holds at none"),
    ({"pair_distance_max > 8": 0.1}, "but pair_distance_max > 8 holds at all"),
    ({"coordinate_z": 0.1}, "training.oversample of dw4: coordinate_z is no observable of these configurations")])
def test_only_an_indicator_that_varies_can_be_drawn_more_often(asked, names):
    with pytest.raises(RecipeError, match=names):
        recipe(training={"oversample": asked}).training.chances(load_system("dw4"), line_of_four(spacing=3.0, rows=10))


@pytest.mark.parametrize("asked", [{"phi_positive": 1.0}, {"phi_positive": 0.0}])
def test_shares_of_a_basin_lie_between_none_and_all(asked):
    with pytest.raises(RecipeError, match="training.oversample"):
        recipe(training={"oversample": asked})


def test_initial_weights_depend_on_the_seed_alone():
    a, b, c = (initial_network(recipe(), load_system("gmm40"), seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)
