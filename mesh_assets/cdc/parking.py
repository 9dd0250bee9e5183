"""The parking log: raw changes of tables that cannot take them now, in order, durably.

One slot serves all tables of a source. A table that cannot take its batch is parked so that the
slot moves on and the other tables keep running. Repaired, it takes its parked changes first.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from mesh_assets.cdc.decode import PARKED_SCHEMA, Decoder
from mesh_assets.cdc.relation import Relation
from mesh_assets.lake.file import FileRef
from mesh_assets.lake.table import Table

SCHEMA = pa.schema([pa.field("table", pa.string()), pa.field("gap_count", pa.int32()), *PARKED_SCHEMA])

_PAGE_ROWS = 50_000
_PAGE_BYTES = 16 << 20
_READ_ROWS = 1_000
"""Messages read at a time: one may be as large as a row can be."""


class ParkingLog:
    """Raw ``pgoutput`` messages by table, in a Delta table created on first use.

    Args:
        uri: where it lies.
        gap_count: how many gaps the source had so far; what is parked is told apart by it, because
            after a gap positions may count from below.
    """

    def __init__(self, uri: str, gap_count: int = 0) -> None:
        self._uri = uri
        self._gap_count = gap_count
        self._table = Table.open(uri) if Table.exists(uri) else None
        self._announcement: dict[str, pa.Table] = {}

    def position(self, table: str, gap_count: int | None = None) -> tuple[int, int]:
        """Position of the last change parked of ``schema.table`` since the last gap; (0, -1) when none is.

        ``gap_count`` asks for those parked when there were only so many gaps.
        """
        if self._table is None:
            return (0, -1)
        lsn_id, ordinal_id = _app_ids(table, self._gap_count if gap_count is None else gap_count)
        lsn, ordinal = self._table.transaction(lsn_id), self._table.transaction(ordinal_id)
        return (0, -1) if lsn is None or ordinal is None else (lsn, ordinal)

    def park(self, table: str, messages: pa.Table) -> int:
        """Append those messages of one table that are not parked yet; returns how many changes.

        Raises:
            Fenced: if another shift parks for this source.
        """
        messages = messages.filter(_beyond(messages, self.position(table)))
        changes = messages.filter(pc.not_equal(messages["kind"], "R"))
        if not changes.num_rows:
            # An announcement comes once in a session: it is kept for the change that follows it.
            if messages.num_rows:
                self._announcement[table] = messages.slice(messages.num_rows - 1)
            return 0
        announcement = self._announcement.pop(table, None)
        if announcement is not None and messages["kind"][0].as_py() != "R":
            messages = pa.concat_tables([announcement, messages])
        if self._table is None:
            self._table = Table.create(
                self._uri, SCHEMA, append_only=True, name="parking", description="raw changes that wait"
            )
        last, row_count = changes.num_rows - 1, messages.num_rows
        lsn_id, ordinal_id = _app_ids(table, self._gap_count)
        gap_count = pa.repeat(pa.scalar(self._gap_count, pa.int32()), row_count)
        named = messages.add_column(0, "table", pa.repeat(table, row_count))
        self._table.append(
            named.add_column(1, "gap_count", gap_count).select(SCHEMA.names),
            transactions={
                lsn_id: changes["_position"][last].as_py(),
                ordinal_id: changes["_ordinal"][last].as_py(),
            },
        )
        return int(changes.num_rows)

    def replay(
        self, table: str, oid: int, after: tuple[int, int], decoder: Decoder, *, gap_count: int = 0
    ) -> Iterator[tuple[Relation, pa.Table]]:
        """Decode the parked changes of ``schema.table`` beyond ``after``, in order, in pages.

        Args:
            after: a position that was reached when there were ``gap_count`` gaps: changes that were
                parked after a later one are contained in the snapshot that heals it.
            decoder: one of its own for this, which knows the table's types and key.
        """
        if self._table is None or self.position(table, gap_count) <= after:
            return
        for page in self._pages(table, gap_count):
            decoder.replay(oid, page)
            for relation, frame in decoder.take().segments:
                new = frame.filter(_beyond(frame, after))
                if new.num_rows:
                    yield relation, new

    def _pages(self, table: str, gap_count: int) -> Iterator[pa.Table]:
        """What is parked of one table, in order; a page is in memory at a time."""
        assert self._table is not None
        page: list[pa.Table] = []
        for file in self._files(table, gap_count):
            for batch in self._table.batches([file], PARKED_SCHEMA.names, row_count=_READ_ROWS):
                page.append(batch)
                row_count, byte_count = sum(part.num_rows for part in page), sum(part.nbytes for part in page)
                if row_count >= _PAGE_ROWS or byte_count >= _PAGE_BYTES:
                    yield pa.concat_tables(page).combine_chunks()
                    page.clear()
        if page:
            yield pa.concat_tables(page).combine_chunks()

    def _files(self, table: str, gap_count: int) -> list[FileRef]:
        """The files with one table's messages, in order: each holds some of one call of :meth:`park`."""
        assert self._table is not None
        names = ["table", "gap_count", "_position", "_ordinal"]
        found: list[tuple[int, int, int, FileRef]] = []
        for number, file in enumerate(self._table.files()):
            first = next(self._table.batches([file], names, row_count=1)).to_pylist()[0]
            if (first["table"], first["gap_count"]) == (table, gap_count):
                found.append((first["_position"], first["_ordinal"], number, file))
        return [file for *_, file in sorted(found, key=lambda one: one[:3])]


def _app_ids(table: str, gap_count: int) -> tuple[str, str]:
    return f"{table}/{gap_count}/lsn", f"{table}/{gap_count}/ordinal"


def _beyond(rows: pa.Table, position: tuple[int, int]) -> pa.ChunkedArray:
    lsn, ordinal = position
    later = pc.and_(pc.equal(rows["_position"], lsn), pc.greater(rows["_ordinal"], ordinal))
    return pc.or_(pc.greater(rows["_position"], lsn), later)
