"""How products and sources stand: what is held, how far, and what is in the way.

Reads the logs' metadata only, and asks each source one question that is answered in some
milliseconds, or not at all within three seconds.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

import polars as pl

from mesh_assets.cdc.connection import translated
from mesh_assets.cdc.parking import ParkingLog
from mesh_assets.cdc.refusal import RefusalLog
from mesh_assets.cdc.source import Head, Source, SourceConfig
from mesh_assets.checks.log import CheckLog
from mesh_assets.contract.discovery import Product
from mesh_assets.errors import MeshError, SourceError, TableMissing
from mesh_assets.ingest.landing import gap_count_of
from mesh_assets.lake.current import Current
from mesh_assets.lake.ledger import Ledger, LedgerRow
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.position import Lsn
from mesh_assets.lake.quarantine import last_rows, open_rows
from mesh_assets.lake.read import pin
from mesh_assets.lake.table import Table
from mesh_assets.lake.tail import shape_of
from mesh_assets.lake.version import VersionLog, VersionRow
from mesh_assets.names import CHANGES, CURRENT, Layout, ProductName
from mesh_assets.shift.plan import CapturePlan

_LOOK_SECONDS = 2

SourceState = Literal["shift running", "idle", "not captured", "slot lost", "unreachable", "no product"]


@dataclass(frozen=True)
class ParkedTable:
    """A table that cannot take its changes; they wait, in order, in the source's parking log.

    Attributes:
        source_table: ``schema.table`` at the source.
        change_count: how many changes wait.
        since: commit time of the first of them.
        lsn: commit LSN of the last.
        reason: what is in the way; empty if that was not noted.
    """

    source_table: str
    change_count: int
    since: datetime
    lsn: Lsn
    reason: str = ""


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
        lag_seconds: how long ago the oldest change was committed that is not held; 0 if there is
            none; while a shift runs, how old it can be at most; None if it is not known.
        problem: why it could not be asked; None if it could.
        parked: tables that cannot take their changes now.
        gaps: all gaps ever found, oldest first.
        abandoned: none of its products can be loaded, so nothing captures it.
    """

    domain: str
    source: str
    ledger: LedgerRow | None
    head: Head | None
    lag_seconds: float | None = None
    problem: MeshError | None = None
    parked: tuple[ParkedTable, ...] = ()
    gaps: tuple[FoundGap, ...] = ()
    abandoned: bool = False

    @property
    def state(self) -> SourceState:
        """What goes on."""
        if self.head is None:
            return "unreachable"
        if self.head.active:
            return "shift running"
        if self.abandoned:
            return "no product"
        if self.ledger is None:
            return "not captured"
        if self.head.wal_status in ("", "lost"):
            return "slot lost"
        return "idle"


@dataclass(frozen=True)
class TableStatus:
    """One product table: rows in the latest version, changes ever, Delta versions.

    Attributes:
        row_count: rows as a reader through the mesh sees them.
        change_count: changes in the log.
        folded_seq: the current table, which readers of plain Delta see, holds the changes up to here
            (of a table in its second or a later generation those since this began).
        quarantined_count: keys whose last change is in quarantine.
    """

    table: str
    row_count: int
    change_count: int
    changes_delta_version: int
    current_delta_version: int
    folded_seq: int
    quarantined_count: int = 0

    @property
    def tail_count(self) -> int:
        """Changes that are not folded yet; readers through the mesh see them all the same."""
        return self.change_count - 1 - self.folded_seq


@dataclass(frozen=True)
class InputStatus:
    """An input of a derived product.

    Attributes:
        held: its version that the product was made of last; 0 for none.
        newest: its newest version; 0 for none.
    """

    name: ProductName
    held: int
    newest: int


@dataclass(frozen=True)
class ProductStatus:
    """One product as it stands in the lake.

    Attributes:
        inputs: what a derived product is made of, and how far.
        problem: why a derived product stays as it is; empty if nothing is in the way.
        failing: blocking rules that failed when they were last evaluated, each in words.
    """

    name: ProductName
    owners: tuple[str, ...]
    description: str
    version: VersionRow | None
    tables: tuple[TableStatus, ...] = field(default=())
    inputs: tuple[InputStatus, ...] = field(default=())
    problem: str = ""
    failing: tuple[str, ...] = ()

    @property
    def quarantined_count(self) -> int:
        """Keys in quarantine in all its tables."""
        return sum(table.quarantined_count for table in self.tables)

    @property
    def behind(self) -> tuple[InputStatus, ...]:
        """The inputs that have newer versions than the one that the product was made of."""
        return tuple(one for one in self.inputs if one.held < one.newest)


def product_status(layout: Layout, product: Product) -> ProductStatus:
    """How a product stands in the lake."""
    contract = product.contract
    version = latest_version(layout, product.name)
    tables = []
    for table in contract.tables:
        generation = version.generation(table.name) if version else 1
        changes_uri = layout.table(product.name, CHANGES, table.name, generation)
        current_uri = layout.table(product.name, CURRENT, table.name, generation)
        if not Table.exists(changes_uri):
            continue
        current = Current.open(current_uri) if Table.exists(current_uri) else None
        # After the current table, so that it is never behind it.
        log = ChangeLog.open(changes_uri)
        cut = version.tables.get(table.name, -1) if version else log.seq
        tables.append(
            TableStatus(
                table.name,
                _row_count(log, current, cut),
                log.seq + 1,
                log.table.version,
                current.table.version if current else -1,
                max(current.folded if current else -1, log.after),
                _quarantined_count(log),
            )
        )
    failing = tuple(
        one.concealed(contract).sentence()
        for one in CheckLog(layout, product.name).latest()
        if one.blocking and one.status in ("failed", "error")
    )
    return ProductStatus(
        product.name, contract.owners, contract.description, version, tuple(tables), failing=failing
    )


def latest_version(layout: Layout, name: ProductName) -> VersionRow | None:
    """A product's newest version; None before the first."""
    try:
        return VersionLog.open(layout.versions(name)).latest()
    except TableMissing:
        return None


def _quarantined_count(log: ChangeLog) -> int:
    """Keys in quarantine; where nothing ever was, that is known without reading."""
    rows = open_rows(log)
    return 0 if rows.is_empty() else last_rows(shape_of(log), rows).height


def _row_count(log: ChangeLog, current: Current | None, cut: int) -> int:
    """Rows at a cut; a count, which nobody is kept from."""
    if current is not None and current.folded == cut:
        return current.row_count
    return int(pin(log, current, cut).stored().select(pl.len()).collect(engine="streaming").item())


def source_status(
    layout: Layout,
    domain: str,
    source: str,
    changes: Mapping[str, str],
    plan: CapturePlan | MeshError,
    *,
    abandoned: SourceConfig | None = None,
) -> SourceStatus:
    """How a source stands against its ledger.

    Args:
        changes: ``schema.table`` -> URI of the change log that it feeds.
        plan: how to reach it, or why that is not known.
        abandoned: how to reach it although there is no plan, because no product of it can be loaded.
    """
    ledger = Ledger(layout.source(domain, source, "ledger")).latest()
    gaps = _gaps(layout.source(domain, source, "gaps"))
    parked = _parked(layout, domain, source, changes, len(gaps))
    if abandoned is not None:
        return _abandoned(SourceStatus(domain, source, ledger, None, None, None, parked, gaps), abandoned)
    if isinstance(plan, MeshError):
        return SourceStatus(domain, source, ledger, None, None, plan, parked, gaps)
    head: Head | None = None
    lag_seconds: float | None = None
    problem: MeshError | None = None
    try:
        with Source(plan.source) as asked:
            head = asked.head()
            if ledger is not None:
                lag_seconds = _lag_seconds(asked, head, ledger)
    except MeshError as error:
        problem = error
    return SourceStatus(domain, source, ledger, head, lag_seconds, problem, parked, gaps)


def _abandoned(status: SourceStatus, config: SourceConfig) -> SourceStatus:
    """The status of a source that nothing captures: what its slot costs the server."""
    try:
        with Source(config) as asked:
            head = asked.head()
    except MeshError as error:
        return replace(status, problem=error, abandoned=True)
    problem = None
    if head.wal_status:
        problem = MeshError(
            f"no product of {config.domain}.{config.name} can be loaded, so no shift captures it: "
            f"its replication slot keeps {head.retained_bytes >> 20:,} MiB of WAL, more with every change",
            hint="repair one of its products, or drop the slot: "
            f"SELECT pg_drop_replication_slot('{config.slot}')",
        )
    return replace(status, head=head, problem=problem, abandoned=True)


def _lag_seconds(source: Source, head: Head, ledger: LedgerRow) -> float | None:
    """The age of the oldest change that is not held."""
    if not head.wal_status or head.wal_status == "lost":
        return None
    at_most = max(0.0, (head.now - ledger.observed_at).total_seconds())
    if head.active:
        return at_most
    try:
        since = waiting_since(source)
    except SourceError:
        # A shift has just begun, or the slot's WAL takes too long to look through.
        return at_most
    return 0.0 if since is None else max(0.0, (head.now - since).total_seconds())


def waiting_since(source: Source) -> datetime | None:
    """Commit time of the oldest transaction that the slot still has to send; None if there is none.

    Looking does not move the slot. A shift that begins meanwhile waits for the claim.

    Raises:
        SourceError: if somebody has the claim, or it takes too long to look through the slot's WAL.
    """
    config = source.config
    with source.claim(wait_seconds=0), translated(config.url, "look at what waits in its slot"):
        session = source.session()
        session.execute(f"SET statement_timeout = {_LOOK_SECONDS * 1000}".encode())
        row = session.execute(
            "SELECT data FROM pg_logical_slot_peek_binary_changes(%s, NULL, 1, "
            "'proto_version', '1', 'publication_names', %s) LIMIT 1",
            (config.slot, config.publication),
        ).fetchone()
    if row is None:
        return None
    # Begin: its kind, the LSN of the commit, and the commit's microseconds since 2000.
    (micros,) = struct.unpack_from("!q", row[0], 9)
    return datetime(2000, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)


def _parked(
    layout: Layout, domain: str, source: str, changes: Mapping[str, str], gap_count: int
) -> tuple[ParkedTable, ...]:
    """Tables that are refused, or with parked changes beyond what their change log holds."""
    refusals = RefusalLog(layout.source(domain, source, "refusals")).standing
    found = _waiting(layout.source(domain, source, "parking"), source, changes, gap_count)
    for name, one in refusals.items():
        if name not in changes:
            continue
        waiting = found.get(name) or ParkedTable(name, 0, one.at, Lsn(0))
        found[name] = replace(waiting, reason=one.reason)
    return tuple(one for _, one in sorted(found.items()))


def _waiting(uri: str, source: str, changes: Mapping[str, str], gap_count: int) -> dict[str, ParkedTable]:
    """Tables with parked changes beyond what their change log holds."""
    if not Table.exists(uri):
        return {}
    log, table = ParkingLog(uri), Table.open(uri)
    found: dict[str, ParkedTable] = {}
    for source_table, changes_uri in sorted(changes.items()):
        held = _held(changes_uri, source)
        held_gaps = gap_count_of(ChangeLog.open(changes_uri)) if Table.exists(changes_uri) else 0
        later = range(held_gaps + 1, gap_count + 1)
        if log.position(source_table, held_gaps) <= held and not any(
            log.position(source_table, number) > (0, -1) for number in later
        ):
            continue
        lsn, at = pl.col("_position"), pl.col("_ordinal")
        gap = pl.col("gap_count")
        beyond = (lsn > held[0]) | ((lsn == held[0]) & (at > held[1]))
        beyond = ((gap == held_gaps) & beyond) | (gap > held_gaps)
        waiting = table.scan(table.files()).filter(
            (pl.col("table") == source_table) & (pl.col("kind") != "R") & beyond
        )
        count, since, last = (
            waiting.select(pl.len(), pl.col("_committed_at").min(), lsn.max()).collect().row(0)
        )
        if count:
            found[source_table] = ParkedTable(source_table, count, since, Lsn(last))
    return found


def _held(uri: str, source: str) -> tuple[int, int]:
    """Position of the last change in a change log."""
    if not Table.exists(uri):
        return (0, -1)
    return ChangeLog.open(uri).position(source) or (0, -1)


def _gaps(uri: str) -> tuple[FoundGap, ...]:
    if not Table.exists(uri):
        return ()
    rows = sorted(Table.open(uri).read().to_pylist(), key=lambda row: row["found_at"])
    return tuple(
        FoundGap(row["reason"], Lsn(row["from_lsn"]), Lsn(row["to_lsn"]), row["found_at"]) for row in rows
    )
