"""The tail of the weights: its Pareto shape, and the two recorded edits that tame it.

A generalised Pareto distribution (shape k) is fitted to the largest weights; moments of order 1/k and above are infinite, so that above
k = 0.7 averages converge too slowly for any error bar to mean much (Vehtari, Simpson, Gelman, Yao, Gabry 2024, JMLR 25:72).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bgwork.error_bars import block_sums
from bgwork.records import WeightedSamples, with_edit

EQUAL = 1e-6  # log-weights that differ by less are equal but for rounding, and have no tail
NONE_POSITIVE = "none of {} weights is positive, so they have no tail; check the samples and the target"
FEWEST_IN_TAIL = 5
FEWEST_TO_FIT = 5 * FEWEST_IN_TAIL  # the tail is at most a fifth of the weights


@dataclass(frozen=True, kw_only=True)
class Tail:
    """The largest weights, relative to the very largest, and the generalised Pareto distribution fitted to what they exceed a cutoff by.

    Attributes:
        rows: [M] rows of the tail, by rising weight.
        cutoff: relative weight above which the tail begins.
        k: shape of the fit.
        scale: scale of the fit, in relative weight.
    """

    rows: Tensor
    cutoff: float
    k: float
    scale: float

    def quantile(self, p: Tensor) -> Tensor:
        """Relative weight below which the fraction p of the tail lies: cutoff + scale ((1 - p)^-k - 1) / k."""
        return self.cutoff + self.scale * torch.expm1(-self.k * torch.log1p(-p)) / self.k


def tail_shape(weighted: WeightedSamples) -> float:
    """`pareto_k` of the samples' weights; where rows were resampled, of what all that descend from one draw weigh together.

    Returns:
        k; NaN where rows were resampled and now weigh the same, which turns the tail into numbers of copies, or where their ancestors were
        not kept.
    """
    log_w, proposal = weighted.log_w, weighted.proposal
    if proposal.resampled and (proposal.ancestor is None or log_w.max() - log_w.min() < EQUAL):
        return math.nan
    return pareto_k(_of_draws(weighted))


def tail_limit(weighted: WeightedSamples) -> float:
    """`pareto_limit` of the number of weights that `tail_shape` looks at."""
    return pareto_limit(len(_of_draws(weighted)))


def _of_draws(weighted: WeightedSamples) -> Tensor:
    """Log-weights of rows, or of all that descend from one draw, up to a constant."""
    log_w, ancestor = weighted.log_w, weighted.proposal.ancestor
    return log_w if ancestor is None else block_sums((log_w - log_w.max()).exp(), ancestor).log()


def pareto_k(log_w: Tensor) -> float:
    """Shape of the generalised Pareto distribution fitted to the tail of the weights (Vehtari et al. 2024; fit of Zhang & Stephens 2009).

    Args:
        log_w: [N] log-weights; -inf counts as a zero weight.
    Returns:
        k; -inf where all weights are equal to 1e-6 (no tail at all), +inf where fewer than five weights stand out, too few to fit.
    Raises:
        ValueError: if no weight is positive.
    """
    if len(log_w) == 0 or log_w.max() == -math.inf:
        raise ValueError(NONE_POSITIVE.format(len(log_w)))
    if log_w.max() - log_w.min() < EQUAL:
        return -math.inf
    tail = fit_tail(log_w)
    return math.inf if tail is None else tail.k


def pareto_limit(n: int) -> float:
    """Largest k at which n samples still give trustworthy averages: min(1 - 1/log10 n, 0.7) (Vehtari et al. 2024, equation 13)."""
    return min(1 - 1 / math.log10(n), 0.7) if n > 1 else -math.inf


def unseen_weight(weighted: WeightedSamples) -> float:
    """Weight to expect beyond the largest one, as a fraction of the sum of weights: what standard errors add for tails hardly reached.

        m = E[w; w > w_max] / sum_i w_i = (w_max + (scale + k (w_max - cutoff)) / (1 - k)) / sum_i w_i

    One of N draws is expected beyond the largest of N; its mean is that of the fitted generalised Pareto distribution, given that it lies
    there. tests/test_error_bars.py has the coverage of error bars with it and without.

    Returns:
        m; infinite where k >= 1 (the fitted tail has no mean) or fewer than five of the weights are anything beside the largest, zero where
        weights are equal, were resampled, are too few for a fit (below 25), or where the largest is that of many.
    Raises:
        ValueError: if no weight is positive.
    """
    log_w = weighted.log_w
    if len(log_w) == 0 or log_w.max() == -math.inf:
        raise ValueError(NONE_POSITIVE.format(len(log_w)))
    if weighted.proposal.resampled or len(log_w) < FEWEST_TO_FIT or log_w.max() - log_w.min() < EQUAL:
        return 0.0
    tail, relative = fit_tail(log_w), (log_w - log_w.max()).exp()
    if tail is None:
        return 0.0 if (relative > torch.finfo(torch.float64).tiny).sum() >= FEWEST_IN_TAIL else math.inf
    if tail.k >= 1:
        return math.inf
    beyond = 1 + max(0.0, (tail.scale + tail.k * (1 - tail.cutoff)) / (1 - tail.k))
    return beyond / (weighted.sign * relative).sum().item()


def truncate(weighted: WeightedSamples) -> WeightedSamples:
    """Weights cut at mean(w) sqrt(N) (Ionides 2008): less variance, some bias. Recorded as an edit; never a default.

    Returns:
        Samples whose log_q gives the cut weights.
    """
    log_w = weighted.log_w
    ceiling = torch.logsumexp(log_w, 0).item() - 0.5 * math.log(len(log_w))
    cut = log_w.clamp_max(ceiling)
    return _edited(weighted, cut, f"truncated {int((cut < log_w).sum())} weights at mean(w) sqrt(N)")


def smooth(weighted: WeightedSamples) -> WeightedSamples:
    """The largest weights replaced by order statistics of their Pareto fit, capped at the largest raw one (PSIS, Vehtari et al. 2024).

    Recorded as an edit; never a default.

    Raises:
        ValueError: if fewer than five weights stand out, too few to fit.
    """
    log_w = weighted.log_w
    tail = fit_tail(log_w)
    if tail is None:
        raise ValueError(f"fewer than five of {len(log_w)} weights stand out, and a Pareto tail needs five: draw more samples")
    n = len(tail.rows)
    smoothed = log_w.clone()
    smoothed[tail.rows] = tail.quantile((torch.arange(n, dtype=torch.float64) + 0.5) / n).clamp_max(1.0).log() + log_w.max()
    return _edited(weighted, smoothed, f"smoothed the {n} largest weights by a Pareto fit with k = {tail.k:.2f}")


def fit_tail(log_w: Tensor) -> Tail | None:
    """Tail of the weights with its Pareto fit, or None where fewer than five weights stand out.

    Args:
        log_w: [N] log-weights, not all -inf.
    """
    n = len(log_w)
    relative = (log_w - log_w.max()).exp()
    rows = relative.argsort()
    length = math.ceil(min(n / 5, 3 * math.sqrt(n)))
    cutoff = relative[rows[-length - 1]].item() if n > length else 0.0
    rows = rows[relative[rows] > max(cutoff, torch.finfo(torch.float64).tiny)]
    if len(rows) < FEWEST_IN_TAIL:
        return None
    k, scale = _fit(relative[rows] - cutoff)
    return Tail(rows=rows, cutoff=cutoff, k=k, scale=scale)


def _fit(excess: Tensor) -> tuple[float, float]:
    """Shape k and scale of a generalised Pareto distribution (Zhang & Stephens 2009; Vehtari et al.'s prior: ten samples at k = 1/2).

    Args:
        excess: [M] tail weights above the cutoff, rising, M >= 5.
    """
    n = len(excess)
    grid = 30 + int(math.sqrt(n))
    quartile = excess[int(n / 4 + 0.5) - 1]
    steps = torch.arange(1, grid + 1, dtype=torch.float64)
    theta = 1 / excess[-1] + (1 - torch.sqrt(grid / (steps - 0.5))) / (3 * quartile)
    shape = torch.log1p(-theta[:, None] * excess).mean(1)
    posterior = torch.softmax(n * (torch.log(-theta / shape) - shape - 1), 0)
    best = (theta * posterior).sum()
    k = torch.log1p(-best * excess).mean().item()
    return (n * k + 5) / (n + 10), -k / best.item()


def _edited(weighted: WeightedSamples, log_w: Tensor, edit: str) -> WeightedSamples:
    """The samples with log_q chosen such that -u - log_q = log_w; rows of zero weight keep theirs."""
    log_q = torch.where(log_w == -math.inf, weighted.proposal.log_q, -weighted.u - log_w)
    return replace(weighted, proposal=with_edit(replace(weighted.proposal, log_q=log_q), edit))
