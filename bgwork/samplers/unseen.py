"""Weight that a sampler leaves out inside a basin that it does reach: tails of a rare basin, which no figure of the whole shows.

A basin that holds three per cent has no say in the Pareto k or the forward ESS of all samples. If the generator is too narrow there, its
samples carry too little weight, and their error bar, which is made of the weights that were drawn, does not know. Reference samples do:
those that weigh more than every sample drawn in their basin stand for weight that was never drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.stats import binomtest
from torch import Tensor

from bgwork.records import Density, WeightedSamples
from bgwork.reweighting import evaluate
from bgwork.samplers.diagnosis import ReferenceSet, Unseen

CONFIDENCE = 0.95


def unseen_in_basins(weighted: WeightedSamples, reference: ReferenceSet, basin_of: Callable[[Tensor], Tensor] | None) -> dict[str, Unseen]:
    """Of every basin, the share of its equilibrium weight that lies above the largest weight drawn there.

        P_pi(w(x) > max_i w(x_i) | basin), estimated by counting reference samples, with w = exp(-u) / q

    An error bar of proper weights admits about as much: the largest weight is never a larger share of a basin's weight than the relative
    standard error of that weight, 1 / sqrt(n_eff).

    Args:
        weighted: samples with a normalised density, one to a configuration.
        reference: with the generator's density at reference samples, which are taken to be independent; copies of one draw count once.
            Those of a trajectory that remembers itself make the bound too sharp.
        basin_of: integer basin label of each configuration, [B].
    Returns:
        By basin label, in order; nothing where there is no density at reference samples, or no basins.
    """
    if basin_of is None or not comparable(weighted, reference):
        return {}
    known, log_w = looked_at(reference)
    labels, ours = evaluate(basin_of, known), evaluate(basin_of, weighted)
    return {str(int(label)): _of_basin(weighted.log_w[ours == label], log_w[labels == label])
            for label in labels[torch.isfinite(known.u)].unique().tolist()}


def comparable(weighted: WeightedSamples, reference: ReferenceSet) -> bool:
    """Whether the density at reference samples is known, and is all of it: where a map folds, it may leave preimages out."""
    density = weighted.proposal.density
    return reference.samples is not None and reference.log_q is not None and density is not Density.SIGNED and density.normalised


def evenly_spread(reference: ReferenceSet) -> tuple[WeightedSamples, Tensor]:
    """The evenly spread reference samples at which the generator's density is known, and their log-weights; copies of one draw once."""
    return _once(reference, _rows(reference), reference.log_q)


def looked_at(reference: ReferenceSet) -> tuple[WeightedSamples, Tensor]:
    """The same with those that were picked from rare basins."""
    if reference.rare_rows is None:
        return evenly_spread(reference)
    return _once(reference, torch.cat([_rows(reference), reference.rare_rows]), torch.cat([reference.log_q, reference.rare_log_q]))


def _rows(reference: ReferenceSet) -> Tensor:
    return torch.arange(len(reference.samples)) if reference.rows is None else reference.rows


def _once(reference: ReferenceSet, rows: Tensor, log_q: Tensor) -> tuple[WeightedSamples, Tensor]:
    if (ancestor := reference.samples.proposal.ancestor) is not None:
        first = _firsts(ancestor[rows])
        rows, log_q = rows[first], log_q[first]
    known = reference.samples.take(rows)
    return known, -known.u - log_q


def _firsts(labels: Tensor) -> Tensor:
    """Where each label comes first, in order."""
    order = torch.sort(labels, stable=True).indices
    new = torch.cat([torch.ones(1, dtype=torch.bool), labels[order][1:] != labels[order][:-1]])
    return order[new].sort().values


def _of_basin(drawn: Tensor, known: Tensor) -> Unseen:
    failed = int(known.isnan().sum())
    drawn, known = drawn[drawn > -math.inf], known[~known.isnan()]
    above = int((known > drawn.max()).sum()) if len(drawn) else len(known)
    low = binomtest(above, len(known), alternative="greater").proportion_ci(CONFIDENCE).low if len(known) else 0.0
    n_eff = torch.exp(2 * torch.logsumexp(drawn, 0) - torch.logsumexp(2 * drawn, 0)).item() if len(drawn) else 0.0
    return Unseen(at_least=float(low), n=len(known), n_above=above, n_failed=failed, error=1 / math.sqrt(n_eff) if n_eff else 1.0)
