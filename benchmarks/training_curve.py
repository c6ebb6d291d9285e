"""ESS against core-minutes of training, from the metrics that a training run wrote (a few hundred samples a point: progress, not results).

    python benchmarks/training_curve.py lj13 runs/lj13/eqot-fm-0

Core-minutes are the wall time of the steps on one thread plus the CPU time of the pairing worker.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rows import Row, publish


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system")
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    metrics = [json.loads(line) for line in (options.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    method, rows = f"training {options.run.name}", []
    for row in (row for row in metrics if "ess" in row):
        minutes = (row["seconds"] + row["worker_seconds"]) / 60
        rows.append(Row(metric=f"reverse ESS at step {row['step']}, {minutes:.1f} core-minutes", system=options.system, method=method,
                        value=row["ess"], n=row["ess_samples"], seed=row["ess_samples"]))
    last = metrics[-1]
    rows.append(Row(metric="core-minutes", system=options.system, method=method, value=(last["seconds"] + last["worker_seconds"]) / 60,
                    n=last["step"], goal="<= 240" if options.system == "lj13" else None))
    rows.append(Row(metric="pairing worker CPU / step wall time", system=options.system, method=method,
                    value=last["worker_seconds"] / last["seconds"], n=last["step"], goal="< .15"))
    publish(rows)


if __name__ == "__main__":
    main()
