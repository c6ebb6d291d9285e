"""Free energies along one coordinate and over two by every route: weights, MBAR with reference samples, the reference alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor

from bgwork.analysis import Data, elsewhere_of, function_of, known_of
from bgwork.free_energy import Pool, evaluate_defined, pooled
from bgwork.profiles import Profile, Surface, free_energy_profile, free_energy_surface, pooled_profile, pooled_surface
from bgwork.records import WeightedSamples

Found = TypeVar("Found", Profile, Surface)


@dataclass(frozen=True, kw_only=True)
class Routes(Generic[Found]):
    """One free energy by several routes.

    Attributes:
        by_route: "weights" of the samples alone, "pooled" with reference samples by MBAR, "reference" samples alone.
        missing: why a route could not be gone.
    """

    by_route: dict[str, Found]
    missing: dict[str, str]


def profile_routes(data: Data, name: str, edges: Tensor) -> Routes[Profile]:
    """F along a coordinate by every route that there is.

    Args:
        data: samples and what is known beside them.
        name: of an observable or torsion.
        edges: [K+1] rising bin edges.
    Raises:
        ValueError: if the samples' own weights give no profile (`free_energy_profile`).
    """
    f = function_of(data.system, name)
    alone = partial(free_energy_profile, coordinate=f, edges=edges)
    return _routes(data, alone, lambda pool: pooled_profile(pool, _values(data, f), edges))


def surface_routes(data: Data, names: tuple[str, str], edges: tuple[Tensor, Tensor]) -> Routes[Surface]:
    """F over two coordinates by every route that there is; arguments as in `profile_routes`, two of each."""
    first, second = (function_of(data.system, name) for name in names)
    alone = partial(free_energy_surface, coordinates=(first, second), edges=edges)
    return _routes(data, alone, lambda pool: pooled_surface(pool, (_values(data, first), _values(data, second)), edges))


def pool_of(data: Data) -> Pool:
    """The samples and the reference samples at which their generator's density is known, weighted by MBAR.

    Raises:
        ValueError: if it is known at none, or `free_energy.pooled` cannot pool them.
    """
    if data.held_out is None:
        raise ValueError("the generator's density at reference samples is not known")
    drawn = data.sampled or data
    return pooled(drawn.weighted, drawn.held_out, data.log_q, u_elsewhere=elsewhere_of(data) if data.sampled else None)


def _routes(data: Data, alone: Callable[[WeightedSamples], Found], together: Callable[[Pool], Found]) -> Routes[Found]:
    by_route, missing, reference = {"weights": alone(data.weighted)}, {}, known_of(data).samples
    try:
        by_route["pooled"] = together(pool_of(data))
    except ValueError as error:
        missing["pooled"] = str(error)
    if reference is None:
        missing["reference"] = "there are no independent reference samples"
    else:
        by_route["reference"] = alone(reference)
    return Routes(by_route=by_route, missing=missing)


def _values(data: Data, f: Callable[[Tensor], Tensor]) -> Tensor:
    """A coordinate at the samples and then at those reference samples at which log q is known, [N + M]."""
    return torch.cat([evaluate_defined(f, samples, "the coordinate") for samples in (data.weighted, data.held_out)])
