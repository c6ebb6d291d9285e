"""Effective sample sizes, log Z and every reference observable of the shipped generators, with raw weights.

    python benchmarks/ess.py dw4 lj13 -n 10000 --seed 11
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from rows import Row, estimate_row, publish

from bgwork.generators import generator_path, load_trained
from bgwork.records import WeightedSamples
from bgwork.report import observables_of, weighed_reference
from bgwork.reweighting import weigh
from bgwork.samplers.diagnostics import Diagnosis, ReferenceSet, diagnose
from bgwork.samplers.flow import Flow
from bgwork.system import System, load_system

GOALS = {"dw4": (">= .95 (below .85 is not done)", ">= .90"), "lj13": (">= .70 (below .50 is not done)", ">= .50"),
         "ala2-vacuum": (">= .10 (below .05 is not done)", None), "ala2-obc2": (">= .10 (below .05 is not done)", None)}
PUBLISHED = {"dw4": "~.93 (equivariant OT FM, recollected)", "lj13": "~.57 (equivariant OT FM, recollected); .033 hollow-graph flow",
             "ala2-vacuum": "FALCON .067-.097, ECNF++ .275", "ala2-obc2": "FALCON .067-.097, ECNF++ .275"}


def generator(name_or_path: str, *, recipe: str | None, steps: int | None) -> Flow:
    """A generator at a number of steps, spaced as its recipe spaces them; its own number if none is given."""
    made_by, trained = load_trained(generator_path(name_or_path, recipe=recipe))
    choice = made_by.default_choice()
    return made_by.sampler_of(trained, replace(choice, steps=steps or choice.steps))


def held_out(system: System, n: int) -> WeightedSamples:
    """The first n of the shipped reference samples, thinned evenly over chains."""
    reference = weighed_reference(system)
    rows = torch.linspace(0, len(reference) - 1, n).round().long()
    proposal = reference.proposal
    thinned = replace(proposal, x=proposal.x[rows], log_q=proposal.log_q[rows], group=proposal.group[rows])
    return WeightedSamples(proposal=thinned, u=reference.u[rows], target=reference.target)


def measure(name: str, options: argparse.Namespace) -> list[Row]:
    """Sample, weigh, diagnose."""
    system, flow = load_system(name), generator(options.generator or name, recipe=options.recipe, steps=options.steps)
    reference = held_out(system, options.held_out)
    flow = replace(flow, batch=options.batch)
    certified = replace(flow, round_trip=reference.x[: options.round_trip])
    proposal = certified.sample(options.n, generator=torch.Generator().manual_seed(options.seed))
    weighted = weigh(proposal, system.target)
    log_q = flow.log_prob(reference.x)
    found = diagnose(weighted, reference=ReferenceSet(samples=reference, log_q=log_q, estimates=system.references),
                     observables={k: f for k, f in observables_of(system).items() if k != "u"})
    print(f"{name}: {found.verdict}\n{proposal.note}")
    return rows_of(name, found, flow.grid.evaluations, options)


def rows_of(name: str, found: Diagnosis, evaluations: int, options: argparse.Namespace) -> list[Row]:
    """Every figure as a row."""
    method = f"{found.method}, executed map, {found.density.value}"
    common = {"system": name, "method": method, "evaluations": evaluations, "n": options.n, "seed": options.seed}
    reverse, forward = GOALS.get(name, (None, None))
    rows = [
        estimate_row("reverse ESS", found.ess, goal=reverse, published=PUBLISHED.get(name), **common),
        *([estimate_row("forward ESS", found.forward_ess, goal=forward, **common)] if found.forward_ess else []),
        estimate_row("log Z", found.log_z, **common),
        *([estimate_row("log Z by BAR", found.log_z_bar, **common)] if found.log_z_bar else []),
        Row(metric="largest weight", value=found.max_weight, **common), Row(metric="Pareto k", value=found.pareto_k, **common),
        Row(metric="n_failed", value=found.n_failed, **common),
        Row(metric="negative determinants", value=found.certificate.n_negative, goal="0", **common),
        Row(metric="smallest singular value", value=found.certificate.smallest_singular, **common),
        Row(metric="round trips failed", value=found.certificate.n_round_trip_failed, goal="0", **common)]
    if not options.busy:
        rows.append(Row(metric="seconds per 1,000 samples", value=found.cost.seconds / options.n * 1000, **common))
    for observable, estimate in found.observables.items():
        rows.append(estimate_row(f"<{observable}>", estimate, **common))
    for observable, comparison in found.reference.items():
        rows.append(Row(metric=f"z of <{observable}>", value=comparison.z, goal="|z| < 4", **common))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="+")
    parser.add_argument("-n", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=11, help="not used in training or tuning")
    parser.add_argument("--steps", type=int, default=None, help="midpoint steps; the generator's own if not given")
    parser.add_argument("--recipe", default=None, help="which of a system's shipped generators")
    parser.add_argument("--generator", default=None, help="a generator file instead of the shipped one")
    parser.add_argument("--held-out", type=int, default=2000, help="reference samples for forward ESS and BAR")
    parser.add_argument("--round-trip", type=int, default=500, help="of them, for the certificate")
    parser.add_argument("--busy", action="store_true", help="the machine is not idle: leave the timing out")
    parser.add_argument("--batch", type=int, default=None, help="configurations in memory at once, by default as many as a cache holds")
    options = parser.parse_args()
    publish([row for name in options.systems for row in measure(name, options)])


if __name__ == "__main__":
    main()
