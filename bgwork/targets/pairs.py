"""Targets made of pair distances: the energy by autograd, and its closed-form gradient, which is quicker.

Separations are laid out [d, pairs, B], batch last, so that taking particles apart copies whole rows and putting forces together is one
matrix product.
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from bgwork.spaces import MeanFree
from bgwork.targets.counting import CountedTarget


class PairTarget(CountedTarget):
    """A sum over pairs i < j of a function of their squared distance, plus a harmonic trap around the centre.

        u(x) = sum_{i<j} e(r_ij^2) + trap/2 sum_i |x_i - xbar|^2,  grad_i u = sum_j s(r_ij^2) (x_i - x_j) + trap (x_i - xbar)

    Subclasses give `_pair_energy` = e and `_pair_slope` = s = e'(r)/r.

    Args:
        name: printed with every figure.
        n: number of particles.
        d: dimension of space.
        trap: stiffness in kT per squared length unit.
    """

    def __init__(self, name: str, n: int, d: int, *, trap: float = 0.0) -> None:
        super().__init__(name, MeanFree(n=n, d=d))
        self.trap = trap
        self._i, self._j = torch.triu_indices(n, n, offset=1)
        rows = torch.arange(len(self._i))
        self._incidence = torch.zeros(n, len(rows), dtype=torch.float64)  # +1 where the particle is the pair's i, -1 where its j
        self._incidence[self._i, rows] = 1.0
        self._incidence[self._j, rows] = -1.0

    @abc.abstractmethod
    def _pair_energy(self, square: Tensor) -> Tensor:
        """e(r^2), elementwise, differentiable."""

    @abc.abstractmethod
    def _pair_slope(self, square: Tensor) -> Tensor:
        """(de/dr) / r as a function of r^2, elementwise."""

    def _separations(self, x: Tensor) -> Tensor:
        """x_i - x_j, [d, pairs, B]; exactly zero where two particles coincide."""
        rows = x.permute(2, 1, 0).contiguous()
        return rows.index_select(1, self._i.to(x.device)) - rows.index_select(1, self._j.to(x.device))

    def _trap_energy(self, centred: Tensor) -> Tensor:
        return 0.5 * self.trap * centred.square().sum((1, 2))

    def _energy(self, x: Tensor) -> Tensor:
        square = self._separations(x).square().sum(0)
        return self._pair_energy(square).sum(0) + self._trap_energy(x - x.mean(1, keepdim=True))

    def _energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r = self._separations(x)
        square = r.square().sum(0)
        centred = x - x.mean(1, keepdim=True)
        u = self._pair_energy(square).sum(0) + self._trap_energy(centred)
        forces = torch.matmul(self._incidence.to(x.device), r * self._pair_slope(square))
        return u, forces.permute(2, 1, 0) + self.trap * centred
