"""Particles whose pair distances sit in a double well (DW4 and its relatives), in torch."""

from __future__ import annotations

from torch import Tensor

from bgwork.spaces import MeanFree
from bgwork.targets.counting import CountedTarget
from bgwork.targets.pairs import Pairs


class DoubleWell(CountedTarget):
    """n particles with a double well in each pair distance.

        u(x) = sum_{i<j} quartic (r - r0)^4 - quadratic (r - r0)^2

    Source: Koehler, Klein and Noe 2020 (arXiv:2006.02425), DW4: n = 4, d = 2, quartic 0.9, quadratic 4, r0 = 4.

    Args:
        n: number of particles.
        d: dimension of space.
        quartic: in kT per length^4.
        quadratic: in kT per length^2; the wells lie at r0 +- sqrt(quadratic / (2 quartic)).
        r0: distance of the barrier top, in the system's length unit.
        name: printed with every figure.
    """

    def __init__(self, n: int, d: int = 2, *, quartic: float = 0.9, quadratic: float = 4.0, r0: float = 4.0, name: str = "double-well") -> None:
        super().__init__(name, MeanFree(n=n, d=d))
        self.quartic, self.quadratic, self.r0 = quartic, quadratic, r0
        self._pairs = Pairs(n)

    def _energy(self, x: Tensor) -> Tensor:
        square = (self._pairs.separations(x).norm(dim=-1) - self.r0) ** 2
        return ((self.quartic * square - self.quadratic) * square).sum(-1)

    def _energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r = self._pairs.separations(x)
        distance = r.norm(dim=-1)
        excess = distance - self.r0
        square = excess * excess
        u = ((self.quartic * square - self.quadratic) * square).sum(-1)
        slope = (4.0 * self.quartic * square - 2.0 * self.quadratic) * excess
        direction = r / distance.clamp_min(1e-300).unsqueeze(-1)  # the zero vector at r = 0, like the subgradient of autograd
        return u, self._pairs.to_particles(slope.unsqueeze(-1) * direction)
