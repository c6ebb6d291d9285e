"""Where a generator draws too few: parts of configuration space whose reference samples weigh more than the others.

Forward ESS says that reference samples weigh unevenly, and not which ones are to blame. Here every observable is cut at its quantiles,
and the mean log-weight on one side of the cut is compared with that on the other:

    excess = E_pi[log w | within] - E_pi[log w | elsewhere],    w = pi / q

Logarithms, because a mean of weights rests on the few largest. A part that holds a share s of the target and is drawn at a rate of s
exp(-excess) is what `training.oversample` is for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bgwork.indicators import Function, IndicatorError, value_of
from bgwork.records import Estimate, WeightedSamples
from bgwork.samplers.diagnosis import ReferenceSet
from bgwork.samplers.unseen import comparable, evenly_spread

CUTS = (0.02, 0.05, 0.1, 0.2, 0.3)  # shares of the reference samples that a part may hold, from either end of an observable
FEWEST = 10  # reference samples on the smaller side
LEAST = math.log(2)  # excess that is worth a word
ERRORS = 3.5  # standard errors that it must be above nought: the largest of some hundreds of cuts, many of them alike, is looked at
MOST = 3  # parts that are named


@dataclass(frozen=True, kw_only=True)
class Lacking:
    """A part of configuration space that is drawn too seldom.

    Attributes:
        where: an observable and a bound, as `bgwork.indicators` reads it.
        share: of the reference samples.
        excess: of their mean log-weight over that of the others.
    """

    where: str
    share: float
    excess: Estimate


def lacking_parts(weighted: WeightedSamples, reference: ReferenceSet, functions: Mapping[str, Function]) -> tuple[Lacking, ...]:
    """The parts whose reference samples weigh clearly more than the others, one to an observable at most, the clearest first.

    Args:
        weighted: samples with a normalised density, one to a configuration.
        reference: with the generator's density at reference samples, which are taken to be independent; copies of one draw count once.
        functions: observables by name.
    Returns:
        `MOST` of them at most; none where there is no density at reference samples.
    """
    if not comparable(weighted, reference):
        return ()
    known, log_w = evenly_spread(reference)
    sound = torch.isfinite(log_w)
    if not sound.any():
        return ()
    found = [max(cuts, key=clearness) for name, value in _values(functions, known.x[sound])
             if (cuts := list(_cuts(name, value, log_w[sound])))]
    return tuple(sorted(found, key=clearness, reverse=True)[:MOST])


def clearness(part: Lacking) -> float:
    """Excess in standard errors; infinite where it is exact."""
    return part.excess.z(Estimate(value=0.0, stderr=0.0))


def _values(functions: Mapping[str, Function], x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Every observable that these configurations have."""
    for name in functions:
        try:
            value = value_of(functions, name, x)
        except IndicatorError:
            continue
        yield name, value


def _cuts(name: str, value: Tensor, log_w: Tensor) -> Iterator[Lacking]:
    """Every cut of one observable, on either side, that leaves a part with a clear excess."""
    levels = torch.tensor(CUTS, dtype=torch.float64)
    for sign, bounds in (("<", torch.quantile(value, levels)), (">", torch.quantile(value, 1 - levels))):
        for bound in bounds.tolist():
            text = f"{bound:.2g}"
            within = value < float(text) if sign == "<" else value > float(text)
            part = Lacking(where=f"{name} {sign} {text}", share=within.double().mean().item(), excess=_excess(log_w, within))
            if part.excess.value > LEAST and clearness(part) > ERRORS:
                yield part


def _excess(log_w: Tensor, within: Tensor) -> Estimate:
    """Difference of the means, with Welch's error; none where one side is too small."""
    a, b = log_w[within], log_w[~within]
    if min(len(a), len(b)) < FEWEST:
        return Estimate(value=-math.inf, stderr=math.inf)
    return Estimate(value=(a.mean() - b.mean()).item(), stderr=math.sqrt((a.var() / len(a) + b.var() / len(b)).item()), n_eff=float(len(a)))
