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
    """Training times: uniform on [0, 1], except a share drawn as 1 - U^2, denser near the data, and one as U^2, denser near the prior.

    Near the data the energy is steep; near the prior, particles that were drawn close together part, and volumes change most.

    Args:
        late: the share drawn as 1 - U^2.
        early: the share drawn as U^2.
    """

    late: float = 0.0
    early: float = 0.0

    def __post_init__(self) -> None:
        if min(self.late, self.early) < 0 or self.late + self.early > 1:
            raise ValueError(f"the shares of late and early times must be positive and sum to at most 1, got {self.late}, {self.early}")

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """n times, [n] float64."""
        u, kind = torch.rand(2, n, generator=generator, dtype=torch.float64)
        return torch.where(kind < self.late, 1 - u * u, torch.where(kind > 1 - self.early, u * u, u))
