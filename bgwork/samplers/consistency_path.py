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
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bgwork.fields.two_times import AverageVelocity
from bgwork.priors import Gaussian
from bgwork.protocols import Target
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
        table: jumps, scales and widths, fixed before anything is weighed (`tuned` fits them on paths of its own seed).
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


def walk(kernels: JumpKernels, prior: Gaussian, *, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """End points [n, ., d] and log p0 + sum_k (log q_k - log r_k) [n] of n paths, differentiable in the table's shapes.

    Jumps are recomputed in the backward pass, so that memory does not grow with the network's evaluations.
    """
    table, space, jump = kernels.table, kernels.space, partial(checkpoint, kernels.jump, use_reentrant=False)
    x = prior.sample(n, generator=generator)
    log_q, unit = prior.log_prob(x), Gaussian(space=space)
    for k, (t, end) in enumerate(itertools.pairwise(table.times)):
        off = table.log_std[k].exp() * unit.sample(n, generator=generator)
        y = table.scale[k] * jump(t, table.reach[k], x) + off
        back = x - table.back_scale[k] * jump(end, table.back[k], y)
        log_q = log_q + log_normal(off, table.log_std[k], space) - log_normal(back, table.back_log_std[k], space)
        x = y
    return x, log_q


def log_normal(x: Tensor, log_std: Tensor, space: Space) -> Tensor:
    """log N(x; 0, s^2) [B] with respect to the volume of the space: -|x|^2 / 2 s^2 - dim/2 log(2 pi s^2)."""
    square = (x * x).sum((1, 2))
    return -0.5 * square * torch.exp(-2 * log_std) - space.dim * (log_std + 0.5 * math.log(2 * math.pi))


@torch.no_grad()
def regressed(kernels: JumpKernels, prior: Gaussian, *, n: int, generator: torch.Generator) -> JumpKernels:
    """The kernels with backward scales and widths of maximum likelihood on n forward paths, which needs no energies.

        b_k = <x_k . y_k> / <|y_k|^2>,    lambda_k^2 = <|x_k - b_k y_k|^2> / dim,    y_k = X_{t_{k+1} -> rho_k}(x_{k+1})
    """
    table, x = kernels.table, prior.sample(n, generator=generator)
    scales, widths = table.back_scale.clone(), table.back_log_std.clone()
    for k in range(kernels.steps):
        after = kernels.forward(k, x).sample(generator=generator)
        y = kernels.jump(table.times[k + 1], table.back[k], after)
        scales[k] = (x * y).sum() / y.square().sum()
        widths[k] = 0.5 * ((x - scales[k] * y).square().sum() / (n * kernels.space.dim)).log()
        x = after
    return replace(kernels, table=replace(table, back_scale=scales, back_log_std=widths))


def tuned(
    kernels: JumpKernels, prior: Gaussian, target: Target, *, seed: int, n: int = 256, iterations: int = 60, rate: float = 0.05
) -> JumpKernels:
    """The same kernels with scales and widths fitted on paths of their own seed, and frozen.

    After `regressed`, Adam lowers log E[w] - 2 log E[sqrt w], which is nought where all weights agree (a quarter of the variance of log w
    where that is normal), on fresh paths in each iteration. The paths are thrown away, so nothing that is weighed later was used here.

    Args:
        kernels: with first guesses of scales and widths.
        prior: p0.
        target: the energy that the paths will be weighed with; counts n gradients an iteration.
        seed: of the paths; use another one for samples.
        n: paths an iteration.
        iterations: of Adam.
        rate: of Adam, falling to zero.
    Raises:
        ValueError: if no path of an iteration had a finite weight.
    """
    generator = torch.Generator().manual_seed(seed)
    kernels = regressed(kernels, prior, n=n, generator=generator)
    start = torch.stack(kernels.table.shapes)
    unit = torch.ones_like(start)
    unit[::2] = start[1::2].exp() / prior.std  # a scale matters in proportion to its kernel's width
    moves = torch.zeros_like(start, requires_grad=True)
    optimiser = torch.optim.Adam([moves], lr=rate)
    for k in range(iterations):
        optimiser.param_groups[0]["lr"] = rate * (1 - k / iterations)
        free = replace(kernels, table=kernels.table.with_shapes(start + unit * moves))
        x, log_q = walk(free, prior, n=n, generator=generator)
        moves.grad = torch.autograd.grad(disagreement(-energy(target, x) - log_q), moves)[0]
        torch.nn.utils.clip_grad_norm_([moves], 1.0)
        optimiser.step()
    return replace(kernels, table=kernels.table.with_shapes(start + unit * moves.detach()))


def disagreement(log_w: Tensor) -> Tensor:
    """log E[w] - 2 log E[sqrt w]; rows of zero weight count as such.

    Raises:
        ValueError: if all are zero.
    """
    seen = log_w[torch.isfinite(log_w)]
    if not len(seen):
        raise ValueError("no path has a finite weight; start from wider kernels or a better trained network")
    return torch.logsumexp(seen, 0) - 2 * torch.logsumexp(seen / 2, 0) + math.log(len(log_w))


def energy(target: Target, x: Tensor) -> Tensor:
    """u(x) [B] with the target's own gradient attached; rows without a finite one have u = +inf."""
    u, slope = target.u_and_grad(x.detach())
    known = torch.isfinite(u) & torch.isfinite(slope).flatten(1).all(1)
    slope = torch.where(known[:, None, None], slope, 0.0)
    return torch.where(known, u, math.inf) + (slope * (x - x.detach())).sum((1, 2))


def _float64(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
