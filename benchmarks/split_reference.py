"""Split a reference run in time: the end of every walker becomes the set that the system ships with, what came before is to train on.

    bgwork reference ala2-obc2 -n 40000 --seed 1
    python benchmarks/split_reference.py ala2-obc2 --share 0.1 --keep 2000
    bgwork train ala2-obc2 --data runs/ala2-obc2/reference/training.npz

For systems whose reference takes too long to be run twice, with another seed (`ship_reference.py`). The averages and checks in
reference.json stay those of the whole run; no configuration of the shipped set, nor any other of that time, is trained on.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import torch

from bgwork import store
from bgwork.records import Proposal, with_edit
from bgwork.system import load_system


def split(proposal: Proposal, *, share: float, keep: int) -> tuple[Proposal, Proposal]:
    """About `keep` rows of the last part of all walkers, evenly spaced in time, and all rows from before.

    Raises:
        ValueError: if rows do not say where they come from, or there are too few of them in that part.
    """
    if proposal.group is None or proposal.ancestor is None:
        raise ValueError("the rows do not say which time of which walker they come from; run `bgwork reference` anew")
    if not 0 < share < 1:
        raise ValueError(f"the share of every walker that is set aside must lie between 0 and 1, got {share}")
    time = proposal.ancestor // len(torch.unique(proposal.group))
    late = time >= round((1 - share) * (int(time.max()) + 1))
    rows = late.nonzero().flatten()
    if not 0 < keep <= len(rows):
        raise ValueError(f"cannot keep {keep} of the {len(rows)} rows of that part; choose between 1 and {len(rows)}")
    rows = rows[proposal.ancestor[rows].argsort(stable=True)][torch.linspace(0, len(rows) - 1, keep).round().long()]
    words = f"the last {share:.0%} of every walker"
    return (with_edit(proposal.take(rows), f"kept {keep} of {int(late.sum())} configurations of {words}"),
            with_edit(proposal.take(~late), f"without the configurations of {words}"))


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
    made["command"] = f"{made['command']}; {shlex.join(['python', *sys.argv])}"
    out = options.out or load_system(options.system).path
    store.save_samples(folder / "training.npz", training)
    store.save_samples(out / "reference.npz", shipped)
    store.write_json(out / "reference.json", made)
    print(f"{len(shipped)} configurations in {out / 'reference.npz'}, {len(training)} in {folder / 'training.npz'}")


if __name__ == "__main__":
    main()
