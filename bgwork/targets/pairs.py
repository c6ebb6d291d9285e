"""Pair geometry as matrix products: separations of all pairs i < j and their transpose, forces from pairs to particles."""

from __future__ import annotations

import torch
from torch import Tensor


class Pairs:
    """All pairs i < j of n particles, through the incidence matrix C [pairs, n] with +1 at i and -1 at j.

    Args:
        n: number of particles.
    """

    def __init__(self, n: int) -> None:
        self.i, self.j = torch.triu_indices(n, n, offset=1)
        count = len(self.i)
        self.incidence = torch.zeros(count, n, dtype=torch.float64)
        self.incidence[torch.arange(count), self.i] = 1.0
        self.incidence[torch.arange(count), self.j] = -1.0

    def separations(self, x: Tensor) -> Tensor:
        """r_ij = x_i - x_j, [B, pairs, d], from x [B, n, d]; exactly zero where two particles coincide."""
        return x[:, self.i] - x[:, self.j]

    def to_particles(self, f: Tensor) -> Tensor:
        """sum_j f_ij - sum_j f_ji, [B, n, d], from pair vectors f [B, pairs, d]: the transpose of `separations`."""
        return torch.matmul(self.incidence.T, f)
