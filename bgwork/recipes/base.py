"""What every recipe offers: the network, the job that trains it, and the sampler that it becomes.

A recipe is one file here: a subclass of `Recipe` whose fields are the tables of its TOML, registered in `files.OBJECTIVES`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bgwork import store
from bgwork.fields.framed import Framed
from bgwork.fields.radial import on_logarithmic_scale
from bgwork.protocols import Prior, Sampler
from bgwork.provenance import commit, tensor_fingerprint, versions
from bgwork.recipes.sections import FieldSection
from bgwork.recipes.widths import FittedWidths
from bgwork.records import Origin
from bgwork.reweighting import ess, weigh
from bgwork.samplers.batches import Progress
from bgwork.samplers.integrators import TABLEAUS
from bgwork.spaces import Euclidean, MeanFree, Space, Torus
from bgwork.system import Section, System, load_system
from bgwork.training import TrainingJob

COUNTS = ("energy_evaluations", "gradient_evaluations")  # in metrics and headers, where a training counted them
RAW_QUANTILES = ("raw_u_05", "raw_u_50", "raw_u_95")  # of the samples that ESS is evaluated on, in the metrics


class RecipeError(ValueError):
    """An unknown recipe, or one with a missing, mistyped or unknown key."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a training is asked for, apart from the recipe.

    Args:
        system: to train for.
        name: of the recipe.
        folder: where everything goes.
        seed: of initial weights and batches.
        data: training configurations [N, n, d]; None for objectives that learn from the energy alone.
        on_log: called with every row of the metrics.
    """

    system: System
    name: str
    folder: Path
    seed: int
    data: Tensor | None = None
    on_log: Callable[[dict[str, float]], None] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """A trained network and what a sampler made from it must know.

    Args:
        network: as `Recipe.network` builds it, with its trained weights.
        system: that it was trained for.
        prior: as it was in training.
        origin: method, system, fingerprint and commit.
        round_trip: held-out configurations for the certificate of an executed map; None where the system has none.
        tuning: other held-out configurations, which the kernels of path weights are fitted to; None where the system has none.
        widths: where fitted kernels are kept; None for networks that do not come from a file.
    """

    network: nn.Module
    system: System
    prior: Prior
    origin: Origin
    round_trip: Tensor | None = None
    tuning: Tensor | None = None
    widths: FittedWidths | None = None

    def fitted_once(self, inputs: tuple[Any, ...], fit: Callable[[], Tensor]) -> Tensor:
        """fit(), or what it gave before for the same inputs and this generator (`FittedWidths.of`)."""
        if self.widths is None:
            return fit()
        return self.widths.of((*inputs, self.prior, self.tuning, self.system.topology, self.system.structure), fit)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How a trained network is to be sampled.

    Args:
        integrator: euler, midpoint, heun, rk4 on a fixed grid, or dopri5 (adaptive).
        steps: of the sampler.
        weights: "density" (of the map that was run), "continuous" (divergence integral), "path", or "directional" (path
            weights, from kernels with covariances).
        on_batch: called with (done, total).
    """

    integrator: str
    steps: int | None
    weights: str
    on_batch: Progress | None = None


class Recipe(Section):
    """A recipe as a whole. A subclass names its `objective` and adds its tables, among them `training` and `sampler`.

    Attributes:
        weights: kinds of weights its samplers can hand over, the default first.
        integrators: that its samplers can use.
        needs_data: whether training needs configurations.
        spaces: that it can be trained on.
        grid_is_trained: whether its sampler's grid was trained with it, and cannot be changed afterwards.
    """

    weights: ClassVar[tuple[str, ...]] = ("density",)
    integrators: ClassVar[tuple[str, ...]] = tuple(TABLEAUS)
    needs_data: ClassVar[bool] = True
    grid_is_trained: ClassVar[bool] = False
    spaces: ClassVar[tuple[type[Space], ...]] = (Euclidean, MeanFree)

    objective: str
    description: str = ""
    field: FieldSection

    def network(self, system: System) -> nn.Module:
        """The network with fresh weights; build it within `initial_network`, which seeds them."""
        return self.field.build(system)

    def fresh_network(self, request: Request) -> nn.Module:
        """The network that a training starts from, seeded, with the scales of its data where the field keeps any.

        Raises:
            RecipeError: if the system lives on a space that the recipe is not for.
        """
        self.check_space(request.system)
        network = initial_network(self, request.system, seed=request.seed)
        if request.data is not None and hasattr(self.field, "fit"):
            self.field.fit(network, request.data)
        return network

    def check_space(self, system: System) -> None:
        """RecipeError if the system lives on a space that the recipe is not for."""
        if not isinstance(system.space, self.spaces):
            fit = " or ".join(space.__name__ for space in self.spaces)
            other = "flow-sampling" if isinstance(system.space, Euclidean | MeanFree) else (
                "torsional-adjoint" if isinstance(system.space, Torus) else "curved-flow-sampling")
            raise RecipeError(f"objective {self.objective!r} is for {fit} space, but {system.name} lives on {system.space}; "
                              f"take a recipe with objective = \"{other}\"")

    @abstractmethod
    def job(self, request: Request) -> TrainingJob:
        """The training of this recipe."""

    def check(self, choice: Choice) -> None:  # noqa: B027 (most recipes can be sampled with any number of steps)
        """Whether its generators can be sampled so; RecipeError with the remedy if not."""

    @abstractmethod
    def sampler_of(self, trained: Trained, choice: Choice) -> Sampler:
        """The sampler that a trained network becomes."""

    @abstractmethod
    def default_choice(self) -> Choice:
        """How its generators are sampled unless told otherwise."""


def initial_network(recipe: Recipe, system: System, *, seed: int) -> nn.Module:
    """The recipe's network, initialised from the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return recipe.network(system)


def load_initial(network: nn.Module, system: System, name: str, *, wrapper: str = "", ignore: tuple[str, ...] = ()) -> None:
    """Start from the weights of one of the system's generators, or of another system's.

    Args:
        network: changed in place. It may have times on a logarithmic scale where the generator has them on a linear one alone, and a
            refinement in the molecule's frame where the generator has none: it starts with the same values.
        system: whose generator it is, unless the name says otherwise.
        name: of the generator; SYSTEM/NAME for another system's, or a .safetensors file.
        wrapper: prefix that the weights' names have in generators in which the network is a part.
        ignore: prefixes of the other parts.
    Raises:
        RecipeError: if they do not fit the network, or are of another molecule.
        SystemFileError: if there is no such system.
        FileError: if it has no such generator.
    """
    other, path = initial_generator(system, name)
    if system.topology is not None and not system.topology.same_molecule(other.topology):
        raise RecipeError(f"{other.name} is not the molecule of {system.name}, atom by atom; its generators cannot be started from")
    if not path.is_file():
        raise store.FileError(f"no checkpoint {path} to start from; train it first, or name another in training.initial")
    weights = {key.removeprefix(wrapper): value for key, value in store.load_checkpoint(path)[0].items() if not key.startswith(ignore)}
    if isinstance(network, Framed) and not any(key.startswith("refinement.") for key in weights):
        network = network.inner
    weights = on_logarithmic_scale(network, weights)
    misfit = misfit_of(weights, network)
    if misfit:
        raise RecipeError(f"{path} does not fit the recipe's [field]: {misfit}; start from a generator with the same [field]")
    network.load_state_dict(weights, strict=False)


def initial_generator(system: System, name: str) -> tuple[System, Path]:
    """The system and the file of a generator to start from, called NAME or SYSTEM/NAME, or a file of the system's own."""
    if name.endswith(".safetensors"):
        return system, Path(name)
    owner, _, name = name.rpartition("/")
    other = load_system(owner) if owner else system
    return other, other.path / "generators" / f"{name}.safetensors"


def spent_behind(path: Path) -> dict[str, int]:
    """Evaluations of the energy behind a generator, those of every training on the way to it; empty if not known, as with MD data.

    Polishes and bootstraps have written down the sum; a training through a replay buffer has counted its own alone.
    """
    meta = store.load_checkpoint(path)[1]
    progress, recipe = meta.get("progress", {}), meta.get("recipe", {})
    if not all(name in progress for name in COUNTS):
        return {}
    own = {name: int(progress[name]) for name in COUNTS}
    initial = recipe.get("training", {}).get("initial")
    if "replay" not in recipe or not initial:
        return own
    owner = load_system(path.parents[1] if path.parent.name == "generators" else meta["system"])
    before = spent_behind(initial_generator(owner, initial)[1])
    return {name: own[name] + before[name] for name in COUNTS} if before else {}


def spent_before(request: Request, initial: str) -> dict[str, int]:
    """Evaluations behind the generator that a training starts from; empty if not known, and where there are data, whose cost is not."""
    return {} if request.data is not None else spent_behind(initial_generator(request.system, initial)[1])


def misfit_of(weights: Mapping[str, Tensor], network: nn.Module) -> str:
    """Why weights cannot be those of a network, in words; empty if they can."""
    own = network.state_dict()
    lacking, unknown = {name for name, _ in network.named_parameters()} - weights.keys(), weights.keys() - own.keys()
    if lacking or unknown:
        return f"{len(lacking)} weights missing, {len(unknown)} unknown"
    other = next((name for name in weights if own[name].shape != weights[name].shape), None)
    return f"its {other} is {list(weights[other].shape)}, not {list(own[other].shape)}" if other else ""


def job_meta(recipe: Recipe, request: Request) -> Mapping[str, Any]:
    """Header of every file that a training writes."""
    return {
        "system": request.system.name, "recipe_name": request.name, "recipe": recipe.model_dump(), "seed": request.seed,
        "data": "" if request.data is None else tensor_fingerprint(request.data),
        "prior_std": getattr(request.system.prior, "std", None), "commit": commit(), "versions": versions()}


def ess_of(recipe: Recipe, system: System, *, n: int) -> Callable[[nn.Module], dict[str, float]]:
    """ESS and quantiles of u of the recipe's sampler on a few hundred samples: progress figures, never reported as a result.

    Their energies are no part of what the training has spent: nothing is learned from them.
    """
    origin = Origin(method="training", system=system.name)

    def evaluate(network: nn.Module) -> dict[str, float]:
        sampler = recipe.sampler_of(Trained(network=network, system=system, prior=system.prior, origin=origin), recipe.default_choice())
        proposal = sampler.sample(n, generator=torch.Generator().manual_seed(n))
        weighted = weigh(proposal, system.differentiable_target, accept=(proposal.density,))
        quantiles = torch.nanquantile(weighted.u, torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64), interpolation="lower")
        weighs = bool(torch.isfinite(weighted.log_w).any())  # at a training's beginning no sample need have a finite energy
        progress = {"ess": ess(weighted.magnitudes).value if weighs else 0.0, "ess_samples": n}
        return progress | dict(zip(RAW_QUANTILES, quantiles.tolist(), strict=True))

    return evaluate
