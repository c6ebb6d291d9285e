"""Velocities whose flow has, at convergence, the marginals of a learned diffusion: any smooth field is a flow, which weighs it exactly."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bgwork.fields.affine import Affine, AffineCoefficients
from bgwork.paths import GeometricBrownian, Interpolant
from bgwork.priors import image_shares
from bgwork.protocols import Field
from bgwork.spaces import Space, Torus

FINE = 4001  # points of a monotonous function that is inverted by interpolation


@dataclass(frozen=True, kw_only=True)
class _OfScore:
    path: Interpolant
    prior_std: float

    def __call__(self, t: Tensor) -> AffineCoefficients:
        a, b, a_rate, b_rate = self.path.coefficients(t)
        gain = self.prior_std**2 * b * (b * a_rate / a - b_rate)
        return AffineCoefficients(a_rate / a, gain, torch.ones_like(t), t)


@dataclass(frozen=True, kw_only=True)
class _OfControl:
    brownian: GeometricBrownian

    def __call__(self, t: Tensor) -> AffineCoefficients:
        total = torch.full_like(t, self.brownian.std**2)
        return AffineCoefficients(torch.zeros_like(t), total, t, self.brownian.time(t.double() ** 2).to(t))


def velocity_of_score(score: Field, space: Space, path: Interpolant, *, prior_std: float) -> Affine:
    """v = (a'/a) x + s0^2 b (b a'/a - b') score, for x_t = a x1 + b x0 with x0 ~ N(0, s0^2) (Song et al. 2021, eq. 13).

    The flow starts from N(0, s0^2) at t = 0.
    """
    return Affine(score, space, _OfScore(path=path, prior_std=prior_std))


def velocity_of_control(control: Field, space: Space, brownian: GeometricBrownian) -> Affine:
    """v(tau, z) = nu_1 F(t(tau), tau z) with tau = sqrt(nu_t / nu_1), for the field F of dX = sigma^2 F dt + sigma dB from the origin.

    With a point for start, grad log p_t = F - x / nu_t at convergence, so the probability flow is dx/dnu = (F + x / nu) / 2. In
    z = x sqrt(nu_1 / nu_t) and tau the pole at nu = 0 is gone: dz/dtau = nu_1 F, from z ~ N(0, nu_1) at tau = 0 to x = z at tau = 1.
    """
    return Affine(control, space, _OfControl(brownian=brownian))


def control_stops(brownian: GeometricBrownian, times: Tensor) -> tuple[float, ...]:
    """tau at times t [K+1] from 0 to 1, as a grid for the flow along `velocity_of_control`."""
    tau = (brownian.variance(times.double()) / brownian.std**2).sqrt()
    return (0.0, *tau[1:-1].tolist(), 1.0)


class WrappedVelocity(nn.Module):
    """Probability flow of a controlled Brownian motion from the origin of a torus, from where it is still a wrapped normal nearly.

        dx/dtau = nu'(tau) [F(t, x) - grad log W(x; 0, nu)] / 2,    nu(tau) = nu_1 share^(1 - tau)

    for the field F of dX = sigma^2 F dt + sigma dB, since grad log p_t = F + grad log W_t at convergence. From x ~ W(0, share nu_1) at
    tau = 0; that the true p_t is not quite that costs effective samples, no bias. W is the wrapped normal. In double precision.

    Args:
        control: F(t, x) with a Jacobian, of which a copy is taken.
        space: that it lives on.
        brownian: the motion without control.
        share: of the final variance, at which the flow starts.
    """

    def __init__(self, control: nn.Module, space: Torus, brownian: GeometricBrownian, *, share: float) -> None:
        if not 0 < share < 1:
            raise ValueError(f"the flow must start at a share of the final variance between 0 and 1, got {share}")
        super().__init__()
        self.control, self.space, self.brownian, self.share = copy.deepcopy(control).double(), space, brownian, share
        self.n, self.d = space.n, space.d

    def forward(self, tau: Tensor, x: Tensor) -> Tensor:
        """dx/dtau [B, n, d] at angles x [B, n, d], wrapped or not."""
        t, variance = self._at(tau)
        return self._rate(variance) * (self.control(t, x.double()) - self._score(x, variance)[0])

    def value_and_jacobian(self, tau: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """dx/dtau [B, n, d] and its Jacobian [B, nd, nd]."""
        t, variance = self._at(tau)
        value, jacobian = self.control.value_and_jacobian(t, x.double())
        score, slope = self._score(x, variance)
        rate = self._rate(variance)
        return rate * (value - score), rate * (jacobian - torch.diag_embed(slope.flatten(1)))

    def stops(self, times: Tensor) -> tuple[float, ...]:
        """tau at which the mean of tau and t, as they run from 0 to 1 over the flow, has these values [K+1]: first x grows with the root
        of nu, most in equal steps of tau, and then the energy acts, in equal steps of t."""
        tau = torch.linspace(0, 1, FINE, dtype=torch.float64)
        t = self.brownian.time(self.share ** (1 - tau))
        mean = 0.5 * (tau + (t - t[0]) / (1 - t[0]))
        inner = np.interp(times[1:-1].double().numpy(), mean.numpy(), tau.numpy())
        return (0.0, *inner.tolist(), 1.0)

    def _at(self, tau: Tensor) -> tuple[Tensor, float]:
        """t and nu at one tau."""
        share = self.share ** (1.0 - float(tau))
        return self.brownian.time(torch.tensor(share, dtype=torch.float64)), share * self.brownian.std**2

    def _rate(self, variance: float) -> float:
        """nu'(tau) / 2."""
        return -0.5 * math.log(self.share) * variance

    def _score(self, x: Tensor, variance: float) -> tuple[Tensor, Tensor]:
        """grad log W of every angle [B, n, d], and its derivative."""
        images, shares = image_shares(self.space, x.double(), variance=variance)
        mean = (shares * images).sum(0)
        spread = (shares * (images - mean).square()).sum(0)
        return -mean / variance, spread / variance**2 - 1 / variance
