"""Few-step generators: a flow map X_{t->s}(x) = x + (s - t) U(t, s, x) executed at K + 1 times, with the exact density of that map.

One evaluation a step (Boffi, Albergo and Vanden-Eijnden 2024, Flow map matching; Song et al. 2023, Consistency models). Each step has the
Jacobian I + (s - t) dU/dx in closed form, and the map from s back to t is where Newton starts when a step is inverted.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import Tensor, nn

from bgwork.fields.two_times import AverageVelocity
from bgwork.protocols import Field
from bgwork.samplers.executed import ExecutedMap


@dataclass(frozen=True, kw_only=True)
class FlowMapStep:
    """X_{t->s}."""

    average: AverageVelocity
    t: float
    s: float

    evaluations = 1

    def __call__(self, x: Tensor) -> Tensor:
        """X_{t->s}(x) [B, n, d]."""
        return self.average.move(self.t, self.s, x)

    def with_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """X_{t->s}(x) [B, n, d] and its Jacobian [B, nd, nd]."""
        return self.average.move_with_jacobian(self.t, self.s, x)

    def backward(self, x: Tensor) -> Tensor:
        """X_{s->t}(x)."""
        return self.average.move(self.s, self.t, x)


def flow_map_steps(average: AverageVelocity, times: tuple[float, ...]) -> tuple[FlowMapStep, ...]:
    """X between neighbouring times, in order."""
    return tuple(FlowMapStep(average=average, t=t, s=s) for t, s in itertools.pairwise(times))


class FewSteps(nn.Module):
    """A flow map with the times it is executed at: what is trained for one number of steps alone.

    Args:
        average: U(t, s, x).
        times: K + 1 increasing times from 0 to 1.
    """

    def __init__(self, average: AverageVelocity, times: tuple[float, ...]) -> None:
        super().__init__()
        check_times(times)
        self.average, self.times = average, times

    @property
    def steps(self) -> tuple[FlowMapStep, ...]:
        """The executed map's steps, differentiable in the parameters."""
        return flow_map_steps(self.average, self.times)


@dataclass(frozen=True, kw_only=True, eq=False)
class FlowMapSampler(ExecutedMap):
    """Sampler with the exact density of the executed flow map X_{t_{K-1}->1} o ... o X_{0->t_1}.

    Args:
        prior, origin, batch, round_trip, n_round_trip, tolerance, on_batch: as for `ExecutedMap`.
        average: U(t, s, x) with a Jacobian.
        times: K + 1 increasing times from 0 to 1; each interval costs one evaluation.

    Example:
        >>> from bgwork.fields.mlp import MLP
        >>> from bgwork.priors import Gaussian
        >>> from bgwork.records import Origin
        >>> from bgwork.spaces import Euclidean
        >>> import torch
        >>> sampler = FlowMapSampler(prior=Gaussian(space=Euclidean(n=1, d=2)), average=AverageVelocity(MLP(1, 2, times=2)),
        ...                          origin=Origin(method="flow map", system="plane"), times=even_times(2))
        >>> sampler.sample(8, generator=torch.Generator().manual_seed(0)).density
        <Density.EXACT: 'exact'>
    """

    average: AverageVelocity
    times: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_times(self.times)

    @property
    def steps(self) -> tuple[FlowMapStep, ...]:
        return flow_map_steps(self.average, self.times)

    @property
    def velocity(self) -> Field:
        return self.average.instantaneous

    @property
    def description(self) -> str:
        return f"flow map with {len(self.times) - 1} steps"


def even_times(steps: int) -> tuple[float, ...]:
    """0, 1/K, ..., 1.

    Raises:
        ValueError: if steps is not a positive integer.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a positive integer, got {steps!r}")
    return tuple(k / steps for k in range(steps + 1))


def check_times(times: tuple[float, ...]) -> None:
    """Raise ValueError unless the times increase from 0 to 1."""
    if len(times) < 2 or times[0] != 0.0 or times[-1] != 1.0 or any(not s < t for s, t in itertools.pairwise(times)):
        raise ValueError(f"times must increase from 0 to 1, got {times}; even_times(K) makes K equal steps")
