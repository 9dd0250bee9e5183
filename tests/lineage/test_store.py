"""The event table: few commits, nothing lost in silence, any number of writers."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from openlineage.client.event_v2 import RunEvent

from mesh_assets.errors import CommitConflict, StorageFull
from mesh_assets.lake.table import Table
from mesh_assets.lineage import store as store_module
from mesh_assets.lineage.event import LineageRun, lake_output
from mesh_assets.lineage.store import LineageStore, read


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "lake" / "lineage")


@pytest.fixture
def messages() -> list[str]:
    return []


def run(name: str = "app.capture") -> LineageRun:
    return LineageRun("mesh.sales", name, "CAPTURE")


def stored(uri: str) -> pl.DataFrame:
    return read(uri).sort("event_time").collect()


def fail_times(
    monkeypatch: pytest.MonkeyPatch, count: int, error: Callable[[], Exception], *, after: bool = False
) -> None:
    """Let the next ``count`` appends fail, before or after they were committed."""
    original = Table.append
    left = [count]

    def append(self: Table, *arguments: object, **options: object) -> int:
        if left[0] == 0:
            return original(self, *arguments, **options)  # type: ignore[arg-type]
        left[0] -= 1
        if after:
            original(self, *arguments, **options)  # type: ignore[arg-type]
        raise error()

    monkeypatch.setattr(Table, "append", append)


def test_events_come_back_as_they_were(uri: str, messages: list[str]) -> None:
    shift = run()
    with LineageStore(uri, log=messages.append) as store:
        store.emit(shift.start())
        store.emit(shift.running(outputs=[lake_output("/lake/x", version=4)]))
        store.emit(shift.complete())
    found = stored(uri)
    assert found["event_type"].to_list() == ["START", "RUNNING", "COMPLETE"]
    assert found["run_id"].unique().to_list() == [shift.run_id]
    assert found["job_namespace"][0] == "mesh.sales"
    assert found["outputs"][1].to_list() == [{"namespace": "file", "name": "/lake/x", "version": "4"}]
    assert json.loads(found["event"][1])["eventType"] == "RUNNING"
    assert messages == []


def test_a_shift_costs_few_commits(uri: str, messages: list[str]) -> None:
    shift = run()
    with LineageStore(uri, log=messages.append) as store:
        store.emit(shift.start())
        assert store.unsent_count == 0
        for _ in range(100):
            store.emit(shift.running())
        assert store.unsent_count == 100
        store.emit(shift.complete())
        assert store.unsent_count == 0
    assert len(stored(uri)) == 102
    assert Table.open(uri).version == 2


def test_the_newest_run_of_a_job_tells_whether_one_died(
    uri: str, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, scanned = ("mesh.sales", "app.capture"), []
    scan = Table.scan
    with LineageStore(uri, log=messages.append) as store:

        def end() -> str | None:
            scanned.clear()
            return store.newest_end(job)

        assert end() == ""
        store.emit(run("other.capture").start())
        assert end() == ""
        for _ in range(3):
            shift = run()
            store.emit(shift.start())
            assert end() is None
            store.emit(shift.running())
            store.flush()
            assert end() is None
            store.emit(shift.complete())
            assert end() == "COMPLETE"
        first, second = run(), run()
        store.emit(first.start())
        for _ in range(30):
            store.emit(run("other.fold").complete())
        monkeypatch.setattr(
            Table, "scan", lambda table, files: scanned.append(len(files)) or scan(table, files)
        )
        assert end() is None
        # One file that holds the job at all, and no later one can have a newer event.
        assert scanned == [1]
        # The moment of an end that another tells of a dead run follows its last event, whenever it is told.
        store.emit(second.start(), second.fail(OSError("full")))
        assert end() == "FAIL"
        assert scanned == [1]


def test_a_run_that_is_over_can_wait(uri: str, messages: list[str]) -> None:
    with LineageStore(uri, log=messages.append) as store:
        store.emit(run().start(), run().complete(), urgent=False)
        assert store.unsent_count == 2
        store.emit(run().start(), run().complete())
        assert store.unsent_count == 0
    assert Table.open(uri).version == 1


def test_what_waits_is_written_when_due(uri: str, messages: list[str]) -> None:
    store = LineageStore(uri, log=messages.append, flush_seconds=0.0)
    assert not store.flush_if_due()
    store.emit(run().running())
    assert store.unsent_count == 0
    patient = LineageStore(uri, log=messages.append, flush_seconds=3600.0)
    patient.emit(run().running())
    assert not patient.flush_if_due()
    assert patient.unsent_count == 1
    assert patient.flush()
    assert len(stored(uri)) == 2


def test_a_failing_flush_is_told_and_made_up_for(
    uri: str, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LineageStore(uri, log=messages.append)
    shift = run()
    fail_times(monkeypatch, 1, lambda: StorageFull("no space is left"))
    store.emit(shift.start())
    assert store.unsent_count == 1
    assert store.failure
    assert "1 events could not be written" in messages[0]
    store.emit(shift.complete())
    assert (store.unsent_count, store.failure) == (0, None)
    assert "caught up, 2 events" in messages[1]
    assert stored(uri)["event_type"].to_list() == ["START", "COMPLETE"]


def test_a_commit_that_failed_after_it_was_made_is_not_repeated(
    uri: str, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LineageStore(uri, log=messages.append)
    store.emit(run().start())
    fail_times(monkeypatch, 1, lambda: OSError("input/output error"), after=True)
    store.emit(run().start())
    assert store.unsent_count == 1
    store.emit(run().start())
    assert store.unsent_count == 0
    assert len(stored(uri)) == 3


def test_a_conflict_is_tried_again_at_once(
    uri: str, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_RETRY_SECONDS", 0.0)
    fail_times(monkeypatch, 3, lambda: CommitConflict("another writer came first"))
    with LineageStore(uri, log=messages.append) as store:
        store.emit(run().start())
        assert store.unsent_count == 0
    assert messages == []
    assert len(stored(uri)) == 1


def test_closing_tries_again_and_says_what_is_lost(
    uri: str, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_RETRY_SECONDS", 0.0)
    fail_times(monkeypatch, 1000, lambda: OSError("input/output error"))
    store = LineageStore(uri, log=messages.append)
    store.emit(run().start())
    assert not store.close()
    assert store.unsent_count == 1
    assert "gave up on 1 events: input/output error" in messages[-1]


def test_memory_is_bounded_and_what_goes_is_counted(
    uri: str, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BUFFER_LIMIT", 10)
    fail_times(monkeypatch, 1, lambda: OSError("input/output error"))
    store = LineageStore(uri, log=messages.append)
    shift = run()
    store.emit(shift.start())
    for _ in range(15):
        store.emit(shift.running())
    assert (store.unsent_count, store.dropped_count) == (10, 6)
    assert any("gave up on 1 events so far" in message for message in messages)
    store.emit(shift.complete())
    assert stored(uri)["event_type"].to_list() == ["START", *["RUNNING"] * 8, "COMPLETE"]


def test_what_was_written_is_told_once(
    uri: str, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before, in its order, and nothing of what was given up."""
    monkeypatch.setattr(store_module, "BUFFER_LIMIT", 3)
    seen: list[str] = []

    def written(events: Sequence[RunEvent]) -> None:
        held = {(row["run_id"], row["event_type"]) for row in stored(uri).iter_rows(named=True)}
        for event in events:
            assert event.eventType is not None
            assert (event.run.runId, event.eventType.value) in held
            seen.append(event.eventType.value)

    store = LineageStore(uri, log=messages.append, flush_seconds=3600.0, written=written)
    shift, other = run(), run("orders.fold")
    store.emit(shift.start())
    store.emit(shift.running())
    assert seen == ["START"]
    # Committed, although it raised: found out when it is tried again.
    fail_times(monkeypatch, 1, lambda: OSError("input/output error"), after=True)
    store.emit(other.start())
    assert (seen, store.unsent_count) == (["START"], 2)
    store.emit(shift.complete())
    assert (seen, store.unsent_count) == (["START", "RUNNING", "START", "COMPLETE"], 0)
    del seen[:]
    fail_times(monkeypatch, 1, lambda: StorageFull("no space is left"))
    for _ in range(5):
        store.emit(other.running())
    store.emit(other.fail(ValueError("no")))
    assert (seen, store.dropped_count) == ([], 3)
    assert store.close()
    assert seen == ["RUNNING", "RUNNING", "FAIL"]


def test_threads_share_a_store(uri: str, messages: list[str]) -> None:
    store = LineageStore(uri, log=messages.append, flush_seconds=0.05)

    def emit() -> None:
        shift = run()
        store.emit(shift.start())
        for _ in range(20):
            store.emit(shift.running())
        store.emit(shift.complete())

    threads = [threading.Thread(target=emit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.close()
    assert len(stored(uri)) == 4 * 22
    assert messages == []


_WRITER = """
import os, sys
from mesh_assets.lineage.event import LineageRun
from mesh_assets.lineage.store import LineageStore
store = LineageStore(sys.argv[1], log=lambda text: print(text, file=sys.stderr))
for _ in range(int(sys.argv[2])):
    run = LineageRun("mesh.sales", "app.capture", "CAPTURE")
    store.emit(run.start())
    store.emit(run.complete())
closed = store.close()
sys.stderr.flush()
os._exit(0 if closed else 1)
"""


def test_processes_append_at_the_same_time(uri: str) -> None:
    """From an empty lake on, so that they also race to make the table."""
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, uri, "15"], stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors
    found = stored(uri)
    assert len(found) == 3 * 15 * 2
    assert found["run_id"].n_unique() == 3 * 15


def test_reading_selects(uri: str, messages: list[str]) -> None:
    assert read(uri).collect().is_empty()
    noon = datetime(2026, 1, 31, 12, tzinfo=UTC)
    first, second = run("app.capture"), run("orders.fold")
    with LineageStore(uri, log=messages.append) as store:
        store.emit(first.start(noon))
        store.emit(first.complete(noon + timedelta(minutes=1)))
        store.emit(second.start(noon + timedelta(minutes=2)))
    assert len(read(uri).collect()) == 3
    assert len(read(uri, run_id=second.run_id).collect()) == 1
    assert len(read(uri, job=("mesh.sales", "app.capture")).collect()) == 2
    assert len(read(uri, since=noon + timedelta(minutes=1)).collect()) == 2
    assert len(read(uri, until=noon + timedelta(minutes=1)).collect()) == 1
    assert read(uri, run_id="nobody").collect().is_empty()
    assert read(uri, since=noon + timedelta(days=1)).collect().schema == read(uri).collect_schema()
