"""Reading, checking and writing recipe files."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from bgwork import store
from bgwork.recipes.adjoint import AdjointRecipe, BridgeMatchingRecipe, WeightedAdjointRecipe
from bgwork.recipes.base import Recipe, RecipeError
from bgwork.recipes.bootstrap import BootstrapRecipe
from bgwork.recipes.curved import CurvedFlowSamplingRecipe
from bgwork.recipes.diffusion import DiffusionRecipe
from bgwork.recipes.distill import DistillRecipe
from bgwork.recipes.flow_matching import FlowMatchingRecipe
from bgwork.recipes.flow_sampling import FlowSamplingRecipe
from bgwork.recipes.idem import IDEMRecipe
from bgwork.recipes.mapped import MappedFlowMatchingRecipe, TargetedRecipe
from bgwork.recipes.polish import PolishRecipe
from bgwork.recipes.polish_map import MapPolishRecipe
from bgwork.recipes.sections import FIELDS
from bgwork.recipes.torsional import TorsionalAdjointRecipe, WeightedTorsionalAdjointRecipe
from bgwork.system import System
from bgwork.training import TrainingJob

OBJECTIVES: dict[str, type[Recipe]] = {
    "flow-matching": FlowMatchingRecipe, "polish": PolishRecipe, "diffusion": DiffusionRecipe, "idem": IDEMRecipe,
    "adjoint": AdjointRecipe, "weighted-adjoint": WeightedAdjointRecipe, "bridge-matching": BridgeMatchingRecipe,
    "bootstrap": BootstrapRecipe, "flow-sampling": FlowSamplingRecipe, "curved-flow-sampling": CurvedFlowSamplingRecipe,
    "torsional-adjoint": TorsionalAdjointRecipe,
    "weighted-torsional-adjoint": WeightedTorsionalAdjointRecipe, "distill": DistillRecipe, "polish-map": MapPolishRecipe,
    "targeted": TargetedRecipe, "mapped-flow-matching": MappedFlowMatchingRecipe}


def list_recipes(system: System) -> tuple[str, ...]:
    """Names of the system's recipes."""
    return tuple(sorted(path.stem for path in (system.path / "recipes").glob("*.toml")))


def default_recipe(system: System) -> str:
    """The recipe used unless told otherwise: the one that system.toml names, or the system's only one."""
    known = list_recipes(system)
    return known[0] if len(known) == 1 else system.default_recipe


def load_recipe(system: System, name: str | None = None, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        system: whose recipes are searched; a path to a .toml file works too.
        name: of the recipe; by default the system's own.
        overrides: "table.key=value" with a TOML value, for example "training.steps=2000".
    Raises:
        RecipeError: naming the known recipes, or the allowed keys.
    """
    name = name or default_recipe(system)
    path = Path(name) if name.endswith(".toml") else system.path / "recipes" / f"{name}.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = ", ".join(list_recipes(system)) or "none"
        raise RecipeError(f"unknown recipe {name!r} of {system.name}; known recipes: {known}") from error
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} is not readable TOML: {error}") from error
    for override in overrides:
        _override(values, override)
    return parse_recipe(values, source=str(path))


def parse_recipe(values: dict[str, Any], *, source: str) -> Recipe:
    """Validate the contents of a recipe; `source` is named in errors."""
    kind = OBJECTIVES.get(str(values.get("objective")))
    if kind is None:
        raise RecipeError(f"{source}: unknown objective {values.get('objective')!r}; choose one of {', '.join(OBJECTIVES)}")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise RecipeError("\n".join([f"{source}:", *(f"  {_explain(e, kind)}" for e in error.errors())])) from error


def resampled_as(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """A generator's recipe with other values in [sampler], which is no part of its training.

    Args:
        recipe: that the generator was trained with.
        overrides: "sampler.key=value", as in `load_recipe`.
    Raises:
        RecipeError: naming the allowed keys; also for a key of another table, which cannot be changed any more, and for a generator
            whose grid was trained with it.
    """
    if overrides and recipe.grid_is_trained:
        raise RecipeError(f"the steps of a generator by {recipe.objective} were trained with it, so that --set cannot change them; leave "
                          "it out, or take the generator that it was made from")
    values = recipe.model_dump()
    for override in overrides:
        if not override.strip().startswith("sampler."):
            raise RecipeError(f"{override!r} is no key of [sampler], and the generator is trained; write sampler.key=value, with one of "
                              f"{', '.join(values['sampler'])}")
        _override(values, override)
    return parse_recipe(values, source="--set")


def resumable(job: TrainingJob) -> TrainingJob:
    """The job under the recipe in its checkpoint's header, if that says the same but lacks keys not known when it was written."""
    if not job.checkpoint.exists():
        return job
    held = store.load_checkpoint(job.checkpoint)[1].get("recipe")
    try:
        same = parse_recipe(held or {}, source=str(job.checkpoint)) == parse_recipe(dict(job.meta["recipe"]), source="the recipe asked for")
    except RecipeError:
        return job  # which training then refuses
    return replace(job, meta={**job.meta, "recipe": held}) if same else job


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *tables, last = key.strip().split(".")
    if not equals or not all([*tables, last]):
        raise RecipeError(f"cannot read {override!r}; write table.key=value, for example training.steps=2000")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    target = values
    for table in tables:
        target = target.setdefault(table, {})
        if not isinstance(target, dict):
            raise RecipeError(f"{table!r} in {override!r} is not a table; give table.key=value, for example training.steps=2000")
    target[last] = value


def _explain(error: dict[str, Any], kind: type[Recipe]) -> str:
    where = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        table = where[:-1]
        section = kind if not table else FIELDS.get(table[-1], kind.model_fields[table[0]].annotation)
        return f"{'.'.join(where)}: unknown key; allowed here: {', '.join(section.model_fields)}"
    got = "" if error["type"] == "missing" or isinstance(error["input"], dict) else f", got {error['input']!r}"
    return f"{'.'.join(where) or 'the file'}: {error['msg']}{got}"


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe, every default spelled out."""
    store.write_text(path, tomli_w.dumps(recipe.model_dump()))
