"""Equilibrium samples of one energy brought to another: sequential Monte Carlo along u_beta = (1 - beta) u_0 + beta u.

Where the two differ by more than a kT or so, as a force field and a quantum-chemical energy do, reweighting in one step leaves a handful of
samples. Temperature by temperature, with moves in between, the weights stay close to equal, and only the slow motions that no move makes
must overlap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from bgwork.protocols import Target
from bgwork.records import Origin, Proposal, WeightedSamples
from bgwork.reweighting import weigh
from bgwork.samplers.moves import Path
from bgwork.samplers.smc import Annealer


@dataclass(frozen=True, kw_only=True)
class Transferred(Annealer):
    """Samples of exp(-u_0) brought to exp(-u). Arguments as in `Annealer`, and

    Weights are proper up to the constant that u_0 leaves unknown, so that the result is UNNORMALISED. Rows are dealt out to islands in the
    order of `source.group`: where those are independent chains, and no fewer than the islands, so are the islands, and their scatter
    holds the error that the chains brought along.

    Args:
        source: equilibrium samples of u_0, UNNORMALISED; each run takes as many of them, drawn without replacement.
        other: u_0, differentiable.

    Example:
        >>> from bgwork.records import Density
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

    @property
    def path(self) -> Path:
        return Path(target=self.target, other=self.other)

    @property
    def first_beta(self) -> float:
        return 0.0

    def start(self, n: int, *, generator: torch.Generator) -> WeightedSamples:
        """n of the source's rows, weighed with the target.

        Raises:
            ValueError: if there are fewer.
        """
        if n > len(self.source):
            raise ValueError(f"{n} rows were asked for, of {len(self.source)} samples to start from; ask for fewer, or bring more")
        rows = torch.randperm(len(self.source), generator=generator)[:n].sort().values
        if self.source.group is not None:
            rows = rows[self.source.group[rows].argsort(stable=True)]
        drawn = self.source.take(rows)
        origin = Origin(method=f"{drawn.origin.method} of {drawn.origin.system}, transferred", system=self.system or self.target.name,
                        seed=generator.initial_seed(), edits=drawn.origin.edits)
        return weigh(replace(drawn, log_q=-self.other.u(drawn.x), origin=origin, group=None, ancestor=None), self.target)
