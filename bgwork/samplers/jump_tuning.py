"""Scales and widths of jump kernels, fitted before anything is weighed, on paths that are thrown away.

    tuned_to_data     forward divergence E[sum log r - log p0 - sum log q] of paths that go back from held-out configurations
    tuned_to_energy   spread of the weights of paths from the prior, where no configurations are known

The first is minimal where q and r agree on every path back from those configurations, so none of their modes is left out; it needs no
energies. The second sees only where its own paths go, and likes narrow kernels: a mode that they miss stays missed
(`PathSampler.path_log_q` shows it).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bgwork.priors import Gaussian
from bgwork.protocols import Target
from bgwork.samplers.consistency_path import JumpKernels
from bgwork.spaces import Space


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


def walk_back(kernels: JumpKernels, prior: Gaussian, x1: Tensor, *, generator: torch.Generator) -> Tensor:
    """log p0 + sum_k (log q_k - log r_k) [B] of paths from x1 [B, ., d] back to the prior, differentiable in the table's shapes."""
    table, space, jump = kernels.table, kernels.space, partial(checkpoint, kernels.jump, use_reentrant=False)
    y, unit, log_q = x1, Gaussian(space=space), torch.zeros(len(x1), dtype=torch.float64)
    for k in reversed(range(kernels.steps)):
        off = table.back_log_std[k].exp() * unit.sample(len(x1), generator=generator)
        x = table.back_scale[k] * jump(table.times[k + 1], table.back[k], y) + off
        ahead = y - table.scale[k] * jump(table.times[k], table.reach[k], x)
        log_q = log_q + log_normal(ahead, table.log_std[k], space) - log_normal(off, table.back_log_std[k], space)
        y = x
    return log_q + prior.log_prob(y)


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


def tuned_to_data(
    kernels: JumpKernels, prior: Gaussian, x1: Tensor, *, seed: int, n: int = 256, iterations: int = 60, rate: float = 0.05
) -> JumpKernels:
    """The same kernels with the scales and widths of least forward divergence from held-out configurations, and frozen.

        E_{x_K ~ pi, r}[sum_k log r_k - log p0 - sum_k log q_k] = KL(pi r || p0 q) + const

    After `regressed`, Adam lowers the mean on fresh backward paths in each iteration.

    Args:
        kernels: with first guesses of scales and widths.
        prior: p0.
        x1: configurations of the target [M, ., d], not those that the weights are judged by later; drawn from with replacement.
        seed: of the paths; use another one for samples.
        n: paths an iteration.
        iterations: of Adam.
        rate: of Adam, falling to zero.
    Raises:
        ValueError: if the network is not finite on some path.
    """
    generator = torch.Generator().manual_seed(seed)

    def divergence(free: JumpKernels) -> Tensor:
        rows = torch.randint(len(x1), (n,), generator=generator)
        log_q = walk_back(free, prior, x1[rows].double(), generator=generator)
        if not bool(torch.isfinite(log_q).all()):
            raise ValueError(f"{int((~torch.isfinite(log_q)).sum())} of {n} paths back from held-out configurations are not finite; start "
                             "from narrower kernels or a better trained network")
        return -log_q.mean()

    return _descended(regressed(kernels, prior, n=n, generator=generator), prior, divergence, iterations=iterations, rate=rate)


def tuned_to_energy(
    kernels: JumpKernels, prior: Gaussian, target: Target, *, seed: int, n: int = 256, iterations: int = 60, rate: float = 0.05
) -> JumpKernels:
    """The same kernels with scales and widths of least spread of the weights of own paths, and frozen.

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

    def spread(free: JumpKernels) -> Tensor:
        x, log_q = walk(free, prior, n=n, generator=generator)
        return disagreement(-energy(target, x) - log_q)

    return _descended(regressed(kernels, prior, n=n, generator=generator), prior, spread, iterations=iterations, rate=rate)


def _descended(kernels: JumpKernels, prior: Gaussian, loss: Callable[[JumpKernels], Tensor], *, iterations: int,
               rate: float) -> JumpKernels:
    """The kernels after Adam on `loss`, every shape in units in which it matters."""
    start = torch.stack(kernels.table.shapes)
    unit = torch.ones_like(start)
    unit[::2] = start[1::2].exp() / prior.std  # a scale matters in proportion to its kernel's width
    moves = torch.zeros_like(start, requires_grad=True)
    optimiser = torch.optim.Adam([moves], lr=rate)
    for k in range(iterations):
        optimiser.param_groups[0]["lr"] = rate * (1 - k / iterations)
        free = replace(kernels, table=kernels.table.with_shapes(start + unit * moves))
        moves.grad = torch.autograd.grad(loss(free), moves)[0]
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
