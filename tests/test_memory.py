"""Native memory of a process: what it is told to keep, and what it gives back."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc and /proc are Linux's")


def run(script: str, **variables: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout.strip()


def test_allocators_are_chosen_before_the_libraries_are_loaded() -> None:
    names = ["ARROW_DEFAULT_MEMORY_POOL", "_RJEM_MALLOC_CONF"]
    script = (
        "import os\n"
        f"for name in {names}: os.environ.pop(name, None)\n"
        "import sys, mesh_assets\n"
        "assert not {'pyarrow', 'polars'} & set(sys.modules)\n"
        "import pyarrow\n"
        "print(pyarrow.default_memory_pool().backend_name, os.environ['_RJEM_MALLOC_CONF'])"
    )
    pool, settings = run(script).split()
    assert pool == "jemalloc"
    assert "dirty_decay_ms:100" in settings


def test_what_the_user_chose_stands() -> None:
    script = "import mesh_assets, pyarrow; print(pyarrow.default_memory_pool().backend_name)"
    assert run(script, ARROW_DEFAULT_MEMORY_POOL="system") == "system"


@LINUX
def test_a_compiler_that_has_done_its_work_gives_its_pages_back() -> None:
    script = (
        "import numba, psutil\n"
        "from mesh_assets.memory import let_go\n"
        "def resident():\n"
        "    maps = psutil.Process().memory_maps()\n"
        "    return sum(one.rss for one in maps if 'libllvmlite' in one.path)\n"
        "first = numba.njit(lambda x: x + 1)\n"
        "assert first(1) == 2\n"
        "before = resident()\n"
        "given = let_go('libllvmlite')\n"
        "after = resident()\n"
        "assert first(2) == 3\n"
        "assert numba.njit(lambda x: x * 2.5)(4) == 10\n"
        "print(before, given, after)"
    )
    before, given, after = map(int, run(script).split())
    assert given > before // 2
    assert after < before // 4
