"""Generators: files of averaged weights with their recipe, shipped with a system or trained by the user, as ready samplers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bgwork import store
from bgwork.priors import prior_on
from bgwork.protocols import Sampler
from bgwork.provenance import cache_folder, file_fingerprint
from bgwork.recipes import Recipe, Trained, initial_network, parse_recipe
from bgwork.recipes.base import misfit_of
from bgwork.recipes.widths import FittedWidths
from bgwork.records import Origin
from bgwork.system import System, load_system, reference_samples

ROUND_TRIP = 32  # reference configurations that each certificate sends through the inverse map
HELD_OUT = 400  # and that forward ESS and BAR are judged by, spread evenly over all of them
TUNING, TUNING_SEED = 512, 1_000_000_021  # and, of the rest, that the kernels of path weights are fitted to


class GeneratorError(ValueError):
    """A generator that does not exist or does not belong to the system."""


def shipped_generators(system: System) -> tuple[str, ...]:
    """Names of the recipes for which the system holds a trained generator."""
    return tuple(sorted(path.stem for path in (system.path / "generators").glob("*.safetensors")))


def generator_path(name_or_path: str | Path, *, recipe: str | None = None) -> Path:
    """File of a generator: a .safetensors file, a training run's folder, or a shipped one of a system, by default the one it names.

    Raises:
        GeneratorError: naming what the system has.
    """
    path = Path(name_or_path)
    if path.suffix == ".safetensors" or (path / "generator.safetensors").exists():
        return path if path.suffix == ".safetensors" else path / "generator.safetensors"
    system = load_system(name_or_path)
    known = shipped_generators(system)
    wanted = recipe or (known[0] if len(known) == 1 else system.default_generator)
    if wanted in known:
        return system.path / "generators" / f"{wanted}.safetensors"
    has = ", ".join(known) or "none"
    raise GeneratorError(f"{system.name} has no generator {wanted!r} (it has: {has}); `bgwork train {system.name}` makes one")


def load_generator(name_or_path: str | Path, *, recipe: str | None = None, system: System | None = None) -> Sampler:
    """A trained generator as the sampler that its recipe makes of it: a flow on the recipe's grid, a flow map, a diffusion, ...

    Args:
        name_or_path: a system's name (its shipped generator), a .safetensors file or a training run's folder.
        recipe: which of a system's generators; by default the one that system.toml names.
        system: what it must belong to; by default the system named in the file.
    Raises:
        GeneratorError: if it does not exist or was trained for another system.
        FileError: if the file is truncated, a pickle, or not a generator of bgwork.

    Example:
        >>> flow = load_generator("dw4")
        >>> flow.sample(4, generator=torch.Generator().manual_seed(0)).x.shape
        torch.Size([4, 4, 2])
    """
    made_by, trained = load_trained(generator_path(name_or_path, recipe=recipe), system=system)
    return made_by.sampler_of(trained, made_by.default_choice())


def load_trained(path: Path, *, system: System | None = None) -> tuple[Recipe, Trained]:
    """The recipe and the trained network in a generator's file; raises as `load_generator`."""
    tensors, meta = store.load_checkpoint(path)
    lacking = {"kind", "system", "recipe_name", "recipe", "prior_std", "commit"} - meta.keys()
    if meta.get("kind") != "generator" or lacking:
        raise GeneratorError(f"{path} does not hold a generator{': its header lacks ' + ', '.join(sorted(lacking)) if lacking else ''}")
    system = system or load_system(meta["system"])
    if system.name != meta["system"]:
        raise GeneratorError(f"{path} was trained for {meta['system']}, not for {system.name}; give a generator of {system.name}")
    recipe = parse_recipe(meta["recipe"], source=f"the recipe in {path}")
    return recipe, Trained(
        network=_network(path, recipe, tensors, system), system=system, prior=prior_on(system.space, meta["prior_std"]),
        origin=_origin(path, meta), round_trip=round_trip_set(system), tuning=tuning_set(system),
        widths=FittedWidths(folder=cache_folder() / "widths", generator=file_fingerprint(path)))


def round_trip_set(system: System) -> torch.Tensor | None:
    """Held-out configurations for the certificate, spread evenly over the system's reference samples; None if it has none."""
    if not (system.path / "reference.npz").exists():
        return None
    x = reference_samples(system).x
    return x[_spread(len(x), ROUND_TRIP)]


def held_out_rows(total: int) -> torch.Tensor:
    """Which of that many reference samples forward ESS and BAR are judged by."""
    return _spread(total, min(HELD_OUT, total))


def _spread(total: int, n: int) -> torch.Tensor:
    """n row numbers below `total`, spread evenly."""
    return torch.linspace(0, total - 1, n, dtype=torch.float64).round().long()


def tuning_set(system: System) -> torch.Tensor | None:
    """Reference configurations that the kernels of path weights are fitted to, none of them in `held_out_rows`; None if there are none."""
    if not (system.path / "reference.npz").exists():
        return None
    x = reference_samples(system).x
    rows = tuning_rows(len(x))
    return x[rows] if len(rows) else None


def tuning_rows(total: int) -> torch.Tensor:
    """Which of that many reference samples `tuning_set` takes."""
    rest = torch.ones(total, dtype=torch.bool)
    rest[held_out_rows(total)] = False
    order = torch.randperm(total, generator=torch.Generator().manual_seed(TUNING_SEED))
    return order[rest[order]][:TUNING]


def _network(path: Path, recipe: Recipe, tensors: dict[str, torch.Tensor], system: System) -> torch.nn.Module:
    network = initial_network(recipe, system, seed=0)
    misfit = misfit_of(tensors, network)
    if misfit:
        raise GeneratorError(f"{path} does not fit its recipe: {misfit}; it was damaged or edited")
    network.load_state_dict(tensors, strict=False)
    return network.eval()


def _origin(path: Path, meta: dict[str, Any]) -> Origin:
    known = {"flow-matching": "flow", "polish": "flow", "mapped-flow-matching": "mapped flow"}
    kind = known.get(meta["recipe"]["objective"], meta["recipe"]["objective"])
    return Origin(method=f"{kind} {meta['recipe_name']}", system=meta["system"], config_hash=file_fingerprint(path), commit=meta["commit"])
