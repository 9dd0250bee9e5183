"""How products and sources stand: what is held, how far, and what is in the way.

Reads the logs' metadata only, and asks each source one question that is answered in some
milliseconds, or not at all within three seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import polars as pl

from mesh_assets.cdc.parking import ParkingLog
from mesh_assets.cdc.source import Head, Source
from mesh_assets.contract.discovery import Product
from mesh_assets.errors import MeshError, TableMissing
from mesh_assets.lake.current import Current
from mesh_assets.lake.ledger import Ledger, LedgerRow
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.position import Lsn
from mesh_assets.lake.table import Table
from mesh_assets.lake.version import VersionLog, VersionRow
from mesh_assets.names import CHANGES, CURRENT, Layout, ProductName
from mesh_assets.plan import CapturePlan

SourceState = Literal["shift running", "idle", "not captured", "slot lost", "unreachable"]


@dataclass(frozen=True)
class ParkedTable:
    """A table that cannot take its changes; they wait, in order, in the source's parking log.

    Attributes:
        source_table: ``schema.table`` at the source.
        change_count: how many changes wait.
        since: commit time of the first of them.
        lsn: commit LSN of the last.
    """

    source_table: str
    change_count: int
    since: datetime
    lsn: Lsn


@dataclass(frozen=True)
class FoundGap:
    """Changes that were lost at the source before they could be read; its tables were read again.

    Attributes:
        from_lsn, to_lsn: between these positions changes are missing.
    """

    reason: str
    from_lsn: Lsn
    to_lsn: Lsn
    found_at: datetime


@dataclass(frozen=True)
class SourceStatus:
    """One source: what we hold of it, and where it stands.

    Attributes:
        ledger: what is durable and acknowledged; None before the first capture.
        head: where the source stands; None if it could not be asked.
        problem: why it could not be asked; None if it could.
        parked: tables that cannot take their changes now.
        gaps: all gaps ever found, oldest first.
    """

    domain: str
    source: str
    ledger: LedgerRow | None
    head: Head | None
    problem: MeshError | None = None
    parked: tuple[ParkedTable, ...] = ()
    gaps: tuple[FoundGap, ...] = ()

    @property
    def state(self) -> SourceState:
        """What goes on."""
        if self.head is None:
            return "unreachable"
        if self.head.active:
            return "shift running"
        if self.ledger is None:
            return "not captured"
        if self.head.wal_status in ("", "lost"):
            return "slot lost"
        return "idle"

    @property
    def observed_seconds(self) -> float | None:
        """Age, by the source's clock, of the moment up to which everything is held."""
        if self.ledger is None or self.head is None:
            return None
        return max(0.0, (self.head.now - self.ledger.observed_at).total_seconds())

    @property
    def lag_seconds(self) -> float | None:
        """How old the oldest change that is not held can be; 0 if there is none; None if unknown."""
        if (
            self.ledger is not None
            and self.head is not None
            and self.ledger.head_changes == self.head.changes
        ):
            return 0.0
        return self.observed_seconds


@dataclass(frozen=True)
class TableStatus:
    """One product table: rows as last folded, changes ever, Delta versions.

    Attributes:
        row_count: rows of the current table, which holds the changes up to ``folded_seq``.
        change_count: changes in the log.
    """

    table: str
    row_count: int
    change_count: int
    changes_delta_version: int
    current_delta_version: int
    folded_seq: int

    @property
    def tail_count(self) -> int:
        """Changes that are not folded yet; readers through the mesh see them all the same."""
        return self.change_count - 1 - self.folded_seq


@dataclass(frozen=True)
class ProductStatus:
    """One product as it stands in the lake."""

    name: ProductName
    owners: tuple[str, ...]
    description: str
    version: VersionRow | None
    tables: tuple[TableStatus, ...] = field(default=())


def product_status(layout: Layout, product: Product) -> ProductStatus:
    """How a product stands in the lake."""
    contract = product.contract
    try:
        version = VersionLog.open(layout.versions(product.name)).latest()
    except TableMissing:
        version = None
    tables = []
    for table in contract.tables:
        changes_uri = layout.table(product.name, CHANGES, table.name)
        current_uri = layout.table(product.name, CURRENT, table.name)
        if not Table.exists(changes_uri):
            continue
        current = Current.open(current_uri) if Table.exists(current_uri) else None
        # After the current table, so that it is never behind it.
        log = ChangeLog.open(changes_uri)
        tables.append(
            TableStatus(
                table.name,
                current.row_count if current else 0,
                log.seq + 1,
                log.table.version,
                current.table.version if current else -1,
                current.folded if current else -1,
            )
        )
    return ProductStatus(product.name, contract.owners, contract.description, version, tuple(tables))


def source_status(
    layout: Layout, domain: str, source: str, changes: Mapping[str, str], plan: CapturePlan | MeshError
) -> SourceStatus:
    """How a source stands against its ledger.

    Args:
        changes: ``schema.table`` -> URI of the change log that it feeds.
        plan: how to reach it, or why that is not known.
    """
    ledger = Ledger(layout.source(domain, source, "ledger")).latest()
    parked = _parked(layout.source(domain, source, "parking"), source, changes)
    gaps = _gaps(layout.source(domain, source, "gaps"))
    head: Head | None = None
    problem = plan if isinstance(plan, MeshError) else None
    if isinstance(plan, CapturePlan):
        try:
            with Source(plan.source) as asked:
                head = asked.head()
        except MeshError as error:
            problem = error
    return SourceStatus(domain, source, ledger, head, problem, parked, gaps)


def _parked(uri: str, source: str, changes: Mapping[str, str]) -> tuple[ParkedTable, ...]:
    """Tables with parked changes beyond what their change log holds."""
    if not Table.exists(uri):
        return ()
    log, table = ParkingLog(uri), Table.open(uri)
    found = []
    for source_table, changes_uri in sorted(changes.items()):
        held = (ChangeLog.open(changes_uri).position(source) if Table.exists(changes_uri) else None) or (
            0,
            -1,
        )
        if log.position(source_table) <= held:
            continue
        lsn, at = pl.col("_position"), pl.col("_ordinal")
        beyond = (lsn > held[0]) | ((lsn == held[0]) & (at > held[1]))
        waiting = table.scan(table.files()).filter(
            (pl.col("table") == source_table) & (pl.col("kind") != "R") & beyond
        )
        count, since, last = (
            waiting.select(pl.len(), pl.col("_committed_at").min(), lsn.max()).collect().row(0)
        )
        if count:
            found.append(ParkedTable(source_table, count, since, Lsn(last)))
    return tuple(found)


def _gaps(uri: str) -> tuple[FoundGap, ...]:
    if not Table.exists(uri):
        return ()
    rows = sorted(Table.open(uri).read().to_pylist(), key=lambda row: row["found_at"])
    return tuple(
        FoundGap(row["reason"], Lsn(row["from_lsn"]), Lsn(row["to_lsn"]), row["found_at"]) for row in rows
    )
