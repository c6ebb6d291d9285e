"""Path weights for few-step samplers: any flow map, made stochastic by Gaussian kernels, weighed exactly on the space of its paths.

    q_k(x' | x) = N(a_k X_{t_k -> tau_k}(x), sigma_k^2),    r_k(x | x') = N(b_k X_{t_{k+1} -> rho_k}(x'), lambda_k^2)
are kernels for `samplers.sde.PathSampler`: E[w f] = Z <f> whatever the network, its training error and the backward kernels; bad ones cost
effective samples only. No Jacobian is needed. The last kernel keeps its noise, since a Dirac has no density
(after Zhang, Midgley and Hernandez-Lobato 2024, Efficient and unbiased sampling of Boltzmann distributions via consistency models).

For the linear interpolant with x_0 ~ N(0, s^2) independent of x_1, going back from time tau to t < tau is
    x_t | x_tau ~ N((t / tau) x_tau, s^2 [(1-t)^2 - (t / tau)^2 (1-tau)^2]),
which gives both the re-noising of a jump that went too far and, as r, plain noising. It holds for flows trained with *independent*
coupling; for those trained with optimal transport the reverse of a jump is the student's own way back.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bgwork.fields.two_times import AverageVelocity
from bgwork.samplers.batches import map_batches
from bgwork.samplers.flow_map import check_times
from bgwork.samplers.sde import GaussianKernel
from bgwork.spaces import Space

LAST_NOISE = 0.3  # first guess of the last kernel's width, as a fraction of its backward kernel's


@dataclass(frozen=True, kw_only=True, eq=False)
class JumpTable:
    """Coefficients of Gaussian kernels around jumps of a flow map, between K + 1 times.

    Attributes:
        times: t_0 = 0 < ... < t_K = 1.
        reach: tau_k [K], where the forward jump from t_k goes.
        back: rho_k [K], where the backward jump from t_{k+1} goes; t_{k+1} itself for none, which saves the evaluation.
        scale, log_std: a_k and log sigma_k, [K] float64 each.
        back_scale, back_log_std: b_k and log lambda_k, [K] float64 each.
    """

    times: tuple[float, ...]
    reach: tuple[float, ...]
    back: tuple[float, ...]
    scale: Tensor
    log_std: Tensor
    back_scale: Tensor
    back_log_std: Tensor

    def __post_init__(self) -> None:
        check_times(self.times)
        lengths = {len(self.reach), len(self.back), *(len(value) for value in self.shapes)}
        if lengths != {len(self.times) - 1}:
            raise ValueError(f"{len(self.times)} times need {len(self.times) - 1} kernels, got {sorted(lengths)}")
        if not all(bool(torch.isfinite(value).all()) for value in self.shapes):
            raise ValueError("every kernel needs a finite scale and a positive, finite width; the last one keeps noise too")

    @property
    def shapes(self) -> tuple[Tensor, ...]:
        """What tuning changes."""
        return self.scale, self.log_std, self.back_scale, self.back_log_std

    def with_shapes(self, shapes: Tensor) -> JumpTable:
        """The same jumps with other scales and widths [4, K], in the order of `shapes`."""
        scale, log_std, back_scale, back_log_std = shapes.unbind()
        return replace(self, scale=scale, log_std=log_std, back_scale=back_scale, back_log_std=back_log_std)

    @property
    def evaluations(self) -> int:
        """Network forward passes per sample, backward kernels included."""
        return len(self.reach) + sum(rho != t for rho, t in zip(self.back, self.times[1:], strict=True))


def noising_std(t: float, tau: float, std: float) -> float:
    """Width of x_t given x_tau, t < tau, for the linear interpolant with prior N(0, std^2) and independent coupling."""
    return std * math.sqrt((1 - t) ** 2 - (t / tau * (1 - tau)) ** 2)


def noising_table(times: tuple[float, ...], *, prior_std: float, overshoot: float = 1.0) -> JumpTable:
    """Jumps beyond the next time, re-noised to it; backward kernels are plain noising. For teachers with independent coupling.

    Args:
        times: K + 1 times from 0 to 1.
        prior_std: s of the prior.
        overshoot: how far a jump goes beyond the next time, in lengths of the step, and at most to 1: at 1 the forward kernels approach,
            for short steps, the exact reverse of the noising.
    """
    check_times(times)
    if not overshoot > 0:
        raise ValueError(f"overshoot must be positive, or the kernels had no noise, got {overshoot}")
    pairs = list(itertools.pairwise(times))
    reach = [min(1.0, end + overshoot * (end - start)) for start, end in pairs]
    back = [noising_std(start, end, prior_std) for start, end in pairs]
    widths = [noising_std(end, tau, prior_std) for (_, end), tau in zip(pairs[:-1], reach, strict=False)] + [LAST_NOISE * back[-1]]
    return JumpTable(
        times=times, reach=tuple(reach), back=times[1:], scale=_float64([end / tau for (_, end), tau in zip(pairs, reach, strict=True)]),
        log_std=_float64(widths).log(), back_scale=_float64([start / end for start, end in pairs]), back_log_std=_float64(back).log())


def student_table(times: tuple[float, ...], *, prior_std: float, noise: float = 0.05) -> JumpTable:
    """Jumps to the next time and the student's own way back, each with a little noise. For teachers with any coupling.

    Args:
        times: K + 1 times from 0 to 1.
        prior_std: s of the prior.
        noise: first guess of all widths, as a fraction of s.
    """
    check_times(times)
    ones = torch.ones(len(times) - 1, dtype=torch.float64)
    if not noise > 0:
        raise ValueError(f"noise must be positive, got {noise}")
    width = ones * math.log(noise * prior_std)
    return JumpTable(times=times, reach=times[1:], back=times[:-1], scale=ones, log_std=width, back_scale=ones, back_log_std=width)


@dataclass(frozen=True, kw_only=True, eq=False)
class JumpKernels:
    """The kernels of a table with one flow map.

    Args:
        space: flat.
        average: U(t, s, x) of any kind.
        table: jumps, scales and widths, fixed before anything is weighed (`samplers.jump_tuning` fits them on paths of its own seed).
        batch: configurations that the network sees at once.

    Example:
        >>> from bgwork.fields.mlp import MLP
        >>> from bgwork.records import Origin
        >>> from bgwork.samplers.flow_map import even_times
        >>> from bgwork.samplers.sde import PathSampler
        >>> from bgwork.spaces import Euclidean
        >>> prior, U = Gaussian(space=Euclidean(n=1, d=2)), AverageVelocity(MLP(1, 2, times=2))
        >>> kernels = JumpKernels(space=prior.space, average=U, table=noising_table(even_times(6), prior_std=1.0))
        >>> sampler = PathSampler(start=prior, kernels=kernels, origin=Origin(method="consistency path", system="plane"))
        >>> sampler.sample(8, generator=torch.Generator().manual_seed(0)).cost.network
        48
    """

    space: Space
    average: AverageVelocity
    table: JumpTable
    batch: int = 256

    jacobians = 0

    @property
    def steps(self) -> int:
        return len(self.table.reach)

    @property
    def evaluations(self) -> int:
        return self.table.evaluations

    def forward(self, k: int, x: Tensor) -> GaussianKernel:
        """q_k(. | x)."""
        table = self.table
        return self._around(table.scale[k], table.times[k], table.reach[k], x, table.log_std[k])

    def backward(self, k: int, x: Tensor) -> GaussianKernel:
        """r_k(. | x)."""
        table = self.table
        return self._around(table.back_scale[k], table.times[k + 1], table.back[k], x, table.back_log_std[k])

    def jump(self, t: float, s: float, x: Tensor) -> Tensor:
        """X_{t->s}(x); no evaluation where s = t."""
        return x if s == t else self.average.move(t, s, x)

    @torch.no_grad()
    def _around(self, scale: Tensor, t: float, s: float, x: Tensor, log_std: Tensor) -> GaussianKernel:
        jumped = torch.cat(map_batches(torch.no_grad()(lambda rows: self.jump(t, s, x[rows])), len(x), self.batch, None))
        return GaussianKernel(space=self.space, x=x, move=self.space.project(scale * jumped - x), std=log_std.exp().item())


def _float64(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
