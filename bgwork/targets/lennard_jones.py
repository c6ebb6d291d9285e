"""Lennard-Jones clusters in a harmonic trap, in torch."""

from __future__ import annotations

from torch import Tensor

from bgwork.targets.pairs import PairTarget


class LennardJones(PairTarget):
    """n Lennard-Jones particles held together by a harmonic trap around their centre.

        u(x) = depth sum_{i<j} (r_min/r)^6 ((r_min/r)^6 - 2) + trap/2 sum_i |x_i - xbar|^2

    In this form two coinciding particles give +inf, not NaN. Source: Koehler, Klein and Noe 2020 (arXiv:2006.02425), with the
    constants that the data of that paper and its successors obey: depth 2, trap 1.

    Args:
        n: number of particles.
        d: dimension of space.
        depth: of the pair well, in kT.
        r_min: distance of the pair minimum, in the system's length unit.
        trap: stiffness of the trap, in kT per squared length unit.
        name: printed with every figure.
    """

    def __init__(self, n: int, d: int = 3, *, depth: float = 2.0, r_min: float = 1.0, trap: float = 1.0,
                 name: str = "lennard-jones") -> None:
        super().__init__(name, n, d, trap=trap)
        self.depth, self.r_min = depth, r_min

    def _pair_energy(self, square: Tensor) -> Tensor:
        s2 = self.r_min**2 / square
        s6 = s2 * s2 * s2
        return self.depth * (s6 * (s6 - 2.0))

    def _pair_slope(self, square: Tensor) -> Tensor:
        inverse = 1.0 / square
        s2 = self.r_min**2 * inverse
        s6 = s2 * s2 * s2
        return (-12.0 * self.depth) * s6 * (s6 - 1.0) * inverse
