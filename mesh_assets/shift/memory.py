"""Gives memory back: a shift lives long, and the peak of a batch or a fold must not stay with it.

Four allocators share a process: Arrow's, one each in polars and delta-rs, and the C library's. By
default each keeps what was freed, per thread, in case it is needed again.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder

_VARIABLES = {
    # Arrow's own choice reserves memory per thread and returns it late; this one can be told to.
    "ARROW_DEFAULT_MEMORY_POOL": "jemalloc",
    # Read by polars and by delta-rs: freed pages go back within 0.1 s.
    "_RJEM_MALLOC_CONF": "dirty_decay_ms:100,muzzy_decay_ms:0",
}

# Parameters of glibc's mallopt and what they are set to: large blocks are mapped by themselves and
# unmapped when freed (by default the limit grows with every block), and few arenas serve all threads.
_MALLOPT = {-3: 1 << 20, -1: 8 << 20, -8: 2}


def choose_allocators() -> None:
    """Have native libraries that are imported later return memory; what is set already stands."""
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)


def be_frugal() -> None:
    """Have Arrow and the C library return freed memory to the system at once, where they can.

    For the whole process; to be called before the large allocations.
    """
    import pyarrow as pa

    with _absent("pandas"):
        # Given any list, pyarrow looks for pandas, once; where it is installed that costs 30 MB for nothing.
        pa.array([None])
    if (mallopt := _glibc("mallopt")) is not None:
        for parameter, value in _MALLOPT.items():
            mallopt(parameter, value)
    try:
        pool = pa.jemalloc_memory_pool()
    except NotImplementedError:
        # Not built for this platform: Arrow's default is kept.
        return
    pa.jemalloc_set_decay_ms(0)
    pa.set_memory_pool(pool)


class _Absent(MetaPathFinder):
    """Denies a module to one thread."""

    def __init__(self, name: str) -> None:
        self._name, self._thread = name, threading.get_ident()

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == self._name and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"{name} is not wanted here", name=name)


@contextmanager
def _absent(name: str) -> Iterator[None]:
    """Have this thread's imports find that a module, unless imported already, is not installed."""
    finder = _Absent(name)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def release() -> None:
    """Return what the allocators hold without need: Arrow's, and the C library's (glibc only)."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    if (trim := _glibc("malloc_trim")) is not None:
        trim(0)


def _glibc(name: str) -> Callable[..., int] | None:
    """A function that only GNU's C library has."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
