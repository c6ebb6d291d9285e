"""The base of every target: shape checks, float64 results and counted evaluations; and a meter for any target."""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from bgwork.protocols import Target
from bgwork.spaces import Space


class CountedTarget(abc.ABC):
    """A reduced energy whose evaluations are counted per configuration.

    Subclasses give `_energy` (and `_energy_and_grad`, if a closed form is quicker than autograd). A call of `u` on a tensor that
    requires a gradient counts as energy+gradient, because that is what it will cost.

    Args:
        name: printed with every figure.
        space: the space of the configurations.

    Attributes:
        n_energy: single-configuration energy evaluations so far.
        n_gradient: single-configuration energy+gradient evaluations so far.
        n_nan: energies so far that came out NaN (a failed evaluation; +inf is not a failure).
        batch: configurations evaluated at once where no graph is kept, which bounds the memory.
    """

    batch = 4096

    def __init__(self, name: str, space: Space) -> None:
        self.name = name
        self.space = space
        self.n_energy = 0
        self.n_gradient = 0
        self.n_nan = 0

    @abc.abstractmethod
    def _energy(self, x: Tensor) -> Tensor:
        """Reduced energy [B] of x [B, n, d] float64, differentiable."""

    def _energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reduced energy [B] and gradient [B, n, d] of x float64, by autograd unless overridden."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            u = self._energy(leaf)
            if not u.requires_grad:
                raise ValueError(f"{self.name}: the energy has no gradient with respect to x (computed outside torch, or detached?); "
                                 "write _energy in torch, or give _energy_and_grad")
            (grad,) = torch.autograd.grad(u.sum(), leaf)
        return u.detach(), grad

    def u(self, x: Tensor) -> Tensor:
        """Reduced energy, differentiable with respect to x.

        Args:
            x: configurations [B, n, d], any real dtype, in the system's length unit.
        Returns:
            u [B] float64 in kT; +inf where particles overlap, NaN where the evaluation failed or x holds a NaN.
        Raises:
            ValueError: if x does not have the shape of the target's space, or the energy is not one number for each configuration.
        """
        self._check_shape(x)
        if x.requires_grad and torch.is_grad_enabled():
            self.n_gradient += len(x)
            u = self._energy(x.double())
        else:
            self.n_energy += len(x)
            u = torch.cat([self._energy(part) for part in x.detach().double().split(self.batch)])
        self._check_energy(u, x)
        self.n_nan += int(torch.isnan(u.detach()).sum())
        return u

    def u_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reduced energy [B] in kT and its gradient [B, n, d] in kT per length unit, both float64 and detached.

        Where u is not finite there is no gradient: it is NaN.

        Raises:
            ValueError: if x does not have the shape of the target's space, the energy is not one number for each configuration, or it has
                no gradient.
        """
        self._check_shape(x)
        self.n_gradient += len(x)
        with torch.no_grad():
            parts = [self._energy_and_grad(part) for part in x.detach().double().split(self.batch)]
        u, grad = torch.cat([u for u, _ in parts]), torch.cat([grad for _, grad in parts])
        self._check_energy(u, x)
        self.n_nan += int(torch.isnan(u).sum())
        return u, torch.where(torch.isfinite(u)[:, None, None], grad, torch.nan)

    def _check_shape(self, x: Tensor) -> None:
        if x.ndim != 3 or tuple(x.shape[1:]) != (self.space.n, self.space.d):
            raise ValueError(f"{self.name}: x has shape {tuple(x.shape)}, expected [B, {self.space.n}, {self.space.d}]")

    def _check_energy(self, u: Tensor, x: Tensor) -> None:
        if u.shape != x.shape[:1]:
            raise ValueError(f"{self.name} returned an energy of shape {tuple(u.shape)} for x of shape {tuple(x.shape)}; it must be [B]")


def check_target(target: Target) -> None:
    """Raise ValueError naming what an object lacks that a target needs."""
    lacking = [name for name in ("u", "u_and_grad", "space", "name") if not hasattr(target, name)]
    if lacking:
        raise ValueError(f"{type(target).__name__} lacks {', '.join(lacking)}; derive it from CountedTarget, which adds the gradient")


class Metered:
    """A target seen through a meter of its own: what one training or one baseline has spent, whoever else uses the target.

    Args:
        target: any target; its own counters go on as well.

    Attributes:
        n_energy: configurations whose energy was asked for.
        n_gradient: configurations whose energy and gradient were asked for.
    """

    def __init__(self, target: Target) -> None:
        check_target(target)
        self.target, self.name, self.space = target, target.name, target.space
        self.n_energy = 0
        self.n_gradient = 0

    def u(self, x: Tensor) -> Tensor:
        """`Target.u`, metered as a gradient where one will be taken."""
        if x.requires_grad and torch.is_grad_enabled():
            self.n_gradient += len(x)
        else:
            self.n_energy += len(x)
        return self.target.u(x)

    def u_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`Target.u_and_grad`, metered."""
        self.n_gradient += len(x)
        return self.target.u_and_grad(x)
