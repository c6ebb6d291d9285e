"""A sampler for an energy made in Python: what it is trained with, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import GaussianOracle

from bgwork.generators import load_generator
from bgwork.own_energy import METHODS, energy_recipe, system_of, train_sampler
from bgwork.priors import Gaussian
from bgwork.recipes import RecipeError, load_recipe
from bgwork.reweighting import log_z, weigh
from bgwork.spaces import Euclidean, MeanFree
from bgwork.system import load_system
from bgwork.targets.own_function import FunctionTarget
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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scales", [{"spread": 0.0, "curvature": 1.0}, {"spread": 1.0, "curvature": -1.0},
                                    {"spread": math.nan, "curvature": 1.0}])
def test_scales_must_be_positive(method, scales):
    with pytest.raises(RecipeError, match="greater than 0, got (0.0|-1.0|nan)"):
        energy_recipe(PLANE, **scales, method=method)


def bowl(x):
    """A Gaussian of unequal widths, as a plain function."""
    return (x.square() * torch.tensor([2.0, 0.5], dtype=torch.float64)).sum((1, 2))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_from_a_plain_function_and_counts_what_it_asks(method):
    target = FunctionTarget(bowl, space=PLANE, name="bowl")
    recipe = energy_recipe(PLANE, spread=1.0, curvature=4.0, steps=5, method=method)
    sampler = train_sampler(target, recipe, spread=1.0)
    assert recipe.objective == method and target.n_gradient == (5 * 64 * 128 if method == "idem" else 500)
    drawn = sampler.sample(2000, generator=torch.Generator().manual_seed(0))
    found = log_z(weigh(drawn, target))
    assert abs(found.value - math.log(math.pi)) < 4 * found.stderr < 0.5
    assert target.n_energy == (2500 if method == "idem" else 2000)


def test_an_unknown_method_is_refused_by_name():
    with pytest.raises(RecipeError, match="'flow-matching'; choose one of weighted-adjoint, adjoint, idem, flow-sampling"):
        energy_recipe(PLANE, spread=1.0, curvature=1.0, method="flow-matching")


@pytest.mark.parametrize(("function", "message"), [
    (lambda x: bowl(x)[:, None], r"bowl returned an energy of shape \(500, 1\) .* it must be \[B\]"),
    (lambda x: bowl(x).sum(), r"bowl returned an energy of shape \(\)"),
    (lambda x: bowl(x.detach()), "bowl: the function's energy has no gradient"),
    (lambda x: bowl(x.detach()).numpy(), "bowl: the function returned a ndarray, not a torch tensor"),
    (lambda x: bowl(x) * math.nan, "none of 500 fresh samples of bowl has a finite energy")])
@pytest.mark.parametrize("method", METHODS)
def test_functions_that_are_no_energies_are_refused(function, message, method):
    target = FunctionTarget(function, space=PLANE, name="bowl")
    with pytest.raises(ValueError, match=message):
        train_sampler(target, energy_recipe(PLANE, spread=1.0, curvature=4.0, steps=1, method=method), spread=1.0)


def test_single_precision_energies_come_back_in_double_and_differentiable():
    target, x = FunctionTarget(lambda x: x.float().square().sum((1, 2)), space=PLANE, name="single"), torch.ones(3, 1, 2)
    assert target.u(x).dtype == torch.float64 and target.u_and_grad(x)[1].dtype == torch.float64
    torch.autograd.grad(target.u(x.requires_grad_()).sum(), x)
    with pytest.raises(ValueError, match=r"must be a function of x \[B, n, d\], got 3"):
        FunctionTarget(3, space=PLANE, name="three")


def test_what_cannot_be_trained_is_refused():
    recipe = energy_recipe(PLANE, spread=1.0, curvature=1.0, steps=1)
    with pytest.raises(ValueError, match="Gaussian lacks u, u_and_grad, name; derive it from CountedTarget"):
        train_sampler(Gaussian(space=PLANE), recipe, spread=1.0)
    with pytest.raises(ValueError, match="'flow-matching' learns from data"):
        train_sampler(GaussianOracle(space=PLANE), load_recipe(load_system("gmm40"), "ot-fm"), spread=1.0)
    with pytest.raises(ValueError, match="leave out its std"):
        train_sampler(SpinChain(2, coupling=1.0), recipe, spread=1.0)
