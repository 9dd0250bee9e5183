"""The ledger of one source: what of it is durable in the lake, and so may be acknowledged.

A row is appended after all tables, parked changes and the version row of a batch are durable; only
then is its end LSN acknowledged to the source. On start the last row says which positions are held,
on which system and timeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from mesh_assets.lake.record import RecordLog

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
]
_SCHEMA = pa.schema(_FIELDS)


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
            }
        )
        return replace(row, recorded_at=recorded_at, entry=entry)


def _row(record: Mapping[str, Any]) -> LedgerRow:
    return LedgerRow(
        commit_lsn=record["commit_lsn"],
        end_lsn=record["end_lsn"],
        system_identifier=record["system_identifier"],
        timeline=record["timeline"],
        tables=dict(record["tables"]),
        observed_at=record["observed_at"],
        shift=record["shift"],
        recorded_at=record["recorded_at"],
        entry=record["entry"],
    )
