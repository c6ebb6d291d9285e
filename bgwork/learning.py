"""What the training of a generator asked of the energy and how it went on, from the generator's header and its training's metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bgwork import store
from bgwork.provenance import file_fingerprint

METRICS_FILE, METRICS_SUFFIX = "metrics.jsonl", ".metrics.jsonl"  # in a training run's folder; beside a generator that is shipped
COUNTS = ("energy_evaluations", "gradient_evaluations")


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """A training that counted its evaluations of the energy, since it had nothing else to learn from.

    Attributes:
        progress: figures at its end: steps, seconds, evaluations of the energy alone and of energy and gradient.
        rows: its metrics, in order; empty if they were not kept.
    """

    progress: Mapping[str, float]
    rows: tuple[Mapping[str, float], ...] = ()

    @property
    def cost(self) -> dict[str, float]:
        """What report.json says of it."""
        energy, gradient = (int(self.progress[name]) for name in COUNTS)
        seconds = self.progress["seconds"] + self.progress["worker_seconds"]
        return {"energy": energy, "gradient": gradient, "steps": int(self.progress["step"]), "seconds": seconds}

    @property
    def is_curve(self) -> bool:
        """Whether evaluations were asked for while it learned; a bootstrap has spent them all before."""
        return len({evaluations(row) for row in self.rows}) > 1


def evaluations(row: Mapping[str, float]) -> float:
    """Configurations at which the energy, or energy and gradient, had been asked for."""
    return sum(row[name] for name in COUNTS)


def training_record(settings: Mapping[str, Any]) -> TrainingRecord | None:
    """The training behind stored samples, if its evaluations were counted and the generator's file is still what they were drawn from.

    Args:
        settings: what sampling.toml says of the samples.
    Raises:
        FileError: if the metrics beside the generator are not readable.
    """
    path = Path(settings.get("generator", ""))
    if not path.is_file() or file_fingerprint(path) != settings.get("generator_fingerprint"):
        return None
    progress = store.load_checkpoint(path)[1].get("progress", {})
    if any(name not in progress for name in (*COUNTS, "step", "seconds", "worker_seconds")):
        return None
    metrics = path.with_name(METRICS_FILE) if path.name == "generator.safetensors" else path.with_suffix(METRICS_SUFFIX)
    rows = store.read_json_lines(metrics) if metrics.exists() else []
    return TrainingRecord(progress=progress, rows=tuple(row for row in rows if all(name in row for name in COUNTS)))
