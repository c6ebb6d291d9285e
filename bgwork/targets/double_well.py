"""Particles whose pair distances sit in a double well (DW4 and its relatives), in torch."""

from __future__ import annotations

from torch import Tensor

from bgwork.targets.pairs import PairTarget


class DoubleWell(PairTarget):
    """n particles with a double well in each pair distance.

        u(x) = sum_{i<j} quartic (r - r0)^4 - quadratic (r - r0)^2

    Coinciding particles have a finite energy and a cusp; the gradient there is NaN. Source: Koehler, Klein and Noe 2020
    (arXiv:2006.02425), DW4: n = 4, d = 2, quartic 0.9, quadratic 4, r0 = 4.

    Args:
        n: number of particles.
        d: dimension of space.
        quartic: in kT per length^4.
        quadratic: in kT per length^2; the wells lie at r0 +- sqrt(quadratic / (2 quartic)).
        r0: distance of the barrier top, in the system's length unit.
        name: printed with every figure.
    """

    def __init__(self, n: int, d: int = 2, *, quartic: float = 0.9, quadratic: float = 4.0, r0: float = 4.0,
                 name: str = "double-well") -> None:
        super().__init__(name, n, d)
        self.quartic, self.quadratic, self.r0 = quartic, quadratic, r0

    def _pair_energy(self, square: Tensor) -> Tensor:
        excess = (square.sqrt() - self.r0).square()
        return (self.quartic * excess - self.quadratic) * excess

    def _pair_slope(self, square: Tensor) -> Tensor:
        distance = square.sqrt()
        excess = distance - self.r0
        return (4.0 * self.quartic * excess.square() - 2.0 * self.quadratic) * excess / distance
