"""Command line: what each command is called and takes; the work is in `bgwork.workflow`.

Wrong input (any ValueError) ends with a message on stderr, naming the remedy, and exit code 2, Ctrl-C with 130.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import click
import typer
from typer.core import TyperGroup

from bgwork import terminal, workflow
from bgwork.recipes import default_recipe
from bgwork.records import Density
from bgwork.runs import SampleSettings, find_run
from bgwork.system import list_systems, load_system


class Commands(TyperGroup):
    """Turns what a person can mend into a message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ValueError as error:
            terminal.error(str(error))
            raise typer.Exit(2) from None
        except workflow.Interrupted as interruption:
            terminal.error(f"interrupted; {interruption}")
            raise typer.Exit(130) from None
        except KeyboardInterrupt:
            terminal.error("interrupted; files are written whole or not at all, so the same command can simply be given again")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]})

OWN = "the generator's own"
SystemName = Annotated[str, typer.Argument(metavar="SYSTEM", help="Name (see `bgwork systems`) or path of a system's folder.")]
Source = Annotated[str, typer.Argument(metavar="SYSTEM|RUN", help="A system (its shipped generator), a trained run, or a generator file.")]
N = Annotated[int, typer.Option("-n", help="Number of samples.")]
Seed = Annotated[int, typer.Option(help="Same seed, same numbers.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the results.", show_default="runs/SYSTEM/NAME")]
Integrator = Annotated[str | None, typer.Option(help="euler, midpoint, heun, rk4, or dopri5 (adaptive).", show_default=OWN)]
Steps = Annotated[int | None, typer.Option(help="Steps of the fixed grid; midpoint makes two evaluations in each.", show_default=OWN)]
Weights = Annotated[str | None, typer.Option(
    help="density (exact, of the very map that was run), continuous (divergence integral) or path (of the kernels that were run).",
    show_default=OWN)]
Recipe = Annotated[str | None, typer.Option(
    help="Which of a system's shipped generators, by recipe (see `bgwork systems`).", show_default="the one the system names")]
Accept = Annotated[list[Density] | None, typer.Option(help="Weigh samples of this density although it is improper; recorded as an edit.")]
OtherSystem = Annotated[str | None, typer.Option("--system", help="System, where it is not the one that the samples name.")]


@app.callback()
def about() -> None:
    """From an energy to equilibrium averages and free energies, with exact weights, error bars and a verdict.

    `bgwork run lj13` does all of it with a shipped generator. Results live in runs/SYSTEM/NAME/: samples.npz, report.html, report.json.
    """


@app.command()
def systems() -> None:
    """List the systems: particles, dimension, energy, generators and recipes available."""
    workflow.show_systems([load_system(name) for name in list_systems()])


@app.command()
def reference(name: SystemName, n: N = 10_000, seed: Seed = 0, out: Out = None) -> None:
    """Make equilibrium reference data with Markov chains, and refuse to save them unless they converged.

    Checked: split R-hat < 1.01, the virial against its exact value, agreement between chains from different starts.

    Example: `bgwork reference lj13 -n 100000 --seed 1`
    """
    workflow.reference(load_system(name), n, seed=seed, folder=out)


@app.command()
def train(
    name: SystemName,
    recipe: Annotated[
        str | None, typer.Option(help="One of the system's recipes, or a .toml file.", show_default="the one the system names")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint, bit for bit.")] = False,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe's key; repeatable.")] = None,
    seed: Seed = 0,
    data: Annotated[Path | None, typer.Option(help="Training configurations.", show_default="runs/SYSTEM/reference/samples.npz")] = None,
    out: Out = None,
) -> None:
    """Train a generator; Ctrl-C or a crash loses at most one checkpoint interval.

    Examples: `bgwork train dw4`, `bgwork train dw4 --set training.steps=2000 --out runs/dw4/short`, `bgwork train dw4 --resume`
    """
    system = load_system(name)
    training = workflow.Training(
        system=system, recipe=recipe or default_recipe(system), overrides=tuple(overrides or ()), seed=seed, data=data, out=out)
    workflow.train(training, resume=resume)


@app.command()
def sample(
    source: Source, n: N = 2000, seed: Seed = 0, recipe: Recipe = None, integrator: Integrator = None, steps: Steps = None,
    weights: Weights = None, accept: Accept = None, out: Out = None,
) -> None:
    """Draw samples with their log-density, evaluate their energies, and store both.

    Examples: `bgwork sample lj13 -n 10000`, `bgwork sample runs/dw4/eqot-fm-0 --integrator rk4 --steps 8`,
    `bgwork sample dw4 --integrator dopri5 --weights continuous --out runs/dw4/dopri5`
    """
    settings = SampleSettings(n=n, seed=seed, integrator=integrator, steps=steps, weights=weights)
    workflow.sample(find_run(source, settings, recipe=recipe, folder=out), accept=accept or ())


@app.command()
def estimate(
    samples: Annotated[list[Path], typer.Argument(help="samples.npz files, or folders of runs.")],
    observable: Annotated[list[str] | None, typer.Option(help="Name; repeatable.", show_default="those of the system")] = None,
    system: OtherSystem = None,
) -> None:
    """Averages with error bars from stored samples only, beside what says whether to believe them.

    Examples: `bgwork estimate runs/lj13/shipped`, `bgwork estimate runs/dw4/*/samples.npz --observable u --observable n_long_4_is_2`
    """
    for path in samples:
        workflow.estimate(path, load_system(system) if system else None, observable)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder with samples.npz, for example runs/lj13/shipped.")], system: OtherSystem = None,
) -> None:
    """Write report.html and report.json from stored samples, and print the tables.

    Example: `bgwork report runs/lj13/shipped`
    """
    workflow.report(run, load_system(system) if system else None)


@app.command(name="run")
def run_everything(
    source: Source, n: N = 2000, seed: Seed = 0, recipe: Recipe = None, integrator: Integrator = None, steps: Steps = None,
    weights: Weights = None, accept: Accept = None, out: Out = None,
) -> None:
    """All of it: generator, samples, weights, diagnosis, report; what exists already is kept and said so.

    A system without a generator gets reference data and a training run first, which can take hours.

    Examples: `bgwork run lj13`, `bgwork run runs/dw4/eqot-fm-0 -n 10000`
    """
    settings = SampleSettings(n=n, seed=seed, integrator=integrator, steps=steps, weights=weights)
    run = find_run(workflow.with_generator(source), settings, recipe=recipe, folder=out)
    workflow.sample(run, accept=accept or ())
    workflow.evaluate_held_out(run)
    workflow.keep_or_write_report(run)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
