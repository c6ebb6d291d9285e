"""The degree of an executed map: what makes signed weights proper where the map folds.

A smooth map T of R^m covers almost every point y as often as the signs of its determinant say: sum over T(z) = y of sign det DT(z) is
deg(T, y), so that E[sign(det) exp(-u)/q f] = Z E_pi[deg f]. The degree is one wherever T on a large sphere can be brought back to the
identity without passing y on the way (homotopy invariance of the Brouwer degree; Outerelo & Ruiz 2009, Mapping Degree Theory). The way
looked at here is the straight one, (1 - s) z + s T(z) with |z| = R: where it stays further from the origin than every sample, the degree is
one at all of them. What the prior has outside the sphere, at a hundred times its farthest draw, is nothing.

That is looked for, not proved: from draws on the sphere the search goes on in the direction that T turns against most. A way that passes
the origin has T(z) = -a z, and so z - T(z) points along z: iterating z <- R (z - T(z)) / |z - T(z)| leads to such directions as the power
method does to an eigenvector, also where they are so few that no draw would hit them (a reflection of one axis in sixty, say).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bgwork.spaces import Euclidean, MeanFree, Space

DRAWS = 128
RADIUS = 100.0  # of the sphere, in units of the farthest prior draw: fields are then as good as constant or linear
ROUNDS = 4  # of the search, after the draws themselves
UNEVEN = 1.5  # standard deviation of the logarithm of the particles' shares in the uneven half


def degree_margin(push: Callable[[Tensor], Tensor], space: Space, z: Tensor, x: Tensor) -> tuple[int, float]:
    """How far from the origin the images of a far sphere stay on their straight way, over the farthest sample.

        margin = min_{|z| = R, s} |(1 - s) z + s T(z)| / max_i |x_i|

    Args:
        push: T, on [B, n, d].
        space: on which T acts.
        z: prior draws [N, n, d].
        x: their images [N, n, d]; those that are not finite are left out, and count as failed elsewhere.
    Returns:
        The number of points of the sphere that were looked at, and the margin: if it is above one at all of the sphere, T has degree one at
        every x. NaN where an image is not finite. (0, NaN) without a finite x, and on spaces that are not flat, where this argument does
        not hold.

    Example:
        >>> one = torch.ones(1, 1, 1, dtype=torch.float64)
        >>> degree_margin(lambda z: z + torch.sin(3 * z), Euclidean(n=1, d=1), one, one)[1] > 90
        True
    """
    seen = x[torch.isfinite(x).flatten(1).all(1)]
    if not isinstance(space, Euclidean | MeanFree) or len(seen) == 0:
        return 0, math.nan
    radius, passed = RADIUS * _norm(z).max(), []
    start = radius * directions(space)
    for _ in range(ROUNDS + 1):
        way = push(start) - start
        passed.append(_nearest(start, way))
        start = torch.where(way.abs().amax((1, 2), keepdim=True) > 0, -radius * _unit(way), start)
    return DRAWS * (ROUNDS + 1), (torch.cat(passed).min() / _norm(seen).max()).item()


def _nearest(start: Tensor, way: Tensor) -> Tensor:
    """Smallest distance [B] from the origin on the way from `start` to `start + way`; NaN where that is not finite."""
    square = way.square().sum((1, 2))
    part = (-(start * way).sum((1, 2)) / square.clamp_min(1e-300)).clamp(0, 1)
    return torch.where(torch.isfinite(square), _norm(start + part[:, None, None] * way), torch.nan)


def directions(space: Space) -> Tensor:
    """Unit vectors [DRAWS, n, d] of the space, always the same: half of them even over the particles, half uneven."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(DRAWS, space.n, space.d, generator=generator, dtype=torch.float64)
    shares = (UNEVEN * torch.randn(DRAWS, space.n, 1, generator=generator, dtype=torch.float64)).exp()
    shares[: DRAWS // 2] = 1.0
    return _unit(space.project(shares * drawn))


def _unit(x: Tensor) -> Tensor:
    return x / _norm(x).clamp_min(1e-300)[:, None, None]


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)
