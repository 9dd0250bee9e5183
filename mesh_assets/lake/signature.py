"""What the commits of a table say of who made them, also those whose files are archived."""

from __future__ import annotations

import heapq
import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mesh_assets.lake.commit import COMMIT, commit_path, numbered
from mesh_assets.lake.origin import JOB_KEY, PARENT_KEY, RUN_KEY
from mesh_assets.lake.storage import LOG_FOLDER, Storage, storage_of
from mesh_assets.lake.upkeep import ARCHIVE_FOLDER

_SEGMENT = re.compile(rf"{ARCHIVE_FOLDER}/(\d{{20}})-(\d{{20}})\.tar\Z")
_CLOCK_SECONDS = 60.0
"""How far the clocks of a storage and of who commits to it may be apart."""


@dataclass(frozen=True, slots=True)
class Signature:
    """Who made one commit.

    Attributes:
        version: the Delta version.
        made_at: when, by the clock of who made it.
        run_id, job, parent: see :class:`mesh_assets.lake.origin.Origin`; empty if it does not say.
        row_count, byte_count, file_count: of the data files it added.
    """

    version: int
    made_at: datetime
    run_id: str = ""
    job: str = ""
    parent: str = ""
    row_count: int = 0
    byte_count: int = 0
    file_count: int = 0


def signatures(uri: str, *, after: int = -1, since: datetime | None = None) -> Iterator[Signature]:
    """The commits of a table, in order; none if there is no table.

    Args:
        uri: where the table lies.
        after: only versions above this one.
        since: only what may have been committed at or after this moment.
    """
    storage = storage_of(uri)
    seen = after
    oldest = since.timestamp() - _CLOCK_SECONDS if since is not None else 0.0
    for version, content in heapq.merge(_archived(storage, after, oldest), _present(storage, after, oldest)):
        # After a kill two segments may hold the same commits, and a commit may be put back.
        if version > seen:
            seen = version
            yield _signature(version, content)


def _present(storage: Storage, after: int, oldest: float) -> Iterator[tuple[int, bytes]]:
    for version, entry in numbered(storage.entries(LOG_FOLDER), COMMIT).items():
        if version > after and entry.modified >= oldest:
            try:
                yield version, storage.read(commit_path(version))
            except FileNotFoundError:
                # It was archived since the listing: it is in a segment by now.
                yield version, dict(_archived(storage, version - 1, 0.0))[version]


def _archived(storage: Storage, after: int, oldest: float) -> Iterator[tuple[int, bytes]]:
    for entry in storage.entries(ARCHIVE_FOLDER):
        found = _SEGMENT.match(entry.path)
        # A segment is younger than what is in it.
        if found is None or int(found[2]) <= after or entry.modified < oldest:
            continue
        with tarfile.open(fileobj=io.BytesIO(storage.read(entry.path))) as tar:
            for member in tar.getmembers():
                file = tar.extractfile(member)
                assert file is not None  # Segments hold regular files only.
                if (version := int(member.name.removesuffix(".json"))) > after:
                    yield version, file.read()


def _signature(version: int, content: bytes) -> Signature:
    info: dict[str, Any] = {}
    rows = size = count = 0
    for line in content.splitlines():
        if not line.strip():
            continue
        action = json.loads(line)
        info = action.get("commitInfo", info)
        if added := action.get("add"):
            count += 1
            size += int(added["size"])
            rows += int(json.loads(added.get("stats") or "{}").get("numRecords", 0))
    return Signature(
        version,
        datetime.fromtimestamp(int(info.get("timestamp", 0)) / 1000, UTC),
        str(info.get(RUN_KEY, "")),
        str(info.get(JOB_KEY, "")),
        str(info.get(PARENT_KEY, "")),
        rows,
        size,
        count,
    )
