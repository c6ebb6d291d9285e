"""What samplers by independent chains share: the order of their rows, and the proposal that they hand over.

Their density is UNNORMALISED: log_q is known up to one constant, so that ratios and averages pass through the same reweighting as any
other proposal, and log Z is refused.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bgwork.protocols import Target
from bgwork.records import Cost, Density, Origin, Proposal
from bgwork.samplers.batches import check_count
from bgwork.spaces import Space

Progress = Callable[[int, int, str], None]


def silent(done: int, total: int, text: str) -> None:
    """The progress callback that shows nothing."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What C chains kept.

    Attributes:
        x: [draws, C, n, d] configurations on the target's space.
        log_q: [draws, C] float64, up to one constant.
        gradients: of single configurations, that it took.
        note: for the proposal.
    """

    x: Tensor
    log_q: Tensor
    gradients: int
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ChainSampler(abc.ABC):
    """Independent chains as one sampler; `group` is the chain.

    Args:
        target: the reduced energy.
        start: [C, ...] where each chain begins.
        system: name that the proposal's origin carries.
        progress: called as progress(done, total, text).
    """

    target: Target
    start: Tensor
    system: str = ""
    progress: Progress = field(default=silent, repr=False)

    @property
    def space(self) -> Space:
        return self.target.space

    @property
    @abc.abstractmethod
    def method(self) -> str:
        """Name that the proposal's origin carries."""

    @abc.abstractmethod
    def _run(self, draws: int, generator: torch.Generator) -> Kept:
        """That many configurations of every chain."""

    def sample(self, n: int, *, generator: torch.Generator) -> Proposal:
        """n configurations, draw by draw: row k belongs to chain k mod C.

        Raises:
            ValueError: if n is not positive, a chain starts where u is not finite, or dynamics blow up.
        """
        check_count(n)
        began, chains = time.perf_counter(), len(self.start)
        draws = -(-n // chains)
        kept = self._run(draws, generator)
        return Proposal(
            x=kept.x.flatten(0, 1)[:n].clone(), log_q=kept.log_q.flatten()[:n].clone(), space=self.space, density=Density.UNNORMALISED,
            origin=Origin(method=self.method, system=self.system or self.target.name, seed=generator.initial_seed()),
            cost=Cost(gradient=kept.gradients, seconds=time.perf_counter() - began), group=torch.arange(chains).repeat(draws)[:n].clone(),
            note=kept.note)
