"""Bytes below one table's root: a local folder, or a prefix in an object store.

On a local disk ``durable`` means: written and forced to the disk, the folder's entry too. An
object store acknowledges a write only once it is durable, so there the same calls have nothing
left to do.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake.exceptions import DeltaError
from deltalake.fs import DeltaStorageHandler

from mesh_assets.errors import LakeError, StorageFull

LOG_FOLDER = "_delta_log"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXTS = ("No space left on device", "Disk quota exceeded", f"os error {errno.ENOSPC})")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file found by listing: its path below the root, bytes, and seconds since the epoch."""

    path: str
    size: int
    modified: float


@contextmanager
def full_disk_named(uri: str) -> Iterator[None]:
    """Turn any sign of a full disk within the block into :class:`StorageFull`.

    Raises:
        StorageFull: if the operating system or delta-rs said that no space is left.
    """
    try:
        yield
    except (OSError, pa.ArrowException, DeltaError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in _FULL or any(text in str(error) for text in _FULL_TEXTS):
            raise StorageFull(
                f"no space is left on the device that holds {uri}",
                hint="free some space; nothing was acknowledged, the next shift takes the batch again",
            ) from error
        raise


class Draft(Protocol):
    """A Parquet file that is being written and that nobody can see the whole of yet."""

    def write(self, rows: pa.Table) -> None:
        """Append rows as row groups of their own; leaves no file behind if the disk is full."""
        ...

    def finish(self) -> int:
        """Make the file durable; returns its size in bytes, or leaves no file behind."""
        ...

    def abandon(self) -> None:
        """Leave no file behind."""
        ...


class Storage(Protocol):
    """What the lake needs of the place where a table lies; every path is below ``uri``."""

    uri: str
    tears: bool
    """Whether a power cut can leave a file half there that was visible before."""

    def write_parquet(self, path: str, rows: pa.Table, **options: Any) -> int:  # noqa: ANN401 - pyarrow's own options
        """Write one Parquet file durably; returns its size in bytes, or leaves no file behind."""
        ...

    def draft_parquet(self, path: str, schema: pa.Schema, **options: Any) -> Draft:  # noqa: ANN401 - pyarrow's own options
        """Begin a Parquet file that is written part by part."""
        ...

    def read_parquet(self, path: str, columns: list[str] | None = None) -> pa.Table:
        """Read one Parquet file whole."""
        ...

    def parquet_batches(self, path: str, columns: list[str], row_count: int) -> Iterator[pa.RecordBatch]:
        """Read one Parquet file in order, about so many rows at a time, and no more than it takes."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Write one file durably and atomically: a reader sees the old bytes or the new ones."""
        ...

    def read(self, path: str) -> bytes:
        """Read one file; FileNotFoundError if there is none."""
        ...

    def tail(self, path: str, byte_count: int) -> tuple[int, bytes]:
        """The size of a file and its last bytes; FileNotFoundError if there is none."""
        ...

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        ...

    def entries(self, folder: str) -> list[Entry]:
        """The files directly in a folder (none if there is no such folder), by path."""
        ...

    def folders(self, folder: str) -> list[str]:
        """The names of the folders directly in a folder (none if there is no such folder), in order."""
        ...

    def remove(self, paths: Iterable[str]) -> None:
        """Remove files; one that is already gone is no error."""
        ...

    def move(self, path: str, to: str) -> None:
        """Move one file durably."""
        ...

    def force(self, paths: Iterable[str]) -> None:
        """Make files durable that someone else (delta-rs) wrote, and their folders' entries."""
        ...

    def prepare(self) -> None:
        """Make the place exist, durably."""
        ...

    def address(self, path: str) -> str:
        """What polars and DuckDB open."""
        ...


def storage_of(uri: str) -> Storage:
    """The storage of a table URI: local for a path or ``file:``, an object store for any other scheme."""
    split = urlsplit(uri)
    if len(split.scheme) <= 1:
        return LocalStorage(uri)
    if split.scheme == "file":
        return LocalStorage(unquote(split.path))
    return ObjectStorage(uri)


def _force(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LocalStorage:
    """A folder on a local disk."""

    tears = True

    def __init__(self, folder: str) -> None:
        if "%" in folder:
            raise LakeError(
                f"the lake cannot lie at {folder}: delta-rs takes % in a path for an escape",
                hint="choose a folder without % in its path",
            )
        self.uri = str(Path(folder).absolute())
        self._root = Path(self.uri)

    def _folder(self, path: Path) -> None:
        """Create a folder and force every new entry on the way to it."""
        missing = []
        while not path.exists():
            missing.append(path)
            path = path.parent
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            _force(folder.parent)

    def write_parquet(self, path: str, rows: pa.Table, **options: Any) -> int:  # noqa: ANN401 - pyarrow's own options
        draft = self.draft_parquet(path, rows.schema, **options)
        draft.write(rows)
        return draft.finish()

    def draft_parquet(self, path: str, schema: pa.Schema, **options: Any) -> Draft:  # noqa: ANN401 - pyarrow's own options
        return _LocalDraft(self, self._root / path, schema, options)

    def read_parquet(self, path: str, columns: list[str] | None = None) -> pa.Table:
        return pq.ParquetFile(str(self._root / path)).read(columns=columns)

    def parquet_batches(self, path: str, columns: list[str], row_count: int) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(str(self._root / path)) as file:
            yield from _batches(file, columns, row_count)

    def write(self, path: str, data: bytes) -> None:
        target = self._root / path
        self._folder(target.parent)
        draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            with full_disk_named(self.uri):
                with draft.open("wb") as out:
                    out.write(data)
                    out.flush()
                    os.fsync(out.fileno())
                draft.replace(target)
                _force(target.parent)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise

    def read(self, path: str) -> bytes:
        return (self._root / path).read_bytes()

    def tail(self, path: str, byte_count: int) -> tuple[int, bytes]:
        with (self._root / path).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - byte_count))
            return size, file.read()

    def exists(self, path: str) -> bool:
        return (self._root / path).exists()

    def entries(self, folder: str) -> list[Entry]:
        prefix = f"{folder}/" if folder else ""
        found = []
        try:
            with os.scandir(self._root / folder) as scan:
                for item in scan:
                    try:
                        if item.is_file():
                            status = item.stat()
                            found.append(Entry(prefix + item.name, status.st_size, status.st_mtime))
                    except FileNotFoundError:  # Removed by another process between listing and stat.
                        continue
        except FileNotFoundError:
            return []
        return sorted(found, key=lambda entry: entry.path)

    def folders(self, folder: str) -> list[str]:
        try:
            with os.scandir(self._root / folder) as scan:
                return sorted(item.name for item in scan if item.is_dir())
        except FileNotFoundError:
            return []

    def remove(self, paths: Iterable[str]) -> None:
        folders = set()
        for path in paths:
            target = self._root / path
            target.unlink(missing_ok=True)
            folders.add(target.parent)
        for folder in folders:
            if folder.exists():
                _force(folder)

    def move(self, path: str, to: str) -> None:
        source, target = self._root / path, self._root / to
        self._folder(target.parent)
        shutil.move(source, target)
        _force(target.parent)
        _force(source.parent)

    def force(self, paths: Iterable[str]) -> None:
        folders = set()
        with full_disk_named(self.uri):
            for path in paths:
                target = self._root / path
                _force(target)
                folders.add(target.parent)
            for folder in folders:
                _force(folder)

    def prepare(self) -> None:
        """Create the table's folder with every entry on the way to it durable."""
        self._folder(self._root)

    def address(self, path: str) -> str:
        return f"{self.uri}/{path}"


class _LocalDraft:
    """A draft on a local disk: the file grows where it will lie."""

    def __init__(
        self, storage: LocalStorage, target: Path, schema: pa.Schema, options: dict[str, Any]
    ) -> None:
        self._uri, self._target = storage.uri, target
        self._row_group_size = options.pop("row_group_size", None)
        with self._guarded():
            self._writer = pq.ParquetWriter(str(target), schema, **options)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            with full_disk_named(self._uri):
                yield
        except BaseException:
            # Not referenced by any commit yet, so nobody can miss it; a full disk needs the space.
            self._target.unlink(missing_ok=True)
            raise

    def write(self, rows: pa.Table) -> None:
        with self._guarded():
            self._writer.write_table(rows, self._row_group_size)

    def finish(self) -> int:
        with self._guarded():
            self._writer.close()
            _force(self._target)
            _force(self._target.parent)
        return self._target.stat().st_size

    def abandon(self) -> None:
        self._target.unlink(missing_ok=True)
        with suppress(OSError, pa.ArrowException):
            # What it still writes goes nowhere.
            self._writer.close()


class _ObjectDraft:
    """A draft for an object store: one object is put at once, so its bytes are gathered."""

    def __init__(self, storage: ObjectStorage, path: str, schema: pa.Schema, options: dict[str, Any]) -> None:
        self._storage, self._path = storage, path
        self._row_group_size = options.pop("row_group_size", None)
        self._sink = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(self._sink, schema, **options)

    def write(self, rows: pa.Table) -> None:
        self._writer.write_table(rows, self._row_group_size)

    def finish(self) -> int:
        self._writer.close()
        data = self._sink.getvalue().to_pybytes()
        self._storage.write(self._path, data)
        return len(data)

    def abandon(self) -> None:
        self._writer.close()


def _batches(file: pq.ParquetFile, columns: list[str], row_count: int) -> Iterator[pa.RecordBatch]:
    """A file's rows in order; columns that it does not have are left out."""
    held = [name for name in columns if name in file.schema_arrow.names]
    yield from file.iter_batches(row_count, columns=held)


class ObjectStorage:
    """A prefix in an object store, through delta-rs' own client (so the same credentials hold)."""

    tears = False

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._store = DeltaStorageHandler(self.uri)
        self._files = pafs.PyFileSystem(self._store)

    def write_parquet(self, path: str, rows: pa.Table, **options: Any) -> int:  # noqa: ANN401 - pyarrow's own options
        draft = self.draft_parquet(path, rows.schema, **options)
        draft.write(rows)
        return draft.finish()

    def draft_parquet(self, path: str, schema: pa.Schema, **options: Any) -> Draft:  # noqa: ANN401 - pyarrow's own options
        return _ObjectDraft(self, path, schema, options)

    def read_parquet(self, path: str, columns: list[str] | None = None) -> pa.Table:
        with self._files.open_input_file(path) as file:
            return pq.ParquetFile(file).read(columns=columns)

    def parquet_batches(self, path: str, columns: list[str], row_count: int) -> Iterator[pa.RecordBatch]:
        with self._files.open_input_file(path) as file:
            yield from _batches(pq.ParquetFile(file), columns, row_count)

    def write(self, path: str, data: bytes) -> None:
        # Not through pyarrow's file system: it hands over its own buffers, the store takes bytes only.
        with full_disk_named(self.uri):
            out = self._store._handler.open_output_stream(path, None)
            out.write(data)
            out.close()  # type: ignore[attr-defined]  # the stub lacks it

    def read(self, path: str) -> bytes:
        with self._files.open_input_file(path) as file:
            return bytes(file.read())

    def tail(self, path: str, byte_count: int) -> tuple[int, bytes]:
        with self._files.open_input_file(path) as file:
            size = int(file.size())
            file.seek(max(0, size - byte_count))
            return size, bytes(file.read())

    def exists(self, path: str) -> bool:
        return bool(self._files.get_file_info(path).type == pafs.FileType.File)

    def entries(self, folder: str) -> list[Entry]:
        found = self._files.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
        return sorted(
            (
                Entry(info.path.lstrip("/"), int(info.size), info.mtime.timestamp() if info.mtime else 0.0)
                for info in found
                if info.type == pafs.FileType.File
            ),
            key=lambda entry: entry.path,
        )

    def folders(self, folder: str) -> list[str]:
        found = self._files.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)

    def remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            try:
                self._files.delete_file(path)
            except FileNotFoundError:
                continue

    def move(self, path: str, to: str) -> None:
        self.write(to, self.read(path))
        self.remove([path])

    def force(self, paths: Iterable[str]) -> None:
        """Nothing to do: the store answered only when the object was durable."""

    def prepare(self) -> None:
        """Nothing to do: a prefix needs no folder."""

    def address(self, path: str) -> str:
        return f"{self.uri}/{path}"
