"""Paths between prior and data: interpolants and the times at which they are learned."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LinearInterpolant:
    """x_t = (1-t) x0 + t x1, with velocity x1 - x0 (Lipman et al. 2023; Liu et al. 2023; Albergo and Vanden-Eijnden 2023)."""

    def point_and_velocity(self, t: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
        """x_t and dx_t/dt, both [B, n, d], at times t [B]."""
        t = t[:, None, None]
        return (1 - t) * x0 + t * x1, x1 - x0


@dataclass(frozen=True, kw_only=True)
class Times:
    """Training times: uniform on [0, 1], except a share drawn as 1 - U^2, which is denser near the data.

    Args:
        late: the share drawn as 1 - U^2.
    """

    late: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.late <= 1:
            raise ValueError(f"the share of late times must lie in [0, 1], got {self.late}")

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """n times, [n] float64."""
        u, kind = torch.rand(2, n, generator=generator, dtype=torch.float64)
        return torch.where(kind < self.late, 1 - u * u, u)
