"""Memory of large tensors reused instead of given back to the system and fetched again."""

from __future__ import annotations

import ctypes
import sys

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def reuse_freed_memory() -> bool:
    """Whether this process now keeps what tensors free for the next ones; its memory peak stays.

    By default glibc maps every tensor beyond some megabytes anew, and the kernel clears each of its
    pages: forward passes of large batches on the CPU then take two to eight times as long (see
    analysis/benchmarks/allocator.py). The command line calls this first; programs and notebooks may
    do so too, before they start threads. Elsewhere than on glibc nothing happens.

    Returns:
        True where the allocator took the settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    # One arena: those of other threads cannot grow, and passes run in threads of their own.
    settings = [(_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1)]
    return all(mallopt(*setting) == 1 for setting in settings)
