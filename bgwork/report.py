"""The report of a run, report.json and report.html, from stored records; nothing is sampled here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from bgwork import figures, figures_learning, figures_molecular, page, store
from bgwork.conformation import intactness
from bgwork.learning import BASELINES_FILE, TrainingRecord
from bgwork.provenance import commit, file_fingerprint
from bgwork.records import Estimate, WeightedSamples
from bgwork.reweighting import average, expectation, weigh
from bgwork.samplers.diagnostics import Diagnosis, ReferenceSet, diagnose, plain, to_json_dict
from bgwork.samplers.lacking import lacking_parts
from bgwork.system import System, reference_samples

REFERENCE_FILE = "reference.npz"  # of a system
LEARNING = ("How the training went on, against the evaluations of the energy, with or without gradient, that it had asked for. "
            "Left: ESS of a few hundred samples, whose own energies are not counted. "
            "Right: median, 5 % and 95 % of u of fresh samples, unweighted. Chains, where they were asked for: effective share of what "
            "they kept, for the average energy (blind to modes that no chain has met), and the same quantiles; half of their evaluations "
            "is burn-in.")
GROWTH = ("Estimates from the first N samples. A fall of ESS or a jump of log Z at the end means: not enough samples. "
          "Where there is no band, the standard error is infinite.")


class ReportError(ValueError):
    """A report that cannot be made as asked."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A generator's log-density at reference samples of its system, or log q of one path back from each where weights belong to paths.

    Attributes:
        log_q: [M], normalised.
        rows: [M] which of the reference samples, evenly spread.
        rare: further ones from rare basins, for a look at each basin by itself; None if there are none.
    """

    log_q: Tensor
    rows: Tensor
    rare: HeldOut | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Where the two files lie, and what report.json holds."""

    json: Path
    html: Path
    content: Mapping[str, Any]


def observables_of(system: System, names: Sequence[str] | None = None) -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions by name; the reduced energy "u" is always estimated and not among them.

    Args:
        system: whose own observables are the default.
        names: those wanted.
    Raises:
        ReportError: for an unknown name, naming the known ones.
    """
    wanted = system.observables if names is None else names
    unknown = [name for name in wanted if name != "u" and name not in system.functions]
    if unknown:
        raise ReportError(f"unknown observable {', '.join(map(repr, unknown))}; known are u, {', '.join(system.functions)}")
    return {name: system.functions[name] for name in wanted if name != "u"}


def average_all(weighted: WeightedSamples, system: System, names: Sequence[str] | None = None) -> dict[str, Estimate]:
    """Averages by name, in the order asked for.

    Args:
        weighted: samples.
        system: whose own observables are the default.
        names: observables wanted, "u" for the reduced energy.
    Raises:
        ReportError: for an unknown name.
    """
    functions = observables_of(system, names)
    wanted = system.observables if names is None else names
    return {name: expectation(weighted, functions[name]) if name in functions else average(weighted, weighted.u) for name in wanted}


def kept_report(folder: Path, system: System) -> Report | None:
    """The report in a folder, if it was made from the very files that the run and the system hold now."""
    report = Report(json=folder / "report.json", html=folder / "report.html", content={})
    if not (report.json.exists() and report.html.exists()):
        return None
    content = store.read_json(report.json)
    return replace(report, content=content) if content.get("made_from") == made_from(folder, system) else None


def made_from(folder: Path, system: System) -> dict[str, str]:
    """Fingerprints of the files that a report rests on, and the commit of the code."""
    files = [folder / name for name in ("samples.npz", "held_out.safetensors", BASELINES_FILE)]
    files += [system.path / name for name in ("system.toml", REFERENCE_FILE, "reference.json")]
    return {"code": commit(), **{file.name: file_fingerprint(file) for file in files if file.exists()}}


def write_report(folder: Path, weighted: WeightedSamples, system: System, *, held_out: HeldOut | None,
                 provenance: Mapping[str, Any], training: TrainingRecord | None = None) -> Report:
    """Diagnose stored samples and write report.json and report.html.

    Args:
        folder: of the run.
        weighted: its samples.
        system: they were drawn for.
        held_out: the generator's log-density at reference samples of the system, where that is known.
        provenance: command, commit, versions and whatever else says where the numbers come from.
        training: of the generator, where it counted its evaluations of the energy.
    """
    known = weighed_reference(system)
    reference = independent_reference(weighted, known, system, held_out=held_out)
    basin_of = system.functions[system.basins] if system.basins else None
    diagnosis = diagnose(weighted, reference=reference, observables=observables_of(system), basin_of=basin_of)
    content = to_json_dict(diagnosis) | {"provenance": dict(provenance), "made_from": made_from(folder, system)}
    if system.topology:
        content["intactness"] = plain(intactness(weighted, system.topology, system.structure))
    content["lacking"] = plain(lacking_parts(weighted, reference, system.functions))
    shown = pictures(weighted, diagnosis, known, system)
    if training is not None:
        content["cost"] |= {"training": training.cost}
        shown += [(figures_learning.learning(training, known), LEARNING)] if training.is_curve else []
    report = Report(json=folder / "report.json", html=folder / "report.html", content=content)
    store.write_text(report.html, page.render(content, shown))
    store.write_json(report.json, content)
    return report


def independent_reference(weighted: WeightedSamples, known: WeightedSamples | None, system: System, *,
                          held_out: HeldOut | None) -> ReferenceSet:
    """What is known of the system, as far as it can check these samples: reference samples agree with themselves, whatever they are."""
    if known is not None and torch.isin(weighted.u, known.u[torch.isfinite(known.u)]).any():
        return ReferenceSet(note="these are the samples that the system's reference values come from, so they were not compared with them")
    if held_out is None:
        return ReferenceSet(samples=known, estimates=system.references)
    rare = {} if held_out.rare is None else {"rare_log_q": held_out.rare.log_q, "rare_rows": held_out.rare.rows}
    return ReferenceSet(samples=known, log_q=held_out.log_q, rows=held_out.rows, estimates=system.references, **rare)


def weighed_reference(system: System) -> WeightedSamples | None:
    """The reference samples kept with the system and their energies, if it has any."""
    return weigh(reference_samples(system), system.target) if (system.path / REFERENCE_FILE).exists() else None


def pictures(weighted: WeightedSamples, diagnosis: Diagnosis, reference: WeightedSamples | None,
             system: System) -> list[tuple[Figure, str]]:
    """The figures that these samples allow, each with its caption."""
    shown = [
        (figures.energies(weighted, reference), "Reduced energy: as generated, reweighted, and in the reference samples."),
        (figures.geometry(weighted, reference, length_unit=system.length_unit), "The same for the shape of the configurations."),
    ]
    if (system.space.n, system.space.d) == (1, 2):
        shown.append((figures.plane(weighted, reference), "Density in the plane, on one colour scale."))
    if system.topology:
        shown += figures_molecular.molecular_pictures(weighted, reference, system.topology, system.structure)
    if diagnosis.basins:
        shown.append((figures.populations(diagnosis.basins, diagnosis.basin_reference), "Population of each basin."))
    z = {name: truth.z for name, truth in diagnosis.reference.items() if math.isfinite(truth.z)}
    if z:
        shown.append((figures.deviations(z), "Every average against its reference value; the dashed lines are at four standard errors."))
    if figures.spread(weighted) > figures.EQUAL and not weighted.proposal.resampled:
        caption = "Left: the log-weights. Right: how many samples lie above a weight, with the Pareto fit of the tail."
        shown.append((figures.weights(weighted, pareto_k=diagnosis.pareto_k, limit=diagnosis.pareto_k_limit), caption))
    if math.isfinite(diagnosis.ess.value):
        shown.append((figures.growth(weighted), GROWTH))
    return shown
