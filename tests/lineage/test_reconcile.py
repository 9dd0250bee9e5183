"""Runs that died are closed, once, with what they committed."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from mesh_assets.lake.table import Table
from mesh_assets.lineage.dataset import Dataset
from mesh_assets.lineage.event import LineageRun
from mesh_assets.lineage.reconcile import (
    SILENCE,
    OpenRun,
    close_dead,
    open_runs,
    recover,
    recover_untold,
    uri_of,
)
from mesh_assets.lineage.recorder import Recorder, Recording
from mesh_assets.lineage.store import read
from mesh_assets.names import lake_dataset
from tests.lineage.specification import problems

SCHEMA = pa.schema([("a", pa.int64())])

_DYING = """
import os, signal, sys
import pyarrow as pa
from mesh_assets.lake.table import Table
from mesh_assets.lineage.dataset import Dataset
from mesh_assets.lineage.event import LineageRun, Parent
from mesh_assets.lineage.recorder import Recorder, Recording
from mesh_assets.names import lake_dataset
uri, data = sys.argv[1:3]
recorder = Recorder(uri, log=print)
run = LineageRun("mesh.shop", "app.capture", "CAPTURE", streaming=True, orchestrator="d-1")
recording = Recording(recorder, run, [Dataset(lake_dataset(data))])
recording.start(outputs=[lake_dataset(data)])
with recording.making():
    table = Table.create(data, pa.schema([("a", pa.int64())]))
    table.append(pa.table({"a": [1, 2]}), transactions={})
recording.progress()
recorder.flush()
with recording.making():
    table.append(pa.table({"a": [3]}), transactions={})
with recorder.run("shop", "orders", "fold", datasets=[Dataset(lake_dataset(data))], parent=recording.parent):
    table.append(pa.table({"a": [4]}), transactions={})
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "lineage")


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def die(uri: str, data: str) -> None:
    ended = subprocess.run([sys.executable, "-c", _DYING, uri, data], check=False, timeout=120)
    assert ended.returncode == -9


def test_a_killed_run_is_closed_with_what_it_committed(uri: str, data: str) -> None:
    die(uri, data)
    [run] = open_runs(uri)
    assert (run.kind, run.orchestrator, run.present) == ("CAPTURE", "d-1", False)
    with Recorder(uri, log=print) as recorder:
        [closed] = close_dead(uri, recorder)
        assert closed.run_id == run.run_id
        [fold] = recover_untold(uri, recorder, [data])
        assert close_dead(uri, recorder) == recover_untold(uri, recorder, [data]) == []
    assert (fold.namespace, fold.job) == ("mesh.shop", "orders.fold")
    events = [json.loads(text) for text in read(uri).collect().sort("event_time")["event"]]
    ends = {event["job"]["name"]: event for event in events if event["eventType"] == "ABORT"}
    capture = ends["app.capture"]["outputs"][0]
    assert capture["facets"]["mesh_deltaVersions"]["versions"] == [[2, 2]]
    assert capture["outputFacets"]["outputStatistics"]["rowCount"] == 1
    assert ends["orders.fold"]["outputs"][0]["facets"]["mesh_deltaVersions"]["versions"] == [[3, 3]]
    assert (
        "ended before the run told its end" in ends["app.capture"]["run"]["facets"]["errorMessage"]["message"]
    )
    for event in events:
        assert problems(event) == []


def test_what_runs_below_a_run_committed_is_told_whoever_closed_that(uri: str, data: str) -> None:
    die(uri, data)
    job = ("mesh.shop", "app.capture")
    with Recorder(uri, log=print) as recorder:
        # As the enterprise catalog does.
        assert [run.job for run in close_dead(uri, recorder)] == ["app.capture"]
        [fold] = recover(recorder, job, [data])
        assert fold.job == "orders.fold"
        assert (fold.parent.namespace, fold.parent.name) == job
        assert recover(recorder, job, [data]) == []


def test_two_who_close_the_same_run_say_the_same(uri: str, data: str) -> None:
    die(uri, data)
    said = []
    for _ in range(2):

        class Listening:
            def emit(self, *events: object, urgent: bool | None = None) -> None:
                said.append(events)

            def flush(self) -> bool:
                return True

        close_dead(uri, Listening())
    assert said[0] == said[1]


def test_a_run_that_lives_is_left_alone(uri: str) -> None:
    with Recorder(uri, log=print) as recorder:
        recording = Recording(recorder, LineageRun("mesh.shop", "app.capture", "CAPTURE"), [])
        recording.start()
        assert close_dead(uri, recorder) == []
        [run] = open_runs(uri, job=("mesh.shop", "app.capture"))
        assert run.present
        assert open_runs(uri, job=("mesh.shop", "other.capture")) == []
        recording.end()
    assert open_runs(uri) == []


def test_the_orchestrator_knows_best(uri: str) -> None:
    with Recorder(uri, log=print) as recorder:
        run = LineageRun("mesh.shop", "app.capture", "CAPTURE", orchestrator="d-2")
        Recording(recorder, run, []).start()
        asked: list[str] = []

        def alive(found: OpenRun) -> bool:
            asked.append(found.orchestrator)
            return False

        assert len(close_dead(uri, recorder, alive=alive)) == 1
    assert asked == ["d-2"]


def test_a_run_of_another_host_counts_as_dead_after_a_day(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mesh_assets.lineage import facet

    with Recorder(uri, log=print) as recorder:
        Recording(recorder, LineageRun("mesh.shop", "app.capture", "CAPTURE"), []).start()
        here = facet.this_process()
        here.host = "elsewhere"
        monkeypatch.setattr(facet, "this_process", lambda orchestrator="": here)
        assert open_runs(uri)[0].present is None
        assert close_dead(uri, recorder) == []
        later = datetime.now(UTC) + SILENCE + timedelta(minutes=1)
        assert len(close_dead(uri, recorder, now=later)) == 1


def test_an_untold_run_below_a_live_one_is_left_alone(uri: str, data: str) -> None:
    with Recorder(uri, log=print) as recorder:
        above = Recording(recorder, LineageRun("mesh.shop", "app.capture", "CAPTURE"), [])
        above.start()
        with recorder.run(
            "shop", "orders", "fold", datasets=[Dataset(lake_dataset(data))], parent=above.parent
        ):
            Table.create(data, SCHEMA)
            assert recover_untold(uri, recorder, [data]) == []


def test_names_lead_back_to_tables(tmp_path: Path) -> None:
    assert uri_of(lake_dataset(str(tmp_path))) == str(tmp_path)
    assert uri_of(lake_dataset("s3://bucket/lake/x")) == "s3://bucket/lake/x"
