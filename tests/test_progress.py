"""Figures of progress during a training, and where a training starts from."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import torch

from bgwork.generators import load_generator
from bgwork.recipes import Request, load_recipe, parse_recipe
from bgwork.recipes.base import ess_of
from bgwork.system import load_system, reference_samples
from bgwork.targets.own_function import FunctionTarget


def test_a_progress_figure_without_a_single_weight_is_zero(toy):
    """A training goes on where none of its few samples has a finite energy, as is common early on with molecules."""
    system, recipe = load_system(toy.system), load_recipe(load_system(toy.system))
    nowhere = FunctionTarget(lambda x: torch.full((len(x),), torch.inf, dtype=torch.float64), space=system.space, name="nowhere")
    found = ess_of(recipe, replace(system, differentiable_target=nowhere), n=5)(load_generator(toy.generator).field)
    assert found["ess"] == 0 and found["ess_samples"] == 5


def test_times_on_a_logarithmic_scale_start_as_the_generator_without(tmp_path):
    """A field that tells late times apart begins as the same function of time and place."""
    system = load_system("ala2-vacuum")
    values = tomllib.loads((system.path / "recipes" / "fm-more.toml").read_text())
    values["field"]["nearest"], values["training"] = 0.003, {"steps": 1, "initial": "fm-more"}
    data = reference_samples(system).x[:50]
    request = Request(system=system, name="more", folder=tmp_path, data=data.float(), seed=0)
    network = parse_recipe(values, source="more.toml").job(request).model
    t = torch.tensor([0.1, 0.98])
    torch.testing.assert_close(network(t, data[:2]), load_generator("ala2-vacuum", recipe="fm-more").field(t, data[:2]), rtol=0, atol=1e-5)
    assert network.time.net[0].in_features == 18
