"""Independent double wells in the plane, one for each pair of coordinates: 2^n modes with a known log Z, in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from bgwork.spaces import Euclidean
from bgwork.targets.counting import CountedTarget

REACH, CELLS = 5.0, 200_000  # of the table that the double well is drawn from


class ManyWell(CountedTarget):
    """n planar double wells.

        u(x, y) = sum_i quartic x_i^4 - quadratic x_i^2 - tilt x_i + y_i^2 / 2

    Source: Midgley et al. 2023 (FAB, arXiv:2208.01893), ManyWell-32: n = 16, quartic 1, quadratic 6, tilt 0.5, after Noe et al. 2019.

    Args:
        n: number of wells.
        quartic: in kT per length^4.
        quadratic: in kT per length^2.
        tilt: in kT per length, which makes the right well the deeper one.
        name: printed with every figure.
    """

    def __init__(self, n: int = 16, *, quartic: float = 1.0, quadratic: float = 6.0, tilt: float = 0.5, name: str = "many-well") -> None:
        super().__init__(name, Euclidean(n=n, d=2))
        self.quartic, self.quadratic, self.tilt = quartic, quadratic, tilt

    @property
    def log_z(self) -> float:
        """n (log int exp(-u(x)) dx + log(2 pi) / 2), by quadrature, in the system's length unit."""
        grid, mass = self._table()
        one = mass.sum().log() + (grid[1] - grid[0]).log() + 0.5 * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
        return self.space.n * one.item()

    def _well(self, x: Tensor) -> Tensor:
        return (self.quartic * x.square() - self.quadratic) * x.square() - self.tilt * x

    def _energy(self, x: Tensor) -> Tensor:
        return (self._well(x[..., 0]) + 0.5 * x[..., 1].square()).sum(1)

    def _energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        slope = (4 * self.quartic * x[..., 0].square() - 2 * self.quadratic) * x[..., 0] - self.tilt
        return self._energy(x), torch.stack([slope, x[..., 1]], -1)

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """Independent draws [n, space.n, 2] float64: x by the inverse of a finely tabulated cumulative distribution, y normal."""
        grid, mass = self._table()
        share = torch.rand(n, self.space.n, generator=generator, dtype=torch.float64)
        cell = torch.searchsorted(mass.cumsum(0) / mass.sum(), share).clamp_max(CELLS - 1)
        within = torch.rand(n, self.space.n, generator=generator, dtype=torch.float64) - 0.5
        x = grid[cell] + within * (grid[1] - grid[0])
        return torch.stack([x, torch.randn(n, self.space.n, generator=generator, dtype=torch.float64)], -1)

    def _table(self) -> tuple[Tensor, Tensor]:
        """Midpoints of the cells and exp(-u) there, [CELLS] each."""
        edges = torch.linspace(-REACH, REACH, CELLS + 1, dtype=torch.float64)
        grid = 0.5 * (edges[1:] + edges[:-1])
        return grid, torch.exp(-self._well(grid))
