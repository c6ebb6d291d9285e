"""Effective sample sizes against core-minutes of polishing, for each objective at one fixed coarse grid.

    python benchmarks/polish.py dw4 --steps 4 --minutes 0 1 2 --data runs/dw4/reference/samples.npz
    python benchmarks/polish.py lj13 --steps 4 --minutes 0 4 8 16 --objectives path likelihood mixed --data runs/lj13/reference/samples.npz

Every curve starts from the shipped generator, whose own point (0 minutes) is measured once, goes on at one constant learning rate, and is
read off the averaged weights. Core-minutes are CPU time of the polish alone, uncompiled.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from ess import held_out
from rows import Row, estimate_row, publish
from torch import nn

from bgwork import store
from bgwork.free_energy import forward_ess
from bgwork.generators import load_generator
from bgwork.objectives.polish import CoarseFlow, PolishLoss, PolishSettings, PolishSource
from bgwork.records import WeightedSamples
from bgwork.reweighting import ess, log_z, weigh
from bgwork.samplers.flow import Flow
from bgwork.samplers.integrators import Grid, LearnedGrid
from bgwork.system import load_system
from bgwork.training import TrainingConfig, TrainingJob, advance, averaged, start

OBJECTIVES = {
    "path": {"share": 1.0}, "likelihood": {"share": 1.0, "data": "likelihood"}, "reverse": {"share": 0.0, "own": "reverse"},
    "forward": {"share": 0.0, "own": "forward"}, "chi-square": {"share": 0.0, "own": "chi-square"},
    "mixed": {"share": 0.5, "own": "chi-square"}}
GRIDS = {
    "uniform": lambda steps: Grid(steps=steps), "learned": lambda steps: LearnedGrid(steps=steps),
    "symmetric": lambda steps: LearnedGrid(steps=steps, symmetric=True)}


def job_of(flow: Flow, objective: str, options: argparse.Namespace) -> TrainingJob:
    """The polish of one curve; it never ends by itself, so that its learning rate stays constant."""
    settings = PolishSettings(batch=options.batch, **OBJECTIVES[objective])
    model = CoarseFlow(copy.deepcopy(flow.field), GRIDS[options.grid](options.steps))
    system = load_system(options.system)
    source = PolishSource(prior=flow.prior, target=system.differentiable_target, settings=settings, seed=options.seed,
                          x=store.load_samples(options.data).x)
    config = TrainingConfig(steps=10**9, learning_rate=options.learning_rate, warmup=30, weight_decay=0.0, ema=0.98)
    return TrainingJob(model=model, loss=PolishLoss(settings), data=source, config=config, folder=Path(tempfile.gettempdir()), meta={})


def curve(job: TrainingJob, minutes: list[float]) -> Iterator[tuple[float, nn.Module]]:
    """(core-minutes asked for, averaged model) as the polish goes on."""
    state, spent = start(job), 0.0
    for stop in sorted(minutes):
        while spent < 60 * stop:
            started = time.process_time()
            advance(job, state, job.loss, job.source.batch(state))
            spent += time.process_time() - started
        yield stop, averaged(state)


def measure(model: CoarseFlow, flow: Flow, reference: WeightedSamples, options: argparse.Namespace, **common: object) -> list[Row]:
    """ESS, forward ESS, log Z and folds on a seed that the polish has not seen."""
    field, grid = model.executed()
    sampler = replace(flow, field=field, grid=grid, round_trip=reference.x[: options.round_trip])
    proposal = sampler.sample(options.n, generator=torch.Generator().manual_seed(options.test_seed))
    weighted = weigh(proposal, load_system(options.system).target, accept=(proposal.density,))
    common |= {"evaluations": grid.evaluations, "n": options.n, "seed": options.test_seed}
    certificate, rows = proposal.certificate, [estimate_row("reverse ESS", ess(weighted), **common)]
    try:
        found = forward_ess(weighted, sampler.log_prob(reference.x), reference.u, group=reference.proposal.group)
        rows.append(estimate_row("forward ESS", found, **common))
    except ValueError as error:
        print(f"{common['method']}: no forward ESS: {error}")
    rows += [estimate_row("log Z", log_z(weighted), **common)]
    rows += [Row(metric="negative determinants", value=certificate.n_negative, goal="0", **common)]
    rows += [Row(metric="smallest singular value", value=certificate.smallest_singular, **common)]
    return [*rows, Row(metric="round trips failed", value=certificate.n_round_trip_failed, goal="0", **common)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system")
    parser.add_argument("--data", required=True, help="equilibrium samples to polish on, from other chains than the held-out ones")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--generator", default="eqot-fm", help="where every curve starts")
    parser.add_argument("--grid", choices=GRIDS, default="uniform")
    parser.add_argument("--steps", type=int, default=4, help="midpoint steps")
    parser.add_argument("--minutes", type=float, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-seed", type=int, default=31, help="not used in training or tuning")
    parser.add_argument("-n", type=int, default=2000)
    parser.add_argument("--held-out", type=int, default=1000)
    parser.add_argument("--round-trip", type=int, default=64)
    options = parser.parse_args()
    flow = load_generator(options.system, recipe=options.generator)
    reference = held_out(load_system(options.system), options.held_out)
    if 0 in options.minutes:
        untouched = CoarseFlow(flow.field, GRIDS[options.grid](options.steps))
        publish(measure(untouched, flow, reference, options, system=options.system, method=f"not polished, {options.grid} steps"))
    for objective in options.objectives:
        job = job_of(flow, objective, options)
        for minutes, model in curve(job, [stop for stop in options.minutes if stop > 0]):
            method = f"polish {objective}, {options.grid} steps, {minutes:g} core-minutes"
            rows = measure(model, flow, reference, options, system=options.system, method=method)
            gradients = job.source.figures()["gradients"]
            publish([*rows, Row(metric="energy gradients of the polish", value=gradients, system=options.system, method=method, n=options.n,
                                evaluations=model.grid.steps * model.grid.tableau.stages, seed=options.seed)])


if __name__ == "__main__":
    main()
