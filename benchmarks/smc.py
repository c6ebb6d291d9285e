"""What moves with energies and gradients add to the shipped flows: the flow alone, rejuvenated with K transitions, annealed in latent
space, and sequential Monte Carlo from the prior without a network.

    python benchmarks/smc.py dw4 lj13 -n 10000 --seed 11 --transitions 1 10 100 --prior-rows 4000 --latent-rows 0

Resampling makes the weights of rows equal by copying rows, so that the reverse ESS of resampled rows says nothing and is not printed.
Printed instead are

    ESS per ancestor     descendants of one draw count as one sample: what is certain, since no copy is credited
    n_eff/n of <f>       Var(f) / (stderr^2 n), stderr from the scatter of islands: what the moves made of the copies, by observable.
                         It exceeds 1 where systematic resampling spreads rows more evenly than independent draws; its own error
                         bar, sqrt(2 / (islands - 1)) of it, is that of the variance of so many island means

and both are to be read beside the same n_eff/n of the flow alone, whose rows are independent. Evaluations, energies and gradients include
the pilot.
Moves use the torch energy, final weights the system's own (OpenMM where it has one): log_q is proper for either.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from rows import Row, estimate_row, publish

from bgwork.generators import load_generator
from bgwork.records import Cost, Estimate, Proposal, WeightedSamples
from bgwork.report import average_all, observables_of
from bgwork.reweighting import ess, log_z, weigh
from bgwork.samplers.executed import ExecutedMap
from bgwork.samplers.latent import AnnealedFlow
from bgwork.samplers.moves import Hamiltonian
from bgwork.samplers.resampling import ancestral_ess
from bgwork.samplers.smc import SMC, Annealed, Rejuvenated
from bgwork.system import System, load_system


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One method's samples, weighed with the system's own target.

    Attributes:
        method: named in the rows.
        weighted: the samples.
        cost: all work, pilots included.
        independent: ESS of independent rows, or per ancestor.
        ess: that figure.
    """

    method: str
    weighted: WeightedSamples
    cost: Cost
    independent: bool
    ess: Estimate


def alone(system: System, flow: ExecutedMap, drawn: Proposal) -> Measured:
    """The flow's own weights."""
    weighted = weigh(drawn, system.target)
    return Measured(method="flow alone", weighted=weighted, cost=weighted.proposal.cost, independent=True, ess=ess(weighted))


def resampled(system: System, method: str, ended: Annealed, cost: Cost) -> Measured:
    """The end of a run."""
    weighted = weigh(ended.proposal, system.target)
    return Measured(method=method, weighted=weighted, cost=cost, independent=False, ess=ancestral_ess(ended.population))


def rejuvenated(system: System, flow: ExecutedMap, drawn: Proposal, options: argparse.Namespace) -> Iterator[Measured]:
    """The flow's samples, resampled once, with ever more transitions; steps tuned once, on samples of the flow's that are thrown away."""
    generator, target = torch.Generator().manual_seed(options.seed + 1), system.differentiable_target
    sampler = Rejuvenated(source=flow, target=target, islands=options.islands, kernel=Hamiltonian(leapfrog=options.leapfrog))
    schedule, start = sampler.tune(generator=generator), weigh(drawn, target)
    for transitions in options.transitions:
        moving = replace(sampler, kernel=replace(sampler.kernel, transitions=transitions))
        ended = moving.run(start, schedule, generator=generator)
        method = f"flow rejuvenated, {transitions} x {options.leapfrog} leapfrog steps"
        yield resampled(system, method, ended, ended.proposal.cost + schedule.cost)


def from_prior(system: System, options: argparse.Namespace) -> Measured:
    """Sequential Monte Carlo without a network."""
    generator = torch.Generator().manual_seed(options.seed + 2)
    sampler = SMC(prior=system.prior, target=system.differentiable_target, islands=options.islands,
                  kernel=Hamiltonian(leapfrog=options.leapfrog, transitions=options.prior_transitions))
    schedule = sampler.tune(generator=generator)
    ended = sampler.run(sampler.start(options.prior_rows, generator=generator), schedule, generator=generator)
    return resampled(system, "SMC from the prior", ended, ended.proposal.cost + schedule.cost)


def in_latent_space(system: System, flow: ExecutedMap, options: argparse.Namespace) -> Measured:
    """Annealed importance sampling between the flow and the target, so that rows stay independent and their ESS means what it says."""
    generator = torch.Generator().manual_seed(options.seed + 3)
    sampler = AnnealedFlow(flow=flow, target=system.differentiable_target, islands=1, resample_below=0.0, keep=0.98, pilot=64)
    weighted = weigh(sampler.sample(options.latent_rows, generator=generator), system.target)
    cost = weighted.proposal.cost
    return Measured(method="flow annealed in latent space", weighted=weighted, cost=cost, independent=True, ess=ess(weighted))


def rows_of(system: System, measured: Measured, options: argparse.Namespace) -> list[Row]:
    """Every figure of one method."""
    weighted, n = measured.weighted, len(measured.weighted)
    evaluations, spread = round(measured.cost.network / n), math.sqrt(2 / (options.islands - 1))
    common = {"system": system.name, "method": measured.method, "evaluations": evaluations, "n": n, "seed": options.seed}
    rows = [
        estimate_row("reverse ESS" if measured.independent else "ESS per ancestor", measured.ess, **common),
        estimate_row("log Z", log_z(weighted), **common), Row(metric="n_failed", value=weighted.n_failed, **common),
        Row(metric="energies per sample", value=measured.cost.energy / n, **common),
        Row(metric="gradients per sample", value=measured.cost.gradient / n, **common)]
    for name, value in average_all(weighted, system, ["u", *observables_of(system)]).items():
        fraction = value.n_eff / n
        rows += [estimate_row(f"<{name}>", value, **common),
                 Row(metric=f"n_eff/n of <{name}>", value=fraction, stderr=None if measured.independent else spread * fraction, **common)]
        if name in system.references:
            rows.append(Row(metric=f"z of <{name}>", value=value.z(system.references[name]), goal="|z| < 4", **common))
    return rows


def measure(name: str, options: argparse.Namespace) -> Iterator[Measured]:
    """All methods for one system."""
    system = load_system(name)
    flow = replace(load_generator(options.generator or name), batch=options.batch)
    drawn = flow.sample(options.n, generator=torch.Generator().manual_seed(options.seed))
    yield alone(system, flow, drawn)
    yield from rejuvenated(system, flow, drawn, options)
    if options.prior_rows:
        yield from_prior(system, options)
    if options.latent_rows:
        yield in_latent_space(system, flow, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="+")
    parser.add_argument("-n", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=11, help="not used in training or tuning")
    parser.add_argument("--generator", default=None, help="a generator file instead of the shipped one")
    parser.add_argument("--batch", type=int, default=None, help="configurations in memory at once, by default as many as a cache holds")
    parser.add_argument("--islands", type=int, default=100)
    parser.add_argument("--leapfrog", type=int, default=5)
    parser.add_argument("--transitions", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--prior-rows", type=int, default=4000, help="of SMC from the prior; 0 leaves it out")
    parser.add_argument("--prior-transitions", type=int, default=4, help="at each temperature")
    parser.add_argument("--latent-rows", type=int, default=0, help="of annealing in latent space; 0 leaves it out")
    options = parser.parse_args()
    for name in options.systems:
        system = load_system(name)
        for measured in measure(name, options):
            publish(rows_of(system, measured, options))
            print(measured.weighted.proposal.note)


if __name__ == "__main__":
    main()
