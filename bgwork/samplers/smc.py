"""Annealed importance sampling and sequential Monte Carlo: from any proposal to the target, with weights that stay proper.

Rows start with proper weights for some u_beta and pass, temperature by temperature, through three operations, none of which changes
E[1/N sum_i w_i f(x_i)] = int exp(-u_beta) f for the beta that holds:

    reweight  w <- w exp(-(beta' - beta)(u - u_0)), and beta' holds from then on
    resample  within an island: copies in proportion to w, each with the island's mean weight
    move      by a kernel that leaves exp(-u_beta) invariant, weights untouched

At beta = 1 the weights are proper for the target. They are handed over as log_q = -u(x) - log w, so that log w = -u - log_q; for another
energy v the same log_q gives exp(-v - log_q) = w exp(u - v), which is proper for v if v is infinite wherever u is.

Temperatures and step sizes are learned on a pilot run whose samples are thrown away, and frozen: learned on the samples themselves they
would leave estimates consistent but Z biased. Errors come from the scatter of islands (`group`), which share nothing but the schedule.

Sources: Neal 2001 (annealed importance sampling); Del Moral, Doucet and Jasra 2006 (samplers), 2012 (resampling when needed).
"""

from __future__ import annotations

import abc
import math
from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from bgwork.protocols import Prior, Sampler, Target
from bgwork.records import Cost, Density, Origin, Proposal, WeightedSamples
from bgwork.reweighting import refuse_negative, weigh
from bgwork.samplers.batches import check_count
from bgwork.samplers.moves import Hamiltonian, Kernel, Path, Walkers, tuned_step
from bgwork.samplers.resampling import Population, ancestral_ess, in_islands, resampled, reweighted, slope
from bgwork.samplers.schedules import MAX_TEMPERATURES, Meter, Schedule, living, next_beta
from bgwork.spaces import Space


@dataclass(frozen=True, kw_only=True)
class Annealed:
    """What a run hands over, and the population that it ended with, which remembers ancestors."""

    proposal: Proposal
    population: Population


@dataclass(frozen=True, kw_only=True)
class Tempering:
    """How rows are brought to the target.

    Args:
        kernel: moves at every temperature, the last one included.
        islands: independent populations that rows are shared among as evenly as can be.
        resample_below: an island is resampled when its effective fraction falls below this; 0 never, 1 whenever weights differ.
        keep: conditional effective fraction that each step in temperature leaves, in tuning; nearer 1 takes more temperatures.
        pilot: rows of the tuning run.
        schedule: temperatures and steps to use as they are; if None, each call of `sample` tunes its own on a pilot first.

    Raises:
        ValueError: if a setting is out of range.
    """

    kernel: Kernel = Hamiltonian()
    islands: int = 32
    resample_below: float = 0.5
    keep: float = 0.9
    pilot: int = 128
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.resample_below <= 1 and 0 < self.keep < 1):
            raise ValueError(f"resample_below must lie in [0, 1] and keep in (0, 1), got {self.resample_below} and {self.keep}")
        if self.islands < 1 or self.pilot < 2:
            raise ValueError(f"at least one island and a pilot of two rows are needed, got {self.islands} and {self.pilot}")

    @property
    def tempering(self) -> dict[str, Any]:
        """The settings that are stated here, by name."""
        return {setting.name: getattr(self, setting.name) for setting in fields(Tempering)}


@dataclass(frozen=True, kw_only=True)
class Annealer(Tempering, abc.ABC):
    """What `SMC`, `AnnealedImportance`, `Rejuvenated` and `transfer.Transferred` share. Arguments as in `Tempering`, and

    Args:
        target: reduced energy u.
        system: name that the proposal's origin carries.
    """

    target: Target
    system: str = ""

    @property
    def space(self) -> Space:
        return self.target.space

    @property
    @abc.abstractmethod
    def path(self) -> Path:
        """The family of energies."""

    @property
    @abc.abstractmethod
    def first_beta(self) -> float:
        """Where the path is entered."""

    @abc.abstractmethod
    def start(self, n: int, *, generator: torch.Generator) -> WeightedSamples:
        """n independent rows, weighed with the target."""

    def tune(self, *, generator: torch.Generator) -> Schedule:
        """Temperatures by conditional effective sample size and step sizes by acceptance, learned on a pilot run of its own.

        Raises:
            ValueError: if all pilot rows have zero weight, or the path takes more than 1000 temperatures.
        """
        weighted, meter = self.start(self.pilot, generator=generator), Meter(self.target)
        population = living(self._enter(weighted, islands=1), self.target)
        betas, steps, beta, step = [], [], self.first_beta, self.kernel.first_step
        while not betas or beta < 1:
            following = next_beta(population, beta, keep=self.keep) if betas or beta == 0 else beta
            population = resampled(reweighted(population, following - beta), 1.0, generator=generator)
            walkers, step = tuned_step(self.kernel, self.path, following, population.walkers, step, generator=generator)
            population, beta = replace(population, walkers=walkers), following
            betas, steps = [*betas, beta], [*steps, step]
            if len(betas) > MAX_TEMPERATURES:
                raise ValueError(f"{MAX_TEMPERATURES} temperatures brought the pilot only to beta = {beta:.3g}; lower `keep` ({self.keep}) "
                                 "or start from a proposal nearer the target")
        return Schedule(betas=tuple(betas), steps=tuple(steps), cost=weighted.proposal.cost + meter.read())

    def run(self, weighted: WeightedSamples, schedule: Schedule, *, generator: torch.Generator) -> Annealed:
        """Rows of `start`, or stored ones of the same origin, brought along a schedule that was tuned on others to beta = 1."""
        meter = Meter(self.target)
        population, beta = self._enter(weighted, islands=self.islands), self.first_beta
        for following, step in zip(schedule.betas, schedule.steps, strict=True):
            population = resampled(reweighted(population, following - beta), self.resample_below, generator=generator)
            alive, beta = population.alive, following
            moved, _ = self.kernel.move(self.path, beta, population.walkers.take(alive), step, generator=generator)
            population = replace(population, walkers=population.walkers.put(alive, moved))
        return self._handed_over(weighted, population, schedule, meter.read())

    def sample(self, n: int, *, generator: torch.Generator) -> Proposal:
        """n rows with proper weights.

        Args:
            n: number of rows, at least one for each island.
            generator: source of everything random, the pilot included.
        Returns:
            Proposal, density PATH, or that of a start whose weights are improper or not normalised. `group` is the island, `ancestor`
            the drawn row that each descends from, both None where rows are independent. Rows without weight (u = +inf, or failed) stay
            as they were drawn, unless their island was resampled; the note counts those that failed.
        Raises:
            ValueError: if n < 1 or n < islands, or as `tune`.
        """
        check_count(n)
        in_islands(n, self.islands)
        schedule = self.schedule or self.tune(generator=generator)
        proposal = self.run(self.start(n, generator=generator), schedule, generator=generator).proposal
        return proposal if self.schedule else replace(proposal, cost=proposal.cost + schedule.cost)

    def _enter(self, weighted: WeightedSamples, *, islands: int) -> Population:
        """Weights proper for u_beta at the first beta: log w = -u_beta - log q, and -inf in the rows without weight at the target."""
        refuse_negative(weighted, "rows cannot be resampled by weight")
        proposal, alive = weighted.proposal, weighted.log_w > -math.inf
        walkers = Walkers(x=proposal.x, u_0=self.path.u_0(proposal.x), u=weighted.u)
        log_w = -walkers.u_0 - self.first_beta * slope(walkers, alive) - proposal.log_q
        return Population(walkers=walkers, log_w=torch.where(alive, log_w, -math.inf), island=self.dealt_out(weighted, islands),
                          ancestor=torch.arange(len(weighted)))

    def dealt_out(self, weighted: WeightedSamples, islands: int) -> Tensor:
        """Island of each row, [N]."""
        return in_islands(len(weighted), islands)

    def _handed_over(self, weighted: WeightedSamples, population: Population, schedule: Schedule, spent: Cost) -> Annealed:
        """log_q = -u - log w; rows without weight are where they were drawn, and keep their log_q."""
        start, walkers = weighted.proposal, population.walkers
        log_q = torch.where(population.alive, -walkers.u - population.log_w, start.log_q)
        density = Density.PATH if start.density.trusted and start.density.normalised else start.density
        families = {"group": population.island, "ancestor": population.ancestor} if self.resample_below > 0 else {"group": None}
        proposal = replace(
            start, x=walkers.x, log_q=log_q, density=density, sign=None, certificate=None, cost=start.cost + spent,
            note=describe(self, weighted, population, schedule), **families)
        return Annealed(proposal=proposal, population=population)


@dataclass(frozen=True, kw_only=True)
class SMC(Annealer):
    """Sequential Monte Carlo sampler from a prior along the geometric path u_beta = -(1 - beta) log p0 + beta u. Arguments as in
    `Annealer`, and

    Args:
        prior: normalised density to start from, differentiable unless the kernel is `CrankNicolson`. For a flow, see `AnnealedFlow` and
            `Rejuvenated`.

    Example:
        >>> from bgwork.priors import Gaussian
        >>> from bgwork.targets.double_well import DoubleWell
        >>> target = DoubleWell(4)
        >>> smc = SMC(prior=Gaussian(space=target.space, std=2.0), target=target, islands=4, pilot=32)
        >>> proposal = smc.sample(64, generator=torch.Generator().manual_seed(0))
        >>> proposal.density, proposal.group.unique().tolist()
        (<Density.PATH: 'path'>, [0, 1, 2, 3])
    """

    prior: Prior

    @property
    def path(self) -> Path:
        return Path(prior=self.prior, target=self.target)

    @property
    def first_beta(self) -> float:
        return 0.0

    @property
    def method(self) -> str:
        return "smc" if self.resample_below > 0 else "annealed-importance"

    def start(self, n: int, *, generator: torch.Generator) -> WeightedSamples:
        """n draws of the prior, weighed with the target."""
        x = self.prior.sample(n, generator=generator)
        if isinstance(x, Proposal):
            raise ValueError(f"{type(self.prior).__name__} is a sampler, not a prior; anneal a flow with AnnealedFlow, or refresh "
                             "the samples of any generator with Rejuvenated")
        origin = Origin(method=self.method, system=self.system or self.target.name, seed=generator.initial_seed())
        drawn = Proposal(x=x, log_q=self.prior.log_prob(x), space=self.prior.space, density=Density.EXACT, origin=origin)
        return weigh(drawn, self.target)


@dataclass(frozen=True, kw_only=True)
class AnnealedImportance(SMC):
    """Annealed importance sampling: `SMC` that never resamples, so that rows are independent and their ESS means what it says."""

    resample_below: float = field(default=0.0, init=False)
    islands: int = field(default=1, init=False)


@dataclass(frozen=True, kw_only=True)
class Rejuvenated(Annealer):
    """Weighted samples of any generator, resampled and then moved by kernels that leave exp(-u) itself invariant.

    Needs energies and gradients of the target alone, neither density nor gradient of the generator beyond its own samples. log Z stays what
    the generator's weights make it; what falls is the variance of averages, towards that of as many independent samples as
    the moves decorrelate. With `hottest` below 1, rows are first weighed to exp(-hottest u), and the target is cooled from there. Arguments
    as in `Annealer`, and

    Args:
        source: generator of independent rows with proper weights.
        hottest: inverse temperature, relative to the target's, at which the path is entered.
        accept: densities without proper weights to take nevertheless; the result keeps the label, and every figure says so.
    """

    source: Sampler
    resample_below: float = 1.0
    hottest: float = 1.0
    accept: Collection[Density] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.hottest <= 1:
            raise ValueError(f"hottest is an inverse temperature in (0, 1], got {self.hottest}")

    @property
    def path(self) -> Path:
        return Path(target=self.target)

    @property
    def first_beta(self) -> float:
        return self.hottest

    def start(self, n: int, *, generator: torch.Generator) -> WeightedSamples:
        """n rows of the source, weighed with the target.

        Raises:
            ValueError: if rows are correlated, or as `weigh`.
        """
        drawn = self.source.sample(n, generator=generator)
        if drawn.group is not None:
            raise ValueError(f"{drawn.origin.method} samples are correlated (they carry groups), so islands of them would not "
                             "be independent; rejuvenate a generator of independent samples")
        origin = replace(drawn.origin, method=f"{drawn.origin.method}+rejuvenated", config_hash="")
        return weigh(replace(drawn, origin=origin), self.target, accept=self.accept)


def describe(annealer: Annealer, weighted: WeightedSamples, population: Population, schedule: Schedule) -> str:
    """What was done, on one line, and the effective sample size that does not profit from copies."""
    n, families = len(weighted), len(population.ancestor[population.alive].unique())
    kept = f"ESS per ancestor {ancestral_ess(population).value:.3g}" if families else "no row has positive weight"
    copies = f"{annealer.islands} islands, descended from {families} of {n} drawn rows ({kept})"
    rows = copies if annealer.resample_below > 0 else "no resampling"
    tuned = "" if annealer.schedule else f", tuned on {annealer.pilot} rows that were thrown away"
    failed = f"; {weighted.n_failed} of {n} drawn rows failed" if weighted.n_failed else ""
    start = f"; start: {weighted.proposal.note}" if weighted.proposal.note else ""
    path = f"{len(schedule.betas)} temperatures from beta = {schedule.betas[0]:.3g}" if len(schedule.betas) > 1 else "beta = 1 alone"
    return f"{path}{tuned}; {rows}{failed}{start}"
