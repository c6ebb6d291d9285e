"""log Z against the number of midpoint steps: the executed map's density has no step-size bias, the divergence integral has.

    python benchmarks/step_size.py dw4 -n 10000
    python benchmarks/step_size.py lj13 -n 2000 --steps 6 8 12 16 32

Where the map folds at some samples, their weights carry signs (`Density.SIGNED`), and another row leaves them out.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from rows import Row, estimate_row, publish

from bgwork.generators import load_generator
from bgwork.records import Density
from bgwork.reweighting import average, ess, log_z, weigh
from bgwork.samplers.flow import Flow
from bgwork.samplers.integrators import Grid
from bgwork.samplers.ode import ContinuousFlow
from bgwork.system import load_system


def measure(name: str, sampler: Flow | ContinuousFlow, method: str, options: argparse.Namespace) -> list[Row]:
    """log Z, ESS and <u> of one sampler."""
    system = load_system(name)
    proposal = sampler.sample(options.n, generator=torch.Generator().manual_seed(options.seed))
    weighted = weigh(proposal, system.target, accept=(proposal.density,))
    common = {"system": name, "method": method, "evaluations": sampler.grid.evaluations, "n": options.n, "seed": options.seed}
    rows = [estimate_row("log Z", log_z(weighted), **common), estimate_row("reverse ESS", ess(weighted), **common),
            estimate_row("<u>", average(weighted, weighted.u), **common)]
    if proposal.certificate is not None:
        rows.append(Row(metric="negative determinants", value=proposal.certificate.n_negative, **common))
    if proposal.density is Density.SIGNED:
        rows.append(Row(metric="degree margin", value=proposal.certificate.degree_margin, goal="> 1", **common))
        rows.append(estimate_row("log Z, signs left out", log_z(weighted.magnitudes), **common))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system")
    parser.add_argument("-n", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=21, help="the same prior draws for every grid")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 6, 8, 12, 16, 32])
    parser.add_argument("--recipe", default="eqot-fm", help="a shipped generator that can take any number of steps")
    options = parser.parse_args()
    flow, rows = load_generator(options.system, recipe=options.recipe), []
    for steps in options.steps:
        grid = Grid(integrator="midpoint", steps=steps)
        executed = replace(flow, grid=grid, batch=32)
        continuous = ContinuousFlow(prior=flow.prior, field=flow.field, origin=flow.origin, grid=grid, batch=64, n_check=1)
        rows += measure(options.system, executed, "executed map", options)
        rows += measure(options.system, continuous, "divergence integral", options)
    publish(rows)


if __name__ == "__main__":
    main()
