"""Kernels of geodesic random walks: a diffusion and its time reversal, stepped along geodesics of any space.

    q_k: x_{k+1} = exp_{x_k}(h_k f(t_k, x_k) + s_k xi),    r_k: x_k = exp_{x_{k+1}}(-h_k b(t_{k+1}, x_{k+1}) + s_k xi)
with forward drift f, backward drift b, xi standard Gaussian on the tangent space. `samplers.sde.PathSampler` walks and weighs them
properly for *any* f and b; how much the weights vary is what the drifts decide. On flat spaces these are Euler-Maruyama steps.
Source: design section 8; De Bortoli et al. 2022 (arXiv:2202.02763), algorithm 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bgwork.samplers.batches import check_count, map_batches
from bgwork.samplers.sde import GaussianKernel
from bgwork.spaces import Space

Drifts = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(t, x [B, n, d]) -> forward drift f and backward drift b, both [B, n, d] and tangent at x."""


@dataclass(frozen=True, kw_only=True)
class WalkGrid:
    """When a walk stops, and how much noise each step has.

    Args:
        times: K + 1 increasing times from 0 to 1.
        stds: K positive standard deviations of the noise, per tangent coordinate, in the system's length unit.
    """

    times: tuple[float, ...]
    stds: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.stds) < 1 or len(self.times) != len(self.stds) + 1:
            raise ValueError(f"K steps need K + 1 times and K standard deviations, got {len(self.times)} and {len(self.stds)}")
        if (self.times[0], self.times[-1]) != (0.0, 1.0) or any(not a < b for a, b in itertools.pairwise(self.times)):
            raise ValueError(f"times must increase from 0 to 1, got {self.times}")
        if not all(0 < std < math.inf for std in self.stds):
            raise ValueError(f"every step needs noise, or its kernel has no density; got standard deviations {self.stds}")

    def __len__(self) -> int:
        return len(self.stds)


class GeodesicKernels:
    """The kernels of a geodesic random walk (`samplers.sde.Kernels`).

    Args:
        space: that the drifts live on.
        drifts: forward and backward drift, one call for both.
        grid: times and noise.
        batch: configurations per call of `drifts`.

    Example: a walk on the sphere without any drift.
        >>> from bgwork.curved import Sphere
        >>> from bgwork.priors import Uniform
        >>> from bgwork.records import Origin
        >>> from bgwork.samplers.sde import PathSampler
        >>> sphere, grid = Sphere(n=1, d=3), WalkGrid(times=(0.0, 0.5, 1.0), stds=(0.5, 0.5))
        >>> kernels = GeodesicKernels(space=sphere, drifts=lambda t, x: (0 * x, 0 * x), grid=grid)
        >>> sampler = PathSampler(start=Uniform(space=sphere), kernels=kernels, origin=Origin(method="walk", system="sphere"))
        >>> sampler.sample(4, generator=torch.Generator().manual_seed(0)).density
        <Density.PATH: 'path'>
    """

    jacobians = 0

    def __init__(self, *, space: Space, drifts: Drifts, grid: WalkGrid, batch: int = 1024) -> None:
        check_count(batch)
        self.space, self.drifts, self.grid, self.batch = space, drifts, grid, batch
        self._last: tuple[int, Tensor, tuple[Tensor, Tensor]] | None = None

    @property
    def steps(self) -> int:
        return len(self.grid)

    @property
    def evaluations(self) -> int:
        """One for each stop, since the drifts at x_{k+1} serve the step from it and the step back from it."""
        return len(self.grid) + 1

    def forward(self, k: int, x: Tensor) -> GaussianKernel:
        """q_k(. | x)."""
        return GaussianKernel(space=self.space, x=x, move=self._length(k) * self._drifts_at(k, x)[0], std=self.grid.stds[k])

    def backward(self, k: int, x: Tensor) -> GaussianKernel:
        """r_k(. | x)."""
        return GaussianKernel(space=self.space, x=x, move=-self._length(k) * self._drifts_at(k + 1, x)[1], std=self.grid.stds[k])

    def _length(self, k: int) -> float:
        return self.grid.times[k + 1] - self.grid.times[k]

    def _drifts_at(self, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both drifts at stop k, float64 and tangent to round-off; those of the very same tensor are not computed twice."""
        if self._last is None or self._last[0] != k or self._last[1] is not x:
            t = torch.tensor(self.grid.times[k], dtype=torch.float64)
            parts = map_batches(lambda rows: self._values(t, x[rows]), len(x), self.batch, None)
            forward, backward = (tangent_drift(self.space, x, torch.cat(column).double()) for column in zip(*parts, strict=True))
            self._last = k, x, (forward, backward)
        return self._last[2]

    @torch.no_grad()
    def _values(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.drifts(t, x)


def tangent_drift(space: Space, x: Tensor, v: Tensor) -> Tensor:
    """v without its round-off normal to the space.

    Raises:
        ValueError: if v has another shape than x, or is not a tangent vector to single precision.
    """
    if v.shape != x.shape:
        raise ValueError(f"the drift has shape {tuple(v.shape)} at configurations of shape {tuple(x.shape)}; they must agree")
    projected = space.tangent(x, v)
    finite = torch.isfinite(projected).flatten(1).all(1)
    off, size, reach = ((value[finite].abs().amax((1, 2))) for value in (v - projected, v, x))
    worst = (off / (1 + size * reach.clamp_min(1))).amax().item() if finite.any() else 0.0
    if worst > 1e-3:
        raise ValueError(f"the drift leaves {space} (by {worst:.2g} of its size); project it with space.tangent(x, v)")
    return projected
