"""A sampler for an energy of one's own, from Python: no folder with a system.toml, no data."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from bgwork.molecule import GivenSection
from bgwork.observables import OBSERVABLES
from bgwork.priors import prior_on
from bgwork.protocols import Sampler, Target
from bgwork.provenance import commit
from bgwork.recipes import Recipe, RecipeError, Request, Trained, parse_recipe
from bgwork.records import Origin
from bgwork.spaces import MeanFree, Space
from bgwork.system import System
from bgwork.targets.counting import check_target
from bgwork.training import averaged, train

METHODS = ("weighted-adjoint", "adjoint", "idem", "flow-sampling")
WALK = {"capacity": 10_000, "fresh": 500, "every": 50, "batch": 256}
CLOUDS = {"batch": 64}  # rows a step of iDEM, which asks for 128 gradients around each


def energy_recipe(space: Space, *, spread: float, curvature: float, steps: int = 5000, method: str = "weighted-adjoint") -> Recipe:
    """A method that needs no data, with settings made from two scales of the target: a start, by no means tuned.

    On mean-free space the field treats particles as interchangeable; elsewhere it is a perceptron of all coordinates. Where that does
    not fit (a molecule, say), write the tables of a recipe as in systems/*/recipes and hand them to `bgwork.recipes.parse_recipe`.

    Args:
        space: Euclidean or MeanFree.
        spread: rough standard deviation of a coordinate in equilibrium, in the length unit.
        curvature: rough second derivative of u where it is steepest in equilibrium, in kT per squared length unit.
        steps: of the optimiser.
        method: "weighted-adjoint" and "adjoint" (adjoint sampling with and without importance weights in training), "idem" or
            "flow-sampling".
    Raises:
        RecipeError: if a scale is not positive, or the method none of these.
    """
    if method not in METHODS:
        raise RecipeError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    for name, scale in (("spread", spread), ("curvature", curvature)):
        if not 0 < scale < math.inf:
            raise RecipeError(f"{name} must be finite and greater than 0, got {scale}; a rough value is enough")
    field = {"kind": "mlp", "hidden": 128, "depth": 3, "scale": spread}
    if isinstance(space, MeanFree):
        field = {"kind": "multihop", "hidden": 32, "message": 32, "vectors": 8, "node_hidden": 48, "n_basis": 24, "r_max": 6 * spread,
                 "softening": 0.1 * spread}
    return parse_recipe({
        "objective": method, "description": "made in Python", "field": field, "sampler": {"steps": 50},
        "replay": WALK | CLOUDS if method == "idem" else WALK, "process": _process(method, spread, curvature),
        "training": {"steps": steps, "warmup": min(100, steps), "evaluate_every": 0}}, source="energy_recipe")


def _process(method: str, spread: float, curvature: float) -> dict[str, float]:
    """[process] of a method: a start wider than the target, and gradients clipped far outside equilibrium."""
    clip = {"clip": 10 * curvature**0.5}
    if method == "idem":
        return {"largest": 1.5 * spread, **clip}
    if method == "flow-sampling":  # more noise than a narrow mode can hold makes the iteration jump over it
        return {"start": spread, "gamma": min(spread**2, 10 / curvature), **clip}
    return {"std": 1.5 * spread, "curvature": curvature, **clip}


def system_of(target: Target, *, spread: float | None) -> System:
    """A system that exists in memory alone: an energy, without reference data.

    Args:
        target: its reduced energy; weights and training use the same object, and its counters go on.
        spread: standard deviation of the prior, in the length unit; None on a sphere, where it is uniform.
    Raises:
        ValueError: if it lacks something that a target needs.
    """
    check_target(target)
    return System(
        name=target.name, space=target.space, target=target, differentiable_target=target, prior=prior_on(target.space, spread),
        references={}, observables=("u",), functions=OBSERVABLES, basins=None, path=Path("systems") / target.name, length_unit="1",
        energy="own", description="made in Python", source="", reference=GivenSection(sampler="given"))


def train_sampler(target: Target, recipe: Recipe, *, spread: float | None, folder: Path | None = None, seed: int = 0) -> Sampler:
    """Train a sampler from the energy alone.

    Args:
        target: the reduced energy.
        recipe: of an objective that needs no data; `energy_recipe` makes one for flat space.
        spread: as in `energy_recipe`; None on a sphere.
        folder: where checkpoint, metrics and generator go; nothing is kept without.
        seed: of initial weights and everything drawn in training.
    Returns:
        The sampler as the recipe uses it, with path weights for those from the energy alone.
    Raises:
        ValueError: if the recipe needs data or is for another space, or the energy has no gradient, the wrong shape, or no finite value.
    """
    if recipe.needs_data:
        raise ValueError(f"objective {recipe.objective!r} learns from data; take one of {', '.join(METHODS)}")
    system = system_of(target, spread=spread)
    with tempfile.TemporaryDirectory() as temporary:
        job = recipe.job(Request(system=system, name=recipe.objective, folder=Path(folder or temporary), seed=seed))
        job.folder.mkdir(parents=True, exist_ok=True)
        network = averaged(train(job, resume=False))
    origin = Origin(method=recipe.objective, system=system.name, commit=commit())
    return recipe.sampler_of(Trained(network=network, system=system, prior=system.prior, origin=origin), recipe.default_choice())
