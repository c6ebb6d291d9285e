"""Free energies from stored samples: between basins, and along a coordinate.

    python analysis/free_energy.py runs/dw4/shipped --coordinate pair_distance_max --png profile.png
    python analysis/free_energy.py runs/dw4/reference --basins n_long_4 --json dw4.json
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from torch import Tensor

from bgwork import runs, store, tables, terminal
from bgwork.free_energy import free_energy_difference
from bgwork.observables import OBSERVABLES
from bgwork.profiles import Profile, free_energy_profile
from bgwork.records import Estimate, WeightedSamples
from bgwork.report import weighed_reference
from bgwork.reweighting import evaluate
from bgwork.samplers.diagnostics import Diagnosis, ReferenceSet, diagnose, to_json_dict
from bgwork.system import System, load_system

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one samples file says."""

    diagnosis: Diagnosis
    differences: dict[str, Estimate]
    profile: Profile | None


def differences(weighted: WeightedSamples, basin_of: Callable[[Tensor], Tensor],
                populations: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """F of every basin that holds weight, relative to the most populated one, which comes out as 0 +- 0."""

    def member(x: Tensor, *, label: str) -> Tensor:
        return basin_of(x) == int(label)

    first = max(populations, key=lambda label: populations[label].value)
    return {label: free_energy_difference(weighted, partial(member, label=first), partial(member, label=label))
            for label in populations if populations[label].value > 0}


def profile_along(weighted: WeightedSamples, coordinate: Callable[[Tensor], Tensor], bins: int) -> Profile:
    """Profile over all samples that carry weight."""
    if bins < 1:
        raise ValueError(f"cannot make {bins} bins; ask for at least one")
    values = evaluate(coordinate, weighted)[weighted.log_w > -torch.inf]
    if values.min() == values.max():
        raise ValueError(f"the coordinate is {values[0]:g} at every sample, so there is no profile; choose another coordinate")
    edges = torch.linspace(values.min().item(), values.max().item(), bins + 1, dtype=torch.float64)
    return free_energy_profile(weighted, coordinate, edges)


def observable(name: str) -> Callable[[Tensor], Tensor]:
    """The function of that name."""
    if name not in OBSERVABLES:
        raise ValueError(f"unknown observable {name!r}; known are {', '.join(OBSERVABLES)}")
    return OBSERVABLES[name]


def analyse(weighted: WeightedSamples, system: System, *, basins: str | None, coordinate: str | None, bins: int) -> Result:
    """All that was asked for."""
    basins = basins or system.basins
    basin_of = observable(basins) if basins else None
    profile = profile_along(weighted, observable(coordinate), bins) if coordinate else None
    diagnosis = diagnose(weighted, reference=ReferenceSet(samples=weighed_reference(system)), basin_of=basin_of)
    between = differences(weighted, basin_of, diagnosis.basins) if basin_of else {}
    return Result(diagnosis=diagnosis, differences=between, profile=profile)


def show(path: Path, result: Result, coordinate: str | None) -> None:
    """Tables and the verdict."""
    if result.diagnosis.basins:
        rows = []
        for label, population in result.diagnosis.basins.items():
            truth = result.diagnosis.basin_reference.get(label)
            rows.append((label, tables.estimate(population), tables.with_error(truth.value, truth.stderr) if truth else tables.NONE,
                         tables.estimate(result.differences.get(label))))
        terminal.show(f"{path}: basins", ("basin", "population", "in the reference", "F / kT"), rows)
    if result.profile:
        edges, value = result.profile.edges, result.profile.value - result.profile.value.min()
        rows = [(f"{edges[k]:.4g} to {edges[k + 1]:.4g}", tables.with_error(value[k].item(), result.profile.stderr[k].item()))
                for k in range(len(value))]
        terminal.show(f"{path}: profile along {coordinate}, its minimum at zero", (coordinate, "F / kT"), rows)
    terminal.show("weights", ("figure", "value", "meaning"), tables.weight_rows(to_json_dict(result.diagnosis)))
    terminal.say(result.diagnosis.verdict)


def draw(profile: Profile, coordinate: str) -> Figure:
    """The profile with bands of one and two standard errors."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    centre, value, stderr = (profile.edges[1:] + profile.edges[:-1]) / 2, profile.value - profile.value.min(), profile.stderr
    for width in (2, 1):
        axes.fill_between(centre, value - width * stderr, value + width * stderr, color="#0b6cb8", alpha=0.2, lw=0)
    axes.plot(centre, value, ".-", color="#0b6cb8")
    axes.set(xlabel=coordinate, ylabel="F / kT", title="Free energy with one and two standard errors")
    return figure


def as_json(result: Result) -> dict[str, Any]:
    """Plain types."""
    profile = result.profile and {"edges": result.profile.edges.tolist(), "value": result.profile.value.tolist(),
                                  "stderr": result.profile.stderr.tolist(), "outside": result.profile.outside}
    return {"differences": result.differences, "profile": profile, "diagnosis": to_json_dict(result.diagnosis)}


@app.command()
def main(
    samples: Annotated[Path, typer.Argument(help="Samples file (.npz), or the folder of a run.")],
    basins: Annotated[str | None, typer.Option(help="Observable whose integer value labels the basin; default: the system's.")] = None,
    coordinate: Annotated[str | None, typer.Option(help="Observable to draw a profile along.")] = None,
    bins: Annotated[int, typer.Option(help="Bins of the profile.")] = 30,
    system: Annotated[str | None, typer.Option(help="System, where it is not the one that the file names.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the profile into this file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file too.")] = None,
) -> None:
    """Free-energy differences and profiles with error bars, ESS, Pareto k and failed rows beside them."""
    try:
        known = load_system(system) if system else None
        weighted = runs.weighted_samples(samples, system=known)
        known = known or load_system(weighted.proposal.origin.system)
        result = analyse(weighted, known, basins=basins, coordinate=coordinate, bins=bins)
        if png and not result.profile:
            raise ValueError("nothing to draw without a coordinate; name one with --coordinate")
        if png:
            store.write_atomically(png, lambda temporary: draw(result.profile, coordinate).savefig(temporary, dpi=150))
        if json:
            store.write_json(json, as_json(result))
    except ValueError as error:
        terminal.error(str(error))
        raise typer.Exit(2) from None
    show(samples, result, coordinate)


if __name__ == "__main__":
    app()
