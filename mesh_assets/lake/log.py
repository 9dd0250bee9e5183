"""The change log of one table: append-only, the truth from which everything else is folded.

Each row is one change: the table's physical columns (the image after the change; the old key of a
delete) and the columns of :data:`CHANGE_FIELDS`. ``_seq`` is dense from 0, assigned at append; a log
that takes the place of another, with other columns, counts on from where that one ends.

Exactly once: the source position that a batch reaches is committed *with* the batch, as app
transactions ``seq``, ``<source>/lsn`` and ``<source>/ordinal``. Before each append the table must
hold the ``seq`` that this object left, else another writer has taken over and this one is fenced.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from mesh_assets.errors import LakeError
from mesh_assets.lake.file import overlapping
from mesh_assets.lake.table import Table

SEQ = "_seq"
BEFORE = "_before"
REJECTED = "rejected"
"""App transaction: the last ``_seq`` that was rejected; absent where nothing ever was."""
_AFTER = "after"
_MOMENT = pa.timestamp("us", tz="UTC")

CHANGE_FIELDS: tuple[pa.Field[Any], ...] = (
    pa.field(SEQ, pa.int64()),
    pa.field("_op", pa.string()),
    pa.field("_position", pa.int64()),
    pa.field("_ordinal", pa.int64()),
    pa.field("_xid", pa.int64()),
    pa.field("_committed_at", _MOMENT),
    pa.field("_captured_at", _MOMENT),
    pa.field("_schema_version", pa.int32()),
    pa.field("_unchanged", pa.list_(pa.string())),
    pa.field("_exact", pa.map_(pa.string(), pa.string())),
    pa.field("_rejected_by", pa.list_(pa.string())),
)
"""The columns of a change besides the row's own and ``_before`` (a struct of the row's columns)."""

_ASSIGNED = (SEQ, "_captured_at", "_schema_version", "_rejected_by")
_REQUIRED = ("_op", "_position", "_ordinal")


def log_schema(row_schema: pa.Schema) -> pa.Schema:
    """The Delta columns of a change log over these row columns."""
    row = [pa.field(field.name, field.type) for field in row_schema]
    change = list(CHANGE_FIELDS)
    change.insert(-2, pa.field(BEFORE, pa.struct(row)))
    return pa.schema(row + change)


@dataclass(frozen=True, slots=True)
class Appended:
    """What one append did; ``last_seq == first_seq - 1`` and no commit if there were no rows."""

    first_seq: int
    last_seq: int
    delta_version: int
    file_bytes: int

    @property
    def row_count(self) -> int:
        """Rows appended."""
        return self.last_seq - self.first_seq + 1


class ChangeLog:
    """A handle on one change log.

    Attributes:
        table: the Delta table below.
        key: the names of the key columns (may be empty).
        after: the ``_seq`` before the first that it holds; -1 unless it took another log's place.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.key: tuple[str, ...] = tuple(json.loads(table.property("key") or "[]"))
        self.after = int(table.property(_AFTER) or "-1")
        self._seq = self._held_seq()
        # The positions this writer left: another one there means that somebody else appended.
        self._left: dict[str, tuple[int, int] | None] = {}

    @classmethod
    def open(cls, uri: str) -> ChangeLog:
        """Open an existing log.

        Raises:
            TableMissing: if there is none.
        """
        return cls(Table.open(uri))

    @classmethod
    def create(
        cls,
        uri: str,
        row_schema: pa.Schema,
        key: Sequence[str],
        *,
        after: int = -1,
        name: str | None = None,
        description: str | None = None,
    ) -> ChangeLog:
        """Create an empty log over a table with these columns and key.

        Args:
            uri: where.
            row_schema: the row's own columns.
            key: the names of the key columns (may be empty).
            after: the last ``_seq`` of the log in whose place it comes.
            name: the table's name in its metadata.
            description: the table's description in its metadata.

        Raises:
            LakeError: if a column's name starts with an underscore, a key column is not among the
                columns, or the log exists.
        """
        if reserved := [column for column in row_schema.names if column.startswith("_")]:
            raise LakeError(f"{uri}: column names that start with an underscore are reserved: {reserved}")
        if missing := [column for column in key if column not in row_schema.names]:
            raise LakeError(f"{uri}: key columns {missing} are not in the table", available=row_schema.names)
        table = Table.create(
            uri,
            log_schema(row_schema),
            append_only=True,
            statistics=[SEQ, "_position", "_committed_at", *key],
            order=SEQ,
            name=name,
            description=description,
            properties={"key": json.dumps(list(key))} | ({_AFTER: str(after)} if after >= 0 else {}),
            transactions={"seq": after} if after >= 0 else {},
        )
        return cls(table)

    @staticmethod
    def exists(uri: str) -> bool:
        """Whether there is a log at ``uri``."""
        return Table.exists(uri)

    @property
    def seq(self) -> int:
        """The last ``_seq`` in the log at this handle's version; :attr:`after` while it is empty."""
        return self._seq

    @property
    def row_schema(self) -> pa.Schema:
        """The row's own columns."""
        return pa.schema([field for field in self.table.schema if not field.name.startswith("_")])

    def position(self, source: str) -> tuple[int, int] | None:
        """``(commit LSN, ordinal)`` of the last change that was appended from a source."""
        lsn = self.table.transaction(f"{source}/lsn")
        ordinal = self.table.transaction(f"{source}/ordinal")
        return None if lsn is None or ordinal is None else (lsn, ordinal)

    def transaction(self, app_id: str) -> int | None:
        """The value last committed for an app id, such as ``snapshot/<n>``."""
        return self.table.transaction(app_id)

    def refresh(self) -> int:
        """Move to the newest commit; returns the last ``_seq``. Only for readers: a writer never needs it."""
        self.table.refresh()
        self._seq = self._held_seq()
        self._left.clear()
        return self._seq

    def append(
        self,
        frame: pa.Table | pa.RecordBatch,
        *,
        source: str,
        position: tuple[int, int],
        captured_at: datetime,
        schema_version: int,
        rejected_by: pa.Array[Any] | pa.ChunkedArray[Any] | None = None,
        transactions: Mapping[str, int] | None = None,
        metadata: Mapping[str, str] | None = None,
        rewound: bool = False,
        empty: bool = False,
    ) -> Appended:
        """Append one change frame, in one durable commit, with the position it reaches.

        Args:
            frame: rows in source order: row columns (missing ones become null) and change columns
                without those that are assigned here.
            source: whose position this is.
            position: ``(commit LSN, ordinal)`` of the frame's last change.
            captured_at: when the frame was received.
            schema_version: what maps physical columns to names for these rows.
            rejected_by: list<string> per row, the blocking expectations it failed; None: all accepted.
            transactions: further app transactions of the same commit, such as ``snapshot/<n>``.
            metadata: informational, into the commit.
            rewound: allow a position below the held one (another timeline or system).
            empty: commit the position and the transactions even if the frame has no rows.

        Raises:
            Fenced: if another writer has appended since this object last did.
            LakeError: if the frame does not fit (a new column needs :meth:`add_columns` first), or
                the position is below the held one.
            StorageFull: if the disk is full.
        """
        rows = pa.Table.from_batches([frame]) if isinstance(frame, pa.RecordBatch) else frame
        first = self._seq + 1
        if rows.num_rows == 0 and not empty:
            return Appended(first, self._seq, self.table.version, 0)
        self.table.ready({"seq": None if self._seq < 0 else self._seq})
        held = self._left.setdefault(source, self.position(source))
        if held is not None and position < held and not rewound:
            raise LakeError(
                f"{self.table.uri}: a batch up to {position} of {source} comes after {held} was appended",
                hint="drop what the log already holds before appending",
            )
        last = self._seq + rows.num_rows
        numbered = self._numbered(rows, first, captured_at, schema_version, rejected_by)
        own = {f"{source}/lsn": position[0], f"{source}/ordinal": position[1]}
        if last >= 0:
            own["seq"] = last
        if (rejected := _last_held(rejected_by)) is not None:
            own[REJECTED] = first + rejected
        if overlap := own.keys() & (transactions or {}).keys():
            raise LakeError(f"{self.table.uri}: app transactions {sorted(overlap)} belong to the log itself")
        lsn, ordinal = held if held is not None else (None, None)
        expect = {
            "seq": None if self._seq < 0 else self._seq,
            f"{source}/lsn": lsn,
            f"{source}/ordinal": ordinal,
        }
        self.table.check(expect)
        files = self.table.write(numbered)
        version = self.table.append(
            files, transactions=own | dict(transactions or {}), metadata=metadata, expect=expect
        )
        self._seq = last
        self._left[source] = position
        return Appended(first, last, version, sum(file.size for file in files))

    def scan(
        self, after: int | None = None, upto: int | None = None, columns: Sequence[str] | None = None
    ) -> pl.LazyFrame:
        """The changes with ``after < _seq <= upto``, from just the files that may hold them.

        Rows come in no promised order: sort by ``_seq`` where it matters. ``columns`` are the ones
        returned (all by default).
        """
        low = None if after is None else after + 1
        frame = self.table.scan(overlapping(self.table.files(), SEQ, low, upto))
        if after is not None:
            frame = frame.filter(pl.col(SEQ) > after)
        if upto is not None:
            frame = frame.filter(pl.col(SEQ) <= upto)
        return frame if columns is None else frame.select(columns)

    def batches(
        self, after: int, upto: int, columns: Sequence[str] | None = None, *, row_count: int
    ) -> Iterator[pl.DataFrame]:
        """The changes with ``after < _seq <= upto``, about so many at a time; little more is in memory.

        They come in order of ``_seq``, which must be among ``columns``.
        """
        files = overlapping(self.table.files(), SEQ, after + 1, upto)
        for part in self.table.batches(files, columns, row_count=row_count):
            frame = pl.from_arrow(part)
            assert isinstance(frame, pl.DataFrame)
            kept = frame.filter(pl.col(SEQ).is_between(after, upto, closed="right"))
            if kept.height:
                yield kept

    def add_columns(self, fields: Iterable[pa.Field[Any]]) -> None:
        """Add row columns (and their before images), null in all older changes.

        Raises:
            LakeError: if a column exists with another type, or its name is reserved.
        """
        plain = [pa.field(field.name, field.type) for field in fields]
        if reserved := [field.name for field in plain if field.name.startswith("_")]:
            raise LakeError(
                f"{self.table.uri}: column names that start with an underscore are reserved: {reserved}"
            )
        if plain:
            self.table.add_columns([*plain, pa.field(BEFORE, pa.struct(plain))])

    def _held_seq(self) -> int:
        value = self.table.transaction("seq")
        return -1 if value is None else value

    def _numbered(
        self,
        rows: pa.Table,
        first: int,
        captured_at: datetime,
        schema_version: int,
        rejected_by: pa.Array[Any] | pa.ChunkedArray[Any] | None,
    ) -> pa.Table:
        """The frame with the columns that are assigned at append."""
        if given := [name for name in _ASSIGNED if name in rows.column_names]:
            raise LakeError(f"{self.table.uri}: columns {given} are assigned at append")
        if missing := [name for name in _REQUIRED if name not in rows.column_names]:
            raise LakeError(f"{self.table.uri}: the frame lacks {missing}", available=rows.column_names)
        count = rows.num_rows
        moment = pa.scalar(captured_at.astimezone(UTC), _MOMENT)
        assigned: dict[str, pa.Array[Any] | pa.ChunkedArray[Any]] = {
            SEQ: pa.array(np.arange(first, first + count, dtype=np.int64)),
            "_captured_at": pa.repeat(moment, count),
            "_schema_version": pa.repeat(pa.scalar(schema_version, pa.int32()), count),
        }
        if rejected_by is not None:
            if len(rejected_by) != count:
                raise LakeError(f"{self.table.uri}: {len(rejected_by)} verdicts for {count} rows")
            assigned["_rejected_by"] = rejected_by
        for name, column in assigned.items():
            rows = rows.append_column(name, column)
        return rows


def _last_held(verdicts: pa.Array[Any] | pa.ChunkedArray[Any] | None) -> int | None:
    """The place of the last verdict that is not null."""
    if verdicts is None or verdicts.null_count == len(verdicts):
        return None
    return int(np.flatnonzero(verdicts.is_valid().to_numpy(zero_copy_only=False))[-1])
