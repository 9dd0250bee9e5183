"""Why tables of a source take nothing: one row when a table is parked, one when it is taken up again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa

from mesh_assets.lake.table import Table

SCHEMA = pa.schema(
    [
        pa.field("table", pa.string(), nullable=False),
        # Null: it is taken up again.
        pa.field("reason", pa.string()),
        pa.field("at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("shift", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Refusal:
    """Why ``table`` (``schema.table``) is parked, and since when for this reason."""

    table: str
    reason: str
    at: datetime


class RefusalLog:
    """All refusals of one source's tables, in a Delta table created on first use."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._standing: dict[str, Refusal] = {}
        if Table.exists(uri):
            for row in sorted(Table.open(uri).read().to_pylist(), key=lambda row: row["at"]):
                self._take(row["table"], row["reason"], row["at"])

    @property
    def standing(self) -> dict[str, Refusal]:
        """The tables that are parked now, by name."""
        return dict(self._standing)

    def record(self, table: str, reason: str | None, at: datetime, shift: str) -> None:
        """Append why a table is parked (None: it no longer is), durably, unless that is known."""
        known = self._standing.get(table)
        if (known.reason if known else None) == reason:
            return
        held = (
            Table.open(self._uri)
            if Table.exists(self._uri)
            else Table.create(
                self._uri, SCHEMA, append_only=True, name="refusals", description="why tables were parked"
            )
        )
        row = {"table": table, "reason": reason, "at": at, "shift": shift}
        held.append(pa.Table.from_pylist([row], schema=SCHEMA), transactions={})
        self._take(table, reason, at)

    def _take(self, table: str, reason: str | None, at: datetime) -> None:
        if reason is None:
            self._standing.pop(table, None)
        else:
            self._standing[table] = Refusal(table, reason, at)
