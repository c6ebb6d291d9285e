"""Have Markov chains converged? Rank-normalised split R-hat, and averages whose error bars come from whole chains."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.stats import norm, rankdata
from torch import Tensor

from bgwork.error_bars import delta_stderr
from bgwork.records import Estimate


def by_chain(values: Tensor, group: Tensor) -> Tensor:
    """Values [N] arranged as [chains, draws], in the order of the rows; chains that are longer are cut to the shortest.

    Raises:
        ValueError: if some chain has fewer than 4 draws, which cannot be split and compared.
    """
    labels, index, counts = torch.unique(group, return_inverse=True, return_counts=True)
    draws = int(counts.min())
    if draws < 4:
        raise ValueError(f"a chain has {draws} draws, R-hat needs at least 4; ask for more samples or use fewer chains")
    order = index.argsort(stable=True)
    first = counts.cumsum(0) - counts
    return values[order[first[:, None] + torch.arange(draws)]]


def split_rhat(chains: Tensor) -> float:
    """Rank-normalised split R-hat: the larger of bulk and tail (folded) R-hat.

        z = Phi^-1((rank - 3/8) / (S + 1/4)),  R-hat^2 = ((m-1)/m W + B/m) / W over half-chains of m draws

    Source: Vehtari, Gelman, Simpson, Carpenter and Buerkner 2021, eqs. 3-4 and 14.

    Args:
        chains: [chains, draws].
    Returns:
        R-hat; near 1 when the chains agree, NaN if the values do not vary or are not finite.
    """
    half = chains.shape[1] // 2
    halves = torch.cat([chains[:, :half], chains[:, -half:]]).double()
    if not bool(torch.isfinite(halves).all()):
        return float("nan")
    folded = (halves - np.median(halves.numpy())).abs()
    bulk, tail = _rhat(_rank_normalised(halves)), _rhat(_rank_normalised(folded))
    return bulk if math.isnan(bulk) else max(tail, bulk)


def _rank_normalised(values: Tensor) -> Tensor:
    rank = rankdata(values.numpy(), axis=None).reshape(values.shape)
    return torch.from_numpy(norm.ppf((rank - 0.375) / (values.numel() + 0.25)))


def _rhat(chains: Tensor) -> float:
    m = chains.shape[1]
    within = chains.var(1).mean()
    between = m * chains.mean(1).var()
    return (((m - 1) / m * within + between / m) / within).sqrt().item()


def chain_average(values: Tensor, group: Tensor) -> Estimate:
    """Mean of values [N], with the standard error from the scatter of whole chains; n_eff = variance / stderr^2."""
    mean = values.mean()
    stderr = delta_stderr((values - mean) / len(values), group)
    return Estimate(value=mean.item(), stderr=stderr, n_eff=values.var().item() / stderr**2 if stderr else float("nan"))
