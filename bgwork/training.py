"""The one training loop: a model, an objective's loss, and batches from one of two places.

Batches that depend on the step number alone come from a worker process, which prepares them while earlier steps run. Batches that depend on
the model (a replay buffer that it refills) come from a `Source` in this process. The loop itself uses no random numbers, and a
checkpoint holds weights, their average, the optimiser's moments, the step and the source's state, so that a resumed training
repeats an uninterrupted one bit for bit.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from bgwork import store
from bgwork.optimisers import OPTIMISERS, moments_of
from bgwork.processes import interruptible, run_ahead


class TrainingError(ValueError):
    """A training that cannot start, resume or go on, with the remedy."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long and how fast.

    Args:
        steps: optimiser steps.
        optimiser: "adamw" or "soap" (`optimisers`).
        learning_rate: after `warmup` steps of linear increase and before a cosine to zero.
        weight_decay: decoupled.
        clip: largest gradient norm.
        ema: decay of the averaged weights, which are the ones handed over.
        bfloat16: share of the steps, from the first, whose matrix products run in bfloat16; the rest run in float32.
        compiled: whether torch.compile fuses the step (needs a C++ compiler).
        checkpoint_every, log_every, evaluate_every: in steps; evaluation 0 means never.
    """

    steps: int
    optimiser: str = "adamw"
    learning_rate: float = 2e-3
    warmup: int = 500
    weight_decay: float = 1e-4
    clip: float = 1.0
    ema: float = 0.999
    bfloat16: float = 0.0
    compiled: bool = False
    checkpoint_every: int = 500
    log_every: int = 100
    evaluate_every: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@runtime_checkable
class Source(Protocol):
    """Batches that depend on the model, with what they depend on besides.

    Everything random in `batch` must come from generators seeded by the step, or be part of the state.
    """

    def batch(self, state: TrainingState) -> Any:
        """The batch of step `state.step`; `state.model` is the current model, `averaged(state)` the averaged one."""

    def figures(self) -> dict[str, float]:
        """What every metrics row says of the source: energy evaluations so far, and the like."""

    def state_dict(self) -> dict[str, Tensor]:
        """All that the next batches depend on besides model and step, for the checkpoint."""

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up a state; KeyError if it is another source's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingJob:
    """What to train.

    Args:
        model: network, in float32.
        loss: (model, batch) -> scalar.
        data: step -> batch, called in a worker process, or a `Source`; a batch says in `seconds` what it cost to make.
        config: how long and how fast.
        folder: where checkpoint, metrics and result go.
        meta: header of every file written (system, recipe, seed, data, commit, versions); the first four must agree when resuming;
            `spent`, if it is there, is what a fixed data set cost in evaluations of the energy.
        evaluate: averaged model -> figures such as the effective sample size, for the metrics only.
        on_log: called with every metrics row.
    """

    model: nn.Module
    loss: Callable[[nn.Module, Any], Tensor]
    data: Callable[[int], Any] | Source
    config: TrainingConfig
    folder: Path
    meta: Mapping[str, Any]
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None
    on_log: Callable[[dict[str, float]], None] | None = None

    @property
    def source(self) -> Source | None:
        return self.data if isinstance(self.data, Source) else None

    def figures(self) -> dict[str, float]:
        """What every metrics row and the final header say of the data: what the source tells, or what `meta` says a fixed set has spent."""
        return self.source.figures() if self.source else dict(self.meta.get("spent", {}))

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def generator(self) -> Path:
        return self.folder / "generator.safetensors"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"


@dataclass(kw_only=True)
class TrainingState:
    """Where a training stands. `seconds`: wall time of the steps; `worker_seconds`: CPU time of the batches."""

    model: nn.Module
    average: dict[str, Tensor]
    optimiser: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    worker_seconds: float = 0.0
    losses: list[float] = field(default_factory=list)

    @property
    def progress(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("step", "seconds", "worker_seconds")}


def train(job: TrainingJob, *, resume: bool) -> TrainingState:
    """Train to the end, or until Ctrl-C, which saves a checkpoint and raises KeyboardInterrupt.

    Args:
        job: what to train.
        resume: go on from the checkpoint in the folder; without it a checkpoint there is an error, so that nothing is overwritten.
    Returns:
        The final state; the averaged weights are in job.generator.
    Raises:
        TrainingError: if there is nothing to resume, or something that was not asked to be resumed, or the loss is not finite.
    """
    state = start(job)
    if resume:
        restore(job, state)
    elif job.checkpoint.exists():
        raise TrainingError(f"{job.checkpoint} exists; add --resume to go on from it, or choose another --out")
    else:
        job.metrics.unlink(missing_ok=True)
    loss = torch.compile(job.loss) if job.config.compiled else job.loss
    with interruptible() as stop:
        for batch in batches(job, state):
            advance(job, state, loss, batch)
            report(job, state)
            if stop():
                save(job, state)
                raise KeyboardInterrupt
    finish(job, state)
    return state


def start(job: TrainingJob) -> TrainingState:
    """Step 0."""
    c = job.config
    if c.steps < 1:
        raise TrainingError(f"the number of steps must be positive, got {c.steps}")
    optimiser = OPTIMISERS[c.optimiser](job.model.parameters(), lr=c.learning_rate, weight_decay=c.weight_decay)
    return TrainingState(model=job.model, average={k: p.detach().clone() for k, p in job.model.named_parameters()}, optimiser=optimiser)


def batches(job: TrainingJob, state: TrainingState) -> Iterable[Any]:
    """The batches of all steps to come: from a worker that runs ahead, or from the source, one by one as the model changes."""
    steps = range(state.step, job.config.steps)
    if job.source:
        return (job.source.batch(state) for _ in steps)
    return run_ahead(job.data, steps)


def advance(job: TrainingJob, state: TrainingState, loss: Callable[[nn.Module, Any], Tensor], batch: Any) -> None:
    """One optimiser step."""
    c, started = job.config, time.perf_counter()
    for group in state.optimiser.param_groups:
        group["lr"] = c.rate(state.step)
    low = state.step < c.bfloat16 * c.steps
    with torch.autocast("cpu", dtype=torch.bfloat16) if low else nullcontext():
        value = loss(state.model, batch)
    state.optimiser.zero_grad(set_to_none=True)
    value.backward()
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), c.clip)
    if not (math.isfinite(value.item()) and math.isfinite(norm.item())):
        found = f"loss {value.item()} with gradient norm {norm.item()} at step {state.step}"
        raise TrainingError(f"{found}; lower learning_rate or check the data")
    state.optimiser.step()
    decay = min(c.ema, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        for name, p in state.model.named_parameters():
            state.average[name].lerp_(p, 1 - decay)
    state.step += 1
    state.losses.append(value.item())
    state.seconds += time.perf_counter() - started
    state.worker_seconds += batch.seconds


def report(job: TrainingJob, state: TrainingState) -> None:
    """Metrics and checkpoints where they are due."""
    c, last = job.config, state.step == job.config.steps
    evaluate = job.evaluate if c.evaluate_every and (state.step % c.evaluate_every == 0 or last) else None
    if state.step % c.log_every == 0 or last or evaluate:
        row = {**state.progress, "loss": sum(state.losses) / len(state.losses), "learning_rate": c.rate(state.step - 1)}
        row |= job.figures() | (evaluate(averaged(state)) if evaluate else {})
        state.losses.clear()
        with job.metrics.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        if job.on_log:
            job.on_log(row)
    if state.step % c.checkpoint_every == 0:
        save(job, state)


def averaged(state: TrainingState) -> nn.Module:
    """A copy of the model with the averaged weights."""
    model = copy.deepcopy(state.model)
    model.load_state_dict(state.average, strict=False)
    return model.eval()


def save(job: TrainingJob, state: TrainingState) -> None:
    """Write the checkpoint."""
    tensors = {f"average.{name}": value for name, value in state.average.items()}
    for name, p in state.model.named_parameters():
        tensors[f"model.{name}"] = p
        tensors |= {f"{key}.{name}": value for key, value in state.optimiser.state[p].items()}
    if job.source:
        tensors |= {f"source.{name}": value for name, value in job.source.state_dict().items()}
    progress = {**state.progress, "losses": state.losses}
    store.save_checkpoint(job.checkpoint, tensors, {**job.meta, "kind": "checkpoint", "progress": progress})


def restore(job: TrainingJob, state: TrainingState) -> None:
    """Take up the checkpoint and forget metrics of later steps.

    Raises:
        TrainingError: if it belongs to another job or another model.
    """
    tensors, meta = store.load_checkpoint(job.checkpoint)
    for key in ("system", "recipe", "seed", "data"):
        if meta.get(key) != json.loads(json.dumps(job.meta.get(key))):
            remedy = "resume with that one, or choose another --out"
            raise TrainingError(f"{job.checkpoint} was trained with another {key} ({meta.get(key)}); {remedy}")
    try:
        for name, p in state.model.named_parameters():
            p.data.copy_(tensors[f"model.{name}"])
            state.average[name].copy_(tensors[f"average.{name}"])
            if p.requires_grad:
                state.optimiser.state[p] = moments_of(name, tensors)
        if job.source:
            held = {name: value for name, value in tensors.items() if name.startswith("source.")}
            job.source.load_state_dict({name.removeprefix("source."): value for name, value in held.items()})
        state.__dict__.update(meta["progress"])
    except (KeyError, RuntimeError) as error:
        raise TrainingError(f"{job.checkpoint} does not fit this model: {error}") from error
    if job.metrics.exists():
        rows = [line for line in job.metrics.read_text(encoding="utf-8").splitlines() if _step_of(line) <= state.step]
        store.write_text(job.metrics, "".join(row + "\n" for row in rows))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf  # a line cut short by a kill belongs to a step that will be repeated


def finish(job: TrainingJob, state: TrainingState) -> None:
    """Write the final checkpoint and the averaged weights; the figures of the data stand in their header."""
    save(job, state)
    progress = {**state.progress, **job.figures()}
    store.save_checkpoint(job.generator, state.average, {**job.meta, "kind": "generator", "progress": progress})
