"""iDEM: the score of the noised target estimated from energies alone, regressed at noised points of a buffer (Akhound-Sadegh et al. 2024).

    x_t = x_1 + sigma_t eps,    grad log p_t(x) = grad log E_eps exp(-u(x + sigma eps)),   eps ~ N(0, 1)
    S_K(x) = grad log 1/K sum_k exp(-u(x + sigma eps_k)) = -sum_k w_k grad u(x + sigma eps_k),  w = softmax(-u)     (eq. 8)

S_K is consistent, with a bias of order 1/K. The outer loop refills the buffer from the reverse SDE of the current score, the inner
loop regresses; the regression's target needs no sample of the target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bgwork.fields.preconditioning import ScorePreconditioning
from bgwork.objectives.replay import Regression, clip_per_particle
from bgwork.paths import GeometricNoise, Times
from bgwork.priors import Gaussian
from bgwork.protocols import Field, Target
from bgwork.records import Origin, Proposal
from bgwork.samplers.kernels import FieldKernels, KernelTable
from bgwork.samplers.sde import PathSampler

CHUNK = 2**15  # configurations whose energies are asked for at once


@dataclass(frozen=True, kw_only=True, eq=False)
class IteratedDenoisingEnergyMatching:
    """The method (`bgwork.objectives.replay.EnergyMethod`).

    Args:
        prior: of the reverse SDE; its space is the target's.
        largest: largest noise sigma_0, in the length unit.
        path: geometric noise schedule down to largest * ratio.
        table: kernels of the sampler that fills the buffer (`bgwork.samplers.kernels.score_table`).
        samples: K.
        clip: largest score of a particle that is regressed on, in kT per length unit.
        spread: of the target; sets the weight of the loss as in `ScorePreconditioning`.
        richardson: whether the bias of order 1/K is extrapolated away (`richardson_score`).
        times: distribution of t.
    """

    prior: Gaussian
    largest: float
    path: GeometricNoise
    table: KernelTable
    samples: int
    clip: float
    spread: float
    richardson: bool = False
    times: Times = field(default_factory=Times)

    def sampler(self, model: Field) -> PathSampler:
        """The reverse SDE in as many steps as the table has."""
        kernels = FieldKernels(space=self.prior.space, field=model, table=self.table)
        return PathSampler(start=self.prior, kernels=kernels, origin=Origin(method="iDEM", system="training"))

    def measure(self, target: Target, proposal: Proposal) -> dict[str, Tensor]:
        """x, and u and the path log-weight for the record."""
        u = target.u(proposal.x)
        return {"x": proposal.x, "u": u, "log_w": -u - proposal.log_q}

    def regression(self, target: Target, rows: Mapping[str, Tensor], *, generator: torch.Generator) -> Regression:
        """Noised rows with their estimated scores, clipped per particle."""
        space, x1 = self.prior.space, rows["x"]
        t = self.times.sample(len(x1), generator=generator)
        sigma = self.largest * self.path.coefficients(t).noise
        x = x1 + sigma[:, None, None] * space.project(torch.randn(x1.shape, generator=generator, dtype=torch.float64))
        estimate = richardson_score if self.richardson else noised_score
        score, clipped = clip_per_particle(estimate(target, x, sigma, samples=self.samples, generator=generator), self.clip)
        gain = ScorePreconditioning(path=self.path, prior_std=self.largest, spread=self.spread)(t).gain
        return Regression(t=t, x=x, value=space.project(score), weight=1 / gain**2, clipped=clipped)


def noised_score(target: Target, x: Tensor, sigma: Tensor, *, samples: int, generator: torch.Generator) -> Tensor:
    """S_K(x) [B, n, d] float64: K gradients of the energy for each row.

    Args:
        target: the reduced energy.
        x: [B, n, d] float64.
        sigma: [B] noise.
        samples: K.
        generator: of the noise.
    Raises:
        ValueError: if no energy around some row is finite.
    """
    return torch.cat([weighted_force(u, gradient) for u, gradient in _clouds(target, x, sigma, samples, generator)])


def richardson_score(target: Target, x: Tensor, sigma: Tensor, *, samples: int, generator: torch.Generator) -> Tensor:
    """2 S_K - (S_K/2 + S'_K/2) / 2 over the two halves of the same K draws: the bias c/K cancels, the variance grows.

    Arguments and errors as in `noised_score`; `samples` must be even.
    """
    if samples % 2:
        raise ValueError(f"halves need an even number of samples, got {samples}")
    scores, half = [], samples // 2
    for u, gradient in _clouds(target, x, sigma, samples, generator):
        halves = weighted_force(u[:, :half], gradient[:, :half]) + weighted_force(u[:, half:], gradient[:, half:])
        scores.append(2 * weighted_force(u, gradient) - halves / 2)
    return torch.cat(scores)


def weighted_force(u: Tensor, gradient: Tensor) -> Tensor:
    """-sum_k softmax(-u)_k gradient_k [B, n, d], for u [B, K] and gradient [B, K, n, d], which may be NaN where u = +inf.

    Raises:
        ValueError: if all u of a row are +inf, or one is NaN.
    """
    w = torch.softmax(-u, 1)
    if torch.isnan(w).any():
        bad = int(torch.isnan(w).any(1).sum())
        raise ValueError(f"the noised score of {bad} of {len(u)} rows is undefined: a NaN energy, or none that is finite; lower the noise")
    return -torch.where(w[..., None, None] > 0, w[..., None, None] * gradient, 0.0).sum(1)


def _clouds(target: Target, x: Tensor, sigma: Tensor, samples: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """u [R, K] and gradient [R, K, n, d] at K noised copies of R rows at a time."""
    for rows in torch.arange(len(x)).split(max(1, CHUNK // samples)):
        noise = torch.randn(len(rows), samples, *x.shape[1:], generator=generator, dtype=torch.float64)
        cloud = x[rows, None] + sigma[rows, None, None, None] * target.space.project(noise)
        u, gradient = target.u_and_grad(cloud.flatten(0, 1))
        yield u.view(len(rows), samples), gradient.view(cloud.shape)
