"""Pieces of work in processes of their own: their results in order, their count here, and an end to all when one fails."""

import gc
import os
import time

import pytest

from bgwork.processes import run_ahead
from bgwork.samplers.chains import silent
from bgwork.samplers.forked import ProcessEnded, run_forked


def made(work, n=5, *, workers, progress=silent, rounds=3):
    return run_forked(work, n, workers=workers, total=n * rounds, progress=progress, text="pieces")


def square(k, tick):
    for _ in range(3):
        tick()
    return k * k, os.getpid()


@pytest.mark.parametrize(("workers", "here"), [(1, True), (2, False)])
def test_results_come_in_order_from_where_they_should(workers, here):
    found = made(square, workers=workers)
    assert [value for value, _ in found] == [0, 1, 4, 9, 16]
    assert {process == os.getpid() for _, process in found} == {here} and len({process for _, process in found}) <= workers


@pytest.mark.parametrize("workers", [1, 2])
def test_rounds_are_counted_here(workers):
    told = []
    made(square, workers=workers, progress=lambda *each: told.append(each))
    assert told[-1] == (15, 15, "pieces") and [done for done, *_ in told] == sorted(done for done, *_ in told)


def endless(k, tick):
    if k == 1:
        raise ValueError("piece 1 is wrong")
    for _ in range(6000):
        time.sleep(0.01)
        tick()


@pytest.mark.parametrize("workers", [2, 4])
def test_a_failure_ends_the_others(workers):
    began = time.monotonic()
    with pytest.raises(ValueError, match="piece 1 is wrong"):
        made(endless, workers=workers)
    assert time.monotonic() - began < 20


def test_ctrl_c_here_ends_the_others():
    """It arrives in the parent, from the progress callback, say; the children are told to stop."""
    began = time.monotonic()

    def interrupted(done, total, text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(lambda k, tick: endless(2, tick), workers=2, progress=interrupted)
    assert time.monotonic() - began < 20


def test_a_process_that_dies_is_no_silent_loss():
    with pytest.raises(ProcessEnded, match="pieces: a process ended before its time.*give the command again"):
        made(lambda k, tick: os._exit(1), workers=2)


class Context:
    """Something with threads of its own, whose end is written down: only the process that it began in may come to it."""

    def __init__(self, path):
        self.path, self.itself = path, self

    def __del__(self):
        with self.path.open("a") as file:
            file.write(f"{os.getpid()} ")


def ahead(work):
    return list(run_ahead(lambda step: work(step, lambda: None), range(2)))


@pytest.mark.parametrize("run", [ahead, lambda work: made(work, 2, workers=2)])
def test_children_end_nothing_that_began_here(run, tmp_path):
    """Neither what was garbage already, nor what they let go of."""
    held = [Context(tmp_path / "held")]
    gc.disable()
    try:
        Context(tmp_path / "garbage")

        def collects(k, tick):
            held.clear()
            return gc.collect()

        run(collects)
    finally:
        gc.enable()
    assert (tmp_path / "garbage").read_text() == f"{os.getpid()} " and not (tmp_path / "held").exists()
    assert held and gc.get_freeze_count() == 0
