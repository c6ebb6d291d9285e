"""Lennard-Jones clusters in a harmonic trap, in torch."""

from __future__ import annotations

from torch import Tensor

from bgwork.spaces import MeanFree
from bgwork.targets.counting import CountedTarget
from bgwork.targets.pairs import Pairs


class LennardJones(CountedTarget):
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

    def __init__(self, n: int, d: int = 3, *, depth: float = 2.0, r_min: float = 1.0, trap: float = 1.0, name: str = "lennard-jones") -> None:
        super().__init__(name, MeanFree(n=n, d=d))
        self.depth, self.r_min, self.trap = depth, r_min, trap
        self._pairs = Pairs(n)

    def _energy(self, x: Tensor) -> Tensor:
        r = self._pairs.separations(x)
        s6 = (self.r_min**2 / (r * r).sum(-1)) ** 3
        centred = x - x.mean(1, keepdim=True)
        return self.depth * (s6 * (s6 - 2.0)).sum(-1) + 0.5 * self.trap * (centred * centred).sum((1, 2))

    def _energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r = self._pairs.separations(x)
        inverse = 1.0 / (r * r).sum(-1)
        s6 = (self.r_min**2 * inverse) ** 3
        centred = x - x.mean(1, keepdim=True)
        u = self.depth * (s6 * (s6 - 2.0)).sum(-1) + 0.5 * self.trap * (centred * centred).sum((1, 2))
        slope = (-12.0 * self.depth) * s6 * (s6 - 1.0) * inverse  # (du_pair/dr) / r
        return u, self._pairs.to_particles(slope.unsqueeze(-1) * r) + self.trap * centred
