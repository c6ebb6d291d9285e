"""The gradient of an energy that an outside engine computes, for autograd."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class HasGradient(Protocol):
    """What `OutsideEnergy` needs of a target."""

    def _energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


class OutsideEnergy(torch.autograd.Function):
    """u(x) with the engine's own gradient; where u is not finite there is none, and it is NaN. Differentiable once."""

    @staticmethod
    def forward(ctx, x: Tensor, target: HasGradient) -> Tensor:
        u, grad = target._energy_and_grad(x)
        ctx.save_for_backward(torch.where(torch.isfinite(u)[:, None, None], grad, torch.nan))
        return u

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None]:
        (grad,) = ctx.saved_tensors
        return upstream[:, None, None] * grad, None
