"""Flow sampling on curved spaces from the energy alone, against known answers: log Z, bounded moments, ESS, energy-W2.

    python benchmarks/curved_flow_sampling.py s2 --seed 0

Systems and recipes are the shipped ones: s2, s4 (mixtures of six von Mises-Fisher distributions), h2 (five Riemannian Gaussians of unequal
heights on a ring), chain (four Heisenberg spins, a product of spheres). The reference is the target's own exact sampler.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from rows import Row, estimate_row, publish
from torch import Tensor

from bgwork.metrics import energy_w2, noise_floor
from bgwork.protocols import Sampler
from bgwork.recipes import Request, Trained, load_recipe
from bgwork.records import Origin, WeightedSamples
from bgwork.reweighting import ess, expectation, log_z, normalised_weights, weigh
from bgwork.system import System, load_system
from bgwork.training import averaged, train

SYSTEMS = {"s2": "vmf-s2", "s4": "vmf-s4", "h2": "hyperbolic-h2", "chain": "heisenberg-chain"}


def trained(system: System, *, steps: int, walk: int, seed: int) -> tuple[Sampler, int]:
    """The sampler of so many geodesic steps after so many training steps, and the energy gradients that it took."""
    recipe = load_recipe(system, overrides=[f"training.steps={steps}", f"training.log_every={max(1, steps // 10)}"])
    with tempfile.TemporaryDirectory() as folder:
        job = recipe.job(Request(system=system, name="flow-sampling", folder=Path(folder), seed=seed, on_log=print))
        network = averaged(train(job, resume=False))
    made = Trained(network=network, system=system, prior=system.prior, origin=Origin(method="flow sampling", system=system.name))
    return recipe.sampler_of(made, replace(recipe.default_choice(), steps=walk)), job.source.target.n_gradient


def energy_distances(system: System, weighted: WeightedSamples, *, generator: torch.Generator) -> dict[str, float]:
    """Energy-W2 to exact samples, raw and weighted, and the floor at as many samples."""
    reference = system.target.u(system.target.sample(20_000, generator=generator))
    raw = weighted.u[torch.isfinite(weighted.u)][:2000]
    drawn = weighted.u[torch.multinomial(normalised_weights(weighted), 2000, replacement=True, generator=generator)]
    floor = noise_floor(energy_w2, reference, 2000, generator=generator, repeats=10)
    return {"energy-W2, raw": energy_w2(raw, reference[:2000]), "energy-W2, weighted": energy_w2(drawn, reference[:2000]),
            "energy-W2, floor": floor.value}


def moment_z(system: System, weighted: WeightedSamples, *, generator: torch.Generator) -> float:
    """Largest |difference| of tanh of each ambient coordinate from exact samples, in combined standard errors."""
    exact = torch.tanh(system.target.sample(100_000, generator=generator))
    worst = 0.0
    for i in range(system.target.space.n):
        for a in range(system.target.space.d):
            estimate = expectation(weighted, lambda x, i=i, a=a: torch.tanh(x[:, i, a]))
            values: Tensor = exact[:, i, a]
            worst = max(worst, abs(estimate.value - values.mean().item())
                        / math.hypot(estimate.stderr, values.std().item() / math.sqrt(len(values))))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=SYSTEMS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000, help="training steps")
    parser.add_argument("--walk", type=int, default=100, help="geodesic steps of a sample")
    parser.add_argument("--samples", type=int, default=10_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    system = load_system(SYSTEMS[args.case])
    sampler, gradients = trained(system, steps=args.steps, walk=args.walk, seed=args.seed)
    generator = torch.Generator().manual_seed(1000 + args.seed)
    weighted = weigh(sampler.sample(args.samples, generator=generator), system.target)
    estimate, common = log_z(weighted), {"system": args.case, "method": f"flow sampling, path weights, seed {args.seed}",
                                         "n": args.samples, "seed": args.seed, "evaluations": args.walk + 1}
    distances = energy_distances(system, weighted, generator=generator)
    publish([
        estimate_row("log Z", estimate, goal="within 4 stderr of log Z, exact", **common),
        Row(metric="log Z, exact", value=system.target.log_z, **common),
        Row(metric="z of log Z", value=(estimate.value - system.target.log_z) / estimate.stderr, goal="< 4", **common),
        Row(metric="largest z of bounded moments", value=moment_z(system, weighted, generator=generator), goal="< 4", **common),
        estimate_row("reverse ESS", ess(weighted), **common),
        Row(metric="failed rows", value=weighted.n_failed, **common),
        Row(metric="training gradients", value=gradients, **common),
        *(Row(metric=name, value=value, **{**common, "n": 2000}) for name, value in distances.items())])


if __name__ == "__main__":
    main()
