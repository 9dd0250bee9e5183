"""Gaps: stretches of a source's log that no change log holds and that can no longer be read.

A gap is found at the start of a shift by holding the ledger against the slot. It is recorded
durably before the source is captured again, so that a crash in between cannot hide it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa

from mesh_assets.cdc.source import Slot, System
from mesh_assets.lake.ledger import LedgerRow
from mesh_assets.lake.table import Table

SCHEMA = pa.schema(
    [
        pa.field("reason", pa.string(), nullable=False),
        pa.field("from_lsn", pa.int64(), nullable=False),
        pa.field("to_lsn", pa.int64(), nullable=False),
        pa.field("found_at", pa.timestamp("us", "UTC"), nullable=False),
    ]
)


@dataclass(frozen=True)
class Gap:
    """Changes between two positions are missing; ``to_lsn`` is where capture begins again."""

    reason: str
    from_lsn: int
    to_lsn: int


def find_gap(last: LedgerRow | None, slot: Slot | None, system: System, written_lsn: int) -> str | None:
    """Why the ledger cannot be continued on this slot, or None if it can (or there is no ledger yet).

    Args:
        last: what is held.
        slot: the source's slot as it is, if it has one.
        system: which server the source is now.
        written_lsn: up to here the server has written its WAL.
    """
    if last is None:
        return None
    if last.system_identifier != system.identifier:
        return (
            f"the source is another server: system identifier {system.identifier}, "
            f"the ledger has {last.system_identifier}"
        )
    if last.timeline != system.timeline:
        return f"the source switched from timeline {last.timeline} to {system.timeline}"
    if written_lsn < last.end_lsn:
        return (
            f"the source was put back to an older state: its WAL ends at {written_lsn:X}, "
            f"the ledger's at {last.end_lsn:X}"
        )
    if slot is None:
        return "the replication slot is gone"
    if slot.wal_status == "lost":
        return "the replication slot was invalidated: the server removed WAL that it needed"
    if slot.confirmed_lsn > last.end_lsn:
        return (
            f"the replication slot confirms {slot.confirmed_lsn:X}, beyond the ledger's {last.end_lsn:X}: "
            "somebody else consumed it"
        )
    return None


class GapLog:
    """All gaps ever found at one source, in a Delta table."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._gaps: list[Gap] = []
        if Table.exists(uri):
            for row in Table.open(uri).read().to_pylist():
                self._gaps.append(Gap(row["reason"], row["from_lsn"], row["to_lsn"]))

    @property
    def count(self) -> int:
        """How many there were; positions are comparable only between two gaps (a server may change)."""
        return len(self._gaps)

    def latest_lsn(self) -> int:
        """Where capture began again after the newest gap; 0 without any gap."""
        return self._gaps[-1].to_lsn if self._gaps else 0

    def record(self, gap: Gap, at: datetime) -> None:
        """Append a gap durably."""
        table = (
            Table.open(self._uri)
            if Table.exists(self._uri)
            else Table.create(
                self._uri, SCHEMA, append_only=True, name="gaps", description="gaps in a source's capture"
            )
        )
        row = {**vars(gap), "found_at": at}
        table.append(pa.Table.from_pylist([row], schema=SCHEMA), transactions={})
        self._gaps.append(gap)
