"""What the closed-form Jacobian buys: shipped flows beside the published kind of field, an EGNN with dopri5 and a brute-force divergence.

    python benchmarks/egnn.py lj13 --seed 91 --rows 200 -n 10000

In one run and on one thread: `--rows` weighted samples of each, timed in CPU seconds (waiting for a busy machine does not count, though a
busy neighbour on the same core slows both); the ESS of the shipped flows is then taken from `-n` samples, timing and ESS with seeds of
their own. Core-minutes of training are read from the generators' provenance, with those of the generators that they started from added.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch
from rows import Row, estimate_row, publish

from bgwork import store
from bgwork.generators import generator_path, load_trained
from bgwork.protocols import Sampler
from bgwork.records import Density, WeightedSamples
from bgwork.reweighting import ess, log_z, max_weight, weigh
from bgwork.system import System, load_system

OURS = ("eqot-fm", "polish-long")
BASELINE = "egnn-fm"


def flow(system: System, recipe: str) -> Sampler:
    """A shipped flow with its own grid and exact weights; no round trip, which is timed elsewhere."""
    made_by, trained = load_trained(generator_path(system.name, recipe=recipe), system=system)
    return replace(made_by.sampler_of(trained, made_by.default_choice()), round_trip=None, n_round_trip=0)


def baseline(system: System, tolerance: float) -> Sampler:
    """The EGNN's continuous flow."""
    made_by, trained = load_trained(generator_path(system.name, recipe=BASELINE), system=system)
    choice = replace(made_by.default_choice(), integrator="dopri5", steps=None, weights="continuous")
    return replace(made_by.sampler_of(trained, choice), rtol=tolerance, atol=tolerance, batch=25)


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


def weight_rows(weighted: WeightedSamples, **common: object) -> list[Row]:
    """What the weights say."""
    goal = None if common["method"].startswith(BASELINE) else "above the EGNN's"
    return [estimate_row("reverse ESS", ess(weighted), goal=goal, **common),
            estimate_row("log Z", log_z(weighted), **common), Row(metric="largest weight", value=max_weight(weighted), **common),
            Row(metric="n_failed", value=weighted.n_failed, **common)]


def measured(system: System, recipe: str, sampler: Sampler, options: argparse.Namespace, *, seed: int) -> tuple[list[Row], float]:
    """All rows of one flow, and its CPU seconds a sample."""
    few, seconds = timed(system, sampler, options.rows, seed)
    method = f"{recipe}, {few.proposal.density.value}"
    common = {"system": system.name, "method": method, "evaluations": round(few.proposal.cost.network / len(few)), "seed": seed}
    rows = [Row(metric="core-minutes of training", value=training_minutes(system, recipe), n=options.rows, **common),
            Row(metric="CPU seconds per weighted sample", value=seconds / options.rows, n=options.rows, **common)]
    many, common["seed"] = (few, seed) if recipe == BASELINE else (timed(system, sampler, options.n, seed + 1)[0], seed + 1)
    return rows + weight_rows(many, n=len(many), **common), seconds / options.rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system")
    parser.add_argument("--rows", type=int, default=200, help="samples that are timed, of each flow")
    parser.add_argument("-n", type=int, default=10_000, help="samples behind the ESS of our flows")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="rtol and atol of the EGNN's solver")
    parser.add_argument("--seed", type=int, default=91, help="not used in training or tuning")
    options = parser.parse_args()
    torch.set_num_threads(1)
    system = load_system(options.system)
    theirs, slow = measured(system, BASELINE, baseline(system, options.tolerance), options, seed=options.seed)
    publish(theirs)
    for place, recipe in enumerate(OURS, start=1):
        rows, fast = measured(system, recipe, flow(system, recipe), options, seed=options.seed + 2 * place)
        ratio = Row(metric="CPU seconds, EGNN / ours", value=slow / fast, goal=">= 20", n=options.rows, system=system.name,
                    method=rows[0].method, evaluations=rows[0].evaluations, seed=options.seed + 2 * place)
        publish([*rows, ratio])


if __name__ == "__main__":
    main()
