"""A Delta table whose bytes follow from its content, however it came to have it.

Rows are kept in **buckets**: one data file each, its rows in one total order. Which bucket a row
belongs to, and how it is written, depends on nothing but the row. So a table that grew in many
small steps, one that survived a crash, and one that was made anew consist of equal files.

A file's name says its bucket and a **fingerprint** of what it was made from: whoever folds sees
by the names alone which buckets are behind, and what is folded is remembered in the same commit
as the rows themselves. The rest of the name is random, so that two writers never share a file.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mesh_assets import failpoint
from mesh_assets.errors import CommitConflict, Fenced, LakeError, LayoutUnknown, TableMissing
from mesh_assets.lake.file import PARQUET_OPTIONS, FileRef, describe
from mesh_assets.lake.table import REWRITE, Table
from mesh_assets.lake.upkeep import Upkeep, maintain

BUCKET_COUNT = 16
_UPKEEP_COMMITS = 20
_UPKEEP = Upkeep(archive_seconds=300.0, vacuum_seconds=900.0)


@dataclass(frozen=True)
class Shape:
    """What a table of the enterprise catalog looks like.

    Attributes:
        name: the table's name.
        schema: its columns.
        order: columns that order the rows; no two rows are equal in all of them.
        statistics: columns whose bounds each file carries.
        description: what a row is.
    """

    name: str
    schema: pa.Schema
    order: tuple[str, ...]
    statistics: tuple[str, ...] = ()
    description: str = ""


@dataclass(frozen=True)
class Bucket:
    """The live file of one bucket."""

    fingerprint: str
    file: FileRef


@dataclass(frozen=True)
class Content:
    """What a bucket shall hold; without rows the bucket goes.

    Attributes:
        rows: in any order.
        fingerprint: of what they were made from; the hash of the file itself when left out.
    """

    rows: pa.Table
    fingerprint: str = ""


class Canonical:
    """A handle on one such table; it is made by the first write.

    Raises:
        LayoutUnknown: if the table has columns of another type: another program wrote it.
    """

    def __init__(self, uri: str, shape: Shape) -> None:
        self.uri = uri
        self.shape = shape
        self._table: Table | None = None
        try:
            self._table = Table.open(uri)
        except TableMissing:
            return
        self._check()

    @property
    def version(self) -> int:
        """The Delta version this handle is at; -1 if there is no table."""
        return self._table.version if self._table is not None else -1

    def transaction(self, app_id: str) -> int | None:
        """The value last committed for an app id."""
        return self._table.transaction(app_id) if self._table is not None else None

    def buckets(self) -> dict[str, Bucket]:
        """The live buckets by name."""
        found = {}
        for file in self._table.files() if self._table is not None else ():
            bucket, fingerprint, _, _ = file.path.rsplit(".", 3)
            found[bucket] = Bucket(fingerprint, file)
        return dict(sorted(found.items()))

    def read(self, buckets: Iterable[str] | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of some buckets (all by default), bucket by bucket in the order of their names."""
        if self._table is None:
            schema = self.shape.schema
            return schema.empty_table() if columns is None else schema.empty_table().select(list(columns))
        live = self.buckets()
        chosen = live if buckets is None else [name for name in buckets if name in live]
        return self._table.read([live[name].file for name in chosen], columns)

    def scan(self) -> pl.LazyFrame:
        """All rows, lazily; filters reach the files."""
        if self._table is None:
            frame = pl.from_arrow(self.shape.schema.empty_table())
            assert isinstance(frame, pl.DataFrame)
            return frame.lazy()
        return self._table.scan(one.file for one in self.buckets().values())

    def replace(
        self,
        contents: Mapping[str, Content],
        *,
        transactions: Mapping[str, int] | None = None,
    ) -> int:
        """Put new content into some buckets, in one durable commit; returns how many files were written.

        Nothing is committed if nothing would change.

        Raises:
            CommitConflict: if another writer came first: begin again with a new handle.
            StorageFull: if the disk is full.
        """
        table = self._open()
        live = self.buckets()
        add: list[FileRef] = []
        remove: list[FileRef] = []
        for name, content in sorted(contents.items()):
            held = live.get(name)
            if content.rows.num_rows == 0:
                if held is not None:
                    remove.append(held.file)
                continue
            data, rows = self.encoded(content.rows)
            fingerprint = content.fingerprint or hashlib.sha256(data).hexdigest()[:16]
            if held is not None and held.fingerprint == fingerprint:
                continue
            path = f"{name}.{fingerprint}.{uuid.uuid4().hex[:12]}.parquet"
            table.storage.write(path, data)
            add.append(describe(path, len(data), rows, table.statistics))
            if held is not None:
                remove.append(held.file)
        due = {key: value for key, value in (transactions or {}).items() if table.transaction(key) != value}
        if not add and not remove and not due:
            return 0
        failpoint.reach("file.written")
        # Whoever decided on the contents looked at this handle's version: no other may come between.
        expect = {REWRITE: table.transaction(REWRITE)}
        try:
            table.rewrite(remove=remove, add=add, transactions=due, expect=expect)
        except Fenced as error:
            table.discard(add)
            raise CommitConflict(f"another fold of {self.uri} came first") from error
        if table.version % _UPKEEP_COMMITS == 0:
            maintain(Table.open(self.uri), _UPKEEP, compacting=False)
        return len(add)

    def encoded(self, rows: pa.Table) -> tuple[bytes, pa.Table]:
        """The bytes of a bucket's file, and its rows as they are in it."""
        try:
            shaped = rows.select(self.shape.schema.names).cast(self.shape.schema)
        except (KeyError, pa.ArrowInvalid) as error:
            raise LakeError(f"rows do not fit the table at {self.uri}: {error}") from error
        keys: list[tuple[str, str]] = [(name, "ascending") for name in self.shape.order]
        ordered = shaped.take(pc.sort_indices(shaped, sort_keys=keys)).combine_chunks()
        sink = pa.BufferOutputStream()
        options = PARQUET_OPTIONS | {"use_dictionary": True}
        pq.write_table(ordered, sink, write_statistics=list(self.shape.statistics), **options)
        return sink.getvalue().to_pybytes(), ordered

    def digest(self) -> str:
        """SHA-256 (hex) over all live files: equal content, however it came about, has an equal digest."""
        whole = hashlib.sha256()
        if self._table is not None:
            for name, bucket in self.buckets().items():
                data = self._table.storage.read(bucket.file.path)
                line = f"{name} {bucket.fingerprint} {hashlib.sha256(data).hexdigest()}\n"
                whole.update(line.encode())
        return whole.hexdigest()

    def _open(self) -> Table:
        if self._table is None:
            try:
                self._table = Table.create(
                    self.uri,
                    self.shape.schema,
                    statistics=self.shape.statistics,
                    name=self.shape.name,
                    description=self.shape.description,
                )
            except LakeError:
                # Somebody else made it in between; if not, opening says what is wrong.
                self._table = Table.open(self.uri)
                self._check()
        return self._table

    def _check(self) -> None:
        assert self._table is not None
        found = {field.name: field.type for field in self._table.schema}
        wanted = {field.name: field.type for field in self.shape.schema}
        if found != wanted:
            differing = sorted(
                name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)
            )
            raise LayoutUnknown(
                f"the table at {self.uri} was written by another version of this program: "
                f"columns {', '.join(differing)}",
                hint="delete the enterprise folder and fold again: everything in it is derived",
            )


def bucket_of(text: str) -> str:
    """The bucket of what has this name."""
    return f"{crc32(text.encode()) % BUCKET_COUNT:02x}"
