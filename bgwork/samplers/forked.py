"""Independent pieces of one sampler's work in processes of their own, which begin as copies of this one and hand back what they made.

Threads will not do for dynamics: OpenMM's Reference platform has one stream of random numbers for the whole process.
"""

from __future__ import annotations

import gc
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from bgwork.samplers.chains import Progress

POLL = 0.2  # s between two looks at how far the processes are

Tick = Callable[[], None]
_work: Callable[[int, Tick], Any]  # of a process, which sets both when it begins
_watch: Watch


class ProcessEnded(ValueError):
    """A process that was killed, or crashed, before it had made its piece."""


class Stopped(Exception):
    """Another piece failed, or Ctrl-C."""


class Watch:
    """What the processes share: the count of what is done, and whether to go on.

    Args:
        context: of `multiprocessing`.
    """

    def __init__(self, context: Any) -> None:
        self.done, self.stopped = context.Value("q", 0), context.Event()

    def tick(self) -> None:
        """One more round is done.

        Raises:
            Stopped: if there should be no more.
        """
        if self.stopped.is_set():
            raise Stopped
        with self.done.get_lock():
            self.done.value += 1


def run_forked(work: Callable[[int, Tick], Any], n: int, *, workers: int, total: int, progress: Progress, text: str) -> list[Any]:
    """[work(0, tick), ..., work(n - 1, tick)], `workers` of them at a time; one after the other in this process where there is no fork.

    Args:
        work: makes one piece and calls tick() after every round; what it returns can be pickled.
        n: number of pieces.
        workers: processes.
        total: rounds of all pieces.
        progress: called as progress(done, total, text), here.
        text: for it.
    Raises:
        ProcessEnded: if a process was killed.
        Exception: whatever a piece raised first; the others are stopped at their next round.
    """
    if min(workers, n) == 1 or "fork" not in multiprocessing.get_all_start_methods():
        return _one_by_one(work, n, total=total, progress=progress, text=text)
    context = multiprocessing.get_context("fork")
    watch = Watch(context)
    with ProcessPoolExecutor(min(workers, n), mp_context=context, initializer=_begin, initargs=(work, watch)) as pool:
        with untouched_by_children():
            pieces = [pool.submit(_piece, k) for k in range(n)]
        try:
            return _results(pieces, watch, total=total, progress=progress, text=text)
        except BrokenProcessPool as error:
            raise ProcessEnded(f"{text}: a process ended before its time (killed for want of memory, perhaps; its message, if any, is on "
                               "stderr); give the command again") from error
        except BaseException:
            watch.stopped.set()
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def untouched_by_children() -> Iterator[None]:
    """Processes forked within leave alone whatever is here: their garbage collection does not see it.

    A child that destroyed an OpenMM context, garbage here at the time, would wait for ever for threads that it never had.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _one_by_one(work: Callable[[int, Tick], Any], n: int, *, total: int, progress: Progress, text: str) -> list[Any]:
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress(done, total, text)

    return [work(k, tick) for k in range(n)]


def _results(pieces: list[Future], watch: Watch, *, total: int, progress: Progress, text: str) -> list[Any]:
    waiting = set(pieces)
    while waiting:
        ended, waiting = wait(waiting, timeout=POLL, return_when=FIRST_EXCEPTION)
        for failure in filter(None, (piece.exception() for piece in ended)):
            raise failure
        progress(watch.done.value, total, text)
    return [piece.result() for piece in pieces]


def _piece(k: int) -> Any:
    return _work(k, _watch.tick)


def _begin(work: Callable[[int, Tick], Any], watch: Watch) -> None:
    """In a process that has just been forked, which has both without their being sent."""
    global _work, _watch
    _work, _watch = work, watch
    leave_interrupts_to_parent()


def leave_interrupts_to_parent(*_: object) -> None:
    """Ctrl-C reaches the whole process group; a worker must outlive it until the parent has saved, or told it to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
