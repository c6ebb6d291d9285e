"""Samples of one generator from several runs that differ in seed and number alone, as one: more samples without drawing any twice.

Each run's weights are proper for the same log Z, so that all of them together are. An exact run and a signed one of the same map make a
signed one: the exact one just happens to hold no sample where the map folds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bgwork import held_out, runs, store
from bgwork.provenance import fingerprint
from bgwork.records import COLUMNS, Certificate, Cost, Density, Proposal, WeightedSamples
from bgwork.report import HeldOut
from bgwork.samplers.certificates import density_of
from bgwork.system import System, load_system

FREE = ("n", "seed", "compiled", "command", "commit", "versions")  # what runs may differ in
PATHS = ("generator", "system")  # may be written in several ways
PROBED = 4  # rows of each run whose energies are evaluated again


class JoinError(ValueError):
    """Runs whose samples do not belong together, with the reason."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One run's samples, and the settings that they were drawn with."""

    folder: Path
    weighted: WeightedSamples
    settings: dict[str, Any]

    @property
    def seed(self) -> int:
        return self.settings["seed"]

    def names(self, key: str) -> tuple[str, str]:
        """What a path in the settings leads to, however it is written: its last part, and the hash of the generator's file."""
        return Path(self.settings[key]).name, self.settings["generator_fingerprint"]

    def __str__(self) -> str:
        return f"{self.folder} (seed {self.seed}, n = {len(self.weighted)})"


@dataclass(frozen=True, kw_only=True)
class Joined:
    """All samples of several runs, what they were drawn with, the recipe of their generator as the first run has it written down, and
    the density at reference samples if one of the runs has it."""

    weighted: WeightedSamples
    settings: dict[str, Any]
    recipe: str | None
    held_out: HeldOut | None


def join(folders: Sequence[Path]) -> Joined:
    """The samples of several runs of one generator, in the order given.

    Args:
        folders: of two runs or more, with weighted samples.
    Returns:
        Samples whose log Z and averages are those of all rows; `origin.seed` is None.
    Raises:
        JoinError: if they are fewer than two, of different generators, systems or settings, of one seed, hold rows that belong together
            (chains, copies), or were made with another definition of the system than today's.
    """
    if len(folders) < 2:
        raise JoinError(f"{len(folders)} run given; there is something to join with two or more")
    parts = [read(Path(folder)) for folder in folders]
    system = load_system(Path(parts[0].settings["system"]))
    check_alike(parts)
    check_energies(parts, system)
    known = [held_out.stored_density(part.folder, system, made_with=part.weighted.proposal.origin.config_hash) for part in parts]
    proposal = together(parts)
    shared = {key: value for key, value in parts[0].settings.items() if key not in FREE}
    found = max((density for density in known if density is not None), key=lambda density: density.rare is not None, default=None)
    u, recipe = torch.cat([part.weighted.u for part in parts]), parts[0].folder / "recipe.toml"
    return Joined(weighted=WeightedSamples(proposal=proposal, u=u, target=parts[0].weighted.target),
                  settings=shared | {"n": len(proposal), "seeds": [part.seed for part in parts], "joined": list(map(str, parts))},
                  recipe=recipe.read_text(encoding="utf-8") if recipe.exists() else None,
                  held_out=None if proposal.density is Density.SIGNED else found)


def read(folder: Path) -> Part:
    """A run's weighted samples.

    Raises:
        JoinError: if the folder holds none, or no generator drew them, or their rows belong together.
    """
    path, settings = folder / runs.SAMPLES_FILE, runs.read_settings(folder)
    if not path.exists() or "generator_fingerprint" not in settings or "seed" not in settings:
        raise JoinError(f"{folder} holds no samples that `bgwork sample` drew from one generator with one seed; give folders of such runs")
    weighted = store.load_samples(path)
    if not isinstance(weighted, WeightedSamples):
        raise JoinError(f"the samples in {folder} have no energies yet; give the command that drew them again")
    if weighted.proposal.group is not None or weighted.proposal.ancestor is not None:
        raise JoinError(f"rows of {folder} belong together (chains, islands or copies) under labels of their own; join raw samples")
    return Part(folder=folder, weighted=weighted, settings=settings)


def check_alike(parts: Sequence[Part]) -> None:
    """Raise JoinError unless only number and seed differ."""
    first = parts[0]
    for other in parts[1:]:
        for key in sorted((first.settings.keys() | other.settings.keys()) - set(FREE)):
            ours, theirs = first.settings.get(key), other.settings.get(key)
            if ours != theirs and not (key in PATHS and first.names(key) == other.names(key)):
                raise JoinError(f"{key} is {ours} in {first.folder} and {theirs} in {other.folder}; keep samples of different maps apart")
        ours, theirs = first.weighted.proposal, other.weighted.proposal
        if ours.origin.edits != theirs.origin.edits:
            raise JoinError(f"{first.folder} was edited ({'; '.join(ours.origin.edits) or 'not'}) otherwise than {other.folder} "
                            f"({'; '.join(theirs.origin.edits) or 'not'}); join raw runs")
        if {ours.density, theirs.density} not in ({ours.density}, {Density.EXACT, Density.SIGNED}):
            raise JoinError(f"the density is {ours.density.value} in {first.folder} and {theirs.density.value} in {other.folder}")
    seeds = [part.seed for part in parts]
    if len(set(seeds)) < len(seeds):
        raise JoinError(f"these runs have the seeds {', '.join(map(str, seeds))}; the same seed draws the same samples, so give other ones")


def check_energies(parts: Sequence[Part], system: System) -> None:
    """Raise JoinError if the energies of some run are not those of the system as it is now."""
    for part in parts:
        rows = part.weighted.take(torch.isfinite(part.weighted.u).nonzero().flatten()[:PROBED])
        if not torch.allclose(system.target.u(rows.x), rows.u, rtol=1e-6, atol=1e-4):
            raise JoinError(f"energies in {part.folder} are not those of {system.name} as it is now; draw its samples again")


def together(parts: Sequence[Part]) -> Proposal:
    """All rows in one proposal, with all costs and certificates."""
    proposals = [with_sign(part.weighted.proposal) for part in parts]
    columns = {name: torch.cat([getattr(each, name) for each in proposals]) for name in COLUMNS if getattr(proposals[0], name) is not None}
    certificate, density = None, proposals[0].density
    if all(each.certificate is not None for each in proposals):
        certificate = joint_certificate([each.certificate for each in proposals], [farthest(each.x) for each in proposals])
        density = density_of(certificate, columns["sign"]) if density.trusted and "sign" in columns else density
        if proposals[0].density.trusted and not density.trusted:
            raise JoinError(f"samples of one run lie so far out that another's search says nothing of the map's degree at them (margin "
                            f"{certificate.degree_margin:.2g}, must be above 1); keep the runs apart")
    seeds = ", ".join(str(part.seed) for part in parts)
    origin = replace(proposals[0].origin, seed=None, config_hash=fingerprint({"joined": [each.origin.config_hash for each in proposals]}),
                     method=f"{proposals[0].origin.method}, seeds {seeds}")
    note = "; ".join(f"{part}: {part.weighted.proposal.note}" for part in parts)
    return replace(proposals[0], **columns, origin=origin, density=density, certificate=certificate, cost=joint_cost(proposals),
                   note=note)


def joint_cost(proposals: Sequence[Proposal]) -> Cost:
    """All costs; without core seconds unless they are known of all."""
    cost = sum((each.cost for each in proposals), start=Cost())
    return cost if all(each.cost.core_seconds for each in proposals) else replace(cost, core_seconds=0.0)


def with_sign(proposal: Proposal) -> Proposal:
    """The same with a column of signs; files of exact samples from before there were any have none, and no negative determinant."""
    unsigned = proposal.density is Density.EXACT and proposal.sign is None
    return replace(proposal, sign=torch.ones_like(proposal.log_q)) if unsigned else proposal


def farthest(x: Tensor) -> float:
    """Largest distance from the origin of a configuration that is finite."""
    norm = x.flatten(1).norm(dim=1)
    return norm[torch.isfinite(norm)].max().item()


def joint_certificate(certificates: Sequence[Certificate], reach: Sequence[float]) -> Certificate:
    """What was checked in all; the degree's margin is over the farthest of all samples.

    Args:
        certificates: of the same map.
        reach: distance of each run's farthest sample from the origin.
    """
    total = sum if certificates[0].round_trip_of == "samples" else max  # the reference samples are the same for all
    margins = [each.degree_margin * own / max(reach) for each, own in zip(certificates, reach, strict=True) if each.n_degree]
    return replace(
        certificates[0], n=sum(each.n for each in certificates), n_negative=sum(each.n_negative for each in certificates),
        smallest_singular=min(each.smallest_singular for each in certificates),
        n_round_trip=total(each.n_round_trip for each in certificates),
        n_round_trip_failed=total(each.n_round_trip_failed for each in certificates),
        round_trip_error=max(each.round_trip_error for each in certificates),
        n_degree=max(each.n_degree for each in certificates), degree_margin=min(margins, default=math.nan))


def save(joined: Joined, folder: Path) -> None:
    """recipe.toml, sampling.toml, samples.npz and the density at reference samples, as `bgwork run` leaves them."""
    if joined.recipe is not None:
        store.write_text(folder / "recipe.toml", joined.recipe)
    runs.write_sampling(folder, joined.settings)
    store.save_samples(folder / runs.SAMPLES_FILE, joined.weighted)
    if joined.held_out is not None:
        held_out.keep(joined.held_out, folder, load_system(Path(joined.settings["system"])),
                      made_with=joined.weighted.proposal.origin.config_hash)
