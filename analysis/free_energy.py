"""Free energies from stored samples: between basins, along a coordinate, and of the phi basins of a peptide, also at another temperature.

    python analysis/free_energy.py runs/dw4/shipped --coordinate pair_distance_max --png profile.png
    python analysis/free_energy.py runs/dw4/reference --basins n_long_4 --json dw4.json
    python analysis/free_energy.py runs/ala2-vacuum/shipped --coordinate phi --png phi.png
    python analysis/free_energy.py runs/ala2-vacuum/shipped --coordinate phi --coordinate psi --png map.png --json map.json
    python analysis/free_energy.py runs/ala2-vacuum/shipped --temperature 350
    python analysis/free_energy.py my-md.dcd --system ala2-vacuum --frame-time 1.0
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from torch import Tensor

from bgwork import figures, store, tables, terminal
from bgwork.analysis import Data, Source, at_temperature, delta_f_of, function_of, judged, known_of, load, log_z_by_mbar, torsion_names
from bgwork.conformation import DeltaF
from bgwork.free_energy import free_energy_difference
from bgwork.profiles import Profile, Surface
from bgwork.records import Estimate, WeightedSamples
from bgwork.retarget import Retargeted
from bgwork.reweighting import evaluate
from bgwork.routes import Routes, profile_routes, surface_routes
from bgwork.samplers.diagnostics import Diagnosis, diagnose, to_json_dict

HIGHEST = 12.0  # kT of a map that colours tell apart
ROUND_OFF = 12  # decimals of bin edges; -pi + 15 pi / 15 is not quite zero
COLOURS = {"weights": figures.WEIGHTED, "pooled": figures.POOLED, "reference": figures.REFERENCE}
PICTURES = (".png", ".pdf", ".svg")
app = typer.Typer(add_completion=False)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one samples file says.

    Attributes:
        differences: F of each basin, relative to the most populated one.
        delta_f: Delta F(phi) of each residue of a peptide.
        profile: along one coordinate by every route, if one was named.
        surface: over two, if two were.
        retargeted: what another temperature did to the weights, if one was asked for.
        log_z_mbar: log Z at that temperature with the help of the reference samples, where log q is known at them.
        notes: why something could not be had.
    """

    diagnosis: Diagnosis
    differences: dict[str, Estimate]
    delta_f: dict[str, DeltaF]
    profile: Routes[Profile] | None
    surface: Routes[Surface] | None
    retargeted: Retargeted | None
    log_z_mbar: Estimate | None
    notes: tuple[str, ...]


def differences(weighted: WeightedSamples, basin_of: Callable[[Tensor], Tensor],
                populations: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """F of every basin that holds weight, relative to the most populated one, which comes out as 0 +- 0."""

    def member(x: Tensor, *, label: str) -> Tensor:
        return basin_of(x) == int(label)

    first = max(populations, key=lambda label: populations[label].value)
    return {label: free_energy_difference(weighted, partial(member, label=first), partial(member, label=label))
            for label in populations if populations[label].value > 0}


def edges_of(data: Data, name: str, bins: int) -> Tensor:
    """Bin edges [bins + 1] along a coordinate: a whole turn for a torsion, else from the least to the largest value that carries weight."""
    if bins < 1:
        raise ValueError(f"cannot make {bins} bins; ask for at least one")
    if name in torsion_names(data.system):
        return torch.linspace(-math.pi, math.pi, bins + 1, dtype=torch.float64)
    values = evaluate(function_of(data.system, name), data.weighted)[data.weighted.log_w > -torch.inf]
    if values.min() == values.max():
        raise ValueError(f"{name} is {values[0]:g} at every sample, so there is no profile; choose another coordinate")
    return torch.linspace(values.min().item(), values.max().item(), bins + 1, dtype=torch.float64)


def surface_over(data: Data, names: tuple[str, str], bins: int) -> Routes[Surface]:
    """Surfaces over all samples that carry weight."""
    first, second = names
    return surface_routes(data, names, (edges_of(data, first, bins), edges_of(data, second, bins)))


def analyse(data: Data, *, basins: str | None, coordinates: Sequence[str], bins: int) -> Result:
    """All that was asked for."""
    if len(coordinates) > 2:
        raise ValueError(f"{len(coordinates)} coordinates ({', '.join(coordinates)}) given; name one for a profile, two for a map")
    basins = basins or data.system.basins
    basin_of = function_of(data.system, basins) if basins else None
    profile = profile_routes(data, *coordinates, edges_of(data, *coordinates, bins)) if len(coordinates) == 1 else None
    surface = surface_over(data, tuple(coordinates), bins) if len(coordinates) == 2 else None
    diagnosis = judged(data, diagnose(data.weighted, reference=known_of(data), basin_of=basin_of))
    between = differences(data.weighted, basin_of, diagnosis.basins) if basin_of else {}
    try:
        log_z_mbar, notes = log_z_by_mbar(data), ()
    except ValueError as error:
        log_z_mbar, notes = None, (f"no log Z by MBAR at this temperature: {error}",)
    return Result(diagnosis=diagnosis, differences=between, delta_f=delta_f_of(data), profile=profile, surface=surface,
                  retargeted=data.retargeted, log_z_mbar=log_z_mbar, notes=notes)


def show_delta_f(path: Path, result: Result) -> None:
    """Delta F(phi) by every route, and what another temperature did to the weights."""
    rows = []
    for name, found in result.delta_f.items():
        rows += [(name, route, tables.estimate(value), tables.number(value.n_eff)) for route, value in found.by_route.items()]
        rows += [(name, route, tables.NONE, reason) for route, reason in found.missing.items()]
    if rows:
        terminal.show(f"{path}: -ln P(0 < phi <= 2 rad) + ln P(elsewhere)", ("torsion", "from", "Delta F / kT", "effective samples"), rows)
    if result.retargeted:
        changed = result.retargeted
        rows = [("before", tables.estimate(changed.before)), ("predicted", tables.estimate(changed.predicted.log_normal)),
                ("found", tables.estimate(changed.measured))]
        terminal.show("effective sample size after the change of temperature", ("", "fraction"), rows)
    if result.log_z_mbar:
        terminal.say(f"log Z at this temperature, by MBAR with reference samples of the system's own: {tables.estimate(result.log_z_mbar)}")
    for note in result.notes:
        terminal.note(note)


def show_profile(path: Path, found: Routes[Profile], coordinate: str) -> None:
    """One row a bin, one column a route."""
    edges = found.by_route["weights"].edges
    ends = [f"{round(edge, ROUND_OFF) + 0.0:.4g}" for edge in edges.tolist()]
    columns = [[tables.with_error(value, stderr) for value, stderr in zip(from_minimum(profile.value).tolist(), profile.stderr.tolist(),
                                                                        strict=True)] for profile in found.by_route.values()]
    rows = [(f"{ends[k]} to {ends[k + 1]}", *values) for k, values in enumerate(zip(*columns, strict=True))]
    terminal.show(f"{path}: profile along {coordinate} in kT, each minimum at zero", (coordinate, *found.by_route), rows)
    show_missing(found)


def show_surface(found: Routes[Surface], coordinates: Sequence[str]) -> None:
    """One line a route."""
    for route, surface in found.by_route.items():
        seen = torch.isfinite(surface.value)
        terminal.say(f"F({', '.join(coordinates)}) from {route}: {int(seen.sum())} of {seen.numel()} bins hold weight, "
                     f"median standard error {surface.stderr[seen].median():.2g} kT")
    terminal.say("values and errors are in --json, pictures of both in --png")
    show_missing(found)


def show_missing(found: Routes[Any]) -> None:
    """Why a route is not there."""
    for route, reason in found.missing.items():
        terminal.note(f"nothing from {route}: {reason}")


def from_minimum(value: Tensor) -> Tensor:
    """A free energy, its minimum at zero."""
    return value - value.min()


def show(path: Path, result: Result, coordinates: Sequence[str]) -> None:
    """Tables and the verdict."""
    if result.diagnosis.basins:
        rows = []
        for label, population in result.diagnosis.basins.items():
            truth = result.diagnosis.basin_reference.get(label)
            rows.append((label, tables.estimate(population), tables.with_error(truth.value, truth.stderr) if truth else tables.NONE,
                         tables.estimate(result.differences.get(label))))
        terminal.show(f"{path}: basins", ("basin", "population", "in the reference", "F / kT"), rows)
    if result.profile:
        show_profile(path, result.profile, coordinates[0])
    if result.surface:
        show_surface(result.surface, coordinates)
    show_delta_f(path, result)
    terminal.show("weights", ("figure", "value", "meaning"), tables.weight_rows(to_json_dict(result.diagnosis)))
    terminal.say(result.diagnosis.verdict)


def draw(found: Routes[Profile], coordinate: str) -> Figure:
    """The profiles with bands of one and two standard errors; a bar where a bin has no neighbour for a band to go to."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for route, profile in found.by_route.items():
        figures.profile_curve(axes, ((profile.edges[1:] + profile.edges[:-1]) / 2).numpy(), profile, colour=COLOURS[route], label=route)
    above = figures.profile_limits(axes, found.by_route.values())
    axes.set(xlabel=coordinate, ylabel="F / kT")
    axes.set_title(f"Free energy with one and two standard errors{above}", fontsize=9)
    axes.legend(fontsize=9)
    return figure


def draw_map(found: Routes[Surface], coordinates: Sequence[str]) -> Figure:
    """A row a route: the surface, its minimum at zero, and its standard error beside it; bins without weight stay white."""
    figure = Figure(figsize=(10, 4 * len(found.by_route)), layout="constrained")
    grid = figure.subplots(len(found.by_route), 2, squeeze=False)
    for row, (route, surface) in zip(grid, found.by_route.items(), strict=True):
        value = torch.where(torch.isfinite(surface.value), from_minimum(surface.value), math.nan)
        panels = (value, HIGHEST, "F / kT"), (surface.stderr, 1.0, "standard error / kT")
        for axes, (shown, most, title) in zip(row, panels, strict=True):
            mesh = axes.pcolormesh(*(edges.numpy() for edges in surface.edges), shown.T.numpy(), cmap="viridis", vmin=0, vmax=most)
            figure.colorbar(mesh, ax=axes, extend="max")
            axes.set(xlabel=coordinates[0], ylabel=coordinates[1], title=f"{route}: {title}")
    return figure


def picture(result: Result, coordinates: Sequence[str]) -> Figure:
    """Of the profile or of the map."""
    return draw_map(result.surface, coordinates) if result.surface else draw(result.profile, coordinates[0])


def plain(values: Tensor) -> list[list[float | None]]:
    """Nested lists; null where there is no weight."""
    return [[value if math.isfinite(value) else None for value in row] for row in values.tolist()]


def profile_json(profile: Profile) -> dict[str, Any]:
    """Plain types; null where there is no weight."""
    value, stderr = plain(torch.stack([profile.value, profile.stderr]))
    return {"edges": profile.edges.tolist(), "value": value, "stderr": stderr, "outside": profile.outside}


def surface_json(surface: Surface) -> dict[str, Any]:
    """Plain types; null where there is no weight."""
    return {"edges": [edges.tolist() for edges in surface.edges], "outside": surface.outside,
            "value": plain(surface.value), "stderr": plain(surface.stderr)}


def as_json(result: Result) -> dict[str, Any]:
    """Plain types."""
    profile = result.profile and {"by_route": {route: profile_json(found) for route, found in result.profile.by_route.items()},
                                  "missing": result.profile.missing}
    surface = result.surface and {"by_route": {route: surface_json(found) for route, found in result.surface.by_route.items()},
                                  "missing": result.surface.missing}
    return {"differences": result.differences, "delta_f": result.delta_f, "profile": profile, "surface": surface,
            "log_z_mbar": result.log_z_mbar,
            "diagnosis": to_json_dict(result.diagnosis)}


def check_picture(path: Path | None, coordinates: list[str] | None) -> None:
    """ValueError for a picture of nothing, or of a kind that cannot be drawn."""
    if path and not coordinates:
        raise ValueError("nothing to draw without a coordinate; name one with --coordinate")
    if path and path.suffix not in PICTURES:
        raise ValueError(f"cannot draw {path}; give a file that ends in {', '.join(PICTURES)}")


@app.command()
def main(
    samples: Annotated[Path, typer.Argument(help="Samples file (.npz), the folder of a run, or a trajectory (.dcd, .xtc, .pdb, .h5).")],
    basins: Annotated[str | None, typer.Option(help="Observable whose integer value labels the basin; default: the system's.")] = None,
    coordinate: Annotated[list[str] | None, typer.Option(
        help="Observable, or torsion such as phi, to draw a profile along; two of them for a map.")] = None,
    bins: Annotated[int, typer.Option(help="Bins of the profile.")] = 30,
    system: Annotated[str | None, typer.Option(help="System, where it is not the one that the file names.")] = None,
    frame_time: Annotated[float | None, typer.Option(help="Between the frames of a trajectory, in ps.")] = None,
    top: Annotated[Path | None, typer.Option(help="PDB file that names a trajectory's atoms.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of a molecule, in K: reweight to it.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the profile into this file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file too.")] = None,
) -> None:
    """Free-energy differences and profiles with error bars, ESS, Pareto k and failed rows beside them."""
    try:
        check_picture(png, coordinate)
        data = load(Source(path=samples, system=system, frame_time=frame_time, top=top))
        data = data if temperature is None else at_temperature(data, temperature)
        coordinates = coordinate or []
        result = analyse(data, basins=basins, coordinates=coordinates, bins=bins)
        if png:
            store.write_atomically(png, lambda temporary: picture(result, coordinates).savefig(temporary, dpi=150))
        if json:
            store.write_json(json, as_json(result))
    except ValueError as error:
        terminal.error(str(error))
        raise typer.Exit(2) from None
    show(samples, result, coordinates)


if __name__ == "__main__":
    app()
