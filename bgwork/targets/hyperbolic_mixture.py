"""Mixtures of Riemannian Gaussians on hyperbolic space of any dimension, with log Z and exact samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bgwork.curved import Hyperboloid
from bgwork.priors import tangent_noise
from bgwork.targets.counting import CountedTarget


class HyperbolicMixture(CountedTarget):
    """Mixture of Riemannian Gaussians on H^m (curvature -1), r the geodesic distance.

        u(x) = -log sum_k a_k exp[-r(x, mu_k)^2 / 2 std^2],    log Z = log sum_k a_k + log Z(std),
        Z(std) = area(S^(m-1)) int_0^inf exp(-r^2 / 2 std^2) sinh(r)^(m-1) dr, a sum of Gaussian integrals

    Source: Said, Bombrun and Berthoumieu 2014, Entropy 16:4015, section 3.

    Args:
        means: [K, m + 1] points of the hyperboloid.
        std: of every component.
        heights: [K] positive a_k.
        name: printed with every figure.
    """

    def __init__(self, means: Tensor, *, std: float, heights: Tensor, name: str = "hyperbolic-mixture") -> None:
        super().__init__(name, Hyperboloid(n=1, d=means.shape[-1]))
        self.space.check(means[:, None])
        if heights.shape != (len(means),) or not (heights > 0).all() or not std > 0:
            raise ValueError(f"std and {len(means)} heights must be positive, got std = {std} and heights = {heights.tolist()}")
        self.means, self.std, self.heights = self.space.project(means.double()), std, heights.double()

    @classmethod
    def ring(cls, components: int, m: int = 2, *, radius: float, std: float, name: str = "hyperbolic-mixture") -> HyperbolicMixture:
        """Means at one distance from the origin, equally spaced on a great circle, with heights 1, 2, ..., K.

        Args:
            components: K.
            m: dimension.
            radius: geodesic distance of the means from the origin.
            std: of every component.
            name: printed with every figure.
        """
        angle = 2 * math.pi * torch.arange(components, dtype=torch.float64) / components
        place = torch.zeros(components, m, dtype=torch.float64)
        place[:, 0], place[:, 1] = math.sinh(radius) * torch.cos(angle), math.sinh(radius) * torch.sin(angle)
        means = torch.cat([(1 + place.square().sum(1, keepdim=True)).sqrt(), place], 1)
        return cls(means, std=std, heights=1 + torch.arange(components, dtype=torch.float64), name=name)

    @property
    def log_z(self) -> float:
        """Log of the integral of exp(-u) over hyperbolic space."""
        m = self.space.m
        area = math.log(2) + m / 2 * math.log(math.pi) - math.lgamma(m / 2)
        return self.heights.sum().log().item() + area + math.log(_radial_integral(self.std, m))

    def _exponents(self, x: Tensor) -> Tensor:
        """log a_k - r_k^2 / 2 std^2, [B, K]."""
        r = self.space.angle(x, self.means)
        return self.heights.log() - 0.5 * r.square() / self.std**2

    def _energy(self, x: Tensor) -> Tensor:
        return -torch.logsumexp(self._exponents(x), 1)

    def _energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient as partial derivatives whose Riemannian gradient (`Space.gradient`) is -sum_k p_k log_x(mu_k) / std^2."""
        exponents = self._exponents(x)
        gradient = -torch.einsum("bk,bkd->bd", torch.softmax(exponents, 1), self.space.log(x, self.means[None])) / self.std**2
        derivative = torch.cat([-gradient[:, :1], gradient[:, 1:]], 1)
        return -torch.logsumexp(exponents, 1), derivative[:, None]

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """Independent draws [n, 1, m + 1] float64: directions uniform, radii by inverting their distribution on a fine grid."""
        component = torch.multinomial(self.heights, n, replacement=True, generator=generator)
        mean = self.means[component][:, None]
        v = tangent_noise(self.space, mean, generator=generator)
        return self.space.exp(mean, v / self.space.square(v).sqrt()[..., None] * self._radii(n, generator=generator)[:, None, None])

    def _radii(self, n: int, *, generator: torch.Generator) -> Tensor:
        m, s = self.space.m, self.std
        grid = torch.linspace(0, (m - 1) * s**2 + 10 * s, 100_001, dtype=torch.float64)
        density = torch.exp(-0.5 * grid.square() / s**2) * torch.sinh(grid) ** (m - 1)
        cumulative = torch.cat([grid.new_zeros(1), torch.cumsum((density[1:] + density[:-1]) / 2, 0)])
        quantile = cumulative[-1] * torch.rand(n, generator=generator, dtype=torch.float64)
        right = torch.searchsorted(cumulative, quantile).clamp(1, len(grid) - 1)
        part = (quantile - cumulative[right - 1]) / (cumulative[right] - cumulative[right - 1]).clamp_min(1e-300)
        return grid[right - 1] + part * grid[1]


def _radial_integral(std: float, m: int) -> float:
    """int_0^inf exp(-r^2 / 2 std^2) sinh(r)^(m-1) dr, by the binomial expansion of sinh."""
    total = 0.0
    for j in range(m):
        a = (m - 1 - 2 * j) * std
        term = std * math.sqrt(math.pi / 2) * math.exp(a * a / 2) * math.erfc(-a / math.sqrt(2))
        total += (-1) ** j * math.comb(m - 1, j) * term
    return total / 2 ** (m - 1)
