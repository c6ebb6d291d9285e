"""ESS against core-minutes of training, from the metrics that a training run wrote (a few hundred samples a point: progress, not results).

    python benchmarks/training_curve.py lj13 runs/lj13/eqot-fm-0
    python benchmarks/training_curve.py lj55 runs/lj55/weighted-adjoint-0

Core-minutes are the wall time of the steps on one thread plus the CPU time of the pairing worker, or of refills and batches. Trainings from
the energy alone show besides, at ten moments, the loss and the raw energies of the samples of the last refill.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rows import Row, publish

MOMENTS = 10


def minutes_of(row: dict) -> float:
    """Core-minutes up to a row of the metrics."""
    return (row["seconds"] + row["worker_seconds"]) / 60


def energies(metrics: list[dict], **common: object) -> list[Row]:
    """Loss and quantiles of u over the last refill as the training went on."""
    rows = []
    for place in sorted({max(len(metrics) * k // MOMENTS - 1, 0) for k in range(1, MOMENTS + 1)}):
        row = metrics[place]
        when = f"at step {row['step']}, {minutes_of(row):.1f} core-minutes, {row['gradient_evaluations']} gradients"
        rows += [Row(metric=f"{name} {when}", value=row[key], n=row["step"], **common)
                 for name, key in (("loss", "loss"), ("median raw u", "u_50"), ("raw u, quantile .95", "u_95"))]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system")
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    metrics = [json.loads(line) for line in (options.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    common, last = {"system": options.system, "method": f"training {options.run.name}"}, metrics[-1]
    rows = [Row(metric=f"reverse ESS at step {row['step']}, {minutes_of(row):.1f} core-minutes", value=row["ess"], n=row["ess_samples"],
                seed=row["ess_samples"], **common) for row in metrics if "ess" in row]
    if "u_50" in last:
        publish([*rows, Row(metric="core-minutes", value=minutes_of(last), n=last["step"], **common), *energies(metrics, **common)])
        return
    rows.append(Row(metric="core-minutes", value=minutes_of(last), n=last["step"], goal="<= 240" if options.system == "lj13" else None,
                    **common))
    publish([*rows, Row(metric="pairing worker CPU / step wall time", value=last["worker_seconds"] / last["seconds"], n=last["step"],
                        goal="< .15", **common)])


if __name__ == "__main__":
    main()
