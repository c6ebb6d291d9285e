"""The commands' work: library calls in order, with progress, notes on what is kept, and tables of what came out."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bgwork import held_out, joined, runs, store, tables, terminal
from bgwork import training as loop
from bgwork.baselines import Chains, baselines, to_json
from bgwork.endings import Interrupted
from bgwork.generators import generator_path, shipped_generators
from bgwork.learning import BASELINES_FILE, training_record
from bgwork.pareto import tail_limit, tail_shape
from bgwork.recipes import Request, default_recipe, list_recipes, load_recipe, resumable
from bgwork.records import Density, WeightedSamples, proposal_of
from bgwork.reference_checks import data_of
from bgwork.report import Report, average_all, kept_report, write_report
from bgwork.retarget import retarget_temperature
from bgwork.reweighting import ess, log_z, max_weight
from bgwork.runs import RUNS, Drawing, Run
from bgwork.system import System, load_system
from bgwork.workflow_data import reference


def show_systems(systems: Sequence[System], broken: Mapping[str, ValueError]) -> None:
    """The table of systems, and what is wrong with those that cannot be loaded, by name."""
    rows = []
    for system in systems:
        generators, recipes = (", ".join(names) or tables.NONE for names in (shipped_generators(system), list_recipes(system)))
        rows.append((system.name, str(system.space.n), str(system.space.d), system.energy, generators, recipes, system.description))
    terminal.show("Systems", ("name", "particles", "dimension", "energy", "generators", "recipes", "what it is"), rows)
    for name, error in broken.items():
        terminal.error(f"{name} is left out: {error}")


@dataclass(frozen=True, kw_only=True)
class Training:
    """What `train` is asked for.

    Args:
        system: to train for.
        recipe: name of one of its recipes, or a .toml file.
        overrides: "table.key=value".
        seed: of initial weights and batches.
        data: samples file to train on; by default the system's reference run.
        out: folder; by default runs/<system>/<recipe>-<seed>.
    """

    system: System
    recipe: str
    overrides: tuple[str, ...] = ()
    seed: int = 0
    data: Path | None = None
    out: Path | None = None

    @property
    def name(self) -> str:
        return Path(self.recipe).stem

    @property
    def folder(self) -> Path:
        return self.out or RUNS / self.system.name / f"{self.name}-{self.seed}"

    @property
    def source(self) -> Path:
        return self.data or data_of(self.system.name)

    def configurations(self) -> Tensor:
        """Training data [N, n, d].

        Raises:
            RunError: if there are none, or they are of another system.
        """
        if not self.source.exists():
            enough = self.system.reference.chains * self.system.reference.draws
            made = f"make some with `bgwork reference {self.system.name} -n {enough}`, or " if enough else ""
            raise runs.RunError(f"no training data at {self.source}; {made}give --data")
        proposal = proposal_of(store.load_samples(self.source))
        if proposal.space != self.system.space:
            raise runs.RunError(f"{self.source} holds configurations on {proposal.space}, {self.system.name} needs {self.system.space}")
        return proposal.x


def train(training: Training, *, resume: bool) -> None:
    """Train with a progress bar; the resolved recipe is written first.

    Raises:
        Interrupted: on Ctrl-C, after the checkpoint was saved.
    """
    system, folder = training.system, training.folder
    recipe = load_recipe(system, training.recipe, overrides=training.overrides)
    x = training.configurations() if recipe.needs_data else None
    with terminal.progress(f"Training {system.name}") as tick:
        job = recipe.job(Request(system=system, name=training.name, folder=folder, seed=training.seed, data=x,
                                 on_log=follow(tick, recipe.training.steps)))
        if not resume and not job.checkpoint.exists():
            source = {"data": training.source} if recipe.needs_data else {}
            runs.write_recipe(folder, recipe.model_dump(), {"seed": training.seed, **source, **runs.provenance()})
        try:
            loop.train(resumable(job) if resume else job, resume=resume)
        except KeyboardInterrupt:
            command = runs.provenance()["command"].removesuffix(" --resume")
            raise Interrupted(f"the checkpoint is {job.checkpoint}; go on with `{command} --resume`") from None
    terminal.say(f"Saved {job.generator}; sample it with `bgwork run {folder}`")


def follow(tick: terminal.Tick, steps: int) -> Callable[[dict[str, float]], None]:
    """Shows each row of the training metrics; figures that are not in every row stay as they were last."""
    latest: dict[str, float] = {}

    def show(row: dict[str, float]) -> None:
        latest.update(row)
        tick(int(row["step"]), steps, tables.training_text(latest))

    return show


def with_generator(source: str, recipe: str | None) -> str:
    """What to sample from: the source itself, or a training run made now, if the source is a system without a generator.

    Raises:
        GeneratorError: if a generator is asked for by name and is not there.
    """
    if recipe is not None:
        generator_path(source, recipe=recipe)
        return source
    if Path(source).suffix == ".safetensors" or (Path(source) / "generator.safetensors").exists():
        return source
    system = load_system(source)
    if shipped_generators(system):
        terminal.note(f"generator exists and is kept: {', '.join(shipped_generators(system))} of {system.name}")
        return source
    training = Training(system=system, recipe=default_recipe(system))
    recipe = load_recipe(system, training.recipe)  # before any work: without a recipe nothing can be trained
    if recipe.needs_data and not training.source.exists():
        reference(system, system.reference.chains * system.reference.draws, seed=0)
    if (training.folder / "generator.safetensors").exists():
        terminal.note(f"generator exists and is kept: {training.folder}")
    else:
        terminal.note(f"training {system.name} with {training.name}: {recipe.training.steps} steps")
        train(training, resume=(training.folder / "checkpoint.safetensors").exists())
    return str(training.folder)


def sample(run: Drawing, *, accept: Collection[Density]) -> WeightedSamples:
    """Draw, weigh and store.

    Raises:
        Interrupted: on Ctrl-C while drawing, with what is kept of it.
    """
    store.ensure_writable(run.folder)
    if isinstance(run, Run) and run.remark:
        terminal.note(run.remark)
    with terminal.progress(f"Sampling {run.system.name}") as tick:
        try:
            samples = runs.draw(run, progress=tick, note=terminal.note)
        except KeyboardInterrupt:
            raise Interrupted(runs.kept_of(run)) from None
    weighted = runs.finish(run, samples, accept=accept)
    terminal.say(f"{len(weighted)} weighted samples in {run.folder / runs.SAMPLES_FILE}")
    terminal.say(quality(weighted))
    return weighted


def quality(weighted: WeightedSamples) -> str:
    """What says whether to believe the weights, on one line."""
    edits, copies = weighted.proposal.origin.edits, weighted.proposal.resampled
    k = tail_shape(weighted)
    tail = "" if math.isnan(k) else f"Pareto k {k:.2f} (limit {tail_limit(weighted):.2f})   "
    return (f"ESS{' per ancestor' if copies else ''} {tables.estimate(ess(weighted))}   {tail}"
            f"largest weight {tables.number(max_weight(weighted), 2)}   failed {weighted.n_failed}   edits: {'; '.join(edits) or 'none'}")


def evaluate_held_out(run: Run, weighted: WeightedSamples) -> None:
    """The generator's density at reference samples, for forward ESS and BAR; signed samples have none."""
    if weighted.proposal.density is Density.SIGNED:
        return
    with terminal.progress("Density at reference samples") as tick:
        held_out.evaluate(run, progress=tick, note=terminal.note)


def keep_or_write_report(run: Drawing) -> None:
    """The report, unless the one that lies there was made from the same files."""
    kept = kept_report(run.folder, run.system)
    if kept is None:
        report(run.folder, run.system)
    else:
        terminal.note(f"report exists and is kept: {kept.json}")
        show_report(kept)


def report(folder: Path, system: System | None) -> None:
    """Write the report and print its tables."""
    runs.check_folder(folder)
    weighted = runs.weighted_samples(folder, system=system)
    system = system or load_system(weighted.proposal.origin.system)
    density = held_out.stored_density(folder, system, made_with=weighted.proposal.origin.config_hash)
    provenance = runs.provenance() | {"sampling": runs.read_settings(folder)}
    show_report(write_report(folder, weighted, system, held_out=density, provenance=provenance,
                             training=training_record(folder, provenance["sampling"], made_with=weighted.proposal.origin.config_hash)))


def join_runs(folders: Sequence[Path], *, out: Path | None) -> None:
    """Several runs of one generator as one, and its report.

    Raises:
        JoinError: if they do not belong together, or the result would replace one of them.
    """
    made = joined.join(folders)
    folder = out or RUNS / load_system(Path(made.settings["system"])).name / "joined"
    if folder.resolve() in {each.resolve() for each in folders}:
        raise joined.JoinError(f"{folder} is one of the runs to be joined, and would be lost; give another --out")
    store.ensure_writable(folder)
    joined.save(made, folder)
    terminal.say(f"{len(made.weighted)} weighted samples of {len(folders)} runs in {folder / runs.SAMPLES_FILE}")
    report(folder, None)


def chain_baselines(folder: Path, *, chains: int, seed: int) -> None:
    """Markov chains at the evaluations that the training behind stored samples spent, and the report with them."""
    if not (folder / runs.SAMPLES_FILE).exists():
        raise runs.RunError(f"no samples in {folder}; `bgwork run` makes some")
    settings = runs.read_settings(folder)
    record = training_record(folder, settings, made_with="")
    if record is None or not record.spent:
        raise runs.RunError(f"the training behind {folder} counted no evaluations of the energy (it learned from data, or its generator is "
                            "gone), so chains have no budget to keep to; give a run of a generator learned from the energy alone")
    store.ensure_writable(folder)
    system, asked = load_system(settings["system"]), Chains(budget=record.spent, chains=chains, seed=seed)
    made_for = runs.weighted_samples(folder, system=system).proposal.origin.config_hash
    terminal.note(f"chains of {asked.budget:,} evaluations, twice, and parts of it")
    found = baselines(system, asked)
    for each in found:
        effective = f"{tables.number(each.n_eff, 3)} effective of {each.n} for the average energy"
        terminal.say(f"{each.method}: {each.spent:,} evaluations, {effective}")
    store.write_json(folder / BASELINES_FILE, to_json(found, made_for, asked) | runs.provenance())
    report(folder, system)


def show_report(report: Report) -> None:
    """The tables of a report."""
    content = report.content
    terminal.show(f"{content['system']}: {content['n']} samples", ("figure", "value", "meaning"), tables.weight_rows(content))
    terminal.show("Averages", ("observable", "reweighted", "reference", "z"), tables.average_rows(content))
    terminal.show("How the density was obtained", ("what", "found"), tables.density_rows(content))
    terminal.say(f"Verdict: {content['verdict']}")
    terminal.say(f"Report: {report.html} and {report.json}")


def estimate(path: Path, system: System | None, names: Sequence[str] | None) -> None:
    """One table of averages for one file of samples."""
    weighted = runs.weighted_samples(path, system=system)
    system = system or load_system(weighted.proposal.origin.system)
    density = weighted.proposal.density
    averages = average_all(weighted, system, names)
    if density.normalised and names is None:
        averages["log Z"] = log_z(weighted)
    rows = [(name, tables.estimate(value), tables.number(value.n_eff)) for name, value in averages.items()]
    terminal.show(f"{path}: {len(weighted)} samples of {system.name}, {density.value}", ("observable", "value", "n_eff"), rows)
    terminal.say(quality(weighted))


def retarget(path: Path, system: System | None, *, factor: float) -> None:
    """Averages at another temperature from stored samples, with the effective sample size that was to be expected and that came out."""
    weighted = runs.weighted_samples(path, system=system)
    system = system or load_system(weighted.proposal.origin.system)
    found = retarget_temperature(weighted, factor=factor)
    averages = average_all(found.samples, system)
    if weighted.proposal.density.normalised:
        averages["log Z"] = log_z(found.samples)
    rows = [(name, tables.estimate(value), tables.number(value.n_eff)) for name, value in averages.items()]
    terminal.show(f"{path}: {len(weighted)} samples of {system.name} at {factor:g} times its kT", ("observable", "value", "n_eff"), rows)
    before, expected, measured = (tables.estimate(value) for value in (found.before, found.predicted.log_normal, found.measured))
    terminal.say(f"ESS before {before}   expected {expected}   measured {measured}")
    terminal.say(quality(found.samples))
