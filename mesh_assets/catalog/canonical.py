"""A Delta table whose bytes follow from its content, however it came to have it.

Rows are kept in **buckets**: one data file each, its rows in one total order. Which bucket a row
belongs to, and how it is written, depends on nothing but the row. So a table that grew in many
small steps, one that survived a crash, and one that was made anew consist of equal files.

A file's name says its bucket and a **fingerprint** of what it was made from: whoever folds sees
by the names alone which buckets are behind, and what is folded is remembered in the same commit
as the rows themselves. The rest of the name is random, so that two writers never share a file.

A table of an earlier layout is for whoever folds as if it were not there: it is emptied and filled
anew, and nobody reads it before that is done. One of a later layout is left alone.
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
from mesh_assets.errors import CommitConflict, Fenced, LakeError, LayoutUnknown, StorageFull, TableMissing
from mesh_assets.lake.file import PARQUET_OPTIONS, FileRef, describe
from mesh_assets.lake.table import REWRITE, Table
from mesh_assets.lake.upkeep import Upkeep, maintain

BUCKET_COUNT = 16
LAYOUT = "layout"
"""The app transaction that says in which layout the rows are; negative while they are made anew."""
_FIRST_LAYOUT = 1
"""That of a table which does not say."""
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
        layout: to be raised when what is above changes: tables of a lower one are folded anew.
    """

    name: str
    schema: pa.Schema
    order: tuple[str, ...]
    statistics: tuple[str, ...] = ()
    description: str = ""
    layout: int = _FIRST_LAYOUT


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

    Args:
        uri: where the table lies.
        shape: what it looks like.
        folding: whether all of it can be written: one of an earlier layout is taken for an empty one,
            and made anew by the first write.

    Raises:
        LayoutUnknown: if an earlier program wrote the table, unless ``folding``, or a newer one did.
    """

    def __init__(self, uri: str, shape: Shape, *, folding: bool = False) -> None:
        self.uri = uri
        self.shape = shape
        self._folding = folding
        self._table: Table | None = None
        self._outdated: int | None = None
        """The Delta version at which the table was found to be of an earlier layout."""
        self._look()

    @property
    def version(self) -> int:
        """The Delta version this handle is at; -1 if there is no table."""
        return self._table.version if self._table is not None else -1

    def transaction(self, app_id: str) -> int | None:
        """The value last committed for an app id."""
        if self._table is None or _layout(self._table) < 0:
            return None
        return self._table.transaction(app_id)

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
        due = {key: at for key, at in (transactions or {}).items() if (table.transaction(key) or 0) != at}
        if _layout(table) != self.shape.layout:
            due[LAYOUT] = self.shape.layout
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
        if self._table is not None:
            return self._table
        outdated = self._outdated is not None
        if outdated and Table.open(self.uri).version != self._outdated:
            raise CommitConflict(f"another fold of {self.uri} came first")
        try:
            self._table = Table.create(
                self.uri,
                self.shape.schema,
                statistics=self.shape.statistics,
                name=self.shape.name,
                description=self.shape.description,
                # What is emptied counts as empty for nobody until it is filled.
                transactions={LAYOUT: -self.shape.layout if outdated else self.shape.layout},
                anew=outdated,
            )
        except StorageFull:
            raise
        except LakeError as error:
            if not Table.exists(self.uri):
                raise
            raise CommitConflict(f"another fold of {self.uri} came first") from error
        return self._table

    def _look(self) -> None:
        """Open the table, if it is there and of this layout.

        Raises:
            LayoutUnknown: if it is of another that cannot be passed over.
        """
        try:
            table = Table.open(self.uri)
        except TableMissing:
            return
        held, known = _layout(table), self.shape.layout
        if abs(held) > known:
            raise LayoutUnknown(
                f"the table at {self.uri} has layout {abs(held)}; this program knows layouts up to {known}",
                hint="update the program: a newer one wrote here",
            )
        found = {field.name: field.type for field in table.schema}
        wanted = {field.name: field.type for field in self.shape.schema}
        usable = (known, -known) if self._folding else (known,)
        if held in usable and found == wanted:
            self._table = table
        elif self._folding:
            self._outdated = table.version
        elif held < 0:
            raise LayoutUnknown(
                f"the table at {self.uri} is being made anew in this program's layout",
                hint="try again in a moment; if a fold has died meanwhile, the next one does it",
            )
        else:
            names = [name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)]
            about = f"columns {', '.join(sorted(names))}" if names else f"layout {held}, not {known}"
            raise LayoutUnknown(
                f"the table at {self.uri} was written by an earlier version of this program: {about}",
                hint="the next fold of the enterprise catalog makes it anew",
            )


def _layout(table: Table) -> int:
    held = table.transaction(LAYOUT)
    return _FIRST_LAYOUT if held is None else held


def bucket_of(text: str) -> str:
    """The bucket of what has this name."""
    return f"{crc32(text.encode()) % BUCKET_COUNT:02x}"
