"""Adjoint sampling with importance weights: bridges to weighted end points, and the regression of least noise from both identities.

At the fixed point of adjoint sampling v = E[A | X_t] = E[B | X_t], with A = X_1 / nu_1 - grad u(X_1), B = (X_1 - X_t) / (nu_1 - nu_t). Both
hold, and so does every lambda A + (1 - lambda) B, where the end points follow the target. They do once drawn with their path weights;
the weights are tempered at each refill until a given share of the fresh samples is effective, so that the sampler approaches the
target by stages. A is as noisy as the gradient, B as (nu_1 - nu_t)^-1/2; where u is a parabola of curvature k about X_1 their noises cancel
at lambda = 1 / (1 + (k - 1/nu_1)(nu_1 - nu_t)), which is what is taken, with the mean curvature <|grad u|^2> / dim.

The combination of the two identities is that of target score matching (De Bortoli et al. 2024, arXiv:2402.08667, section 4.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bgwork.objectives.adjoint_sampling import AdjointSampling, bridged
from bgwork.objectives.replay import Regression, clip_per_particle
from bgwork.paths import GeometricBrownian
from bgwork.protocols import Target


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightedAdjointSampling(AdjointSampling):
    """The method (`bgwork.objectives.replay.EnergyMethod`), for rows drawn by their tempered weights (`ReplaySettings.effective`)."""

    def regression(self, target: Target, rows: Mapping[str, Tensor], *, generator: torch.Generator) -> Regression:
        """Points of bridges with the combined value; weighed by its inverse variance, which is about nu_1 - nu_t + 1/k."""
        gradient, clipped = clip_per_particle(rows["gradient"], self.clip)
        x1 = rows["x"]
        t, x = bridged(self, x1, generator=generator)
        mixing = least_noise(self.brownian, t, curvature=gradient.square().sum((1, 2)).mean() / self.space.dim)
        value = mixing.value(x1 / self.brownian.std**2 - self.space.project(gradient), x1 - x)
        return Regression(t=t, x=x, value=value, weight=mixing.weight, clipped=clipped)


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Both identities in one regression: share A + (1 - share) (X_1 - X_t) / left.

    Attributes:
        share: lambda [B], of the identity with the gradient.
        left: nu_1 - nu_t [B].
        weight: about the inverse variance of the mixture, [B].
    """

    share: Tensor
    left: Tensor
    weight: Tensor

    def value(self, by_gradient: Tensor, to_end: Tensor) -> Tensor:
        """The mixture [B, n, d] of A and X_1 - X_t."""
        share, left = self.share[:, None, None], self.left[:, None, None]
        return share * by_gradient + (1 - share) * (to_end / left)


def least_noise(brownian: GeometricBrownian, t: Tensor, *, curvature: Tensor) -> Mixing:
    """The mixture whose noises cancel where u is a parabola of this curvature, at times t [B]."""
    total = brownian.std**2
    left = (total - brownian.variance(t)).clamp_min(1e-12 * total)
    return Mixing(share=1 / (1 + (curvature - 1 / total).clamp_min(0) * left), left=left, weight=left + 1 / curvature)
