"""Priors: normalised densities that can be sampled directly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bgwork.spaces import Space


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Isotropic Gaussian on a flat space, normalised on that space's own volume.

    log N(x; 0, s^2) = -|x|^2 / 2 s^2 - dim/2 log(2 pi s^2), with dim = (n-1)d on the mean-free space.

    Args:
        space: Euclidean or MeanFree.
        std: standard deviation s per degree of freedom, in the system's length unit.
    """

    space: Space
    std: float = 1.0

    def __post_init__(self) -> None:
        if not (self.std > 0 and math.isfinite(self.std)):
            raise ValueError(f"the prior's std must be positive and finite, got {self.std}")

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """Draw n configurations, [n, space.n, space.d] float64."""
        z = torch.randn(n, self.space.n, self.space.d, generator=generator, dtype=torch.float64)
        return self.space.project(z) * self.std

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density [B] float64 with respect to the volume of the space."""
        x = x.double()
        square = (x * x).sum((1, 2))
        return -0.5 * square / self.std**2 - 0.5 * self.space.dim * math.log(2 * math.pi * self.std**2)
