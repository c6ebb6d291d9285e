"""Another energy's equilibrium data as a run of this system: moved by a generator's map, and weighed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bgwork import store
from bgwork.generators import generator_path, load_trained
from bgwork.partial import PartialSamples
from bgwork.provenance import commit, file_fingerprint, fingerprint, tensor_fingerprint
from bgwork.recipes.mapped import TargetedRecipe
from bgwork.records import Proposal
from bgwork.reference_checks import data_of
from bgwork.relaxed import equilibrium_set
from bgwork.runs import RUNS, RunError, write_sampling
from bgwork.samplers.batches import Progress, check_count
from bgwork.samplers.internal_map import InternalMap
from bgwork.samplers.transport import rows_to_learn, rows_to_weigh, transport
from bgwork.system import System, load_system


@dataclass(frozen=True, kw_only=True)
class Transported:
    """Configurations of one energy weighed for another, and the folder that they live in.

    Attributes:
        folder: runs/<system>/transported.
        system: that they are moved to.
        source: configurations of the other one, none that the map was learned on.
        map: that moves them.
        left_out: configurations that the map was learned on.
        settings: generator, recipe, start and n, as sampling.toml has them.
    """

    folder: Path
    system: System
    source: Proposal
    map: InternalMap
    left_out: int
    settings: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Of the generator's file, the configurations and the system's definition."""
        return fingerprint(self.settings | {"rows": tensor_fingerprint(self.source.x),
                                            "system": file_fingerprint(self.system.path / "system.toml")})

    def sample(self, on_batch: Progress, *, kept: PartialSamples) -> Proposal:  # noqa: ARG002
        """The configurations, moved; all at once, so that there are no batches to show or to keep."""
        origin = replace(self.source.origin, method=f"transported {self.settings['recipe']}", system=self.system.name,
                         config_hash=self.fingerprint, commit=commit())
        moved = transport(self.source, self.map, origin=origin)
        return replace(moved, note=f"{moved.note}; {self.left_out} that it was learned on are left out")

    def write_settings(self) -> None:
        """sampling.toml, as these samples were made."""
        write_sampling(self.folder, {"system": str(self.system.path)} | self.settings)


def _learned_elsewhere(known: Proposal, other: System, learned_on: str) -> Tensor:
    """[N] bool: rows that a map was learned on, where they stand in other data than those that it was learned on, such as a part of them.

    Rows are told by their energies; that shows only while those data lie where `bgwork reference` puts them.
    """
    path = data_of(other.name)
    beside = store.load_samples(path) if path.exists() else known
    if tensor_fingerprint(beside.x) != learned_on:
        return torch.zeros(len(known), dtype=torch.bool)
    return torch.isin(known.log_q, beside.log_q[rows_to_learn(beside)])


def find_transport(name_or_path: str, *, n: int | None = None, recipe: str | None = None, data: Path | None = None,
                   folder: Path | None = None) -> Transported:
    """The transport by the map of a generator that was learned by targeted perturbation.

    Args:
        name_or_path: a system's name (its shipped generator), a training run's folder, or a .safetensors file.
        n: configurations, spread evenly over those that the map was not learned on; by default all of them.
        recipe: which of a system's shipped generators.
        data: configurations of the other system, such as those of an independent run; by default runs/<other>/reference/samples.npz.
        folder: where results go; by default runs/<system>/transported.
    Raises:
        RunError: if the generator has no such map, or there are fewer configurations.
        ReferenceError: if the other system has no data.
    """
    path = generator_path(name_or_path, recipe=recipe)
    made_by, trained = load_trained(path)
    if not isinstance(made_by, TargetedRecipe):
        raise RunError(f"{path} has objective {made_by.objective!r} and no map from another energy; give a generator trained with "
                       'objective = "targeted"')
    system, other = trained.system, load_system(made_by.start.system)
    learned_on = store.load_checkpoint(path)[1].get("start_data")
    if learned_on is None:
        raise RunError(f"{path} does not say which data its map was learned on; train it anew")
    known = equilibrium_set(system, other, data)
    source = known.take(rows_to_weigh(known, learned_on=learned_on) & ~_learned_elsewhere(known, other, learned_on))
    left_out = len(known) - len(source)
    if n is not None:
        check_count(n)
        if n > len(source):
            raise RunError(f"{n} configurations are asked for, {other.name} has {len(source)} that the map was not learned on; ask for "
                           f"fewer, or make more with `bgwork reference {other.name}`")
        source = source.take(torch.linspace(0, len(source) - 1, n, dtype=torch.float64).round().long())
    settings = {"generator": str(path), "generator_fingerprint": trained.origin.config_hash, "start": other.name, "n": len(source),
                "recipe": trained.origin.method.split()[-1], **({"data": str(data)} if data else {})}
    return Transported(folder=folder or RUNS / system.name / "transported", system=system, source=source, map=trained.network.map,
                       left_out=left_out, settings=settings)
