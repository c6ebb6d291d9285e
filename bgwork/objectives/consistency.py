"""Objectives of flow maps: the average velocity U behind X_{t->s}(x) = x + (s - t) U(t, s, x), distilled from a flow or learned alone.

Along a path of the flow, dx_t/dt = v(t, x_t), the end point X_{t->s}(x_t) does not depend on t. Its derivative
    0 = d/dt [x_t + (s - t) U(t, s, x_t)] = v - U + (s - t) dU/dt,      dU/dt = dU(t, s, x)/dt + dU(t, s, x)/dx v,
is the average-velocity identity U = v + (s - t) dU/dt (Geng et al. 2025, Mean flows), and over a finite
stretch it is self-consistency (Song et al. 2023; Boffi, Albergo and Vanden-Eijnden 2024). Both hold for s before and after t.
Targets that contain U are not differentiated. All losses are mean squares per coordinate.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bgwork.fields.two_times import AverageVelocity
from bgwork.objectives.flow_matching import FlowMatchingData
from bgwork.protocols import Field
from bgwork.samplers.batches import Progress, check_count, map_batches
from bgwork.samplers.flow import Flow

PATHS_AT_ONCE = 64

Loss = Callable[[AverageVelocity, "PairBatch"], Tensor]
Velocity = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """Times t, s [B], points x [B, n, d] at time t and a velocity [B, n, d] there, float32.

    The velocity is the interpolant's at t, or the average from t to s along a path of the teacher; the data source says which.
    """

    t: Tensor
    s: Tensor
    x: Tensor
    velocity: Tensor
    seconds: float


@dataclass(frozen=True, kw_only=True)
class EndTimes:
    """Distribution of s given t: t itself for a share of the batch, uniform on [0, 1] for the rest, so both directions are learned.

    Args:
        diagonal: share with s = t, where U is the flow's velocity.
    """

    diagonal: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.diagonal <= 1:
            raise ValueError(f"the share of pairs with s = t must lie between 0 and 1, got {self.diagonal}")

    def sample(self, t: Tensor, *, generator: torch.Generator) -> Tensor:
        """s [B] for t [B]."""
        kind, s = torch.rand(2, len(t), generator=generator, dtype=torch.float64).to(t)
        return torch.where(kind < self.diagonal, t, s)


@dataclass(frozen=True, kw_only=True, eq=False)
class InterpolantPairs:
    """Points of the interpolant with its velocity, as for flow matching, and an end time for each.

    Args:
        points: flow-matching batches; a teacher's points come with the coupling that it was trained with.
        ends: distribution of s.
    """

    points: FlowMatchingData
    ends: EndTimes = field(default_factory=EndTimes)

    def __call__(self, step: int) -> PairBatch:
        drawn = self.points(step)
        started, generator = time.process_time(), _seeded(self.points.seed, step, stream=1)
        s = self.ends.sample(drawn.t, generator=generator)
        return PairBatch(t=drawn.t, s=s, x=drawn.x, velocity=drawn.velocity, seconds=drawn.seconds + time.process_time() - started)


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Paths of a teacher.

    Attributes:
        times: [M + 1] from 0 to 1.
        x: [N, M + 1, n, d] float32, the executed flow at these times.
    """

    times: Tensor
    x: Tensor


def teacher_paths(teacher: Flow, n: int, *, generator: torch.Generator, progress: Progress | None = None) -> Paths:
    """n paths of the executed flow from prior draws, at the times of its grid; its density is not computed.

    Raises:
        ValueError: if n < 1, or a path diverged.
    """
    check_count(n)
    z = teacher.prior.sample(n, generator=generator)

    @torch.no_grad()
    def walk(rows: slice) -> Tensor:
        points = [z[rows]]
        for step in teacher.steps:
            points.append(step(points[-1]))
        return torch.stack(points, 1).float()

    x = torch.cat(map_batches(walk, n, PATHS_AT_ONCE, progress))
    lost = int((~torch.isfinite(x).flatten(1).all(1)).sum())
    if lost:
        raise ValueError(f"{lost} of {n} paths of the teacher diverged; give it more steps")
    return Paths(times=torch.tensor([t for t, _ in teacher.grid.intervals] + [1.0], dtype=torch.float64), x=x)


@dataclass(frozen=True, kw_only=True, eq=False)
class PathPairs:
    """Two points of a teacher's path, with the average velocity between them: U's regression target without any bootstrapping.

    Args:
        paths: of the teacher.
        steps: numbers of steps K that the map will be used with; neighbours on these grids make up the share `on_grid`, in equal parts,
            and each K must divide the number of intervals of the paths. The rest are any two times of the path.
        on_grid: share of the former.
        backward: share of pairs with s < t.
        batch: pairs a step.
        seed: together with the step, seeds everything drawn.
    """

    paths: Paths
    batch: int
    seed: int
    steps: tuple[int, ...] = (1, 2, 4, 8)
    on_grid: float = 0.7
    backward: float = 0.25

    def __post_init__(self) -> None:
        intervals = len(self.paths.times) - 1
        bad = [k for k in self.steps if k < 1 or intervals % k]
        if bad or not self.steps:
            raise ValueError(f"{intervals} intervals of the teacher's paths do not divide into {bad or 'no'} steps; choose divisors")
        if not (0 <= self.on_grid <= 1 and 0 <= self.backward <= 1):
            raise ValueError(f"the shares on_grid and backward must lie between 0 and 1, got {self.on_grid} and {self.backward}")

    def __call__(self, step: int) -> PairBatch:
        started, generator = time.process_time(), _seeded(self.seed, step, stream=0)
        rows = torch.randint(len(self.paths.x), (self.batch,), generator=generator)
        first, last = self._indices(generator)
        t, s = self.paths.times[first], self.paths.times[last]
        x, y = self.paths.x[rows, first], self.paths.x[rows, last]
        velocity = (y - x) / (s - t).float()[:, None, None]
        return PairBatch(t=t.float(), s=s.float(), x=x, velocity=velocity, seconds=time.process_time() - started)

    def _indices(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Positions of t and of s on the path, [B] each, never equal."""
        intervals, kind = len(self.paths.times) - 1, torch.rand(4, self.batch, generator=generator)
        steps = torch.tensor(self.steps)[torch.randint(len(self.steps), (self.batch,), generator=generator)]
        first = (kind[0] * steps).long() * (intervals // steps)
        last = first + intervals // steps
        apart = torch.randint(1, intervals + 1, (self.batch,), generator=generator)
        any_first = (kind[1] * (intervals + 1 - apart)).long()
        gridded = kind[2] < self.on_grid
        first, last = torch.where(gridded, first, any_first), torch.where(gridded, last, any_first + apart)
        back = kind[3] < self.backward
        return torch.where(back, last, first), torch.where(back, first, last)


@dataclass(frozen=True, kw_only=True)
class EndBatch:
    """Prior draws z [B, n, d] with the teacher's images x [B, n, d], float32."""

    z: Tensor
    x: Tensor
    seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class PathEnds:
    """First and last points of a teacher's paths. Arguments as for `PathPairs`."""

    paths: Paths
    batch: int
    seed: int

    def __call__(self, step: int) -> EndBatch:
        started = time.process_time()
        rows = torch.randint(len(self.paths.x), (self.batch,), generator=_seeded(self.seed, step, stream=0))
        return EndBatch(z=self.paths.x[rows, 0], x=self.paths.x[rows, -1], seconds=time.process_time() - started)


def endpoint_loss(times: tuple[float, ...]) -> Callable[[AverageVelocity, EndBatch], Tensor]:
    """|X_{t_{K-1} -> 1} o ... o X_{0 -> t_1}(z) - x|^2 (`PathEnds`): a student for the K steps it will be used with, and no others."""
    def loss(model: AverageVelocity, batch: EndBatch) -> Tensor:
        x = batch.z
        for t, s in itertools.pairwise(times):
            x = model.move(t, s, x)
        return ((x - batch.x) ** 2).mean()

    return loss


def path_loss(model: AverageVelocity, batch: PairBatch) -> Tensor:
    """|U(t, s, x_t) - (x_s - x_t) / (s - t)|^2 on paths of the teacher (`PathPairs`)."""
    return ((model(batch.t, batch.s, batch.x) - batch.velocity) ** 2).mean()


def path_and_velocity_loss(teacher: Field, *, share: float) -> Loss:
    """`path_loss`, and |U(t, t, x) - v(t, x)|^2 at the points of the first part of the batch: the velocity at the map's heart.

    Args:
        teacher: v(t, x).
        share: size of that part, above 0 and at most 1.
    """
    def loss(model: AverageVelocity, batch: PairBatch) -> Tensor:
        rows = slice(max(1, round(share * len(batch.x))))
        t, x = batch.t[rows], batch.x[rows]
        with torch.no_grad():
            v = teacher(t, x)
        return path_loss(model, batch) + ((model(t, t, x) - v) ** 2).mean()

    return loss


def average_velocity_loss(teacher: Field | None = None, *, power: float = 0.0) -> Loss:
    """|U - sg[v + (s - t) dU/dt]|^2, dU/dt by one forward-mode product with the tangent (1, 0, v) of (t, s, x).

    Without a teacher v is the interpolant's velocity, whose mean given x_t is the flow's: the target is linear in v, so the minimum is
    the same (with power = 0). A fresh network can run away from it, since its own slopes are in the target: start from a teacher, or
    take `path_loss` or `consistency_loss`.

    Args:
        teacher: v(t, x); None takes the batch's velocity.
        power: each sample's square is divided by sg[itself + 1e-3]^power, which keeps early trainings from running away (Geng et al.
            use 1); where v is noisy it moves the minimum.
    """
    def loss(model: AverageVelocity, batch: PairBatch) -> Tensor:
        with torch.no_grad():
            v = batch.velocity if teacher is None else teacher(batch.t, batch.x)
            tangent = (torch.ones_like(batch.t), torch.zeros_like(batch.s), v)
            change = torch.func.jvp(model, (batch.t, batch.s, batch.x), tangent)[1]
            target = v + (batch.s - batch.t)[:, None, None] * change
        square = ((model(batch.t, batch.s, batch.x) - target) ** 2).mean((1, 2))
        return (square / (square.detach() + 1e-3) ** power).mean()

    return loss


def consistency_loss(teacher: Field | None = None, *, share: float = 0.25) -> Loss:
    """The end point from x_t and from x_t', t' = t + share (s - t) on the path through x_t, must agree: as average velocities,

        |U(t, s, x_t) - sg[share v' + (1 - share) U(t', s, x_t')]|^2,    x_t' = x_t + (t' - t) v',

    v' being the teacher's velocity at the midpoint between t and t'. There is no division by s - t.
    Without a teacher, U(t, t, x) is learned from the batch's velocities where s = t, and takes the teacher's place elsewhere (Boffi,
    Albergo and Vanden-Eijnden 2025, self-distillation).

    Args:
        teacher: v(t, x); None for self-distillation.
        share: of the way that the teacher goes, in (0, 1]; with 1 nothing else is bootstrapped, and its midpoint step is as long as the
            map's.

    Raises:
        ValueError: if the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"the teacher's share of the way must lie in (0, 1], got {share}")

    def loss(model: AverageVelocity, batch: PairBatch) -> Tensor:
        with torch.no_grad():
            v = teacher or (lambda t, x: model(t, t, x))
            target = _one_step_further(model, v, share * (batch.s - batch.t), share, batch)
            if teacher is None:
                target = torch.where((batch.s == batch.t)[:, None, None], batch.velocity, target)
        return ((model(batch.t, batch.s, batch.x) - target) ** 2).mean()

    return loss


def _one_step_further(model: AverageVelocity, v: Velocity, length: Tensor, share: float, batch: PairBatch) -> Tensor:
    """share v' + (1 - share) U(t', s, x_t') with t' = t + length."""
    half = batch.x + (length / 2)[:, None, None] * v(batch.t, batch.x)
    middle = v(batch.t + length / 2, half)
    return share * middle + (1 - share) * model(batch.t + length, batch.s, batch.x + length[:, None, None] * middle)


def _seeded(seed: int, step: int, *, stream: int) -> torch.Generator:
    """A generator for one step; streams of the same seed and step are independent."""
    return torch.Generator().manual_seed((seed * 1_000_000_007 + step) * 2 + stream)
