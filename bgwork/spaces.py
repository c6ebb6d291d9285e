"""The spaces that configurations live on: dimension, projection, what volume means on each, and their geodesics.

Configurations are always [B, n, d], tangent vectors too. On `MeanFree` space every density is with respect to Lebesgue measure of the
(n-1)d-dimensional subspace in orthonormal coordinates. Spheres and hyperboloids are in `bgwork.curved`.

A space is a product of *factors* that geodesics move in independently: the whole of a flat space, each of the n points on a sphere or
hyperboloid, each angle of a torus. Quantities per factor end in an axis F.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Space(abc.ABC):
    """A space of configurations of n particles in d dimensions.

    Points x, y and tangent vectors v are [B, n, d]; vectors may have further axes in front. The defaults are those of a flat space.
    """

    n: int
    d: int

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Dimension of the volume that densities refer to."""

    @abc.abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """Nearest point of the space, [B, n, d]."""

    def check(self, x: Tensor) -> None:
        """Raise ValueError if x is not a batch of configurations [B, n, d] of this space (to 1e-4)."""
        if x.ndim != 3 or tuple(x.shape[1:]) != (self.n, self.d):
            raise ValueError(f"x has shape {tuple(x.shape)}, expected [B, {self.n}, {self.d}]")
        finite = x[torch.isfinite(x).flatten(1).all(1)]
        off = (finite - self.project(finite)).abs().amax().item() if len(finite) else 0.0
        if off > 1e-4:
            raise ValueError(f"x is {off:.3g} away from {self}; apply space.project(x) first")

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        """Orthogonal projection of an ambient vector onto the tangent space at x."""
        return self.project(v)

    def lift(self, x: Tensor, w: Tensor) -> Tensor:
        """A tangent vector at x made of any numbers w [B, n, d]: standard Gaussian if they are, and onto."""
        return self.tangent(x, w)

    def coordinates(self, x: Tensor) -> Tensor:
        """Numbers [B, n, d] that tell points apart and grow no faster than distances: the input of networks."""
        return x

    def gradient(self, x: Tensor, derivative: Tensor) -> Tensor:
        """Riemannian gradient at x of a function with these partial derivatives in ambient coordinates."""
        return self.tangent(x, derivative)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """End of the geodesic that leaves x with velocity v, after unit time."""
        return x + v

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The shortest v with exp(x, v) = y."""
        return y - x

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Parallel transport of v from x to y along the shortest geodesic."""
        return v

    def square(self, v: Tensor) -> Tensor:
        """Squared length of a tangent vector in each factor, [..., B, F]."""
        return v.square().sum((-2, -1))[..., None]

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Geodesic distance [B]."""
        return self.square(self.log(x, y)).sum(-1).sqrt()

    def images(self, v: Tensor, reach: float) -> Tensor:
        """Every v' with exp(x, v') = exp(x, v), up to length `reach` and somewhat beyond, factor by factor, [K, ..., B, n, d]."""
        return v[None]

    def log_exp_det(self, v: Tensor) -> Tensor:
        """Log of the volume element of v -> exp(x, v) in each factor, [..., B, F]."""
        return torch.zeros_like(self.square(v))


@dataclass(frozen=True, kw_only=True)
class Euclidean(Space):
    """R^(n d)."""

    @property
    def dim(self) -> int:
        return self.n * self.d

    def project(self, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True, kw_only=True)
class MeanFree(Space):
    """Configurations whose centre of geometry is the origin: a subspace of dimension (n-1)d."""

    @property
    def dim(self) -> int:
        return (self.n - 1) * self.d

    def project(self, x: Tensor) -> Tensor:
        return x - x.mean(-2, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class Torus(Space):
    """n d angles in [-pi, pi), radians. Any real number is an angle; `project` gives its representative."""

    @property
    def dim(self) -> int:
        return self.n * self.d

    @property
    def log_volume(self) -> float:
        """Log of the volume of the whole space."""
        return self.dim * math.log(2 * math.pi)

    def project(self, x: Tensor) -> Tensor:
        return torch.remainder(x + math.pi, 2 * math.pi) - math.pi

    def check(self, x: Tensor) -> None:
        """Raise ValueError if x is not [B, n, d]."""
        if x.ndim != 3 or tuple(x.shape[1:]) != (self.n, self.d):
            raise ValueError(f"x has shape {tuple(x.shape)}, expected [B, {self.n}, {self.d}]")

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return v

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.project(x + v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return self.project(y - x)

    def square(self, v: Tensor) -> Tensor:
        return v.square().flatten(-2)

    def images(self, v: Tensor, reach: float) -> Tensor:
        return v + windings(reach / (2 * math.pi), v) * 2 * math.pi


MOST_TURNS = 500


def windings(turns: float, v: Tensor) -> Tensor:
    """Whole numbers -K..K that reach at least one beyond `turns`, [K', 1, ..., 1] to broadcast with v."""
    if turns > MOST_TURNS:
        raise ValueError(f"a step that winds {turns:.0f} times around the space; take shorter steps, or a smaller drift")
    most = math.ceil(turns) + 1
    return torch.arange(-most, most + 1, dtype=v.dtype, device=v.device).view(-1, *[1] * v.ndim)
