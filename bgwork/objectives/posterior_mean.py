"""Velocities to regress on with less noise in them: their mean over other data that may be behind a noisy configuration.

Were x1 known to be one of a pool of M configurations y_k, all drawn alike and independently of x0, its mean given x_t = (1-t) x0 + t x1
would be a sum over the pool, and

    v' = (sum_k w_k y_k - x_t) / (1-t),    w_k = P(x1 = y_k | x_t, pool)
has, given x_t, the mean of x1 - x0 (the tower property), whatever way pools are made: v' - v is orthogonal to every function of x_t and
the pool. With Gaussian priors and no pairing the w_k are a softmax of -|x_t - t y_k|^2 / (2 s0^2 (1-t)^2), and pools are minibatches (Xu,
Tong and Jaakkola 2023, stable target field); the rest here is what pairing changes, and which pools to take.

Pairs aligned by `couplings.SoftMolecularAlignment` leave no choice of orientation: y_k turned onto x_t, triples of hydrogens as a whole, is
the only one that may have been. An aligned x0 has the density p0(x0) det(tr(S) 1 - S) on the plane of those aligned to y_k, S = x0^T y_k,
and that plane turns with y_k past x_t at the rate det(tr(S_t) 1 - S_t), S_t = x_t^T y_k:
    w_k ~ exp(-|x0_k|^2 / (2 s0^2)) det(tr(S) 1 - S) / det(tr(S_t) 1 - S_t) P(turns),    x0_k = (x_t - t y_k) / (1-t)
and zero if another rotation of x0_k were nearer to y_k, where tr(S) 1 - S is not positive. As a triple of hydrogens may as well be named
in another order, every y_k stands for all turns of its triples, over which sums factorise.

A pool drawn from all data takes out the noise of early times, when x_t may belong to nearly any of them. Later a few remain possible, and
pools of similar configurations hold more of these (`nested_pools`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bgwork.couplings import SoftMolecularAlignment, turn_between, turned, volume_form
from bgwork.objectives.force_targets import log_volume
from bgwork.priors import Gaussian


class PosteriorMean(NamedTuple):
    """E[x1 | x_t, pool] [B, n, 3] and the probability of each member of the pool [B, M], float64."""

    x1: Tensor
    weights: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class PooledPosterior:
    """The posterior of x1 within a pool, for aligned pairs on the linear interpolant.

    Args:
        prior: of training.
        coupling: that aligned the pairs.
    """

    prior: Gaussian
    coupling: SoftMolecularAlignment

    def __call__(self, t: Tensor, x: Tensor, pool: Tensor) -> PosteriorMean:
        """From x_t [B, n, 3] at times t [B] < 1, and pools [B, M, n, 3] in any orientation, all float64."""
        B, M, *shape = pool.shape
        t, x = t.repeat_interleave(M)[:, None, None], x.repeat_interleave(M, 0)
        whole = self.coupling.whole(x)
        y = pool.flatten(0, 1)
        y = y @ turn_between(y, whole)
        x0 = (x - t * y) / (1 - t)
        in_triples, mean = self._over_turns(t, x, y)
        turning = log_volume_of_nearest(self.coupling.whole(x0), y) - log_volume(whole, y)
        log_w = turning - self._square_outside(x0) / (2 * self.prior.std**2) + in_triples
        weights = torch.softmax(log_w.view(B, M), 1)
        return PosteriorMean((weights[:, :, None, None] * mean.view(B, M, *shape)).sum(1), weights)

    def _square_outside(self, x0: Tensor) -> Tensor:
        """|x0|^2 of the atoms that are in no triple, [B M]."""
        square = x0.square().sum(2)
        return square.sum(1) - sum((square[:, list(triple)].sum(1) for triple in self.coupling.triples), square.new_zeros(len(x0)))

    def _over_turns(self, t: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """What the triples' atoms add to log w, summed over their turns, [B M], and y with them at their mean over turns."""
        added, mean = x.new_zeros(len(x)), y.clone()
        for triple in map(list, self.coupling.triples):
            orders = turned(y[:, triple])
            x0 = (x[:, None, triple] - t[:, None] * orders) / (1 - t[:, None])
            chance = self.coupling.log_chances(x0.flatten(0, 1), orders.flatten(0, 1))[:, 0].view(-1, 3)
            log_w = chance - x0.square().sum((2, 3)) / (2 * self.prior.std**2)
            mean[:, triple] = (torch.softmax(log_w, 1)[:, :, None, None] * orders).sum(1)
            added = added + torch.logsumexp(log_w, 1)
        return added, mean


def log_volume_of_nearest(x0: Tensor, x1: Tensor) -> Tensor:
    """`log_volume` [B] where no rotation of x0 is nearer to x1, and -inf elsewhere."""
    root, failed = torch.linalg.cholesky_ex(volume_form(x0, x1))
    log_det = 2 * root.diagonal(dim1=1, dim2=2).log().sum(1)
    return torch.where(failed == 0, log_det, -torch.inf)
