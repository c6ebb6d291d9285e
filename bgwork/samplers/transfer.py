"""Equilibrium samples of one energy brought to another: sequential Monte Carlo along u_beta = (1 - beta) u_0 + beta u.

Where the two differ by more than a kT or so, as a force field and a quantum-chemical energy do, reweighting in one step leaves a handful of
samples. Temperature by temperature, with moves in between, the weights stay close to equal, and only the slow motions that no move makes
must overlap. What is rare under either energy, a basin for example, can be made a stratum: each gets an equal share of the rows, which
weigh (N_s / N) / (n_s / n), and is resampled on its own, so that none dies out where it weighs little for a while.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bgwork.protocols import Target
from bgwork.records import Cost, Density, Origin, Proposal, WeightedSamples
from bgwork.reweighting import weigh
from bgwork.samplers.moves import Path
from bgwork.samplers.resampling import Population
from bgwork.samplers.schedules import Schedule
from bgwork.samplers.smc import Annealed, Annealer
from bgwork.spaces import Space


@dataclass(frozen=True, kw_only=True)
class Transferred(Annealer):
    """Samples of exp(-u_0) brought to exp(-u). Arguments as in `Annealer`, and

    Weights are proper up to the constant that u_0 leaves unknown, so that the result is UNNORMALISED. An island holds whole chains of the
    source (`source.group`), so that where those are independent the islands are, and their scatter holds the error that the chains brought
    along. The pilot's rows stay in the source and may be drawn again.

    Args:
        source: equilibrium samples of u_0, UNNORMALISED and of equal weight; each run takes as many as it needs, evenly from all chains.
        other: u_0, differentiable.
        strata: [len(source)] int64 labels of rows that get equal shares of each run; by default all are alike.

    Raises:
        ValueError: if the source is no equilibrium set, has fewer chains than there are islands, or the labels do not match it.

    Example:
        >>> from bgwork.samplers.moves import Hamiltonian
        >>> from bgwork.targets.double_well import DoubleWell
        >>> hard, soft, generator = DoubleWell(4), DoubleWell(4, quartic=0.8), torch.Generator().manual_seed(0)
        >>> x = soft.space.project(torch.randn(400, 4, 2, generator=generator, dtype=torch.float64))  # in place of equilibrium samples
        >>> source = Proposal(x=x, log_q=-soft.u(x), space=soft.space, density=Density.UNNORMALISED,
        ...                   origin=Origin(method="hmc", system="soft"))
        >>> transfer = Transferred(source=source, other=soft, target=hard, kernel=Hamiltonian(leapfrog=2), islands=4, pilot=32)
        >>> transfer.sample(64, generator=generator).density
        <Density.UNNORMALISED: 'unnormalised'>
    """

    source: Proposal
    other: Target
    strata: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source.density is not Density.UNNORMALISED:
            raise ValueError(f"a transfer starts from equilibrium samples, these are {self.source.density.value} ones of "
                             f"{self.source.origin.method}; resample them by weight first (`reweighting.resample`)")
        if self.chains < self.islands:
            raise ValueError(f"{self.islands} islands need as many chains, the source has {self.chains}; ask for fewer, or bring more")
        if self.strata is not None and self.strata.shape != (len(self.source),):
            raise ValueError(f"{len(self.source)} rows need as many stratum labels, got shape {list(self.strata.shape)}")

    @property
    def space(self) -> Space:
        return self.target.space

    @property
    def path(self) -> Path:
        return Path(target=self.target, other=self.other)

    @property
    def first_beta(self) -> float:
        return 0.0

    @property
    def chains(self) -> int:
        """Independent ones in the source; its rows, where they are not said to be correlated."""
        return len(self.source) if self.source.group is None else len(self.source.group.unique())

    def start(self, n: int, *, generator: torch.Generator) -> WeightedSamples:
        """n of the source's rows, weighed with the target; `group` is stratum * islands + island.

        Raises:
            ValueError: if the source has fewer, or they are fewer than the strata, of which none may be left out.
        """
        if n > len(self.source):
            raise ValueError(f"{n} rows were asked for, of {len(self.source)} samples to start from; ask for fewer, or bring more")
        number = torch.arange(len(self.source)) if self.source.group is None else self.source.group.unique(return_inverse=True)[1]
        island = number * self.islands // self.chains
        stratum = torch.zeros_like(number) if self.strata is None else self.strata.unique(return_inverse=True)[1]
        if n <= stratum.max():
            raise ValueError(f"{n} rows cannot hold some of each of {stratum.max() + 1} strata; ask for more (or a larger pilot)")
        rows = drawn_evenly(island, stratum, n, generator=generator)
        share = stratum.bincount() * n / (len(self.source) * stratum[rows].bincount())
        drawn = self.source.take(rows)
        origin = Origin(method=f"{drawn.origin.method} of {drawn.origin.system}, transferred", system=self.system or self.target.name,
                        seed=generator.initial_seed(), edits=drawn.origin.edits)
        return weigh(replace(drawn, log_q=-self.other.u(drawn.x) - share[stratum[rows]].log(), origin=origin, cost=Cost(), ancestor=None,
                             group=stratum[rows] * self.islands + island[rows]), self.target)

    def dealt_out(self, weighted: WeightedSamples, islands: int) -> Tensor:
        """Stratum and island of each row in one label; the pilot is a single island."""
        return weighted.proposal.group if islands > 1 else super().dealt_out(weighted, islands)

    def _handed_over(self, weighted: WeightedSamples, population: Population, schedule: Schedule, spent: Cost) -> Annealed:
        """`group` is the island alone: strata of one island descend from the same chains."""
        made = super()._handed_over(weighted, population, schedule, spent)
        return replace(made, proposal=replace(made.proposal, group=population.island % self.islands))


def drawn_evenly(island: Tensor, stratum: Tensor, n: int, *, generator: torch.Generator) -> Tensor:
    """n rows without replacement: an equal share of every stratum, as far as it has so many, and within one in proportion from all islands.

    Every row of a stratum is drawn with the same probability (systematic sampling from rows in random order, sorted by island).

    Args:
        island: [N] of each row.
        stratum: [N] of each row, 0 ... S - 1.
        n: of them, at most N.
        generator: of the draws.
    """
    order = torch.randperm(len(island), generator=generator)
    order = order[island[order].argsort(stable=True)]
    counts, chosen, left = stratum.bincount(), [], n
    for place, label in enumerate(counts.argsort().tolist()):
        rows = order[stratum[order] == label]
        size = min(left // (len(counts) - place), len(rows))
        offset = torch.rand((), generator=generator, dtype=torch.float64)
        chosen.append(rows[((torch.arange(size) + offset) * (len(rows) / size)).long().clamp(max=len(rows) - 1)] if size else rows[:0])
        left -= size
    return torch.cat(chosen)
