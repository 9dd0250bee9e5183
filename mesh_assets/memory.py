"""Gives memory back: a shift lives long, and a fold's peak must not stay with it."""

from __future__ import annotations

import ctypes
import sys

import pyarrow as pa


def be_frugal() -> None:
    """Have Arrow return freed memory to the system at once, where its allocator can.

    For the whole process; to be called before the large allocations.
    """
    try:
        pool = pa.jemalloc_memory_pool()
    except NotImplementedError:
        # Not built for this platform: Arrow's default is kept.
        return
    pa.jemalloc_set_decay_ms(0)
    pa.set_memory_pool(pool)


def release() -> None:
    """Return what the allocators hold without need: Arrow's, and the C library's (glibc only)."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
