"""Kernels whose noise has a width for each direction, from the Jacobian of the field: far fewer steps for the same weights.

    q_k(x' | x) = N(keep_k x + gain_k F(t_k, x), sure_k I + to_end_k^2 Cov[x1 | x_t = x])
    Cov[x1 | x_t = x] = (sigma_t^2 / a_t) dD/dx,    D = E[x1 | x_t = x],    x_t | x1 ~ N(a_t x1, sigma_t^2)

are the exact mean and covariance of the step that reverses plain noising (Tweedie's formula to second order), where kernels with one
width have the right trace of the covariance at most. What is left to pay for in the weights are the third moments, and what the field has
not learned. The backward kernels are those of `samplers.kernels`, so that the path weights are proper whatever the Jacobian says.
Source: Bao et al. 2022 (arXiv:2206.07309), with the diagonal of the covariance learned; here the field's closed form gives all of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bgwork.samplers.batches import map_batches, rows_in_cache
from bgwork.samplers.kernels import FieldKernels
from bgwork.samplers.sde import Kernel
from bgwork.spaces import Euclidean, MeanFree, Space

JACOBIAN = "widths for each direction from the Jacobian"  # for notes
LEAST = 0.02  # of a kernel's isotropic variance: what every direction keeps where nothing has been fitted
ITERATIONS = 60  # of L-BFGS for two numbers


@dataclass(frozen=True, kw_only=True, eq=False)
class CovarianceKernel:
    """N(mean, C) with C = sum_i variance_i e_i e_i^T, on a flat space.

    Draws are mean + C^(1/2) xi with the symmetric root, which depends on C alone: axes of equal variances are any, and their signs too, so
    that round-off would give other numbers from the same seed.

    Args:
        mean: [B, n, d] float64.
        variances: [B, dim], positive.
        axes: e_i, orthonormal and in the space, [B, nd, dim].
    """

    mean: Tensor
    variances: Tensor
    axes: Tensor

    def sample(self, *, generator: torch.Generator) -> Tensor:
        noise = torch.randn(self.mean.shape, generator=generator, dtype=torch.float64).flatten(1)[:, :, None]
        along = self.variances.sqrt()[:, :, None] * (self.axes.mT @ noise)
        return self.mean + (self.axes @ along).view_as(self.mean)

    def log_prob(self, y: Tensor) -> Tensor:
        return -0.5 * (squares(self.axes, y - self.mean) / self.variances + (2 * math.pi * self.variances).log()).sum(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class DirectionalKernels:
    """Kernels with the means of `plain` and covariances from the field's Jacobian.

        C_k = stretch_k max(to_end_k^2 Cov[x1 | x_t = x], 0) + floor_k I

    Args:
        plain: on a flat space, with a table that has a posterior.
        stretch, floor: [K] float64: one and `sure` in theory (`directional`), or fitted (`fitted`).
        batch: configurations whose Jacobians are taken at once, by default as many as fit a cache.

    Example:
        >>> from bgwork.fields.mlp import MLP
        >>> from bgwork.paths import LinearInterpolant, stops
        >>> from bgwork.samplers.kernels import velocity_table
        >>> from bgwork.spaces import Euclidean
        >>> table = velocity_table(LinearInterpolant(), stops(5), prior_std=1.0, spread=1.0)
        >>> kernels = directional(FieldKernels(space=Euclidean(n=1, d=2), field=MLP(1, 2), table=table))
        >>> kernels.forward(0, torch.zeros(3, 1, 2).double()).variances.shape
        torch.Size([3, 2])
    """

    plain: FieldKernels
    stretch: Tensor
    floor: Tensor
    batch: int | None = None

    @property
    def space(self) -> Space:
        return self.plain.space

    @property
    def steps(self) -> int:
        return self.plain.steps

    @property
    def evaluations(self) -> int:
        return self.plain.evaluations

    @property
    def jacobians(self) -> int:
        return self.plain.steps

    def forward(self, k: int, x: Tensor) -> CovarianceKernel:
        """q_k(. | x)."""
        mean, unknown, axes = self.posterior(k, x)
        return CovarianceKernel(mean=mean, variances=self.stretch[k] * unknown + self.floor[k], axes=axes)

    def backward(self, k: int, x: Tensor) -> Kernel:
        """r_k(. | x)."""
        return self.plain.backward(k, x)

    @torch.no_grad()
    def posterior(self, k: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean [B, n, d] of step k, what is unknown of x1 along each axis [B, dim] (never negative), and the axes [B, nd, dim]."""
        basis = basis_of(self.space)
        parts = map_batches(lambda rows: self._posterior(k, x[rows], basis), len(x), self.batch or rows_in_cache(self.space), None)
        mean, unknown, axes = zip(*parts, strict=True)
        return torch.cat(mean), torch.cat(unknown), torch.cat(axes)

    @torch.no_grad()
    def _posterior(self, k: int, x: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        table, known = self.plain.table, self.plain.table.posterior
        v, jacobian = (value.double() for value in self.plain.field.value_and_jacobian(table.times[k], x))
        mean = x + self.space.project((table.keep[k] - 1) * x + table.gain[k] * v)
        slope = basis.T @ (0.5 * (jacobian + jacobian.mT)) @ basis
        lost = ~(torch.isfinite(slope).flatten(1).all(1) & torch.isfinite(mean).flatten(1).all(1))
        mean[lost], slope[lost] = torch.nan, 0.0  # no eigenvalues can be had of what is not finite
        unknown, axes = torch.linalg.eigh(slope)
        return mean, (known.of_x[k] + known.of_field[k] * unknown).clamp_min(0.0), basis @ axes


def directional(plain: FieldKernels) -> DirectionalKernels:
    """The kernels of theory: exact where the field is and p(x1 | x_t) is Gaussian, but for a little noise in every direction.

    Raises:
        ValueError: if the table says nothing about covariances, or the field has no Jacobian.
    """
    if plain.table.posterior is None or not hasattr(plain.field, "value_and_jacobian"):
        raise ValueError("widths for each direction need a field with a Jacobian and a denoising table; take weights = \"path\"")
    floor = plain.table.posterior.sure + LEAST * plain.table.std**2
    return DirectionalKernels(plain=plain, stretch=torch.ones_like(floor), floor=floor)


@torch.no_grad()
def fitted(kernels: DirectionalKernels, x1: Tensor, *, generator: torch.Generator) -> DirectionalKernels:
    """The kernels with stretch and floor of maximum likelihood on backward walks from x1, to be frozen before anything is weighed.

    Args:
        kernels: whose means and axes stay.
        x1: configurations of the target [B, n, d], which must not be among the samples weighed later.
        generator: of the walks.
    Raises:
        ValueError: if the field is not finite on some walk.
    """
    y, stretch, floor = x1.double(), kernels.stretch.clone(), kernels.floor.clone()
    for k in reversed(range(kernels.steps)):
        x = kernels.backward(k, y).sample(generator=generator)
        mean, unknown, axes = kernels.posterior(k, x)
        off = squares(axes, y - mean)
        if not bool(torch.isfinite(off).all()):
            raise ValueError(f"the field is not finite on {int((~torch.isfinite(off)).any(1).sum())} of {len(x1)} walks back from "
                             "the configurations to be fitted to; take weights = \"path\" or train it better")
        stretch[k], floor[k] = _most_likely(unknown, off)
        y = x
    return replace(kernels, stretch=stretch, floor=floor)


@torch.enable_grad()
def _most_likely(unknown: Tensor, off: Tensor) -> Tensor:
    """(stretch, floor) of least mean of log v + off / v, v = stretch unknown + floor."""
    log_shape = nn.Parameter(torch.stack([torch.zeros(()).double(), (0.5 * off.mean()).log()]))
    optimiser = torch.optim.LBFGS([log_shape], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        variance = log_shape[0].exp() * unknown + log_shape[1].exp()
        value = (variance.log() + off / variance).mean()
        value.backward()
        return value

    optimiser.step(loss)
    return log_shape.detach().exp()


def squares(axes: Tensor, v: Tensor) -> Tensor:
    """(e_i . v)^2 [B, dim] for axes [B, nd, dim] and v [B, n, d]."""
    return (axes.mT @ v.flatten(1)[:, :, None]).squeeze(-1).square()


def basis_of(space: Space) -> Tensor:
    """Orthonormal vectors that span a flat space, [nd, dim] float64.

    Raises:
        ValueError: if the space is curved or closed.
    """
    if not isinstance(space, Euclidean | MeanFree):
        raise ValueError(f"{space} is not flat; widths for each direction need a flat space")
    size = space.n * space.d
    projection = space.project(torch.eye(size, dtype=torch.float64).view(size, space.n, space.d)).reshape(size, size)
    return torch.linalg.eigh(projection)[1][:, size - space.dim:]
