"""Equilibrium data of one energy as weighted samples of another, moved there by the map of a generator (targeted perturbation).

log w = -u(T(x)) + u_0(x) + ln|det DT(x)|, up to one constant: averages, basins and free-energy differences follow, log Z does not. It
takes one energy a configuration and no chain on the costly energy; but a basin that is empty under the first energy stays so, which the
weights cannot tell (Jarzynski 2002; Rizzi, Carloni and Parrinello 2021). Nor can they tell that training data descend from the rows that
they weigh, as those made by `bgwork relax --start` of such rows do: weigh an independent run then.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor

from bgwork.provenance import tensor_fingerprint
from bgwork.records import Cost, Density, Origin, Proposal
from bgwork.samplers.batches import map_batches
from bgwork.samplers.internal_map import InternalMap

LEARNED_ON = 4  # every fourth walker is for learning a map, the others for weighing
BATCH = 512


def rows_to_learn(source: Proposal) -> Tensor:
    """[N] bool: the rows that a map may be learned on; without walkers, every fourth row.

    Raises:
        ValueError: if there are fewer than four walkers, or blocks of a trajectory.
    """
    label = torch.arange(len(source)) if source.group is None else source.group.unique(return_inverse=True)[1]
    if int(label.max()) + 1 < LEARNED_ON:
        raise ValueError(f"a map is learned on every {LEARNED_ON}th walker, or block of a trajectory, and weighs the others; the data have "
                         f"{int(label.max()) + 1} of them, so make more, or a longer trajectory")
    return label % LEARNED_ON == 0


def rows_to_weigh(source: Proposal, *, learned_on: str) -> Tensor:
    """[N] bool: all rows, but for those that a map was learned on.

    Args:
        source: data.
        learned_on: fingerprint of the data of which the map saw every fourth walker.
    """
    if tensor_fingerprint(source.x) == learned_on:
        return ~rows_to_learn(source)
    return torch.ones(len(source), dtype=torch.bool)


def transport(source: Proposal, last: InternalMap, *, origin: Origin) -> Proposal:
    """Equilibrium configurations of one energy, moved towards another.

    Args:
        source: of the first energy, log q = -u_0.
        last: T.
        origin: of the map, and where it leads.
    Returns:
        UNNORMALISED configurations with log q = -u_0(x) - ln|det DT(x)|; groups and ancestors are the source's.
    """
    started = time.perf_counter()
    parts = map_batches(lambda rows: _moved(last, source.x[rows].double()), len(source), BATCH, None)
    x, log_det = (torch.cat(column) for column in zip(*parts, strict=True))
    return replace(source, x=x, log_q=source.log_q - log_det, density=Density.UNNORMALISED, certificate=None, sign=None,
                   cost=Cost(seconds=time.perf_counter() - started),
                   origin=replace(origin, edits=source.origin.edits),
                   note=f"{len(source)} configurations of {source.origin.system}, moved by a map of internal coordinates")


@torch.no_grad()
def _moved(last: InternalMap, x: Tensor) -> tuple[Tensor, Tensor]:
    return last(x)
