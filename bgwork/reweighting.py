"""Weights and the estimates that rest on them: usable on MD data with no network.

Proper weighting is the contract: for every reduced energy u on the proposal's space and every bounded f,
E[1/N sum_i exp(-u(x_i) - log_q_i) f(x_i)] = Z_u E_pi[f].
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import replace

import torch
from torch import Tensor

from bgwork.error_bars import block_sums, bootstrap, delta_stderr, weighted_stderr
from bgwork.pareto import unseen_weight
from bgwork.protocols import Target
from bgwork.records import RESAMPLED, Cost, Density, Estimate, Proposal, WeightedSamples, with_edit

ROUND_OFF = 1e-12  # relative spread below which values are all the same


def weigh(proposal: Proposal, target: Target, *, accept: Collection[Density] = (), batch: int = 4096) -> WeightedSamples:
    """Attach reduced energies, and with them the weights log w = -u - log q.

    Rows with a NaN are kept, not evaluated, and weigh nothing (`WeightedSamples.n_failed` counts them).

    Args:
        proposal: samples with log_q.
        target: reduced energy on the same space.
        accept: densities without proper weighting (STOCHASTIC, UNCERTIFIED) to take nevertheless; recorded as an edit.
        batch: configurations per call of the target.
    Returns:
        The weighted samples; energy evaluations and seconds are added to the cost.
    Raises:
        ValueError: no samples, another space than the target's, an improper density that is not in `accept`.
    """
    if len(proposal) == 0:
        raise ValueError("no samples to weigh (n = 0); draw at least one")
    if proposal.space != target.space:
        raise ValueError(f"the samples live on {proposal.space}, the target {target.name} on {target.space}; sample the target's own space")
    proposal = _admit(proposal, accept)
    before, start, cores = target.n_energy, time.perf_counter(), time.process_time()
    usable = torch.isfinite(proposal.x).flatten(1).all(1)
    u = torch.full_like(proposal.log_q, math.nan)
    with torch.no_grad():
        for rows in usable.nonzero().flatten().split(batch):
            u[rows] = target.u(proposal.x[rows])
    timed = time.process_time() - cores if proposal.cost.core_seconds else 0.0  # or it would be that of the weighing alone
    cost = Cost(energy=target.n_energy - before, seconds=time.perf_counter() - start, core_seconds=timed)
    weighted = WeightedSamples(proposal=replace(proposal, cost=proposal.cost + cost), u=u, target=target.name)
    return weighted


def normalised_weights(weighted: WeightedSamples) -> Tensor:
    """Weights p_i = w_i / sum_j w_j, [N], summing to one; some are negative where a SIGNED map folds.

    Raises:
        ValueError: if there are no samples, all weights are zero, or the negative ones outweigh the others.
    """
    p = weighted.sign * _magnitudes(weighted)
    total = p.sum()
    if total <= 0:
        raise ValueError(f"the weights of {len(weighted)} samples add up to {total.item():.2g} of their magnitudes, since negative ones "
                         "outweigh the others: the map folds too much, or too few samples count; use more of either steps or samples")
    return p / total if (p < 0).any() else p


def chances(weighted: WeightedSamples) -> Tensor:
    """`normalised_weights` as probabilities by which rows may be drawn, [N].

    Raises:
        ValueError: as `normalised_weights`, or if a weight is negative.
    """
    p = normalised_weights(weighted)
    refuse_negative(weighted, "rows cannot be drawn by weight")
    return p


def refuse_negative(weighted: WeightedSamples, consequence: str) -> None:
    """Stop where some weights are negative and what is asked for needs a density.

    Raises:
        ValueError: if a weight is negative; the message names the consequence.
    """
    negative = int(((weighted.sign < 0) & (weighted.log_w > -math.inf)).sum())
    if negative:
        raise ValueError(f"{negative} of {len(weighted)} weights are negative, where the map folds, so that {consequence}; "
                         "averages and log Z can be had, and with more steps the map does not fold")


def _magnitudes(weighted: WeightedSamples) -> Tensor:
    """|w_i| / sum_j |w_j|, [N]."""
    if len(weighted) == 0:
        raise ValueError("no samples (n = 0): nothing can be estimated; draw at least one")
    log_w = weighted.log_w
    if log_w.max() == -math.inf:
        raise ValueError(f"all {len(weighted)} weights are zero ({weighted.n_failed} rows failed, the others have u = +inf): "
                         "the samples miss the target altogether; check that they belong to "
                         f"{weighted.target} and its length unit")
    return torch.softmax(log_w, 0)


def effective_number(weighted: WeightedSamples) -> float:
    """Kish's effective number of samples, (sum w)^2 / sum w^2 (Kish 1965), with w as in `family_weights`.

    It ignores other correlation between rows. NaN where rows were resampled and their ancestors were not kept.
    """
    proposal = weighted.proposal
    if proposal.resampled and proposal.ancestor is None:
        return math.nan
    return 1.0 / family_weights(weighted).square().sum().item()


def family_weights(weighted: WeightedSamples) -> Tensor:
    """Normalised weights, those of rows that descend from one draw added up, [F]; of single rows where nothing was resampled."""
    return block_sums(normalised_weights(weighted), weighted.proposal.ancestor)


def ess(weighted: WeightedSamples, *, generator: torch.Generator | None = None) -> Estimate:
    """Reverse effective sample size as a fraction, (sum w)^2 / (N sum w^2), in [0, 1].

    It cannot see a mode that no sample has reached: `forward_ess` can. Where rows were resampled, which makes their weights equal by
    copying them, all that descend from one draw count as one sample of their joint weight (`effective_fraction`).

    Args:
        weighted: N samples.
        generator: for the bootstrap; a fixed seed if None.
    Returns:
        The fraction, its bootstrap standard error (over groups where rows are correlated; NaN for a single one), and the number it makes.
        All NaN where rows were resampled and their ancestors were not kept.
    Raises:
        ValueError: if no weight is positive.
    """
    p, proposal, number = normalised_weights(weighted), weighted.proposal, effective_number(weighted)
    if math.isnan(number):
        return Estimate(value=math.nan, stderr=math.nan)
    found = effective_fraction(p, ancestor=proposal.ancestor, group=proposal.group, generator=generator)
    return replace(found, value=number / len(p), n_eff=number)


def effective_fraction(weights: Tensor, *, ancestor: Tensor | None = None, group: Tensor | None = None,
                       generator: torch.Generator | None = None) -> Estimate:
    """(sum_a W_a)^2 / (N sum_a W_a^2), W_a the weight of all rows that descend from draw a.

    It never profits from copying rows, and gives no credit for moves that take copies apart, so that the truth lies above.

    Args:
        weights: [N], some of them positive.
        ancestor: [N] the draw that each row descends from; None where every row is a draw of its own.
        group: [N] labels of correlated rows, each of which holds families as a whole; None where families are independent.
        generator: for the bootstrap; a fixed seed if None.
    Returns:
        The fraction, its bootstrap standard error over groups (NaN for a single one), and the number it makes.
    """
    w = weights / weights.max()  # exactly one where all are equal, so that such an ESS is 1 +- 0
    family, rows = block_sums(torch.stack([w, torch.ones_like(w)], 1), ancestor).unbind(1)
    if ancestor is not None and group is not None:
        index = torch.unique(ancestor, return_inverse=True)[1]
        group = group.new_zeros(len(family)).scatter_(0, index, group)
    sums = block_sums(torch.stack([family, family.square(), rows], 1), group)
    value, replicates = _ess_of_totals(sums.sum(0, keepdim=True)).item(), bootstrap(sums, _ess_of_totals, generator=generator)
    return Estimate(value=value, stderr=replicates.std().item() if len(sums) > 1 else math.nan, n_eff=value * len(w))


def log_z(weighted: WeightedSamples) -> Estimate:
    """Absolute log partition function, log Z = log(1/N sum_i w_i).

    Z refers to the volume of the samples' space, in the system's length unit. The standard error is the delta method's together with the
    weight that the tail's fit expects beyond the largest one seen (`pareto.unseen_weight`): infinite where the fitted tail has no mean.

    Raises:
        ValueError: for UNNORMALISED samples, or if no weight is positive.
    """
    if not weighted.proposal.density.normalised:
        raise ValueError("log Z is unknown for MCMC samples; ratios and averages only")
    p = normalised_weights(weighted)
    of_magnitudes = (weighted.sign * _magnitudes(weighted)).sum().item()  # sum w / sum |w|
    value = torch.logsumexp(weighted.log_w, 0).item() + math.log(of_magnitudes) - math.log(len(p))
    seen = delta_stderr(p - 1 / len(p), weighted.proposal.group)
    unseen = max(0.0, unseen_weight(weighted) - 1 / len(p))  # a draw of average weight more would change nothing
    return Estimate(value=value, stderr=math.hypot(seen, unseen), n_eff=effective_number(weighted))


def expectation(weighted: WeightedSamples, f: Callable[[Tensor], Tensor]) -> Estimate:
    """Self-normalised average <f> = sum_i w_i f(x_i) / sum_i w_i.

    stderr by the delta method from w_i (f_i - <f>) / sum w, over groups where rows are correlated, with the weight that heavy tails have
    not shown yet (`error_bars.weighted_stderr`). n_eff = Var(f) / stderr^2, the number of independent samples of the target that would
    give this error bar (NaN for a constant f).

    Args:
        weighted: N samples.
        f: maps configurations [B, n, d] to [B]; called once, on the rows whose weight is not zero.
    Raises:
        ValueError: if no weight is positive, or f is not finite or of the wrong shape there.
    """
    return average(weighted, evaluate(f, weighted))


def average(weighted: WeightedSamples, values: Tensor) -> Estimate:
    """`expectation` of values already at hand, such as the stored reduced energies.

    Args:
        weighted: N samples.
        values: [N]; whatever stands in rows of zero weight is ignored.
    Raises:
        ValueError: if no weight is positive, or a value whose weight is not zero is not finite.
    """
    p = normalised_weights(weighted)
    if values.shape != p.shape:
        raise ValueError(f"got values of shape {tuple(values.shape)} for {len(p)} samples; one number for each is needed")
    values = torch.where(p != 0, values.double(), 0.0)
    if bad := int((~torch.isfinite(values)).sum()):
        raise ValueError(f"the values are not finite at {bad} of {int((p != 0).sum())} samples of positive weight: they have no average")
    mean = (p * values).sum().item()
    stderr = weighted_stderr(p, values - mean, group=weighted.proposal.group, unseen=unseen_weight(weighted))
    variance = (p * (values - mean).square()).sum().item()
    return Estimate(value=mean, stderr=stderr, n_eff=variance / stderr**2 if stderr and variance > (ROUND_OFF * mean) ** 2 else math.nan)


def evaluate(f: Callable[[Tensor], Tensor], weighted: WeightedSamples) -> Tensor:
    """f at the rows whose weight is not zero, and zero elsewhere (where it does not matter), [N] float64.

    Raises:
        ValueError: if f does not return one number for each configuration.
    """
    p = normalised_weights(weighted)
    rows = p != 0
    with torch.no_grad():
        values = torch.as_tensor(f(weighted.x[rows])).double()
    if values.shape != (int(rows.sum()),):
        raise ValueError(f"f returned shape {tuple(values.shape)} for {int(rows.sum())} configurations; it must return one number for each")
    return torch.zeros_like(p).masked_scatter(rows, values)


def max_weight(weighted: WeightedSamples) -> float:
    """Largest single weight, of either sign, as a fraction of their sum; weights as in `family_weights`; NaN as `effective_number`."""
    return math.nan if math.isnan(effective_number(weighted)) else family_weights(weighted).abs().max().item()


def negative_mass(weighted: WeightedSamples) -> Estimate:
    """Weight of samples at which the executed map reverses orientation, relative to the signed mass: sum_{sign<0} w / sum sign w.

    Where a map folds, sign(det) w stays unbiased for Z (degree one), so Z from plain weights, as UNCERTIFIED samples have them, is too
    large by twice this fraction.

    Returns:
        The fraction; infinite, with no standard error, where the signed mass is not positive.
    Raises:
        ValueError: if the proposal carries no signs, or no weight is positive.
    """
    sign = weighted.proposal.sign
    if sign is None:
        raise ValueError(f"{weighted.proposal.density.value} samples carry no determinant signs; only the executed map of a flow does")
    p = _magnitudes(weighted)
    signed, negative = torch.where(p > 0, p * sign, 0.0), p * (sign < 0)
    mass, n_eff = signed.sum().item(), effective_number(weighted)
    if mass <= 0:
        return Estimate(value=math.inf, stderr=math.nan, n_eff=n_eff)
    value = negative.sum().item() / mass
    return Estimate(value=value, stderr=delta_stderr((negative - value * signed) / mass, weighted.proposal.group), n_eff=n_eff)


def resample(weighted: WeightedSamples, n: int, *, generator: torch.Generator) -> WeightedSamples:
    """n rows drawn with probability proportional to their weights; equal weights afterwards, copies of one row grouped, an edit recorded.

    The result is UNNORMALISED: log Z belongs to the samples before resampling.

    Raises:
        ValueError: if n < 1, no weight is positive, or some are negative.
    """
    if n < 1:
        raise ValueError(f"cannot resample {n} rows; ask for at least one")
    drawn = torch.multinomial(chances(weighted), n, replacement=True, generator=generator)
    copies = weighted.take(drawn)
    rows = copies.proposal
    proposal = replace(rows, log_q=-copies.u, density=Density.UNNORMALISED, group=drawn if rows.group is None else rows.group,
                       ancestor=drawn if rows.ancestor is None else rows.ancestor)
    return replace(copies, proposal=with_edit(proposal, f"{RESAMPLED}{n} of {len(weighted)} rows"))


def _admit(proposal: Proposal, accept: Collection[Density]) -> Proposal:
    if proposal.density.trusted:
        return proposal
    name = proposal.density.value
    if proposal.density not in accept:
        raise ValueError(f"{name} samples have no proper weights; sample with an exact density, or pass "
                         f"accept=[Density.{name.upper()}] (--accept {name}) and every figure will say so")
    edit = f"accepted {name} density"
    return proposal if edit in proposal.origin.edits else with_edit(proposal, edit)


def _ess_of_totals(totals: Tensor) -> Tensor:
    """ESS from totals of (w, w^2, 1); a replicate that drew no positive weight has none."""
    w, square, n = totals.unbind(1)
    return torch.where(square > 0, w.square() / (n * square).clamp_min(1e-300), 0.0)
