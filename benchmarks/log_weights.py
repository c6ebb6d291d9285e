"""What the log-weights of a molecule's samples depend on: its bonds, its angles, its torsions, or how they go together.

    python benchmarks/log_weights.py runs/ala2-vacuum/fm --reference runs/ala2-vacuum/reference/samples.npz

Two figures for each kind of internal coordinate. Its spread, as the variance in the raw samples over that in the reference: above one, the
generator is too loose there. And the share of the variance of log w that a least-squares fit by it explains (linear and square terms
in units of the reference's spread, for torsions cosines and sines of one to three times the angle), adjusted for the number of terms.
Samples are raw; left out of every figure, and counted, are those without a finite weight and those in the lowest --leave-out share of
log w, whose energies are beyond all measure.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path

import torch
from rows import Row, publish
from torch import Tensor

from bgwork import geometry, store
from bgwork.records import Density, WeightedSamples
from bgwork.runs import weighted_samples
from bgwork.system import load_system
from bgwork.topology import Topology


def coordinates(topology: Topology) -> dict[str, Callable[[Tensor], Tensor]]:
    """All bonds, all angles between bonds and all torsions along three bonds, configurations [B, n, 3] to [B, k]."""
    neighbours = topology.neighbours
    middle = [(i, j, k) for j, found in enumerate(neighbours) for i, k in itertools.combinations(found, 2)]
    along = [(i, j, k, m) for j, k in topology.bonds for i in neighbours[j] for m in neighbours[k] if i != k and m != j and i != m]
    return {"bonds": lambda x: geometry.distances(x, torch.tensor(topology.bonds)),
            "angles": lambda x: geometry.angles(x, torch.tensor(middle)),
            "torsions": lambda x: geometry.torsions(x, torch.tensor(along))}


def terms(kind: str, values: Tensor, reference: Tensor) -> Tensor:
    """What a fit may use of the values [B, k]."""
    if kind == "torsions":
        return torch.cat([f(m * values) for m in (1, 2, 3) for f in (torch.cos, torch.sin)], 1)
    z = (values - reference.mean(0)) / reference.std(0)
    return torch.cat([z, z.square()], 1)


def explained(log_w: Tensor, features: Tensor) -> float:
    """1 - residual variance / variance, both unbiased."""
    design = torch.cat([torch.ones(len(features), 1, dtype=torch.float64), features], 1)
    fitted = torch.linalg.lstsq(design, log_w[:, None], driver="gelsd")
    left = (log_w - (design @ fitted.solution)[:, 0]).square().sum() / (len(log_w) - int(fitted.rank))
    return 1 - (left / log_w.var()).item()


def equilibrium(path: Path) -> Tensor:
    """Configurations of equal weight, from chains."""
    samples = store.load_samples(path)
    proposal = samples.proposal if isinstance(samples, WeightedSamples) else samples
    if proposal.density is not Density.UNNORMALISED:
        raise SystemExit(f"{path} holds weighted samples ({proposal.density.value}); give equilibrium data, as `bgwork reference` makes")
    return proposal.x


def measure(path: Path, options: argparse.Namespace) -> list[Row]:
    """Every figure of one run."""
    weighted = weighted_samples(path)
    system = load_system(weighted.proposal.origin.system)
    if system.topology is None:
        raise SystemExit(f"{system.name} is not a molecule: it has no bonds, angles or torsions")
    finite = torch.isfinite(weighted.log_w)
    kept = finite & (weighted.log_w > torch.quantile(weighted.log_w[finite], options.leave_out))
    print(f"{path}: {int((~finite).sum())} of {len(kept)} samples without a finite weight and {int((finite & ~kept).sum())} more left out")
    x, log_w, known = weighted.x[kept], weighted.log_w[kept], equilibrium(options.reference)
    common = {"system": system.name, "method": weighted.proposal.origin.method, "n": len(x), "seed": weighted.proposal.origin.seed,
              "evaluations": weighted.proposal.cost.network / len(weighted)}
    rows, features = [Row(metric="variance of log w", value=log_w.var().item(), **common)], []
    for kind, function in coordinates(system.topology).items():
        values, there = function(x), function(known)
        features.append(terms(kind, values, there))
        if kind != "torsions":
            spread = (values.var(0) / there.var(0)).sort().values
            for name, value in (("median", spread.median()), ("smallest", spread[0]), ("largest", spread[-1])):
                rows.append(Row(metric=f"spread of {kind} over the reference's, {name}", value=value.item(), **common))
        rows.append(Row(metric=f"share of the variance of log w explained by {kind}", value=explained(log_w, features[-1]), **common))
    together = explained(log_w, torch.cat(features, 1))
    return [*rows, Row(metric="share of the variance of log w explained by all together", value=together, **common)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="runs whose stored samples are taken")
    parser.add_argument("--reference", type=Path, required=True, help="equilibrium samples")
    parser.add_argument("--leave-out", type=float, default=0.03)
    options = parser.parse_args()
    publish([row for path in options.runs for row in measure(path, options)])


if __name__ == "__main__":
    main()
