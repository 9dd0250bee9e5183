"""The files of a Delta log: where they lie, and what one commit says.

Source: Delta transaction log protocol, "Delta Log Entries", "Checkpoints", "Last Checkpoint File".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mesh_assets.lake.file import FileRef
from mesh_assets.lake.storage import LOG_FOLDER, Entry, Storage

COMMIT = re.compile(rf"{LOG_FOLDER}/(\d{{20}})\.json\Z")
CHECKPOINT = re.compile(rf"{LOG_FOLDER}/(\d{{20}})\.checkpoint\.parquet\Z")
POINTER_PATH = f"{LOG_FOLDER}/_last_checkpoint"


@dataclass(frozen=True, slots=True)
class Commit:
    """What one commit says of files and app transactions."""

    added: list[FileRef]
    removed: list[str]
    transactions: dict[str, int]


def commit_path(version: int) -> str:
    """Where the commit file of a Delta version lies below the table's root."""
    return f"{LOG_FOLDER}/{version:020}.json"


def checkpoint_path(version: int) -> str:
    """Where the checkpoint of a Delta version lies below the table's root."""
    return f"{LOG_FOLDER}/{version:020}.checkpoint.parquet"


def numbered(entries: Iterable[Entry], pattern: re.Pattern[str]) -> dict[int, Entry]:
    """The entries that match, by the Delta version in their name, in order."""
    found = {int(match[1]): entry for entry in entries if (match := pattern.match(entry.path))}
    return dict(sorted(found.items()))


def last_checkpoint(storage: Storage) -> int:
    """The Delta version that the log's pointer names as checkpointed; -1 if there is none."""
    try:
        return int(json.loads(storage.read(POINTER_PATH))["version"])
    except FileNotFoundError:
        return -1


def read_commit(storage: Storage, version: int, schema: pa.Schema) -> Commit:
    """Read one commit; ``schema`` types the statistics.

    Raises:
        FileNotFoundError: if there is no such commit in the log's folder.
        ValueError, KeyError, TypeError, AttributeError: if it is damaged.
    """
    added, removed, transactions, count = [], [], {}, 0
    for action in _actions(storage.read(commit_path(version))):
        count += 1
        if entry := action.get("add"):
            added.append(FileRef.from_statistics(entry["path"], entry["size"], entry.get("stats"), schema))
        elif entry := action.get("remove"):
            removed.append(entry["path"])
        elif entry := action.get("txn"):
            transactions[entry["appId"]] = int(entry["version"])
    if not count:
        raise ValueError(f"{storage.address(commit_path(version))} is empty")
    return Commit(added, removed, transactions)


def _actions(commit: bytes) -> Iterator[dict[str, Any]]:
    for line in commit.splitlines():
        if line.strip():
            yield json.loads(line)
