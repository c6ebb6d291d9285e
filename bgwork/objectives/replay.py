"""Training from the energy alone: the current sampler fills a replay buffer, and an objective makes regressions from its rows.

A method says three things: which sampler the model is at the moment, what to ask the energy at its samples, and which regression a drawn
row gives. The rest is here: when to refill, what is kept, what was spent, and a state from which a training resumes bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from bgwork.buffers import ReplayBuffer, tempered
from bgwork.protocols import Field, Sampler, Target
from bgwork.records import Proposal
from bgwork.targets.counting import Metered
from bgwork.training import TrainingState

TEMPERED = "log_p"  # column of the buffer: log of the tempered weights, of total one over the rows of a refill
LATEST = ("u_05", "u_50", "u_95", "clipped", "refused")


@dataclass(frozen=True, kw_only=True)
class Regression:
    """What a field is regressed on: weight [B] times |F(t, x) - value|^2, float32.

    Attributes:
        t: [B] times.
        x: [B, n, d] configurations.
        value: [B, n, d].
        weight: [B].
        clipped: share of the particles whose gradient was shortened.
        seconds: what making the batch cost (CPU time).
    """

    t: Tensor
    x: Tensor
    value: Tensor
    weight: Tensor
    clipped: float = 0.0
    seconds: float = 0.0


def regression_loss(model: Field, batch: Regression) -> Tensor:
    """Mean weighted square error per coordinate."""
    return (batch.weight[:, None, None] * (model(batch.t, batch.x) - batch.value) ** 2).mean()


class EnergyMethod(Protocol):
    """A method that learns a sampler from an energy."""

    def sampler(self, model: Field) -> Sampler:
        """The sampler that a model is."""

    def measure(self, target: Target, proposal: Proposal) -> dict[str, Tensor]:
        """Columns of the buffer at fresh samples [N]: x, u, the path log-weight log_w and what the method needs besides, float64; rows
        not finite are refused."""

    def regression(self, target: Target, rows: Mapping[str, Tensor], *, generator: torch.Generator) -> Regression:
        """A regression from drawn rows."""


@dataclass(frozen=True, kw_only=True)
class ReplaySettings:
    """How the buffer is used.

    Args:
        capacity: rows kept.
        fresh: samples drawn from the current model at each refill.
        every: steps between refills.
        batch: rows drawn a step.
        effective: below 1, rows are drawn by their path weights, tempered at each refill until this share of them is effective. It is
            right for every method: adjoint and flow sampling want end points that follow the target, which weighted ones do more
            closely than the sampler's own, and in iDEM the rows only say where to learn.
    Raises:
        ValueError: if a number is too small, or the share is none.
    """

    capacity: int = 10_000
    fresh: int = 1000
    every: int = 100
    batch: int = 256
    effective: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.effective <= 1:
            raise ValueError(f"the share of effective rows must lie between 0 and 1, got {self.effective}; 1 draws all rows alike")
        if min(self.capacity, self.fresh, self.every, self.batch) < 1:
            raise ValueError(f"capacity, fresh, every and batch must be at least 1, got {self}")


class ReplaySource:
    """A training's source (`bgwork.training.Source`) for one method and one energy.

    Args:
        target: the reduced energy; what is asked of it is metered here.
        method: of `EnergyMethod`.
        settings: of the buffer.
        seed: together with the step, seeds everything drawn.
    """

    def __init__(self, *, target: Target, method: EnergyMethod, settings: ReplaySettings, seed: int) -> None:
        self.target, self.method, self.settings, self.seed = Metered(target), method, settings, seed
        self.buffer = ReplayBuffer(settings.capacity)
        self.latest = dict.fromkeys(LATEST, 0.0)

    def batch(self, state: TrainingState) -> Regression:
        """The regression of a step, after a refill where one is due."""
        started = time.process_time()
        generator = torch.Generator().manual_seed(self.seed * 1_000_000_007 + state.step)
        if state.step % self.settings.every == 0:
            self._refill(state.model, generator)
        made = self.method.regression(self.target, self._draw(generator), generator=generator)
        self.latest["clipped"] = made.clipped
        return Regression(t=made.t.float(), x=made.x.float(), value=made.value.float(), weight=made.weight.float(), clipped=made.clipped,
                          seconds=time.process_time() - started)

    def figures(self) -> dict[str, float]:
        """Evaluations so far; quantiles of u over the last refill; share of particles clipped in the last batch; samples refused so far."""
        return {"energy_evaluations": self.target.n_energy, "gradient_evaluations": self.target.n_gradient, **self.latest}

    def state_dict(self) -> dict[str, Tensor]:
        """Buffer, meter and latest figures."""
        spent = torch.tensor([self.target.n_energy, self.target.n_gradient])
        latest = torch.tensor([self.latest[name] for name in LATEST], dtype=torch.float64)
        return {"spent": spent, "latest": latest, **{f"buffer.{name}": value for name, value in self.buffer.state_dict().items()}}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` returned."""
        self.target.n_energy, self.target.n_gradient = tensors["spent"].tolist()
        self.latest = dict(zip(LATEST, tensors["latest"].tolist(), strict=True))
        held = {name: value for name, value in tensors.items() if name.startswith("buffer.")}
        self.buffer.load_state_dict({name.removeprefix("buffer."): value for name, value in held.items()})

    def _draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        if self.settings.effective < 1:
            return self.buffer.draw_prioritised(self.settings.batch, TEMPERED, generator=generator)
        return self.buffer.draw(self.settings.batch, generator=generator)

    def _refill(self, model: nn.Module, generator: torch.Generator) -> None:
        sampler = self.method.sampler(model)
        if sampler.space != self.target.space:
            raise ValueError(f"the method samples {sampler.space}, {self.target.name} lives on {self.target.space}; make them equal")
        proposal = sampler.sample(self.settings.fresh, generator=generator)
        rows = self.method.measure(self.target, proposal)
        check_rows(rows, proposal.x, self.target.name)
        usable = torch.stack([torch.isfinite(value.reshape(len(value), -1)).all(1) for value in rows.values()]).all(0)
        if not usable.any():
            raise ValueError(f"none of {len(usable)} fresh samples of {self.target.name} has a finite energy and gradient; check it "
                             "there, or start from another spread")
        rows = {name: value[usable] for name, value in rows.items()}
        if self.settings.effective < 1:
            rows[TEMPERED] = tempered(rows["log_w"], self.settings.effective)
        self.buffer.add(rows)
        self.latest["refused"] += int((~usable).sum())
        quantiles = torch.quantile(rows["u"], torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
        self.latest |= dict(zip(("u_05", "u_50", "u_95"), quantiles, strict=True))


def check_rows(rows: Mapping[str, Tensor], x: Tensor, name: str) -> None:
    """Raise ValueError unless the energy gave one number for each configuration, and a gradient of the configurations' shape."""
    expected = {"u": x.shape[:1], "gradient": x.shape}
    wrong = {column: tuple(rows[column].shape) for column, shape in expected.items() if column in rows and rows[column].shape != shape}
    if wrong:
        raise ValueError(f"{name} returned {wrong} for x of shape {tuple(x.shape)}; u must be [B] and its gradient [B, n, d]")


def clip_per_particle(gradient: Tensor, largest: float) -> tuple[Tensor, float]:
    """Each particle's vector shortened to at most `largest`, and the share of particles for which that made a difference.

    Args:
        gradient: [B, n, d].
        largest: norm, in kT per length unit.
    """
    norm = gradient.norm(dim=-1, keepdim=True)
    return gradient * (largest / norm).clamp_max(1.0), (norm > largest).double().mean().item()
