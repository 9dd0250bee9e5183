"""What processes put aside: gone with them, or swept by the next one, however they ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mesh_assets.lake.scratch import Scratch
from tests.waiting import until

SECONDS = 120
FOLD = """
import polars as pl
from mesh_assets.lake.shape import Shape
from mesh_assets.lake.spill import spilled

def batches():
    yield pl.DataFrame({"k": [1, 2]})
    sys.stdin.read()

lows = pl.DataFrame({"k": [0]})
with spilled(Shape(lows.schema, ("k",)), batches(), lows) as spill:
    spill.part(0)
"""
LINEAGE = """
import polars as pl
from pathlib import Path
from mesh_assets.lineage.transform import transform_columns

held = Path(os.environ["TMPDIR"]) / f"transform-{os.getpid()}.py"
held.write_text(
    "import os, pathlib, sys, time\\n"
    "pathlib.Path(sys.argv[2]).with_name('begun').write_text(str(os.getpid()))\\n"
    f"while pathlib.Path({str(held)!r}).exists(): time.sleep(0.02)\\n"
    "def transform(inputs): return inputs['a']\\n"
)
import threading
ended = threading.Thread(target=lambda: (sys.stdin.read(), held.unlink()))
ended.start()
assert transform_columns(held, {"a": pl.Schema({"k": pl.Int64})}, "t") is not None
"""
USES = {"fold": FOLD, "lineage": LINEAGE}
MANY = """
from pathlib import Path
from mesh_assets.lake.scratch import Scratch

for _ in range(300):
    with Scratch("test", Path(os.environ["TMPDIR"])) as folder:
        (folder / "row").touch()
"""


@contextmanager
def process(place: Path, code: str) -> Iterator[subprocess.Popen[str]]:
    """A process whose temporary files lie in a folder, until it is let go on or killed."""
    with subprocess.Popen(
        [sys.executable, "-c", f"import os, sys\n{code}\nsys.stdout.flush()\nos._exit(0)"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(place)},
        cwd=Path(__file__).parents[2],
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def filled(place: Path) -> set[Path]:
    """The folders of processes that have put something aside."""
    return {path for path in place.glob("mesh-scratch-*") if path.is_dir() and any(path.iterdir())}


@pytest.mark.parametrize("use", USES)
def test_what_a_killed_process_left_is_swept_and_a_living_one_left_alone(tmp_path: Path, use: str) -> None:
    with process(tmp_path, USES[use]) as killed:
        until(lambda: len(filled(tmp_path)) == 1)
        (left,) = filled(tmp_path)
        with process(tmp_path, USES[use]) as living:
            until(lambda: len(filled(tmp_path)) == 2)
            (kept,) = filled(tmp_path) - {left}
            assert kept.stat().st_mode & 0o777 == 0o700
            killed.send_signal(signal.SIGKILL)
            killed.wait(SECONDS)
            assert filled(tmp_path) == {left, kept}
            with Scratch("next", tmp_path):
                assert filled(tmp_path) == {kept}
            _, said = living.communicate("", SECONDS)
            assert living.returncode == 0, said
    assert list(tmp_path.glob("mesh-scratch-*")) == []


def test_processes_that_begin_at_once_sweep_nothing_of_each_other(tmp_path: Path) -> None:
    with process(tmp_path, MANY) as one, process(tmp_path, MANY) as two, process(tmp_path, MANY) as three:
        for started in (one, two, three):
            _, said = started.communicate("", SECONDS)
            assert started.returncode == 0, said
    assert list(tmp_path.iterdir()) == []


def test_one_that_cannot_be_removed_is_swept_another_time(tmp_path: Path) -> None:
    (tmp_path / "mesh-scratch-test-left.lock").touch()
    (tmp_path / "mesh-scratch-test-left").write_text("no folder, so that rmtree fails")
    with Scratch("next", tmp_path):
        assert (tmp_path / "mesh-scratch-test-left.lock").exists()
        (tmp_path / "mesh-scratch-test-left").unlink()
    with Scratch("next", tmp_path) as folder:
        assert set(tmp_path.iterdir()) == {folder, folder.with_suffix(".lock")}
