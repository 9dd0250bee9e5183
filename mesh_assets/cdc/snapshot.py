"""Snapshots: tables as they were at one point of the WAL, read in chunks of bounded memory.

A temporary slot gives a consistent point and exports the snapshot of exactly that moment: a
transaction is contained in it if its commit LSN is below the point, and streamed otherwise.
Nothing is written to the source and no table is locked for longer than one chunk.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

import adbc_driver_manager
import numpy as np
import pyarrow as pa
from psycopg import sql

from mesh_assets.cdc import catalog
from mesh_assets.cdc.catalog import KeyColumn
from mesh_assets.cdc.connection import conninfo, redacted
from mesh_assets.cdc.frame import text_columns
from mesh_assets.cdc.relation import COMMITTED_AT_TYPE, Relation
from mesh_assets.cdc.source import Source
from mesh_assets.errors import (
    CredentialsRejected,
    SnapshotBlocked,
    SnapshotStale,
    SourceDisconnected,
    SourceError,
)

if TYPE_CHECKING:
    from adbc_driver_manager.dbapi import Cursor

_CHUNK_BYTES = 64 << 20
_LOCK_SECONDS = 60
# A block holds hardly more rows than this, so the first read of a keyless table stays in bounds.
_ROWS_PER_BLOCK = 226

# Walking the key's index makes all chunks together cost one pass; a plan that sorts would read the
# whole table for each of them.
_OPTIONS = (
    "-c statement_timeout=0 -c idle_in_transaction_session_timeout=0 -c idle_session_timeout=0 "
    f"-c row_security=off -c lock_timeout={_LOCK_SECONDS * 1000} "
    "-c enable_sort=off -c enable_seqscan=off -c enable_bitmapscan=off -c jit=off "
    "-c max_parallel_workers_per_gather=0"
)

# What the snapshot saw against what is there now: the first column reads the catalog through the
# snapshot, the functions read it as it is. A rewritten or truncated table looks empty to a snapshot
# older than the rewriting.
_REWRITTEN = """
SELECT count(*) FROM pg_class
WHERE oid = ANY(ARRAY[{oids}]::oid[]) AND relfilenode <> coalesce(pg_relation_filenode(oid), 0)
"""
_BLOCKS = "SELECT pg_relation_size({oid}::oid::regclass) / current_setting('block_size')::int8"
_SHAPE = """
SELECT a.attnum::int8, a.atttypid::int8, a.atttypmod::int8,
    (pg_identify_object_as_address('pg_class'::regclass, a.attrelid, a.attnum)).object_names[3]
FROM pg_attribute a WHERE a.attrelid = {oid} AND a.attnum > 0 AND NOT a.attisdropped
"""


@dataclass
class SnapshotChunk:
    """Some rows of a snapshot, in the order of the key.

    Attributes:
        frame: a change frame: op ``r``, ``_position`` the snapshot's consistent point, ``_ordinal``
            running on through the table's snapshot, ``_committed_at`` the snapshot's time.
        last_key: give it to :func:`chunks` to go on after this chunk, also in a later snapshot.
        lsn: the consistent point.
        done: the table ends here; the last chunk may be empty.
    """

    relation: Relation
    frame: pa.Table
    last_key: str
    lsn: int
    done: bool


class ExportedSnapshot:
    """A snapshot of the whole database at one point of its WAL, readable while this is open.

    Args:
        source: the database.
        permanent: make the source's own slot instead of a temporary one: then the stream of that
            slot begins exactly where the snapshot ends.
        timeout_seconds: how long to wait for open transactions, which PostgreSQL insists on.

    Attributes:
        lsn: the consistent point: a commit LSN below it is inside, any other is outside.
        name: the snapshot's name for ``SET TRANSACTION SNAPSHOT``.
        taken_at: the server's clock just after it was taken.

    Raises:
        SnapshotBlocked: if open transactions last longer than the timeout; it names them.
        SourceNotLogical: if the server has no free slot.
        SlotBusy: if the permanent slot exists already.
    """

    def __init__(self, source: Source, *, permanent: bool = False, timeout_seconds: float = 30) -> None:
        self._source = source
        self._created = source.export_slot(permanent=permanent, timeout_seconds=timeout_seconds)
        self._reader: Any = None
        self.lsn = self._created.lsn
        self.name = self._created.snapshot
        try:
            self.taken_at: datetime = source.now()
        except BaseException:
            self._created.session.close()
            raise

    def __enter__(self) -> ExportedSnapshot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the snapshot, and with it the temporary slot."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._created.session.close()

    def contains(self, commit_lsn: int) -> bool:
        """Whether the transaction with this commit LSN is part of the snapshot."""
        return commit_lsn < self.lsn

    @contextmanager
    def transaction(self, table: str = "") -> Iterator[Cursor]:
        """A cursor whose queries see this snapshot; ``table`` is named in errors.

        Raises:
            SnapshotStale: if the snapshot has ended, as after a restart of the server, or what is
                asked for does not exist any more.
            SnapshotBlocked, CredentialsRejected, SourceDisconnected, SourceError: see :func:`chunks`.
        """
        # Imports pandas: most shifts read no snapshot and have no need of its 30 MB.
        import adbc_driver_postgresql.dbapi

        url = self._source.config.url
        with _translated(self._source, table):
            if self._reader is None:
                text = conninfo(url, options=_OPTIONS)
                self._reader = adbc_driver_postgresql.dbapi.connect(text, autocommit=True)
            try:
                with self._reader.cursor() as cursor:
                    cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                    cursor.execute(f"SET TRANSACTION SNAPSHOT '{self.name}'")
                    yield cursor
            finally:
                self._end_transaction()

    def _end_transaction(self) -> None:
        if self._reader is None:
            return  # Closed while a transaction was open, which ended it.
        try:
            with self._reader.cursor() as cursor:
                cursor.execute("ROLLBACK")
        except adbc_driver_manager.Error:
            # Broken, or in the middle of an abandoned result: the next transaction connects anew.
            self._reader.close()
            self._reader = None


def chunks(
    source: Source,
    relation: Relation,
    snapshot: ExportedSnapshot,
    *,
    after: str | None = None,
    row_count: int = 200_000,
) -> Iterator[SnapshotChunk]:
    """Read a table through a snapshot, in the order of its key, in chunks of bounded size.

    Each chunk is a transaction of its own, so that no lock lasts longer. A table without a key is
    read in the order of storage.

    Args:
        relation: from :meth:`Source.describe`.
        after: ``last_key`` of a chunk, possibly of an earlier snapshot, to go on behind it. A table
            without a key goes on within the same snapshot only and otherwise begins again, which
            the ``_ordinal`` of its first row shows.
        row_count: rows per chunk at most; chunks of wide rows are smaller (64 MB or so of text).

    Raises:
        SnapshotStale: if the table was rewritten, truncated or altered since the snapshot, or the
            snapshot has ended: take another one.
        SnapshotBlocked: if somebody locked the table for longer than a minute.
        CredentialsRejected: if this user may not read it.
    """
    yield from _Reading(source, relation, snapshot, after, row_count).chunks()


class _Reading:
    """One table being read through one snapshot."""

    def __init__(
        self,
        source: Source,
        relation: Relation,
        snapshot: ExportedSnapshot,
        after: str | None,
        row_count: int,
    ) -> None:
        if not all(column.attnum for column in relation.columns):
            raise ValueError(f"{relation.qualified_name} was not described by its source")
        self.relation = relation
        self.snapshot = snapshot
        self.row_count = row_count
        self.outputs = source.output_functions(relation)
        self.key = source.key_columns(relation)
        self.leaves = source.partitions(relation)
        self.token: dict[str, Any] = json.loads(after) if after else {}
        if not self.key and self.token.get("lsn") != snapshot.lsn:
            self.token = {}
        self.ordinal = int(self.token.get("ordinal", 0))
        self._source = source

    def chunks(self) -> Iterator[SnapshotChunk]:
        return self._by_key() if self.key else self._by_block()

    # -- with a key

    def _by_key(self) -> Iterator[SnapshotChunk]:
        key: list[str] | None = self.token.get("key")
        while True:
            count = 0
            with self._transaction() as cursor:
                for texts, last in self._pieces(cursor, self._keyed_query(key)):
                    count += len(texts)
                    if len(texts):
                        final = texts.slice(len(texts) - 1)
                        key = [final[column.name][0].as_py() for column in self.key]
                    chunk = self._chunk(texts, {"key": key}, done=last and count < self.row_count)
                    if not last:
                        yield chunk
            # Outside of the transaction: its lock must not last as long as the caller's work.
            yield chunk
            if chunk.done:
                return

    def _keyed_query(self, after: list[str] | None) -> sql.Composed:
        columns = [self._key_column(column) for column in self.key]
        where: sql.Composable = sql.SQL("")
        if after is not None:
            values = [
                sql.SQL("{}::{}").format(
                    sql.Literal(value), sql.SQL(self.outputs[column.type.root.oid].argument)
                )
                for column, value in zip(self.key, after, strict=True)
            ]
            where = sql.SQL("WHERE ({}) > ({})").format(
                sql.SQL(", ").join(columns), sql.SQL(", ").join(values)
            )
        return sql.SQL("SELECT {} FROM {} {} t {} ORDER BY {} LIMIT {}").format(
            self._columns(),
            # A table's old-style heirs are published under their own names, partitions under the root's.
            sql.SQL("" if self.leaves else "ONLY"),
            sql.Identifier(self.relation.schema, self.relation.name),
            where,
            sql.SQL(", ").join(columns),
            sql.Literal(self.row_count),
        )

    def _key_column(self, column: KeyColumn) -> sql.Composed:
        name = sql.SQL("t.{}").format(sql.Identifier(column.name))
        return sql.SQL("{} COLLATE {}").format(name, sql.SQL(column.collation)) if column.collation else name

    # -- without a key

    def _by_block(self) -> Iterator[SnapshotChunk]:
        parts = [(leaf.oid, leaf.schema, leaf.name) for leaf in self.leaves] or [
            (self.relation.oid, self.relation.schema, self.relation.name)
        ]
        block, skipped = int(self.token.get("block", 0)), int(self.token.get("rows", 0))
        block_count = max(1, self.row_count // _ROWS_PER_BLOCK)
        for index in range(int(self.token.get("part", 0)), len(parts)):
            oid, schema, name = parts[index]
            is_last = index == len(parts) - 1
            end_block = None
            while end_block is None or block < end_block:
                count = skipped
                with self._transaction() as cursor:
                    if end_block is None:
                        end_block = _number(cursor, _BLOCKS.format(oid=oid))
                    upto = min(block + block_count, end_block)
                    query = self._block_query(schema, name, block, upto, skipped)
                    for texts, last in self._pieces(cursor, query):
                        count += len(texts)
                        place = {"part": index, "block": block, "rows": count, "lsn": self.snapshot.lsn}
                        if last:
                            place |= {"block": upto, "rows": 0}
                        chunk = self._chunk(texts, place, done=last and is_last and upto >= end_block)
                        if not last:
                            yield chunk
                yield chunk
                block_count = max(1, min(4 * block_count, block_count * self.row_count // max(1, count)))
                block, skipped = upto, 0
            block = 0

    def _block_query(self, schema: str, name: str, block: int, upto: int, skipped: int) -> sql.Composed:
        return sql.SQL(
            "SELECT {} FROM ONLY {} t WHERE t.ctid >= {}::tid AND t.ctid < {}::tid OFFSET {}"
        ).format(
            self._columns(),
            sql.Identifier(schema, name),
            sql.Literal(f"({block},0)"),
            sql.Literal(f"({upto},0)"),
            sql.Literal(skipped),
        )

    # -- both

    @contextmanager
    def _transaction(self) -> Iterator[Cursor]:
        """A transaction that sees the table as the snapshot did, or refuses."""
        relation = self.relation
        table = sql.Identifier(relation.schema, relation.name).as_string()
        with self.snapshot.transaction(relation.qualified_name) as cursor:
            cursor.execute(f"LOCK TABLE {table} IN ACCESS SHARE MODE")
            oids = [leaf.oid for leaf in self.leaves] or [relation.oid]
            if _number(cursor, _REWRITTEN.format(oids=",".join(map(str, oids)))):
                raise self._stale("it was rewritten or truncated")
            cursor.execute(_SHAPE.format(oid=relation.oid))
            shape = {row[0]: row[1:] for row in cursor.fetchall()}
            for column in relation.columns:
                if shape.get(column.attnum) != (column.type.oid, column.type.typmod, column.name):
                    raise self._stale(f"column {column.name!r} is not what it was described as")
            yield cursor

    def _stale(self, reason: str) -> SnapshotStale:
        return SnapshotStale(
            f"{self.relation.qualified_name} at {self._source.place} cannot be read "
            f"as of its snapshot: {reason}",
            hint="describe the table again and take another snapshot",
        )

    def _columns(self) -> sql.Composed:
        return sql.SQL(", ").join(
            catalog.column_text(column, self.outputs) for column in self.relation.columns
        )

    def _pieces(self, cursor: Cursor, query: sql.Composed) -> Iterator[tuple[pa.Table, bool]]:
        """The result in pieces of bounded size, each with whether it is the last; at least one."""
        cursor.execute(query.as_string())
        batches: list[pa.RecordBatch] = []
        reader = cursor.fetch_record_batch()
        for batch in reader:
            if sum(held.nbytes for held in batches) >= _CHUNK_BYTES:
                yield pa.Table.from_batches(batches), False
                batches = []
            batches.append(batch)
        yield pa.Table.from_batches(batches, reader.schema), True

    def _chunk(self, texts: pa.Table, place: dict[str, Any], *, done: bool) -> SnapshotChunk:
        count, schema = len(texts), self.relation.frame_schema
        rows = text_columns(self.relation, texts)
        constants: dict[str, Any] = {
            "_op": pa.scalar("r", pa.string()),
            "_position": pa.scalar(self.snapshot.lsn, pa.int64()),
            "_xid": pa.scalar(0, pa.int64()),
            "_committed_at": pa.scalar(self.snapshot.taken_at, COMMITTED_AT_TYPE),
        }
        columns: list[Any] = []
        for field in schema:
            if field.name in constants:
                columns.append(pa.repeat(constants[field.name], count))
            elif field.name == "_ordinal":
                columns.append(pa.array(np.arange(self.ordinal, self.ordinal + count)))
            elif field.name in ("_unchanged", "_before"):
                columns.append(pa.nulls(count, field.type))
            else:
                columns.append(rows[field.name])
        self.ordinal += count
        return SnapshotChunk(
            self.relation,
            pa.Table.from_arrays(columns, schema=schema),
            json.dumps({**place, "ordinal": self.ordinal}),
            self.snapshot.lsn,
            done,
        )


def _number(cursor: Cursor, query: str) -> int:
    cursor.execute(query)
    row = cursor.fetchone()
    assert row is not None
    return int(row[0])


@contextmanager
def _translated(source: Source, table: str) -> Iterator[None]:
    """Turn the driver's errors inside into ours.

    Raises:
        SnapshotStale, SnapshotBlocked, CredentialsRejected, SourceDisconnected, SourceError
    """
    try:
        yield
    except adbc_driver_manager.Error as error:
        state = error.sqlstate or ""
        text = redacted(_message(error), source.config.url)
        what = f"{table} at {source.place}" if table else source.place
        if state in ("42703", "42P01", "42704", "22023"):
            raise SnapshotStale(
                f"the snapshot of {what} can no longer be read: {text}",
                hint="describe the table again and take another snapshot",
            ) from None
        if state == "55P03":
            raise SnapshotBlocked(
                f"{what} was locked for more than {_LOCK_SECONDS} s: {text}",
                hint="a migration may hold it: SELECT * FROM pg_locks WHERE mode = 'AccessExclusiveLock'",
            ) from None
        if state == "42501":
            raise CredentialsRejected(
                f"{what} may not be read: {text}", hint="grant SELECT on it to this user"
            ) from None
        if not state or state.startswith(("08", "57P")):
            raise SourceDisconnected(
                f"the connection to {source.place} broke while reading: {text}"
            ) from None
        raise SourceError(f"{what} cannot be read: {text}") from None


def _message(error: adbc_driver_manager.Error) -> str:
    """The server's own sentence: the driver's text quotes the whole query."""
    details: list[tuple[Any, Any]] = list(error.details or ())
    for name, value in details:
        if name == b"PG_DIAG_MESSAGE_PRIMARY":
            return str(value.decode("utf-8", "replace"))
    return str(error).splitlines()[0]
