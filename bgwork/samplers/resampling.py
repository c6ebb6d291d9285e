"""Weighted populations in independent islands: reweighting along a path, systematic resampling, and effective numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bgwork.records import Estimate
from bgwork.reweighting import effective_fraction
from bgwork.samplers.moves import Walkers


@dataclass(frozen=True, kw_only=True)
class Population:
    """Walkers with proper weights.

    Attributes:
        walkers: [N] configurations and their end energies.
        log_w: [N], with E[1/N sum_i w_i f(x_i)] = int exp(-u_beta) f; -inf for rows that the target gives no weight, which never move.
        island: [N] int64; islands never interact, so they are independent.
        ancestor: [N] int64, the row of the start that each row descends from.
    """

    walkers: Walkers
    log_w: Tensor
    island: Tensor
    ancestor: Tensor

    @property
    def alive(self) -> Tensor:
        """[N] bool: rows of positive weight."""
        return self.log_w > -math.inf


def in_islands(n: int, islands: int) -> Tensor:
    """Island of each of n rows, [n] int64: as equal as can be.

    Raises:
        ValueError: if there are more islands than rows.
    """
    if not 1 <= islands <= n:
        raise ValueError(f"{n} samples cannot be shared among {islands} islands, each of which needs at least one; "
                         "ask for more samples, or for fewer islands")
    return torch.arange(n) * islands // n


def slope(walkers: Walkers, alive: Tensor) -> Tensor:
    """d u_beta / d beta = u - u_0, [N]; zero in rows that are not alive, whose weight stays zero."""
    return torch.where(alive, walkers.u - walkers.u_0, 0.0)


def reweighted(population: Population, change: float) -> Population:
    """The population for beta + change: log w falls by change (u - u_0)."""
    return replace(population, log_w=population.log_w - change * slope(population.walkers, population.alive))


def kish(log_w: Tensor) -> float:
    """Effective fraction (sum w)^2 / (N sum w^2) of log-weights [N], some of which are positive weights."""
    return 1 / (torch.softmax(log_w, 0).square().sum().item() * len(log_w))


def conditional_ess(log_w: Tensor, log_v: Tensor) -> float:
    """Effective fraction after a further factor v, relative to the weights W = w / sum w so far: (sum W v)^2 / sum W v^2.

    Source: Zhou, Johansen and Aston 2016, eq. 3.18. Unlike the plain one it measures one step alone.

    Args:
        log_w: [N].
        log_v: [N].
    """
    log_p = torch.log_softmax(log_w, 0)
    return math.exp(2 * torch.logsumexp(log_p + log_v, 0).item() - torch.logsumexp(log_p + 2 * log_v, 0).item())


def systematic(log_w: Tensor, *, generator: torch.Generator) -> Tensor:
    """N rows drawn from N weights with one uniform number: row i is drawn floor or ceil of N W_i times, N W_i on average.

    Source: Carpenter, Clifford and Fearnhead 1999; Whitley 1994.

    Args:
        log_w: [N], some weight positive.
        generator: of the number.
    Returns:
        [N] row indices, rising.
    """
    cumulative = torch.softmax(log_w, 0).cumsum(0)
    positions = (torch.arange(len(log_w)) + torch.rand((), generator=generator, dtype=torch.float64)) / len(log_w)
    return torch.searchsorted(cumulative[:-1] / cumulative[-1], positions, right=True)


def resampled(population: Population, below: float, *, generator: torch.Generator) -> Population:
    """Islands whose effective fraction lies below a threshold, resampled; each keeps its mean weight, so that all stays proper.

    The decision looks at present weights only, so that given these the expectation of every weighted sum is what it was: log Z stays
    unbiased (in Z) although the moments of resampling are chosen adaptively. Islands without a positive weight stay as they are.

    Args:
        population: to resample.
        below: threshold on (sum w)^2 / (M sum w^2); 0 never resamples, 1 whenever weights differ.
        generator: of the draws.
    """
    source, log_w = torch.arange(len(population.log_w)), population.log_w.clone()
    for island in population.island.unique():
        rows = (population.island == island).nonzero().flatten()
        own = population.log_w[rows]
        if own.max() == -math.inf or kish(own) >= below:
            continue
        source[rows] = rows[systematic(own, generator=generator)]
        log_w[rows] = torch.logsumexp(own, 0) - math.log(len(rows))
    return replace(population, walkers=population.walkers.take(source), log_w=log_w, ancestor=population.ancestor[source])


def ancestral_ess(population: Population) -> Estimate:
    """Effective sample size as if descendants of one start were one sample (`reweighting.effective_fraction`).

    Moves that take copies apart get no credit; observables show what they made of them (`expectation(...).n_eff`, from the scatter of
    whole islands).

    Returns:
        The fraction with its bootstrap standard error over islands (NaN for a single one).
    Raises:
        ValueError: if no weight is positive.
    """
    if not population.alive.any():
        raise ValueError(f"all {len(population.log_w)} weights are zero, so no ancestor counts; check the target and its length unit")
    weights = torch.exp(population.log_w - population.log_w.max())
    return effective_fraction(weights, ancestor=population.ancestor, group=population.island)
