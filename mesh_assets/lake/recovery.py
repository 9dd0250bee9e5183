"""After a power cut: the commits that were visible but not yet on the disk are moved aside.

An append forces its data files before the commit that names them, and the commit before it
returns. So whatever a cut damages was acknowledged to nobody, and the source delivers it again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from mesh_assets.errors import LakeError
from mesh_assets.lake.commit import CHECKPOINT, COMMIT, POINTER_PATH, Commit, numbered, read_commit
from mesh_assets.lake.storage import LOG_FOLDER, Entry, Storage, storage_of

ASIDE_FOLDER = "_aside"
_MAGIC = b"PAR1"


def recover(uri: str, held: Mapping[str, int] | None = None) -> list[str]:
    """Move aside what a power cut left unreadable at the end of a table's log.

    Checked are the checkpoint that the log points to and every commit after it: that its actions
    parse, that no number is missing, and that the files it added have their size and a footer.
    From the first damaged commit on, all are moved to ``_aside``; their data files stay until
    vacuum finds them unreferenced.

    Args:
        uri: of a table that may or may not exist.
        held: app transactions that were acknowledged, such as the ``seq`` in the ledger.

    Returns:
        The addresses of the files moved aside; none if all is well or there is no table.

    Raises:
        LakeError: if what is damaged was acknowledged (not a power cut but a damaged disk, or
            somebody's hand); nothing is moved then.
    """
    storage = storage_of(uri)
    if not storage.tears:
        return []
    found, before = _look(storage), None
    # Others may commit meanwhile: what a listing missed while it was made, the next one has.
    while found.damaged and found != before:
        found, before = _look(storage), found
    if found.first is not None:
        _require_held(storage, uri, found.first, held or {})
    return [_aside(storage, path) for path in found.damaged]


@dataclass(frozen=True)
class _Damage:
    """What of a log cannot be read.

    Attributes:
        damaged: the files, in the order in which they are to be moved.
        first: the first version that is lost; None if none is.
    """

    damaged: tuple[str, ...]
    first: int | None


def _look(storage: Storage) -> _Damage:
    entries = storage.entries(LOG_FOLDER)
    checkpoints = numbered(entries, CHECKPOINT)
    damaged = [
        entry.path for entry in checkpoints.values() if not _has_footer(storage, entry.path, entry.size)
    ]
    good = [number for number, entry in checkpoints.items() if entry.path not in damaged]
    if not _points_to(storage, good) and any(entry.path == POINTER_PATH for entry in entries):
        damaged.append(POINTER_PATH)
    base = max(good, default=-1)
    commits = {number: entry for number, entry in numbered(entries, COMMIT).items() if number > base}
    first = _first_damaged(storage, commits, base)
    if first is not None:
        # The newest first: should this be interrupted, the log still ends at a damaged commit, not at a gap.
        damaged += [entry.path for number, entry in reversed(commits.items()) if number >= first]
    return _Damage(tuple(damaged), first)


def _first_damaged(storage: Storage, commits: Mapping[int, Entry], base: int) -> int | None:
    """The first version after ``base`` that is missing or cannot be read, or whose files cannot."""
    readable: dict[int, Commit] = {}
    first: int | None = None
    for expected, number in enumerate(commits, start=base + 1):
        commit = _read(storage, number) if number == expected else None
        if commit is None:
            first = expected
            break
        readable[number] = commit
    removed_later: set[str] = set()
    for number, commit in reversed(readable.items()):
        # A compacted file may be gone already, by the hand of a vacuum.
        kept = [file for file in commit.added if file.path not in removed_later]
        if not all(_has_footer(storage, file.path, file.size) for file in kept):
            first = number
        removed_later.update(commit.removed)
    return first


def _read(storage: Storage, number: int) -> Commit | None:
    try:
        return read_commit(storage, number, pa.schema([]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _has_footer(storage: Storage, path: str, size: int) -> bool:
    """Whether a Parquet file is there with this size and a footer that parses."""
    try:
        found, end = storage.tail(path, 8)
        if found != size or found < 12 or end[4:] != _MAGIC:
            return False
        length = int.from_bytes(end[:4], "little")
        if length + 12 > size:
            return False
        _, footer = storage.tail(path, length + 8)
        pq.read_metadata(pa.BufferReader(_MAGIC + footer))
    except (FileNotFoundError, pa.ArrowException, OSError):
        return False
    return True


def _points_to(storage: Storage, good: list[int]) -> bool:
    try:
        pointer: Any = json.loads(storage.read(POINTER_PATH))
        return pointer["version"] in good
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def _require_held(storage: Storage, uri: str, first: int, held: Mapping[str, int]) -> None:
    """Make sure that everything acknowledged is before the first damaged version."""
    if not held:
        return
    survivor = DeltaTable(storage.uri, version=first - 1) if first > 0 else None
    for app_id, value in held.items():
        if value < 0:
            continue
        found = None if survivor is None else survivor.transaction_version(app_id)
        if found is None or found < value:
            raise LakeError(
                f"{uri}: version {first} is damaged, and before it {app_id} is {found}, "
                f"but {value} was acknowledged to the source",
                hint="this is no power cut: check the disk, and restore the table's folder from a copy",
            )


def _aside(storage: Storage, path: str) -> str:
    target = f"{ASIDE_FOLDER}/{path.rsplit('/', 1)[-1]}.{time.time_ns()}"
    storage.move(path, target)
    return storage.address(target)
