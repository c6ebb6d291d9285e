"""The spaces that configurations live on: dimension, projection, and what Lebesgue measure means on each.

Configurations are always [B, n, d]. On `MeanFree` space every density is with respect to Lebesgue measure of the
(n-1)d-dimensional subspace in orthonormal coordinates.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Space(abc.ABC):
    """A space of configurations of n particles in d dimensions.

    Subclasses define `dim` (dimension of the measure) and `project` (the nearest point of the space).
    """

    n: int
    d: int

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Dimension of the volume that densities refer to."""

    @abc.abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """Nearest point of the space, [B, n, d]."""

    def check(self, x: Tensor) -> None:
        """Raise ValueError if x is not a batch of configurations [B, n, d] of this space (to 1e-4)."""
        if x.ndim != 3 or tuple(x.shape[1:]) != (self.n, self.d):
            raise ValueError(f"x has shape {tuple(x.shape)}, expected [B, {self.n}, {self.d}]")
        finite = x[torch.isfinite(x).flatten(1).all(1)]
        off = (finite - self.project(finite)).abs().amax().item() if len(finite) else 0.0
        if off > 1e-4:
            raise ValueError(f"x is {off:.3g} away from {self}; apply space.project(x) first")


@dataclass(frozen=True, kw_only=True)
class Euclidean(Space):
    """R^(n d)."""

    @property
    def dim(self) -> int:
        return self.n * self.d

    def project(self, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True, kw_only=True)
class MeanFree(Space):
    """Configurations whose centre of geometry is the origin: a subspace of dimension (n-1)d."""

    @property
    def dim(self) -> int:
        return (self.n - 1) * self.d

    def project(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)
