"""The work of the commands that make configurations to train on or to compare with."""

from __future__ import annotations

from pathlib import Path

from bgwork import reference as reference_data
from bgwork import runs, store, tables, terminal
from bgwork.molecule import TransferSection
from bgwork.records import Proposal, WeightedSamples
from bgwork.reference_checks import ReferenceError, ReferenceRun, data_of
from bgwork.reference_trajectory import from_trajectory
from bgwork.relaxed import Relaxation, equilibrium_set, weighted_start
from bgwork.relaxed import relax as relaxed_configurations
from bgwork.store import RUNS
from bgwork.system import System, load_system


def reference(system: System, n: int, *, seed: int, folder: Path | None = None) -> None:
    """Generate reference data, show the checks, and save if they passed."""
    folder = folder or data_of(system.name).parent
    store.ensure_writable(folder)
    with terminal.progress(f"Reference {system.name}") as tick:
        made = reference_data.generate(system, n, seed=seed, progress=tick)
    save_reference(made, system, folder)


def reference_from(system: System, trajectory: Path, *, frame_time: float, temperature: float, top: Path | None = None,
                   folder: Path | None = None) -> None:
    """Take over a user's own trajectory as reference data, show the checks, and save if they passed."""
    folder = folder or data_of(system.name).parent
    store.ensure_writable(folder)
    made = from_trajectory(system, trajectory, frame_time=frame_time, temperature=temperature, top=top)
    save_reference(made, system, folder)


def save_reference(made: ReferenceRun, system: System, folder: Path) -> None:
    """Show the note, checks and averages of reference data, and save what passed."""
    if made.proposal.note:
        terminal.say(made.proposal.note)
    rows = [(c.name, tables.number(c.value), tables.number(c.limit), "passed" if c.passed else "FAILED") for c in made.checks]
    terminal.show(f"Checks of {len(made.proposal)} reference samples of {system.name}", ("check", "value", "must be below", ""), rows)
    rows = [(name, tables.estimate(value), tables.number(value.n_eff)) for name, value in made.estimates.items()]
    terminal.show("Averages", ("observable", "value", "n_eff"), rows)
    reference_data.save(made, folder, command=runs.provenance()["command"])
    terminal.say(f"Saved {folder / runs.SAMPLES_FILE}")


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
    path = folder / runs.SAMPLES_FILE
    store.save_samples(path, proposal)
    terminal.say(f"Saved {path}: {proposal.note}, with {proposal.cost.gradient} gradients")
    terminal.say(f"They are to train on, not to compare with or to average: `bgwork train {system.name} --data {path}`")


def start_of(system: System, start: str | None) -> Proposal | WeightedSamples:
    """What `relax` starts from; see there."""
    if start is None and not isinstance(system.reference, TransferSection):
        raise ReferenceError(f"{system.name} names no system to start from (reference.sampler = \"transfer\"); give --start")
    if start is not None and (Path(start).suffix == ".npz" or (Path(start) / runs.SAMPLES_FILE).exists()):
        return weighted_start(system, Path(start))
    return equilibrium_set(system, load_system(start or system.reference.start))
