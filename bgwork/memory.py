"""Memory that is used again: large tensors come and go at every step, and clearing fresh pages costs more than much of the arithmetic.

By default glibc hands every large block back to the kernel when it is freed, and the kernel clears the pages again the next time.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
SETTINGS = {M_MMAP_THRESHOLD: 2**30, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**28}  # bytes


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for its own next tensors; its size stays at its largest.

    Numbers do not change. Where the C library is not glibc nothing happens.

    Returns:
        Whether the allocator took the settings.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([mallopt(name, size) == 1 for name, size in SETTINGS.items()])  # noqa: C419 (every one is to be set)
