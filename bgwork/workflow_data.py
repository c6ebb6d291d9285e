"""The work of the commands that make configurations to train on, to compare with, or for other programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bgwork import reference as reference_data
from bgwork import runs, store, tables, terminal
from bgwork.endings import Interrupted
from bgwork.enriched import Excursions
from bgwork.enriched import enrich as enriched_configurations
from bgwork.export import XTC_NOTE, export_samples, samples_file
from bgwork.molecule import MetadynamicsSection, TransferSection
from bgwork.provenance import file_fingerprint
from bgwork.records import Estimate, Proposal, WeightedSamples
from bgwork.reference_checks import ReferenceError, ReferenceRun, data_of
from bgwork.reference_md import dynamics_target, stages_in
from bgwork.reference_stages import Stages
from bgwork.reference_trajectory import from_trajectory
from bgwork.relaxed import Relaxation, equilibrium_set, weighted_start
from bgwork.relaxed import relax as relaxed_configurations
from bgwork.report import REFERENCE_FILE
from bgwork.reweighting import resample
from bgwork.set_aside import SHARE, set_aside
from bgwork.store import RUNS
from bgwork.system import System, comes_with_package, load_system

XTC_STEP = 0.001  # nm
COPIES = 100  # of a sample, on average, that an export of resampled frames may hold
KEPT_STEM = Path(REFERENCE_FILE).stem
LATER = ("definition", "fingerprint")  # of system.toml and of a trajectory, which older data did not write down
ROUNDED = 500  # frames at most that are looked at, since their energies may be dear


def reference(system: System, n: int, *, seed: int, folder: Path | None = None) -> None:
    """Generate reference data, show the checks, and save if they passed; what a molecule's run has finished is kept until then.

    Raises:
        ReferenceError: if other data lie in the folder, or a check failed.
        Interrupted: on Ctrl-C, before anything is saved.
    """
    folder = folder or data_of(system.name).parent
    settings = system.reference.model_dump()
    asked = {"system": system.name, "definition": definition(system), "n": n, "seed": seed, "settings": settings}
    check_replaceable(folder, asked)
    check_unlike_kept(system, asked)
    store.ensure_writable(folder)
    stages = stages_in(folder, system, n, seed=seed) if isinstance(system.reference, MetadynamicsSection) else Stages()
    say_what_is_kept(stages)
    with terminal.progress(f"Reference {system.name}") as tick:
        try:
            made = reference_data.generate(system, n, seed=seed, stages=stages, progress=tick)
        except KeyboardInterrupt:
            raise Interrupted(f"no reference data were saved, and the same command {_goes_on(stages)}") from None
    try:
        save_reference(made, system, folder, asked=asked)
    except ReferenceError as error:
        raise ReferenceError(f"{error}\n{_kept(stages, made)}") if stages.finished() else error from None
    stages.forget()


def say_what_is_kept(stages: Stages) -> None:
    """What the run goes on from, whether other code had made it, and what lies beside it."""
    if known := stages.finished():
        terminal.note(f"going on from {stages.folder}, where {', '.join(known)} had been finished")
    if other := stages.of_other_code():
        terminal.note(f"another version of bgwork's code had made {', '.join(other)}; remove {stages.folder} to begin anew")
    if others := stages.others():
        terminal.note(f"runs with other settings had been begun; what they keep may be removed: {', '.join(map(str, others))}")


def _goes_on(stages: Stages) -> str:
    known = stages.finished()
    return f"goes on from {', '.join(known)}, which {stages.folder} keeps" if known else "begins anew"


def _kept(stages: Stages, made: ReferenceRun) -> str:
    """What can be made of a refused run."""
    if not any("replica exchange" in check.name and ("Delta F" in check.name or "_positive" in check.name)
               for check in made.checks if not check.passed):
        return f"{stages.folder} keeps what was run, and may be removed: the same command would only judge it again"
    run, more = made.made["cross_check"]["ladders"], made.made["settings"]["ladders"]
    return (f"{stages.folder} keeps what was run: {run} ladders did not do, and with reference.most_ladders = {run + more} or more in "
            "system.toml the same command goes on with further ones")


def reference_from(system: System, trajectory: Path, *, frame_time: float, temperature: float, top: Path | None = None,
                   folder: Path | None = None) -> None:
    """Take over a user's own trajectory as reference data, show the checks, and save if they passed.

    Raises:
        ReferenceError: if other data lie in the folder.
    """
    folder = folder or data_of(system.name).parent
    asked = {"system": system.name, "definition": definition(system), "file": str(trajectory), "frame_time_ps": frame_time,
             "temperature_K": temperature}
    asked |= {"fingerprint": file_fingerprint(trajectory)} if trajectory.is_file() else {}
    check_replaceable(folder, asked)
    store.ensure_writable(folder)
    made = from_trajectory(system, trajectory, frame_time=frame_time, temperature=temperature, top=top)
    if trajectory.suffix.lower() == ".xtc":
        note = f"{made.proposal.note}; {rounding_remark(system, made.proposal)}"
        made = replace(made, proposal=replace(made.proposal, note=note))
    save_reference(made, system, folder, asked=asked)


def definition(system: System) -> str:
    """Fingerprint of a system's energy and constants, as its system.toml has them."""
    return file_fingerprint(system.path / "system.toml")


def check_replaceable(folder: Path, asked: Mapping[str, Any]) -> None:
    """Refuse to replace samples by reference data made in another way; made in the same way, they may take their place.

    Args:
        folder: where they would go.
        asked: what reference.json will say of how they were made, as far as that is known before.
    Raises:
        ReferenceError: naming what lies there.
    """
    path = folder / runs.SAMPLES_FILE
    if not path.exists():
        return
    record = folder / "reference.json"
    known = store.read_json(record) if record.exists() else {}
    known = known if isinstance(known, dict) else {}
    other = _different(json.loads(json.dumps(asked)), known)
    if other:
        made_by = f"{known.get('n')} configurations made by `{known.get('command')}` (other {', '.join(other)})"
        found = made_by if known else "samples, and nothing says how they were made"
        raise ReferenceError(f"{path} holds {found}; give another --out, or move {folder} away")


def _different(asked: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """Names of what differs; settings and fingerprints that the older data did not write down are taken to be the same."""
    if not known:
        return list(asked)
    names = [name for name, value in asked.items() if name != "settings" and known.get(name, value if name in LATER else None) != value]
    settings = known.get("settings") or {}
    return names + [name for name, value in (asked.get("settings") or {}).items() if settings.get(name, value) != value]


def rounding_remark(system: System, frames: Proposal) -> str:
    """What rounding to a thousandth of a nm did to the energies, estimated from what doing so once more, on a shifted grid, would do."""
    x = frames.x[torch.linspace(0, len(frames) - 1, min(len(frames), ROUNDED)).long()]
    noise = XTC_STEP * (torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype) - 0.5)
    shift = system.target.u(system.space.project(x + noise)) - system.target.u(x)
    shift = shift[shift.isfinite()]
    estimate = Estimate(value=shift.mean().item(), stderr=(shift.std() / len(shift) ** 0.5).item(), n_eff=float(len(shift)))
    return (f"XTC as it is mostly written holds coordinates at the precision of {XTC_STEP:g} nm, which shifts the reduced energies of "
            f"these frames by about {tables.estimate(estimate)} kT; DCD or HDF5 keep what energies need")


def save_reference(made: ReferenceRun, system: System, folder: Path, *, asked: Mapping[str, Any]) -> None:
    """Show the note, checks and averages of reference data, and save what passed, in two parts for a system of one's own."""
    if made.proposal.note:
        terminal.say(made.proposal.note)
    rows = [(c.name, tables.number(c.value), tables.number(c.limit), "passed" if c.passed else "FAILED") for c in made.checks]
    terminal.show(f"Checks of {len(made.proposal)} reference samples of {system.name}", ("check", "value", "must be below", ""), rows)
    rows = [(name, tables.estimate(value), tables.number(value.n_eff)) for name, value in made.estimates.items()]
    terminal.show("Averages", ("observable", "value", "n_eff"), rows)
    replaced, command = (folder / runs.SAMPLES_FILE).exists(), runs.provenance()["command"]
    made = replace(made, made=made.made | {"definition": definition(system)})
    parts = set_aside(made) if may_be_judged_by(system, asked) else None
    reference_data.save(parts[1] if parts else made, folder, command=command)
    shipped = comes_with_package(system)
    if replaced:
        terminal.note(f"replaced what had been in {folder / runs.SAMPLES_FILE}, made in the same way")
    terminal.say(f"Saved {folder / runs.SAMPLES_FILE}")
    if parts and shipped:
        terminal.say(f"Nothing of the last {SHARE:.0%} of every walker is in it: {system.path / REFERENCE_FILE}, which samples are judged "
                     "by, is from there")
    elif parts:
        reference_data.save(parts[0], system.path, stem=KEPT_STEM, command=command)
        terminal.say(f"Saved {system.path / REFERENCE_FILE}: {len(parts[0].proposal)} configurations of the last {SHARE:.0%} of every "
                     "walker, which samples are judged by; nothing of that time is in the data to train on")


def may_be_judged_by(system: System, asked: Mapping[str, Any]) -> bool:
    """Whether a part of this run may become the set that the system's samples are judged by: it has none, or one of this very run."""
    if isinstance(system.reference, TransferSection):
        return False
    kept = system.path / f"{KEPT_STEM}.json"
    if not kept.exists():
        return not ((system.path / REFERENCE_FILE).exists() or comes_with_package(system))
    known = store.read_json(kept)
    return "set_aside" in known and not _different(json.loads(json.dumps(asked)), known)


def check_unlike_kept(system: System, asked: Mapping[str, Any]) -> None:
    """Refuse data to train on whose walkers are those of the set that samples are judged by.

    Raises:
        ReferenceError: if that set was drawn with the same seed, but with other settings.
    """
    kept = system.path / f"{KEPT_STEM}.json"
    if not kept.exists() or may_be_judged_by(system, asked):
        return
    known = store.read_json(kept)
    if known.get("set_aside") and known.get("seed") == asked["seed"]:
        raise ReferenceError(f"{system.path / REFERENCE_FILE}, which samples are judged by, was drawn with the same seed "
                             f"({asked['seed']}), so that these walkers would repeat its own; give another --seed"
                             + ("" if comes_with_package(system) else ", or move it and its reference.json away"))


def relax(system: System, start: str | None, n: int, *, relaxation: Relaxation, seed: int, folder: Path | None = None) -> None:
    """Move configurations towards this system's equilibrium, say what they are not, and save them.

    Args:
        start: another system, whose equilibrium data are moved, or a file or folder of weighted samples of this one; by default the other
            system that this one's reference data start from.

    Raises:
        ReferenceError: if nothing says what to start from, or there are no such data, or too few.
    """
    folder = folder or RUNS / system.name / "relaxed"
    store.ensure_writable(folder)
    source = start_of(system, start)
    with terminal.progress(f"Relaxing on {system.name}") as tick:
        proposal = relaxed_configurations(system, source, n, relaxation=relaxation, seed=seed, progress=tick)
    save_to_train_on(proposal, system, folder)


def enrich(system: System, basins: Sequence[str], *, excursions: Excursions, seed: int, data: Path | None = None,
           folder: Path | None = None) -> None:
    """Add rows within rare basins to data, say what they are not, and save all of them.

    Raises:
        ReferenceError: if the system has no dynamics, there are no such data, or no such basins.
        Interrupted: on Ctrl-C, before anything is saved.
    """
    dynamics_target(system)
    folder = folder or RUNS / system.name / "enriched"
    store.ensure_writable(folder)
    source = equilibrium_set(system, system, data)
    with terminal.progress(f"Enriching {system.name}") as tick:
        try:
            proposal = enriched_configurations(system, source, basins, excursions=excursions, seed=seed, progress=tick)
        except KeyboardInterrupt:
            raise Interrupted("nothing was saved, and the same command begins anew") from None
    save_to_train_on(proposal, system, folder)


def save_to_train_on(proposal: Proposal, system: System, folder: Path) -> None:
    """Configurations that are in equilibrium with nothing, and what they are for."""
    path = folder / runs.SAMPLES_FILE
    replaced = path.exists()
    store.save_samples(path, proposal)
    if replaced:
        terminal.note(f"replaced what had been in {path}")
    terminal.say(f"Saved {path}: {proposal.note}, with {proposal.cost.gradient} gradients")
    terminal.say(f"They are to train on, not to compare with or to average: `bgwork train {system.name} --data {path}`")


def start_of(system: System, start: str | None) -> Proposal | WeightedSamples:
    """What `relax` starts from; see there."""
    if start is None and not isinstance(system.reference, TransferSection):
        raise ReferenceError(f"{system.name} names no system to start from (reference.sampler = \"transfer\"); give --start")
    if start is not None and (Path(start).suffix == ".npz" or (Path(start) / runs.SAMPLES_FILE).exists()):
        return weighted_start(system, Path(start))
    return equilibrium_set(system, load_system(start or system.reference.start))


def export(path: Path, system: System | None, *, kind: str, n: int | None, seed: int, stem: Path | None) -> None:
    """Stored samples and weights as files for other programs; with n, that many frames of equal weight."""
    weighted = runs.weighted_samples(path, system=system)
    system = system or load_system(weighted.proposal.origin.system)
    if n is not None and n > COPIES * len(weighted):
        raise ValueError(f"{n} frames are asked for, of {len(weighted)} samples: more than {COPIES} copies of each say nothing new; "
                         "ask for fewer, or draw more samples")
    weighted = weighted if n is None else resample(weighted, n, generator=torch.Generator().manual_seed(seed))
    source = path / runs.SAMPLES_FILE if path.is_dir() else path
    stem = stem or source.with_name("exported" if n is None else "equilibrium")
    samples = samples_file(stem, kind)
    if samples.resolve() == source.resolve():
        raise ValueError(f"{source} is what would be exported, and would be lost; give another --out than {stem}")
    replaced = samples.exists()
    if samples.name == runs.SAMPLES_FILE:
        raise ValueError(f"{samples} is what a run's own samples are called; give another --out")
    for written in export_samples(weighted, system, stem, kind=kind):
        terminal.say(f"Saved {written}")
    if replaced:
        terminal.note(f"replaced {samples}, which had been there before")
    if kind == "xtc":
        terminal.note(XTC_NOTE)
