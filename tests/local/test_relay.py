"""A source that is never idle: at its budget a shift hands over to the next one."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.local.running import Running, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SHIFT_SECONDS = 6.0
SHIFT_COUNT = 4


@pytest.fixture
def home() -> Iterator[Path]:
    # Not pytest's own temporary folder: it is private to root, and PostgreSQL does not run as root.
    folder = Path(tempfile.mkdtemp(prefix="mesh-relay-"))
    folder.chmod(0o711)
    yield folder / "home"
    shutil.rmtree(folder, ignore_errors=True)


def test_shifts_of_a_busy_source_follow_one_another(home: Path) -> None:
    with Running(home, "--rate", "20", more={"MESH_SHIFT_SECONDS": f"{SHIFT_SECONDS:g}"}).ready() as mesh:

        def relay() -> list[dict[str, Any]]:
            ended = [run for run in mesh.runs("sales.app") if run["endTime"]]
            return ended if len(ended) >= SHIFT_COUNT else []

        runs = sorted(until(relay, f"{SHIFT_COUNT} shifts", 240), key=lambda run: float(run["startTime"]))
        assert {run["status"] for run in runs} == {"SUCCESS"}
        gaps = [later["startTime"] - earlier["endTime"] for earlier, later in itertools.pairwise(runs)]
        print("seconds between shifts:", gaps)
        assert min(gaps) >= 0
        # Never without a shift: each one that was relieved had its successor queued before it ended.
        for earlier, later in itertools.pairwise(runs):
            assert later["creationTime"] <= earlier["endTime"]
        outcomes = json.loads(mesh.command("parity", "sales", "--json"))
        assert {one["outcome"] for one in outcomes} == {"equal"}
