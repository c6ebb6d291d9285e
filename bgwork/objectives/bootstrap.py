"""Bootstrapping: the weighted samples of one generator are the data of a flow, whose own samples then need less weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bgwork.protocols import Sampler, Target
from bgwork.records import Cost, Density, Estimate, WeightedSamples
from bgwork.reweighting import ess, normalised_weights, weigh


@dataclass(frozen=True, kw_only=True, eq=False)
class Resampled:
    """Rows drawn with probability proportional to their weight: unweighted data, with repetitions.

    Attributes:
        x: [N, n, d] float64.
        ess: of what they were drawn from.
        distinct: number of different rows among them.
        cost: of the samples and their energies.
    """

    x: Tensor
    ess: Estimate
    distinct: int
    cost: Cost


def resampled(weighted: WeightedSamples, n: int, *, generator: torch.Generator) -> Resampled:
    """n rows of weighted samples, multinomially.

    Raises:
        ValueError: if no weight is positive.
    """
    # Of a folded map, rows of negative weight cancel others close by; as training data they are left out.
    rows = torch.multinomial(normalised_weights(weighted.magnitudes) * (weighted.sign > 0), n, replacement=True, generator=generator)
    return Resampled(x=weighted.x[rows], ess=ess(weighted.magnitudes), distinct=len(rows.unique()), cost=weighted.proposal.cost)


def data_from(sampler: Sampler, target: Target, n: int, *, generator: torch.Generator, accept: tuple[Density, ...] = ()) -> Resampled:
    """n samples of a generator, weighed and resampled.

    Args:
        sampler: whose density is proper, or is accepted by name.
        target: the reduced energy.
        n: samples drawn, and rows returned.
        generator: of both.
        accept: as in `weigh`.
    """
    return resampled(weigh(sampler.sample(n, generator=generator), target, accept=accept), n, generator=generator)
