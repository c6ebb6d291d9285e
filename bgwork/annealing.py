"""Annealing as a run of its own: a generator's samples resampled and moved on, or sequential Monte Carlo from the prior without any.

Moves use the system's differentiable energy, final weights its own target (OpenMM where it has one): log q is proper for either.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from bgwork.partial import PartialSamples
from bgwork.provenance import file_fingerprint, fingerprint
from bgwork.records import Density, Proposal
from bgwork.runs import RUNS, Run, RunError, SampleSettings, find_run, write_sampling
from bgwork.samplers.batches import Progress
from bgwork.samplers.moves import Hamiltonian
from bgwork.samplers.smc import SMC, Annealer, Rejuvenated
from bgwork.system import System, load_system

LEAPFROG = {"hmc": 5, "mala": 1}  # gradients a transition; with one, Hamiltonian Monte Carlo is the adjusted Langevin algorithm
STARTS = {"generator": 1.0, "prior": 0.5}  # and the effective fraction below which an island is resampled


@dataclass(frozen=True, kw_only=True)
class AnnealSettings:
    """What decides the numbers of an annealing, together with the generator.

    Args:
        n: number of samples.
        seed: of everything random.
        start: "generator", whose samples are weighed, resampled and moved on, or "prior", from which the target is approached by
            temperatures found on a pilot run.
        moves: "hmc" or "mala".
        transitions: of each move.
        islands: independent populations, whose scatter gives the error bars.
        resample_below: effective fraction below which an island is resampled, 0 for never (annealed importance sampling); by default 1
            for a generator and 0.5 for the prior.
        keep: conditional effective fraction that each step in temperature leaves; nearer 1 takes more temperatures.
        hottest: inverse temperature, relative to the target's, at which a generator's samples are entered; below 1 they are cooled.

    Raises:
        RunError: if a setting is out of range.
    """

    n: int = 2000
    seed: int = 0
    start: str = "generator"
    moves: str = "hmc"
    transitions: int = 10
    islands: int = 50
    resample_below: float | None = None
    keep: float = 0.9
    hottest: float = 1.0

    def __post_init__(self) -> None:
        for name, value, known in (("start", self.start, STARTS), ("moves", self.moves, LEAPFROG)):
            if value not in known:
                raise RunError(f"unknown {name} {value!r}; choose one of {', '.join(known)}")
        if not 1 <= self.islands <= self.n:
            raise RunError(f"{self.n} samples cannot be shared among {self.islands} islands; give more -n, or fewer --islands")
        if self.transitions < 1:
            raise RunError(f"the number of transitions must be positive, got {self.transitions}")
        if not (0 <= self.threshold <= 1 and 0 < self.keep < 1 and 0 < self.hottest <= 1):
            raise RunError("resample-below must lie in [0, 1], keep in (0, 1) and hottest in (0, 1], got "
                           f"{self.threshold}, {self.keep} and {self.hottest}")
        if self.start == "prior" and self.hottest != 1:
            raise RunError(f"the path from the prior begins at beta = 0; leave out --hottest {self.hottest}")

    @property
    def threshold(self) -> float:
        return STARTS[self.start] if self.resample_below is None else self.resample_below

    @property
    def kernel(self) -> Hamiltonian:
        return Hamiltonian(leapfrog=LEAPFROG[self.moves], transitions=self.transitions)


@dataclass(frozen=True, kw_only=True)
class Annealing:
    """One annealing of one system, and the folder that its samples live in.

    Attributes:
        folder: runs/<system>/<start>-annealed.
        system: what is sampled.
        settings: of the annealing.
        source: the generator's run, or None for the prior.
        accept: densities of the generator without proper weights to take nevertheless.
    """

    folder: Path
    system: System
    settings: AnnealSettings
    source: Run | None
    accept: Collection[Density] = ()

    @property
    def fingerprint(self) -> str:
        """Of the settings, the system's definition, and the generator with its own settings."""
        start = self.source.fingerprint if self.source else file_fingerprint(self.system.path / "system.toml")
        return fingerprint(asdict(self.settings) | {"from": start})

    def annealer(self, on_batch: Progress) -> Annealer:
        """Sequential Monte Carlo, or the generator's samples rejuvenated."""
        asked, system = self.settings, self.system
        common = {"target": system.differentiable_target, "kernel": asked.kernel, "islands": asked.islands, "keep": asked.keep,
                  "resample_below": asked.threshold, "system": system.name}
        if self.source is None:
            return SMC(prior=system.prior, **common)
        return Rejuvenated(source=self.source.sampler(on_batch), hottest=asked.hottest, accept=self.accept, **common)

    def sample(self, on_batch: Progress, *, kept: PartialSamples) -> Proposal:  # noqa: ARG002
        """The samples asked for; all of them move on together, so that there are no batches to keep."""
        drawn = self.annealer(on_batch).sample(self.settings.n, generator=torch.Generator().manual_seed(self.settings.seed))
        return replace(drawn, origin=replace(drawn.origin, seed=self.settings.seed, config_hash=self.fingerprint))

    def write_settings(self) -> None:
        """sampling.toml, as these samples were drawn with."""
        generator = self.source.named_generator if self.source else {}
        write_sampling(self.folder, {"system": str(self.system.path)} | generator | asdict(self.settings))


def find_annealing(name_or_path: str, settings: AnnealSettings, *, recipe: str | None = None, folder: Path | None = None,
                   accept: Collection[Density] = ()) -> Annealing:
    """The annealing of a system, from its prior, its shipped generator, or the generator of a run or a file.

    Args:
        name_or_path: a system's name or folder, a run's folder, or a .safetensors file.
        settings: of the annealing.
        recipe: which of a system's shipped generators.
        folder: where results go; by default beside the run that is annealed.
        accept: densities of the generator without proper weights to take nevertheless.
    """
    if settings.start == "prior":
        if recipe is not None:
            raise RunError(f"the prior needs no generator; leave out --recipe {recipe}, or --start prior")
        system = load_system(name_or_path)
        return Annealing(folder=folder or RUNS / system.name / "prior-annealed", system=system, settings=settings, source=None)
    run = find_run(name_or_path, SampleSettings(n=settings.n, seed=settings.seed), recipe=recipe, folder=None)
    own = run.folder.with_name(f"{run.folder.name}-annealed")
    return Annealing(folder=folder or own, system=run.system, settings=settings, source=run, accept=tuple(accept))
