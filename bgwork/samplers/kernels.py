"""Gaussian kernels of samplers with one learned field: tables of coefficients for denoising diffusions and controlled Brownian motion.

Step k goes from t_k to t_{k+1} and calls the field F once:

    q_k(x' | x) = N(keep_k x + gain_k F(t_k, x), std_k^2),    r_k(x | x') = N(back_k x', back_std_k^2)

Where x_t given x1 is Gaussian, plain noising reverses a converged sampler, so the tables put it in r. The forward mean is the bridge's
from x_t towards the expected end point D(t, x) = E[x1 | x_t = x]; the forward variance adds to the bridge's what is unknown of x1,
which the tables take from a Gaussian of standard deviation `spread` and `tuned` measures instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bgwork.paths import GeometricBrownian, Interpolant
from bgwork.protocols import Field
from bgwork.samplers.batches import map_batches
from bgwork.samplers.sde import GaussianKernel, Kernel, PointKernel
from bgwork.spaces import Space


@dataclass(frozen=True, kw_only=True, eq=False)
class PosteriorTable:
    """Forward covariances sure_k I + of_x_k I + of_field_k dF/dx (`samplers.directional`), [K] float64 each.

    Attributes:
        sure: variance that were left if x1 were known.
        of_x, of_field: coefficients of what is unknown of x1 at time t_k, by Tweedie's formula.
    """

    sure: Tensor
    of_x: Tensor
    of_field: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class KernelTable:
    """Coefficients of the kernels, [K] float64 each; times [K+1] rise from 0 to 1. A zero back_std means the origin itself.

    `posterior` is None where the field says nothing about the covariance of x1.
    """

    times: Tensor
    keep: Tensor
    gain: Tensor
    std: Tensor
    back: Tensor
    back_std: Tensor
    posterior: PosteriorTable | None = None

    def __len__(self) -> int:
        return len(self.std)


@dataclass(frozen=True, kw_only=True, eq=False)
class FieldKernels:
    """The kernels of a table with one field.

    Args:
        space: flat.
        field: F(t, x).
        table: coefficients.
        batch: configurations that the field sees at once.
    """

    space: Space
    field: Field
    table: KernelTable
    batch: int = 256

    jacobians = 0

    @property
    def steps(self) -> int:
        return len(self.table)

    @property
    def evaluations(self) -> int:
        return len(self.table)

    def forward(self, k: int, x: Tensor) -> Kernel:
        """q_k(. | x)."""
        table = self.table
        move = (table.keep[k] - 1) * x + table.gain[k] * self._value(table.times[k], x)
        return GaussianKernel(space=self.space, x=x, move=self.space.project(move), std=table.std[k].item())

    def backward(self, k: int, x: Tensor) -> Kernel:
        """r_k(. | x)."""
        if self.table.back_std[k] == 0:
            return PointKernel(x=torch.zeros_like(x))
        return GaussianKernel(space=self.space, x=x, move=(self.table.back[k] - 1) * x, std=self.table.back_std[k].item())

    def _value(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.cat(map_batches(lambda rows: field_value(self.field, t, x[rows]), len(x), self.batch, None))


@torch.no_grad()
def field_value(field: Field, t: Tensor, x: Tensor) -> Tensor:
    """F(t, x) [B, n, d] float64, without a graph (which threads would keep otherwise)."""
    return field(t, x).double()


def velocity_table(path: Interpolant, times: Tensor, *, prior_std: float, spread: float) -> KernelTable:
    """Table of a denoising diffusion whose field is the path's velocity E[dx_t/dt | x_t = x].

        D = (b' x - b v) / (a b' - a' b)    for x_t = a x1 + b x0, primes being time derivatives

    Args:
        path: with independent x0 and x1, as the field must have been trained.
        times: [K+1] from 0 to 1.
        prior_std: of x0.
        spread: standard deviation of a Gaussian x1 for which the forward variances would be exact.
    """
    a, b, a_rate, b_rate = path.coefficients(times.double())
    scale = a * b_rate - a_rate * b
    return _denoising(times, a, b * prior_std, b_rate / scale, -b / scale, spread)


def score_table(path: Interpolant, times: Tensor, *, prior_std: float, spread: float = math.inf) -> KernelTable:
    """Table of a denoising diffusion whose field is the score, grad log p_t(x): D = (x + (b s0)^2 score) / a.

    Arguments as above; an infinite spread gives Euler-Maruyama's variances. Noise left at t = 1 is taken out by the last step, which
    leads to x1 itself whatever b(1).
    """
    a, b, _, _ = path.coefficients(times.double())
    if not a[0] > 0:
        raise ValueError("a score does not say where x1 lies where the signal is zero; use a variance-exploding path, or a velocity")
    return _denoising(times, a, b * prior_std, 1 / a, (b * prior_std) ** 2 / a, spread)


def _denoising(times: Tensor, a: Tensor, sigma: Tensor, of_x: Tensor, of_field: Tensor, spread: float) -> KernelTable:
    """The table for D = of_x x + of_field F and x_t | x1 ~ N(a x1, sigma^2), with sigma(1) taken as 0."""
    a, a_next = a[:-1], a[1:]
    square, square_next = sigma[:-1] ** 2, torch.cat([sigma[1:-1], sigma.new_zeros(1)]) ** 2
    back = a / a_next
    back_square = square - back**2 * square_next
    to_end, to_here = back_square * a_next / square, back * square_next / square
    unknown, sure = 1 / (a**2 / square + 1 / spread**2), square_next * back_square / square
    tweedie = to_end**2 * square / a.clamp_min(torch.finfo(a.dtype).tiny)
    seen = a > 0  # without any signal the posterior of x1 is its prior, a Gaussian of this spread
    posterior = PosteriorTable(sure=sure, of_x=torch.where(seen, tweedie * of_x[:-1], to_end**2 * unknown),
                               of_field=torch.where(seen, tweedie * of_field[:-1], 0.0))
    return KernelTable(times=times, keep=to_here + to_end * of_x[:-1], gain=to_end * of_field[:-1],
                       std=(sure + to_end**2 * unknown).sqrt(), back=back, back_std=back_square.sqrt(), posterior=posterior)


def control_table(brownian: GeometricBrownian, times: Tensor, *, spread: float | None = None) -> KernelTable:
    """Table of dX = sigma^2 v dt + sigma dB from the origin, whose field is v (design section 8: the control divided by sigma).

    E[X_1 | X_t = x] = x + (nu_1 - nu_t) v at convergence. The backward kernels are those of Brownian motion, which ends at the origin.

    Args:
        brownian: the base process.
        times: [K+1] from 0 to 1.
        spread: standard deviation of a Gaussian X_1 for which the forward variances would be exact; Euler-Maruyama's if None.
    """
    nu = brownian.variance(times.double())
    total, left, step = nu[-1], nu[-1] - nu[:-1], nu.diff()
    unknown = 1 / (nu[:-1] / (total * left) + 1 / (spread**2 if spread else total))
    sure, seen = step * (nu[-1] - nu[1:]) / left, nu[:-1] > 0  # at the origin nothing is known of X_1, and no slope has been learned
    return KernelTable(times=times, keep=torch.ones_like(step), gain=step, std=(sure + (step / left) ** 2 * unknown).sqrt(),
                       back=nu[:-1] / nu[1:], back_std=(nu[:-1] * step / nu[1:]).sqrt(),
                       posterior=PosteriorTable(sure=sure, of_x=torch.where(seen, step**2 / left, (step / left) ** 2 * unknown),
                                                of_field=torch.where(seen, step**2, 0.0)))


@torch.no_grad()
def tuned(kernels: FieldKernels, x1: Tensor, *, generator: torch.Generator) -> FieldKernels:
    """The kernels with the forward variances of maximum likelihood on backward walks from x1, to be frozen before anything is weighed.

        std_k^2 = mean |x_{k+1} - keep_k x_k - gain_k F(t_k, x_k)|^2 / dim,    x_k ~ r_k(. | x_{k+1})

    Args:
        kernels: whose means stay.
        x1: configurations of the target [B, n, d], which must not be among the samples weighed later.
        generator: of the walks.
    """
    y, std = x1.double(), kernels.table.std.clone()
    for k in reversed(range(kernels.steps)):
        x = kernels.backward(k, y).sample(generator=generator)
        mean = x + kernels.forward(k, x).move
        std[k] = ((y - mean).square().sum((1, 2)).mean() / kernels.space.dim).sqrt()
        y = x
    return replace(kernels, table=replace(kernels.table, std=std))
