"""Samples that are not all drawn yet: finished batches on disk, from which the same command goes on after Ctrl-C or a crash.

A batch depends on its prior draws alone, and those on the seed, so that what is taken up again is bit for bit what would have been drawn.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from bgwork import store
from bgwork.records import Cost

PART_FILE = "samples.part.safetensors"
INTERVAL = 60.0  # seconds between two writes: what a crash may cost

Batch = dict[str, Tensor]


@dataclass(kw_only=True)
class PartialSamples:
    """Batches of one run's samples, kept in its folder while they are drawn (`samplers.batches.Kept`).

    As a context it also writes when it is left by an exception, such as Ctrl-C.

    Args:
        folder: of the run.
        fingerprint: of all that decides the numbers; batches under another one are not taken up.
        interval: seconds between two writes.
    Attributes:
        spent: seconds and core seconds that the batches that were found have cost.
        others: samples that lie there of other settings, and that will be replaced.
    Raises:
        FileError: if the file that lies there is damaged.
    """

    folder: Path
    fingerprint: str
    interval: float = INTERVAL
    spent: Cost = field(default=Cost(), init=False)
    others: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._batches: dict[tuple[int, int], Batch] = {}
        self._lock, self._began, self._cores = threading.Lock(), time.perf_counter(), time.process_time()
        self._written = self._began
        if self.path.exists():
            self._take_up(*store.load_checkpoint(self.path))
        self.found = sum(stop - start for start, stop in self._batches)

    @property
    def path(self) -> Path:
        return self.folder / PART_FILE

    def __call__(self, rows: slice, compute: Callable[[], Batch]) -> Batch:
        """The batch of these rows, found or computed."""
        key = rows.start, rows.stop
        if key not in self._batches:
            batch = compute()
            with self._lock:
                self._batches[key] = batch
                if time.perf_counter() - self._written >= self.interval:
                    self._write()
        return self._batches[key]

    def __enter__(self) -> PartialSamples:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            with self._lock:
                self._write()

    def discard(self) -> None:
        """Remove the file, once all samples are stored."""
        self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        if not self._batches:
            return
        keys = sorted(self._batches)
        columns = {name: torch.cat([self._batches[key][name] for key in keys]) for name in self._batches[keys[0]]}
        now = Cost(seconds=time.perf_counter() - self._began, core_seconds=time.process_time() - self._cores) + self.spent
        store.save_checkpoint(self.path, columns | {"rows": torch.tensor(keys)}, {"fingerprint": self.fingerprint, "spent": asdict(now)})
        self._written = time.perf_counter()

    def _take_up(self, columns: Batch, meta: dict) -> None:
        if meta.get("fingerprint") != self.fingerprint:
            self.others = len(columns["x"])
            return
        keys = [(start, stop) for start, stop in columns.pop("rows").tolist()]
        parts = {name: column.split([stop - start for start, stop in keys]) for name, column in columns.items()}
        self._batches = {key: {name: part[k] for name, part in parts.items()} for k, key in enumerate(keys)}
        self.spent = Cost(**meta["spent"]) if "spent" in meta else Cost(seconds=meta["seconds"])
