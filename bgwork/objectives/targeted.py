"""Targeted free-energy perturbation: a map T that takes the equilibrium of one energy to that of another, learned from both ends.

    L = (1 - share) E_{x ~ exp(-u_0)} [u(T(x)) - ln|det DT(x)|]  +  share E_{y ~ data} [u_0(T^-1(y)) + ln|det DT(T^-1(y))|]
The first expectation is KL(T exp(-u_0) | exp(-u)) up to a constant and asks for gradients of the second energy (Jarzynski 2002; Wirnsberger
et al. 2020); it forgives what the map does not cover, whence few weights that are large. The second one is the likelihood of
configurations of the second energy and asks for gradients of the first: it does not. Weights exp(-u(T(x)) + ln|det DT(x)| + u_0(x))
make averages and free energies exact for any T that does not depend on the configurations that are weighed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bgwork.protocols import Target
from bgwork.samplers.internal_map import InternalMap
from bgwork.training import TrainingState

FORCE_CAP = 1e4  # a row whose gradient is longer enters with that length, and is counted


class End(NamedTuple):
    """Configurations at one end of the map, and the other end's energy at where they are taken.

    Attributes:
        x: [B, n, 3].
        gradient: of the energy at the other end, [B, n, 3].
        u: [B] that energy.
    """

    x: Tensor
    gradient: Tensor
    u: Tensor


class TargetedBatch(NamedTuple):
    """One step's configurations.

    Attributes:
        start: of the first energy, with the second one's gradients at T(x).
        end: of the second energy, with the first one's at T^-1(y); nothing if the share of the data is nought.
        seconds: that making the batch took, energies by worker processes included.
    """

    start: End
    end: End
    seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Ensemble:
    """Configurations of one energy.

    Args:
        x: [N, n, 3].
        target: that energy, with gradients.
        chances: [N] how often each row is drawn, up to a factor; all alike if None.
    """

    x: Tensor
    target: Target
    chances: Tensor | None = None

    def draw(self, n: int, *, generator: torch.Generator) -> Tensor:
        """n rows, [n, atoms, 3]."""
        chances = torch.ones(len(self.x)) if self.chances is None else self.chances
        return self.x[torch.multinomial(chances, n, replacement=True, generator=generator)].double()


@dataclass(kw_only=True, eq=False)
class TargetedSource:
    """Batches of images under the map as it stands, as a `training.Source`.

    Args:
        start: equilibrium configurations of the first energy.
        end: configurations near the equilibrium of the second one.
        batch_size: configurations of each a step.
        share: of the loss that comes from `end`; its configurations are not asked for if it is nought.
        seed: together with the step, seeds the rows drawn.
    """

    start: Ensemble
    end: Ensemble
    batch_size: int
    share: float
    seed: int
    gradients: int = 0
    capped: int = 0
    failed: int = 0

    def batch(self, state: TrainingState) -> TargetedBatch:
        """Draw configurations, move them, ask for energies and gradients; rows without finite ones are left out and counted."""
        started, last = time.perf_counter(), state.model.map
        generator = torch.Generator().manual_seed(self.seed * 1_000_000_007 + state.step)
        x = self.start.draw(self.batch_size, generator=generator)
        y = self.end.draw(self.batch_size, generator=generator) if self.share > 0 else x[:0]
        with torch.no_grad():
            image, preimage = last(x)[0], last.inverse(y) if len(y) else y
        start, end = self._at(x, image, self.end.target), self._at(y, preimage, self.start.target)
        self.gradients += len(x)
        return TargetedBatch(start=start, end=end, seconds=time.perf_counter() - started)

    def _at(self, x: Tensor, moved: Tensor, target: Target) -> End:
        """Energy and gradient where rows are taken."""
        if not len(x):
            return End(x, x, x.new_zeros(0))
        u, gradient = target.u_and_grad(moved)
        usable = torch.isfinite(u) & torch.isfinite(gradient).flatten(1).all(1)
        size = gradient.flatten(1).norm(dim=1)
        self.failed += int((~usable).sum())
        self.capped += int((size[usable] > FORCE_CAP).sum())
        gradient = gradient * (FORCE_CAP / size).clamp(max=1.0)[:, None, None]
        return End(x[usable], gradient[usable], u[usable])

    def figures(self) -> dict[str, float]:
        """Gradients of the second energy so far, and rows whose gradient was cut or not finite."""
        return {"gradient_evaluations": self.gradients, "capped_rows": self.capped, "failed_rows": self.failed}

    def state_dict(self) -> dict[str, Tensor]:
        return {name: torch.tensor(getattr(self, name)) for name in ("gradients", "capped", "failed")}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        for name in ("gradients", "capped", "failed"):
            setattr(self, name, int(tensors[name]))


class TargetedLoss:
    """(model, batch) -> the loss above, with its gradient in the map's coefficients.

    Args:
        share: of the part from data.

    Raises:
        ValueError: when called, if no row of one end had a finite energy.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, model: nn.Module, batch: TargetedBatch) -> Tensor:
        ends = [(1 - self.share, batch.start, model.map)]
        if self.share > 0:
            ends.append((self.share, batch.end, partial(taken_back, model.map)))
        total = torch.zeros((), dtype=torch.float64)
        for share, end, move in ends:
            if not len(end.x):
                raise ValueError("no configuration of a batch has a finite energy after the map; start from energies that are closer to "
                                 "each other, or from moments of more configurations")
            moved, log_det = move(end.x)
            work = (end.gradient * moved).sum((1, 2)) - log_det
            total = total + share * (work - work.detach() + end.u - log_det.detach()).mean()
        return total


def taken_back(last: InternalMap, y: Tensor) -> tuple[Tensor, Tensor]:
    """T^-1(y) [B, n, 3] and ln|det DT^-1(y)| [B], differentiable."""
    x = last.inverse(y)
    return x, -last(x)[1]
