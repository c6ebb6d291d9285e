"""Flow matching: regress v(t, x_t) on the velocity of the interpolant between paired prior draws and data.

    L = E |v(t, x_t) - dx_t/dt|^2 / (n d),    x_t from `paths`, pairs from `couplings`    (Lipman et al. 2023)
Every random number of step k comes from a generator seeded by (seed, k), in the worker that prepares the batch, so that a resumed
training sees the same batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bgwork.couplings import random_rotations
from bgwork.objectives.force_targets import ForceTargets, Pairs
from bgwork.objectives.pooled_targets import PooledTargets
from bgwork.paths import LinearInterpolant, Times
from bgwork.protocols import Coupling, Field, Prior
from bgwork.spaces import MeanFree


@dataclass(frozen=True, kw_only=True)
class FlowMatchingBatch:
    """Inputs and regression targets of one step, float32; `seconds` is what pairing and drawing cost the worker (CPU time)."""

    t: Tensor
    x: Tensor
    velocity: Tensor
    seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Forces:
    """What `FlowMatchingData` needs to take noise out of the velocities.

    Args:
        gradient: of the reduced energy at the data [N, n, d] float64.
        targets: what to add to the velocity of aligned pairs on the linear interpolant.
    """

    gradient: Tensor
    targets: ForceTargets


@dataclass(frozen=True, kw_only=True, eq=False)
class FlowMatchingData:
    """Batches as a function of the step number.

    Args:
        x1: data [N, n, d].
        prior: p0.
        coupling: pairing of prior draws with data.
        batch: pairs a step.
        seed: together with the step, seeds everything drawn.
        times: distribution of t.
        path: interpolant.
        turns: how data on mean-free spaces are turned at random: `random_rotations` (of O(d)), or `random_turns` (of SO(d)) for
            molecules, whose mirror images are others.
        chances: [N] how often each row of x1 is drawn, up to a factor; all alike if None.
        forces: gradients of the reduced energy at x1, and what becomes of the velocities by them; without, those of the pairs as they are.
        pools: velocities averaged over other data that may be behind x_t, before forces are of use; without, those of the pairs alone.
    """

    x1: Tensor
    prior: Prior
    coupling: Coupling
    batch: int
    seed: int
    times: Times = field(default_factory=Times)
    path: LinearInterpolant = field(default_factory=LinearInterpolant)
    turns: Callable[..., Tensor] = random_rotations
    chances: Tensor | None = None
    forces: Forces | None = None
    pools: PooledTargets | None = None

    def __call__(self, step: int) -> FlowMatchingBatch:
        started = time.process_time()
        generator = torch.Generator().manual_seed(self.seed * 1_000_000_007 + step)
        rows = self._rows(generator)
        x0, x1 = self.prior.sample(self.batch, generator=generator), self.x1[rows].double()
        gradient = None if self.forces is None else self.forces.gradient[rows]
        if isinstance(self.prior.space, MeanFree):
            turn = self.turns(self.batch, self.prior.space.d, generator=generator)
            x1, gradient = x1 @ turn, None if gradient is None else gradient @ turn
        x0, x1 = self.coupling(x0, x1, generator=generator)
        t = self.times.sample(self.batch, generator=generator)
        x, velocity = self.path.point_and_velocity(t, x0, x1)
        if self.pools is not None:
            velocity = self.pools(t, x, velocity, rows, generator=generator)
        if gradient is not None:
            velocity = velocity + self.forces.targets(Pairs(t=t, x0=x0, x1=x1, gradient=gradient))
        return FlowMatchingBatch(t=t.float(), x=x.float(), velocity=velocity.float(), seconds=time.process_time() - started)

    def _rows(self, generator: torch.Generator) -> Tensor:
        if self.chances is None:
            return torch.randint(len(self.x1), (self.batch,), generator=generator)
        return torch.multinomial(self.chances, self.batch, replacement=True, generator=generator)


def flow_matching_loss(model: Field, batch: FlowMatchingBatch) -> Tensor:
    """Mean square error of the velocity per coordinate."""
    return ((model(batch.t, batch.x) - batch.velocity) ** 2).mean()
