"""Equilibrium data of one energy as weighted samples of another, moved there by the map of a generator (targeted perturbation).

log w = -u(T(x)) + u_0(x) + ln|det DT(x)|, up to one constant: averages, basins and free-energy differences follow, log Z does not. One energy
a configuration buys what a chain on a costly energy needs hundreds of gradients for; but a basin that is empty under the first
energy stays so, and the weights tell no more than any others how much that matters (Jarzynski 2002; Rizzi, Carloni and Parrinello 2021).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bgwork.provenance import tensor_fingerprint
from bgwork.records import Cost, Density, Origin, Proposal
from bgwork.samplers.batches import map_batches
from bgwork.samplers.internal_map import InternalMap

LEARNED_ON = 4  # every fourth walker is for learning a map, the others for weighing
BATCH = 512


def rows_to_learn(source: Proposal) -> Tensor:
    """[N] bool: the rows that a map may be learned on; without walkers, every fourth row."""
    label = torch.arange(len(source)) if source.group is None else source.group.unique(return_inverse=True)[1]
    return label % LEARNED_ON == 0


def transport(source: Proposal, last: InternalMap, *, system: str, learned_on: str, origin: Origin) -> Proposal:
    """Configurations of another energy, moved; without those that the map was learned on.

    Args:
        source: equilibrium data of the other energy, log q = -u_0.
        last: T.
        system: where they are moved to.
        learned_on: fingerprint of the data of which the map was learned on every fourth walker.
        origin: of the map.
    Returns:
        UNNORMALISED configurations with log q = -u_0(x) - ln|det DT(x)|; `group` as in the source.
    """
    if tensor_fingerprint(source.x) == learned_on:
        source = source.take(~rows_to_learn(source))
    started = time.perf_counter()
    parts = map_batches(lambda rows: _moved(last, source.x[rows].double()), len(source), BATCH, None)
    x, log_det = (torch.cat(column) for column in zip(*parts, strict=True))
    return replace(source, x=x, log_q=source.log_q - log_det, density=Density.UNNORMALISED, certificate=None, sign=None,
                   cost=Cost(seconds=time.perf_counter() - started),
                   origin=replace(origin, system=system, seed=source.origin.seed, edits=source.origin.edits),
                   note=f"{len(source)} configurations of {source.origin.system}, moved by a map of internal coordinates")


@torch.no_grad()
def _moved(last: InternalMap, x: Tensor) -> tuple[Tensor, Tensor]:
    return last(x)


def learned_on(meta: Mapping[str, Any]) -> str:
    """Fingerprint of the first energy's data in the header of a generator."""
    return meta.get("start_data", "")
