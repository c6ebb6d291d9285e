"""Processes and cores: a worker that prepares batches ahead of a training, and Ctrl-C, which waits until the step is whole."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from bgwork.samplers.forked import leave_interrupts_to_parent, untouched_by_children


@dataclass(frozen=True, kw_only=True)
class Batches(Dataset):
    """data(step) as a torch dataset."""

    data: Callable[[int], Any]

    def __getitem__(self, step: int) -> Any:
        return self.data(step)


def run_ahead(data: Callable[[int], Any], steps: range) -> Iterator[Any]:
    """data(step) for every step in order, made by a worker process a few steps ahead."""
    with untouched_by_children():
        return iter(DataLoader(Batches(data=data), sampler=steps, batch_size=None, num_workers=1, prefetch_factor=4,
                               worker_init_fn=leave_interrupts_to_parent))


def cores() -> int:
    """How many this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Within it, the first Ctrl-C is remembered instead of raised, so that no step is left half-done; the second one raises."""
    received: list[int] = []

    def remember(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        previous = signal.signal(signal.SIGINT, remember)
    except ValueError:  # not in the main thread, where no signal arrives
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGINT, previous)
