"""Rows that every benchmark writes: metric, system, method, evaluations, value, stderr, published, goal, n, seed, commit, command."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bgwork import store
from bgwork.provenance import commit
from bgwork.records import Estimate

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured figure. `evaluations`: network forward passes per sample; `goal` and `published` as the issue states them."""

    metric: str
    system: str
    method: str
    value: float
    stderr: float | None = None
    evaluations: float | None = None
    published: str | None = None
    goal: str | None = None
    n: int
    seed: int | None = None
    commit: str = ""
    command: str = ""

    @property
    def key(self) -> tuple:
        """What the figure is of: a new measurement replaces an old one with the same key."""
        return self.metric, self.system, self.method, self.evaluations


def estimate_row(metric: str, estimate: Estimate, **rest: object) -> Row:
    """A row from a value with its error bar."""
    return Row(metric=metric, value=estimate.value, stderr=estimate.stderr, **rest)


def publish(rows: list[Row]) -> None:
    """Merge rows into results/<script>.json and print them."""
    command = shlex.join(["python", *sys.argv])
    path = RESULTS / f"{Path(sys.argv[0]).stem}.json"
    stamped = [{**asdict(row), "commit": commit(), "command": command} for row in rows]
    replaced = {row.key for row in rows}
    old = store.read_json(path) if path.exists() else []
    names = {f.name for f in fields(Row)}
    kept = [r for r in old if Row(**{k: v for k, v in r.items() if k in names}).key not in replaced]
    store.write_json(path, kept + stamped)
    show(rows)


def show(rows: list[Row]) -> None:
    """Print rows as a table."""
    table = Table("metric", "system", "method", "evaluations", "published", "goal", "ours", "n")
    for row in rows:
        ours = f"{row.value:.5g}" + (f" +- {row.stderr:.2g}" if row.stderr is not None else "")
        evaluations = "" if row.evaluations is None else f"{row.evaluations:g}"
        table.add_row(row.metric, row.system, row.method, evaluations, row.published or "", row.goal or "", ours, str(row.n))
    Console(width=160).print(table)
