"""Native memory of a process: what it is told to keep, and what it gives back."""

from __future__ import annotations

import os
import subprocess
import sys


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


def test_pyarrow_does_not_bring_pandas_along() -> None:
    script = (
        "import sys, pyarrow\n"
        "from mesh_assets.shift.memory import be_frugal\n"
        "be_frugal()\n"
        "rows = pyarrow.table({'a': [1, None]})\n"
        "assert 'pandas' not in sys.modules\n"
        # Whoever asks for it has it.
        "print(rows.to_pandas().shape)"
    )
    assert run(script) == "(2, 1)"
