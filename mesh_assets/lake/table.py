"""One Delta table with durable, fenced commits.

What delta-rs leaves open is settled here once, for every table of the lake:

- **Durable.** A data file and its folder are forced to disk before the commit that names it, the
  commit file and its folder before the call returns.
- **Fenced.** Positions live in app transactions of the same commit. delta-rs refuses a commit whose
  app id was committed by another handle since this handle was loaded, but it does not look at the
  values, and a handle that was reopened has seen everything. So a writer also says what it
  *expects* to find.
- **Rewrites exclude each other.** delta-rs lets two commits without data change remove the same
  file, which would double its rows; the app transaction ``rewrite`` of every rewrite prevents it.
  It fences no appender.
- **Fast at any number of versions.** A handle slows down with every commit it has seen, so it is
  reopened on a checkpoint every :data:`CHECKPOINT_INTERVAL` commits; delta-rs' own hooks are off,
  because they list the whole log on each commit.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable, Schema
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import (
    AddAction,
    CommitProperties,
    PostCommitHookProperties,
    RemoveAction,
    Transaction,
)

from mesh_assets import failpoint
from mesh_assets.errors import CommitConflict, Fenced, LakeError, StorageFull, TableMissing
from mesh_assets.lake.commit import (
    POINTER_PATH,
    Commit,
    checkpoint_path,
    commit_path,
    last_checkpoint,
    read_commit,
)
from mesh_assets.lake.file import PARQUET_OPTIONS, FileRef, bounded, conform, describe, joined, slices
from mesh_assets.lake.origin import Made, Operation, note, signed
from mesh_assets.lake.storage import LOG_FOLDER, Storage, full_disk_named, storage_of

CHECKPOINT_INTERVAL = 25
FILE_ROWS = 1_000_000
FILE_BYTES = 256 * 1024 * 1024
REWRITE = "rewrite"
"""The app transaction that every rewrite increments."""

_PROPERTY = "mesh."
_NO_HOOKS = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)
_CONCURRENT_TRANSACTION = "Concurrent transaction failed"


class Table:
    """A handle on one Delta table, at one Delta version until :meth:`refresh` or a commit.

    Not thread-safe: give each thread its own.
    """

    def __init__(self, storage: Storage, delta: DeltaTable) -> None:
        self.storage = storage
        self._delta = delta
        self._version = int(delta.version())
        self._opened = self._version
        self._checkpointed = last_checkpoint(storage)
        self._schema: pa.Schema | None = None
        self._transactions: dict[str, int | None] = {}
        self._files: dict[str, FileRef] = {}
        self._files_version = -1

    @classmethod
    def open(cls, uri: str) -> Table:
        """Open a table at its newest version.

        Raises:
            TableMissing: if there is no Delta table at ``uri``.
        """
        storage = storage_of(uri)
        return cls(storage, _load(storage.uri))

    @classmethod
    def create(
        cls,
        uri: str,
        schema: pa.Schema,
        *,
        append_only: bool = False,
        statistics: Sequence[str] = (),
        order: str | None = None,
        name: str | None = None,
        description: str | None = None,
        properties: Mapping[str, str] | None = None,
        transactions: Mapping[str, int] | None = None,
        anew: bool = False,
    ) -> Table:
        """Create an empty table, durably.

        Args:
            uri: a local path or an object store's URI.
            schema: all columns nullable, of types that Delta has.
            append_only: let Delta refuse commits that delete rows.
            statistics: the columns whose bounds each file carries (types that have none are left out).
            order: the column in whose order rows were appended; compaction keeps it.
            name: the table's name in its metadata.
            description: the table's description in its metadata.
            properties: own properties, kept in the metadata, read back by :meth:`property`.
            transactions: app transactions that the table begins with.
            anew: replace the table that is there, in one commit; its app transactions stay.

        Raises:
            LakeError: if the table exists already, or changed while it was to be replaced.
        """
        storage = storage_of(uri)
        if not anew and cls.exists(uri):
            raise LakeError(f"there is already a table at {storage.uri}")
        kept = [column for column in statistics if bounded(schema.field(column).type)]
        own = dict(properties or {}) | {"statistics": json.dumps(kept)}
        if order is not None:
            own["order"] = order
        configuration = {
            "delta.appendOnly": str(append_only).lower(),
            "delta.dataSkippingStatsColumns": ",".join(_quoted(column) for column in kept),
            # Tombstones would fill each checkpoint; vacuum here keeps its own book of what it saw.
            "delta.deletedFileRetentionDuration": "interval 1 hours",
            # The log is archived, never thrown away, whoever commits to the table.
            "delta.enableExpiredLogCleanup": "false",
        } | {_PROPERTY + key: value for key, value in own.items()}
        with full_disk_named(storage.uri):
            storage.prepare()
            delta = _created(
                storage.uri,
                Schema.from_arrow(schema),
                name=name,
                description=description,
                configuration=configuration,
                mode="overwrite" if anew else "error",
                raise_if_key_not_exists=False,
                commit_properties=CommitProperties(
                    custom_metadata=signed(None),
                    app_transactions=[Transaction(name, at) for name, at in (transactions or {}).items()],
                ),
                post_commithook_properties=_NO_HOOKS,
            )
        created = cls(storage, delta)
        storage.force([commit_path(created.version), LOG_FOLDER])
        note(Made(storage.uri, created.version, "create", schema=created.schema))
        return created

    @staticmethod
    def exists(uri: str) -> bool:
        """Whether there is a Delta table at ``uri``."""
        return bool(DeltaTable.is_deltatable(storage_of(uri).uri))

    @property
    def uri(self) -> str:
        """Where the table lies: an absolute local path or an object store's URI."""
        return self.storage.uri

    @property
    def version(self) -> int:
        """The Delta version this handle is at."""
        return self._version

    @property
    def schema(self) -> pa.Schema:
        """The columns at this version."""
        if self._schema is None:
            self._schema = pa.schema(self._delta.schema())  # By the PyCapsule protocol.
        return self._schema

    @property
    def statistics(self) -> tuple[str, ...]:
        """The columns whose bounds each file carries."""
        return tuple(json.loads(self.property("statistics") or "[]"))

    @property
    def order(self) -> str | None:
        """The column in whose order rows were appended, if the table has one."""
        return self.property("order")

    def property(self, name: str) -> str | None:
        """One of the properties given to :meth:`create`."""
        value: str | None = self._delta.metadata().configuration.get(_PROPERTY + name)
        return value

    def transaction(self, app_id: str) -> int | None:
        """The value last committed for an app id, as of this handle's version.

        Raises:
            LakeError: if the handle is so old that its version's log is archived.
        """
        if app_id not in self._transactions:
            try:
                self._transactions[app_id] = self._delta.transaction_version(app_id)
            except DeltaError as error:
                if not self._outrun():
                    raise
                raise LakeError(
                    f"version {self._version} of {self.uri} was archived meanwhile", hint="refresh the handle"
                ) from error
        return self._transactions[app_id]

    def files(self) -> list[FileRef]:
        """The data files of this version, in the table's order if it has one.

        Only commits newer than those already seen are read.
        """
        if self._files_version != self._version and not self._follow_commits():
            self._files = {file.path: file for file in self._all_files()}
            self._files_version = self._version
        files = list(self._files.values())
        if (order := self.order) is not None:
            files.sort(key=lambda file: (file.low.get(order, -1), file.high.get(order, -1)))
        return files

    def read(self, files: Iterable[FileRef] | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of some files (all by default), in the order given, in the table's present shape."""
        schema = self.schema
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns])
        parts = [schema.empty_table()]
        parts += [
            conform(self._read_file(file, schema.names), schema)
            for file in (self.files() if files is None else files)
        ]
        return pa.concat_tables(parts)

    def batches(
        self, files: Iterable[FileRef], columns: Sequence[str] | None = None, *, row_count: int
    ) -> Iterator[pa.Table]:
        """Rows of some files, in the order given and as they stand there, about so many at a time.

        Little more than that is in memory. Struct columns and types are in the table's present shape.
        """
        schema = self.schema
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns])
        for file in files:
            for batch in self.storage.parquet_batches(file.path, schema.names, row_count):
                yield conform(pa.Table.from_batches([batch]), schema)

    def scan(self, files: Iterable[FileRef]) -> pl.LazyFrame:
        """A lazy frame over some files, in the table's present shape."""
        frame = pl.from_arrow(self.schema.empty_table())
        assert isinstance(frame, pl.DataFrame)
        addresses = [self.storage.address(file.path) for file in files]
        if not addresses:
            return frame.lazy()
        return pl.scan_parquet(
            addresses,
            schema=frame.schema,
            missing_columns="insert",
            cast_options=pl.ScanCastOptions(missing_struct_fields="insert"),
            glob=False,
            hive_partitioning=False,
        )

    def write(self, rows: pa.Table) -> list[FileRef]:
        """Write rows as one or more durable data files that no commit refers to yet.

        Raises:
            LakeError: if a column is unknown to the table or has another type.
            StorageFull: if the disk is full; what was written by this call is removed.
        """
        try:
            shaped = conform(rows, self.schema)
        except ValueError as error:
            raise LakeError(f"rows do not fit the table at {self.uri}: {error}") from error
        columns = self.statistics
        written: list[FileRef] = []
        for part in slices(shaped, max_rows=FILE_ROWS, max_bytes=FILE_BYTES):
            if part.num_rows == 0:
                continue
            path = f"{uuid.uuid4().hex}.parquet"
            try:
                size = self.storage.write_parquet(
                    path, part, write_statistics=list(columns), **PARQUET_OPTIONS
                )
            except StorageFull:
                self.discard(written)
                raise
            written.append(describe(path, size, part, columns))
        failpoint.reach("file.written")
        return written

    def draft(self) -> FileDraft:
        """Begin one durable data file that is written part by part and that no commit refers to yet."""
        return FileDraft(self.storage, self.schema, self.statistics)

    def discard(self, files: Iterable[FileRef]) -> None:
        """Remove data files that :meth:`write` or :meth:`draft` made and that no commit refers to."""
        self.storage.remove(file.path for file in files)

    def append(
        self,
        rows: pa.Table | Sequence[FileRef],
        *,
        transactions: Mapping[str, int],
        metadata: Mapping[str, str] | None = None,
        expect: Mapping[str, int | None] | None = None,
    ) -> int:
        """Append rows (or files already written) in one durable commit.

        Args:
            rows: no rows at all give a commit with app transactions only.
            transactions: app ids and values to commit with the rows; one that another handle committed
                meanwhile fences this one.
            metadata: informational; does not survive checkpoints.
            expect: app ids and the values that must stand before the commit (None: never committed).

        Returns:
            The Delta version.

        Raises:
            Fenced: if another writer committed one of the app ids.
            CommitConflict: if the schema changed meanwhile.
            StorageFull: if the disk is full.
        """
        self.ready(expect or {})
        files = self.write(rows) if isinstance(rows, pa.Table) else list(rows)
        return self._commit(files, [], transactions, metadata, data_change=True)

    def rewrite(
        self,
        *,
        remove: Sequence[FileRef],
        add: pa.Table | Sequence[FileRef],
        transactions: Mapping[str, int] | None = None,
        metadata: Mapping[str, str] | None = None,
        data_change: bool = True,
        expect: Mapping[str, int | None] | None = None,
    ) -> int:
        """Replace files by others in one durable commit; returns the Delta version.

        ``data_change=False`` promises that the rows are the same (compaction); an append-only table
        accepts nothing else. Excludes other rewrites, not appends.

        Raises:
            Fenced: as :meth:`append`.
            CommitConflict: if another rewrite came first; the files to be added are removed.
            StorageFull: if the disk is full.
        """
        self.ready(expect or {})
        held = {file.path for file in self.files()}
        if gone := [file.path for file in remove if file.path not in held]:
            if not isinstance(add, pa.Table):
                self.discard(add)
            raise CommitConflict(f"another rewrite of {self.uri} replaced {len(gone)} of the files first")
        files = self.write(add) if isinstance(add, pa.Table) else list(add)
        numbered = dict(transactions or {}) | {REWRITE: (self.transaction(REWRITE) or 0) + 1}
        return self._commit(files, remove, numbered, metadata, data_change=data_change)

    def add_columns(self, fields: Sequence[pa.Field[Any]]) -> None:
        """Add nullable columns, or fields to struct columns, in one durable commit.

        A field that is there already, with the same type, is left alone.

        Raises:
            LakeError: if a column is there with another type.
            CommitConflict: if another writer changed the schema first.
        """
        missing = []
        for field in fields:
            index = self.schema.get_field_index(field.name)
            if index < 0 or _new_fields(self.schema.field(index).type, field.type):
                missing.append(field.with_nullable(True))
            elif not _covers(self.schema.field(index).type, field.type):
                raise LakeError(
                    f"column {field.name} of {self.uri} has type {self.schema.field(index).type}, "
                    f"not {field.type}",
                    hint="a physical column keeps its type: add one of another name",
                )
        if not missing:
            return
        before = self._version
        try:
            with full_disk_named(self.uri):
                self._delta.alter.add_columns(
                    Schema.from_arrow(pa.schema(missing)).fields,
                    commit_properties=CommitProperties(custom_metadata=signed(None)),
                    post_commithook_properties=_NO_HOOKS,
                )
        except CommitFailedError as error:
            raise CommitConflict(f"another writer changed the schema of {self.uri} first") from error
        made = int(self._delta.version())
        self._advance()
        self.storage.force(commit_path(number) for number in range(before + 1, self._version + 1))
        note(Made(self.uri, made, "alter", schema=self.schema))

    def refresh(self) -> int:
        """Move to the newest Delta version; returns it."""
        if self._version - self._opened >= CHECKPOINT_INTERVAL or self._outrun():
            self._reopen()
        elif self.storage.exists(commit_path(self._version + 1)):
            # Mostly there is nothing new, and asking delta-rs for it costs far more.
            self._advance()
        return self._version

    def checkpoint(self) -> int:
        """Write a durable checkpoint of this handle's version, and reopen on it; returns that version."""
        at = self._version
        if last_checkpoint(self.storage) < at:  # Never move the pointer back behind another writer's.
            with full_disk_named(self.uri):
                self._delta.create_checkpoint()
            self.storage.force([checkpoint_path(at), POINTER_PATH])
            failpoint.reach("checkpoint.after")
        self._reopen()
        return at

    def delta(self) -> DeltaTable:
        """The delta-rs handle, for reading (time travel, protocol); committing through it is not durable."""
        return self._delta

    def ready(self, expect: Mapping[str, int | None]) -> None:
        """Make the handle fit for a commit, before anything is written for it.

        Checkpoints and reopens when due, and reopens a handle that slept while the log it was loaded
        from was archived.

        Raises:
            Fenced: as :meth:`check`.
            StorageFull: if the disk is full.
        """
        if self._outrun():
            self._reopen()
        if self._version - self._checkpointed >= CHECKPOINT_INTERVAL:
            self.checkpoint()
        elif self._version - self._opened >= CHECKPOINT_INTERVAL:
            self._reopen()
        self.check(expect)

    def check(self, expect: Mapping[str, int | None]) -> None:
        """Make sure that app ids have the values this writer left (None: never committed).

        Raises:
            Fenced: if one has another value, as of this handle's version.
        """
        for app_id, value in expect.items():
            if (found := self.transaction(app_id)) != value:
                raise Fenced(
                    f"another writer has appended to {self.uri}: "
                    f"{app_id} is {found}, this writer left {value}",
                    hint="this shift ends here; the one that took over goes on",
                )

    def _commit(
        self,
        add: Sequence[FileRef],
        remove: Sequence[FileRef],
        transactions: Mapping[str, int],
        metadata: Mapping[str, str] | None,
        *,
        data_change: bool,
    ) -> int:
        now = int(time.time() * 1000)
        actions: list[AddAction | RemoveAction] = [
            AddAction(file.path, file.size, {}, now, data_change, file.statistics()) for file in add
        ]
        actions += [RemoveAction(file.path, data_change, now, file.size, {}) for file in remove]
        properties = CommitProperties(
            custom_metadata=signed(metadata),
            app_transactions=[Transaction(app_id, value) for app_id, value in transactions.items()],
        )
        before = self._version
        try:
            with full_disk_named(self.uri):
                self._delta.create_write_transaction(
                    actions,
                    "append",
                    self._delta.schema(),
                    commit_properties=properties,
                    post_commithook_properties=_NO_HOOKS,
                )
        except CommitFailedError as error:
            self.discard(add)
            if _CONCURRENT_TRANSACTION in str(error) and not remove:
                raise self._fenced("at the same time") from error
            raise CommitConflict(f"another writer changed {self.uri} first: {error}") from error
        except StorageFull:
            # The commit file is put in place atomically, so a fresh look says whether it got there.
            self._reopen()
            landed = {file.path for file in self.files()}
            self.discard(file for file in add if file.path not in landed)
            raise
        self._advance(own=transactions)
        self.storage.force(commit_path(number) for number in range(before + 1, self._version + 1))
        version = self._version
        if version == before + 1:
            if self._files_version == before:
                self._apply(add, (file.path for file in remove))
                self._files_version = version
        else:
            version = self._find(before + 1, transactions, add)
        rows, size = sum(file.row_count for file in add), sum(file.size for file in add)
        operation: Operation = "compact" if not data_change else "rewrite" if remove else "append"
        note(Made(self.uri, version, operation, rows, size, len(add), self.schema))
        return version

    def _outrun(self) -> bool:
        """Whether the log this handle was loaded from is archived, so that nothing can be based on it."""
        needed = commit_path(0) if self._checkpointed < 0 else checkpoint_path(self._checkpointed)
        return not self.storage.exists(needed)

    def _fenced(self, when: str) -> Fenced:
        return Fenced(
            f"another writer has appended to {self.uri} {when}",
            hint="this shift ends here; the one that took over goes on",
        )

    def _find(self, first: int, transactions: Mapping[str, int], add: Sequence[FileRef]) -> int:
        """Which of several new commits was ours."""
        mine = {file.path for file in add}
        for number in range(first, self._version + 1):
            commit = self._read_commit(number)
            if {file.path for file in commit.added} == mine and commit.transactions == dict(transactions):
                return number
        raise LakeError(f"our own commit to {self.uri} is not among versions {first}..{self._version}")

    def _advance(self, *, own: Mapping[str, int] | None = None) -> None:
        """Take in newer commits; ``own`` are the app transactions of the commit just made, if one was."""
        self._delta.update_incremental()
        version = int(self._delta.version())
        if own is not None and version == self._version + 1:
            self._version = version
            self._transactions.update(own)
        else:
            self._moved_to(version)

    def _reopen(self) -> None:
        self._delta = _load(self.uri)
        self._moved_to(int(self._delta.version()))
        self._opened = self._version
        self._checkpointed = last_checkpoint(self.storage)

    def _moved_to(self, version: int) -> None:
        if version != self._version:
            self._schema = None
            self._transactions.clear()
        self._version = version

    def _follow_commits(self) -> bool:
        """Bring the files up to this version from the commits since; False if one is archived already."""
        if self._files_version < 0 or self._version - self._files_version > 2 * CHECKPOINT_INTERVAL:
            return False
        try:
            commits = [
                self._read_commit(number) for number in range(self._files_version + 1, self._version + 1)
            ]
        except FileNotFoundError:
            return False
        for commit in commits:
            self._apply(commit.added, commit.removed)
        self._files_version = self._version
        return True

    def _apply(self, added: Iterable[FileRef], removed: Iterable[str]) -> None:
        for path in removed:
            self._files.pop(path, None)
        for file in added:
            self._files[file.path] = file

    def _read_commit(self, number: int) -> Commit:
        return read_commit(self.storage, number, self.schema)

    def _all_files(self) -> Iterator[FileRef]:
        listed = pa.table(self._delta.get_add_actions(flatten=True))
        columns = [name for name in self.statistics if f"min.{name}" in listed.column_names]
        for row in listed.to_pylist():
            bounds = {
                side: {name: row[f"{side}.{name}"] for name in columns if row[f"{side}.{name}"] is not None}
                for side in ("min", "max")
            }
            nulls = {
                name: row[f"null_count.{name}"]
                for name in columns
                if row.get(f"null_count.{name}") is not None
            }
            yield FileRef(
                row["path"],
                row["size_bytes"],
                row["num_records"] or 0,
                low=bounds["min"],
                high=bounds["max"],
                null_count=nulls,
            )

    def _read_file(self, file: FileRef, columns: Sequence[str]) -> pa.Table:
        # Columns that the file does not have yet are left out by the reader and filled in by conform.
        return self.storage.read_parquet(file.path, list(columns))


class FileDraft:
    """One data file on its way: rows are taken part by part and leave memory as row groups fill.

    Attributes:
        row_count: rows taken so far.
    """

    def __init__(self, storage: Storage, schema: pa.Schema, statistics: Sequence[str]) -> None:
        self.row_count = 0
        self._path = f"{uuid.uuid4().hex}.parquet"
        self._schema, self._statistics = schema, statistics
        self._parts: list[FileRef] = []
        self._waiting: list[pa.Table] = []
        options = PARQUET_OPTIONS | {"write_statistics": list(statistics)}
        self._draft = storage.draft_parquet(self._path, schema, **options)

    def write(self, rows: pa.Table) -> None:
        """Take rows of the table's own schema.

        Raises:
            StorageFull: if the disk is full; the file is gone.
        """
        self.row_count += rows.num_rows
        self._waiting.append(rows)
        if sum(part.num_rows for part in self._waiting) >= PARQUET_OPTIONS["row_group_size"]:
            self._flush()

    def finish(self) -> FileRef:
        """Make the file durable; it needs at least one row.

        Raises:
            StorageFull: if the disk is full; the file is gone.
        """
        self._flush()
        size = self._draft.finish()
        failpoint.reach("file.written")
        return joined(self._path, size, self._parts)

    def abandon(self) -> None:
        """Leave no file behind."""
        self._draft.abandon()

    def _flush(self) -> None:
        if not self._waiting:
            return
        rows = pa.concat_tables(self._waiting)
        self._waiting.clear()
        self._parts.append(describe("", 0, rows, self._statistics))
        self._draft.write(rows)


def _created(uri: str, schema: Schema, **options: Any) -> DeltaTable:  # noqa: ANN401 - delta-rs' own options
    try:
        return DeltaTable.create(uri, schema, **options)
    except DeltaError as error:
        if DeltaTable.is_deltatable(uri):
            raise LakeError(f"another writer created the table at {uri} first") from error
        raise


def _load(uri: str) -> DeltaTable:
    try:
        return DeltaTable(uri)
    except TableNotFoundError:
        raise TableMissing(f"there is no table at {uri}") from None


def _quoted(column: str) -> str:
    plain = column.replace("_", "a")
    return column if plain.isascii() and plain.isalnum() else "`" + column.replace("`", "``") + "`"


def _new_fields(held: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a struct type has fields that the held one lacks."""
    if not (pa.types.is_struct(held) and pa.types.is_struct(wanted)):
        return False
    return any(held.get_field_index(wanted.field(i).name) < 0 for i in range(wanted.num_fields))


def _covers(held: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether the held type is the wanted one, or a struct with at least its fields."""
    if pa.types.is_struct(held) and pa.types.is_struct(wanted):
        fields = [wanted.field(i) for i in range(wanted.num_fields)]
        return all(
            held.get_field_index(field.name) >= 0 and held.field(field.name).type.equals(field.type)
            for field in fields
        )
    return bool(held.equals(wanted))
