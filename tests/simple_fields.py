"""Velocity fields with known flows, for the tests of samplers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


def randomise(field: nn.Module, *, seed: int = 0, size: float = 0.5) -> nn.Module:
    """The field in float64 with random weights everywhere: fields are zero at the start, and zero divergences test nothing."""
    generator = torch.Generator().manual_seed(seed)
    field = field.double()
    with torch.no_grad():
        for p in field.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.add_(size * noise / max(1, p.shape[-1]) ** 0.5)
    return field


@dataclass
class Linear:
    """v = A x on R^(nd): a Runge-Kutta step of order p with p stages is the matrix sum_{k <= p} (hA)^k / k!."""

    matrix: Tensor  # [nd, nd]
    n: int = 1
    d: int = 2

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.matrix.T).view(x.shape)

    def value_and_divergence(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return self(t, x), self.matrix.trace().expand(len(x))

    def value_and_jacobian(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return self(t, x), self.matrix.expand(len(x), -1, -1)


@dataclass
class Pointwise:
    """v = f(t, x) on the line, derivative given: folds, squashes and blow-ups."""

    value: object
    slope: object
    n: int = 1
    d: int = 1

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        return self.value(t, x)

    def value_and_divergence(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.value(t, x), self.slope(t, x)[:, 0, 0]

    def value_and_jacobian(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.value(t, x), self.slope(t, x)


def folding() -> Pointwise:
    """v = 1.5 sin 2x: one Euler step is x + 1.5 sin 2x, of degree one with folds (slope 1 + 3 cos 2x); 8 steps are injective."""
    return Pointwise(lambda t, x: 1.5 * torch.sin(2 * x), lambda t, x: 3 * torch.cos(2 * x))


def squashing() -> Pointwise:
    """v = tanh x - x: one Euler step is tanh x, injective, and nothing beyond +-1 has a preimage."""
    return Pointwise(lambda t, x: torch.tanh(x) - x, lambda t, x: -torch.tanh(x).square())


def exploding() -> Pointwise:
    """v = 0 for x < 1.5 and NaN beyond: some trajectories are lost."""
    return Pointwise(lambda t, x: torch.where(x < 1.5, 0.0, torch.nan), lambda t, x: torch.where(x < 1.5, 0.0, torch.nan))
