"""Whole tables, read through exported snapshots: at first, and again where rows owe a new column's value."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from mesh_assets.cdc.decode import Batch
from mesh_assets.cdc.relation import Relation
from mesh_assets.cdc.snapshot import ExportedSnapshot, SnapshotChunk, chunks
from mesh_assets.cdc.source import Source
from mesh_assets.errors import SnapshotBlocked, SnapshotStale
from mesh_assets.ingest.landing import LAST_ORDINAL, Landing
from mesh_assets.lake.checksum import Held
from mesh_assets.lake.quarantine import source_rows
from mesh_assets.shift.plan import Target
from mesh_assets.shift.report import Observer

_PATIENCE_SECONDS = 2.0
_STALE_LIMIT = 5
_REST_SECONDS = 60.0
_MOST_HASTY = 10


class SnapshotReader:
    """Reads the tables of one source, whole, into their landings.

    Args:
        source: whose tables.
        row_count: rows per chunk.
        observer: who watches.
        told: of each chunk, with its number of rows.
    """

    def __init__(
        self, source: Source, row_count: int, observer: Observer, told: Callable[[Target, int], None]
    ) -> None:
        self.source = source
        self.observer = observer
        self._row_count = row_count
        self._told = told

    def read(self, snapshot: ExportedSnapshot, landing: Landing) -> bool:
        """Land a table as a snapshot shows it; False if cancelled meanwhile.

        Raises:
            SnapshotStale: if the table was truncated or rewritten since the snapshot was taken.
        """
        table, started, count = landing.target.source_table, time.monotonic(), 0
        self.observer.message(f"{table}: snapshot begins")
        reading = SnapshotLanding(landing, snapshot)
        for chunk in chunks(self.source, landing.relation, snapshot, row_count=self._row_count):
            reading.land(chunk)
            count += chunk.frame.num_rows
            self._told(landing.target, chunk.frame.num_rows)
            if self.observer.cancelled():
                return False
        reading.finish()
        self.observer.message(f"{table}: {count:,} rows read in {time.monotonic() - started:.1f} s")
        return True


class Backfill:
    """Reads tables that gained a column with a value again, in their turn between the changes.

    Args:
        reader: of the source.
        landings: of its tables, by name.
        land: lands changes of a table.
    """

    def __init__(
        self,
        reader: SnapshotReader,
        landings: Mapping[str, Landing],
        land: Callable[[Landing, Relation, pa.Table], object],
    ) -> None:
        self._reader = reader
        self._landings = landings
        self._land = land
        self._snapshot: ExportedSnapshot | None = None
        self._held_open = ExitStack()
        self._after = 0.0
        self._stale_count = 0
        self._hasty_count = 0

    @property
    def owing(self) -> bool:
        """Whether the shift that ends now would leave something that it may yet be let read."""
        if self._snapshot is not None:
            return True
        tries_left = time.monotonic() >= self._after or self._hasty_count < _MOST_HASTY
        return tries_left and bool(self._wanted())

    @property
    def lsn(self) -> int | None:
        """Where the stream has to be when the snapshot is read; None if there is none to read."""
        return None if self._snapshot is None else self._snapshot.lsn

    def begin(self, *, ending: bool = False) -> None:
        """Take a snapshot if a table wants one.

        Args:
            ending: there is nothing else to do: what is in the way is not given a rest before it is tried
                again, some times, since who knows when the next shift comes.
        """
        if self._snapshot is not None or not self._wanted():
            return
        if time.monotonic() < self._after:
            if not ending or self._hasty_count >= _MOST_HASTY:
                return
            self._hasty_count += 1
        try:
            snapshot = ExportedSnapshot(self._reader.source, timeout_seconds=_PATIENCE_SECONDS)
            self._snapshot = self._held_open.enter_context(snapshot)
        except SnapshotBlocked as blocked:
            self._reader.observer.message(f"a backfill waits: {blocked}")
            self._after = time.monotonic() + _REST_SECONDS
            return
        self._reader.source.heartbeat()

    def run(self, batch: Batch | None = None) -> None:
        """Read the snapshot between the changes before it, which land first, and those after it."""
        snapshot, wanted = self._snapshot, self._wanted()
        if snapshot is None:
            return
        for relation, frame in batch.segments if batch else ():
            landing = self._landings[relation.qualified_name]
            if landing in wanted:
                self._land(landing, relation, frame.filter(pc.less(frame["_position"], snapshot.lsn)))
        try:
            for landing in wanted:
                self._reader.read(snapshot, landing)
            self._stale_count = 0
        except SnapshotStale as stale:
            # A table was truncated meanwhile: what is owed is read by another snapshot, as after a crash.
            self._reader.observer.message(f"{stale.message}; it is read again")
            self._stale_count += 1
            if self._stale_count >= _STALE_LIMIT:
                self._after = time.monotonic() + _REST_SECONDS
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the snapshot."""
        self._snapshot = None
        self._held_open.close()

    def _wanted(self) -> list[Landing]:
        return [landing for landing in self._landings.values() if landing.backfill_wanted]


class SnapshotLanding:
    """The landing of one table's snapshot: all rows the first time, only the differences again.

    A snapshot that was interrupted, or that heals a gap, is read wholly; rows that the log holds
    with the same content are dropped, and keys that the source no longer has become deletes.
    """

    def __init__(self, landing: Landing, snapshot: ExportedSnapshot) -> None:
        self._landing = landing
        self._snapshot = snapshot
        self._columns = [*landing.relation.row_schema.names, "_exact"]
        # Where a key's value does not fit its column, its exact text tells keys apart.
        self._held: Held | None = None
        if landing.log.seq >= 0:
            self._held = Held(self._batches(), landing.log.key, self._columns)

    def land(self, chunk: SnapshotChunk) -> None:
        """Append what a chunk adds."""
        frame = chunk.frame if self._held is None else self._held.changed(chunk.frame)
        if frame.num_rows:
            self._land(frame, done=False)

    def _land(self, frame: pa.Table, *, done: bool) -> None:
        # Positions are inclusive: the snapshot contains the commits below its consistent point.
        position = pa.repeat(pa.scalar(self._snapshot.lsn - 1, pa.int64()), frame.num_rows)
        frame = frame.set_column(frame.schema.get_field_index("_position"), "_position", position)
        self._landing.land_snapshot(frame, self._snapshot.lsn, datetime.now(UTC), done=done)

    def finish(self) -> None:
        """Append the deletes that the snapshot implies, and its end."""
        relation, snapshot = self._landing.relation, self._snapshot
        gone = self._held.missing(self._batches()) if self._held else None
        count = 0 if gone is None else gone.height
        columns: dict[str, pa.Array] = {
            field.name: pa.nulls(count, field.type) for field in relation.frame_schema
        }
        if gone is not None:
            for name in (*self._landing.log.key, "_exact"):
                columns[name] = gone[name].to_arrow().cast(relation.frame_schema.field(name).type)
        fixed = {"_op": "d", "_xid": 0, "_committed_at": snapshot.taken_at}
        for name, value in fixed.items():
            columns[name] = pa.repeat(pa.scalar(value, relation.frame_schema.field(name).type), count)
        columns["_ordinal"] = pa.array(range(LAST_ORDINAL - count, LAST_ORDINAL), pa.int64())
        self._land(pa.table(columns, schema=relation.frame_schema), done=True)

    def _batches(self) -> Iterator[pl.DataFrame]:
        landing = self._landing
        # What is quarantined is held: it comes again only if the source has something else by now.
        rows = source_rows(landing.log, landing.target.current_uri, landing.log.seq, columns=self._columns)
        yield from rows.collect_batches(chunk_size=250_000)
