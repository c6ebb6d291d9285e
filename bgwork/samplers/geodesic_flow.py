"""Flows on spheres and hyperbolic spaces: geodesic midpoint steps of dx/dt = v(t, x), with the exact density of the executed map.

    m = exp_x(h/2 v(t, x)),    T(x) = exp_x(h P_{m -> x} v(t + h/2, m)),    P the parallel transport

A step is extended to the ambient space, point by point, by T(r x) = r T(x). The extension leaves r alone, and dx = r^m dr dvol in the
coordinates of the sphere (or hyperboloid) of radius r, so that its ambient Jacobian has the determinant, sign included, that T has with
respect to the Riemannian volume. What holds of executed maps on flat spaces, certificate and inversion, then holds here.
Source: the current velocity (f + b) / 2 of a diffusion with forward and backward drifts f and b has its marginals (Nelson 1967,
Dynamical Theories of Brownian Motion, section 13), on any Riemannian manifold.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bgwork.curved import ConstantCurvature, Sphere
from bgwork.fields.forward_mode import FORWARD_MODE
from bgwork.protocols import Field
from bgwork.samplers.executed import ExecutedMap
from bgwork.samplers.integrators import Grid

SMALL = 1e-8  # squared angles below which cosine and sine come from their series, whose slopes exist at 0

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(t, x [B, n, d]) -> [B, n, d], tangent at x."""


class CurrentVelocity(nn.Module):
    """v = (f + b) / 2 of a diffusion's forward and backward drift, in double precision: the velocity of its probability flow.

    Args:
        drifts: network of (t, x) -> (f, b), of which a copy is taken.
        space: that they live on.
    """

    def __init__(self, drifts: nn.Module, space: ConstantCurvature) -> None:
        super().__init__()
        self.drifts, self.n, self.d = copy.deepcopy(drifts).double(), space.n, space.d

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """v [B, n, d] at points x [B, n, d]."""
        forward, backward = self.drifts(t, x.double())
        return 0.5 * (forward + backward)


@dataclass(frozen=True, kw_only=True)
class GeodesicStep:
    """One geodesic midpoint step from t to t + h.

    Args:
        space: of constant curvature, or a product of such.
        velocity: v(t, x), tangent and in float64.
        t, h: start and length of the step.
    """

    space: ConstantCurvature
    velocity: Velocity
    t: float
    h: float

    evaluations = 2

    def __call__(self, x: Tensor) -> Tensor:
        """T(x) [B, n, d]."""
        return self._along(x, self.t, self.h)

    def with_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """T(x) [B, n, d] and the ambient Jacobian of its extension [B, nd, nd], by forward differentiation."""
        def along(direction: Tensor) -> tuple[Tensor, Tensor]:
            return torch.func.jvp(self._extended, (x,), (direction.expand_as(x),))

        directions = torch.eye(x[0].numel(), dtype=x.dtype).view(-1, *x.shape[1:])
        with FORWARD_MODE:
            image, columns = torch.func.vmap(along, out_dims=(None, -1))(directions)
        return image, columns.flatten(1, 2)

    def backward(self, x: Tensor) -> Tensor:
        """The step of the same length in reverse time, which undoes this one up to its order."""
        return self._along(x, self.t + self.h, -self.h)

    def _extended(self, x: Tensor) -> Tensor:
        """r T(x / r) of each point, with r its distance from the origin of the ambient space, one on the space itself.

        NaN beyond the light cone of a hyperboloid, where Newton's method would find solutions that are no points of the space.
        """
        r = self.space.radius(x)
        return r * self._along(x / r, self.t, self.h)

    def _along(self, x: Tensor, t: float, h: float) -> Tensor:
        middle = shoot(self.space, x, 0.5 * h * self._velocity_at(t, x))
        there = self._velocity_at(t + 0.5 * h, middle)
        return shoot(self.space, x, h * self.space.transport(middle, x, there))

    def _velocity_at(self, t: float, x: Tensor) -> Tensor:
        return self.space.tangent(x, self.velocity(torch.tensor(t, dtype=x.dtype), x))


def shoot(space: ConstantCurvature, x: Tensor, v: Tensor) -> Tensor:
    """exp_x(v), differentiable at v = 0 too."""
    square = (space.scale**2 * space.square(v))[..., None]
    small = square < SMALL
    angle, sign = torch.where(small, 1.0, square).sqrt(), 1.0 if isinstance(space, Sphere) else -1.0
    cosine = torch.where(small, 1 - sign * square / 2, space.cosine(angle))
    ratio = torch.where(small, 1 - sign * square / 6, space.sine_ratio(angle))
    return space.project(cosine * x + ratio * v)


@dataclass(frozen=True, kw_only=True, eq=False)
class GeodesicFlow(ExecutedMap):
    """Sampler with the exact density of the executed geodesic steps.

    Args:
        prior, origin, batch, round_trip, n_round_trip, tolerance, on_batch: as for `ExecutedMap`.
        field: v(t, x) [B, n, d], tangent and in float64.
        times: K + 1 increasing times from 0 to 1.
    Raises:
        ValueError: for a prior on another kind of space, or times that do not increase from 0 to 1.

    Example: on the sphere, along a field that stands still.
        >>> from bgwork.fields.ambient import AmbientDrifts
        >>> from bgwork.priors import Uniform
        >>> from bgwork.records import Origin
        >>> sphere = Sphere(n=1, d=3)
        >>> flow = GeodesicFlow(prior=Uniform(space=sphere), field=CurrentVelocity(AmbientDrifts(sphere), sphere), times=(0.0, 0.5, 1.0),
        ...                     origin=Origin(method="flow", system="sphere"))
        >>> proposal = flow.sample(8, generator=torch.Generator().manual_seed(0))
        >>> proposal.density, torch.allclose(proposal.log_q.exp(), torch.tensor(1 / (4 * torch.pi)).double())
        (<Density.EXACT: 'exact'>, True)
    """

    field: Field
    times: tuple[float, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.space, ConstantCurvature):
            raise ValueError(f"geodesic flows are for spheres and hyperbolic spaces, got a prior on {self.space}; take samplers.flow.Flow")
        Grid(steps=len(self.times) - 1, times=self.times)  # refuses impossible times
        super().__post_init__()

    @property
    def steps(self) -> tuple[GeodesicStep, ...]:
        pairs = zip(self.times[:-1], self.times[1:], strict=True)
        return tuple(GeodesicStep(space=self.space, velocity=self.field, t=s, h=t - s) for s, t in pairs)

    @property
    def velocity(self) -> Field:
        return self.field

    def _in_frames(self, x: Tensor, y: Tensor, jacobian: Tensor) -> Tensor:
        return self.space.in_frames(x, y, jacobian)

    @property
    def description(self) -> str:
        return f"geodesic midpoint rule with {len(self.times) - 1} steps"
