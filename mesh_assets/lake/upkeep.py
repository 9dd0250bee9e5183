"""What keeps a table fast and small without changing what it says.

- **Compaction** puts runs of small files together. A row is written again only when its file at
  least doubles, so the work per row grows with the logarithm of the table.
- **Archive** packs commit files that no reader needs any more into one hashed segment per
  checkpoint; commits slow down with every file that stays in the log's folder.
- **Vacuum** removes data files that nothing has referred to for a grace time.

All of it may run beside the table's writer, in another process, and may be killed at any moment.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mesh_assets import failpoint
from mesh_assets.errors import CommitConflict, LakeError
from mesh_assets.lake.commit import CHECKPOINT, COMMIT, numbered
from mesh_assets.lake.file import FileRef
from mesh_assets.lake.recovery import recover
from mesh_assets.lake.storage import LOG_FOLDER, Entry, Storage
from mesh_assets.lake.table import FILE_ROWS, Table

__all__ = ["Maintained", "Upkeep", "archive", "compact", "maintain", "recover", "vacuum", "verify_segment"]

ARCHIVE_FOLDER = "_archive"
_SEEN = f"{ARCHIVE_FOLDER}/unreferenced.json"
_KEPT_CHECKPOINTS = 2
_DRAFT_SECONDS = 3600.0
"""A commit writes its draft and puts it in place at once, whatever grace readers are given."""


@dataclass(frozen=True, slots=True)
class Upkeep:
    """How much to keep, and for how long.

    Attributes:
        archive_seconds: how long a reader may take to open the table; the commit files that it
            might still want to read stay in the log's folder.
        vacuum_seconds: how long a data file must be unreferenced before it is removed; a reader
            that is pinned to an older version for longer than this loses its files.
        small_bytes: files below this are worth putting together, up to about this size.
        run_length: how many adjacent files make a compaction worth its commit.
        commit_count: by how many commits a table has grown when it is worth a round.
        look_seconds: how often to look at a table's growth.
        tend_seconds: how often to ask whether a fold pays.
    """

    archive_seconds: float = 300.0
    vacuum_seconds: float = 3600.0
    small_bytes: int = 64 * 1024 * 1024
    run_length: int = 8
    commit_count: int = 40
    look_seconds: float = 20.0
    tend_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class Maintained:
    """What one round of upkeep did.

    Attributes:
        compacted_count: small files that were put together.
        archived_count: commit files that left the log's folder.
        removed_count: data files removed.
    """

    compacted_count: int = 0
    archived_count: int = 0
    removed_count: int = 0


def maintain(table: Table, upkeep: Upkeep | None = None, *, compacting: bool = True) -> Maintained:
    """One round of compaction, archive and vacuum; cheap when there is nothing to do.

    Give it a handle of its own, not the writer's: it moves the handle to the newest version. A
    current table goes without compaction: its folds keep the files as they need them.

    Raises:
        StorageFull: if the disk is full.
        LakeError: if an archived segment does not verify; its commit files stay.
    """
    upkeep = upkeep or Upkeep()
    table.refresh()
    compacted_count = 0
    if compacting:
        compacted_count = compact(table, small_bytes=upkeep.small_bytes, run_length=upkeep.run_length)
    return Maintained(
        compacted_count=compacted_count,
        archived_count=archive(table, grace_seconds=upkeep.archive_seconds),
        removed_count=vacuum(table, grace_seconds=upkeep.vacuum_seconds),
    )


# -- compaction -------------------------------------------------------------------------------


def compact(table: Table, *, small_bytes: int, run_length: int) -> int:
    """Put runs of adjacent small files together, in the table's order; returns how many files went.

    Gives way to another rewrite of the same files; never fences the writer.
    """
    count = 0
    for run in list(_runs(table.files(), small_bytes, run_length)):
        failpoint.reach("compact.before")
        rows = _ordered(table.read(run), table.order)
        try:
            table.rewrite(remove=run, add=rows, data_change=False, metadata={"upkeep": "compact"})
        except CommitConflict:
            table.refresh()
            continue
        failpoint.reach("compact.after")
        count += len(run)
    return count


def _runs(files: Sequence[FileRef], small_bytes: int, run_length: int) -> Iterator[list[FileRef]]:
    """The runs worth compacting: adjacent small files, together not above the limits of one file."""
    run: list[FileRef] = []
    size = rows = 0
    for file in files:
        small = file.size < small_bytes and file.row_count < FILE_ROWS
        fits = size + file.size <= 2 * small_bytes and rows + file.row_count <= FILE_ROWS
        if run and not (small and fits):
            yield from _worthwhile(run, run_length)
            run, size, rows = [], 0, 0
        if small:
            run.append(file)
            size += file.size
            rows += file.row_count
    yield from _worthwhile(run, run_length)


def _worthwhile(run: list[FileRef], run_length: int) -> Iterator[list[FileRef]]:
    """Leave out a file that holds more than half of its run: writing it again would not double it."""
    if len(run) < run_length:
        return
    largest = max(range(len(run)), key=lambda index: run[index].row_count)
    if 2 * run[largest].row_count <= sum(file.row_count for file in run):
        yield run
        return
    yield from _worthwhile(run[:largest], run_length)
    yield from _worthwhile(run[largest + 1 :], run_length)


def _ordered(rows: pa.Table, order: str | None) -> pa.Table:
    if order is None:
        return rows
    values = rows.column(order).to_numpy()
    if bool(np.all(values[1:] >= values[:-1])):
        return rows
    return rows.take(pc.sort_indices(rows, sort_keys=[(order, "ascending")]))


# -- archive ----------------------------------------------------------------------------------


def archive(table: Table, *, grace_seconds: float) -> int:
    """Pack commit files from before the last checkpoint but one; returns how many left the log.

    Only checkpoints older than the grace count, so a reader that opened the table within it, even
    by the older pointer, finds that checkpoint and every commit after it. Each segment is an
    uncompressed tar in ``_archive``, named by its versions, beside a file with its sha256 in the
    format of ``sha256sum``; after a kill two segments may hold the same commits. Put back into
    ``_delta_log``, the commit files make the older versions open again.

    Raises:
        LakeError: if a segment does not verify after it was written; its commit files stay.
    """
    storage = table.storage
    entries = storage.entries(LOG_FOLDER)
    latest_change = time.time() - grace_seconds
    checkpoints = numbered((entry for entry in entries if entry.modified <= latest_change), CHECKPOINT)
    if len(checkpoints) < _KEPT_CHECKPOINTS:
        return 0
    keep = list(checkpoints)[-_KEPT_CHECKPOINTS]
    due = {number: entry for number, entry in numbered(entries, COMMIT).items() if number < keep}
    if due:
        _pack(storage, due)
    superseded = [entry.path for number, entry in checkpoints.items() if number < keep]
    # A draft that a killed commit left; delta-rs marks them so. A writer's own may be there, too.
    latest_draft = time.time() - max(grace_seconds, _DRAFT_SECONDS)
    drafts = [entry.path for entry in entries if "#" in entry.path and entry.modified <= latest_draft]
    # Oldest first, the checkpoints before the commits: a handle sees by them that it was outrun.
    storage.remove([*superseded, *(entry.path for entry in due.values()), *drafts])
    return len(due)


def _pack(storage: Storage, commits: dict[int, Entry]) -> None:
    """Write one segment, force it, read it back and compare it byte by byte."""
    numbers = list(commits)
    path = f"{ARCHIVE_FOLDER}/{numbers[0]:020}-{numbers[-1]:020}.tar"
    contents = {entry.path.rsplit("/", 1)[-1]: storage.read(entry.path) for entry in commits.values()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for (name, data), entry in zip(contents.items(), commits.values(), strict=True):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), int(entry.modified)
            tar.addfile(info, io.BytesIO(data))
    packed = buffer.getvalue()
    digest = hashlib.sha256(packed).hexdigest()
    storage.write(path, packed)
    storage.write(f"{path}.sha256", f"{digest}  {path.rsplit('/', 1)[-1]}\n".encode())
    failpoint.reach("archive.written")
    if verify_segment(storage, path) != contents:
        raise LakeError(f"{storage.address(path)} does not hold what was packed into it")


def verify_segment(storage: Storage, path: str) -> dict[str, bytes]:
    """The commit files in a segment by name, after its hash was checked.

    Raises:
        LakeError: if the segment's bytes are not those that were hashed.
    """
    packed = storage.read(path)
    digest = storage.read(f"{path}.sha256").split()[0].decode()
    if hashlib.sha256(packed).hexdigest() != digest:
        raise LakeError(f"{storage.address(path)} is not what was hashed when it was archived")
    contents = {}
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        for member in tar.getmembers():
            file = tar.extractfile(member)
            assert file is not None  # Segments hold regular files only.
            contents[member.name] = file.read()
    return contents


# -- vacuum -----------------------------------------------------------------------------------


def vacuum(table: Table, *, grace_seconds: float) -> int:
    """Remove data files that nothing has referred to for the grace time; returns how many.

    When a file was first seen unreferenced is kept in the table's archive folder, so that it
    counts from then, not from when it was written; a file whose commit is still to come is seen
    unreferenced at first and referenced later, and stays.
    """
    storage = table.storage
    present = [entry.path for entry in storage.entries("") if entry.path.endswith(".parquet")]
    # In this order: whatever is committed after the listing is not in the listing.
    table.refresh()
    referenced = {file.path for file in table.files()}
    now = time.time()
    before = _first_seen(storage)
    seen = {path: before.get(path, now) for path in present if path not in referenced}
    expired = [path for path, moment in seen.items() if moment <= now - grace_seconds]
    left = {path: moment for path, moment in seen.items() if path not in set(expired)}
    if left != before:
        storage.write(_SEEN, json.dumps(left).encode())
    storage.remove(expired)
    return len(expired)


def _first_seen(storage: Storage) -> dict[str, float]:
    try:
        return {path: float(moment) for path, moment in json.loads(storage.read(_SEEN)).items()}
    except (FileNotFoundError, ValueError):
        return {}
