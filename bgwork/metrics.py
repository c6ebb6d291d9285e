"""Distances between two sets of samples, one definition each, and the floor that sampling noise puts under them.

Two finite sets of the same distribution are never at distance zero: print every value beside `noise_floor` at the same number of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from bgwork.couplings import align, random_rotations, rotate_onto
from bgwork.geometry import wrap
from bgwork.records import Estimate

STARTS = 8  # orientations from which a pair of clusters is aligned
SWEEPS = 3  # alternations of permutation and rotation from each


def energy_w2(a: Tensor, b: Tensor, *, weights_a: Tensor | None = None, weights_b: Tensor | None = None) -> float:
    """2-Wasserstein distance between two weighted sets of numbers, W2^2 = int_0^1 (F_a^-1(s) - F_b^-1(s))^2 ds.

    Args:
        a: [N] reduced energies; b: [M].
        weights_a, weights_b: weights of any total, [N] and [M]; equal if None.
    Returns:
        The distance, in the units of a (kT).
    Raises:
        ValueError: if a value of positive weight is not finite, or no weight is positive.
    """
    (a, level_a), (b, level_b) = _quantiles(a, weights_a), _quantiles(b, weights_b)
    levels = torch.cat([level_a, level_b]).sort().values
    middle = levels - levels.diff(prepend=levels.new_zeros(1)) / 2
    gap = _value_at(a, level_a, middle) - _value_at(b, level_b, middle)
    return math.sqrt((gap.square() * levels.diff(prepend=levels.new_zeros(1))).sum().item())


def geometric_w2(a: Tensor, b: Tensor) -> float:
    """2-Wasserstein distance between two sets of clusters of identical particles, modulo permutation, rotation and reflection.

    The cost of a pair is `aligned_square_distance`: exact for up to four particles, beyond that the best of
    several local minima, an upper bound.

    Args:
        a, b: mean-free configurations [N, n, d], equal in number.
    Returns:
        The distance, in the length unit of a, not divided by the number of particles.
    Raises:
        ValueError: if the two sets do not have the same shape.
    """
    _check_pairable(a, b)
    return _assigned(torch.stack([aligned_square_distance(b, x.expand_as(b)) for x in a]))


def torus_w2(a: Tensor, b: Tensor) -> float:
    """2-Wasserstein distance between two sets of angles, with the cost sum_k wrap(a_k - b_k)^2.

    Weighted samples become a set of equal weights by `systematic_draw`.

    Args:
        a, b: [N, k] in radians, equal in number.
    Returns:
        The distance in radians, exact for these two sets.
    Raises:
        ValueError: if the two sets do not have the same shape, or an angle is not finite.
    """
    _check_pairable(a, b)
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise ValueError("an angle is not finite; draw by weight first (`systematic_draw`), since failed samples weigh nothing")
    cost = torch.zeros(len(a), len(b), dtype=torch.float64)
    for k in range(a.shape[1]):
        cost += wrap(a[:, None, k] - b[None, :, k]).square()
    return _assigned(cost)


def systematic_draw(values: Tensor, weights: Tensor, n: int, *, generator: torch.Generator) -> Tensor:
    """n rows of equal weight: row i is drawn floor(n p_i) or ceil(n p_i) times, n p_i on average (systematic resampling; Carpenter 1999).

    Args:
        values: [N, ...].
        weights: [N] of any total.
        n: rows to draw.
    Raises:
        ValueError: if n < 1, a weight is negative, or all are zero.
    """
    if n < 1:
        raise ValueError(f"cannot draw {n} rows; ask for at least one")
    levels = _shares(values, weights).cumsum(0)
    comb = (torch.arange(n, dtype=torch.float64) + torch.rand(1, generator=generator, dtype=torch.float64)) / n
    rows = torch.searchsorted(levels, comb * levels[-1], right=True)
    last = int((weights > 0).nonzero().max())  # rounding must not carry the last tooth past the end
    return values[rows.clamp_max(last)]


def total_variation(a: Tensor, b: Tensor, *, edges: Tensor, weights_a: Tensor | None = None, weights_b: Tensor | None = None) -> float:
    """Half the sum over bins of |p_a - p_b|, in [0, 1]; values beyond the edges fall into two open bins.

    Args:
        a, b: numbers [N] and [M], or [N, k] and [M, k], where the k values of a sample (its pair distances) share its weight.
        edges: [K+1] rising bin edges.
        weights_a, weights_b: weights of any total, one a sample; equal if None.
    Raises:
        ValueError: if no weight is positive.
    """
    return 0.5 * (_masses(a, weights_a, edges) - _masses(b, weights_b, edges)).abs().sum().item()


def noise_floor(metric: Callable[[Tensor, Tensor], float], reference: Tensor, n: int, *, generator: torch.Generator,
                repeats: int = 5) -> Estimate:
    """The metric between two disjoint random draws of n reference samples each.

    Args:
        metric: such as `energy_w2`.
        reference: [M, ...] independent reference samples, M >= 2n.
        n: samples on each side of the comparison whose floor this is.
    Returns:
        Mean over the repeats, and as stderr the spread of a single one.
    Raises:
        ValueError: if there are fewer than 2n reference samples.
    """
    if len(reference) < 2 * n or n < 1 or repeats < 2:
        raise ValueError(f"a noise floor at n = {n} needs {2 * n} reference samples and two repeats, got {len(reference)} and {repeats}")
    values = []
    for _ in range(repeats):
        order = torch.randperm(len(reference), generator=generator)
        values.append(metric(reference[order[:n]], reference[order[n : 2 * n]]))
    values = torch.tensor(values, dtype=torch.float64)
    return Estimate(value=values.mean().item(), stderr=values.std().item(), n_eff=n)


def weighted_noise_floor(metric: Callable[[Tensor, Tensor, Tensor], float], reference: Tensor, weights: Tensor, n: int, *,
                         generator: torch.Generator, repeats: int = 5) -> Estimate:
    """The metric that perfect samples would have if they carried these weights: between N reference samples so weighted and n others.

    Uneven weights make few samples of many, so this floor lies above `noise_floor` at the same numbers.

    Args:
        metric: of (values, other values, weights of the former).
        reference: [M, ...] independent reference samples, M >= N + n.
        weights: [N] of any total, dealt out to reference samples at random.
        n: samples on the unweighted side.
    Returns:
        Mean over the repeats, and as stderr the spread of a single one.
    Raises:
        ValueError: if there are fewer than N + n reference samples.
    """
    needed = len(weights) + n
    if len(reference) < needed or n < 1 or repeats < 2:
        raise ValueError(f"a noise floor of {len(weights)} weighted against {n} samples needs {needed} reference samples and two repeats, "
                         f"got {len(reference)} and {repeats}; compare fewer samples, or make more reference data")
    values = []
    for _ in range(repeats):
        order = torch.randperm(len(reference), generator=generator)
        values.append(metric(reference[order[: len(weights)]], reference[order[len(weights) : needed]], weights))
    values = torch.tensor(values, dtype=torch.float64)
    return Estimate(value=values.mean().item(), stderr=values.std().item(), n_eff=n)


def grouped_noise_floor(metric: Callable[[Tensor, Tensor], float], reference: Tensor, group: Tensor, n: int, *,
                        generator: torch.Generator, repeats: int = 5) -> Estimate:
    """The metric between n samples of one half of the chains and n of the other: rows of a short chain share its error.

    Halves scatter twice as much about each other as all chains do about the truth, if that error and not n is what shows.

    Args:
        metric: such as `torus_w2`.
        reference: [M, ...] reference samples; group: [M] their chains.
        n: samples on each side.
    Returns:
        Mean over the repeats, and as stderr the spread of a single one.
    Raises:
        ValueError: if there are fewer than four chains, or a half holds fewer than n samples.
    """
    chains, values = group.unique(), []
    if len(chains) < 4 or repeats < 2:
        raise ValueError(f"a noise floor between halves of chains needs four of them and two repeats, got {len(chains)} and {repeats}")
    for _ in range(repeats):
        first = chains[torch.randperm(len(chains), generator=generator)[: len(chains) // 2]]
        inside = torch.isin(group, first)
        halves = [reference[rows][torch.randperm(int(rows.sum()), generator=generator)[:n]] for rows in (inside, ~inside)]
        if min(map(len, halves)) < n:
            raise ValueError(f"half of the {len(chains)} chains hold {min(map(len, halves))} samples, {n} are needed")
        values.append(metric(*halves))
    values = torch.tensor(values, dtype=torch.float64)
    return Estimate(value=values.mean().item(), stderr=values.std().item(), n_eff=n)


def aligned_square_distance(x: Tensor, y: Tensor) -> Tensor:
    """|x - P y R|^2 at the best permutation and rotation or reflection, pair by pair, [B]; x and y are mean-free [B, n, d].

    With n! <= 24 every permutation is tried, |x|^2 + |y|^2 - 2 |x^T P y|_nuclear at its best rotation. Otherwise the two alternate,
    starting from particles paired by their sorted distances to the others, and from `STARTS` orientations, always the same.
    """
    if math.factorial(x.shape[1]) <= 24:
        overlap = torch.stack([torch.linalg.svdvals(x.transpose(1, 2) @ y[:, order]).sum(1) for order in permutations(range(x.shape[1]))])
        return (x.square().sum((1, 2)) + y.square().sum((1, 2)) - 2 * overlap.amax(0)).clamp_min(0)  # rounding leaves -1e-15 for copies
    turns = random_rotations(STARTS, x.shape[2], generator=torch.Generator().manual_seed(0)).to(x)
    starts = [rotate_onto(_paired_by_surroundings(x, y), y), *(x @ turn for turn in turns)]
    return torch.stack([(align(start, y, sweeps=SWEEPS) - y).square().sum((1, 2)) for start in starts]).amin(0)


def _paired_by_surroundings(x: Tensor, y: Tensor) -> Tensor:
    """x with its particles in the order whose sorted distances to the others best match those of y."""
    around_x, around_y = (torch.cdist(z, z).sort(-1).values for z in (x, y))
    order = np.stack([linear_sum_assignment(cost)[1] for cost in torch.cdist(around_y, around_x).square().numpy()])
    return torch.gather(x, 1, torch.from_numpy(order)[:, :, None].expand_as(x))


def _quantiles(values: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sorted values of positive weight, and the cumulative weight up to and including each."""
    p = _shares(values, weights)
    values, p = values.double()[p > 0], p[p > 0]
    if not torch.isfinite(values).all():
        bad = int((~torch.isfinite(values)).sum())
        raise ValueError(f"{bad} of {len(values)} values of positive weight are not finite: W2 is infinite")
    order = values.argsort()
    return values[order], p[order].cumsum(0) / p.sum()


def _value_at(values: Tensor, levels: Tensor, s: Tensor) -> Tensor:
    return values[torch.searchsorted(levels, s).clamp_max(len(values) - 1)]


def _masses(values: Tensor, weights: Tensor | None, edges: Tensor) -> Tensor:
    rows = values.reshape(len(values), -1).double()
    p = _shares(values, weights)[:, None].expand_as(rows) / rows.shape[1]
    bins = torch.bucketize(rows.contiguous(), edges.double(), right=True)
    return torch.zeros(len(edges) + 1, dtype=torch.float64).index_add_(0, bins.flatten(), p.flatten())


def _shares(values: Tensor, weights: Tensor | None) -> Tensor:
    weights = torch.ones(len(values), dtype=torch.float64) if weights is None else weights.double()
    if weights.shape != (len(values),) or not (weights >= 0).all() or not weights.sum() > 0:
        raise ValueError(f"weights must be one for each of {len(values)} samples, none negative, not all zero; got {tuple(weights.shape)}")
    return weights / weights.sum()


def _check_pairable(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or len(a) == 0:
        raise ValueError(f"both sets need the same number of samples and the same shape, got {tuple(a.shape)} and {tuple(b.shape)}")


def _assigned(cost: Tensor) -> float:
    rows, columns = linear_sum_assignment(cost.numpy())
    return math.sqrt(cost[rows, columns].mean().item())
