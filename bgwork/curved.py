"""Spheres and hyperbolic spaces: points in ambient coordinates [B, n, d], d = m + 1, densities with respect to the Riemannian volume."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bgwork.spaces import Space, windings


@dataclass(frozen=True, kw_only=True)
class ConstantCurvature(Space):
    """n points, each on a space of constant curvature kappa and dimension m = d - 1, embedded in R^d with <x, x> = 1/kappa.

    Source: do Carmo, Riemannian Geometry, chapter 8. Written with differences of points rather than with arccos of their product, so that
    points that nearly coincide, or are nearly antipodal, lose no digits.

    Args:
        n: points.
        d: ambient dimension m + 1.
        curvature: kappa, in 1/length^2.
    """

    curvature: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.curvature) and self.curvature * self._sign > 0):
            kind, side = type(self).__name__, "positive" if self._sign > 0 else "negative"
            raise ValueError(f"a {kind} has finite {side} curvature, got {self.curvature}; curvature 0 is Euclidean(n, d)")
        if self.d < 2 or self.n < 1:
            raise ValueError(f"dimension m = d - 1 and the number of points n must be at least 1, got d = {self.d}, n = {self.n}")

    @property
    @abc.abstractmethod
    def _sign(self) -> float:
        """Sign of the curvature."""

    @property
    def m(self) -> int:
        """Dimension of the space of one point."""
        return self.d - 1

    @property
    def dim(self) -> int:
        return self.n * self.m

    @property
    def scale(self) -> float:
        """s = sqrt|kappa|, one over the radius of curvature."""
        return math.sqrt(abs(self.curvature))

    @abc.abstractmethod
    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        """Ambient product <a, b>, [..., B, n]."""

    @abc.abstractmethod
    def angle(self, x: Tensor, y: Tensor) -> Tensor:
        """s times the distance of each pair of points, [B, n]."""

    @abc.abstractmethod
    def radius(self, x: Tensor) -> Tensor:
        """s sqrt|<x, x>|, [B, n, 1]: 1 on the space; NaN at ambient points that are no positive multiple of a point of the space."""

    @abc.abstractmethod
    def in_frames(self, x: Tensor, y: Tensor, linear: Tensor) -> Tensor:
        """A linear map of ambient vectors [B, nd, nd] in orthonormal bases of tangent and normal space, at x where it starts and y where
        it ends; the bases have one orientation, so that the determinant stays.
        """

    @abc.abstractmethod
    def sine_ratio(self, angle: Tensor) -> Tensor:
        """sin(angle)/angle if the curvature is positive, sinh(angle)/angle if negative; 1 at 0."""

    @abc.abstractmethod
    def cosine(self, angle: Tensor) -> Tensor:
        """cos(angle) or cosh(angle)."""

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return v - self.curvature * self.inner(x, v)[..., None] * x

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        angle = self.scale * self.square(v).sqrt()[..., None]
        return self.project(self.cosine(angle) * x + self.sine_ratio(angle) * v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The shortest v with exp(x, v) = y; NaN at exactly antipodal points of a sphere, where there are many."""
        across = self._across(x, y)
        angle, length = self.angle(x, y)[..., None], self.square(across).sqrt()[..., None]
        return torch.where(angle == 0, across, across * (angle / (self.scale * length)))

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Reflection of v in the hyperplane orthogonal to x + y."""
        middle = x + y
        return v - (2 * self.inner(middle, v) / self.inner(middle, middle))[..., None] * middle

    def square(self, v: Tensor) -> Tensor:
        return self.inner(v, v).clamp_min(0)  # tangent vectors are spacelike: only round-off is negative

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return self.angle(x, y).square().sum(-1).sqrt() / self.scale

    def log_exp_det(self, v: Tensor) -> Tensor:
        return (self.m - 1) * self.sine_ratio(self.scale * self.square(v).sqrt()).abs().log()

    def _across(self, x: Tensor, y: Tensor) -> Tensor:
        """Component of y that is tangent at x, of length sin(angle)/s or sinh(angle)/s."""
        step = y - x
        return step + (0.5 * self.curvature * self.inner(step, step))[..., None] * x


@dataclass(frozen=True, kw_only=True)
class Sphere(ConstantCurvature):
    """n points on the sphere S^m of radius 1/sqrt(kappa) in R^(m+1).

    Example:
        >>> sphere = Sphere(n=1, d=3)
        >>> north, east = torch.tensor([[[0.0, 0.0, 1.0]]]), torch.tensor([[[1.0, 0.0, 0.0]]])
        >>> sphere.distance(north, east)
        tensor([1.5708])
    """

    curvature: float = 1.0

    @property
    def _sign(self) -> float:
        return 1.0

    @property
    def log_volume(self) -> float:
        """Log of the volume of the whole space, n log[2 pi^((m+1)/2) / (Gamma((m+1)/2) s^m)]."""
        area = math.log(2) + self.d / 2 * math.log(math.pi) - math.lgamma(self.d / 2)
        return self.n * (area - self.m * math.log(self.scale))

    def project(self, x: Tensor) -> Tensor:
        return x / (self.scale * x.norm(dim=-1, keepdim=True))

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(-1)

    def radius(self, x: Tensor) -> Tensor:
        return self.scale * x.norm(dim=-1, keepdim=True)

    def in_frames(self, x: Tensor, y: Tensor, linear: Tensor) -> Tensor:
        return linear  # the ambient basis is orthonormal

    def angle(self, x: Tensor, y: Tensor) -> Tensor:
        return 2 * torch.atan2((x - y).norm(dim=-1), (x + y).norm(dim=-1))

    def sine_ratio(self, angle: Tensor) -> Tensor:
        return torch.sinc(angle / math.pi)

    def cosine(self, angle: Tensor) -> Tensor:
        return torch.cos(angle)

    def images(self, v: Tensor, reach: float) -> Tensor:
        """v lengthened by whole turns; where v = 0 (a focal point, of measure zero) every other image is at infinity."""
        length = self.square(v).sqrt()[..., None]
        turns = windings(self.scale * reach / (2 * math.pi), v)
        longer = v * (1 + turns * 2 * math.pi / (self.scale * length))
        return torch.where(length > 0, longer, torch.where(turns == 0, v, torch.inf))

    def _across(self, x: Tensor, y: Tensor) -> Tensor:
        beyond = x + y
        far = beyond - (0.5 * self.curvature * self.inner(beyond, beyond))[..., None] * x
        return torch.where(self.inner(x, y)[..., None] < 0, far, super()._across(x, y))


@dataclass(frozen=True, kw_only=True)
class Hyperboloid(ConstantCurvature):
    """n points of hyperbolic space H^m: the sheet x_0 > 0 of -x_0^2 + x_1^2 + ... + x_m^2 = 1/kappa in R^(m+1), kappa < 0.

    `project` keeps x_1 ... x_m and recomputes x_0. The ambient metric is not positive, and x_0 grows exponentially with distance; hence
    `lift` carries vectors from the origin to x, and `coordinates` are the normal coordinates around it.
    """

    curvature: float = -1.0

    @property
    def _sign(self) -> float:
        return -1.0

    def origin(self, like: Tensor) -> Tensor:
        """The point with x_1 = ... = x_m = 0, in the shape and dtype of `like` [B, n, d]."""
        return self.project(torch.zeros_like(like))

    def project(self, x: Tensor) -> Tensor:
        place = x[..., 1:]
        return torch.cat([(place.square().sum(-1, keepdim=True) + 1 / self.scale**2).sqrt(), place], -1)

    def lift(self, x: Tensor, w: Tensor) -> Tensor:
        return self.transport(self.origin(x), x, torch.cat([torch.zeros_like(w[..., :1]), w[..., 1:]], -1))

    def coordinates(self, x: Tensor) -> Tensor:
        return self.log(self.origin(x), x)

    def gradient(self, x: Tensor, derivative: Tensor) -> Tensor:
        return self.tangent(x, torch.cat([-derivative[..., :1], derivative[..., 1:]], -1))

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        return (a[..., 1:] * b[..., 1:]).sum(-1) - a[..., 0] * b[..., 0]

    def radius(self, x: Tensor) -> Tensor:
        return self.scale * torch.where(x[..., 0] > 0, -self.inner(x, x), torch.nan).sqrt()[..., None]

    def in_frames(self, x: Tensor, y: Tensor, linear: Tensor) -> Tensor:
        shape = (len(x), self.n, self.d, self.n, self.d)
        flip = torch.ones(self.d, dtype=x.dtype, device=x.device)
        flip[0] = -1
        back = flip[:, None] * self._boost(y).mT * flip  # a boost's inverse is its adjoint in the ambient product
        return torch.einsum("biap,bipjq,bjqc->biajc", back, linear.view(shape), self._boost(x)).reshape_as(linear)

    def _boost(self, x: Tensor) -> Tensor:
        """[B, n, d, d]: the linear isometry of the ambient space that carries the origin to x, and vectors there by transport."""
        basis = torch.eye(self.d, dtype=x.dtype, device=x.device)[1:, None, None].expand(-1, len(x), self.n, -1)
        return torch.stack([self.scale * x, *self.lift(x, basis)], -1)

    def angle(self, x: Tensor, y: Tensor) -> Tensor:
        """2 arsinh(s |x - y| / 2), the difference of x_0 taken from that of the other coordinates, which keeps its digits."""
        step = (x - y)[..., 1:]
        rise = (step * (x + y)[..., 1:]).sum(-1) / (x + y)[..., 0]
        return 2 * torch.asinh(0.5 * self.scale * (step.square().sum(-1) - rise.square()).clamp_min(0).sqrt())

    def sine_ratio(self, angle: Tensor) -> Tensor:
        return torch.where(angle == 0, 1.0, torch.sinh(angle) / torch.where(angle == 0, 1.0, angle))

    def cosine(self, angle: Tensor) -> Tensor:
        return torch.cosh(angle)
