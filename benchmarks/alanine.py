"""Peptides in the figures of the literature: ESS, Delta F(phi) by every route, energy-W2 and torus-W2 with their noise floors.

    python benchmarks/alanine.py ala2-vacuum ala2-obc2 -n 10000 --steps 4 8 16 --seed 11 --reference runs/ala2-vacuum/reference/samples.npz
    python benchmarks/alanine.py --run runs/ala2-vacuum/shipped

The first samples anew at each number of midpoint steps (two evaluations each; the generator's own grid if none is given), the second takes
stored samples. Weights are raw. Distances compare --distance-n reference samples with as many drawn by weight (torus-W2) or with
all weighted ones (energy-W2), and stand beside what they are worth (`distances`).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from distances import all_distances
from ess import GOALS, PUBLISHED, generator, held_out
from rows import Row, estimate_row, publish

from bgwork import analysis
from bgwork.analysis import Data, Source
from bgwork.conformation import intactness
from bgwork.records import Certificate, Density, Proposal
from bgwork.report import weighed_reference
from bgwork.reweighting import log_z, weigh
from bgwork.samplers.diagnostics import Diagnosis, ReferenceSet, diagnose
from bgwork.system import load_system

DELTA_F_GOAL = "|z| < 3 against the reference, stderr <= {}"
STDERR_GOALS = {"tight-binding": ".2"}  # by form of the energy; .1 for others
WARMER = 350.0  # K


def sampled(name: str, steps: int | None, options: argparse.Namespace) -> list[Row]:
    """Sample anew, weigh, measure; of samples whose certificate failed only what failed, unless they are accepted by name."""
    system, flow = load_system(name), generator(options.generator or name, recipe=options.recipe, steps=steps)
    known = held_out(system, options.held_out)
    flow = replace(flow, batch=options.batch, round_trip=known.x[: options.round_trip])
    proposal = flow.sample(options.n, generator=torch.Generator().manual_seed(options.seed))
    accept = [Density(kind) for kind in options.accept]
    if not proposal.density.trusted and proposal.density not in accept:
        print(f"{name}: samples are {proposal.density.value}: {proposal.note}; try more --steps, or --accept {proposal.density.value}")
        return certificate_rows(proposal.certificate, common_of(proposal, name, options.seed))
    weighted = weigh(proposal, system.target, accept=accept)
    data = Data(system=system, weighted=weighted, reference=weighed_reference(system), held_out=known, log_q=flow.log_prob(known.x))
    return rows_of(data, options, seed=options.seed)


def common_of(proposal: Proposal, name: str, seed: int | None) -> dict[str, Any]:
    """What every row of one set of samples says; evaluations are network forward passes per sample.

    Transported rows cost none, and any number of them is told from another by that number.
    """
    number = "" if proposal.density.normalised else f", {len(proposal)} rows"
    return {"system": name, "method": f"{proposal.origin.method}{number}, {proposal.density.value}", "n": len(proposal),
            "evaluations": proposal.cost.network / len(proposal), "seed": seed}


def rows_of(data: Data, options: argparse.Namespace, *, seed: int | None) -> list[Row]:
    """Every figure of one set of samples, drawn with a seed; None where they were joined from several, which the method names."""
    proposal = data.weighted.proposal
    common = common_of(proposal, data.system.name, seed)
    rows = weight_rows(data, common) + delta_f_rows(data, common) + warmer_rows(data, common) + shape_rows(data, common)
    return rows + all_distances(data, common, options)


def weight_rows(data: Data, common: dict[str, Any]) -> list[Row]:
    """What says whether the weights can be believed."""
    system = data.system
    found = diagnose(data.weighted, reference=beside(data), basin_of=system.functions[system.basins] if system.basins else None)
    print(f"{data.system.name}, {common['evaluations']:g} evaluations: {found.verdict}")
    goal, published, name = GOALS.get(system.name, (None, None))[0], PUBLISHED.get(system.name), system.name
    estimates = {"forward ESS": found.forward_ess, "log Z": found.log_z, "log Z by BAR": found.log_z_bar}
    rows = [estimate_row("reverse ESS", found.ess, goal=goal, published=published, **common)]
    rows += [estimate_row(metric, value, **common) for metric, value in estimates.items() if value is not None]
    rows += [Row(metric="largest weight", value=found.max_weight, **common), Row(metric="Pareto k", value=found.pareto_k, **common),
             Row(metric="n_failed", value=found.n_failed, **common)]
    if found.cost.core_seconds:
        rows.append(Row(metric="core-minutes per 10,000 samples", value=found.cost.core_seconds / found.n * 1e4 / 60,
                        goal="<= 20 at 16 evaluations", published="ECNF 9.4 GPU-hours a million", **common))
    rows += unseen_rows(found, common)
    if found.overlap_failure:
        print(f"{name}: no BAR and no forward ESS: {found.overlap_failure}")
    return rows + (certificate_rows(found.certificate, common) if found.certificate else [])


def unseen_rows(found: Diagnosis, common: dict[str, Any]) -> list[Row]:
    """Weight that each basin lacks, and what its error bar admits."""
    rows = []
    for label, unseen in found.unseen.items():
        rows.append(Row(metric=f"unseen in basin {label}, {unseen.n_above} of {unseen.n} reference samples", value=unseen.value, **common))
        rows.append(Row(metric=f"unseen in basin {label}, at least", value=unseen.at_least,
                        goal=f"<= {unseen.error:.3g}, its relative error", **common))
    return rows


def beside(data: Data) -> ReferenceSet:
    """What these samples are judged by: reference samples of the system, or others at which the density is known."""
    if data.rows is None:
        return ReferenceSet(samples=data.held_out, log_q=data.log_q, estimates=data.system.references)
    return analysis.known_of(data)


def certificate_rows(certificate: Certificate, common: dict[str, Any]) -> list[Row]:
    """What was checked about the executed map."""
    return [Row(metric="negative determinants", value=certificate.n_negative, goal="0", **common),
            Row(metric="round trips failed", value=certificate.n_round_trip_failed, goal="0", **common)]


def delta_f_rows(data: Data, common: dict[str, Any]) -> list[Row]:
    """Delta F of every phi by every route, and how far each lies from the reference values."""
    rows = []
    for name, found in analysis.delta_f_of(data).items():
        known = data.system.references.get("delta_f_" + name.replace(" ", "_"))
        goal = DELTA_F_GOAL.format(STDERR_GOALS.get(data.system.energy, ".1"))
        for route, value in found.by_route.items():
            rows.append(estimate_row(f"Delta F({name}) from {route}", value, goal=goal, **common))
            if known is not None and route != "reference":
                rows.append(Row(metric=f"z of Delta F({name}) from {route}", value=value.z(known), goal="|z| < 3", **common))
        if known is not None:
            rows.append(estimate_row(f"Delta F({name}), {data.system.reference.sampler}", known, **common))
        for route, reason in found.missing.items():
            print(f"{data.system.name}: no Delta F({name}) from {route}: {reason}")
    return rows


def warmer_rows(data: Data, common: dict[str, Any]) -> list[Row]:
    """The same samples, and the reference samples, reweighted to another temperature: ESS foreseen and found, Delta F, log Z."""
    warmer = analysis.at_temperature(data, WARMER)
    at, changed = f"at {WARMER:g} K", warmer.retargeted
    rows = [estimate_row(f"reverse ESS {at}, predicted", changed.predicted.log_normal, **common),
            estimate_row(f"reverse ESS {at}", changed.measured, **common)]
    if changed.samples.proposal.density.normalised:
        rows.append(estimate_row(f"log Z {at}", log_z(changed.samples), **common))
    for name, found in analysis.delta_f_of(warmer).items():
        rows += [estimate_row(f"Delta F({name}) {at} from {route}", value, **common) for route, value in found.by_route.items()]
    return rows


def shape_rows(data: Data, common: dict[str, Any]) -> list[Row]:
    """Molecules that are broken or inverted, or have renumbered hydrogens, in numbers and in weight."""
    found = intactness(data.weighted, data.system.topology, data.system.structure)
    return [Row(metric="broken, share of samples", value=found.n_broken / found.n, **common),
            Row(metric="inverted, share of samples", value=found.n_inverted / found.n, **common),
            Row(metric="renumbered hydrogens, share of samples", value=found.n_renumbered / found.n, **common),
            estimate_row("broken, share of weight", found.broken, **common),
            estimate_row("inverted, share of weight", found.inverted, **common),
            estimate_row("renumbered hydrogens, share of weight", found.renumbered, **common)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*")
    parser.add_argument("--run", type=Path, nargs="*", default=[], help="runs whose stored samples are taken")
    parser.add_argument("-n", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=11, help="not used in training or tuning")
    parser.add_argument("--steps", type=int, nargs="*", default=[], help="midpoint steps, one or several; the generator's own if not given")
    parser.add_argument("--generator", default=None, help="a generator file instead of the shipped one")
    parser.add_argument("--recipe", default=None, help="which of the shipped generators")
    parser.add_argument("--accept", nargs="*", default=[], choices=["uncertified"], help="densities to weigh although improper; then named")
    parser.add_argument("--reference", type=Path, default=None, help="equilibrium samples for distances and their floors")
    parser.add_argument("--held-out", type=int, default=1000, help="shipped reference samples for forward ESS, BAR and MBAR")
    parser.add_argument("--distance-n", type=int, default=2000, help="reference samples in distances; torus-W2 takes their cube of time")
    parser.add_argument("--round-trip", type=int, default=200)
    parser.add_argument("--batch", type=int, default=None, help="configurations in memory at once, by default as many as a cache holds")
    options = parser.parse_args()
    for name in options.systems:
        for steps in options.steps or [None]:
            publish(sampled(name, steps, options))
    for run in options.run:
        data = analysis.load(Source(path=run))
        publish(rows_of(data, options, seed=data.weighted.proposal.origin.seed))


if __name__ == "__main__":
    main()
