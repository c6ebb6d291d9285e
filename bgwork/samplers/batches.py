"""What the flow samplers share: checks of what they are handed, and the walk over a large sample in batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from bgwork.protocols import Field
from bgwork.records import Cost
from bgwork.spaces import Space

Progress = Callable[[int, int], None]
Result = TypeVar("Result")


class Kept(Protocol):
    """Batches of an earlier attempt at the same samples, and a place for those of this one (`bgwork.partial`).

    Attributes:
        spent: on the earlier ones, in seconds.
    """

    spent: Cost

    def __call__(self, rows: slice, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What was kept of these rows, or what is computed."""
        ...


CACHED = 40_000  # entries of Jacobians whose intermediate results fit a core's cache
MOST_CACHED = 64


def rows_in_cache(space: Space) -> int:
    """Configurations whose Jacobians are best taken at once: 40,000 / (n d)^2 as a power of two, between 2 and 64.

    What closed-form Jacobians make on their way is many times their size, and costs more to fetch than to compute.
    """
    fitting = CACHED / (space.n * space.d) ** 2
    return min(max(2 ** math.floor(math.log2(fitting)), 2), MOST_CACHED)


def check_count(n: int) -> None:
    """Raise ValueError unless n is a positive integer."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"the number of samples must be a positive integer, got {n!r}")


def check_configurations(x: Tensor, space: Space) -> None:
    """Raise ValueError if x is not a batch [B, n, d] of finite configurations of the space."""
    if not isinstance(x, Tensor):
        raise ValueError(f"configurations must be a torch.Tensor [B, {space.n}, {space.d}], got {type(x).__name__}")
    bad = ~torch.isfinite(x).flatten(1).all(1) if x.ndim == 3 else x.new_zeros(1, dtype=torch.bool)
    if bad.any():
        rows = bad.nonzero().flatten().tolist()
        raise ValueError(f"{len(rows)} of {len(x)} configurations hold NaN or infinity (first: row {rows[0]}); remove them first")
    space.check(x)


def check_field(field: Field, space: Space, z: Tensor) -> None:
    """Raise ValueError if the field is for other particles, or its velocity leaves the space (not mean-free, say).

    Args:
        z: [B, n, d] a few configurations of the space.
    """
    if (field.n, field.d) != (space.n, space.d):
        raise ValueError(f"the field moves {field.n} particles in {field.d} dimensions, the prior lives on {space}")
    with torch.no_grad():
        v = field(torch.tensor(0.5, dtype=z.dtype), z).double()
    off = (v - space.tangent(z, v)).abs().max() / (1 + v.abs().max())
    if off > 1e-4:
        raise ValueError(f"the field's velocity leaves {space} (by {off:.2g} of its size); let the field subtract its mean, or project it "
                         "with space.tangent(x, v)")


def in_batches(n: int, batch: int, progress: Progress | None) -> Iterator[slice]:
    """Slices of at most `batch` rows covering 0..n; progress(done, n) is called as each is finished."""
    for start in range(0, n, batch):
        stop = min(start + batch, n)
        yield slice(start, stop)
        if progress is not None:
            progress(stop, n)


def map_batches(f: Callable[[slice], Result], n: int, batch: int, progress: Progress | None) -> list[Result]:
    """[f(rows) for the slices of `in_batches`], as many at a time as torch has threads, each on one thread.

    The products of a batch are too small to be split, while batches are independent; one thread each also makes the
    numbers independent of how many threads there are.
    """
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = [pool.submit(f, slice(start, min(start + batch, n))) for start in range(0, n, batch)]
        try:
            return [future.result() for future, _ in zip(futures, in_batches(n, batch, progress), strict=True)]
        finally:
            for future in futures:
                future.cancel()
            torch.set_num_threads(threads)  # MKL's number is global, so the pool's threads have lowered the caller's too
