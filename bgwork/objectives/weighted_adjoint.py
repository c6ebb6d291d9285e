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

from bgwork.buffers import tempered_rows
from bgwork.objectives.adjoint_sampling import AdjointSampling, bridged
from bgwork.objectives.replay import Regression, clip_per_particle
from bgwork.protocols import Target
from bgwork.records import Proposal


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightedAdjointSampling(AdjointSampling):
    """The method (`bgwork.objectives.replay.EnergyMethod`); its rows are to be drawn by their column log_p.

    Args:
        effective: share of the fresh samples that shall be effective, between 0 and 1; 1 is to ignore the weights.
    """

    effective: float = 0.2

    def measure(self, target: Target, proposal: Proposal) -> dict[str, Tensor]:
        """As in `AdjointSampling`, with log_p: the tempered log-weight, of total one over the finite rows of a refill."""
        rows = super().measure(target, proposal)
        return rows | {"log_p": tempered_rows(rows["log_w"], self.effective)}

    def regression(self, target: Target, rows: Mapping[str, Tensor], *, generator: torch.Generator) -> Regression:
        """Points of bridges with the combined value; weighed by its inverse variance, which is about nu_1 - nu_t + 1/k."""
        gradient, clipped = clip_per_particle(rows["gradient"], self.clip)
        x1, total = rows["x"], self.brownian.std**2
        t, x = bridged(self, x1, generator=generator)
        left = (total - self.brownian.variance(t)).clamp_min(1e-12 * total)
        curvature = gradient.square().sum((1, 2)).mean() / self.space.dim
        share = 1 / (1 + (curvature - 1 / total).clamp_min(0) * left)[:, None, None]
        by_gradient, by_bridge = x1 / total - self.space.project(gradient), (x1 - x) / left[:, None, None]
        return Regression(t=t, x=x, value=share * by_gradient + (1 - share) * by_bridge, weight=left + 1 / curvature, clipped=clipped)
