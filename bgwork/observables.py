"""Functions of a configuration whose equilibrium averages are reported: distances, sizes, basins.

Every entry of `OBSERVABLES` maps configurations [B, n, d] to one number each, [B] float64. The reduced energy, which needs a target, goes
by the name "u" wherever observables are named.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

LONG = 4.0  # the top of the double well's barrier, in the length unit of DW4


def pair_distances(x: Tensor) -> Tensor:
    """Distances of all pairs i < j, [B, n(n-1)/2] float64, in the length unit of x [B, n, d]."""
    i, j = torch.triu_indices(x.shape[1], x.shape[1], offset=1)
    x = x.double()
    return (x[:, i] - x[:, j]).norm(dim=-1)


def pair_distance_mean(x: Tensor) -> Tensor:
    """Mean over pairs of the pair distance, [B]."""
    return pair_distances(x).mean(1)


def pair_distance_min(x: Tensor) -> Tensor:
    """Smallest pair distance, [B]."""
    return pair_distances(x).amin(1)


def radius_of_gyration(x: Tensor) -> Tensor:
    """sqrt(1/n sum_i |x_i - xbar|^2), [B]."""
    x = x.double()
    return (x - x.mean(1, keepdim=True)).square().sum((1, 2)).div(x.shape[1]).sqrt()


def n_long(x: Tensor, *, cutoff: float = LONG) -> Tensor:
    """Number of pair distances above a cutoff, [B] int64: the basin label of double-well systems."""
    return (pair_distances(x) > cutoff).sum(1)


def n_long_is(x: Tensor, *, count: int, cutoff: float = LONG) -> Tensor:
    """1 where exactly `count` pair distances exceed the cutoff, else 0, [B]; its average is that basin's population."""
    return (n_long(x, cutoff=cutoff) == count).double()


def coordinate(x: Tensor, *, axis: int) -> Tensor:
    """Mean over particles of one Cartesian coordinate, [B]."""
    return x.double()[:, :, axis].mean(1)


def distance_from_origin(x: Tensor) -> Tensor:
    """Mean over particles of |x_i|, [B]."""
    return x.double().norm(dim=-1).mean(1)


OBSERVABLES: dict[str, Callable[[Tensor], Tensor]] = {
    "pair_distance_mean": pair_distance_mean,
    "pair_distance_min": pair_distance_min,
    "radius_of_gyration": radius_of_gyration,
    "n_long_4": lambda x: n_long(x).double(),
    "n_long_4_is_2": partial(n_long_is, count=2),
    "n_long_4_is_3": partial(n_long_is, count=3),
    "n_long_4_is_4": partial(n_long_is, count=4),
    "coordinate_x": partial(coordinate, axis=0),
    "coordinate_y": partial(coordinate, axis=1),
    "distance_from_origin": distance_from_origin,
}
