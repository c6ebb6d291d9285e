"""Priors: normalised densities that can be sampled directly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bgwork.curved import Hyperboloid, Sphere
from bgwork.protocols import Prior
from bgwork.spaces import Space, Torus


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Isotropic Gaussian on a flat space, normalised on that space's own volume.

    log N(x; 0, s^2) = -|x|^2 / 2 s^2 - dim/2 log(2 pi s^2), with dim = (n-1)d on the mean-free space.

    Args:
        space: Euclidean or MeanFree.
        std: standard deviation s per degree of freedom, in the system's length unit.
    """

    space: Space
    std: float = 1.0

    def __post_init__(self) -> None:
        if not (self.std > 0 and math.isfinite(self.std)):
            raise ValueError(f"the prior's std must be positive and finite, got {self.std}")

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """Draw n configurations, [n, space.n, space.d] float64."""
        z = torch.randn(n, self.space.n, self.space.d, generator=generator, dtype=torch.float64)
        return self.space.project(z) * self.std

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density [B] float64 with respect to the volume of the space."""
        x = x.double()
        square = (x * x).sum((1, 2))
        return -0.5 * square / self.std**2 - 0.5 * self.space.dim * math.log(2 * math.pi * self.std**2)


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """The constant density on a space of finite volume.

    Args:
        space: Sphere or Torus.
    """

    space: Space

    def __post_init__(self) -> None:
        if not hasattr(self.space, "log_volume"):
            raise ValueError(f"{self.space} has infinite volume and no uniform density; take a Gaussian or WrappedNormal prior")

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """Draw n configurations, [n, space.n, space.d] float64."""
        shape = (n, self.space.n, self.space.d)
        if isinstance(self.space, Torus):
            return self.space.project(2 * math.pi * torch.rand(shape, generator=generator, dtype=torch.float64))
        return self.space.project(torch.randn(shape, generator=generator, dtype=torch.float64))

    def log_prob(self, x: Tensor) -> Tensor:
        """-log volume, [B] float64."""
        return torch.full((len(x),), -self.space.log_volume, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class WrappedNormal:
    """x = exp_mean(v), v an isotropic Gaussian of the tangent space at the mean; the density as in `wrapped_normal_log_prob`.

    Source: Nagano et al. 2019 (arXiv:1902.02992) for hyperbolic space.

    Args:
        space: any; on a flat one this is a Gaussian around the mean.
        mean: [n, d], a point of the space.
        std: standard deviation of every tangent coordinate, in the system's length unit.
    """

    space: Space
    mean: Tensor
    std: float

    def __post_init__(self) -> None:
        if not (self.std > 0 and math.isfinite(self.std)):
            raise ValueError(f"the prior's std must be positive and finite, got {self.std}")
        self.space.check(self.mean[None])

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """Draw n configurations, [n, space.n, space.d] float64."""
        mean = self._means(n)
        return self.space.exp(mean, self.std * tangent_noise(self.space, mean, generator=generator))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density [B] float64 with respect to the volume of the space."""
        mean = self._means(len(x))
        return wrapped_normal_log_prob(self.space, mean, x.double(), torch.zeros_like(mean), std=self.std)

    def _means(self, n: int) -> Tensor:
        return self.space.project(self.mean.double()).expand(n, -1, -1)


def prior_on(space: Space, std: float | None) -> Prior:
    """Where generators start on a space: uniform on a sphere or torus, on a hyperboloid a wrapped normal around the origin, else Gaussian.

    Args:
        space: of the prior.
        std: per degree of freedom, in the length unit; None on a sphere or torus, where there is nothing to choose.
    Raises:
        ValueError: if std is missing, or given on a sphere or torus.
    """
    if isinstance(space, Sphere | Torus):
        if std is not None:
            raise ValueError(f"the prior on {space} is uniform; leave out its std, got {std}")
        return Uniform(space=space)
    if std is None:
        raise ValueError(f"the prior on {space} needs a standard deviation; give std")
    if isinstance(space, Hyperboloid):
        return WrappedNormal(space=space, mean=space.origin(torch.zeros(space.n, space.d, dtype=torch.float64)), std=std)
    return Gaussian(space=space, std=std)


def tangent_noise(space: Space, x: Tensor, *, generator: torch.Generator) -> Tensor:
    """Standard Gaussian vectors of the tangent spaces at x, [B, n, d] float64."""
    return space.lift(x, torch.randn(x.shape, generator=generator, dtype=torch.float64))


def wrapped_normal_log_prob(space: Space, x: Tensor, y: Tensor, mean: Tensor, *, std: float) -> Tensor:
    """Log-density at y of exp_x(v), v ~ N(mean, std^2) on the tangent space at x: a geodesic random walk's kernel.

    q(y) = sum_v N(v; mean, std^2) / |det D exp_x(v)| over all v with exp_x(v) = y, factor by factor; on spheres and tori there are
    infinitely many, of which those are left out whose Gaussian is beyond 10 std from its centre at any y.

    Args:
        space: where x and y live.
        x, y: [B, n, d] float64.
        mean: [B, n, d] tangent at x.
        std: of every tangent coordinate.
    Returns:
        [B] float64; NaN where y is exactly antipodal to x on a sphere.
    Raises:
        ValueError: if the mean or std is so long that it winds hundreds of times around a sphere or torus.
    """
    drift = space.square(mean)
    reach = drift[torch.isfinite(drift)].amax().sqrt().item() + 10 * std if torch.isfinite(drift).any() else 0.0
    v = space.images(space.log(x, y), reach)
    square = space.square(v - mean)
    exponent = torch.where(square.isinf(), -torch.inf, -0.5 * square / std**2 - space.log_exp_det(v))
    return torch.logsumexp(exponent, 0).sum(-1) - 0.5 * space.dim * math.log(2 * math.pi * std**2)


def image_shares(space: Torus, x: Tensor, *, variance: float) -> tuple[Tensor, Tensor]:
    """Images x + 2 pi k [K, B, n, d] of angles and their probabilities under N(0, variance), each angle's summing to one."""
    images = space.images(space.project(x), 10 * math.sqrt(variance))
    return images, torch.softmax(-0.5 * images.square() / variance, 0)
