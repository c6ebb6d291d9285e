"""The degree of an executed map: what makes signed weights proper where the map folds.

A smooth map T of R^m covers almost every point y as often as the signs of its determinant say: sum over T(z) = y of sign det DT(z) is
deg(T, y), so that E[sign(det) exp(-u)/q f] = Z E_pi[deg f]. The degree is one wherever T on a large sphere can be brought back to the
identity without passing y on the way (homotopy invariance of the Brouwer degree; Outerelo & Ruiz 2009, Mapping Degree Theory). The way
looked at here is the straight one, (1 - s) z + s T(z) with |z| = R: where it stays further from the origin than every sample, the degree is
one at all of them. As with determinants, this is checked at draws: half of them in directions that are even over the particles, half in
uneven ones. What the prior has outside the sphere, at a hundred times its farthest draw, is nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bgwork.spaces import Euclidean, MeanFree, Space

DRAWS = 128
RADIUS = 100.0  # of the sphere, in units of the farthest prior draw: fields are then as good as constant or linear
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
        The number of draws on the sphere and the margin: above one, T has degree one at every x. (0, NaN) on spaces that are not flat,
        where this argument does not hold.

    Example:
        >>> one = torch.ones(1, 1, 1, dtype=torch.float64)
        >>> degree_margin(lambda z: z + torch.sin(3 * z), Euclidean(n=1, d=1), one, one)[1] > 90
        True
    """
    if not isinstance(space, Euclidean | MeanFree):
        return 0, torch.nan
    start = RADIUS * _norm(z).max() * directions(space)
    end = push(start)
    way = end - start
    nearest = (-(start * way).sum((1, 2)) / way.square().sum((1, 2)).clamp_min(1e-300)).clamp(0, 1)
    passed = _norm(start + nearest[:, None, None] * way)
    farthest = _norm(x[torch.isfinite(x).flatten(1).all(1)]).max()
    return len(start), (passed.min() / farthest).item()


def directions(space: Space) -> Tensor:
    """Unit vectors [DRAWS, n, d] of the space, always the same."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(DRAWS, space.n, space.d, generator=generator, dtype=torch.float64)
    shares = (UNEVEN * torch.randn(DRAWS, space.n, 1, generator=generator, dtype=torch.float64)).exp()
    shares[: DRAWS // 2] = 1.0
    drawn = space.project(shares * drawn)
    return drawn / _norm(drawn)[:, None, None]


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)
