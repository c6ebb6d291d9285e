"""Free energies along one coordinate and over two, in kT, with a standard error for every bin."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bgwork.free_energy import Pool, evaluate_defined
from bgwork.pareto import unseen_weight
from bgwork.records import WeightedSamples
from bgwork.reweighting import normalised_weights


@dataclass(frozen=True, kw_only=True)
class Profile:
    """F(s) = -log p(s) in kT, p the normalised density of a coordinate s averaged over each bin.

    Attributes:
        edges: [K+1] bin edges.
        value: [K] free energy; +inf in bins without weight.
        stderr: [K] standard error; NaN in bins without weight.
        outside: fraction of the weight beyond the edges (it stays in the normalisation).
    """

    edges: Tensor
    value: Tensor
    stderr: Tensor
    outside: float


@dataclass(frozen=True, kw_only=True)
class Surface:
    """F(s, t) = -log p(s, t) in kT, p the normalised density of two coordinates averaged over each bin.

    Attributes:
        edges: [K+1] and [L+1] bin edges of s and t.
        value: [K, L] free energy; +inf in bins without weight.
        stderr: [K, L] standard error; NaN in bins without weight.
        outside: fraction of the weight beyond the edges (it stays in the normalisation).
    """

    edges: tuple[Tensor, Tensor]
    value: Tensor
    stderr: Tensor
    outside: float


def free_energy_profile(weighted: WeightedSamples, coordinate: Callable[[Tensor], Tensor], edges: Tensor) -> Profile:
    """F(s) = -log p(s) in kT along a coordinate, with a delta-method standard error for every bin.

    Args:
        weighted: samples.
        coordinate: configurations [B, n, d] to [B].
        edges: [K+1] rising bin edges; each bin holds its left edge, the last one both.
    Raises:
        ValueError: if the edges do not rise, or the coordinate is not finite at a sample of positive weight.
    """
    edges = _rising(edges)
    place = _bins(evaluate_defined(coordinate, weighted, "the coordinate"), edges)
    value, stderr, outside = _free_energies(weighted, place, edges.diff())
    return Profile(edges=edges, value=value, stderr=stderr, outside=outside)


def free_energy_surface(weighted: WeightedSamples, coordinates: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
                        edges: tuple[Tensor, Tensor]) -> Surface:
    """F(s, t) = -log p(s, t) in kT over two coordinates, such as phi and psi, with a delta-method standard error for every bin.

    Args:
        weighted: samples.
        coordinates: two functions of configurations, [B, n, d] to [B].
        edges: rising bin edges [K+1] and [L+1]; bins as in `free_energy_profile`.
    Raises:
        ValueError: if edges do not rise, or a coordinate is not finite at a sample of positive weight.
    """
    first, second = (_rising(e) for e in edges)
    rows, columns = (_bins(evaluate_defined(f, weighted, name), e) for f, name, e in
                     zip(coordinates, ("the first coordinate", "the second coordinate"), (first, second), strict=True))
    shape = len(first) - 1, len(second) - 1
    place = _cells(rows, columns, shape[1])
    value, stderr, outside = _free_energies(weighted, place, torch.outer(first.diff(), second.diff()).flatten())
    return Surface(edges=(first, second), value=value.view(shape), stderr=stderr.view(shape), outside=outside)


def pooled_profile(pool: Pool, values: Tensor, edges: Tensor) -> Profile:
    """F(s) as in `free_energy_profile`, from a generator's samples and equilibrium samples of the target together (`free_energy.pooled`).

    Args:
        pool: of N + M samples.
        values: [N + M] the coordinate at them; whatever stands where a sample does not weigh is ignored.
        edges: [K+1] rising bin edges.
    Raises:
        ValueError: if the edges do not rise.
    """
    edges = _rising(edges)
    value, stderr, outside = _pooled_free_energies(pool, _bins(values, edges), edges.diff())
    return Profile(edges=edges, value=value, stderr=stderr, outside=outside)


def pooled_surface(pool: Pool, values: tuple[Tensor, Tensor], edges: tuple[Tensor, Tensor]) -> Surface:
    """F(s, t) as in `free_energy_surface`, from both sets together; arguments as in `pooled_profile`, two of each."""
    first, second = (_rising(e) for e in edges)
    shape = len(first) - 1, len(second) - 1
    place = _cells(_bins(values[0], first), _bins(values[1], second), shape[1])
    value, stderr, outside = _pooled_free_energies(pool, place, torch.outer(first.diff(), second.diff()).flatten())
    return Surface(edges=(first, second), value=value.view(shape), stderr=stderr.view(shape), outside=outside)


def _pooled_free_energies(pool: Pool, place: Tensor, volume: Tensor) -> tuple[Tensor, Tensor, float]:
    """-log(mass / volume) of each bin, its standard error, and the mass in no bin."""
    place = torch.where(pool.weighs, place, -1)
    inside = place >= 0
    mass = torch.zeros(len(volume), dtype=torch.float64).index_add_(0, place[inside], pool.weight[inside])
    stderr = torch.full_like(mass, math.nan)
    for k in torch.nonzero(mass > 0).flatten().tolist():
        unseen = pool.unseen * ((1 - mass[k]) / mass[k]).clamp_min(0).sqrt()  # as in `_free_energies`
        stderr[k] = math.hypot(pool.stderr(pool.weight * ((place == k) / mass[k] - 1)), unseen)
    value = torch.where(mass > 0, -(mass / volume).log(), math.inf)
    return value, stderr, pool.weight[~inside & pool.weighs].sum().item()


def _cells(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """Number of each pair of bins in a table of `width` columns, -1 if one of them is."""
    return torch.where((rows < 0) | (columns < 0), -1, rows * width + columns)


def _rising(edges: Tensor) -> Tensor:
    edges = torch.as_tensor(edges, dtype=torch.float64).contiguous()
    if edges.ndim != 1 or len(edges) < 2 or not (edges.diff() > 0).all():
        raise ValueError(f"bin edges must rise and be at least two, got {edges.tolist()}")
    return edges


def _bins(values: Tensor, edges: Tensor) -> Tensor:
    """Bin of each value, -1 beyond the edges, [N]."""
    inside = (values >= edges[0]) & (values <= edges[-1])
    return torch.where(inside, torch.bucketize(values, edges[1:-1], right=True), -1)


def _free_energies(weighted: WeightedSamples, place: Tensor, volume: Tensor) -> tuple[Tensor, Tensor, float]:
    """-log(mass / volume) of each bin, its standard error, and the mass in no bin."""
    p = normalised_weights(weighted)
    mass, error = _masses(p, place, len(volume), weighted.proposal.group)
    spread = (mass * (1 - mass)).clamp_min(0).sqrt()
    error = torch.where(spread > 0, torch.hypot(error, unseen_weight(weighted) * spread), error)  # as weighted_stderr
    value = torch.where(mass > 0, -(mass / volume).log(), math.inf)
    return value, torch.where(mass > 0, error / mass, math.nan), p[place < 0].sum().item()


def _masses(p: Tensor, place: Tensor, bins: int, group: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight m_k of each bin and its delta-method standard error over blocks, [K] each.

    With a_gk the weight of block g in bin k and P_g the block's own, stderr^2 = G/(G-1) sum_g (a_gk - m_k P_g)^2, whose square is written
    out so that only the bins that a block visits take memory.
    """
    block = torch.arange(len(p)) if group is None else torch.unique(group, return_inverse=True)[1]
    blocks = int(block.max()) + 1
    share = torch.zeros(blocks, dtype=torch.float64).index_add_(0, block, p)
    inside = place >= 0
    visited, index = torch.unique(block[inside] * bins + place[inside], return_inverse=True)
    a = torch.zeros(len(visited), dtype=torch.float64).index_add_(0, index, p[inside])
    k, owner = visited % bins, share[visited // bins]

    def total(values: Tensor) -> Tensor:
        return torch.zeros(bins, dtype=torch.float64).index_add_(0, k, values)

    mass = total(a)
    square = total(a.square()) - 2 * mass * total(a * owner) + mass.square() * share.square().sum()
    return mass, (square.clamp_min(0) * (blocks / (blocks - 1) if blocks > 1 else math.nan)).sqrt()
