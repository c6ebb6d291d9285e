"""Cost of value + exact divergence and value + full Jacobian of the multi-hop field, in forward passes and milliseconds.

    python benchmarks/field_cost.py

Run it on an idle machine. CPU time of one thread, the faster quartile of the repeats; each quantity at its best batch, and value + Jacobian
at every batch besides. Freed memory is kept, as commands do.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from rows import Row, publish

from bgwork.fields.compiled import CompiledField
from bgwork.fields.egnn import EGNN
from bgwork.fields.framed import Framed
from bgwork.fields.frames import Frame
from bgwork.fields.multihop import MultiHop, MultiHopConfig
from bgwork.memory import keep_freed_memory
from bgwork.protocols import Field
from bgwork.samplers.batches import MOST_CACHED, rows_in_cache
from bgwork.spaces import MeanFree

BATCHES = {13: (4, 8, 16, 32, 64), 22: (2, 4, 8, 16), 55: (1, 2, 4)}
ALL_BATCHES = (2, 4, 8, 16, 32, 64)
SEED = 0


def milliseconds(f: Callable[[torch.Tensor], object], n: int, batches: tuple[int, ...], repeats: int) -> float:
    """CPU milliseconds a sample, at the best batch size."""
    return min(_per_sample(f, n, batch, repeats) for batch in batches)


def _per_sample(f: Callable[[torch.Tensor], object], n: int, batch: int, repeats: int) -> float:
    x, times = torch.randn(batch, n, 3, generator=torch.Generator().manual_seed(SEED)), []
    f(x)
    for _ in range(repeats):
        started = time.process_time()
        f(x)
        times.append(time.process_time() - started)
    return 1e3 * sorted(times)[repeats // 4] / batch


def measure_hops(n: int, hops: int) -> list[Row]:
    torch.manual_seed(SEED)
    goals = ("<= 6", "<= 12" if n < 55 else None) if hops == 2 else (None, None)
    return measure(MultiHop(n, 3, MultiHopConfig(hops=hops)), name=f"multi-hop, {hops} hops", goals=goals)


def measure_framed(n: int) -> list[Row]:
    """With the refinement in the molecule's frame, whose divergence is the trace of its Jacobian."""
    torch.manual_seed(SEED)
    frame = Frame(torch.randn(n, 3), length=1.0)
    return measure(Framed(MultiHop(n, 3, MultiHopConfig()), frame, hidden=384, depth=3), name="multi-hop, 2 hops, framed")


@torch.no_grad()
def measure(field: Field, *, name: str, goals: tuple[str | None, str | None] = (None, None), repeats: int = 15) -> list[Row]:
    n, t = field.n, torch.tensor(0.3)
    forward = milliseconds(lambda x: field(t, x), n, BATCHES[n], repeats)
    divergence = milliseconds(lambda x: field.value_and_divergence(t, x), n, BATCHES[n], repeats)
    jacobian = milliseconds(lambda x: field.value_and_jacobian(t, x), n, BATCHES[n], repeats)
    common = {"system": f"n={n}", "method": name, "n": repeats, "seed": SEED}
    return [
        Row(metric="forward, ms a sample", value=forward, **common),
        Row(metric="value + divergence, ms a sample", value=divergence, **common),
        Row(metric="value + divergence / forward", value=divergence / forward, goal=goals[0], **common),
        Row(metric="value + Jacobian, ms a sample", value=jacobian, **common),
        Row(metric="value + Jacobian / forward", value=jacobian / forward, goal=goals[1], **common)]


@torch.no_grad()
def measure_batches(n: int, repeats: int = 9) -> list[Row]:
    """Value + Jacobian at each batch size: what does not fit a cache costs more."""
    torch.manual_seed(SEED)
    field, t = MultiHop(n, 3, MultiHopConfig()), torch.tensor(0.3)
    return [Row(metric="value + Jacobian, ms a sample", system=f"n={n}", method=f"multi-hop, 2 hops, {batch} at once", n=repeats, seed=SEED,
                value=_per_sample(lambda x: field.value_and_jacobian(t, x), n, batch, repeats)) for batch in ALL_BATCHES]


@torch.no_grad()
def measure_compiled(n: int, repeats: int = 15) -> list[Row]:
    """What `--compiled` runs, at its batch size; and forward pass and divergence when both are compiled, at the same."""
    torch.manual_seed(SEED)
    field, t, batch = MultiHop(n, 3, MultiHopConfig()), torch.tensor(0.3), min(2 * rows_in_cache(MeanFree(n=n, d=3)), MOST_CACHED)
    used = CompiledField(field, rows=batch)
    jacobian = _per_sample(lambda x: used.value_and_jacobian(t.double(), x.double()), n, batch, repeats)
    divergence, forward = (_per_sample(torch.compile(f, dynamic=False), n, batch, repeats)
                           for f in (lambda x: field.value_and_divergence(t, x), lambda x: field(t, x)))
    common = {"system": f"n={n}", "method": f"multi-hop, 2 hops, compiled, {batch} at once", "n": repeats, "seed": SEED}
    return [Row(metric="value + Jacobian, ms a sample", value=jacobian, **common),
            Row(metric="forward, ms a sample", value=forward, **common),
            Row(metric="value + divergence / forward", value=divergence / forward, **common)]


def measure_brute_force(n: int, batch: int = 4) -> list[Row]:
    torch.manual_seed(SEED)
    field, t = EGNN(n, 3), torch.tensor(0.3)
    forward = _per_sample(torch.no_grad()(lambda x: field(t, x)), n, 32, 5)
    divergence = _per_sample(lambda x: field.value_and_divergence(t, x), n, batch, 3)
    common = {"system": f"n={n}", "method": "EGNN 4 x 64, brute force", "n": 3, "seed": SEED}
    return [Row(metric="forward, ms a sample", value=forward, **common),
            Row(metric="value + divergence / forward", value=divergence / forward, **common)]


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = [row for n in BATCHES for hops in (1, 2, 3) if hops == 2 or n == 13 for row in measure_hops(n, hops)] + measure_framed(22)
    publish(rows + measure_batches(13) + measure_batches(22) + measure_compiled(13) + measure_compiled(22) + measure_brute_force(13))


if __name__ == "__main__":
    main()
