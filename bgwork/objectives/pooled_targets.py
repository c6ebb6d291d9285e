"""Posterior means for flow matching: which pools are taken when, found by how much noise each takes out.

E |v - v'|^2 is the variance that a pool takes out of the velocity, and the network has no part in it; so the depths of the pools are those
at which most is taken out, measured on data before the training. Later pools are never wider, since noisy configurations tell more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bgwork.couplings import random_turns
from bgwork.objectives.nested_pools import NestedPools
from bgwork.objectives.posterior_mean import PooledPosterior

SPANS = 20  # spans of time, each with a depth of its own
PAIRS = 48  # that the depth of a span is found from
WORTH = 0.02  # of the velocities' mean square: what a pool must take out at least


@dataclass(frozen=True, kw_only=True, eq=False)
class PooledTargets:
    """Velocities averaged over the posterior within pools, for aligned pairs on the linear interpolant.

    Args:
        x1: data [N, n, 3].
        pools: of them.
        posterior: within a pool.
        size: of a pool.
        depth: of the pools in each of equal spans of time before `until`, [SPANS]; -1 where velocities are left as they are.
        until: time from which on they are.
    """

    x1: Tensor
    pools: NestedPools
    posterior: PooledPosterior
    size: int
    depth: Tensor
    until: float

    @classmethod
    def of(cls, x1: Tensor, chances: Tensor | None, *, posterior: PooledPosterior, size: int, until: float) -> PooledTargets:
        """With pools made from the data, and depths by the variance they take out of pairs of prior draws and data."""
        pools = NestedPools.of(posterior.coupling.whole(x1), chances, smallest=size)
        fixed = {"x1": x1, "pools": pools, "posterior": posterior, "size": size, "until": until}
        generator = torch.Generator().manual_seed(0)
        taken_out = torch.zeros(SPANS, len(pools.edges) + 1, dtype=torch.float64)
        for k in range(SPANS):
            t = torch.full((PAIRS,), (k + 0.5) / SPANS * until, dtype=torch.float64)
            rows = torch.multinomial(pools.chances, PAIRS, replacement=True, generator=generator)
            x0, own = posterior.prior.sample(PAIRS, generator=generator), x1[rows].double() @ random_turns(PAIRS, 3, generator=generator)
            x0, own = posterior.coupling(x0, own, generator=generator)
            x, velocity = (1 - t[:, None, None]) * x0 + t[:, None, None] * own, own - x0
            for depth in range(len(pools.edges)):
                pooled = cls(**fixed, depth=torch.full((SPANS,), depth))(t, x, velocity, rows, generator=generator)
                taken_out[k, depth] = (velocity - pooled).square().mean() - WORTH * velocity.square().mean()
        depth = best_ascent(taken_out)
        return cls(**fixed, depth=torch.where(depth < len(pools.edges), depth, -1))

    def __call__(self, t: Tensor, x: Tensor, velocity: Tensor, rows: Tensor, *, generator: torch.Generator) -> Tensor:
        """Velocities [B, n, 3] at x_t and t [B] of pairs whose data are rows [B], from those of the pairs alone."""
        depth = self.depth[(t / self.until * SPANS).long().clamp(max=SPANS - 1)]
        pooled = (t < self.until) & (depth >= 0)
        drawn = self.pools.draw(rows[pooled], depth[pooled], self.size, generator=generator)
        velocity, t, x = velocity.clone(), t[pooled], x[pooled]
        velocity[pooled] = (self.posterior(t, x, self.x1[drawn].double()).x1 - x) / (1 - t[:, None, None])
        return velocity


def best_ascent(score: Tensor) -> Tensor:
    """Columns that never fall from row to row [K], with the largest sum of score [K, D] on the way (dynamic programming)."""
    best, came_from = score[0], []
    for row in score[1:]:
        best, column = best.cummax(0)
        came_from.append(column)
        best = best + row
    path = [best.argmax()]
    for column in reversed(came_from):
        path.append(column[path[-1]])
    return torch.stack(path[::-1])
