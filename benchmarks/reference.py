"""Time and checks of reference data on one thread.

    python benchmarks/reference.py dw4 lj13 -n 100000

Run it on an idle machine. Nothing is kept: `bgwork reference` makes data to use.
"""

from __future__ import annotations

import argparse
import time

import torch
from rows import Row, estimate_row, publish

from bgwork.reference import generate
from bgwork.system import load_system


def measure(name: str, n: int, seed: int) -> list[Row]:
    system, started = load_system(name), time.perf_counter()
    run = generate(system, n, seed=seed)
    seconds = time.perf_counter() - started
    common = {"system": name, "method": system.reference.sampler, "n": n, "seed": seed}
    rows = [Row(metric="seconds on one thread", value=seconds, goal="<= 240" if name == "lj13" else None, **common)]
    rows += [Row(metric=check.name, value=check.value, goal=f"< {check.limit:.3g}", **common) for check in run.checks]
    return rows + [estimate_row(f"<{observable}>", estimate, **common) for observable, estimate in run.estimates.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="+")
    parser.add_argument("-n", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    publish([row for name in options.systems for row in measure(name, options.n, options.seed)])


if __name__ == "__main__":
    main()
