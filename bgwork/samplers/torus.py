"""Kernels of a controlled Brownian motion on a torus, from the origin: steps wrapped with every image, bridges back.

    q_k: x_{k+1} = wrap(x_k + (nu_{k+1} - nu_k) v(t_k, x_k) + sqrt(nu_{k+1} - nu_k) xi)
    r_k: Brownian motion given that it started at the origin and is at x_{k+1}, by Bayes' rule with wrapped normals W:
         r(x_k | x_{k+1}) = W(x_k; 0, nu_k) W(x_{k+1} - x_k; 0, nu_{k+1} - nu_k) / W(x_{k+1}; 0, nu_{k+1})
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bgwork.paths import GeometricBrownian
from bgwork.priors import image_shares, wrapped_normal_log_prob
from bgwork.samplers.batches import map_batches
from bgwork.samplers.sde import GaussianKernel, Kernel, PointKernel
from bgwork.spaces import Torus


@dataclass(frozen=True, kw_only=True, eq=False)
class BridgeKernel:
    """Where Brownian motion from the origin was when its variance was `before`, given y now that it is `now`.

    Args:
        space: torus.
        y: [B, n, d].
        before, now: variances nu, 0 < before < now.
    """

    space: Torus
    y: Tensor
    before: float
    now: float

    def sample(self, *, generator: torch.Generator) -> Tensor:
        """One draw each: first the image of y that the unwrapped motion is at, then the bridge to it."""
        lifted = draw_image(self.space, self.y, variance=self.now, generator=generator)
        share = self.before / self.now
        noise = torch.randn(self.y.shape, generator=generator, dtype=torch.float64)
        return self.space.project(share * lifted + math.sqrt(self.before * (1 - share)) * noise)

    def log_prob(self, x: Tensor) -> Tensor:
        to_y = log_wrapped(self.space, self.space.log(x, self.y), variance=self.now - self.before)
        return log_wrapped(self.space, x, variance=self.before) + to_y - log_wrapped(self.space, self.y, variance=self.now)


@dataclass(frozen=True, kw_only=True, eq=False)
class ControlledBrownianKernels:
    """The kernels of a control v (`samplers.sde.Kernels`); start them from a `PointPrior`.

    Args:
        space: torus.
        control: v(t, x) [B, n, d].
        brownian: base process.
        stops: times [K+1] from 0 to 1.
        batch: configurations that the control sees at once.
    """

    space: Torus
    control: Callable[[Tensor, Tensor], Tensor]
    brownian: GeometricBrownian
    stops: Tensor
    batch: int = 1024

    jacobians = 0

    @property
    def steps(self) -> int:
        return len(self.stops) - 1

    @property
    def evaluations(self) -> int:
        return len(self.stops) - 1

    def forward(self, k: int, x: Tensor) -> GaussianKernel:
        """q_k(. | x)."""
        before, now = self._variances(k)
        parts = map_batches(lambda rows: self._value(k, x[rows]), len(x), self.batch, None)
        return GaussianKernel(space=self.space, x=x, move=(now - before) * torch.cat(parts), std=math.sqrt(now - before))

    def backward(self, k: int, x: Tensor) -> Kernel:
        """r_k(. | x)."""
        before, now = self._variances(k)
        return BridgeKernel(space=self.space, y=x, before=before, now=now) if k else PointKernel(x=torch.zeros_like(x))

    def _variances(self, k: int) -> tuple[float, float]:
        before, now = self.brownian.variance(self.stops[k : k + 2]).tolist()
        return before, now

    @torch.no_grad()
    def _value(self, k: int, x: Tensor) -> Tensor:
        return self.control(self.stops[k], x).double()


def log_wrapped(space: Torus, x: Tensor, *, variance: float) -> Tensor:
    """log W(x; 0, variance), [B]."""
    zero = torch.zeros_like(x)
    return wrapped_normal_log_prob(space, zero, x, zero, std=math.sqrt(variance))


def draw_image(space: Torus, x: Tensor, *, variance: float, generator: torch.Generator) -> Tensor:
    """One image x + 2 pi k of every angle [B, n, d], drawn with the probability that N(0, variance) gives it."""
    images, shares = image_shares(space, x, variance=variance)
    rows = torch.multinomial(shares.flatten(1).T, 1, generator=generator)
    return images.flatten(1).T.gather(1, rows).view_as(x)
