"""What the training of a generator asked of the energy and how it went on, from the generator's header and its training's metrics.

Beside it stands what Markov chains make of as many evaluations, once `bgwork baselines` has been asked for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bgwork import store
from bgwork.baselines import Baseline, from_json
from bgwork.provenance import file_fingerprint
from bgwork.recipes.base import COUNTS, RAW_QUANTILES

METRICS_FILE, METRICS_SUFFIX = "metrics.jsonl", ".metrics.jsonl"  # in a training run's folder; beside a generator that is shipped
FRESH = ("u_05", "u_50", "u_95")
BASELINES_FILE = "baselines.json"  # in the folder of the samples


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """A training whose evaluations of the energy are known from the very beginning, since no data stand behind it.

    Attributes:
        progress: figures at its end: steps, seconds, evaluations of the energy alone and of energy and gradient.
        rows: its metrics, in order; empty if they were not kept.
        baselines: chains at parts of its evaluations and at all of them; empty if they were not made.
    """

    progress: Mapping[str, float]
    rows: tuple[Mapping[str, float], ...] = ()
    baselines: tuple[Baseline, ...] = ()

    @property
    def cost(self) -> dict[str, Any]:
        """What report.json says of it."""
        energy, gradient = (int(self.progress[name]) for name in COUNTS)
        seconds = self.progress["seconds"] + self.progress["worker_seconds"]
        return {"energy": energy, "gradient": gradient, "steps": int(self.progress["step"]), "seconds": seconds,
                "baselines": [asdict(each) for each in self.baselines]}

    @property
    def spent(self) -> int:
        """Energies, and energies with gradient, together."""
        return int(evaluations(self.progress))

    @property
    def is_curve(self) -> bool:
        """Whether evaluations were asked for while it learned; a bootstrap has spent them all before."""
        return len({asked for asked, *_ in self.quantiles}) > 1

    @property
    def quantiles(self) -> list[tuple[float, ...]]:
        """Evaluations and 5, 50 and 95 % of u in the rows that know them: of fresh samples, or else of those that ESS was measured on."""
        named = [(row, FRESH if FRESH[0] in row else RAW_QUANTILES) for row in self.rows]
        return [(evaluations(row), *(row[name] for name in names)) for row, names in named if names[0] in row]


def evaluations(row: Mapping[str, float]) -> float:
    """Configurations at which the energy, or energy and gradient, had been asked for."""
    return sum(row[name] for name in COUNTS)


def training_record(folder: Path, settings: Mapping[str, Any], *, made_with: str) -> TrainingRecord | None:
    """The training behind stored samples, if its evaluations were counted and the generator's file is still what they were drawn from.

    Args:
        folder: of the samples.
        settings: what sampling.toml says of them.
        made_with: their fingerprint.
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
    return TrainingRecord(progress=progress, rows=tuple(row for row in rows if all(name in row for name in COUNTS)),
                          baselines=stored_baselines(folder, made_with))


def stored_baselines(folder: Path, made_for: str) -> tuple[Baseline, ...]:
    """What `bgwork baselines` left in the folder, if it was for these samples."""
    path = folder / BASELINES_FILE
    return from_json(store.read_json(path), made_for) if path.exists() else ()
