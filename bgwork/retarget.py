"""One set of weighted samples for many targets: another temperature, another force constant, with the effective sample size to expect.

log_q belongs to the samples and not to the target, so log w' = -u' - log q is proper for any u' that is infinite wherever u is. What it
costs is told by the change of the reduced energy, D = u' - u, beforehand and without new energies where only the temperature changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bgwork.error_bars import delta_stderr
from bgwork.protocols import Target
from bgwork.records import Estimate, WeightedSamples
from bgwork.reweighting import ess, normalised_weights, weigh


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Effective sample size after a change D of the reduced energy, from the first two moments of D.

        ESS'/ESS = <exp(-D)>_w^2 / <exp(-2D)>_ww = exp(-V),   V = 2 <D>_w - 2 <D>_ww - Var_w(D) + 2 Var_ww(D) + O(D^3)

    with averages under the weights w and under their squares. It is exact where D is Gaussian under both; with equal weights V = Var(D),
    and for a change of temperature Var(D) = (1 - kT/kT')^2 Var(u), Var(u) being the heat capacity in units of k_B. V is negative where
    the change leads back towards the generator's own density; a prediction above 1 says no more than that the change is harmless.

    Attributes:
        log_normal: ESS exp(-V), a fraction of the number of samples; its standard error is from that of V.
        second_order: ESS / (1 + V), which agrees while V is small; infinite for V <= -1.
        loss: V.
    """

    log_normal: Estimate
    second_order: float
    loss: Estimate


@dataclass(frozen=True, kw_only=True)
class Retargeted:
    """Samples weighed for another target, and what that did to them.

    Attributes:
        samples: the same configurations and log_q with the new reduced energies.
        before: effective fraction for the old target.
        predicted: effective fraction expected from the change of energy.
        measured: effective fraction of the new weights.
    """

    samples: WeightedSamples
    before: Estimate
    predicted: Prediction
    measured: Estimate


def retarget(weighted: WeightedSamples, target: Target) -> Retargeted:
    """The same samples weighed for another target, such as one with a different force constant.

    Args:
        weighted: samples of any generator; MD samples (UNNORMALISED) remain known up to a constant.
        target: the new reduced energy; its evaluations are added to the cost.
    Raises:
        ValueError: if the target lives on another space, or no weight is positive before or after.
    """
    proposal = weighted.proposal
    renewed = weigh(proposal, target, accept=[proposal.density] if not proposal.density.trusted else ())
    samples = replace(renewed, proposal=replace(renewed.proposal, origin=proposal.origin))  # what was accepted stands there already
    return _compared(weighted, samples)


def retarget_temperature(weighted: WeightedSamples, *, factor: float) -> Retargeted:
    """The same samples weighed for kT' = factor kT: u' = u / factor, without any new energy.

    Args:
        weighted: samples of any generator.
        factor: kT' / kT.
    Raises:
        ValueError: if the factor is not positive and finite, or no weight is positive.
    """
    name = f"{weighted.target} at {factor:g} kT"
    return _compared(weighted, WeightedSamples(proposal=weighted.proposal, u=_at_temperature(weighted.u, factor), target=name))


def predict_temperature(weighted: WeightedSamples, *, factor: float) -> Prediction:
    """Effective sample size to expect at kT' = factor kT.

    Raises:
        ValueError: as `retarget_temperature`.
    """
    return predict(weighted, _at_temperature(weighted.u, factor) - weighted.u)


def predict(weighted: WeightedSamples, change: Tensor) -> Prediction:
    """Effective sample size to expect when the reduced energy changes by D.

    Rows that the new energy forbids (D = +inf) or for which it failed (NaN) lose their weight first; the formula is for the others.

    Args:
        weighted: N samples.
        change: D = u' - u, [N]; whatever stands in rows of zero weight is ignored.
    Returns:
        Prediction; its standard error leaves out that of the ESS it starts from.
    Raises:
        ValueError: if no weight is positive, or all rows are forbidden.
    """
    lost = torch.isnan(change) | (change == math.inf)
    allowed = replace(weighted, u=torch.where(lost, math.inf, weighted.u))
    start, loss = ess(allowed), _loss(allowed, torch.where(allowed.log_w > -math.inf, change, 0.0))
    fraction = start.value * torch.tensor(-loss.value, dtype=torch.float64).exp().item()  # inf where math.exp would raise
    return Prediction(
        log_normal=Estimate(value=fraction, stderr=fraction * loss.stderr, n_eff=fraction * len(weighted)), loss=loss,
        second_order=start.value / (1 + loss.value) if loss.value > -1 else math.inf)


def _loss(weighted: WeightedSamples, change: Tensor) -> Estimate:
    """V of `Prediction`, with its standard error by the delta method."""
    value, influence = 0.0, torch.zeros_like(change)
    for p, of_mean, of_variance in ((normalised_weights(weighted), 2.0, -1.0), (torch.softmax(2 * weighted.log_w, 0), -2.0, 2.0)):
        off = change - (p * change).sum()
        variance = (p * off.square()).sum()
        value += (of_mean * (p * change).sum() + of_variance * variance).item()
        influence = influence + p * (of_mean * off + of_variance * (off.square() - variance))
    return Estimate(value=value, stderr=delta_stderr(influence, weighted.proposal.group))


def _at_temperature(u: Tensor, factor: float) -> Tensor:
    if not (factor > 0 and math.isfinite(factor)):
        raise ValueError(f"the temperature's factor kT'/kT must be positive and finite, got {factor}")
    return u / factor


def _compared(old: WeightedSamples, new: WeightedSamples) -> Retargeted:
    return Retargeted(samples=new, before=ess(old), predicted=predict(old, new.u - old.u), measured=ess(new))
