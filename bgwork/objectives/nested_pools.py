"""Pools of similar configurations: data sorted so that halves, quarters, eighths ... of their order are ever more alike.

A pool for a row is drawn from the block of the order that the row is in, by the same chances as the row was. Given the block, row and
others are drawn alike and independently, which is what `posterior_mean` asks of a pool. Depth 0 is all data.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bgwork.couplings import turn_between

LOOKED_AT = 2048  # configurations that the direction of a cut is found from


@dataclass(frozen=True, kw_only=True, eq=False)
class NestedPools:
    """Blocks of rows.

    Args:
        order: [N] the rows, similar ones near each other.
        edges: for every depth, where its blocks begin and the last one ends, [2^depth + 1].
        chances: [N] how often each row is drawn, up to a factor.
    """

    order: Tensor
    edges: tuple[Tensor, ...]
    chances: Tensor

    @classmethod
    def of(cls, x: Tensor, chances: Tensor | None, *, smallest: int) -> NestedPools:
        """Of configurations [N, n, 3], compared up to rotations; blocks have at least `smallest` rows, if N is not smaller."""
        order, edges = torch.arange(len(x)), [torch.tensor([0, len(x)])]
        while int((edges[-1][1:] - edges[-1][:-1]).min()) >= 2 * smallest:
            halves = []
            for start, end in zip(edges[-1][:-1].tolist(), edges[-1][1:].tolist(), strict=True):
                rows = order[start:end]
                order[start:end] = rows[along_widest(x[rows]).argsort(stable=True)]
                halves += [start, (start + end) // 2]
            edges.append(torch.tensor([*halves, len(x)]))
        return cls(order=order, edges=tuple(edges), chances=torch.ones(len(x), dtype=torch.float64) if chances is None else chances)

    def draw(self, rows: Tensor, depth: Tensor, size: int, *, generator: torch.Generator) -> Tensor:
        """Pools [B, size] for rows [B], which come first in them, from their blocks at depths [B]."""
        total, start, end = self._total, torch.empty_like(rows), torch.empty_like(rows)
        for k in depth.unique().tolist():
            block = torch.searchsorted(self.edges[k], self._place[rows[depth == k]], right=True) - 1
            start[depth == k], end[depth == k] = self.edges[k][block], self.edges[k][block + 1]
        u = torch.rand(len(rows), size - 1, generator=generator, dtype=torch.float64)
        drawn = torch.searchsorted(total, total[start, None].lerp(total[end, None], u), right=True) - 1
        others = self.order[torch.minimum(drawn.clamp(min=start[:, None]), end[:, None] - 1)]
        return torch.cat([rows[:, None], others], 1)

    @cached_property
    def _place(self) -> Tensor:
        """Where in the order each row is, [N]."""
        return self.order.argsort()

    @cached_property
    def _total(self) -> Tensor:
        """Chances of all rows before each place in the order, and of all, [N+1]."""
        return torch.cat([self.chances.new_zeros(1), self.chances[self.order].cumsum(0)])


def along_widest(x: Tensor) -> Tensor:
    """Where configurations [N, n, 3] lie along the direction of their largest variance, once turned onto the first of them, [N]."""
    x = x.double()
    x = (x @ turn_between(x, x[:1].expand_as(x))).flatten(1)
    some = x[:: -(-len(x) // LOOKED_AT)]
    return (x - some.mean(0)) @ torch.linalg.eigh(torch.cov(some.T))[1][:, -1]
