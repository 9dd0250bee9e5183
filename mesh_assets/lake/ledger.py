"""The ledger of one source: what of it is durable in the lake, and so may be acknowledged.

A row is appended after all tables, parked changes and the version row of a batch are durable; only
then is its end LSN acknowledged to the source. On start the last row says which positions are held,
on which system and timeline, and how far each table's snapshot got.

A snapshot's chunk is exactly once by intent: *before* chunk ``n`` of snapshot ``s`` is appended to
the table's change log, the ledger says where it starts and ends; the append carries the app
transaction ``snapshot/<s>`` = ``n``. After a crash the log's own transaction says whether the chunk
is there, so :meth:`SnapshotProgress.resume_after` never repeats one and never skips one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow as pa

from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.record import RecordLog

SnapshotState = Literal["pending", "reading", "done"]

_MOMENT = pa.timestamp("us", tz="UTC")
_FIELDS: list[tuple[str, pa.DataType]] = [
    ("entry", pa.int64()),
    ("commit_lsn", pa.int64()),
    ("end_lsn", pa.int64()),
    ("system_identifier", pa.string()),
    ("timeline", pa.int32()),
    ("tables", pa.map_(pa.string(), pa.int64())),
    ("observed_at", _MOMENT),
    ("recorded_at", _MOMENT),
    ("shift", pa.string()),
    ("head_changes", pa.int64()),
    (
        "snapshots",
        pa.list_(
            pa.struct(
                [
                    ("table", pa.string()),
                    ("state", pa.string()),
                    ("snapshot", pa.int64()),
                    ("chunk", pa.int64()),
                    ("previous_key", pa.string()),
                    ("last_key", pa.string()),
                    ("lsn", pa.int64()),
                    ("max_lsn", pa.int64()),
                ]
            )
        ),
    ),
]
_SCHEMA = pa.schema(_FIELDS)


def snapshot_transaction(snapshot: int) -> str:
    """The app id under which a change log commits the chunk numbers of one snapshot."""
    return f"snapshot/{snapshot}"


@dataclass(frozen=True, slots=True)
class SnapshotProgress:
    """How far the snapshot of one table got.

    Attributes:
        state: ``pending`` (not begun), ``reading``, or ``done``.
        snapshot: numbers the snapshots of the table; a new one begins when it has to be taken again.
        chunk: the chunk last intended, from 1; 0 before the first.
        previous_key: the text to resume after if that chunk is not in the log; None: from the start.
        last_key: the text to resume after if it is.
        lsn: the consistent point of that chunk.
        max_lsn: the largest consistent point of all chunks; as of begins there.
    """

    state: SnapshotState = "pending"
    snapshot: int = 1
    chunk: int = 0
    previous_key: str | None = None
    last_key: str | None = None
    lsn: int = 0
    max_lsn: int = 0

    def held(self, log: ChangeLog) -> bool:
        """Whether the chunk last intended is in the table's log (true before the first)."""
        return (log.transaction(snapshot_transaction(self.snapshot)) or 0) >= self.chunk

    def resume_after(self, log: ChangeLog) -> str | None:
        """The key text after which reading goes on; None: from the start."""
        return self.last_key if self.held(log) else self.previous_key

    def intend(self, log: ChangeLog, *, last_key: str | None, lsn: int) -> SnapshotProgress:
        """The progress to record before the next chunk, which ends at ``last_key``, is appended.

        The append must carry ``{snapshot_transaction(progress.snapshot): progress.chunk}``.
        """
        return SnapshotProgress(
            state="reading",
            snapshot=self.snapshot,
            chunk=self.chunk + 1 if self.held(log) else self.chunk,
            previous_key=self.resume_after(log),
            last_key=last_key,
            lsn=lsn,
            max_lsn=max(lsn, self.max_lsn),
        )

    def finished(self) -> SnapshotProgress:
        """The progress to record once the last chunk is in the log."""
        return replace(self, state="done")

    def again(self) -> SnapshotProgress:
        """A new snapshot of the table, from its start."""
        return SnapshotProgress(state="pending", snapshot=self.snapshot + 1, max_lsn=self.max_lsn)


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """What is durable.

    Attributes:
        commit_lsn: the last transaction that is held whole.
        end_lsn: what may be acknowledged.
        system_identifier: of the cluster; positions mean nothing on another one.
        timeline: of the cluster; below a switch point positions mean something else.
        tables: the last durable ``_seq`` per table.
        observed_at: by the source's clock; whatever commits after ``end_lsn`` commits later.
        shift: which shift wrote it.
        snapshots: progress per table.
        head_changes: the source's count of changes in published tables that was seen drained; -1: none.
        recorded_at: when it was written.
        entry: dense from 1; assigned by :meth:`Ledger.append`.
    """

    commit_lsn: int
    end_lsn: int
    system_identifier: str
    timeline: int
    tables: Mapping[str, int]
    observed_at: datetime
    shift: str
    snapshots: Mapping[str, SnapshotProgress] = field(default_factory=dict)
    head_changes: int = -1
    recorded_at: datetime | None = None
    entry: int = 0


class Ledger:
    """The ledger of one source; the table is created by the first append."""

    def __init__(self, uri: str) -> None:
        self.records = RecordLog(
            uri,
            _SCHEMA,
            column="entry",
            statistics=["end_lsn", "observed_at"],
            description="What of the source is durable in the lake: one row per acknowledged batch.",
        )

    @classmethod
    def open(cls, uri: str) -> Ledger:
        """Open an existing ledger.

        Raises:
            TableMissing: if the source was never captured.
        """
        ledger = cls(uri)
        _ = ledger.records.table
        return ledger

    def refresh(self) -> int:
        """Move to the newest row; returns its number (0: none). Only for readers."""
        return self.records.refresh()

    def latest(self) -> LedgerRow | None:
        """The newest row."""
        record = self.records.latest()
        return None if record is None else _row(record)

    def at(self, entry: int) -> LedgerRow | None:
        """One row by its number."""
        record = self.records.at(entry)
        return None if record is None else _row(record)

    def append(self, row: LedgerRow) -> LedgerRow:
        """Append a row durably; returns it with ``entry`` and ``recorded_at``.

        Raises:
            Fenced: if another shift has written the ledger since this object last did.
            StorageFull: if the disk is full.
        """
        recorded_at = row.recorded_at or datetime.now(UTC)
        entry = self.records.append(
            {
                "commit_lsn": row.commit_lsn,
                "end_lsn": row.end_lsn,
                "system_identifier": row.system_identifier,
                "timeline": row.timeline,
                "tables": sorted(row.tables.items()),
                "observed_at": row.observed_at,
                "recorded_at": recorded_at,
                "shift": row.shift,
                "head_changes": row.head_changes,
                "snapshots": [
                    {"table": table, **asdict(progress)} for table, progress in sorted(row.snapshots.items())
                ],
            }
        )
        return replace(row, recorded_at=recorded_at, entry=entry)


def _row(record: Mapping[str, Any]) -> LedgerRow:
    snapshots = {}
    for given in record["snapshots"]:
        values = dict(given)
        table = values.pop("table")
        snapshots[table] = SnapshotProgress(**values)
    return LedgerRow(
        commit_lsn=record["commit_lsn"],
        end_lsn=record["end_lsn"],
        system_identifier=record["system_identifier"],
        timeline=record["timeline"],
        tables=dict(record["tables"]),
        observed_at=record["observed_at"],
        shift=record["shift"],
        snapshots=snapshots,
        head_changes=-1 if record["head_changes"] is None else record["head_changes"],
        recorded_at=record["recorded_at"],
        entry=record["entry"],
    )
