"""A Delta table of numbered records: dense from 1, one writer at a time, cheap to read at its end.

Version logs and ledgers are such tables. The number is an app transaction of the commit that holds
the record, so a writer that was overtaken cannot append (see :mod:`mesh_assets.lake.table`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mesh_assets.errors import TableMissing
from mesh_assets.lake.file import FileRef, overlapping
from mesh_assets.lake.table import Table


class RecordLog:
    """A handle on one table of numbered records; the table is created by the first append.

    Args:
        uri: where the table lies.
        schema: its columns; one that an existing table lacks is added.
        column: the column that holds the number, and the app id.
        statistics: further columns to search by.
        description: of the table.
    """

    def __init__(
        self,
        uri: str,
        schema: pa.Schema,
        *,
        column: str,
        statistics: Sequence[str] = (),
        description: str = "",
    ) -> None:
        self.uri = uri
        self.column = column
        self._schema = schema
        self._statistics = [column, *statistics]
        self._description = description
        self._table: Table | None = None
        self._number = 0
        self._latest: dict[str, Any] | None = None
        self.refresh()

    @property
    def table(self) -> Table:
        """The Delta table below.

        Raises:
            TableMissing: before the first append.
        """
        if self._table is None:
            raise TableMissing(f"there is no table at {self.uri} yet")
        return self._table

    @property
    def exists(self) -> bool:
        """Whether the table was there when this object last looked."""
        return self._table is not None

    def create(self) -> None:
        """Create the table now, if it does not exist."""
        if self._table is None:
            self._table = Table.create(
                self.uri,
                self._schema,
                append_only=True,
                statistics=self._statistics,
                order=self.column,
                description=self._description,
            )

    @property
    def number(self) -> int:
        """The number of the last record at this handle's version; 0 if there is none."""
        return self._number

    def refresh(self) -> int:
        """Move to the newest record; returns its number. Only for readers: a writer would lose its fence."""
        if self._table is not None:
            self._table.refresh()
        else:
            try:
                self._table = Table.open(self.uri)
            except TableMissing:
                return 0
        number = self._table.transaction(self.column) or 0
        if number != self._number:
            self._number, self._latest = number, None
        return number

    def append(self, record: Mapping[str, Any], *, metadata: Mapping[str, str] | None = None) -> int:
        """Append one record (without its number) durably; returns its number.

        Raises:
            Fenced: if another writer has appended since this object last did.
            StorageFull: if the disk is full.
        """
        self.create()
        table = self.table
        if any(name not in table.schema.names for name in self._schema.names):
            table.add_columns(list(self._schema))
        number = self._number + 1
        numbered = {**record, self.column: number}
        table.append(
            pa.Table.from_pylist([numbered], schema=table.schema),
            transactions={self.column: number},
            metadata=metadata,
            expect={self.column: self._number or None},
        )
        self._number, self._latest = number, numbered
        return number

    def latest(self) -> dict[str, Any] | None:
        """The last record, read from the newest file only."""
        if self._latest is None and self._number:
            self._latest = self.at(self._number)
        return self._latest

    def at(self, number: int) -> dict[str, Any] | None:
        """One record by its number."""
        found = self.between(number, number)
        return found[0] if found else None

    def between(self, first: int, last: int) -> list[dict[str, Any]]:
        """The records with these numbers, inclusive, in order."""
        if self._table is None:
            return []
        files = overlapping(self.table.files(), self.column, first, last)
        rows = self.table.read(files)
        number = pc.field(self.column)
        kept = rows.filter((number >= pc.scalar(first)) & (number <= pc.scalar(last)))
        records: list[dict[str, Any]] = kept.sort_by(self.column).to_pylist()
        return records

    def last_upto(self, column: str, value: Any) -> dict[str, Any] | None:  # noqa: ANN401 - any comparable
        """The last record whose ``column`` is not above ``value``; the column must have statistics."""
        if self._table is None:
            return None
        files = overlapping(self.table.files(), column, None, value)
        for file in reversed(files):
            if (record := self._last_in(file, column, value)) is not None:
                return record
        return None

    def _last_in(self, file: FileRef, column: str, value: Any) -> dict[str, Any] | None:  # noqa: ANN401
        rows = self.table.read([file])
        bound = pa.scalar(value, rows.schema.field(column).type)
        kept = rows.filter(pc.field(column) <= bound)
        if kept.num_rows == 0:
            return None
        record: dict[str, Any] = kept.sort_by(self.column).slice(kept.num_rows - 1).to_pylist()[0]
        return record
