"""The commands: what each is called and takes; the work is in `bgwork.workflow`, and how they end in `bgwork.endings`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bgwork import commands_data, workflow, workflow_data
from bgwork.annealing import AnnealSettings, find_annealing
from bgwork.endings import Commands
from bgwork.export import FORMATS
from bgwork.memory import keep_freed_memory
from bgwork.options import (
    Accept,
    Compiled,
    Integrator,
    N,
    OtherData,
    OtherSystem,
    Out,
    Recipe,
    SamplerKeys,
    Seed,
    Source,
    Stem,
    Steps,
    SystemName,
    Weights,
)
from bgwork.recipes import default_recipe
from bgwork.runs import SampleSettings, find_run
from bgwork.system import load_system, load_systems
from bgwork.transported import Rows, find_transport

app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]})


@app.callback()
def about() -> None:
    """From an energy to equilibrium averages and free energies, with exact weights, error bars and a verdict.

    `bgwork run lj13` does all of it with a shipped generator. Results live in runs/SYSTEM/NAME/: samples.npz, report.html, report.json.
    """
    keep_freed_memory()


@app.command()
def systems() -> None:
    """List the systems: particles, dimension, energy, generators and recipes available."""
    workflow.show_systems(*load_systems())


for make in (commands_data.reference, commands_data.relax, commands_data.enrich):
    app.command()(make)
app.command(name="new-system")(commands_data.make_system)


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
    weights: Weights = None, overrides: SamplerKeys = None, compiled: Compiled = False, accept: Accept = None, out: Out = None,
) -> None:
    """Draw samples with their log-density, evaluate their energies, and store both.

    Examples: `bgwork sample lj13 -n 10000`, `bgwork sample runs/dw4/eqot-fm-0 --integrator rk4 --steps 8`,
    `bgwork sample dw4 --recipe eqot-fm --integrator dopri5 --weights continuous --out runs/dw4/dopri5`
    """
    settings = SampleSettings(n=n, seed=seed, integrator=integrator, steps=steps, weights=weights, compiled=compiled,
                              overrides=tuple(overrides or ()))
    workflow.sample(find_run(source, settings, recipe=recipe, folder=out), accept=accept or ())


@app.command()
def anneal(
    source: Source, n: N = 2000, seed: Seed = 0, recipe: Recipe = None,
    start: Annotated[str, typer.Option(help="generator (its samples, resampled and moved), or prior (no generator needed).")] = "generator",
    moves: Annotated[str, typer.Option(help="hmc or mala.")] = "hmc",
    transitions: Annotated[int, typer.Option(help="Of every sample at every temperature.")] = 10,
    islands: Annotated[int, typer.Option(help="Independent populations, whose scatter gives the error bars.")] = 50,
    resample_below: Annotated[float | None, typer.Option(
        help="Resample an island when its effective fraction falls below; 0 never (annealed importance sampling).",
        show_default="1 for a generator, 0.5 for the prior")] = None,
    keep: Annotated[float, typer.Option(help="Effective fraction that each step in temperature leaves.")] = 0.9,
    hottest: Annotated[float, typer.Option(help="Inverse temperature at which a generator's samples enter, to be cooled.")] = 1.0,
    accept: Accept = None, out: Out = None,
) -> None:
    """Sequential Monte Carlo towards the target, with weights that stay proper and log Z from independent islands; and its report.

    Temperatures and step sizes are learned on a pilot run that is thrown away; its energies and gradients are counted.

    Examples: `bgwork anneal lj13 -n 10000`, `bgwork anneal runs/dw4/eqot-fm-0 --moves mala --transitions 20`,
    `bgwork anneal dw4 --start prior`
    """
    settings = AnnealSettings(n=n, seed=seed, start=start, moves=moves, transitions=transitions, islands=islands,
                              resample_below=resample_below, keep=keep, hottest=hottest)
    annealing = find_annealing(source, settings, recipe=recipe, folder=out, accept=accept or ())
    workflow.sample(annealing, accept=accept or ())
    workflow.keep_or_write_report(annealing)


@app.command()
def transport(
    source: Source, recipe: Recipe = None, out: Out = None,
    n: Annotated[int | None, typer.Option("-n", help="Configurations.", show_default="all the map was not learned on")] = None,
    data: OtherData = None,
    even: Annotated[bool, typer.Option("--even", help="An equal share of every basin, as far as there are so many; asks for -n.")] = False,
) -> None:
    """Another energy's equilibrium data, moved by the map of a "targeted" generator and weighed for this energy; and the report.

    One energy a configuration, and no chain: averages and free-energy differences of an energy that is dear (not log Z).

    Example: `bgwork transport ala2-xtb --recipe targeted --data runs/ala2-vacuum/other/samples.npz`
    """
    moved = find_transport(source, rows=Rows(n=n, even=even, data=data), recipe=recipe, folder=out)
    workflow.sample(moved, accept=())
    workflow.keep_or_write_report(moved)


@app.command()
def join(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs that differ in seed and number alone.")],
    out: Annotated[Path | None, typer.Option(help="Folder for all of them.", show_default="runs/SYSTEM/joined")] = None,
) -> None:
    """Samples of several runs of one generator as one run, and its report: draw more with another seed, and join.

    Example: `bgwork sample lj13 -n 10000 --seed 1 --out runs/lj13/more`, then `bgwork join runs/lj13/shipped runs/lj13/more`
    """
    workflow.join_runs(folders, out=out)


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
def export(
    samples: Annotated[Path, typer.Argument(help="samples.npz, or the folder of a run.")],
    kind: Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")] = "npz",
    n: Annotated[int | None, typer.Option("--resample", help="So many frames of equal weight instead of weighted samples.")] = None,
    seed: Seed = 0, out: Stem = None, system: OtherSystem = None,
) -> None:
    """Write samples and weights for other programs: trajectories with a weights file, or arrays.

    Example: `bgwork export runs/ala2-vacuum/shipped --format dcd --resample 1000`
    """
    workflow_data.export(samples, load_system(system) if system else None, kind=kind, n=n, seed=seed, stem=out)


@app.command()
def retarget(
    samples: Annotated[Path, typer.Argument(help="samples.npz, or the folder of a run.")],
    factor: Annotated[float, typer.Option(help="New kT over the system's, for example 1.1667 for 350 K from 300 K.")],
    system: OtherSystem = None,
) -> None:
    """Averages at another temperature from stored samples, with the effective sample size expected and found.

    Example: `bgwork retarget runs/lj13/shipped --factor 1.1`
    """
    workflow.retarget(samples, load_system(system) if system else None, factor=factor)


@app.command(name="baselines")
def chain_baselines(
    run: Annotated[Path, typer.Argument(help="Folder with samples of a generator that was learned from the energy alone.")],
    chains: Annotated[int, typer.Option(help="Independent chains.", min=2)] = 50, seed: Seed = 0,
) -> None:
    """Hamiltonian Monte Carlo and parallel tempering at the evaluations that a run's training spent, in the run's report.

    Example: `bgwork run dw4 --recipe weighted-adjoint`, then `bgwork baselines runs/dw4/weighted-adjoint`
    """
    workflow.chain_baselines(run, chains=chains, seed=seed)


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
    weights: Weights = None, overrides: SamplerKeys = None, compiled: Compiled = False, accept: Accept = None, out: Out = None,
) -> None:
    """All of it: generator, samples, weights, diagnosis, report; what exists already is kept and said so.

    A system without a generator gets reference data and a training run first, which can take hours.

    Examples: `bgwork run lj13`, `bgwork run runs/dw4/eqot-fm-0 -n 10000`
    """
    settings = SampleSettings(n=n, seed=seed, integrator=integrator, steps=steps, weights=weights, compiled=compiled,
                              overrides=tuple(overrides or ()))
    run = find_run(workflow.with_generator(source, recipe), settings, recipe=recipe, folder=out)
    weighted = workflow.sample(run, accept=accept or ())
    workflow.evaluate_held_out(run, weighted)
    workflow.keep_or_write_report(run)
