"""What flow sampling's drift says about a diffusion that starts in a Gaussian: its time reversal and its probability flow.

X_t = (1-t) X_0 + t X_1 with X_0 ~ N(0, s0^2) independent of X_1, and dX = f dt + g dB with g_t^2 = 2 gamma t. At convergence
    v(t, x) = [(1-t) s0^2 f + gamma t x] / [(1-t) s0^2 + gamma t^2]
carries the same marginals without noise, g^2/2 grad log p_t = f - v, and the reversed process has drift b = 2v - f.
Source: design section 8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bgwork.fields.affine import Affine, AffineCoefficients
from bgwork.priors import Gaussian
from bgwork.protocols import Field


@dataclass(frozen=True, kw_only=True)
class _OfDrift:
    prior_std: float
    gamma: float

    def __call__(self, t: Tensor) -> AffineCoefficients:
        start = (1 - t) * self.prior_std**2
        whole = start + self.gamma * t**2
        return AffineCoefficients(self.gamma * t / whole, start / whole, torch.ones_like(t), t)


def velocity_of_drift(drift: Field, *, prior: Gaussian, gamma: float) -> Affine:
    """The velocity v(t, x) of a drift f: smooth whatever f is, so that `samplers.flow.Flow` along it has an exact density.

    Args:
        drift: f(t, x), trained by flow sampling; untrained works too.
        prior: p0, whose standard deviation is s0.
        gamma: noise strength that the drift was trained with, in squared length units.
    """
    check_gamma(gamma)
    return Affine(drift, prior.space, _OfDrift(prior_std=prior.std, gamma=gamma))


class GaussianStartDrifts:
    """Forward drift f and backward drift 2v - f, for the kernels of `samplers.geodesic` on flat space.

    Args: as for `velocity_of_drift`.
    """

    def __init__(self, drift: Field, *, prior: Gaussian, gamma: float) -> None:
        check_gamma(gamma)
        self.drift, self.space, self.coefficients = drift, prior.space, _OfDrift(prior_std=prior.std, gamma=gamma)

    def __call__(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """f and 2v - f, [B, n, d] float64; t is a scalar."""
        forward = self.drift(t, x).double()
        keep, gain, _, _ = self.coefficients(t)
        return forward, 2 * (keep * self.space.project(x) + gain * forward) - forward


def check_gamma(gamma: float) -> None:
    """Raise ValueError unless gamma is positive and finite."""
    if not (gamma > 0 and math.isfinite(gamma)):
        raise ValueError(f"the noise strength gamma must be positive and finite, got {gamma}; its unit is a squared length")
