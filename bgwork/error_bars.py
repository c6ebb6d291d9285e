"""Standard errors of weighted estimates: the delta method and the bootstrap, both over blocks of correlated rows.

Rows that share a group label (a chain, an ancestor) are summed first, and only these sums are treated as independent.

With heavy-tailed weights the scatter of the samples at hand says too little: what decides the average is a tail that they have hardly
reached. `weighted_stderr` therefore counts the weight that a fit of the tail expects beyond the largest one seen (`pareto.unseen_weight`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def block_sums(values: Tensor, group: Tensor | None) -> Tensor:
    """Sums over the rows of each group.

    Args:
        values: [N] or [N, k].
        group: [N] labels, or None where rows are independent.
    Returns:
        [G] or [G, k]; `values` itself where group is None.
    """
    if group is None:
        return values
    labels, index = torch.unique(group, return_inverse=True)
    return values.new_zeros(len(labels), *values.shape[1:]).index_add_(0, index, values)


def delta_stderr(influence: Tensor, group: Tensor | None) -> float:
    """Standard error of an estimate whose first-order change is the sum of `influence`.

    stderr^2 = G/(G-1) sum_g (S_g - mean S)^2, with S_g the influence of block g; for equally long chains this is the standard error of
    the chain means.

    Args:
        influence: [N] contribution of each row to the linearised estimate.
        group: [N] labels, or None where rows are independent.
    Returns:
        The standard error; NaN if there are fewer than two blocks, which say nothing about the spread.
    """
    sums = block_sums(influence, group)
    blocks = len(sums)
    if blocks < 2:
        return math.nan
    return math.sqrt(blocks / (blocks - 1) * (sums - sums.mean()).square().sum().item())


def weighted_stderr(p: Tensor, centred: Tensor, *, group: Tensor | None, unseen: float) -> float:
    """Standard error of a weighted average, by the delta method, with the weight that no sample has reached.

        stderr^2 = delta_stderr(p c)^2 + m^2 sum_i |p_i| c_i^2

    Weight m beyond the largest one moves the average by m times c there, whose size is taken to be that of c where there are samples.

    Args:
        p: [N] normalised weights, of either sign.
        centred: [N] c, what is averaged less its average; anything in rows of zero weight that is finite.
        group: [N] labels of correlated rows, or None.
        unseen: m, as a fraction of the weight seen; infinite where the tail has no mean.
    Returns:
        The standard error; infinite with m, but zero where c is.
    """
    variance = (p.abs() * centred.square()).sum().item()
    return math.hypot(delta_stderr(p * centred, group), unseen * math.sqrt(variance) if variance > 0 else 0.0)


def bootstrap(sums: Tensor, statistic: Callable[[Tensor], Tensor], *, replicates: int = 200,
              generator: torch.Generator | None = None) -> Tensor:
    """Replicates of a statistic of column totals, with blocks drawn with replacement (Efron 1979).

    Args:
        sums: [G, k] per-block sums (see `block_sums`).
        statistic: maps column totals [R, k] to [R].
        replicates: R.
        generator: randomness; a fixed seed if None, so that the same samples give the same error bar.
    Returns:
        [R] replicates; their standard deviation is the bootstrap standard error.
    """
    generator = generator or torch.Generator().manual_seed(0)
    blocks = len(sums)
    per_chunk = max(1, 4_000_000 // blocks)
    totals = []
    for start in range(0, replicates, per_chunk):
        rows = min(per_chunk, replicates - start)
        drawn = torch.randint(blocks, (rows, blocks), generator=generator)
        counts = torch.zeros(rows, blocks, dtype=sums.dtype).scatter_add_(1, drawn, torch.ones(1, 1, dtype=sums.dtype).expand(rows, blocks))
        totals.append(counts @ sums)
    return statistic(torch.cat(totals))
