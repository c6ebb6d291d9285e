"""Networks that see inputs of one scale and start from the solution of a Gaussian target, at every noise level.

After Karras et al. 2022 (arXiv:2206.00364, table 1): the input is divided by its standard deviation, in units of the target's, so that
lengths keep their meaning for radial features, and the linear part is exact for a target N(0, spread^2).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bgwork.fields.affine import AffineCoefficients
from bgwork.paths import GeometricBrownian, Interpolant

FLOOR = 1e-3  # of the target's variance: input is not magnified beyond, so that the origin at t = 0 stays where it is


@dataclass(frozen=True, kw_only=True)
class ScorePreconditioning:
    """score(t, x) = -x / var_t + F(t, x s / sqrt(var_t)) s / (sigma sqrt(var_t)), var_t = a^2 s^2 + sigma^2.

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
    """v = (1/nu_1 - 1/s^2) (g s^2 / var_t) x + F(t, x s / sqrt(var_t)) / sqrt(nu_1 - nu_t + 1/k), g = nu_t / nu_1.

    var_t = g^2 s^2 + nu_1 g (1 - g) is the variance of X_t. The output's scale is that of (E[X_1 | X_t] - X_t) / (nu_1 - nu_t), until the
    curvature k of the energy bounds it.

    Args:
        brownian: the base process.
        spread: s, of the target, in the system's length unit.
        curvature: k, in kT per squared length unit, roughly.
    """

    brownian: GeometricBrownian
    spread: float
    curvature: float

    def __call__(self, t: Tensor) -> AffineCoefficients:
        total, square = self.brownian.std**2, self.spread**2
        g = self.brownian.variance(t) / total
        over_g = g * square + total * (1 - g)  # var_t / g, finite at the origin
        keep = (1 / total - 1 / square) * square / over_g
        scale = self.spread / (g * over_g + FLOOR * square).sqrt()
        gain = (total * (1 - g) + 1 / self.curvature) ** -0.5
        return AffineCoefficients(keep, gain, scale, t)
