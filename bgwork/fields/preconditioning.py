"""Networks that see inputs of one scale and start from the solution of a Gaussian target, at every noise level.

After Karras et al. 2022 (arXiv:2206.00364, table 1): the input is divided by its standard deviation, in units of the target's, so that
lengths keep their meaning for radial features, and the linear part is exact for a target N(0, spread^2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bgwork.fields.affine import AffineCoefficients
from bgwork.paths import GeometricBrownian, Interpolant

FLOOR = 1e-3  # of the target's variance: input is not magnified beyond, so that the origin at t = 0 stays where it is


@dataclass(frozen=True, kw_only=True)
class ScorePreconditioning:
    """score(t, x) = -a... x / (a^2 s^2 + sigma^2) + F(t, x s / sqrt(a^2 s^2 + sigma^2)) s / (sigma sqrt(s^2 + sigma^2)).

    Args:
        path: noise schedule with signal a and noise b.
        prior_std: so that sigma = b prior_std.
        spread: s, of the target, in the system's length unit.
    """

    path: Interpolant
    prior_std: float
    spread: float

    def __call__(self, t: Tensor) -> AffineCoefficients:
        a, b, _, _ = self.path.coefficients(t)
        square = (b * self.prior_std) ** 2
        total = (a * self.spread) ** 2 + square
        return AffineCoefficients(-1 / total, self.spread / (square * total).sqrt(), self.spread / total.sqrt(), t)


@dataclass(frozen=True, kw_only=True)
class ControlPreconditioning:
    """v(t, x) = (1/nu_1 - 1/s^2) (g s^2 / var_t) x + F(t, x s / sqrt(var_t)) / s, var_t = g^2 s^2 + nu_1 g (1 - g), g = nu_t / nu_1.

    Args:
        brownian: the base process.
        spread: s, of the target, in the system's length unit.
    """

    brownian: GeometricBrownian
    spread: float

    def __call__(self, t: Tensor) -> AffineCoefficients:
        total, square = self.brownian.std**2, self.spread**2
        g = self.brownian.variance(t) / total
        over_g = g * square + total * (1 - g)  # var_t / g, finite at the origin
        keep = (1 / total - 1 / square) * square / over_g
        scale = self.spread / (g * over_g + FLOOR * square).sqrt()
        return AffineCoefficients(keep, torch.full_like(t, 1 / self.spread), scale, t)
