"""Widths of kernels that were fitted to configurations, kept on disk, so that they are fitted once and not in every command.

Such a fit is a function of its inputs alone: network, first guesses, configurations, seed, the code, the versions of what it rests on, and
the machine's arithmetic. All are hashed into the name of the file, so that nothing else is ever taken for it. What is fitted to an energy
is not kept: an energy cannot be hashed, and its evaluations are counted.
"""

from __future__ import annotations

import hashlib
import platform
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bgwork import store
from bgwork.provenance import code, tensor_fingerprint, versions

KIND = "fitted widths"


@dataclass(frozen=True, kw_only=True)
class FittedWidths:
    """Where the widths of one generator's kernels are kept.

    Attributes:
        folder: of the files, one a fit; made when there is something to keep.
        generator: fingerprint of the generator's file, whose header decides what its weights mean.
    """

    folder: Path
    generator: str

    def of(self, inputs: tuple[Any, ...], fit: Callable[[], Tensor]) -> Tensor:
        """The widths that were fitted to these inputs before, bit for bit; else they are fitted, and kept.

        Args:
            inputs: everything that the fit depends on; see `digest`.
            fit: () -> float64 tensor.
        """
        key = digest((self.generator, *inputs, code(), versions(), platform.machine(), torch.backends.cpu.get_cpu_capability(),
                      torch.get_num_threads()))
        path = self.folder / f"{key}.safetensors"
        found = _read(path, key) if path.exists() else None
        if found is None:
            found = fit()
            _write(path, key, found)
        return found


def digest(part: Any) -> str:
    """SHA-256 of what is nested of tensors, networks, records, tuples and plain values; other objects never have the same one twice."""
    return hashlib.sha256(_bytes(part)).hexdigest()


def _bytes(part: Any) -> bytes:
    if isinstance(part, Tensor):
        inside = [str(part.dtype), tuple(part.shape), part.detach().contiguous().numpy().tobytes()]
    elif isinstance(part, nn.Module):
        inside = [*part.named_parameters(), *part.named_buffers()]
    elif is_dataclass(part):
        inside = [(field.name, getattr(part, field.name)) for field in fields(part)]
    elif isinstance(part, tuple | list):
        inside = list(part)
    else:
        return part if isinstance(part, bytes) else repr(part).encode()
    return type(part).__qualname__.encode() + b"".join(hashlib.sha256(_bytes(each)).digest() for each in inside)


def _read(path: Path, key: str) -> Tensor | None:
    """What is kept there, or None, with a warning, if it is not what was written under that key."""
    try:
        tensors, meta = store.load_checkpoint(path)
        widths = tensors.get("widths")
        if widths is not None and meta == {"kind": KIND, "key": key, "fingerprint": tensor_fingerprint(widths)}:
            return widths
        reason = "it holds something else"
    except store.FileError as error:
        reason = str(error)
    warnings.warn(f"kernels are fitted again, since {path} cannot be used ({reason}); it is replaced", stacklevel=4)
    return None


def _write(path: Path, key: str, widths: Tensor) -> None:
    try:
        store.save_checkpoint(path, {"widths": widths}, {"kind": KIND, "key": key, "fingerprint": tensor_fingerprint(widths)})
    except store.FileError as error:
        warnings.warn(f"fitted kernels are not kept, and will be fitted again next time: {error}; or set BGWORK_CACHE", stacklevel=4)
