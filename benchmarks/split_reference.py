"""Split a reference run in time: the end of every walker becomes the set that the system ships with, what came before is to train on.

    bgwork reference ala2-obc2 -n 40000 --seed 1
    python benchmarks/split_reference.py ala2-obc2 --share 0.1 --keep 2000
    bgwork train ala2-obc2 --data runs/ala2-obc2/reference/training.npz

For shipped systems whose reference takes too long to be run twice, with another seed (`ship_reference.py`); the data of a system of your
own are split by `bgwork reference` itself. The averages and checks in reference.json stay those of the whole run; no configuration of
the shipped set, nor any other of that time, is trained on.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from bgwork import store
from bgwork.set_aside import split
from bgwork.system import load_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system")
    parser.add_argument("--share", type=float, default=0.1, help="of every walker that is set aside")
    parser.add_argument("--keep", type=int, default=2000, help="configurations of it that are shipped")
    parser.add_argument("--data", type=Path, default=None, help="folder of the run; runs/SYSTEM/reference if not given")
    parser.add_argument("--out", type=Path, default=None, help="folder of the shipped set; the system's own if not given")
    options = parser.parse_args()
    folder = options.data or Path("runs") / options.system / "reference"
    shipped, training = split(store.load_samples(folder / "samples.npz"), share=options.share, keep=options.keep)
    made = store.read_json(folder / "reference.json")
    made["set_aside"] = len(shipped)
    made["command"] = f"{made['command']}; {shlex.join(['python', *sys.argv])}"
    out = options.out or load_system(options.system).path
    store.save_samples(folder / "training.npz", training)
    store.save_samples(out / "reference.npz", shipped)
    store.write_json(out / "reference.json", made)
    print(f"{len(shipped)} configurations in {out / 'reference.npz'}, {len(training)} in {folder / 'training.npz'}")


if __name__ == "__main__":
    main()
