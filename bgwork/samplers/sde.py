"""Samplers that walk by random kernels, weighted on path space: diffusions and every other learned stochastic process.

A path x_0 ~ p0, x_{k+1} ~ q_k(. | x_k) is weighed against the target extended by any backward kernels r_k(x_k | x_{k+1}):

    log w = -u(x_K) + sum_k log r_k(x_k | x_{k+1}) - log p0(x_0) - sum_k log q_k(x_{k+1} | x_k)

This is proper for the kernels that were executed, whatever the drift, the number of steps and the backward kernels, as
long as r has no support where q has none; only the effective sample size depends on them. Source: Nilmeier et al. 2011; Wu,
Koehler and Noe 2020 (stochastic normalizing flows), eq. 9-12.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from bgwork.priors import tangent_noise, wrapped_normal_log_prob
from bgwork.protocols import Prior
from bgwork.records import Cost, Density, Origin, Proposal
from bgwork.samplers.batches import Progress, check_configurations, check_count
from bgwork.spaces import Space


class Kernel(Protocol):
    """A batch of transition densities, one for each row."""

    def sample(self, *, generator: torch.Generator) -> Tensor:
        """One draw from each, [B, n, d] float64."""

    def log_prob(self, y: Tensor) -> Tensor:
        """[B] log-densities at y [B, n, d], with respect to the volume of the space."""


class Kernels(Protocol):
    """The kernels of a walk of `steps` steps.

    Attributes:
        steps: K.
        evaluations: network forward passes per sample, forward and backward kernels together.
        jacobians: how many of them give the field's Jacobian too.
    """

    steps: int
    evaluations: int
    jacobians: int

    def forward(self, k: int, x: Tensor) -> Kernel:
        """q_k(. | x_k = x), k = 0..K-1."""

    def backward(self, k: int, x: Tensor) -> Kernel:
        """r_k(. | x_{k+1} = x), k = 0..K-1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GaussianKernel:
    """exp_x(move + std noise): a Gaussian on flat spaces, a step of a geodesic random walk on curved ones.

    Args:
        space: of x; densities refer to its volume, (n-1)d-dimensional on the mean-free space.
        x: [B, n, d] float64.
        move: [B, n, d], tangent at x.
        std: of every tangent coordinate.
    """

    space: Space
    x: Tensor
    move: Tensor
    std: float

    def __post_init__(self) -> None:
        if not 0 < self.std < math.inf:
            raise ValueError(f"a kernel's std must be positive and finite, got {self.std}; keep noise in every step, the last one included")

    def sample(self, *, generator: torch.Generator) -> Tensor:
        return self.space.exp(self.x, self.move + self.std * tangent_noise(self.space, self.x, generator=generator))

    def log_prob(self, y: Tensor) -> Tensor:
        return wrapped_normal_log_prob(self.space, self.x, y, self.move, std=self.std)


@dataclass(frozen=True, kw_only=True, eq=False)
class PointKernel:
    """Unit masses at x [B, n, d]; log_prob is with respect to them, 0 at x and -inf elsewhere."""

    x: Tensor

    def sample(self, *, generator: torch.Generator) -> Tensor:
        return self.x.clone()

    def log_prob(self, y: Tensor) -> Tensor:
        return torch.where((y == self.x).flatten(1).all(1), 0.0, -torch.inf).double()


@dataclass(frozen=True, kw_only=True)
class PointPrior:
    """A start at the origin for all. With a `PointKernel` as last backward kernel both factors are one, and the weight is without them."""

    space: Space

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """The origin n times."""
        return torch.zeros(n, self.space.n, self.space.d, dtype=torch.float64)

    def log_prob(self, x: Tensor) -> Tensor:
        """With respect to the unit mass, not to the volume of the space."""
        return PointKernel(x=torch.zeros_like(x)).log_prob(x)


@dataclass(frozen=True, kw_only=True, eq=False)
class PathSampler:
    """Walks of K random steps, with path weights.

    Args:
        start: p0: a prior, or a `PointPrior`, whose backward kernel must be a `PointKernel`.
        kernels: forward and backward.
        origin: method, system and commit; the generator's seed is filled in.
        on_batch: called with (steps done, steps) times the number of samples.
        note: on how the kernels were chosen, for the proposal.

    Example:
        >>> from bgwork.fields.mlp import MLP
        >>> from bgwork.paths import LinearInterpolant, stops
        >>> from bgwork.priors import Gaussian
        >>> from bgwork.samplers.kernels import FieldKernels, velocity_table
        >>> from bgwork.spaces import Euclidean
        >>> prior = Gaussian(space=Euclidean(n=1, d=2))
        >>> table = velocity_table(LinearInterpolant(), stops(5), prior_std=1.0, spread=1.0)
        >>> kernels = FieldKernels(space=prior.space, field=MLP(1, 2), table=table)
        >>> sampler = PathSampler(start=prior, kernels=kernels, origin=Origin(method="diffusion", system="plane"))
        >>> sampler.sample(8, generator=torch.Generator().manual_seed(0)).density
        <Density.PATH: 'path'>
    """

    start: Prior
    kernels: Kernels
    origin: Origin
    on_batch: Progress | None = None
    note: str = ""

    @property
    def space(self) -> Space:
        return self.start.space

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator) -> Proposal:
        """n end points x_K with log q = log p0 + sum_k (log q_k - log r_k).

        Args:
            n: number of samples.
            generator: of the starts and of every step; the same seed gives the same numbers.
        Returns:
            Proposal of density PATH; rows that diverged stay in it as NaN.
        Raises:
            ValueError: if n < 1, or a kernel has no noise.
        """
        check_count(n)
        started, kernels = time.perf_counter(), self.kernels
        x = self.start.sample(n, generator=generator)
        log_q = self.start.log_prob(x)
        for k in range(kernels.steps):
            kernel = kernels.forward(k, x)
            y = kernel.sample(generator=generator)
            log_q = log_q + kernel.log_prob(y) - kernels.backward(k, y).log_prob(x)
            x = y
            if self.on_batch is not None:
                self.on_batch(n * (k + 1), n * kernels.steps)
        cost = Cost(network=n * kernels.evaluations, jacobian=n * kernels.jacobians, seconds=time.perf_counter() - started)
        note = ", ".join([f"path weights over {kernels.steps} random steps", *filter(None, [self.note])])
        return Proposal(
            x=x, log_q=log_q, space=self.space, density=Density.PATH, cost=cost, note=note,
            origin=self.origin if self.origin.seed is not None else replace(self.origin, seed=generator.initial_seed()))

    @torch.no_grad()
    def path_log_q(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """log p0 + sum_k (log q_k - log r_k) [B] of one path for each x, drawn backward by r.

            E_pi[E_r[f e^{-log w}]] = <f>_pi / Z,    log w = -u(x) - path_log_q(x)
        For x ~ pi these are paths of the extended target, as `sample` draws paths of the proposal: two ends of Crooks' equality (1999),
        so that forward ESS and BAR hold as they do for densities, and show what forward paths never reach. No density of x itself.

        Args:
            x: configurations of the target [B, n, d].
            generator: of the backward steps; its seed must not be that of `sample`, whose noise would come again.
        Raises:
            ValueError: if x is not of the space, or not finite.
        """
        check_configurations(x, self.space)
        y, log_q = x.double(), torch.zeros(len(x), dtype=torch.float64)
        for k in reversed(range(self.kernels.steps)):
            backward = self.kernels.backward(k, y)
            x = backward.sample(generator=generator)
            log_q = log_q + self.kernels.forward(k, x).log_prob(y) - backward.log_prob(x)
            y = x
        return log_q + self.start.log_prob(y)
