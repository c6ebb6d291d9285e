"""Generators: the shipped ones load, sample and certify; damaged or foreign ones are refused."""

import tomllib
from dataclasses import replace

import pytest
import torch
from toy import RECIPE, make_generator

from bgwork import store
from bgwork.generators import GeneratorError, generator_path, held_out_rows, load_generator, shipped_generators, tuning_set
from bgwork.recipes import parse_recipe
from bgwork.records import Density
from bgwork.reweighting import ess, weigh
from bgwork.runs import SampleSettings, find_run
from bgwork.system import list_systems, load_system, reference_samples

SHIPPED = [(name, recipe) for name in list_systems() for recipe in shipped_generators(load_system(name))]
MINUTES = {("lj13", "egnn-fm"), ("lj13", "diffusion")}  # a Jacobian by brute force; kernels to fit
MOLECULES = {name for name in list_systems() if load_system(name).topology is not None}


def _sampled(name, recipe):
    """A generator with the number of held-out configurations for its certificate: all of them take minutes where there are 22 atoms."""
    if name in MOLECULES:
        default = name == "ala2-vacuum" and recipe == load_system(name).default_generator  # the others are slow
        return [pytest.param(name, recipe, None, marks=pytest.mark.slow), *([(name, recipe, 4)] if default else [])]
    return [pytest.param(name, recipe, None, marks=[pytest.mark.slow] if (name, recipe) in MINUTES else [])]


SAMPLED = [case for name, recipe in SHIPPED for case in _sampled(name, recipe)]


def test_the_systems_that_must_have_a_generator_have_one():
    assert {("dw4", "eqot-fm"), ("lj13", "eqot-fm")} <= set(SHIPPED)


@pytest.mark.parametrize(("name", "recipe", "held_out"), SAMPLED)
def test_a_shipped_generator_is_certified_and_close_to_its_target(name, recipe, held_out):
    system, flow = load_system(name), load_generator(name, recipe=recipe)
    flow = flow if held_out is None else replace(flow, round_trip=flow.round_trip[:held_out])
    proposal = flow.sample(32, generator=torch.Generator().manual_seed(0))
    assert proposal.density in (Density.EXACT, Density.PATH)
    least = 0.2 if system.topology is None else 0.08 if system.space.n < 30 else 0.04  # of 32 samples; an untrained field has 1/32
    assert ess(weigh(proposal, system.target)).value > least


@pytest.mark.parametrize("name", ["dw4", "manywell32"])
def test_kernels_are_not_fitted_to_what_they_are_judged_by(name):
    system = load_system(name)
    x, fitted = reference_samples(system).x, tuning_set(system)
    judged = x[held_out_rows(len(x))]
    fitted_rows, judged_rows, rows = ({tuple(row) for row in of.flatten(1).tolist()} for of in (fitted, judged, x))
    assert len(fitted_rows) == 512 and len(judged_rows) == 400
    assert fitted_rows < rows and not fitted_rows & judged_rows


@pytest.mark.parametrize("weights", ["path", "density"])
def test_stored_path_samples_belong_to_what_their_kernels_were_fitted_to(weights, tmp_path):
    run = find_run("dw4", SampleSettings(n=4, weights=weights), recipe="distill", folder=tmp_path)
    other, none = (replace(run, trained=replace(run.trained, tuning=tuning)) for tuning in (run.trained.tuning[1:], None))
    assert len({each.fingerprint for each in (run, other, none)}) == {"path": 3, "density": 1}[weights]


@pytest.mark.parametrize(("name", "recipe"), SHIPPED)
def test_a_shipped_generator_says_how_it_was_made(name, recipe):
    system = load_system(name)
    made = store.read_json(system.path / "generators" / f"{recipe}.json")
    meta = store.load_checkpoint(system.path / "generators" / f"{recipe}.safetensors")[1]
    assert {"command", "seed", "commit", "steps", "core_minutes", "figures", "data"} <= made.keys()
    assert not made["seed"] or f"--seed {made['seed']}" in made["command"], "the command named would train another generator"
    assert (made["seed"], made["commit"], made["steps"]) == (meta["seed"], meta["commit"], meta["progress"]["step"])
    assert parse_recipe(meta["recipe"], source="shipped").training.steps == made["steps"]


def test_generators_are_found_by_name_file_and_folder(toy):
    assert generator_path("toy") == generator_path(toy.generator).relative_to(toy.root)
    make_generator(toy.root / "run" / "generator.safetensors", recipe=tomllib.loads(RECIPE))
    assert generator_path(toy.root / "run").name == "generator.safetensors"
    flows = [load_generator(source) for source in ("toy", toy.generator, toy.root / "run")]
    x = [flow.sample(4, generator=torch.Generator().manual_seed(0)).x for flow in flows]
    assert torch.equal(x[0], x[1]) and torch.equal(x[0], x[2])


def test_a_generator_of_another_system_is_refused(toy):
    with pytest.raises(GeneratorError, match="trained for toy, not for dw4"):
        load_generator(toy.generator, system=load_system("dw4"))


def test_a_truncated_generator_is_refused(toy):
    toy.generator.write_bytes(toy.generator.read_bytes()[:-40])
    with pytest.raises(store.FileError, match="not a complete safetensors file"):
        load_generator(toy.generator)


def test_a_pickle_is_refused_and_not_executed(toy):
    torch.save({"last.weight": torch.zeros(2)}, toy.generator)
    with pytest.raises(store.FileError, match="pickles are never loaded"):
        load_generator(toy.generator)


def test_a_generator_with_a_weight_missing_is_refused(toy):
    tensors, meta = store.load_checkpoint(toy.generator)
    tensors.popitem()
    store.save_checkpoint(toy.generator, tensors, meta)
    with pytest.raises(GeneratorError, match="1 weights missing"):
        load_generator(toy.generator)


def test_a_header_without_what_is_needed_is_refused(toy):
    tensors, meta = store.load_checkpoint(toy.generator)
    del meta["prior_std"]
    store.save_checkpoint(toy.generator, tensors, meta)
    with pytest.raises(GeneratorError, match="header lacks prior_std"):
        load_generator(toy.generator)


def test_certificates_use_the_held_out_reference(toy):
    proposal = load_generator("toy").sample(8, generator=torch.Generator().manual_seed(0))
    assert proposal.certificate.round_trip_of == "reference" and proposal.certificate.n_round_trip == 32


def test_a_training_checkpoint_is_not_a_generator(toy):
    tensors, meta = store.load_checkpoint(toy.generator)
    store.save_checkpoint(toy.generator, tensors, {**meta, "kind": "checkpoint"})
    with pytest.raises(GeneratorError, match="does not hold a generator"):
        load_generator(toy.generator)


def test_a_system_without_generators_says_how_to_make_one(toy):
    toy.generator.unlink()
    with pytest.raises(GeneratorError, match="bgwork train toy"):
        load_generator("toy")
