"""The lake's table of OpenLineage events: appended durably, in few commits, by any number of processes.

Lineage must not stop the work that it describes: an append that fails is told to the caller's
log, its events stay in memory, and it is tried again with the next flush. What has not been
written yet can be asked for at any time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, NamedTuple, Self

import polars as pl
import pyarrow as pa
from deltalake.exceptions import DeltaError
from openlineage.client.event_v2 import RunEvent, RunState

from mesh_assets.errors import CommitConflict, MeshError, TableMissing
from mesh_assets.lake.file import FileRef
from mesh_assets.lake.table import Table
from mesh_assets.lineage.event import datasets, to_json

_DATASET = pa.struct(
    [pa.field("namespace", pa.string()), pa.field("name", pa.string()), pa.field("version", pa.string())]
)
_FIELDS: list[pa.Field[Any]] = [
    pa.field("event_time", pa.timestamp("us", tz="UTC")),
    pa.field("event_type", pa.string()),
    pa.field("run_id", pa.string()),
    pa.field("job_namespace", pa.string()),
    pa.field("job_name", pa.string()),
    pa.field("inputs", pa.list_(_DATASET)),
    pa.field("outputs", pa.list_(_DATASET)),
    pa.field("event", pa.string()),
]
SCHEMA = pa.schema(_FIELDS)
"""One row per event; ``event`` is the whole of it as JSON, the other columns are for finding it."""

FLUSH_SECONDS = 20.0
"""A commit costs 8 ms of CPU, threads included, as much as the events of four versions."""
BUFFER_LIMIT = 20_000
"""Events kept while the table cannot be written; beyond it the oldest RUNNING events go, counted."""

_ATTEMPTS = 5
_FINAL_ATTEMPTS = 3
_RETRY_SECONDS = 0.2
OVER = ("COMPLETE", "ABORT", "FAIL")
"""Types of the event that is a run's last."""
_UNKNOWN = datetime.max.replace(tzinfo=UTC)
STORAGE_ERRORS = (MeshError, DeltaError, OSError, pa.ArrowException)
"""What writing or reading the table may fail with; the work that lineage describes goes on."""


class _Waiting(NamedTuple):
    """An event that is in memory only; the event itself if somebody is to be told once it is not."""

    row: dict[str, Any]
    event: RunEvent | None


class LineageStore:
    """Appends events to the table at ``uri``, which is made when first needed.

    The first event of a run and its terminal event are written at once, the ones between at most
    every ``flush_seconds``. Safe to use from several threads. Delivery is at least once: after a
    crash inside a commit an event may be there twice, equal in run, type and time.

    Args:
        uri: where the table lies (:meth:`mesh_assets.names.Layout.lineage`).
        log: told of a failing flush, of its recovery, and of what was given up.
        flush_seconds: how long an event may wait in memory.
        written: given the events that were just written, in their order; quick, and raises nothing.
    """

    def __init__(
        self,
        uri: str,
        *,
        log: Callable[[str], None],
        flush_seconds: float = FLUSH_SECONDS,
        written: Callable[[Sequence[RunEvent]], None] | None = None,
    ) -> None:
        self.uri = uri
        self._log = log
        self._flush_seconds = flush_seconds
        self._written = written
        self._lock = threading.RLock()
        self._table: Table | None = None
        self._buffer: list[_Waiting] = []
        self._uncertain: tuple[list[FileRef], int] | None = None
        self._flushed = time.monotonic()
        self._failure: str | None = None
        self._dropped_count = 0

    @property
    def unsent_count(self) -> int:
        """Events that are in memory only."""
        return len(self._buffer)

    @property
    def dropped_count(self) -> int:
        """Events given up because the table could not be written for too long."""
        return self._dropped_count

    @property
    def failure(self) -> str | None:
        """Why the last flush failed; ``None`` if it succeeded."""
        return self._failure

    def emit(self, *events: RunEvent, urgent: bool | None = None) -> None:
        """Take events over; write them now or soon. Storage errors are logged, not raised.

        Args:
            events: in the order in which they happened.
            urgent: write now (in one commit with all that waits) or within ``flush_seconds``;
                left out, everything but RUNNING is urgent. For runs that are over when they are
                told, say False.
        """
        if urgent is None:
            urgent = any(event.eventType is not RunState.RUNNING for event in events)
        kept = self._written is not None
        waiting = [_Waiting(event_row(event), event if kept else None) for event in events]
        with self._lock:
            for one in waiting:
                self._buffer.append(one)
                self._bound()
            if urgent:
                self.flush()
            else:
                self.flush_if_due()

    @property
    def due(self) -> bool:
        """Whether what waits has waited long enough."""
        return time.monotonic() - self._flushed >= self._flush_seconds

    def flush_if_due(self) -> bool:
        """Write what waits, if it has waited long enough; call it where nothing else happens."""
        return bool(self._buffer) and self.due and self.flush()

    def flush(self) -> bool:
        """Write what waits in one commit; whether nothing waits any more."""
        with self._lock:
            if not self._buffer:
                return True
            count = len(self._buffer)
            self._flushed = time.monotonic()
            try:
                self._append(count)
            except STORAGE_ERRORS as error:
                self._table = None
                self._failure = str(error)
                self._log(
                    f"lineage: {len(self._buffer)} events could not be written to {self.uri} "
                    f"and will be tried again: {error}"
                )
                return False
            if self._failure is not None:
                self._failure = None
                self._log(f"lineage: caught up, {count} events written to {self.uri}")
            return True

    def newest_end(self, job: tuple[str, str]) -> str | None:
        """How the newest run of a job that the table knows has ended.

        Looks at the newest files only, as far as it must.

        Returns:
            The type of the run's last event; None while it has told no end, empty if there is no run.

        Raises:
            MeshError, DeltaError, OSError: if the table cannot be read.
        """
        with self._lock:
            table = self._open()
            table.refresh()
            files = sorted(_of_job(table.files(), job), key=_newest, reverse=True)
        rows: list[tuple[datetime, str, str]] = []
        begin, latest = 0, datetime.min.replace(tzinfo=UTC)
        while begin < len(files) and latest <= _newest(files[begin]):
            # Mostly the first one tells.
            end = 1 + 4 * begin
            wanted = table.scan(files[begin:end]).filter(*_is_job(job))
            rows += wanted.select("event_time", "run_id", "event_type").collect().rows()
            begin, latest = end, max((at for at, _, _ in rows), default=latest)
        newest = {run_id for at, run_id, _ in rows if at == latest}
        ends = {run_id: kind for _, run_id, kind in rows if run_id in newest and kind in OVER}
        if len(ends) < len(newest):
            return None
        return min(ends.values(), default="")

    def close(self) -> bool:
        """Write what waits, trying a few times; whether everything was written."""
        for attempt in range(_FINAL_ATTEMPTS):
            if attempt:
                time.sleep(_RETRY_SECONDS * 2**attempt)
            if self.flush():
                return True
        self._log(f"lineage: gave up on {self.unsent_count} events: {self._failure}")
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _append(self, count: int) -> None:
        """Commit the first ``count`` events and take them out of the buffer."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._append_once(count)
            except CommitConflict:
                self._table = None
                if attempt == _ATTEMPTS:
                    raise
                # Another process rewrote the table at the same time: let it finish.
                time.sleep(_RETRY_SECONDS * attempt)
            else:
                return

    def _append_once(self, count: int) -> None:
        table = self._open()
        if self._uncertain is not None:
            # The attempt before may have been committed although it raised.
            files, held = self._uncertain
            self._uncertain = None
            landed = {file.path for file in table.files()}
            if all(file.path in landed for file in files):
                self._take(held)
                count -= held
        if count <= 0:
            return
        rows = [one.row for one in self._buffer[:count]]
        files = table.write(pa.Table.from_pylist(rows, schema=SCHEMA))
        self._uncertain = files, count
        table.append(files, transactions={})
        self._uncertain = None
        self._take(count)

    def _take(self, count: int) -> None:
        """Take the first ``count`` events, which are in the table now, out of the buffer."""
        written = [one.event for one in self._buffer[:count] if one.event is not None]
        del self._buffer[:count]
        if self._written is not None:
            self._written(written)

    def _open(self) -> Table:
        if self._table is None:
            self._table = open_or_create(self.uri)
        return self._table

    def _bound(self) -> None:
        if len(self._buffer) <= BUFFER_LIMIT:
            return
        running = RunState.RUNNING.value
        oldest = next(
            (index for index, one in enumerate(self._buffer) if one.row["event_type"] == running), 0
        )
        del self._buffer[oldest]
        self._uncertain = None
        self._dropped_count += 1
        if self._dropped_count % 1000 == 1:
            self._log(f"lineage: gave up on {self._dropped_count} events so far: {self._failure}")


def open_or_create(uri: str) -> Table:
    """The event table; several processes may come at once to an empty lake."""
    try:
        return Table.open(uri)
    except TableMissing:
        pass
    try:
        return Table.create(
            uri,
            SCHEMA,
            append_only=True,
            statistics=("event_time", "run_id", "job_namespace", "job_name"),
            name="lineage",
            description="OpenLineage run events of the mesh, one row per event.",
        )
    except (MeshError, DeltaError, OSError):
        # Somebody else made it in between; if not, opening says what is wrong.
        return Table.open(uri)


def event_row(event: RunEvent) -> dict[str, Any]:
    """An event as a row of the table."""
    return {
        "event_time": datetime.fromisoformat(event.eventTime),
        "event_type": event.eventType.value if event.eventType else None,
        "run_id": event.run.runId,
        "job_namespace": event.job.namespace,
        "job_name": event.job.name,
        "inputs": datasets(event, "inputs"),
        "outputs": datasets(event, "outputs"),
        "event": to_json(event),
    }


def read(
    uri: str,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    run_id: str | None = None,
    job: tuple[str, str] | None = None,
) -> pl.LazyFrame:
    """Events as a lazy frame, in no particular order; empty while there is no table.

    Args:
        uri: where the table lies.
        since: only events at or after this moment.
        until: only events before this moment.
        run_id: only events of this run.
        job: only events of the job with this namespace and name.
    """
    try:
        table = Table.open(uri)
    except TableMissing:
        empty = pl.from_arrow(SCHEMA.empty_table())
        assert isinstance(empty, pl.DataFrame)
        return empty.lazy()
    kept = [
        file
        for file in (table.files() if job is None else _of_job(table.files(), job))
        if _may_hold(file, "event_time", since, until) and _may_hold(file, "run_id", run_id, run_id)
    ]
    frame = table.scan(kept)
    if since is not None:
        frame = frame.filter(pl.col("event_time") >= since)
    if until is not None:
        frame = frame.filter(pl.col("event_time") < until)
    if run_id is not None:
        frame = frame.filter(pl.col("run_id") == run_id)
    if job is not None:
        frame = frame.filter(*_is_job(job))
    return frame


def _of_job(files: Sequence[FileRef], job: tuple[str, str]) -> list[FileRef]:
    """The files that may hold events of a job."""
    named = dict(zip(("job_namespace", "job_name"), job, strict=True))
    return [file for file in files if all(_may_hold(file, name, one, one) for name, one in named.items())]


def _is_job(job: tuple[str, str]) -> tuple[pl.Expr, pl.Expr]:
    return pl.col("job_namespace") == job[0], pl.col("job_name") == job[1]


def _newest(file: FileRef) -> datetime:
    """When its newest event happened, at the latest."""
    found: datetime = file.high.get("event_time", _UNKNOWN)
    return found


def _may_hold(file: FileRef, column: str, low: str | datetime | None, high: str | datetime | None) -> bool:
    if low is not None and column in file.high and file.high[column] < low:
        return False
    return not (high is not None and column in file.low and file.low[column] > high)
