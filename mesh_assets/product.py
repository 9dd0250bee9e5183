"""What people and programs ask of the mesh: its products, their data now and then, their state.

Nothing here knows Dagster, and nothing needs the mesh to be running: it reads the products'
folders, the lake and, where asked, the sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa

from mesh_assets.cdc.source import Head, Source
from mesh_assets.contract.discovery import Discovery, Product, discover
from mesh_assets.contract.model import TableContract
from mesh_assets.errors import MeshError, TableMissing, UnknownName
from mesh_assets.lake.access import Principal
from mesh_assets.lake.current import Current
from mesh_assets.lake.ledger import Ledger, LedgerRow
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.read import changes_of, fresh
from mesh_assets.lake.table import Table
from mesh_assets.lake.version import AsOf, Cut, Horizon, VersionLog, VersionRow
from mesh_assets.names import CHANGES, CURRENT, Layout, ProductName
from mesh_assets.parity import ParityResult, parity
from mesh_assets.plan import CapturePlan, Target, capture_plan
from mesh_assets.settings import Settings

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True)
class SourceStatus:
    """One source: what we hold of it, and where it stands.

    Attributes:
        ledger: what is durable and acknowledged; None before the first capture.
        head: where the source stands; None if it could not be asked.
        problem: why it could not be asked; empty if it could.
    """

    domain: str
    source: str
    ledger: LedgerRow | None
    head: Head | None
    problem: str = ""

    @property
    def observed_seconds(self) -> float | None:
        """Age, by the source's clock, of the moment up to which everything is held."""
        if self.ledger is None or self.head is None:
            return None
        return max(0.0, (self.head.now - self.ledger.observed_at).total_seconds())


@dataclass(frozen=True)
class TableStatus:
    """One product table: rows now, changes ever, Delta versions."""

    table: str
    row_count: int
    change_count: int
    changes_delta_version: int
    current_delta_version: int
    folded_seq: int


@dataclass(frozen=True)
class ProductStatus:
    """One product as it stands in the lake."""

    name: ProductName
    owners: tuple[str, ...]
    description: str
    version: VersionRow | None
    tables: tuple[TableStatus, ...] = field(default=())


class Mesh:
    """The products of one installation."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.layout = Layout(self.settings.lake_root)

    @cached_property
    def discovery(self) -> Discovery:
        """Domains and products as their folders define them."""
        return discover(self.settings.products)

    # -- names --------------------------------------------------------------------------------

    def resolve(self, name: str) -> tuple[Product, TableContract]:
        """The product and table that ``domain.product[.table]`` names.

        Raises:
            UnknownName: if there is none; it lists what there is.
            ContractError: if the product's contract is broken.
        """
        parts = name.split(".")
        if len(parts) not in (2, 3):
            raise UnknownName(
                f"{name!r} is not a product or table",
                available=[str(product) for product in self.discovery.products],
                hint="write domain.product or domain.product.table",
            )
        product = self.discovery.product(ProductName.parse(".".join(parts[:2])))
        if len(parts) == 3:
            return product, product.contract.table(parts[2])
        table = product.contract.default_table
        if table is None:
            raise UnknownName(
                f"{name} has several tables and none of its own name",
                available=[f"{name}.{one.name}" for one in product.contract.tables],
            )
        return product, table

    def plans(self) -> Iterator[CapturePlan]:
        """One capture plan per source that feeds products; sources without an address are left out."""
        for domain, source in self.discovery.sources():
            yield self.plan(domain, source)

    def plan(self, domain: str, source: str) -> CapturePlan:
        """The capture plan of one source."""
        return capture_plan(self.settings, self.discovery, domain, source)

    def target(self, name: str) -> tuple[CapturePlan, Target]:
        """The plan and target that capture ``domain.product[.table]``."""
        product, table = self.resolve(name)
        plan = self.plan(product.name.domain, product.definition.source)
        for target in plan.targets:
            if (target.name, target.table) == (product.name, table.name):
                return plan, target
        raise UnknownName.of("captured table", name, [f"{one.name}.{one.table}" for one in plan.targets])

    # -- data ---------------------------------------------------------------------------------

    def open(self, name: str, *, as_of: AsOf | None = None, principal: Principal | None = None) -> Dataset:
        """One table at one cut: the latest version, or as of a version, a moment or an LSN.

        Raises:
            UnknownName: if there is no such table.
            TableMissing: if nothing was captured yet.
            AsOfRefused: if the moment lies outside of what is held.
        """
        product, table = self.resolve(name)
        cut = self.cut(product.name, as_of)
        frame = fresh(
            self.layout,
            product.name,
            table.name,
            cut.tables.get(table.name, -1),
            principal=principal or Principal.local(),
        )
        return Dataset(product.name, table.name, cut, frame)

    def cut(self, name: ProductName, as_of: AsOf | None = None) -> Cut:
        """What an ``as of`` means for a product: the last ``_seq`` of each of its tables.

        Raises:
            TableMissing: if the product has no version yet.
            AsOfRefused: if the moment lies outside of what is held.
        """
        try:
            versions = VersionLog.open(self.layout.versions(name))
        except TableMissing:
            raise TableMissing(
                f"{name} has no version yet: nothing was captured",
                hint="start the mesh with `mesh up`, or materialize the product in Dagster",
            ) from None
        return versions.resolve(
            as_of,
            log=lambda table: ChangeLog.open(self.layout.table(name, CHANGES, table)),
            horizon=self._horizon(name),
        )

    def _horizon(self, name: ProductName) -> Horizon | None:
        """How far the product's source was observed beyond its newest version."""
        product = self.discovery.product(name)
        uri = self.layout.source(name.domain, product.definition.source, "ledger")
        last = Ledger(uri).latest()
        if last is None:
            return None
        tables = {
            table.name: last.tables[table.physical_name]
            for table in product.contract.tables
            if table.physical_name in last.tables
        }
        return Horizon(tables, last.end_lsn, last.observed_at)

    def changes(
        self, name: str, key: Mapping[str, object] | str, *, principal: Principal | None = None
    ) -> pl.DataFrame:
        """Every change of one key, oldest first, moves to and from other keys included.

        Args:
            key: values by key column, or text: the value, or ``column=value,...``.

        Raises:
            UnknownName: if a key column is wrong.
        """
        product, table = self.resolve(name)
        values = parse_key(table, key) if isinstance(key, str) else dict(key)
        return changes_of(
            self.layout, product.name, table.name, values, principal=principal or Principal.local()
        )

    # -- state --------------------------------------------------------------------------------

    def product_status(self, product: Product) -> ProductStatus:
        """How a product stands in the lake; reads only its logs' metadata."""
        contract = product.contract
        try:
            version = VersionLog.open(self.layout.versions(product.name)).latest()
        except TableMissing:
            version = None
        tables = []
        for table in contract.tables:
            changes_uri = self.layout.table(product.name, CHANGES, table.name)
            current_uri = self.layout.table(product.name, CURRENT, table.name)
            if not Table.exists(changes_uri):
                continue
            log = ChangeLog.open(changes_uri)
            current = Current.open(current_uri) if Table.exists(current_uri) else None
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

    def source_status(self, domain: str, source: str) -> SourceStatus:
        """How a source stands against the ledger; asks the source, 3 s at most."""
        ledger = Ledger(self.layout.source(domain, source, "ledger")).latest()
        try:
            plan = self.plan(domain, source)
            with Source(plan.source) as asked:
                head = asked.head()
        except MeshError as error:
            return SourceStatus(domain, source, ledger, None, str(error))
        return SourceStatus(domain, source, ledger, head)

    # -- proof --------------------------------------------------------------------------------

    def parity(self, name: str, *, drain: Callable[[], None] | None = None) -> ParityResult:
        """Compare one table with its source at one LSN (:func:`mesh_assets.parity.parity`)."""
        plan, target = self.target(name)
        return parity(plan, target, drain=drain)


@dataclass(frozen=True)
class Dataset:
    """One table at one cut, read when asked.

    Attributes:
        name, table: what it is.
        cut: the product's cut that is read; ``cut.version`` is None between two versions.
        lazy: a polars LazyFrame; filters and column choices on it reach the Parquet files.
    """

    name: ProductName
    table: str
    cut: Cut
    lazy: pl.LazyFrame = field(repr=False)

    def polars(self) -> pl.DataFrame:
        """All rows as a polars DataFrame."""
        return self.lazy.collect(engine="streaming")

    def arrow(self) -> pa.Table:
        """All rows as an Arrow table."""
        return self.polars().to_arrow()

    def duckdb(self) -> duckdb.DuckDBPyRelation:
        """All rows as a DuckDB relation, on a connection of its own."""
        import duckdb

        return duckdb.connect().from_arrow(self.arrow())


def open(name: str, as_of: AsOf | None = None, *, settings: Settings | None = None) -> Dataset:
    """Open a product's table for analysis: ``mesh_assets.open("sales.orders").polars()``.

    Args:
        name: ``domain.product`` or ``domain.product.table``.
        as_of: a version number, a moment (datetime or ISO text; without a zone: UTC) or an LSN text.
    """
    return Mesh(settings).open(name, as_of=as_of)


def parse_key(table: TableContract, text: str) -> dict[str, object]:
    """Read ``42`` or ``order_id=42,line_number=1`` as values of a table's key columns.

    Raises:
        UnknownName: if the columns are not exactly the key's.
    """
    if "=" not in text and len(table.key) == 1:
        return {table.key[0]: text}
    pairs = dict(part.partition("=")[::2] for part in text.split(",") if "=" in part)
    values: dict[str, object] = {name.strip(): value.strip() for name, value in pairs.items()}
    if set(values) != set(table.key):
        raise UnknownName(
            f"{text!r} is not a key of {table.name}",
            available=table.key,
            hint="write " + ",".join(f"{name}=…" for name in table.key),
        )
    return values
