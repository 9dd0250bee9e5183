"""Where a source stands, asked within a time limit and over a connection that is kept."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Overdue
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesh_assets.errors import MeshError, SourceUnreachable
from mesh_assets.names import publication_name, slot_name
from mesh_assets.settings import Settings

if TYPE_CHECKING:
    from mesh_assets.cdc.source import Source, SourceConfig


@dataclass(frozen=True)
class Head:
    """Where a source stands.

    Attributes:
        changes: rows inserted, updated and deleted in the published tables since the server's
            statistics began; behind by up to a second, without truncates.
        wal_lsn: the end of the server's WAL, read after the counters: what they count is before it.
        confirmed_lsn: what the replication slot has confirmed, and thus the ledger holds; None
            without a slot.
        retained_bytes: WAL that the server keeps for the slot.
        wal_status: ``reserved``, ``extended``, ``unreserved`` or ``lost``; empty without a slot.
        active: a connection drains the slot now.
    """

    changes: int
    wal_lsn: int
    confirmed_lsn: int | None
    retained_bytes: int
    wal_status: str
    active: bool


def source_config(settings: Settings, domain: str, source: str, tables: Sequence[str]) -> SourceConfig:
    """How a source is reached, and what of it is published.

    Raises:
        SettingError: if its address is not known.
    """
    from mesh_assets.cdc.source import SourceConfig

    return SourceConfig(
        domain=domain,
        name=source,
        url=settings.source_url(domain, source),
        tables=tuple(tables),
        slot=slot_name(domain, source),
        publication=publication_name(domain, source),
    )


class HeadReader:
    """Reads the heads of several sources at once; keeps a connection to each.

    Args:
        timeout_seconds: how long a source may take to answer. One that takes longer is asked in
            the background, and counts as unreachable until it has answered.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._sources: dict[SourceConfig, Source] = {}
        self._pending: dict[SourceConfig, Future[Head]] = {}
        self._pool = ThreadPoolExecutor(max_workers=16, thread_name_prefix="head")
        self._lock = threading.Lock()

    def read(self, config: SourceConfig) -> Future[Head]:
        """Begin to ask a source; an answer that is still awaited is awaited further."""
        with self._lock:
            pending = self._pending.get(config)
            if pending is None or pending.done():
                pending = self._pool.submit(self._read, config)
                self._pending[config] = pending
            return pending

    def answer(self, config: SourceConfig, asked: Future[Head]) -> Head | MeshError:
        """The head, or why there is none."""
        try:
            return asked.result(self._timeout_seconds)
        except Overdue:
            return SourceUnreachable(
                f"{config.domain}.{config.name} did not answer within {self._timeout_seconds:g} s",
                hint="look at the database and at the network",
            )
        except MeshError as error:
            return error

    def _read(self, config: SourceConfig) -> Head:
        from mesh_assets.cdc.source import Source

        source = self._sources.setdefault(config, Source(config))
        changes = sum(source.table_changes().values())
        slot = source.slot()
        if slot is None:
            return Head(changes, 0, None, 0, "", active=False)
        return Head(
            changes,
            slot.restart_lsn + slot.retained_bytes,
            slot.confirmed_lsn,
            slot.retained_bytes,
            slot.wal_status,
            active=slot.active_pid is not None,
        )
