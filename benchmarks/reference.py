"""Time and checks of reference data on one thread.

    python benchmarks/reference.py dw4 lj13 -n 100000
    bgwork reference ala2-obc2 -n 200000 --seed 2 --out runs/ala2-obc2/long
    python benchmarks/reference.py --made runs/ala2-obc2/long

Run the first on an idle machine; nothing of it is kept. The last reads checks and averages of data that `bgwork reference` has made.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from rows import Row, estimate_row, publish

from bgwork import store
from bgwork.records import Estimate
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


def read(folder: Path) -> list[Row]:
    """Checks and averages as reference.json has them."""
    content = store.read_json(folder / "reference.json")
    common = {"system": content["system"], "method": content["settings"]["sampler"], "n": content["n"], "seed": content["seed"]}
    rows = [Row(metric=check["name"], value=check["value"], goal=f"< {check['limit']:.3g}", **common) for check in content["checks"]]
    return rows + [estimate_row(f"<{name}>", Estimate(value=known["value"], stderr=known["stderr"]), **common)
                   for name, known in content["estimates"].items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*")
    parser.add_argument("--made", type=Path, nargs="*", default=[], help="folders of reference data whose records are read")
    parser.add_argument("-n", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in options.systems for row in measure(name, options.n, options.seed)]
    publish(rows + [row for folder in options.made for row in read(folder)])


if __name__ == "__main__":
    main()
