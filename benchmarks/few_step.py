"""Few evaluations, exact weights: the shipped generators of a system, at every number of evaluations that issue 3 asks for.

    python benchmarks/few_step.py lj13 dw4 gmm40 -n 10000 --seed 14
    python benchmarks/few_step.py lj13 -n 10000 --seed 14 --steps 6 12 --only eqot-fm polish

Each line of `table` is drawn with a seed of its own (--seed plus its place there), weighed with the system's target, raw, and compared:
reverse ESS (bootstrap s.d.), forward ESS on held-out reference samples (of one path back from each, with path weights, whose widths 24 of
the 500 rows have helped to fit), log Z, largest weight, the certificate, and seconds per 1,000 effective samples. An untuned flow's share
of its converged ESS is against itself with the largest number of --steps. Generators that a system does not ship are named and left out.
"""

from __future__ import annotations

import argparse
import itertools
import math
from dataclasses import dataclass, replace

import torch
from ess import held_out
from rows import Row, estimate_row, publish

from bgwork.free_energy import forward_ess
from bgwork.generators import generator_path, load_trained, shipped_generators
from bgwork.held_out import log_q_at
from bgwork.memory import keep_freed_memory
from bgwork.pareto import pareto_limit, tail_shape
from bgwork.records import Density, Estimate, WeightedSamples
from bgwork.reweighting import ess, log_z, max_weight, weigh
from bgwork.samplers.executed import ExecutedMap
from bgwork.samplers.sde import PathSampler
from bgwork.system import System, load_system

FLOWS = ("eqot-fm", "ot-fm")  # untuned, for any number of midpoint steps
WEIGHTS = ("density", "path", "directional")
JUMPS = ("distill", "distill-alone", "distill-diffusion")  # flow maps made random


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table: a generator, how it is weighed, its steps (None: its own)."""

    recipe: str
    weights: str = "density"
    steps: int | None = None

    @property
    def label(self) -> str:
        return f"{self.recipe}, {self.weights} weights"


def table(steps: list[int]) -> tuple[Line, ...]:
    """All lines, with these numbers of midpoint steps for untuned flows."""
    return (
        *(Line(recipe=recipe, steps=k) for recipe in FLOWS for k in steps),
        *(Line(recipe=recipe) for recipe in ("polish", "polish-2")),
        *(Line(recipe="distill", steps=k) for k in (1, 2, 4, 8)), Line(recipe="distill-polish"),
        *(Line(recipe=recipe, weights="path", steps=k) for recipe in JUMPS for k in (6, 12, 25)),
        *(Line(recipe="diffusion", weights="path", steps=k) for k in (25, 50, 100)),
        Line(recipe="polish-long"), Line(recipe="distill-polish-2"),
        # new lines last: a line's place decides its seed
        *(Line(recipe=recipe, weights="directional", steps=25) for recipe in ("distill-diffusion", "diffusion")))


GOALS = {
    ("lj13", "polish", None): ">= .85 at <= 8 evaluations", ("lj13", "polish-long", None): ">= .85 at <= 8 evaluations",
    ("lj13", "distill", 4): ">= .8 of the teacher's", ("lj13", "distill", 2): ">= .5 of the teacher's", ("dw4", "distill", 4): ">= .80",
    ("dw4", "distill-polish", None): ">= .80", ("lj13", "distill-polish", None): ">= .8 of the teacher's",
    ("lj13", "distill-polish-2", None): ">= .5 of the teacher's",
    **{(system, recipe, 25): ">= diffusion at 100, path weights" for system in ("dw4", "lj13") for recipe in JUMPS}}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a line gave."""

    line: Line
    weighted: WeightedSamples
    seed: int
    forward: Estimate | None
    note: str

    @property
    def evaluations(self) -> float:
        return self.weighted.proposal.cost.network / len(self.weighted)

    @property
    def exact(self) -> bool:
        return self.weighted.proposal.density in (Density.EXACT, Density.SIGNED, Density.PATH)


def drawn(system: System, line: Line, options: argparse.Namespace) -> Measured:
    """Sample and weigh one line; a density that its certificate does not vouch for is admitted by name, and its row says so."""
    made_by, trained = load_trained(generator_path(system.name, recipe=line.recipe), system=system)
    choice = replace(made_by.default_choice(), weights=line.weights)
    sampler = made_by.sampler_of(trained, replace(choice, steps=line.steps or choice.steps))
    seed, reference = options.seed + table(options.steps).index(line), held_out(system, options.held_out)
    if isinstance(sampler, ExecutedMap):
        sampler = replace(sampler, batch=options.batch, round_trip=reference.x[: options.round_trip])
    weighted = weigh(sampler.sample(options.n, generator=torch.Generator().manual_seed(seed)), system.target, accept=(Density.UNCERTIFIED,))
    forward, note = None, ""
    if isinstance(sampler, PathSampler) or weighted.proposal.certificate.clean:
        try:
            forward = forward_ess(weighted, log_q_at(sampler, reference.x), reference.u, group=reference.proposal.group)
        except ValueError as error:
            note = f"no forward ESS: {error}"
    return Measured(line=line, weighted=weighted, seed=seed, forward=forward, note=note)


def timings(measured: Measured, **common: object) -> list[Row]:
    """Seconds; worth something on an idle machine only."""
    seconds = 1000 * measured.weighted.proposal.cost.seconds / len(measured.weighted)
    return [Row(metric="seconds per 1,000 samples", value=seconds, **common),
            Row(metric="seconds per 1,000 effective samples", value=seconds / ess(measured.weighted).value, **common)]


def rows_of(system: System, measured: Measured, options: argparse.Namespace) -> list[Row]:
    """Every figure of a line."""
    weighted, line = measured.weighted, measured.line
    n, proposal = len(weighted), weighted.proposal
    common = {"system": system.name, "method": f"{line.label}, {proposal.density.value}", "evaluations": measured.evaluations, "n": n,
              "seed": measured.seed}
    rows = [
        estimate_row("reverse ESS", ess(weighted), goal=GOALS.get((system.name, line.recipe, line.steps)), **common),
        estimate_row("log Z", log_z(weighted), **common), Row(metric="largest weight", value=max_weight(weighted), **common),
        Row(metric="Pareto k", value=tail_shape(weighted), **common),
        Row(metric="n_failed", value=weighted.n_failed, **common), *([] if options.busy else timings(measured, **common))]
    if measured.forward is not None:
        rows.insert(1, estimate_row("forward ESS", measured.forward, **common))
    if proposal.certificate is not None:
        rows += [Row(metric="negative determinants", value=proposal.certificate.n_negative, goal="0", **common),
                 Row(metric="round trips failed", value=proposal.certificate.n_round_trip_failed, goal="0", **common)]
    return rows


def largest_z(lines: list[Measured]) -> float:
    """Largest |z| between the values of log Z of any two."""
    return max(abs(a.z(b)) for a, b in itertools.combinations([log_z(m.weighted) for m in lines], 2))


def compared(system: System, found: list[Measured], most: int) -> list[Row]:
    """Each flow against itself with the most steps, and the largest |z| between any two values of log Z: of all, and of those whose
    tail is light enough to be trusted."""
    rows = []
    converged = {m.line.recipe: ess(m.weighted) for m in found if m.line.recipe in FLOWS and m.line.steps == most}
    for m in (m for m in found if m.line.recipe in converged and m.line.steps != most):
        whole, part = converged[m.line.recipe], ess(m.weighted)
        error = part.value / whole.value * math.hypot(part.stderr / part.value, whole.stderr / whole.value)
        rows.append(Row(metric=f"ESS / ESS at {2 * most} evaluations", value=part.value / whole.value, stderr=error,
                        system=system.name, method=m.line.label, evaluations=m.evaluations, n=len(m.weighted), seed=m.seed))
    exact = [m for m in found if m.exact]
    sound = [m for m in exact if tail_shape(m.weighted) < pareto_limit(len(m.weighted))]
    print(f"{len(sound)} of {len(exact)} exact lines have a Pareto k that is below its limit")
    endless = sum(math.isinf(log_z(m.weighted).stderr) for m in exact)
    rows.append(Row(metric="exact lines whose log Z has no finite error bar", value=endless, system=system.name,
                    method=f"{len(exact)} exact lines", n=min((len(m.weighted) for m in exact), default=0)))
    for lines, name in ((exact, "all exact lines"), (sound, "exact lines, Pareto k below its limit")):
        if len(lines) > 1:
            rows.append(Row(metric="largest abs(z) between values of log Z", value=largest_z(lines), goal="< 4", system=system.name,
                            method=name, n=min(len(m.weighted) for m in lines)))
    return rows


def measure(name: str, options: argparse.Namespace) -> None:
    """All lines that the system has generators for."""
    system, found = load_system(name), []
    shipped = shipped_generators(system)
    wanted = [line for line in table(options.steps) if line.weights in options.weights and line.recipe in (options.only or [line.recipe])]
    missing = sorted({line.recipe for line in wanted} - set(shipped))
    if missing:
        print(f"{name} ships no {', '.join(missing)}")
    for line in (line for line in wanted if line.recipe in shipped):
        found.append(drawn(system, line, options))
        publish(rows_of(system, found[-1], options))
        print(found[-1].weighted.proposal.note, found[-1].note)
    publish(compared(system, found, max(options.steps)))


def main() -> None:
    keep_freed_memory()  # as commands do
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="+")
    parser.add_argument("-n", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=14, help="of the first line; not used in training or tuning")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 6, 8, 32], help="midpoint steps of untuned flows")
    parser.add_argument("--only", nargs="*", default=[], help="these generators")
    parser.add_argument("--weights", nargs="*", choices=WEIGHTS, default=WEIGHTS, help="lines with these weights")
    parser.add_argument("--held-out", type=int, default=500, help="reference samples for forward ESS")
    parser.add_argument("--round-trip", type=int, default=100, help="of them, for the certificate")
    parser.add_argument("--busy", action="store_true", help="the machine is not idle: leave the timings out")
    parser.add_argument("--batch", type=int, default=None, help="configurations in memory at once, by default as many as a cache holds")
    options = parser.parse_args()
    for name in options.systems:
        measure(name, options)


if __name__ == "__main__":
    main()
