"""Memory that is used again: large tensors come and go at every step, and fresh pages have to be cleared first.

By default glibc hands large blocks back to the kernel when they are freed, and the kernel clears their pages the next time. Blocks of the
main thread are kept below 1 GiB (32 MiB where glibc is too old for more), those of other threads below the 64 MiB of their heaps.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
SIZES = {M_MMAP_THRESHOLD: (2**30, 2**25), M_TRIM_THRESHOLD: (2**31 - 1,), M_TOP_PAD: (2**28,)}  # bytes; the first that is taken


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for its own next tensors; its size stays at its largest.

    Numbers do not change. Where the C library is not glibc nothing happens.

    Returns:
        Whether the allocator took the settings.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return False
    taken = [any(mallopt(name, size) == 1 for size in sizes) for name, sizes in SIZES.items()]
    return all(taken)
