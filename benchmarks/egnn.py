"""What the closed-form Jacobian buys: shipped flows beside the published kind of field, an EGNN with dopri5 and a brute-force divergence.

    python benchmarks/egnn.py lj13 --seed 91 --rows 200 -n 10000

In one run and on one thread: `--rows` weighted samples of each, timed in CPU seconds (waiting for a busy machine does not count, though a
busy neighbour slows both); the ESS of the shipped flows is then taken from `-n` samples with a certificate, timing and ESS with seeds of
their own. Core-minutes of training are read from the generators' provenance (time that its steps took on whatever machine it was), with
those of the generators that they started from added. Freed memory is kept, and the EGNN's batch is one of its fastest.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch
from rows import Row, estimate_row, publish

from bgwork import store
from bgwork.generators import generator_path, load_trained
from bgwork.memory import keep_freed_memory
from bgwork.pareto import tail_shape
from bgwork.protocols import Sampler
from bgwork.records import Density, WeightedSamples
from bgwork.reweighting import ess, log_z, max_weight, weigh
from bgwork.samplers.executed import ExecutedMap
from bgwork.system import System, load_system

BASELINE = "egnn-fm"
BASELINE_BATCH = 8


def flow(system: System, recipe: str) -> ExecutedMap:
    """A shipped flow with its own grid, exact weights and certificate."""
    made_by, trained = load_trained(generator_path(system.name, recipe=recipe), system=system)
    return made_by.sampler_of(trained, made_by.default_choice())


def baseline(system: System, tolerance: float) -> Sampler:
    """The EGNN's continuous flow."""
    made_by, trained = load_trained(generator_path(system.name, recipe=BASELINE), system=system)
    choice = replace(made_by.default_choice(), integrator="dopri5", steps=None, weights="continuous")
    return replace(made_by.sampler_of(trained, choice), rtol=tolerance, atol=tolerance, batch=BASELINE_BATCH)


def timed(system: System, sampler: Sampler, n: int, seed: int) -> tuple[WeightedSamples, float]:
    """n weighted samples and their CPU seconds, energies included."""
    started = time.process_time()
    proposal = sampler.sample(n, generator=torch.Generator().manual_seed(seed))
    weighted = weigh(proposal, system.target, accept=(Density.CONTINUOUS, Density.UNCERTIFIED))
    return weighted, time.process_time() - started


def training_minutes(system: System, recipe: str | None) -> float:
    """Core-minutes behind a shipped generator, those of the one it started from included."""
    if not recipe:
        return 0.0
    made = store.read_json(generator_path(system.name, recipe=recipe).with_suffix(".json"))
    return made["core_minutes"] + training_minutes(system, made["config"]["training"].get("initial"))


def timing_rows(training: float, seconds: float, **common: object) -> list[Row]:
    """What training (core-minutes) and one weighted sample cost."""
    return [Row(metric="core-minutes of training", value=training, **common),
            Row(metric="CPU seconds per weighted sample", value=seconds, **common)]


def weight_rows(weighted: WeightedSamples, **common: object) -> list[Row]:
    """What the weights say."""
    goal = None if common["method"].startswith(BASELINE) else "above the EGNN's"
    return [estimate_row("reverse ESS", ess(weighted), goal=goal, **common),
            estimate_row("log Z", log_z(weighted), **common), Row(metric="Pareto k", value=tail_shape(weighted), **common),
            Row(metric="largest weight", value=max_weight(weighted), **common), Row(metric="n_failed", value=weighted.n_failed, **common)]


def theirs(system: System, options: argparse.Namespace) -> tuple[list[Row], float]:
    """All rows of the EGNN, and its CPU seconds a sample."""
    weighted, seconds = timed(system, baseline(system, options.tolerance), options.rows, options.seed)
    evaluations = round(weighted.proposal.cost.network / options.rows)
    common = {"system": system.name, "method": f"{BASELINE}, dopri5 at {options.tolerance:g}", "n": options.rows, "seed": options.seed}
    rows = [*timing_rows(training_minutes(system, BASELINE), seconds / options.rows, **common), *weight_rows(weighted, **common),
            Row(metric="network evaluations per sample", value=evaluations, **common)]
    return rows, seconds / options.rows


def ours(system: System, recipe: str, slow: float, options: argparse.Namespace, *, seed: int) -> list[Row]:
    """All rows of one of our flows beside an EGNN that takes `slow` CPU seconds a sample."""
    sampler = flow(system, recipe)
    few, seconds = timed(system, replace(sampler, round_trip=None, n_round_trip=0), options.rows, seed)
    evaluations, seconds = few.proposal.cost.network / options.rows, seconds / options.rows
    common = {"system": system.name, "method": f"{recipe}, timed", "evaluations": evaluations, "n": options.rows, "seed": seed}
    rows = [*timing_rows(training_minutes(system, recipe), seconds, **common),
            Row(metric="CPU seconds, EGNN / ours", value=slow / seconds, goal=">= 20", **common)]
    many = timed(system, sampler, options.n, seed + 1)[0]
    common |= {"method": f"{recipe}, {many.proposal.density.value}", "n": options.n, "seed": seed + 1}
    folds = Row(metric="negative determinants", value=many.proposal.certificate.n_negative, goal="0", **common)
    return [*rows, *weight_rows(many, **common), folds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system")
    parser.add_argument("--ours", nargs="+", default=["polish-long", "eqot-fm"], help="shipped flows to set beside it")
    parser.add_argument("--rows", type=int, default=200, help="samples that are timed, of each flow")
    parser.add_argument("-n", type=int, default=10_000, help="samples behind the ESS of our flows")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="rtol and atol of the EGNN's solver")
    parser.add_argument("--seed", type=int, default=91, help="not used in training or tuning")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    system = load_system(options.system)
    rows, slow = theirs(system, options)
    publish(rows)
    for place, recipe in enumerate(options.ours, start=1):
        publish(ours(system, recipe, slow, options, seed=options.seed + 2 * place))


if __name__ == "__main__":
    main()
