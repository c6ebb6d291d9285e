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
from bgwork.samplers.transfer import drawn_evenly
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
        shares = ", equal shares of basins" if self.settings.get("even") else ""
        return replace(moved, note=f"{moved.note}{shares}; {self.left_out} that it was learned on are left out")

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


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Which configurations of the other energy are moved.

    Attributes:
        n: how many; all that the map was not learned on if None.
        even: whether an equal share of every basin is taken, as far as it has so many, rather than rows spread evenly over all.
        data: where they are; by default runs/<other>/reference/samples.npz.
    """

    n: int | None = None
    even: bool = False
    data: Path | None = None

    def drawn(self, source: Proposal, system: System) -> Proposal:
        """These rows of those that may be weighed."""
        if self.n is None:
            return source
        if self.even:
            return evenly_drawn(source, system, self.n)
        return source.take(torch.linspace(0, len(source) - 1, self.n, dtype=torch.float64).round().long())

    def check(self, available: int, other: System, system: System) -> None:
        """RunError if there are not so many, or no basins to take shares of."""
        if self.even and (self.n is None or not system.basins):
            raise RunError(f"equal shares of basins need a number (-n) and a system with basins; {system.name} has "
                           f"{system.basins or 'none'}, and the number is {self.n}")
        if self.n is None:
            return
        check_count(self.n)
        if self.n > available:
            raise RunError(f"{self.n} configurations are asked for, {other.name} has {available} that the map was not learned on; ask for "
                           f"fewer, or make more with `bgwork reference {other.name}`")


def evenly_drawn(source: Proposal, system: System, n: int) -> Proposal:
    """n rows, an equal share of every basin as far as it has so many, with log_q of drawing so.

        log q = -u_0 + ln(rows drawn / rows there are), basin by basin
    Rare basins are then sampled far better at the same cost, and what is known of their populations is as before.

    Raises:
        RunError: if n is below the number of basins, one of which would be left out.
    """
    basins, stratum = system.functions[system.basins](source.x).unique(return_inverse=True)
    if n < len(basins):
        raise RunError(f"{n} configurations leave out some of {len(basins)} basins; ask for more")
    island = torch.arange(len(source)) if source.group is None else source.group
    rows = drawn_evenly(island, stratum, n, generator=torch.Generator().manual_seed(0)).sort().values
    share = stratum[rows].bincount(minlength=len(basins)) / stratum.bincount().double()
    drawn = source.take(rows)
    return replace(drawn, log_q=drawn.log_q + share.log()[stratum[rows]])


ALL = Rows()


def find_transport(name_or_path: str, *, rows: Rows = ALL, recipe: str | None = None, folder: Path | None = None) -> Transported:
    """The transport by the map of a generator that was learned by targeted perturbation.

    Args:
        name_or_path: a system's name (its shipped generator), a training run's folder, or a .safetensors file.
        rows: of the other system's configurations, such as those of an independent run; by default all that the map was not learned on.
        recipe: which of a system's shipped generators.
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
    known = equilibrium_set(system, other, rows.data)
    source = known.take(rows_to_weigh(known, learned_on=learned_on) & ~_learned_elsewhere(known, other, learned_on))
    left_out = len(known) - len(source)
    rows.check(len(source), other, system)
    source = rows.drawn(source, system)
    settings = {"generator": str(path), "generator_fingerprint": trained.origin.config_hash, "start": other.name, "n": len(source),
                "recipe": trained.origin.method.split()[-1], **({"even": True} if rows.even else {}),
                **({"data": str(rows.data)} if rows.data else {})}
    return Transported(folder=folder or RUNS / system.name / "transported", system=system, source=source, map=trained.network.map,
                       left_out=left_out, settings=settings)
