"""Flows with the density of the differential equation itself: exact up to solver error (which is reported), or noisy (Hutchinson).

log q(x(1)) = log p0(x(0)) - int_0^1 div v dt (Chen et al. 2018, Neural ordinary differential equations, eq. 8). These are the references
for `bgwork.samplers.flow.Flow`, whose density has no solver error, and the way out where a Jacobian is too dear.
"""

from __future__ import annotations

import abc
import math
import time
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torchdiffeq
from torch import Tensor

from bgwork.fields.divergence import Hutchinson, rademacher
from bgwork.protocols import Field, Prior
from bgwork.records import Cost, Density, Origin, Proposal
from bgwork.samplers.batches import Progress, check_configurations, check_count, check_field, in_batches
from bgwork.samplers.integrators import Grid, step_with_divergence
from bgwork.spaces import Space


class SolverError(ValueError):
    """The adaptive solver could not go on (a diverging trajectory, or tolerances below the field's round-off)."""


@dataclass(frozen=True, kw_only=True)
class Integrated:
    """Where prior draws went.

    Attributes:
        x: [N, n, d] end points at t = 1.
        integral: [N] int_0^1 div v dt.
        cost: of it, without its time.
        note: on the error of the integral.
    """

    x: Tensor
    integral: Tensor
    cost: Cost
    note: str


@dataclass(frozen=True, kw_only=True, eq=False)
class IntegratedFlow(abc.ABC):
    """What the samplers here share.

    Args:
        prior, field, origin, on_batch: as for `Flow`.
        batch: configurations in memory at once.
    """

    density: ClassVar[Density] = Density.CONTINUOUS

    prior: Prior
    field: Field
    origin: Origin
    batch: int = 256
    on_batch: Progress | None = None

    def __post_init__(self) -> None:
        check_count(self.batch)

    @property
    def space(self) -> Space:
        return self.prior.space

    def sample(self, n: int, *, generator: torch.Generator) -> Proposal:
        """Draw n samples, of the class's density.

        Args:
            n: number of samples.
            generator: source of everything random.
        Raises:
            ValueError: if n < 1, or the field does not fit the prior's space.
        """
        z, started = draw(self.prior, self.field, n, generator), time.perf_counter()
        made = self._integrate(z, generator)
        return Proposal(
            x=made.x, log_q=self.prior.log_prob(z) - made.integral, space=self.space, density=self.density,
            origin=seeded(self.origin, generator), cost=replace(made.cost, seconds=time.perf_counter() - started), note=made.note)

    @abc.abstractmethod
    def _integrate(self, z: Tensor, generator: torch.Generator) -> Integrated:
        """From prior draws z to t = 1."""


class ReversibleFlow(IntegratedFlow):
    """One whose equation can be solved backwards."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density [B] at x by the equation solved backwards: right up to solver error, like the samples' own.

        Raises:
            ValueError: if x has the wrong shape, holds NaN, or is not on the space.
        """
        check_configurations(x, self.space)
        z, integral = self._backwards(x.double())
        return self.prior.log_prob(z) - integral

    @abc.abstractmethod
    def _backwards(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From x at t = 1 to t = 0, and int_0^1 div v dt."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ContinuousFlow(ReversibleFlow):
    """Sampler whose density is the divergence integral by the integrator's own quadrature, on the same grid in both directions.

    The solver error is measured by doubling the steps for a few samples and printed in the proposal's note.

    Args:
        prior, field, origin, grid, batch, on_batch: as for `IntegratedFlow` and `Flow`; the field needs a divergence only.
        n_check: samples integrated once more with doubled steps.
    """

    grid: Grid = Grid()
    n_check: int = 64

    def _integrate(self, z: Tensor, generator: torch.Generator) -> Integrated:
        x, integral = walk(self.field, z, self.grid, self.grid.intervals, self.batch, self.on_batch)
        few, finer = z[: self.n_check], self.grid.doubled()
        x_finer, integral_finer = walk(self.field, few, finer, finer.intervals, self.batch)
        error = solver_error(x[: len(few)], -integral[: len(few)], x_finer, -integral_finer)
        evaluations = len(z) * self.grid.evaluations + len(few) * finer.evaluations
        return Integrated(x=x, integral=integral, cost=Cost(network=evaluations, divergence=evaluations),
                          note=f"divergence integral, {self.grid.integrator} with {self.grid.steps} steps: {error}")

    def _backwards(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return walk(self.field, x, self.grid, self.grid.reversed, self.batch, self.on_batch)


@dataclass(frozen=True, kw_only=True, eq=False)
class AdaptiveFlow(ReversibleFlow):
    """Sampler with torchdiffeq's adaptive Dormand-Prince solver for positions and divergence integral, density CONTINUOUS.

    The step size is shared by a batch, so that a sample's numbers depend, at the level of the tolerance, on its batch mates.

    Args:
        prior, field, origin, batch, on_batch: as for `IntegratedFlow`.
        rtol, atol: relative and absolute tolerances of the solver.
    """

    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.rtol > 0 and self.atol > 0):
            raise ValueError(f"rtol and atol must be positive, got {self.rtol} and {self.atol}")

    def _integrate(self, z: Tensor, generator: torch.Generator) -> Integrated:
        x, integral, evaluations = self._solve(z, (0.0, 1.0))
        return Integrated(x=x, integral=integral, cost=Cost(network=evaluations, divergence=evaluations),
                          note=f"divergence integral, dopri5 with rtol {self.rtol:g} and atol {self.atol:g}")

    def _backwards(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._solve(x, (1.0, 0.0))[:2]

    @torch.no_grad()
    def _solve(self, x: Tensor, times: tuple[float, float]) -> tuple[Tensor, Tensor, int]:
        """End points, int div v dt from t=0 to t=1, and network evaluations summed over rows."""
        evaluations, ends, integrals = 0, [], []
        sign = times[1] - times[0]

        def slope(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            nonlocal evaluations
            evaluations += len(state[0])
            v, trace = self.field.value_and_divergence(t, state[0])
            return v.double(), trace.double()

        for rows in in_batches(len(x), self.batch, self.on_batch):
            start = (x[rows], x.new_zeros(len(x[rows])))
            try:
                end, integral = torchdiffeq.odeint(slope, start, x.new_tensor(times), rtol=self.rtol, atol=self.atol, method="dopri5")
            except AssertionError as error:
                raise SolverError(f"dopri5 gave up ({error}); use a fixed grid (Flow), or larger rtol and atol") from error
            ends.append(end[-1])
            integrals.append(sign * integral[-1])
        return torch.cat(ends), torch.cat(integrals), evaluations


@dataclass(frozen=True, kw_only=True, eq=False)
class HutchinsonFlow(IntegratedFlow):
    """Sampler whose divergence is estimated with random probes, fixed along each trajectory (Grathwohl et al. 2019, FFJORD, eq. 7).

    log q is unbiased but noisy, and E[exp(noise)] != 1: weights built from it are wrong by exp(tau^2 / 2) in Z and lose a factor
    exp(tau^2) in effective sample size, tau^2 being the noise variance of the log-weight. tau^2 is measured from the spread between the
    probes and printed with the predicted damage. Density STOCHASTIC: `weigh` refuses it unless asked by name.

    Args:
        prior, origin, grid, batch, on_batch: as for `IntegratedFlow` and `Flow`.
        field: any velocity v(t, x) with n and d; neither divergence nor Jacobian is used.
        probes: independent Rademacher probes per trajectory, at least 2.
    """

    density: ClassVar[Density] = Density.STOCHASTIC

    grid: Grid = Grid()
    probes: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.probes < 2:
            raise ValueError(f"at least 2 probes are needed to measure the noise of log q, got {self.probes}")

    def _integrate(self, z: Tensor, generator: torch.Generator) -> Integrated:
        probes = rademacher((len(z), self.probes, *z.shape[1:]), generator=generator)
        parts = [self._solve(z[rows], probes[rows]) for rows in in_batches(len(z), self.batch, self.on_batch)]
        x, integrals = (torch.cat(column) for column in zip(*parts, strict=True))
        cost = Cost(network=len(z) * self.grid.evaluations * (1 + self.probes))
        return Integrated(x=x, integral=integrals.mean(1), cost=cost, note=predicted_damage(integrals))

    @torch.no_grad()
    def _solve(self, x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
        """End points [B, n, d] and the divergence integral of each probe [B, P]."""
        field = Hutchinson(self.field, probes)
        integrals = torch.zeros(probes.shape[:2], dtype=torch.float64)
        for t, h in self.grid.intervals:
            x, integral = step_with_divergence(field, self.grid.tableau, t, h, x)
            integrals = integrals + integral
        return x, integrals


def draw(prior: Prior, field: Field, n: int, generator: torch.Generator) -> Tensor:
    """n prior draws, once the field is known to fit the prior's space."""
    check_count(n)
    z = prior.sample(n, generator=generator)
    check_field(field, prior.space, z[:16])
    return z


def seeded(origin: Origin, generator: torch.Generator) -> Origin:
    """The origin with the generator's seed, unless it names one already."""
    return origin if origin.seed is not None else replace(origin, seed=generator.initial_seed())


@torch.no_grad()
def walk(
    field: Field, x: Tensor, grid: Grid, intervals: tuple[tuple[float, float], ...], batch: int, progress: Progress | None = None
) -> tuple[Tensor, Tensor]:
    """End points and |int div v dt| along the given intervals (int from t=0 to t=1, whichever way they are walked)."""
    ends, integrals = [x[:0]], [x.new_zeros(0)]
    for rows in in_batches(len(x), batch, progress):
        y, integral = x[rows], x.new_zeros(len(x[rows]))
        for t, h in intervals:
            y, increment = step_with_divergence(field, grid.tableau, t, h, y)
            integral = integral + math.copysign(1.0, h) * increment
        ends.append(y)
        integrals.append(integral)
    return torch.cat(ends), torch.cat(integrals)


def solver_error(x: Tensor, log_q: Tensor, x_finer: Tensor, log_q_finer: Tensor) -> str:
    """How far doubling the steps moved samples and log q, in words."""
    if not len(x):
        return "solver error not measured"
    change = log_q_finer - log_q
    return (f"doubling the steps changes log q by {change.mean():+.2g} on average ({change.pow(2).mean().sqrt():.2g} r.m.s.) "
            f"and moves x by up to {(x_finer - x).abs().max():.2g} ({len(x)} samples)")


def predicted_damage(integrals: Tensor) -> str:
    """What noise of the log-density does to weights, in words: tau^2 = variance between probes / number of probes.

    Args:
        integrals: [N, P] divergence integral of each probe.
    """
    tau2 = float((integrals.var(1) / integrals.shape[1]).mean())
    return (f"Hutchinson log-density with {integrals.shape[1]} probes: noise variance tau^2 = {tau2:.3g} in the log-weights, "
            f"predicted ESS x {math.exp(-tau2):.3g}, log Z {tau2 / 2:+.3g}")
