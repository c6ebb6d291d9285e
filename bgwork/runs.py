"""A run: the folder runs/<system>/<name>/ and the steps that fill it, each skipped where its result already lies there.

    generator --draw--> samples.npz (x, log_q; meanwhile samples.part.safetensors) --finish--> samples.npz (with u)
              --held_out.evaluate--> held_out.safetensors (log q at reference samples)

What decides the numbers is hashed into the samples' origin, so that stored samples are taken up again only if they are what is asked for.
"""

from __future__ import annotations

import shlex
import sys
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import tomli_w
import torch

from bgwork import store
from bgwork.generators import generator_path, load_trained
from bgwork.partial import PartialSamples
from bgwork.protocols import Sampler
from bgwork.provenance import commit, file_fingerprint, fingerprint, tensor_fingerprint, versions
from bgwork.recipes import Choice, Recipe, Trained
from bgwork.recipes.files import resampled_as
from bgwork.records import Density, Proposal, WeightedSamples, proposal_of
from bgwork.reweighting import weigh
from bgwork.sample_settings import RunError, SampleSettings
from bgwork.samplers.batches import Progress
from bgwork.samplers.compiled import compiled
from bgwork.samplers.executed import ExecutedMap
from bgwork.store import RUNS, SAMPLES_FILE
from bgwork.system import System, load_system
from bgwork.trajectories import is_trajectory

SETTINGS_FILE = "sampling.toml"
ON_PATHS = ("path", "directional")

Note = Callable[[str], None]


class Drawing(Protocol):
    """What `draw` and `finish` need to know: a `Run`, or an `annealing.Annealing`."""

    folder: Path
    system: System

    @property
    def fingerprint(self) -> str:
        """Of all that decides the numbers."""
        ...

    def sample(self, on_batch: Progress, *, kept: PartialSamples) -> Proposal:
        """The samples asked for, with what an interrupted attempt has left."""
        ...

    def write_settings(self) -> None:
        """Write down how they were drawn."""
        ...


@dataclass(frozen=True, kw_only=True)
class Run:
    """One generator's samples of one system, and the folder they live in.

    Attributes:
        folder: runs/<system>/<name>.
        system: what is sampled.
        recipe: that the generator was trained with.
        trained: its network.
        generator: its file.
        settings: of the sampling.
    """

    folder: Path
    system: System
    recipe: Recipe
    trained: Trained
    generator: Path
    settings: SampleSettings

    @cached_property
    def fingerprint(self) -> str:
        """Of the generator's file, the settings and the system's definition as it was when first asked for.

        What is drawn for hours and what is evaluated after it belong together, whatever has become of the file meanwhile.
        """
        known = {"generator": self.trained.origin.config_hash, "system": file_fingerprint(self.system.path / "system.toml")}
        if self.settings.weights == "directional":  # whose pilot run asks for the energy
            known |= {path.name: file_fingerprint(path) for path in sorted(self.system.path.iterdir()) if path.suffix in (".pdb", ".xml")}
        if self.settings.weights in ON_PATHS and self.trained.tuning is not None:  # which decides the kernels
            known |= {"tuning": tensor_fingerprint(self.trained.tuning)}
        return fingerprint(self.settings.decisive | known)

    @property
    def remark(self) -> str:
        """What to mind about the number of steps asked for; empty if there is nothing."""
        own, ease = self.recipe.default_choice().steps, getattr(self.recipe.sampler, "ease", 1.0)
        if ease == 1 or self.settings.steps in (own, None) or self.settings.integrator == "dopri5":
            return ""
        return (f"this generator's grid has shortened first steps (sampler.ease = {ease:g}), chosen for {own} steps and not for "
                f"{self.settings.steps}; look at ESS, and try --set sampler.ease=1")

    def sampler(self, on_batch: Progress) -> Sampler:
        """The generator behind the integrator, steps and weights asked for."""
        asked = self.settings
        origin = replace(self.trained.origin, config_hash=self.fingerprint, seed=asked.seed)
        choice = Choice(integrator=asked.integrator, steps=asked.steps, weights=asked.weights, on_batch=on_batch)
        sampler = self.recipe.sampler_of(replace(self.trained, origin=origin), choice)
        return compiled(sampler) if asked.compiled else sampler

    def sample(self, on_batch: Progress, *, kept: PartialSamples) -> Proposal:
        """The samples asked for; only the batches of executed maps are kept, since random walks go on with what they drew last."""
        sampler, generator = self.sampler(on_batch), torch.Generator().manual_seed(self.settings.seed)
        if not isinstance(sampler, ExecutedMap):
            return sampler.sample(self.settings.n, generator=generator)
        with kept:
            return replace(sampler, kept=kept).sample(self.settings.n, generator=generator)

    @property
    def named_generator(self) -> dict[str, str]:
        """The generator's file and its fingerprint, for sampling.toml."""
        return {"generator": str(self.generator), "generator_fingerprint": self.trained.origin.config_hash}

    def write_settings(self) -> None:
        """recipe.toml, as the generator was trained with, and sampling.toml, as these samples were drawn with."""
        meta = store.load_checkpoint(self.generator)[1]
        write_recipe(self.folder, meta["recipe"], {key: meta[key] for key in ("recipe_name", "seed", "commit", "versions")})
        write_sampling(self.folder, {"system": str(self.system.path)} | self.named_generator | self.settings.decisive)


def find_run(name_or_path: str, settings: SampleSettings, *, recipe: str | None = None, folder: Path | None) -> Run:
    """The run of a system's shipped generator, of a folder that `bgwork train` filled, or of a generator's file.

    Args:
        name_or_path: a system's name or folder, a run's folder, or a .safetensors file.
        settings: of the sampling.
        recipe: which of a system's shipped generators.
        folder: where results go; by default the run's own folder, or runs/<system>/shipped.
    """
    path = generator_path(name_or_path, recipe=recipe)
    if path.parent.name == "generators":
        system = load_system(path.parent.parent)
        made_by, trained = load_trained(path, system=system)
        own = RUNS / system.name / (recipe or "shipped")
    else:
        (made_by, trained), own = load_trained(path), path.parent
    settings.check_overrides()
    made_by = resampled_as(made_by, settings.overrides)
    asked = settings.on(made_by)
    choice = Choice(integrator=asked.integrator, steps=asked.steps, weights=asked.weights)
    made_by.check(choice)
    if asked.compiled and asked.weights == "path":
        raise RunError("--compiled is for Jacobians, which path weights take none of; leave it out, or take --weights directional")
    if asked.compiled and asked.weights != "directional":
        compiled(made_by.sampler_of(trained, choice))  # refused now, if it will be
    return Run(folder=folder or own, system=trained.system, recipe=made_by, trained=trained, generator=path, settings=asked)


def draw(run: Drawing, *, progress: Progress, note: Note) -> Proposal | WeightedSamples:
    """Samples with log q, stored before anything else is done with them; those that lie there already if they are what is asked for."""
    path = run.folder / SAMPLES_FILE
    if path.exists():
        stored = store.load_samples(path)
        if proposal_of(stored).origin.config_hash == run.fingerprint:
            note(f"samples exist and are kept: {path}")
            return stored
        note(f"replacing {path}, whose samples were drawn with other settings or another generator or system")
    kept = PartialSamples(folder=run.folder, fingerprint=run.fingerprint)
    if kept.found:
        note(f"going on after {kept.found} samples that were drawn before an interruption")
    if kept.others:
        note(f"replacing {kept.path}: its {kept.others} samples, from before an interruption, are of other settings or another generator")
    proposal = run.sample(progress, kept=kept)
    run.write_settings()
    store.save_samples(path, proposal)
    kept.discard()
    return proposal


def kept_of(run: Drawing) -> str:
    """What an interruption of `draw` has left, in words."""
    kept = PartialSamples(folder=run.folder, fingerprint=run.fingerprint)
    if kept.found:
        return f"{kept.found} samples are kept in {kept.path}, and the same command goes on with them"
    return "nothing was stored, and the same command begins anew"


def finish(run: Drawing, samples: Proposal | WeightedSamples, *, accept: Collection[Density]) -> WeightedSamples:
    """Energies, and with them weights, added to stored samples that have none yet."""
    if isinstance(samples, WeightedSamples):
        return samples
    path = run.folder / SAMPLES_FILE
    if not samples.density.trusted and samples.density not in accept:
        raise RunError(f"the density is {samples.density.value}, so these samples have no proper weights ({samples.note}); try more "
                       f"--steps, or --accept {samples.density.value} to weigh {path} nevertheless, an edit named in the report")
    weighted = weigh(samples, run.system.target, accept=accept)
    store.save_samples(path, weighted)
    return weighted


def weighted_samples(path: Path, *, system: System | None = None) -> WeightedSamples:
    """Stored samples with weights, from a file or a run's folder; energies are evaluated if the file has none.

    Args:
        path: samples.npz or its folder.
        system: whose energy is used; by default the one named in the file.
    Raises:
        RunError: if the file holds energies of something else than the system asked for, or is a trajectory.
    """
    if is_trajectory(path) and not path.is_dir():
        raise RunError(f"{path} is a trajectory or an export, and no {SAMPLES_FILE}, which this reads; `bgwork reference SYSTEM "
                       f"--from {path}` takes a trajectory over as reference data, if it is equilibrium dynamics of the system")
    samples = store.load_samples(path / SAMPLES_FILE if path.is_dir() else path)
    if isinstance(samples, WeightedSamples):
        if system is not None and samples.target != system.target.name:
            remedy = f"give --system {samples.target}, or samples without energies"
            raise RunError(f"{path} holds energies of {samples.target!r}, not of {system.target.name!r}; {remedy}")
        return samples
    return weigh(samples, (system or load_system(samples.origin.system)).target)


def check_folder(folder: Path) -> None:
    """Refuse a file where the folder of a run is asked for.

    Raises:
        RunError: naming the folder.
    """
    if folder.is_file():
        remedy = f"give {folder.parent}" if folder.name == SAMPLES_FILE else f"put it, as {SAMPLES_FILE}, into one of its own"
        raise RunError(f"{folder} is a file, and a report is of a folder, where it goes; {remedy}")


def provenance() -> dict[str, Any]:
    """Command, commit and versions of this process."""
    return {"command": shlex.join(["bgwork", *sys.argv[1:]]), "commit": commit(), "versions": versions()}


def write_sampling(folder: Path, settings: Mapping[str, Any]) -> None:
    """sampling.toml: settings that are not None, with command, commit and versions."""
    known = {name: value for name, value in settings.items() if value is not None}
    store.write_text(folder / SETTINGS_FILE, tomli_w.dumps(known | provenance()))


def write_recipe(folder: Path, recipe: Mapping[str, Any], made_with: Mapping[str, Any]) -> None:
    """A resolved recipe that can be used again, with what it was used with in comments."""
    about = "".join(f"# {name}: {value}\n" for name, value in made_with.items())
    store.write_text(folder / "recipe.toml", about + tomli_w.dumps(recipe))


def read_settings(folder: Path) -> dict[str, Any]:
    """sampling.toml of a folder; empty if it has none (reference data, samples from elsewhere).

    Raises:
        RunError: if it is not TOML.
    """
    path = folder / SETTINGS_FILE
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is not readable TOML: {error}") from error
