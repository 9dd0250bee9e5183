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

from mesh_assets.lake.version import VersionLog
from mesh_assets.names import Layout, ProductName
from tests.local.running import Running
from tests.waiting import until

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
    with Running(home, "--rate", "20", more={"MESH_SHIFT_SECONDS": f"{SHIFT_SECONDS:g}"}) as mesh:
        mesh.wait_until_ready()

        def relay() -> list[dict[str, Any]]:
            ended = [run for run in mesh.runs("sales.app") if run["endTime"]]
            ended.sort(key=lambda run: float(run["startTime"]))
            return ended if sum(relieved(mesh, run) for run in ended[:-1]) >= SHIFT_COUNT - 1 else []

        runs = until(relay, f"{SHIFT_COUNT} shifts")
        assert {run["status"] for run in runs} == {"SUCCESS"}
        # Never without a shift: the next one has begun, and waits, before the one before it ends.
        for earlier, later in itertools.pairwise(runs):
            if relieved(mesh, earlier):
                assert later["startTime"] <= earlier["endTime"]
        # And never two: what one has written comes wholly before what the next one writes.
        versions = VersionLog(Layout(str(home / "lake")).versions(ProductName("sales", "orders")))
        rows = versions.between(1, versions.refresh())
        turns = [run_id for run_id, _ in itertools.groupby(row.run_id for row in rows)]
        assert turns[: len(runs)] == [run["runId"] for run in runs]
        assert len(set(turns)) == len(turns)
        pauses = [
            (later.created_at - earlier.created_at).total_seconds()
            for earlier, later in itertools.pairwise(rows)
            if later.run_id != earlier.run_id
        ]
        print("seconds without a version between shifts:", pauses)
        outcomes = json.loads(mesh.command("parity", "sales", "--json"))
        assert {one["outcome"] for one in outcomes} == {"equal"}


def relieved(mesh: Running, run: dict[str, Any]) -> bool:
    """Whether a shift ended since its time was over; one that a slow machine left idle has no successor."""
    return any("ended (budget)" in message for message in mesh.messages(run["runId"]))
