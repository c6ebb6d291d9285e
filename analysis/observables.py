"""Equilibrium averages from stored samples: a run's, or MCMC data.

    python analysis/observables.py runs/dw4/shipped runs/dw4/reference --observable u --observable radius_of_gyration
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bgwork import runs, store, tables, terminal
from bgwork.report import observables_of
from bgwork.samplers.diagnostics import Diagnosis, ReferenceSet, diagnose, to_json_dict
from bgwork.system import load_system

app = typer.Typer(add_completion=False)


def diagnosis_of(path: Path, system_name: str | None, names: list[str] | None) -> Diagnosis:
    """Averages of one file and what says whether to believe them."""
    system = load_system(system_name) if system_name else None
    weighted = runs.weighted_samples(path, system=system)
    system = system or load_system(weighted.proposal.origin.system)
    return diagnose(weighted, reference=ReferenceSet(estimates=system.references), observables=observables_of(system, names))


def show(path: Path, diagnosis: Diagnosis, names: list[str] | None) -> None:
    """Two tables and the verdict."""
    rows = []
    for name, value in diagnosis.observables.items():
        if not names or name in names:
            truth = diagnosis.reference.get(name)
            compared = (tables.with_error(truth.value, truth.stderr), tables.number(truth.z, 2)) if truth else (tables.NONE, tables.NONE)
            rows.append((name, tables.estimate(value), tables.number(value.n_eff), *compared))
    terminal.show(f"{path}: averages", ("observable", "value", "independent samples", "reference", "z"), rows)
    terminal.show("weights", ("figure", "value", "meaning"), tables.weight_rows(to_json_dict(diagnosis)))
    terminal.say(diagnosis.verdict)


@app.command()
def main(
    samples: Annotated[list[Path], typer.Argument(help="Samples files (.npz), or folders of runs.")],
    observable: Annotated[list[str] | None, typer.Option(help="Name, several times for several; default: those of the system.")] = None,
    system: Annotated[str | None, typer.Option(help="System, where it is not the one that the file names.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file too.")] = None,
) -> None:
    """Averages with error bars, ESS, Pareto k and failed rows beside them."""
    try:
        diagnoses = {str(path): diagnosis_of(path, system, observable) for path in samples}
        if json:
            store.write_json(json, {path: to_json_dict(diagnosis) for path, diagnosis in diagnoses.items()})
    except ValueError as error:
        terminal.error(str(error))
        raise typer.Exit(2) from None
    for path, diagnosis in diagnoses.items():
        show(Path(path), diagnosis, observable)


if __name__ == "__main__":
    app()
