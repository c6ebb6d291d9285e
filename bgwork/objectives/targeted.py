"""Targeted free-energy perturbation: a map T that takes the equilibrium of one energy to that of another, learned by its work.

    L = E_{x ~ exp(-u_0)} [u(T(x)) - ln|det DT(x)|]  =  KL(T exp(-u_0) | exp(-u)) + const    (Jarzynski 2002; Wirnsberger et al. 2020)
It takes configurations of the first energy and gradients of the second alone; weights exp(-u(T(x)) + ln|det DT(x)| + u_0(x)) then make
averages and free energies exact for any T. Configurations that are weighed should not be those that T was learned on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bgwork.protocols import Target
from bgwork.training import TrainingState

FORCE_CAP = 1e4  # a row whose gradient is longer enters with that length, and is counted


class TargetedBatch(NamedTuple):
    """One step's configurations with the gradient of u at their images.

    Attributes:
        x: [B, n, 3], of the first energy.
        gradient: du/dx at T(x) [B, n, 3].
        u: [B] there.
        seconds: that making the batch took, energies by worker processes included.
    """

    x: Tensor
    gradient: Tensor
    u: Tensor
    seconds: float


@dataclass(kw_only=True, eq=False)
class TargetedSource:
    """Batches of images under the map as it stands, as a `training.Source`.

    Args:
        x: configurations in equilibrium under the first energy, [N, n, 3].
        target: reduced energy u, with gradients.
        batch: configurations a step, and gradients.
        seed: together with the step, seeds the rows drawn.
        chances: [N] how often each row is drawn, up to a factor; all alike if None.
    """

    x: Tensor
    target: Target
    batch_size: int
    seed: int
    chances: Tensor | None = None
    gradients: int = 0
    capped: int = 0
    failed: int = 0

    def batch(self, state: TrainingState) -> TargetedBatch:
        """Draw configurations, move them, ask for u and its gradient; rows without a finite one are left out and counted."""
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(self.seed * 1_000_000_007 + state.step)
        chances = torch.ones(len(self.x)) if self.chances is None else self.chances
        x = self.x[torch.multinomial(chances, self.batch_size, replacement=True, generator=generator)]
        with torch.no_grad():
            image = state.model.map(x)[0]
        u, gradient = self.target.u_and_grad(image)
        usable = torch.isfinite(u) & torch.isfinite(gradient).flatten(1).all(1)
        size = gradient.flatten(1).norm(dim=1)
        self.gradients += len(u)
        self.failed += int((~usable).sum())
        self.capped += int((size[usable] > FORCE_CAP).sum())
        gradient = gradient * (FORCE_CAP / size).clamp(max=1.0)[:, None, None]
        return TargetedBatch(x=x[usable], gradient=gradient[usable], u=u[usable], seconds=time.perf_counter() - started)

    def figures(self) -> dict[str, float]:
        """Gradients so far, and rows whose gradient was cut or not finite."""
        return {"gradient_evaluations": self.gradients, "capped_rows": self.capped, "failed_rows": self.failed}

    def state_dict(self) -> dict[str, Tensor]:
        return {name: torch.tensor(getattr(self, name)) for name in ("gradients", "capped", "failed")}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        for name in ("gradients", "capped", "failed"):
            setattr(self, name, int(tensors[name]))


def targeted_loss(model: nn.Module, batch: TargetedBatch) -> Tensor:
    """Mean of u(T(x)) - ln|det DT(x)|, with its gradient in the map's coefficients.

    Raises:
        ValueError: if no row of the batch had a finite energy.
    """
    if not len(batch.x):
        raise ValueError("no configuration of a batch has a finite energy under the new energy; start from one that is closer to it")
    image, log_det = model.map(batch.x)
    work = (batch.gradient * image).sum((1, 2)) - log_det
    return (work - work.detach() + batch.u - log_det.detach()).mean()
