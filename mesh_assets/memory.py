"""Gives memory back: a shift lives long, and the peak of a batch or a fold must not stay with it.

Four allocators share a process: Arrow's, one each in polars and delta-rs, and the C library's. By
default each keeps what was freed, per thread, in case it is needed again.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

_VARIABLES = {
    # Arrow's own choice reserves memory per thread and returns it late; this one can be told to.
    "ARROW_DEFAULT_MEMORY_POOL": "jemalloc",
    # Read by polars and by delta-rs: freed pages go back within 0.1 s.
    "_RJEM_MALLOC_CONF": "dirty_decay_ms:100,muzzy_decay_ms:0",
}

# Parameters of glibc's mallopt and what they are set to: large blocks are mapped by themselves and
# unmapped when freed (by default the limit grows with every block), and few arenas serve all threads.
_MALLOPT = {-3: 1 << 20, -1: 8 << 20, -8: 2}


_MADV_DONTNEED = 4
_MAPPING = re.compile(
    r"^(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<rights>\S{4}) \S+ \S+ \S+ *(?P<path>.*)\n"
    r"(?P<numbers>(?:[A-Z]\w*:.*\n)+)",
    re.MULTILINE,
)
_KILOBYTES = re.compile(r"^(\w+): +(\d+) kB$", re.MULTILINE)


def choose_allocators() -> None:
    """Have native libraries that are imported later return memory; what is set already stands."""
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)


def be_frugal() -> None:
    """Have Arrow and the C library return freed memory to the system at once, where they can.

    For the whole process; to be called before the large allocations.
    """
    import pyarrow as pa

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


def release() -> None:
    """Return what the allocators hold without need: Arrow's, and the C library's (glibc only)."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    if (trim := _glibc("malloc_trim")) is not None:
        trim(0)


def let_go(library: str) -> int:
    """Give back the pages of a native library whose work is done, as of a compiler; returns how many bytes.

    Only pages that are still as they are in the library's file: one that is needed again is read from it.
    """
    madvise = _glibc("madvise")
    if madvise is None:
        return 0
    count = 0
    for start, length, resident in _unwritten(library):
        if madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_DONTNEED) == 0:
            count += resident
    return count


def _unwritten(library: str) -> Iterator[tuple[int, int, int]]:
    """Start, length and resident bytes of a library's mappings in which no page was ever written."""
    try:
        text = Path("/proc/self/smaps").read_text()
    except OSError:
        return
    for entry in _MAPPING.finditer(text):
        numbers = dict(_KILOBYTES.findall(entry["numbers"]))
        if library in entry["path"] and "w" not in entry["rights"] and numbers.get("Anonymous") == "0":
            start, end = int(entry["start"], 16), int(entry["end"], 16)
            yield start, end - start, int(numbers.get("Rss", 0)) << 10


def _glibc(name: str) -> Callable[..., int] | None:
    """A function that only GNU's C library has."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
