"""Samplers that execute a map T = T_K o ... o T_1, whatever its steps are, with the exact density of that map and its certificate.

log q(T(z)) = log p0(z) - sum_k log|det DT_k|, without discretisation bias at any K at which T is injective. On the mean-free space
the determinant over all nd coordinates equals that over the subspace, because a step moves configurations by something without a mean
and so translations are eigenvectors with eigenvalue 1.

Where T folds, w = exp(-u)/q counts every preimage and is void, while sign(det) w stays unbiased if T is of degree one. The certificate
looks for folds: negative determinants among the samples, and configurations that do not survive x -> T^-1(x) -> x. Where it finds a
negative one it looks at the degree (`samplers.degree`), and the density is SIGNED if that is one.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from bgwork.protocols import Field, Prior
from bgwork.records import Certificate, Cost, Origin, Proposal
from bgwork.samplers.batches import Kept, Progress, check_configurations, check_count, check_field, map_batches, rows_in_cache
from bgwork.samplers.certificates import density_of, describe
from bgwork.samplers.degree import degree_margin
from bgwork.samplers.inverse import Inversion, invert_step
from bgwork.spaces import Space

ROUND_OFF = 64  # Newton stops at this many units of relative round-off of the field's arithmetic


class Step(Protocol):
    """One step of an executed map, x [B, n, d] float64 -> T(x), float64."""

    evaluations: int  # network forward passes per sample

    def __call__(self, x: Tensor) -> Tensor: ...

    def with_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """T(x) [B, n, d] and DT(x) [B, nd, nd]."""
        ...

    def backward(self, x: Tensor) -> Tensor:
        """About T^-1(x), at the cost of one step: where Newton starts."""
        ...


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """Images of prior draws under the executed map.

    Attributes:
        x: T(z) [B, n, d] float64.
        log_det: sum_k log|det DT_k| [B].
        sign: product of the determinants' signs [B].
        folded: [B] bool, some det DT_k is zero, negative or not finite.
        smallest_singular: smallest singular value over the steps [B].
    """

    x: Tensor
    log_det: Tensor
    sign: Tensor
    folded: Tensor
    smallest_singular: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class ExecutedMap(ABC):
    """A sampler with the exact density of the map it executes. A subclass says what the steps are.

    Args:
        prior: p0, which also names the space.
        origin: method, system and commit; the generator's seed is filled in.
        batch: configurations in memory at once, by default as many as `rows_in_cache`; results do not depend on it beyond the field's
            round-off.
        round_trip: held-out target configurations [M, n, d] for the certificate; without it, own samples make the trip.
        n_round_trip: own samples sent on it; 0 saves their cost, and leaves the density UNCERTIFIED,
            or SIGNED.
        tolerance: distance, in the system's length unit, within which a round trip must return.
        on_batch: called with (done, total) after each batch.
        kept: batches of an interrupted attempt at the same samples.
    """

    prior: Prior
    origin: Origin
    batch: int | None = None
    round_trip: Tensor | None = None
    n_round_trip: int = 64
    tolerance: float = 1e-3
    on_batch: Progress | None = None
    kept: Kept | None = None

    def __post_init__(self) -> None:
        check_count(self.rows)
        if self.round_trip is not None:
            check_configurations(self.round_trip, self.space)

    @property
    @abstractmethod
    def steps(self) -> tuple[Step, ...]:
        """T_1 ... T_K, in the order in which they are executed; all cost the same."""

    @property
    @abstractmethod
    def velocity(self) -> Field:
        """The field behind the steps, which must fit the space and whose arithmetic sets the round-off."""

    @property
    @abstractmethod
    def description(self) -> str:
        """Kind and number of the steps, for the note."""

    @property
    def space(self) -> Space:
        return self.prior.space

    @property
    def rows(self) -> int:
        """Configurations in memory at once."""
        return rows_in_cache(self.space) if self.batch is None else self.batch

    @property
    def evaluations(self) -> int:
        """Network forward passes per sample."""
        return sum(step.evaluations for step in self.steps)

    def sample(self, n: int, *, generator: torch.Generator) -> Proposal:
        """Draw n samples with log q = log p0(z) - sum_k log|det DT_k|.

        Args:
            n: number of samples.
            generator: source of the prior draws; the same seed gives the same numbers.
        Returns:
            Proposal, density EXACT if the certificate is clean, SIGNED if the map folds and is of degree one, UNCERTIFIED otherwise.
            Samples that diverged stay in it as NaN and count as folded. Its cost is that of sampling; the note says what the certificate
            took besides.
        Raises:
            ValueError: if n < 1, or the field does not fit the prior's space.
        """
        check_count(n)
        started, cores = time.perf_counter(), time.process_time()
        z = self.prior.sample(n, generator=generator)
        check_field(self.velocity, self.space, z[:16])
        pushed, evaluations = self._push_all(z), n * self.evaluations
        log_q = self.prior.log_prob(z) - pushed.log_det
        cost = Cost(network=evaluations, jacobian=evaluations, seconds=time.perf_counter() - started,
                    core_seconds=time.process_time() - cores) + (self.kept.spent if self.kept else Cost())
        certificate, spent = self._certify(z, pushed)
        return Proposal(
            x=pushed.x, log_q=log_q, space=self.space, sign=pushed.sign, certificate=certificate,
            density=density_of(certificate, pushed.sign),
            origin=self.origin if self.origin.seed is not None else replace(self.origin, seed=generator.initial_seed()),
            cost=cost, note=f"executed map, {self.description}: {describe(certificate, spent)}")

    @torch.no_grad()
    def push(self, z: Tensor) -> Pushed:
        """T(z) with its determinants, in one batch.

        Args:
            z: [B, n, d] float64.
        """
        x = z
        log_det, sign, folded = z.new_zeros(len(z)), z.new_ones(len(z)), torch.zeros(len(z), dtype=torch.bool)
        smallest = z.new_full((len(z),), torch.inf)
        for step in self.steps:
            start, (x, jacobian) = x, step.with_jacobian(x)
            step_sign, step_log_det = torch.linalg.slogdet(jacobian)
            log_det, sign = log_det + step_log_det, sign * step_sign
            folded |= ~((step_sign > 0) & torch.isfinite(step_log_det))
            smallest = torch.minimum(smallest, smallest_singular_value(self._in_frames(start, x, jacobian)))
        return Pushed(x=x, log_det=log_det, sign=sign, folded=folded, smallest_singular=smallest)

    def _in_frames(self, x: Tensor, y: Tensor, jacobian: Tensor) -> Tensor:
        """DT at x in bases that are orthonormal in the space's metric, at x and at y = T(x), without which singular values mean nothing."""
        return jacobian

    @torch.no_grad()
    def forward(self, z: Tensor) -> Tensor:
        """T(z) [B, n, d] without its density."""
        for step in self.steps:
            z = step(z)
        return z

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of the executed map at any configurations, by inverting it (see `invert`).

        Args:
            x: [B, n, d].
        Returns:
            [B] float64, NaN where no preimage was found, or one at which a step's determinant is not positive: log q is then unknown
            (x lies outside the image, or beyond a fold).
        Raises:
            ValueError: if x has the wrong shape, holds NaN, or is not on the space.
        """
        return self.invert(x).log_prob

    def invert(self, x: Tensor) -> Inversion:
        """Invert the executed map step by step, each by damped Newton from its `backward`.

        A row counts as converged when every step's residual came down to round-off at a positive determinant, and T(z) was found within
        `tolerance` of x.

        Args:
            x: [B, n, d].
        Returns:
            Inversion(z, log_prob, converged, iterations, error, cost), with NaN where it failed.
        Raises:
            ValueError: as `log_prob`.
        """
        check_configurations(x, self.space)
        return self._invert(x.double(), self.on_batch)

    def _invert(self, x: Tensor, progress: Progress | None = None) -> Inversion:
        started = time.perf_counter()
        parts = map_batches(lambda rows: self._invert_batch(x[rows]), len(x), self.rows, progress)
        z, log_prob, iterations, error = (torch.cat(column) for column in zip(*parts, strict=True)) if parts else empty_inversion(x)
        forward, newton = 2 * len(x) * self.evaluations, int(iterations.sum()) * self.steps[0].evaluations
        cost = Cost(network=forward + newton, jacobian=newton, seconds=time.perf_counter() - started)
        return Inversion(z=z, log_prob=log_prob, converged=torch.isfinite(log_prob), iterations=iterations, error=error, cost=cost)

    @torch.no_grad()
    def _invert_batch(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        z = x
        round_off = ROUND_OFF * torch.finfo(self.velocity(torch.tensor(0.5, dtype=x.dtype), x[:1]).dtype).eps
        log_det, iterations, found = x.new_zeros(len(x)), torch.zeros(len(x), dtype=torch.int64), torch.arange(len(x))
        for step in self.steps[::-1]:
            if not len(found):
                break
            solution, step_log_det, count = invert_step(
                step.with_jacobian, z, step.backward(z), tolerance=round_off * (1 + z.abs().amax((1, 2))))
            iterations[found] += count
            log_det[found] += step_log_det
            kept = torch.isfinite(step_log_det)
            found, z = found[kept], solution[kept]
        preimage = torch.full_like(x, torch.nan)
        preimage[found] = z
        error = (self.forward(preimage) - x).abs().amax((1, 2))
        returned = error <= self.tolerance
        preimage[~returned], error[~returned] = torch.nan, torch.nan
        log_prob = torch.where(returned, self.prior.log_prob(preimage) - log_det, torch.nan)
        return preimage, log_prob, iterations, error

    def _push_all(self, z: Tensor) -> Pushed:
        parts = map_batches(lambda rows: self._kept_or_pushed(z, rows), len(z), self.rows, self.on_batch)
        return Pushed(**{name: torch.cat([part[name] for part in parts]) for name in Pushed.__dataclass_fields__})

    def _kept_or_pushed(self, z: Tensor, rows: slice) -> dict[str, Tensor]:
        def pushed() -> dict[str, Tensor]:
            return vars(self.push(z[rows]))

        return self.kept(rows, pushed) if self.kept else pushed()

    def _certify(self, z: Tensor, pushed: Pushed) -> tuple[Certificate, Cost]:
        """Certificate and the cost of its round trip."""
        if self.round_trip is None:
            kind, trip = "samples", self._own_round_trip(z[: self.n_round_trip], pushed.x[: self.n_round_trip])
        else:
            inversion = self._invert(self.round_trip.double())
            kind, trip = "reference", (inversion.error, inversion.cost)
        error, cost = trip
        n_degree, margin = self._degree_margin(z, pushed.x) if pushed.folded.any() else (0, torch.nan)
        cost = cost + Cost(network=n_degree * self.evaluations)
        returned, singular = error <= self.tolerance, pushed.smallest_singular[~pushed.smallest_singular.isnan()]
        return Certificate(
            n=len(z), n_negative=int(pushed.folded.sum()), n_round_trip=len(error), n_round_trip_failed=int((~returned).sum()),
            smallest_singular=float(singular.min()) if len(singular) else torch.nan, round_trip_of=kind if len(error) else "none",
            round_trip_error=float(error[returned].max()) if returned.any() else torch.nan, tolerance=self.tolerance,
            n_degree=n_degree, degree_margin=margin), cost

    def _degree_margin(self, z: Tensor, x: Tensor) -> tuple[int, float]:
        """`degree_margin` of the map at its images x of prior draws z."""
        return degree_margin(self.forward, self.space, z, x)

    def _own_round_trip(self, z: Tensor, x: Tensor) -> tuple[Tensor, Cost]:
        """Distance between z and T^-1(T(z)): another preimage is as much a failure as none. NaN for rows that diverged."""
        error, finite = z.new_full((len(z),), torch.nan), torch.isfinite(x).flatten(1).all(1)
        inversion = self._invert(x[finite])
        error[finite] = (inversion.z - z[finite]).abs().amax((1, 2))
        return error, inversion.cost


def smallest_singular_value(jacobian: Tensor) -> Tensor:
    """[S] smallest singular value of each [nd, nd] matrix, NaN where it holds a NaN or infinity."""
    smallest, finite = jacobian.new_full((len(jacobian),), torch.nan), torch.isfinite(jacobian).flatten(1).all(1)
    if finite.any():
        smallest[finite] = torch.linalg.svdvals(jacobian[finite])[:, -1]
    return smallest


def empty_inversion(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z, log_prob, iterations and error of no configurations."""
    return x.double(), x.new_zeros(0).double(), torch.zeros(0, dtype=torch.int64), x.new_zeros(0).double()
