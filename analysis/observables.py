"""Equilibrium averages from stored samples: a run's, or MCMC data.

    python analysis/observables.py runs/dw4/shipped runs/dw4/reference --observable u --observable radius_of_gyration
    python analysis/observables.py runs/ala2-vacuum/shipped --observable phi_positive
    python analysis/observables.py my-md.dcd --system ala2-vacuum --frame-time 1.0
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bgwork import store, tables, terminal
from bgwork.analysis import Data, Source, judged, known_of, load
from bgwork.figures_molecular import intactness_text
from bgwork.report import observables_of
from bgwork.samplers.diagnostics import Diagnosis, diagnose, to_json_dict

app = typer.Typer(add_completion=False)


def diagnosis_of(data: Data, names: list[str] | None) -> Diagnosis:
    """Averages and what says whether to believe them."""
    system = data.system
    basin_of = system.functions[system.basins] if system.basins else None
    return judged(data, diagnose(data.weighted, reference=known_of(data), observables=observables_of(system, names), basin_of=basin_of))


def shape_of(data: Data) -> str:
    """What became of a molecule's bonds and handedness; nothing for clusters."""
    system = data.system
    return intactness_text(data.weighted, system.topology, system.structure) if system.topology else ""


def show(path: Path, diagnosis: Diagnosis, names: list[str] | None, shape: str) -> None:
    """Two tables, for a molecule what became of its bonds and its handedness, and the verdict."""
    rows = []
    for name, value in diagnosis.observables.items():
        if not names or name in names:
            truth = diagnosis.reference.get(name)
            compared = (tables.with_error(truth.value, truth.stderr), tables.number(truth.z, 2)) if truth else (tables.NONE, tables.NONE)
            rows.append((name, tables.estimate(value), tables.number(value.n_eff), *compared))
    terminal.show(f"{path}: averages", ("observable", "value", "independent samples", "reference", "z"), rows)
    terminal.show("weights", ("figure", "value", "meaning"), tables.weight_rows(to_json_dict(diagnosis)))
    if shape:
        terminal.say(shape)
    terminal.say(diagnosis.verdict)


@app.command()
def main(
    samples: Annotated[list[Path], typer.Argument(help="Samples files (.npz), folders of runs, or trajectories.")],
    observable: Annotated[list[str] | None, typer.Option(help="Name, several times for several; default: those of the system.")] = None,
    system: Annotated[str | None, typer.Option(help="System, where it is not the one that the file names.")] = None,
    frame_time: Annotated[float | None, typer.Option(help="Between the frames of a trajectory, in ps.")] = None,
    top: Annotated[Path | None, typer.Option(help="PDB file that names a trajectory's atoms.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file too.")] = None,
) -> None:
    """Averages with error bars, ESS, Pareto k and failed rows beside them."""
    try:
        loaded = {path: load(Source(path=path, system=system, frame_time=frame_time, top=top)) for path in samples}
        diagnoses = {path: diagnosis_of(data, observable) for path, data in loaded.items()}
        if json:
            store.write_json(json, {str(path): to_json_dict(diagnosis) for path, diagnosis in diagnoses.items()})
    except ValueError as error:
        terminal.error(str(error))
        raise typer.Exit(2) from None
    for path, diagnosis in diagnoses.items():
        show(path, diagnosis, observable, shape_of(loaded[path]))


if __name__ == "__main__":
    app()
