"""Replay buffers: the most recent configurations of a sampler that learns from the energy alone, with what was computed at them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

BISECTIONS = 60


class ReplayBuffer:
    """A ring of rows with named columns: once it is full, the oldest rows are overwritten.

    Columns are fixed by the first rows added, for example x [N, n, d] and the energy's gradient there. All draws are with replacement.

    Args:
        capacity: rows kept.

    Example:
        >>> buffer = ReplayBuffer(100)
        >>> buffer.add({"x": torch.zeros(10, 4, 2), "u": torch.zeros(10)})
        >>> buffer.draw(3, generator=torch.Generator().manual_seed(0))["x"].shape
        torch.Size([3, 4, 2])
    """

    def __init__(self, capacity: int) -> None:
        if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
            raise ValueError(f"a buffer's capacity must be a positive integer, got {capacity!r}")
        self.capacity = capacity
        self._columns: dict[str, Tensor] = {}
        self._added = 0

    def __len__(self) -> int:
        return min(self._added, self.capacity)

    def __getitem__(self, column: str) -> Tensor:
        """All rows of a column, in no particular order."""
        return self._columns[column][: len(self)]

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Append rows; of more than `capacity` at once, the last remain.

        Raises:
            ValueError: if the columns differ in length, or from those that the buffer holds.
        """
        counts = {name: len(value) for name, value in rows.items()}
        if len(set(counts.values())) != 1:
            raise ValueError(f"all columns of a buffer need the same number of rows, got {counts}")
        if not self._columns:
            self._columns = {name: value.new_zeros(self.capacity, *value.shape[1:]) for name, value in rows.items()}
        self._check(rows)
        count = next(iter(counts.values()))
        places = torch.arange(self._added, self._added + count)[-self.capacity :] % self.capacity
        for name, value in rows.items():
            self._columns[name][places] = value.detach()[-self.capacity :]
        self._added += count

    def draw(self, n: int, *, generator: torch.Generator) -> dict[str, Tensor]:
        """n rows, each equally likely.

        Raises:
            ValueError: if the buffer is empty.
        """
        self._check_filled()
        return self._rows(torch.randint(len(self), (n,), generator=generator))

    def draw_prioritised(self, n: int, by: str, *, generator: torch.Generator) -> dict[str, Tensor]:
        """n rows, each with probability proportional to exp of its entry in the column `by` (a log-weight, say).

        Raises:
            ValueError: if the buffer is empty, or no row has a positive finite probability.
        """
        self._check_filled()
        p = torch.softmax(self[by].double(), 0)
        if not torch.isfinite(p).all():
            raise ValueError(f"no row can be drawn: column {by!r} has a NaN or +inf, or only -inf")
        return self._rows(torch.multinomial(p, n, replacement=True, generator=generator))

    def state_dict(self) -> dict[str, Tensor]:
        """The rows held and the number ever added."""
        return {"added": torch.tensor(self._added), **{f"column.{name}": self[name] for name in self._columns}}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` returned.

        Raises:
            ValueError: if it holds another number of rows than a buffer of this capacity would.
        """
        added, columns = int(tensors["added"]), {name: value for name, value in tensors.items() if name != "added"}
        self._columns, self._added = {}, added
        for name, value in columns.items():
            if len(value) != len(self):
                raise ValueError(f"the stored buffer has {len(value)} rows, one of capacity {self.capacity} would have {len(self)}")
            whole = value.new_zeros(self.capacity, *value.shape[1:])
            whole[: len(value)] = value
            self._columns[name.removeprefix("column.")] = whole

    def _rows(self, index: Tensor) -> dict[str, Tensor]:
        return {name: value[index] for name, value in self._columns.items()}

    def _check(self, rows: Mapping[str, Tensor]) -> None:
        held = {name: (value.dtype, *value.shape[1:]) for name, value in self._columns.items()}
        given = {name: (value.dtype, *value.shape[1:]) for name, value in rows.items()}
        if held != given:
            raise ValueError(f"the buffer holds rows of {held}, got {given}; use another buffer for them")

    def _check_filled(self) -> None:
        if not len(self):
            raise ValueError("the buffer is empty; add rows before drawing from it")


def tempered(log_w: Tensor, effective: float) -> Tensor:
    """log p with p proportional to w^beta, at the largest beta <= 1 for which at least `effective` of the rows are effective.

    Args:
        log_w: [N], finite.
        effective: (sum p)^2 / (N sum p^2) to keep.
    """
    def kish(beta: float) -> float:
        p = torch.softmax(beta * log_w, 0)
        return (1 / p.square().sum() / len(p)).item()

    low, high = 0.0, 1.0
    if kish(high) < effective:
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if kish(middle) >= effective else (low, middle)
    else:
        low = 1.0
    return torch.log_softmax(low * log_w, 0)
