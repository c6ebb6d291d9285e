"""Closed-form fields of diffusions whose target is N(0, s^2), written down here independently of the code under test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Scaling:
    """F(t, x) = c(t) x, with its Jacobian on the whole of R^nd."""

    factor: Callable[[Tensor], Tensor]
    n: int
    d: int

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        return self.factor(torch.as_tensor(t, dtype=x.dtype)).reshape(-1, 1, 1) * x

    def value_and_divergence(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        v, jacobian = self.value_and_jacobian(t, x)
        return v, jacobian.diagonal(dim1=1, dim2=2).sum(1)

    def value_and_jacobian(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        size = self.n * self.d
        centring = torch.eye(size, dtype=x.dtype).view(size, self.n, self.d)
        if self.n > 1:
            centring = centring - centring.mean(1, keepdim=True)
        factor = self.factor(torch.as_tensor(t, dtype=x.dtype)).reshape(-1, 1, 1)
        return self(t, x), (factor * centring.flatten(1)).expand(len(x), -1, -1)


@dataclass
class Disturbed:
    """An exact field plus a share of a random network: a drift that no training has made right."""

    exact: Scaling
    network: Callable[[Tensor, Tensor], Tensor]
    share: float

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        return self.exact(t, x) + self.share * self.network(t, x)


def velocity(path, *, prior_std: float, target_std: float) -> Callable[[Tensor], Tensor]:
    """Regression of dx_t/dt on x_t: Cov(x', x) / Var(x)."""

    def factor(t: Tensor) -> Tensor:
        a, b, a_rate, b_rate = path.coefficients(t)
        return (a_rate * a * target_std**2 + b_rate * b * prior_std**2) / (a**2 * target_std**2 + b**2 * prior_std**2)

    return factor


def score(path, *, prior_std: float, target_std: float) -> Callable[[Tensor], Tensor]:
    """-1 / Var(x_t)."""
    return lambda t: -1 / (target_std**2 + (path.coefficients(t).noise * prior_std) ** 2)


def control(brownian, *, target_std: float) -> Callable[[Tensor], Tensor]:
    """(E[X_1 | X_t] - X_t) / (nu_1 - nu_t), with E[X_1 | X_t] = Cov / Var of the bridge mixed over X_1."""

    def factor(t: Tensor) -> Tensor:
        nu, total = brownian.variance(t), brownian.std**2
        g = nu / total
        variance = g**2 * target_std**2 + nu * (1 - g)
        expected = torch.where(nu > 0, g * target_std**2 / variance.clamp_min(1e-300), target_std**2 / total)
        left = (total - nu).clamp_min(1e-9)
        return torch.where(nu < total, (expected - 1) / left, 1 / total - 1 / target_std**2)

    return factor
