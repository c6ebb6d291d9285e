"""benchmarks/split_reference.py: what a system ships with and what is trained on come from different times of every walker."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles import propose

from bgwork import store
from bgwork.priors import Gaussian
from bgwork.records import SPLIT, Density, Proposal
from bgwork.set_aside import split, time_of
from bgwork.spaces import Euclidean

WALKERS, TIMES = 4, 50


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("split_reference")


def resampled() -> Proposal:
    """300 rows drawn from walkers that take turns, row k of them at time k // WALKERS."""
    generator = torch.Generator().manual_seed(0)
    ancestor = torch.randint(WALKERS * TIMES, (300,), generator=generator)
    made = propose(Gaussian(space=Euclidean(n=1, d=2)), 300, seed=1)
    return replace(made, ancestor=ancestor, group=ancestor % WALKERS, density=Density.UNNORMALISED)


def test_the_end_of_every_walker_is_set_aside():
    whole = resampled()
    shipped, training = split(whole, share=0.2, keep=30)
    assert len(shipped) == 30 and (shipped.ancestor // WALKERS).min() >= 40 > (training.ancestor // WALKERS).max()
    assert len(training) == int((whole.ancestor // WALKERS < 40).sum()) and shipped.group.unique().tolist() == list(range(WALKERS))
    assert shipped.origin.edits[-1].startswith(f"{SPLIT}kept 30 of ") and training.origin.edits[-1].endswith("the last 20% of every walker")


@pytest.mark.parametrize(("changes", "options", "words"), [
    ({}, {"share": 1.0, "keep": 3}, "between 0 and 1, got 1"), ({}, {"share": 0.1, "keep": 200}, "cannot keep 200 of the "),
    ({"group": None}, {"share": 0.1, "keep": 3}, "do not say which time.*run `bgwork ref"),
])
def test_what_cannot_be_split(changes, options, words):
    with pytest.raises(ValueError, match=words):
        split(replace(resampled(), **changes), **options)


def test_rows_that_were_not_resampled_are_in_order_of_time():
    rows = replace(resampled(), ancestor=None)
    assert time_of(rows).tolist() == list(range(300))
    shipped, training = split(rows, share=0.2, keep=60)
    assert torch.equal(shipped.x, rows.x[240:]) and torch.equal(training.x, rows.x[:240])


def test_files_and_their_command(script, tmp_path, monkeypatch, capsys):
    store.save_samples(tmp_path / "samples.npz", resampled())
    store.write_json(tmp_path / "reference.json", {"command": "bgwork reference toy", "estimates": {}})
    monkeypatch.setattr(sys, "argv", ["split_reference.py", "toy", "--keep", "5", "--data", str(tmp_path), "--out", str(tmp_path / "toy")])
    script.main()
    assert len(store.load_samples(tmp_path / "toy" / "reference.npz")) == 5
    made = store.read_json(tmp_path / "toy" / "reference.json")
    assert made["command"].startswith("bgwork reference toy; python split_reference.py toy --keep 5") and made["estimates"] == {}
    assert f"{len(store.load_samples(tmp_path / 'training.npz'))} in " in capsys.readouterr().out
