"""Flow sampling on curved spaces from the energy alone, against known answers: log Z, bounded moments, ESS, energy-W2.

    python benchmarks/curved_flow_sampling.py s2 --seed 0

Targets: s2, s4 (mixtures of six von Mises-Fisher distributions), h2 (five Riemannian Gaussians on a ring of unequal heights), chain (four
Heisenberg spins, a product of spheres). The reference is the target's own exact sampler.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from rows import Row, estimate_row, publish
from torch import Tensor

from bgwork.curved import Sphere
from bgwork.fields.ambient import AmbientDrifts
from bgwork.metrics import energy_w2, noise_floor
from bgwork.objectives.flow_sampling import CurvedFlowSampling, DriftsLoss
from bgwork.objectives.replay import ReplaySettings, ReplaySource
from bgwork.paths import stops
from bgwork.priors import Uniform, WrappedNormal
from bgwork.protocols import Prior, Target
from bgwork.records import WeightedSamples
from bgwork.reweighting import ess, expectation, log_z, normalised_weights, weigh
from bgwork.targets.hyperbolic_mixture import HyperbolicMixture
from bgwork.targets.spin_chain import SpinChain
from bgwork.targets.von_mises_fisher import VonMisesFisherMixture
from bgwork.training import TrainingConfig, TrainingJob, averaged, train


@dataclass(frozen=True, kw_only=True)
class Case:
    """A target with the settings that it is learned with."""

    target: Target
    gamma: float
    scale: float = 1.0

    @property
    def prior(self) -> Prior:
        space = self.target.space
        if isinstance(space, Sphere):
            return Uniform(space=space)
        return WrappedNormal(space=space, mean=space.origin(torch.zeros(1, space.d)), std=1.0)

    def method(self, steps: int) -> CurvedFlowSampling:
        return CurvedFlowSampling(prior=self.prior, drifts=lambda model: model, gamma=self.gamma, stops=stops(steps))


CASES = {
    "s2": lambda: Case(target=VonMisesFisherMixture.random(6, 3, concentration=20.0, seed=1, name="vMF on S2"), gamma=0.3),
    "s4": lambda: Case(target=VonMisesFisherMixture.random(6, 5, concentration=20.0, seed=1, name="vMF on S4"), gamma=0.3),
    "h2": lambda: Case(target=HyperbolicMixture.ring(5, radius=2.0, std=0.4, name="Gaussians on H2"), gamma=0.15, scale=2.0),
    "chain": lambda: Case(target=SpinChain(4, coupling=3.0, name="Heisenberg chain"), gamma=0.3)}


def trained(case: Case, *, steps: int, seed: int) -> tuple[torch.nn.Module, int]:
    """The averaged model after so many steps, and the energy gradients that it took."""
    torch.manual_seed(seed)
    model = AmbientDrifts(case.target.space, hidden=128, depth=4, scale=case.scale)
    source = ReplaySource(target=case.target, method=case.method(50), seed=seed,
                          settings=ReplaySettings(capacity=10_000, fresh=1000, every=50, batch=512))
    config = TrainingConfig(steps=steps, warmup=100, log_every=steps // 10)
    folder = Path(tempfile.mkdtemp())
    job = TrainingJob(
        model=model, loss=DriftsLoss(space=case.target.space), data=source, config=config, folder=folder, meta={}, on_log=print)
    state = train(job, resume=False)
    shutil.rmtree(folder)
    return averaged(state), source.target.n_gradient


def energy_distances(case: Case, weighted: WeightedSamples, *, generator: torch.Generator) -> dict[str, float]:
    """Energy-W2 to exact samples, raw and weighted, and the floor at as many samples."""
    reference = case.target.u(case.target.sample(20_000, generator=generator))
    raw = weighted.u[torch.isfinite(weighted.u)][:2000]
    drawn = weighted.u[torch.multinomial(normalised_weights(weighted), 2000, replacement=True, generator=generator)]
    floor = noise_floor(energy_w2, reference, 2000, generator=generator, repeats=10)
    return {"energy-W2, raw": energy_w2(raw, reference[:2000]), "energy-W2, weighted": energy_w2(drawn, reference[:2000]),
            "energy-W2, floor": floor.value}


def moment_z(case: Case, weighted: WeightedSamples, *, generator: torch.Generator) -> float:
    """Largest |difference| of tanh of each ambient coordinate from exact samples, in combined standard errors."""
    exact = torch.tanh(case.target.sample(100_000, generator=generator))
    worst = 0.0
    for i in range(case.target.space.n):
        for a in range(case.target.space.d):
            estimate = expectation(weighted, lambda x, i=i, a=a: torch.tanh(x[:, i, a]))
            values: Tensor = exact[:, i, a]
            worst = max(worst, abs(estimate.value - values.mean().item())
                        / math.hypot(estimate.stderr, values.std().item() / math.sqrt(len(values))))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000, help="training steps")
    parser.add_argument("--walk", type=int, default=100, help="geodesic steps of a sample")
    parser.add_argument("--samples", type=int, default=10_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    case = CASES[args.case]()
    model, gradients = trained(case, steps=args.steps, seed=args.seed)
    generator = torch.Generator().manual_seed(1000 + args.seed)
    weighted = weigh(case.method(args.walk).sampler(model).sample(args.samples, generator=generator), case.target)
    estimate, common = log_z(weighted), {"system": args.case, "method": f"flow sampling, path weights, seed {args.seed}",
                                         "n": args.samples, "seed": args.seed, "evaluations": args.walk + 1}
    distances = energy_distances(case, weighted, generator=generator)
    publish([
        estimate_row("log Z", estimate, goal="within 4 stderr of log Z, exact", **common),
        Row(metric="log Z, exact", value=case.target.log_z, **common),
        Row(metric="z of log Z", value=(estimate.value - case.target.log_z) / estimate.stderr, goal="< 4", **common),
        Row(metric="largest z of bounded moments", value=moment_z(case, weighted, generator=generator), goal="< 4", **common),
        estimate_row("reverse ESS", ess(weighted), **common),
        Row(metric="failed rows", value=weighted.n_failed, **common),
        Row(metric="training gradients", value=gradients, **common),
        *(Row(metric=name, value=value, **{**common, "n": 2000}) for name, value in distances.items())])


if __name__ == "__main__":
    main()
