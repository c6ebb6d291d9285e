"""Stored samples judged by reference samples that nothing was chosen by: not those kept with the system, but others of the time set aside.

    python benchmarks/judged_anew.py runs/ala3-obc2/fm-enriched-420 --recipe fm-enriched --reference runs/ala3-obc2/reference/samples.npz

Where a recipe was changed after a look at the density at the shipped reference samples, these say too much good of the next generator.
Rows are of the last tenth of every walker (`bgwork.set_aside`), which nothing was trained on, without any that the system keeps. They are
neighbours in time of those, by the same walkers, and not independent of them: a rare state that no walker met is missing from both.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from alanine import unseen_rows
from rows import Row, estimate_row, publish

from bgwork import store
from bgwork.generators import load_generator
from bgwork.held_out import rare_rows
from bgwork.records import WeightedSamples
from bgwork.report import observables_of
from bgwork.reweighting import weigh
from bgwork.runs import weighted_samples
from bgwork.samplers.diagnostics import Diagnosis, ReferenceSet, diagnose
from bgwork.samplers.flow import Flow
from bgwork.set_aside import SHARE, is_late
from bgwork.system import System, load_system, reference_samples


def fresh(path: Path, system: System) -> WeightedSamples:
    """Reference samples of the time that was set aside, without those kept with the system."""
    known = store.load_samples(path)
    late = known.take(is_late(known, SHARE))
    kept = torch.isin(late.x[:, 0, 0], reference_samples(system).x[:, 0, 0])
    return weigh(late.take(~kept), system.target)


def judged(samples: WeightedSamples, flow: Flow, reference: WeightedSamples, system: System, n: int) -> Diagnosis:
    """With the generator's density at n of the reference samples, evenly spread, and at further ones of rare basins."""
    chosen = torch.linspace(0, len(reference) - 1, n).round().long()
    rare = rare_rows(reference.x, chosen, system)
    log_q = flow.log_prob(reference.x[torch.cat([chosen, rare])])
    known = ReferenceSet(samples=reference, log_q=log_q[:n], rows=chosen, rare_log_q=log_q[n:], rare_rows=rare, estimates=system.references)
    basin_of = system.functions[system.basins] if system.basins else None
    return diagnose(samples, reference=known, observables=observables_of(system), basin_of=basin_of)


def rows_of(found: Diagnosis, n: int, system: System) -> list[Row]:
    """What the reference samples have a say in."""
    common = {"system": system.name, "method": f"{found.method}, {found.density.value}", "n": found.n, "seed": found.seed}
    estimates = {"reverse ESS": found.ess, "forward ESS": found.forward_ess, "log Z": found.log_z, "log Z by BAR": found.log_z_bar}
    rows = [estimate_row(f"{metric}, {n} fresh reference samples", value, **common) for metric, value in estimates.items() if value]
    return rows + unseen_rows(found, common)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of stored samples, drawn as their generator's recipe says")
    parser.add_argument("--reference", type=Path, required=True, help="the whole run that the shipped reference samples are of")
    parser.add_argument("--recipe", required=True, help="which of the shipped generators the samples are of")
    parser.add_argument("-n", type=int, default=400, help="reference samples")
    options = parser.parse_args()
    samples = weighted_samples(options.run)
    system = load_system(samples.proposal.origin.system)
    flow = load_generator(system.name, recipe=options.recipe)
    found = judged(samples, flow, fresh(options.reference, system), system, options.n)
    print(f"{options.run}: {found.verdict}")
    publish(rows_of(found, options.n, system))


if __name__ == "__main__":
    main()
