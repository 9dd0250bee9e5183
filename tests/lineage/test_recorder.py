"""Recordings: what a run commits becomes its events, and nothing else does."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mesh_assets.errors import CommitConflict
from mesh_assets.lake.origin import Origin, made_by
from mesh_assets.lake.signature import signatures
from mesh_assets.lake.table import Table
from mesh_assets.lineage.dataset import Dataset
from mesh_assets.lineage.event import LineageRun
from mesh_assets.lineage.facet import product_version, spans_of
from mesh_assets.lineage.recorder import Recorder, Recording
from mesh_assets.lineage.store import read
from mesh_assets.names import lake_dataset

SCHEMA = pa.schema([("a", pa.int64())])
ROW = pa.table({"a": [1]})


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "lineage")


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def told(uri: str) -> list[dict[str, Any]]:
    return [json.loads(text) for text in read(uri).collect().sort("event_time")["event"]]


def test_commits_carry_their_run_and_are_listed_exactly(uri: str, data: str) -> None:
    other = Origin("other", "mesh.shop/other")
    with Recorder(uri, log=print) as recorder:
        recording = Recording(
            recorder, LineageRun("mesh.shop", "x", "CAPTURE"), [Dataset(lake_dataset(data))]
        )
        recording.start()
        with recording.making():
            table = Table.create(data, SCHEMA)
            table.append(ROW, transactions={})
            with made_by(other):
                table.append(ROW, transactions={})
            table.append(ROW, transactions={})
            table.add_columns([pa.field("b", pa.string())])
        recording.progress()
        table.append(pa.table({"a": [1, 2]}), transactions={})
        with recording.making():
            table.append(pa.table({"a": [1, 2]}), transactions={})
        recording.end()
    made = [one.run_id for one in signatures(data)]
    mine = recording.run.run_id
    assert made == [mine, mine, "other", mine, mine, "", mine]
    _, running, complete = told(uri)
    [output] = running["outputs"]
    assert output["facets"]["mesh_deltaVersions"]["versions"] == [[0, 1], [3, 4]]
    assert output["facets"]["version"]["datasetVersion"] == "4"
    assert output["facets"]["lifecycleStateChange"]["lifecycleStateChange"] == "CREATE"
    assert output["outputFacets"]["outputStatistics"]["rowCount"] == 2
    assert [field["name"] for field in output["facets"]["schema"]["fields"]] == ["a", "b"]
    [output] = complete["outputs"]
    assert output["facets"]["mesh_deltaVersions"]["versions"] == [[0, 1], [3, 4], [6, 6]]
    assert output["outputFacets"]["outputStatistics"]["rowCount"] == 4


def test_what_waits_keeps_its_moment_and_its_place(uri: str, data: str) -> None:
    with Recorder(uri, log=print) as recorder:
        recording = Recording(
            recorder, LineageRun("mesh.shop", "x", "CAPTURE"), [Dataset(lake_dataset(data))]
        )
        recording.start()
        moments = []
        with recording.making():
            table = Table.create(data, SCHEMA)
            for version in (1, 2):
                table.append(ROW, transactions={})
                recording.gather()
                recording.note(lake_dataset(data), {"mesh_product": product_version("shop.x", version)})
                recording.progress()
                moments.append(datetime.now(UTC))
        assert len(told(uri)) == 1
        assert recorder.flush()
        assert len(told(uri)) == 3
        # Another run's end takes along what waits.
        with recording.making():
            table.append(ROW, transactions={})
        recording.progress()
        recorder.emit(LineageRun("mesh.shop", "y", "CAPTURE").complete())
        assert [one["eventType"] for one in told(uri)] == ["START", *["RUNNING"] * 3, "COMPLETE"]
        recording.end()
    start, first, second, *_ = told(uri)
    times = [datetime.fromisoformat(one["eventTime"]) for one in (start, first, second)]
    assert times[0] < times[1] <= moments[0] <= times[2] <= moments[1]
    facets = [one["outputs"][0]["facets"] for one in (first, second)]
    assert [one["mesh_product"]["version"] for one in facets] == [1, 2]
    assert [one["mesh_deltaVersions"]["versions"] for one in facets] == [[[0, 1]], [[2, 2]]]
    assert ["schema" in one for one in facets] == [True, False]


def test_a_thread_works_in_its_own_name(data: str) -> None:
    first, second = Origin("first", "mesh.shop/a"), Origin("second", "mesh.shop/b")
    Table.create(data, SCHEMA)

    def append() -> None:
        with made_by(second):
            Table.open(data).append(ROW, transactions={})

    with made_by(first):
        thread = threading.Thread(target=append)
        thread.start()
        thread.join()
        Table.open(data).append(ROW, transactions={})
    assert [one.version for one in first.take()] == [2]
    assert [one.version for one in second.take()] == [1]
    assert first.take() == []


def test_a_run_that_did_nothing_is_not_told(uri: str, data: str) -> None:
    with Recorder(uri, log=print) as recorder:
        with recorder.run("shop", "orders", "fold", datasets=[Dataset(lake_dataset(data))]):
            pass
        with (
            pytest.raises(CommitConflict),
            recorder.run("shop", "orders", "fold", datasets=[Dataset(lake_dataset(data))]),
        ):
            raise CommitConflict("another fold came first")
        with recorder.run("shop", "orders", "checks", datasets=[], always=True):
            pass
    assert [event["eventType"] for event in told(uri)] == ["START", "COMPLETE"]


def test_a_run_that_fails_says_why(uri: str, data: str) -> None:
    def failing(recorder: Recorder) -> None:
        with recorder.run("shop", "orders", "fold", datasets=[Dataset(lake_dataset(data))]) as recording:
            recording.start()
            raise ValueError("no")

    with Recorder(uri, log=print) as recorder, pytest.raises(ValueError, match="no"):
        failing(recorder)
    start, fail = told(uri)
    assert (start["eventType"], fail["eventType"]) == ("START", "FAIL")
    assert fail["run"]["facets"]["errorMessage"]["message"] == "no"
    assert start["run"]["facets"]["mesh_process"]["pid"] > 0


def test_spans() -> None:
    assert spans_of([5, 1, 2, 3, 7, 8, 2]) == [[1, 3], [5, 5], [7, 8]]
