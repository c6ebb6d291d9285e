"""Equal-weight mixtures of isotropic Gaussians, the mode-finding benchmark, in torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bgwork.spaces import Euclidean
from bgwork.targets.counting import CountedTarget


class GaussianMixture(CountedTarget):
    """Equal-weight mixture of isotropic Gaussians in R^d, normalised, so that log Z = 0.

        u(x) = -log [ 1/K sum_k N(x; mu_k, std^2) ]

    Args:
        means: [K, d] component means, in the system's length unit.
        std: of every component.
        name: printed with every figure.
    """

    def __init__(self, means: Tensor, *, std: float, name: str = "gaussian-mixture") -> None:
        super().__init__(name, Euclidean(n=1, d=means.shape[1]))
        self.means, self.std = means.double(), std

    @classmethod
    def random(cls, components: int, d: int = 2, *, half_width: float, std: float, seed: int = 0,
               name: str = "gaussian-mixture") -> GaussianMixture:
        """Means uniform in a box, drawn in float32 as published.

            mu = 2 half_width (rand - 1/2)

        Source: Midgley et al. 2023 (FAB, arXiv:2208.01893), GMM-40: 40 components, half_width 40, std softplus(1), seed 0.

        Args:
            components: number of components K.
            d: dimension.
            half_width: of the box, in the system's length unit.
            std: of every component.
            seed: of the stream that torch.manual_seed(seed) starts.
            name: printed with every figure.
        """
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(components, d, generator=generator, dtype=torch.float32)
        return cls((uniform - 0.5) * 2.0 * half_width, std=std, name=name)

    @property
    def log_z(self) -> float:
        """log Z = 0: the mixture is normalised."""
        return 0.0

    def _exponents(self, x: Tensor) -> Tensor:
        """-|x - mu_k|^2 / 2 std^2, [B, K]."""
        return -0.5 * (x - self.means.to(x.device)).square().sum(-1) / self.std**2

    def _energy(self, x: Tensor) -> Tensor:
        components, d = self.means.shape
        log_normaliser = 0.5 * d * math.log(2.0 * math.pi * self.std**2) + math.log(components)
        return log_normaliser - torch.logsumexp(self._exponents(x), -1)

    def _energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.softmax(self._exponents(x), -1) @ self.means.to(x.device)
        return self._energy(x), (x - mean.unsqueeze(1)) / self.std**2

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """Independent exact draws [n, 1, d] float64."""
        component = torch.randint(len(self.means), (n,), generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return (self.means[component] + self.std * noise).unsqueeze(1)
