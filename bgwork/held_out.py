"""A generator's log-density at reference samples of its system, for forward ESS and BAR: evaluated once, stored in the run's folder.

Where weights belong to paths, it is that of one path back from each reference sample: forward ESS and BAR then hold on the space of paths.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bgwork import store
from bgwork.generators import held_out_rows, tuning_rows
from bgwork.protocols import HasLogProb
from bgwork.provenance import file_fingerprint
from bgwork.report import REFERENCE_FILE, HeldOut
from bgwork.runs import Note, Run
from bgwork.samplers.batches import Progress
from bgwork.samplers.sde import PathSampler
from bgwork.system import System, reference_samples

HELD_OUT_FILE = "held_out.safetensors"
PER_BASIN = 100  # reference samples at which the density is asked for of every basin, where there are as many
MOST_RARE = 200  # of them that are asked for on top of the evenly spread ones
PATH_SEED = 1_000_000_033  # of the paths back from them, whose noise must not be that of forward paths


def evaluate(run: Run, *, progress: Progress, note: Note) -> None:
    """Store the generator's log-density at some of the reference samples and which ones they are, unless it lies there already."""
    if not (run.system.path / REFERENCE_FILE).exists():
        return
    if (known := stored_density(run.folder, run.system, made_with=run.fingerprint)) is not None:
        note(f"density at the reference samples exists and is kept: {run.folder / HELD_OUT_FILE}{_want_of_rare(known, run.system)}")
        return
    sampler = run.sampler(progress)
    if not isinstance(sampler, HasLogProb | PathSampler):
        note(f"no density at reference samples: {run.settings.weights} weights belong to samples, not to configurations")
        return
    x = reference_samples(run.system).x
    rows = held_out_rows(len(x))
    taken = tuning_rows(len(x)) if isinstance(sampler, PathSampler) else None
    rare = rare_rows(x, rows, run.system, taken=taken)
    further = HeldOut(log_q=log_q_at(sampler, x[rare], seed=PATH_SEED + 1), rows=rare) if len(rare) else None
    keep(HeldOut(log_q=log_q_at(sampler, x[rows]), rows=rows, rare=further), run.folder, run.system, made_with=run.fingerprint)


def _want_of_rare(known: HeldOut, system: System) -> str:
    """What a density that was stored by an older bgwork lacks."""
    if known.rare is not None or not len(rare_rows(reference_samples(system).x, known.rows, system)):
        return ""
    return ", without further samples of rare basins, since it was stored before there were any; remove it to have them"


def rare_rows(x: Tensor, chosen: Tensor, system: System, *, taken: Tensor | None = None) -> Tensor:
    """Rows of further reference samples [R]: rare basins are filled up to `PER_BASIN`, the rarest first, by no more than `MOST_RARE` rows.

    Args:
        x: [M, n, d] reference samples.
        chosen: [K] rows that are looked at anyway.
        system: whose basins they are.
        taken: rows that the sampler was tuned on, which cannot judge it; none by default.
    """
    if not system.basins:
        return chosen[:0]
    labels = system.functions[system.basins](x)
    left = torch.ones(len(x), dtype=torch.bool)
    left[chosen if taken is None else torch.cat([chosen, taken])] = False
    found: list[int] = []
    for label in sorted(labels.unique().tolist(), key=lambda each: int((labels == each).sum())):
        wanted = min(PER_BASIN - int((labels[chosen] == label).sum()), MOST_RARE - len(found))
        found += ((labels == label) & left).nonzero().flatten().tolist()[: max(wanted, 0)]
    return torch.tensor(sorted(found), dtype=torch.long)


def keep(found: HeldOut, folder: Path, system: System, *, made_with: str) -> None:
    """Write it where `stored_density` finds it.

    Args:
        found: density at some of the system's reference samples.
        folder: of the samples that it belongs to.
        system: whose reference samples they are.
        made_with: fingerprint of the samples.
    """
    meta = {"fingerprint": made_with, "reference": file_fingerprint(system.path / REFERENCE_FILE), "system": system.name}
    rare = {} if found.rare is None else {"rare_log_q": found.rare.log_q, "rare_rows": found.rare.rows}
    store.save_checkpoint(folder / HELD_OUT_FILE, {"log_q": found.log_q, "rows": found.rows, **rare}, meta)


def log_q_at(sampler: HasLogProb | PathSampler, x: Tensor, *, seed: int = PATH_SEED) -> Tensor:
    """[B] of configurations, or of one path back from each, with noise of that seed."""
    if isinstance(sampler, PathSampler):
        return sampler.path_log_q(x, generator=torch.Generator().manual_seed(seed))
    return sampler.log_prob(x)


def stored_density(folder: Path, system: System, *, made_with: str) -> HeldOut | None:
    """What `evaluate` stored in a folder, if it is of these very reference samples.

    Args:
        folder: of the run.
        system: whose reference samples they are.
        made_with: fingerprint of the run.
    """
    path, reference = folder / HELD_OUT_FILE, system.path / REFERENCE_FILE
    if not (path.exists() and reference.exists()):
        return None
    tensors, meta = store.load_checkpoint(path)
    if (meta.get("fingerprint"), meta.get("reference")) != (made_with, file_fingerprint(reference)):
        return None
    rare = HeldOut(log_q=tensors["rare_log_q"], rows=tensors["rare_rows"]) if "rare_rows" in tensors else None
    return HeldOut(log_q=tensors["log_q"], rows=tensors["rows"], rare=rare)
