"""Samplers whose Jacobians are compiled: the same numbers up to round-off, sooner if they are many, for the first batch waits."""

from __future__ import annotations

from dataclasses import replace
from functools import singledispatch

from bgwork.fields.compiled import CompiledField
from bgwork.protocols import Sampler
from bgwork.samplers.batches import MOST_CACHED, rows_in_cache
from bgwork.samplers.directional import DirectionalKernels
from bgwork.samplers.flow import Flow
from bgwork.samplers.sde import PathSampler
from bgwork.samplers.torus_flow import TorusFlow
from bgwork.spaces import Space


@singledispatch
def compiled(sampler: Sampler) -> Sampler:
    """The same sampler with compiled Jacobians.

    Args:
        sampler: a flow on a flat space, or walks with directional weights.
    Raises:
        ValueError: for others, which take no Jacobians that could be compiled, and if there is no C++ compiler.
    """
    raise ValueError(f"a {type(sampler).__name__} takes no Jacobians that can be compiled: only a flow on a flat space and a fixed grid, "
                     "with density weights, and walks with directional weights do; leave out --compiled")


@compiled.register
def _(sampler: Flow) -> Flow:
    rows = _rows(sampler.space, sampler.batch)
    return replace(sampler, field=CompiledField(sampler.field, rows=rows), batch=rows)


@compiled.register
def _(sampler: TorusFlow) -> TorusFlow:
    return compiled.dispatch(object)(sampler)  # refused: its Jacobians come by brute force, at one time for all rows


@compiled.register
def _(sampler: PathSampler) -> PathSampler:
    kernels = sampler.kernels
    if not isinstance(kernels, DirectionalKernels):
        raise ValueError("path weights with one width a step take no Jacobians that could be compiled; leave out --compiled, or take "
                         "--weights directional")
    rows = _rows(kernels.space, kernels.batch)
    plain = replace(kernels.plain, field=CompiledField(kernels.plain.field, rows=rows))
    return replace(sampler, kernels=replace(kernels, plain=plain, batch=rows))


def _rows(space: Space, asked: int | None) -> int:
    """Configurations at once: fused, less is held of each."""
    return min(2 * rows_in_cache(space), MOST_CACHED) if asked is None else asked
