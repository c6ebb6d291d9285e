"""Freed memory is used again, and batches are as large as a cache."""

import ctypes
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from bgwork import commands, memory
from bgwork.generators import load_generator
from bgwork.samplers import batches, executed
from bgwork.samplers.batches import rows_in_cache
from bgwork.spaces import Euclidean, MeanFree

FAULTS = """
import resource, sys, torch
from bgwork.commands import keep_freed_memory  # with all that a command imports, which shapes the heap
torch.set_num_threads(1)
taken = keep_freed_memory() if sys.argv[1] == "kept" else False
def use():
    torch.zeros(2**25)  # above the 32 MiB up to which glibc may keep blocks by itself, and at the top of the heap, which it trims
for _ in range(4):  # until the heap has found its shape
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(int(taken), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_no_page_is_cleared_twice():
    (taken, kept), (_, handed_back) = (
        map(int, subprocess.check_output([sys.executable, "-c", FAULTS, mode], text=True).split()) for mode in ("kept", "not"))
    assert taken == hasattr(ctypes.CDLL(None), "mallopt")
    assert kept < 1000 < handed_back or not taken


def test_commands_keep_freed_memory(monkeypatch):
    called = []
    monkeypatch.setattr(commands, "keep_freed_memory", lambda: called.append(True))
    assert CliRunner().invoke(commands.app, ["systems"]).exit_code == 0
    assert called


def test_an_executed_map_takes_as_many_at_once_as_fit(monkeypatch):
    seen = []

    def watched(f, n, rows, progress):
        seen.append(rows)
        return batches.map_batches(f, n, rows, progress)

    monkeypatch.setattr(executed, "map_batches", watched)
    flow = replace(load_generator("lj13"), n_round_trip=0, round_trip=None)
    for chosen in (flow, replace(flow, batch=5)):
        chosen.sample(17, generator=torch.Generator().manual_seed(0))
    assert list(dict.fromkeys(seen)) == [16, 5]


def test_without_the_c_library_nothing_happens(monkeypatch):
    def refuse(name):
        raise TypeError("no C library by that name")

    monkeypatch.setattr(memory.ctypes, "CDLL", refuse)
    assert memory.keep_freed_memory() is False


@pytest.mark.parametrize(("space", "rows"), [
    (Euclidean(n=1, d=2), 64), (MeanFree(n=4, d=2), 64), (MeanFree(n=13, d=3), 16), (MeanFree(n=22, d=3), 8), (MeanFree(n=55, d=3), 2)])
def test_fewer_configurations_are_taken_at_once_as_they_grow(space, rows):
    assert rows_in_cache(space) == rows
