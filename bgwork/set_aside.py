"""The end of a reference run set aside: what a system's generators are judged by must not be what they were trained on."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bgwork.records import SPLIT, Proposal, with_edit
from bgwork.reference_checks import ReferenceRun

SHARE = 0.1  # of every walker, at its end
MOST = 2000  # configurations of it that are kept
FEWEST = 100  # fewer cannot judge anything, and all are left to train on


def time_of(proposal: Proposal) -> Tensor:
    """When each row was drawn, [N], in units of its own: rows are in order of time, unless they were resampled, which their ancestors tell.

    Raises:
        ValueError: if rows were resampled and do not say from which.
    """
    if proposal.ancestor is not None and proposal.group is not None:
        return proposal.ancestor // len(torch.unique(proposal.group))
    if proposal.resampled:
        raise ValueError("the rows do not say which time of which walker they come from; run `bgwork reference` anew")
    return torch.arange(len(proposal))


def is_late(proposal: Proposal, share: float) -> Tensor:
    """[N] whether a row belongs to the last part of the run."""
    time = time_of(proposal)
    return time >= round((1 - share) * (int(time.max()) + 1))


def split(proposal: Proposal, *, share: float, keep: int) -> tuple[Proposal, Proposal]:
    """About `keep` rows of the last part of all walkers, evenly spaced in time, and all rows from before.

    Args:
        proposal: of walkers that take turns, row k (or ancestor k) of them at time k // walkers; or of one trajectory.
        share: of the time of the run that is set aside.
        keep: rows of it that are handed over.
    Raises:
        ValueError: if rows do not say where they come from, or there are too few of them in that part.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share of every walker that is set aside must lie between 0 and 1, got {share}")
    time, late = time_of(proposal), is_late(proposal, share)
    rows = late.nonzero().flatten()
    if not 0 < keep <= len(rows):
        raise ValueError(f"cannot keep {keep} of the {len(rows)} rows of that part; choose between 1 and {len(rows)}")
    order = rows[time[rows].argsort(stable=True)]
    rows = order[torch.linspace(0, len(rows) - 1, keep).round().long()]
    words = f"the last {share:.0%} of every walker"
    return (with_edit(proposal.take(rows), f"{SPLIT}kept {keep} of {int(late.sum())} configurations of {words}"),
            with_edit(proposal.take(~late), f"{SPLIT}without the configurations of {words}"))


def set_aside(run: ReferenceRun) -> tuple[ReferenceRun, ReferenceRun] | None:
    """The run with what its generators are judged by, and with what they are trained on; None where there are too few configurations.

    Averages and checks of both are those of the whole run.
    """
    late = int(is_late(run.proposal, SHARE).sum())
    if late < FEWEST:
        return None
    aside, rest = split(run.proposal, share=SHARE, keep=min(MOST, late))
    made = run.made | {"set_aside": len(aside)}
    return replace(run, proposal=aside, made=made), replace(run, proposal=rest, made=made)
