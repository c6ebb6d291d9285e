"""An energy of one's own, handed over as a plain function of torch tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bgwork.spaces import Space
from bgwork.targets.counting import CountedTarget

REMEDY = "write it in torch, or derive a class from CountedTarget that gives _energy_and_grad too"


class FunctionTarget(CountedTarget):
    """A reduced energy given by a function, with gradients by autograd and counted evaluations.

    Args:
        function: u(x), from x [B, n, d] float64 to [B] in kT, each row's energy a matter of that row alone.
        space: of the configurations.
        name: printed with every figure.
    Raises:
        ValueError: if the function is none; when evaluated, if it returns no tensor, not one number for each configuration, or nothing
            that a gradient can be taken of.

    Example:
        >>> target = FunctionTarget(lambda x: x.square().sum((1, 2)) / 2, space=Euclidean(n=1, d=2), name="gaussian")
        >>> target.u(torch.ones(3, 1, 2))
        tensor([1., 1., 1.], dtype=torch.float64)
    """

    def __init__(self, function: Callable[[Tensor], Tensor], *, space: Space, name: str) -> None:
        if not callable(function):
            raise ValueError(f"{name}: the energy must be a function of x [B, n, d], got {function!r}")
        super().__init__(name, space)
        self.function = function

    def _energy(self, x: Tensor) -> Tensor:
        u = self.function(x)
        if not isinstance(u, Tensor):
            raise ValueError(f"{self.name}: the function returned a {type(u).__name__}, not a torch tensor; {REMEDY}")
        self._check_energy(u, x)
        if x.requires_grad and torch.is_grad_enabled() and not u.requires_grad:
            raise ValueError(f"{self.name}: the function's energy has no gradient with respect to x "
                             f"(computed outside torch, or detached?); {REMEDY}")
        return u.double()
