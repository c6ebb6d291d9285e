"""Freed memory is used again, and batches are as large as a cache."""

import ctypes
import subprocess
import sys

import pytest

from bgwork.samplers.batches import rows_in_cache
from bgwork.spaces import Euclidean, MeanFree

FAULTS = """
import resource, sys, torch
from bgwork.memory import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def use():
    for _ in range(20):
        torch.zeros(2**23).add_(1)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="settings of glibc")
def test_large_tensors_fault_no_page_twice():
    kept, handed_back = (int(subprocess.check_output([sys.executable, "-c", FAULTS, mode])) for mode in ("kept", "not"))
    assert kept < 1000 < handed_back


@pytest.mark.parametrize(("space", "rows"), [
    (Euclidean(n=1, d=2), 64), (MeanFree(n=4, d=2), 64), (MeanFree(n=13, d=3), 16), (MeanFree(n=22, d=3), 8), (MeanFree(n=55, d=3), 2)])
def test_fewer_configurations_are_taken_at_once_as_they_grow(space, rows):
    assert rows_in_cache(space) == rows
