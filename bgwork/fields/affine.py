"""A field seen in other coordinates: scaled input, scaled output, a linear part, another clock; its Jacobian stays in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bgwork.protocols import Field
from bgwork.spaces import Space


class AffineCoefficients(NamedTuple):
    """a, b, c, tau of `Affine` at some times, each of the shape of t."""

    keep: Tensor
    gain: Tensor
    scale: Tensor
    time: Tensor


class Affine(nn.Module):
    """v(t, x) = a(t) P x + b(t) F(tau(t), c(t) x), P the projection onto the space; dv/dx = a P + b c F'(tau, c x).

    Preconditioned networks and probability-flow velocities are of this form.

    Args:
        inner: the field F.
        space: flat space of the configurations.
        coefficients: t -> a, b, c, tau, each of the shape of t.
    """

    def __init__(self, inner: Field, space: Space, coefficients: Callable[[Tensor], AffineCoefficients]) -> None:
        super().__init__()
        self.inner, self.space, self.coefficients = inner, space, coefficients
        self.n, self.d = inner.n, inner.d

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """v [B, n, d] in the inner field's dtype; t is a scalar or [B]."""
        keep, gain, scale, time = self._at(t, x)
        value = self.inner(time, scale * x)
        return self._combined(keep * self.space.project(x), gain, value)

    def value_and_divergence(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """v [B, n, d] and its divergence [B], exact."""
        keep, gain, scale, time = self._at(t, x)
        value, divergence = self.inner.value_and_divergence(time, scale * x)
        v = self._combined(keep * self.space.project(x), gain, value)
        return v, (keep * self.space.dim).flatten().to(v) + (gain * scale).flatten().to(v) * divergence

    def value_and_jacobian(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """v [B, n, d] and J[b, ia, jb] [B, nd, nd], exact."""
        keep, gain, scale, time = self._at(t, x)
        value, jacobian = self.inner.value_and_jacobian(time, scale * x)
        size = self.n * self.d
        projection = self.space.project(torch.eye(size, dtype=jacobian.dtype).view(size, self.n, self.d)).flatten(1)
        v = self._combined(keep * self.space.project(x), gain, value)
        return v, keep.to(v) * projection + (gain * scale).to(v) * jacobian

    def _at(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """a, b, c as [B, 1, 1] or [1, 1, 1], and tau of the shape of t."""
        t = torch.as_tensor(t, device=x.device)
        keep, gain, scale, time = self.coefficients(t)
        return *(c.reshape(-1, 1, 1) for c in (keep, gain, scale)), time

    @staticmethod
    def _combined(linear: Tensor, gain: Tensor, value: Tensor) -> Tensor:
        return linear.to(value) + gain.to(value) * value
