"""Paths between prior and data: interpolants, which are noise schedules too, and the times at which they are learned.

x_t = a(t) x1 + b(t) x0, with x0 from a Gaussian prior of standard deviation s0, so that x_t given x1 is N(a x1, (b s0)^2).
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Coefficients(NamedTuple):
    """Signal a, noise b and their derivatives, each of the shape of t."""

    signal: Tensor
    noise: Tensor
    signal_rate: Tensor
    noise_rate: Tensor


@dataclass(frozen=True, kw_only=True)
class Interpolant(abc.ABC):
    """x_t = a(t) x1 + b(t) x0 with b(0) = 1."""

    @abc.abstractmethod
    def coefficients(self, t: Tensor) -> Coefficients:
        """a, b, da/dt, db/dt at times t of any shape."""

    def point_and_velocity(self, t: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
        """x_t and dx_t/dt, both [B, n, d], at times t [B]."""
        a, b, a_rate, b_rate = self.coefficients(t[:, None, None])
        return b * x0 + a * x1, a_rate * x1 + b_rate * x0


@dataclass(frozen=True, kw_only=True)
class LinearInterpolant(Interpolant):
    """x_t = (1-t) x0 + t x1, with velocity x1 - x0 (Lipman et al. 2023; Liu et al. 2023; Albergo and Vanden-Eijnden 2023)."""

    def coefficients(self, t: Tensor) -> Coefficients:
        return Coefficients(t, 1 - t, torch.ones_like(t), -torch.ones_like(t))


@dataclass(frozen=True, kw_only=True)
class VariancePreserving(Interpolant):
    """x_t = sin(pi t/2) x1 + cos(pi t/2) x0, of constant variance where x0 and x1 share it (Nichol and Dhariwal 2021, cosine schedule)."""

    def coefficients(self, t: Tensor) -> Coefficients:
        angle, rate = 0.5 * math.pi * t, 0.5 * math.pi
        return Coefficients(angle.sin(), angle.cos(), rate * angle.cos(), -rate * angle.sin())


@dataclass(frozen=True, kw_only=True)
class GeometricNoise(Interpolant):
    """x_t = x1 + ratio^t x0: the variance explodes towards t = 0, and a little noise is left at t = 1 (Song et al. 2021, VE).

    Args:
        ratio: of the smallest to the largest noise.
    """

    ratio: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"the ratio of smallest to largest noise must lie between 0 and 1, got {self.ratio}")

    def coefficients(self, t: Tensor) -> Coefficients:
        noise = self.ratio**t
        return Coefficients(torch.ones_like(t), noise, torch.zeros_like(t), math.log(self.ratio) * noise)


@dataclass(frozen=True, kw_only=True)
class GeometricBrownian:
    """Brownian motion from the origin whose variance nu_t = nu_1 (1 - ratio^2t) / (1 - ratio^2) grows fast first and slowly at the end.

        dX = sigma_t dB,  nu_t = int_0^t sigma^2,  X_t | X_1 ~ N(g X_1, nu_1 g (1 - g)),  g = nu_t / nu_1
        source: Havens et al. 2025 (arXiv:2504.11713), adjoint sampling, with its geometric noise schedule

    Args:
        std: sqrt(nu_1), of X_1, in the system's length unit.
        ratio: of the smallest sigma, at t = 1, to the largest, at t = 0.
    """

    std: float
    ratio: float = 1e-2

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1 or not self.std > 0:
            raise ValueError(f"std must be positive and ratio between 0 and 1, got {self.std} and {self.ratio}")

    def variance(self, t: Tensor) -> Tensor:
        """nu_t, of the shape of t."""
        return self.std**2 * (1 - self.ratio ** (2 * t)) / (1 - self.ratio**2)

    def time(self, share: Tensor) -> Tensor:
        """The t at which nu_t / nu_1 = share."""
        return torch.log1p(-share * (1 - self.ratio**2)) / (2 * math.log(self.ratio))

    def bridge(self, t: Tensor, x1: Tensor, noise: Tensor) -> Tensor:
        """X_t given X_1 = x1 [B, n, d] and the origin at t = 0, from standard normal noise of x1's shape, at times t [B]."""
        g = (self.variance(t) / self.std**2)[:, None, None]
        return g * x1 + self.std * (g * (1 - g)).sqrt() * noise


@dataclass(frozen=True, kw_only=True)
class Times:
    """Training times: uniform on [0, 1], but for shares that are denser near the data or near the prior.

    Near the data the energy is steep; near the prior, particles that were drawn close together part, and volumes change most.
    An error e of the linear interpolant's velocity adds t e^2 / (1 - t) dt to the divergence of a diffusion along the same path
    (Song, Durkan, Murray and Ermon 2021, theorem 1), so that times even in log(1 - t) weigh errors by what they cost there.

    Args:
        late: the share drawn as 1 - U^2.
        early: the share drawn as U^2.
        logarithmic: the share drawn as 1 - nearest^U.
        nearest: what is left to the data at the latest of those; of the order of the sampler's last step.
    """

    late: float = 0.0
    early: float = 0.0
    logarithmic: float = 0.0
    nearest: float = 3e-3

    def __post_init__(self) -> None:
        shares = self.late, self.early, self.logarithmic
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(f"the shares of late, early and logarithmic times must be positive and sum to at most 1, got {shares}")
        if not 0 < self.nearest < 1:
            raise ValueError(f"the rest at the latest of the logarithmic times must lie between 0 and 1, got {self.nearest}")

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """n times, [n] float64."""
        u, kind = torch.rand(2, n, generator=generator, dtype=torch.float64)
        times = torch.where(kind < self.late, 1 - u * u, torch.where(kind > 1 - self.early, u * u, u))
        return torch.where((kind >= self.late) & (kind < self.late + self.logarithmic), 1 - self.nearest**u, times)


def stops(steps: int, *, power: float = 1.0) -> Tensor:
    """Times t_k = 1 - (1 - k/K)^power, k = 0..K, [K+1] float64: power > 1 makes steps shorter towards the data."""
    if steps < 1 or not power > 0:
        raise ValueError(f"steps must be at least 1 and power positive, got {steps} and {power}")
    return 1 - (1 - torch.arange(steps + 1, dtype=torch.float64) / steps) ** power
