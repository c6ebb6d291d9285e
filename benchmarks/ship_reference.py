"""Make the reference set and values that a system ships with: a long run whose averages are kept with a small, evenly thinned part of it.

    python benchmarks/ship_reference.py lj13 -n 100000 --keep 10000

The seed must differ from that of `bgwork reference`, whose configurations are training data (its default is 0).
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

from bgwork.reference import generate, save, thinned
from bgwork.system import load_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system")
    parser.add_argument("-n", type=int, default=100_000, help="configurations behind the averages")
    parser.add_argument("--keep", type=int, default=10_000, help="configurations kept")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="folder; the system's own if not given")
    options = parser.parse_args()
    system, began = load_system(options.system), time.perf_counter()
    run = generate(system, options.n, seed=options.seed)
    print(f"{system.name}: {options.n} configurations in {time.perf_counter() - began:.0f} s")
    print(*("  " + str(check) for check in run.checks), sep="\n")
    print(*(f"  {name} = {estimate}" for name, estimate in run.estimates.items()), sep="\n")
    save(thinned(run, options.keep), options.out or system.path, stem="reference", command=shlex.join(["python", *sys.argv]))


if __name__ == "__main__":
    main()
