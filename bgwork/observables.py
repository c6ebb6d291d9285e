"""Functions of a configuration whose equilibrium averages are reported: distances, sizes, basins.

Every entry of `OBSERVABLES` maps configurations [B, n, d] to one number each, [B] float64. The reduced energy, which needs a target, goes
by the name "u" wherever observables are named.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bgwork.geometry import torsions

Atoms = tuple[int, int, int, int]  # of a torsion

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


def pair_distance_max(x: Tensor) -> Tensor:
    """Largest pair distance, [B]."""
    return pair_distances(x).amax(1)


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


def dihedral(x: Tensor, *, atoms: Atoms) -> Tensor:
    """Torsion angle about the middle bond of four atoms, [B] in (-pi, pi]; see `geometry.torsions`.

    Args:
        x: configurations [B, n, 3].
        atoms: indices of the four atoms in order.
    Raises:
        ValueError: if x is not three-dimensional.
    """
    if x.shape[2] != 3:
        raise ValueError(f"dihedral angles need three dimensions, got x of shape {tuple(x.shape)}")
    return torsions(x.double(), torch.tensor([atoms], device=x.device))[:, 0]


def rmsd(x: Tensor, *, reference: Tensor) -> Tensor:
    """Root-mean-square deviation from a structure after the best translation and proper rotation, [B] (Kabsch 1976).

    rmsd^2 = (|x|^2 + |y|^2 - 2 sum_k s_k) / n, with s_k the singular values of x^T y, the last one signed by its determinant.

    Args:
        x: configurations [B, n, d].
        reference: [n, d], in the same order of atoms.
    """
    x, y = x.double(), reference.double()
    x, y = x - x.mean(1, keepdim=True), y - y.mean(0)
    covariance = x.transpose(1, 2) @ y
    s = torch.linalg.svdvals(covariance)
    overlap = s[:, :-1].sum(1) + s[:, -1] * torch.linalg.det(covariance).sign()
    square = x.square().sum((1, 2)) + y.square().sum() - 2 * overlap
    return (square.clamp_min(0) / x.shape[1]).sqrt()


def coordinate(x: Tensor, *, axis: int) -> Tensor:
    """Mean over particles of one Cartesian coordinate, [B]."""
    return x.double()[:, :, axis].mean(1)


def distance_from_origin(x: Tensor) -> Tensor:
    """Mean over particles of |x_i|, [B]."""
    return x.double().norm(dim=-1).mean(1)


def neighbour_alignment(x: Tensor) -> Tensor:
    """Mean of x_i . x_{i+1} over the neighbours in a chain, [B]."""
    x = x.double()
    return (x[:, 1:] * x[:, :-1]).sum(-1).mean(1)


OBSERVABLES: dict[str, Callable[[Tensor], Tensor]] = {
    "pair_distance_mean": pair_distance_mean,
    "pair_distance_min": pair_distance_min,
    "pair_distance_max": pair_distance_max,
    "radius_of_gyration": radius_of_gyration,
    "n_long_4": lambda x: n_long(x).double(),
    "n_long_4_is_2": partial(n_long_is, count=2),
    "n_long_4_is_3": partial(n_long_is, count=3),
    "n_long_4_is_4": partial(n_long_is, count=4),
    "coordinate_x": partial(coordinate, axis=0),
    "coordinate_y": partial(coordinate, axis=1),
    "coordinate_z": partial(coordinate, axis=2),
    "distance_from_origin": distance_from_origin,
    "neighbour_alignment": neighbour_alignment,
}
