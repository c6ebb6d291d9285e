"""A flow whose last step is a map of internal coordinates: generators of one energy that end at another's bonds and angles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bgwork.samplers.degree import degree_margin
from bgwork.samplers.executed import Step
from bgwork.samplers.flow import Flow
from bgwork.samplers.internal_map import InternalMap


@dataclass(frozen=True, kw_only=True)
class InternalStep:
    """An internal map as a step of an executed map: no evaluation of a network, an inverse in closed form."""

    map: InternalMap

    evaluations = 0

    def __call__(self, x: Tensor) -> Tensor:
        """T(x) [B, n, 3]."""
        return self.map(x)[0]

    def with_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """T(x) [B, n, 3] and DT(x) [B, 3n, 3n], by reverse mode, which threads may use together."""
        jacobian = torch.func.vmap(torch.func.jacrev(lambda row: self.map(row[None])[0][0]))(x)
        return self.map(x)[0], jacobian.reshape(len(x), *2 * (x[0].numel(),))

    def backward(self, x: Tensor) -> Tensor:
        """T^-1(x)."""
        return self.map.inverse(x)


@dataclass(frozen=True, kw_only=True, eq=False)
class MappedFlow(Flow):
    """A flow and, after its last step, an internal map; the density is that of the whole.

    Args:
        prior, origin, batch, round_trip, n_round_trip, tolerance, on_batch, field, grid: as for `Flow`.
        map: T, the last step.
    """

    map: InternalMap

    @property
    def steps(self) -> tuple[Step, ...]:
        return (*super().steps, InternalStep(map=self.map))

    def _degree_margin(self, z: Tensor, x: Tensor) -> tuple[int, float]:
        """That of the flow before the map, whose degree the whole has: the map is one-to-one among molecules, and keeps their orientation.

        What it makes of a far sphere says nothing, since configurations there are no molecules.
        """
        if not torch.linalg.slogdet(self.map.linear).sign > 0:
            return 0, torch.nan
        with torch.no_grad():
            return degree_margin(self._flow, self.space, z, self.map.inverse(x))

    def _flow(self, z: Tensor) -> Tensor:
        for step in super().steps:
            z = step(z)
        return z

    @property
    def description(self) -> str:
        return f"{super().description} and a map of internal coordinates"
