"""A field whose Jacobian is compiled: the same numbers up to round-off, in less time once the compiler is done."""

from __future__ import annotations

import copy
import os
import shutil
import sys
import threading
from functools import cached_property

import torch
from torch import Tensor

from bgwork.protocols import Field


def check_compiler() -> None:
    """Raise ValueError if the C++ compiler is missing that torch would call."""
    wanted = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if not shutil.which(wanted):
        raise ValueError(f"nothing can be compiled without a C++ compiler ({wanted} not found); install it, name another in CXX, or do "
                         "without: leave out --compiled, or --set training.compiled=false")


class CompiledField:
    """Passes everything on to a field, with `value_and_jacobian` compiled for one batch size.

    Larger batches are split, and smaller ones filled up with copies of their first row, so that nothing is compiled for their size.
    Threads may share it.

    Args:
        field: what is compiled; its parameters stay its own.
        rows: batch size.
    Raises:
        ValueError: if there is no C++ compiler.
    """

    def __init__(self, field: Field, *, rows: int) -> None:
        check_compiler()
        self.field, self.rows, self.n, self.d = field, rows, field.n, field.d
        self._first, self._ready = threading.Lock(), False

    def __deepcopy__(self, memo: dict) -> CompiledField:
        return CompiledField(copy.deepcopy(self.field, memo), rows=self.rows)

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        return self.field(t, x)

    def value_and_divergence(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.field.value_and_divergence(t, x)

    @cached_property
    def _compiled(self):
        return torch.compile(self.field.value_and_jacobian, dynamic=False)

    def value_and_jacobian(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.as_tensor(t).expand(len(x))
        if len(x) <= self.rows:
            return self._filled_up(t, x)
        parts = [self._filled_up(*part) for part in zip(t.split(self.rows), x.split(self.rows), strict=True)]
        v, jacobian = zip(*parts, strict=True)
        return torch.cat(v), torch.cat(jacobian)

    def _filled_up(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        size = len(x)
        if size < self.rows:
            t, x = (torch.cat([y, y[:1].expand(self.rows - size, *y.shape[1:])]) for y in (t, x))
        v, jacobian = self._run(t, x)
        return v[:size], jacobian[:size]

    def _run(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        if self._ready:
            return self._compiled(t, x)
        with self._first:  # the threads of a pool start together, and each would trace and compile for itself
            made = self._compiled(t, x)
            self._ready = True
        return made
