"""Mixtures of von Mises-Fisher distributions on spheres of any dimension, with log Z and exact samples."""

from __future__ import annotations

import math

import torch
from scipy.special import ive
from torch import Tensor

from bgwork.curved import Sphere
from bgwork.targets.counting import CountedTarget


class VonMisesFisherMixture(CountedTarget):
    """Mixture of von Mises-Fisher distributions on the unit sphere S^m in R^d, d = m + 1.

        u(x) = -log sum_k a_k exp[c_k (mu_k . x - 1)],    log Z = log sum_k a_k Z(c_k),
        Z(c) = (2 pi)^(d/2) exp(-c) I_(d/2-1)(c) / c^(d/2-1)

    Source: Mardia and Jupp 2000, Directional Statistics, section 9.3.2.

    Args:
        means: [K, d] directions mu_k, scaled to unit length.
        concentrations: [K] positive c_k.
        heights: [K] positive a_k, the peak of exp(-u) where components do not overlap.
        name: printed with every figure.
    """

    def __init__(self, means: Tensor, concentrations: Tensor, heights: Tensor, *, name: str = "von-mises-fisher") -> None:
        if not (means.ndim == 2 and concentrations.shape == heights.shape == (len(means),)):
            raise ValueError(f"means [K, d] need K concentrations and K heights, got shapes {tuple(means.shape)}, "
                             f"{tuple(concentrations.shape)}, {tuple(heights.shape)}")
        if not ((concentrations > 0).all() and (heights > 0).all()):
            raise ValueError(f"concentrations and heights must be positive, got {concentrations.tolist()} and {heights.tolist()}")
        super().__init__(name, Sphere(n=1, d=means.shape[1]))
        self.means = self.space.project(means.double())
        self.concentrations, self.heights = concentrations.double(), heights.double()

    @classmethod
    def random(cls, components: int, d: int, *, concentration: float, seed: int = 0,
               name: str = "von-mises-fisher") -> VonMisesFisherMixture:
        """Uniform directions, concentrations between one and two times the given one, heights between 1/2 and 1.

        Args:
            components: K.
            d: ambient dimension m + 1.
            concentration: the smallest c_k possible.
            seed: of everything drawn.
            name: printed with every figure.
        """
        generator = torch.Generator().manual_seed(seed)
        means = torch.randn(components, d, generator=generator, dtype=torch.float64)
        first, second = torch.rand(2, components, generator=generator, dtype=torch.float64)
        return cls(means, concentration * (1 + first), (1 + second) / 2, name=name)

    @property
    def log_masses(self) -> Tensor:
        """log[a_k Z(c_k)], [K]: each component's share of Z."""
        d, c = self.space.d, self.concentrations
        bessel = torch.from_numpy(ive(d / 2 - 1, c.numpy()))
        return self.heights.log() + d / 2 * math.log(2 * math.pi) + bessel.log() - (d / 2 - 1) * c.log()

    @property
    def log_z(self) -> float:
        """Log of the integral of exp(-u) over the sphere."""
        return torch.logsumexp(self.log_masses, 0).item()

    def _energy(self, x: Tensor) -> Tensor:
        return -torch.logsumexp(self.heights.log() + self.concentrations * (x[:, 0] @ self.means.T - 1), 1)

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """Independent exact draws [n, 1, d] float64."""
        component = torch.multinomial(torch.softmax(self.log_masses, 0), n, replacement=True, generator=generator)
        return sample_von_mises_fisher(self.means[component], self.concentrations[component], generator=generator)[:, None]


def sample_von_mises_fisher(mean: Tensor, concentration: Tensor, *, generator: torch.Generator) -> Tensor:
    """Exact draws [N, d] from exp(c mu . x) on the unit sphere, one for each unit vector mu [N, d] and c [N] (Wood 1994, algorithm VM*)."""
    cosine = _cosines(concentration, mean.shape[1] - 1, generator=generator)[:, None]
    noise = torch.randn(mean.shape, generator=generator, dtype=torch.float64)
    across = noise - (noise * mean).sum(1, keepdim=True) * mean
    x = cosine * mean + (1 - cosine.square()).sqrt() * across / across.norm(dim=1, keepdim=True)
    return x / x.norm(dim=1, keepdim=True)


def _cosines(c: Tensor, m: int, *, generator: torch.Generator) -> Tensor:
    """Draws of mu . x with density proportional to exp(c w) (1 - w^2)^(m/2 - 1), one for each c [N]."""
    b = m / (2 * c + (4 * c.square() + m**2).sqrt())
    x0 = (1 - b) / (1 + b)
    bound = c * x0 + m * (1 - x0.square()).log()
    w, missing = torch.full_like(c, math.nan), torch.ones(len(c), dtype=torch.bool)
    while missing.any():
        count = int(missing.sum())
        gamma = torch._standard_gamma(torch.full((2, count), m / 2, dtype=torch.float64), generator=generator)
        z, u = gamma[0] / gamma.sum(0), torch.rand(count, generator=generator, dtype=torch.float64)
        b_, x0_, c_ = b[missing], x0[missing], c[missing]
        trial = (1 - (1 + b_) * z) / (1 - (1 - b_) * z)
        accept = c_ * trial + m * (1 - x0_ * trial).log() - bound[missing] >= u.log()
        rows = missing.nonzero().flatten()[accept]
        w[rows], missing[rows] = trial[accept], False
    return w
