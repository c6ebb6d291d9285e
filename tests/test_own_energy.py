"""A sampler for an energy made in Python: what it is trained with, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import GaussianOracle

from bgwork.generators import load_generator
from bgwork.own_energy import energy_recipe, system_of, train_sampler
from bgwork.priors import Gaussian
from bgwork.recipes import RecipeError, load_recipe
from bgwork.reweighting import log_z, weigh
from bgwork.spaces import Euclidean, MeanFree
from bgwork.system import load_system
from bgwork.targets.spin_chain import SpinChain

PLANE = Euclidean(n=1, d=2)


def test_the_sampler_is_weighed_properly_and_can_be_kept(tmp_path):
    target = GaussianOracle(space=PLANE, std=0.7)
    sampler = train_sampler(target, energy_recipe(PLANE, spread=1.0, curvature=2.0, steps=5), spread=1.0, folder=tmp_path / "kept")
    drawn = sampler.sample(2000, generator=torch.Generator().manual_seed(0))
    found = log_z(weigh(drawn, target))
    assert abs(found.value - math.log(2 * math.pi * 0.7**2)) < 4 * found.stderr < 0.5
    kept = load_generator(tmp_path / "kept" / "generator.safetensors", system=system_of(target, spread=1.0))
    assert torch.equal(kept.sample(2000, generator=torch.Generator().manual_seed(0)).x, drawn.x)


def test_particles_of_a_mean_free_space_are_interchangeable():
    assert energy_recipe(MeanFree(n=3, d=2), spread=1.0, curvature=1.0).field.kind == "multihop"
    assert energy_recipe(PLANE, spread=1.0, curvature=1.0).field.kind == "mlp"


def test_energies_on_spheres_take_a_recipe_for_them():
    pair = SpinChain(2, coupling=1.0)
    recipe = load_recipe(load_system("heisenberg-chain"), overrides=["training.steps=1", "training.evaluate_every=0", "replay.fresh=50"])
    found = log_z(weigh(train_sampler(pair, recipe, spread=None).sample(2000, generator=torch.Generator().manual_seed(0)), pair))
    assert abs(found.value - pair.log_z) < 4 * found.stderr < 0.2


@pytest.mark.parametrize("scales", [{"spread": 0.0, "curvature": 1.0}, {"spread": 1.0, "curvature": -1.0}])
def test_scales_must_be_positive(scales):
    with pytest.raises(RecipeError, match="greater than 0"):
        energy_recipe(PLANE, **scales)


def test_what_cannot_be_trained_is_refused():
    recipe = energy_recipe(PLANE, spread=1.0, curvature=1.0, steps=1)
    with pytest.raises(ValueError, match="Gaussian lacks u, u_and_grad, name; derive it from CountedTarget"):
        train_sampler(Gaussian(space=PLANE), recipe, spread=1.0)
    with pytest.raises(ValueError, match="'flow-matching' learns from data"):
        train_sampler(GaussianOracle(space=PLANE), load_recipe(load_system("gmm40"), "ot-fm"), spread=1.0)
    with pytest.raises(ValueError, match="leave out its std"):
        train_sampler(SpinChain(2, coupling=1.0), recipe, spread=1.0)
