"""Velocities whose flow has, at convergence, the marginals of a learned diffusion: any smooth field is a flow, which weighs it exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bgwork.fields.affine import Affine, AffineCoefficients
from bgwork.paths import GeometricBrownian, Interpolant
from bgwork.protocols import Field
from bgwork.spaces import Space


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
