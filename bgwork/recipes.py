"""Recipes: systems/<name>/recipes/<recipe>.toml, validated, overridden by key=value, and built into a training job."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import nn

from bgwork import store
from bgwork.couplings import EquivariantOptimalTransport, Independent, OptimalTransport
from bgwork.fields.egnn import EGNN
from bgwork.fields.mlp import MLP
from bgwork.fields.multihop import MultiHop, MultiHopConfig
from bgwork.objectives.flow_matching import FlowMatchingData, flow_matching_loss
from bgwork.paths import Times
from bgwork.protocols import Coupling
from bgwork.provenance import commit, tensor_fingerprint, versions
from bgwork.records import Origin
from bgwork.reweighting import ess, weigh
from bgwork.samplers.flow import Flow
from bgwork.samplers.integrators import Grid
from bgwork.spaces import Space
from bgwork.system import Count, Positive, Section, System
from bgwork.training import TrainingConfig, TrainingJob

Share = Annotated[float, Field(ge=0, le=1, strict=False)]
DEFAULT = "eqot-fm"


class RecipeError(ValueError):
    """An unknown recipe, or one with a missing, mistyped or unknown key."""


class MultiHopSection(Section):
    """[field] kind = "multihop"; sizes as in `MultiHopConfig`."""

    kind: Literal["multihop"]
    hidden: Count = 64
    message: Count = 64
    vectors: Count = 16
    hops: Count = 2
    node_hidden: Count = 96
    n_basis: Annotated[int, Field(ge=2)] = 32
    r_max: Positive = 6.0
    softening: Positive

    def build(self, space: Space) -> nn.Module:
        return MultiHop(space.n, space.d, MultiHopConfig(**self.model_dump(exclude={"kind"})))


class EGNNSection(Section):
    """[field] kind = "egnn"."""

    kind: Literal["egnn"]
    layers: Count = 4
    hidden: Count = 64

    def build(self, space: Space) -> nn.Module:
        return EGNN(space.n, space.d, layers=self.layers, hidden=self.hidden)


class MLPSection(Section):
    """[field] kind = "mlp", for Euclidean spaces of low dimension."""

    kind: Literal["mlp"]
    hidden: Count = 256
    depth: Count = 4
    scale: Positive = 1.0

    def build(self, space: Space) -> nn.Module:
        return MLP(space.n, space.d, hidden=self.hidden, depth=self.depth, scale=self.scale)


class CouplingSection(Section):
    """[coupling]; sweeps and group as in `EquivariantOptimalTransport`."""

    kind: Literal["independent", "ot", "equivariant-ot"]
    sweeps: Count = 2
    group: Count = 1

    def build(self) -> Coupling:
        if self.kind == "equivariant-ot":
            return EquivariantOptimalTransport(sweeps=self.sweeps, group=self.group)
        return {"independent": Independent, "ot": OptimalTransport}[self.kind]()


class TrainingSection(Section):
    """[training]; as in `TrainingConfig`, with batch size, shares of late and early times, and the system's generator to start from."""

    steps: Count
    batch: Count = 256
    late_times: Share = 0.5
    early_times: Share = 0.0
    initial: str = ""
    learning_rate: Positive = 2e-3
    warmup: Count = 500
    weight_decay: Annotated[float, Field(ge=0, strict=False)] = 1e-4
    clip: Positive = 1.0
    ema: Share = 0.999
    bfloat16: Share = 0.0
    compiled: bool = False
    checkpoint_every: Count = 500
    log_every: Count = 100
    evaluate_every: Annotated[int, Field(ge=0)] = 5000
    evaluate_samples: Count = 500

    def config(self) -> TrainingConfig:
        return TrainingConfig(**self.model_dump(exclude={"batch", "late_times", "early_times", "initial", "evaluate_samples"}))


class SamplerSection(Section):
    """[sampler]: the grid that the generator is used with unless told otherwise."""

    integrator: Literal["euler", "midpoint", "heun", "rk4"] = "midpoint"
    steps: Count = 16

    def build(self) -> Grid:
        return Grid(integrator=self.integrator, steps=self.steps)


class Recipe(Section):
    """A recipe as a whole."""

    objective: Literal["flow-matching"]
    description: str = ""
    field: MultiHopSection | EGNNSection | MLPSection = Field(discriminator="kind")
    coupling: CouplingSection
    training: TrainingSection
    sampler: SamplerSection = SamplerSection()


FIELDS: dict[str, type[Section]] = {"multihop": MultiHopSection, "egnn": EGNNSection, "mlp": MLPSection}


def list_recipes(system: System) -> tuple[str, ...]:
    """Names of the system's recipes."""
    return tuple(sorted(path.stem for path in (system.path / "recipes").glob("*.toml")))


def default_recipe(system: System) -> str:
    """The recipe used unless told otherwise: eqot-fm, or the system's only one."""
    known = list_recipes(system)
    return known[0] if len(known) == 1 else DEFAULT


def load_recipe(system: System, name: str = DEFAULT, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        system: whose recipes are searched; a path to a .toml file works too.
        name: of the recipe.
        overrides: "table.key=value" with a TOML value, for example "training.steps=2000".
    Raises:
        RecipeError: naming the known recipes, or the allowed keys.
    """
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
    try:
        return TypeAdapter(Recipe).validate_python(values)
    except ValidationError as error:
        raise RecipeError("\n".join([f"{source}:", *(f"  {_explain(e)}" for e in error.errors())])) from error


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    table, dot, last = key.strip().rpartition(".")
    if not equals or not last:
        raise RecipeError(f"cannot read {override!r}; write table.key=value, for example training.steps=2000")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    target = values.setdefault(table, {}) if dot else values
    if not isinstance(target, dict):
        raise RecipeError(f"{table!r} in {override!r} is not a table; tables are {', '.join(Recipe.model_fields)}")
    target[last] = value


def _explain(error: dict[str, Any]) -> str:
    where = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        table = where[:-1]
        section = Recipe if not table else FIELDS[table[1]] if table[0] == "field" else Recipe.model_fields[table[0]].annotation
        return f"{'.'.join(where)}: unknown key; allowed here: {', '.join(section.model_fields)}"
    got = "" if error["type"] == "missing" or isinstance(error["input"], dict) else f", got {error['input']!r}"
    return f"{'.'.join(where) or 'the file'}: {error['msg']}{got}"


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe, every default spelled out."""
    store.write_text(path, tomli_w.dumps(recipe.model_dump()))


def build_field(recipe: Recipe, space: Space, *, seed: int) -> nn.Module:
    """The recipe's network, initialised from the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return recipe.field.build(space)


def initial_field(system: System, recipe: Recipe, *, seed: int) -> nn.Module:
    """The network that training starts from: random weights, or those of one of the system's generators.

    Raises:
        RecipeError: if the generator's weights do not fit the recipe's field.
    """
    field = build_field(recipe, system.space, seed=seed)
    if recipe.training.initial:
        path = system.path / "generators" / f"{recipe.training.initial}.safetensors"
        weights = store.load_checkpoint(path)[0]
        if weights.keys() != dict(field.named_parameters()).keys():
            raise RecipeError(f"{path} has other weights than the recipe's field; start from a generator with the same [field]")
        field.load_state_dict(weights, strict=False)
    return field


def training_job(
    system: System, recipe: Recipe, *, name: str, folder: Path, data: torch.Tensor, seed: int,
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> TrainingJob:
    """Wire a recipe to its system.

    Args:
        data: training configurations [N, n, d].
        folder: where everything goes.
        seed: of initial weights and batches.
    """
    batches = FlowMatchingData(
        x1=data.float(), prior=system.prior, coupling=recipe.coupling.build(), batch=recipe.training.batch, seed=seed,
        times=Times(late=recipe.training.late_times, early=recipe.training.early_times))
    meta = {
        "system": system.name, "recipe_name": name, "recipe": recipe.model_dump(), "seed": seed, "data": tensor_fingerprint(data),
        "prior_std": system.prior.std, "commit": commit(), "versions": versions()}
    return TrainingJob(
        model=initial_field(system, recipe, seed=seed), loss=flow_matching_loss, data=batches, config=recipe.training.config(),
        folder=folder, meta=meta, evaluate=ess_of(system, recipe), on_log=on_log)


def ess_of(system: System, recipe: Recipe) -> Callable[[nn.Module], dict[str, float]]:
    """Effective sample size of the executed map on a few hundred samples: a progress figure, never reported as a result."""
    n, origin = recipe.training.evaluate_samples, Origin(method="training", system=system.name)

    def evaluate(field: nn.Module) -> dict[str, float]:
        flow = Flow(prior=system.prior, field=field, grid=recipe.sampler.build(), origin=origin, n_round_trip=0)
        proposal = flow.sample(n, generator=torch.Generator().manual_seed(n))
        weighted = weigh(proposal, system.differentiable_target, accept=(proposal.density,))
        return {"ess": ess(weighted).value, "ess_samples": n}

    return evaluate


