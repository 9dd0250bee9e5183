"""What people and programs ask of the mesh: its products, their data now and then, their state.

Nothing here knows Dagster, and nothing needs the mesh to be running: it reads the products'
folders, the lake and, where asked, the sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa

from mesh_assets.cdc.source import SourceConfig
from mesh_assets.contract.discovery import Discovery, Product, discover
from mesh_assets.contract.model import TableContract
from mesh_assets.derive.plan import DerivePlan, derive_plan, derive_plans
from mesh_assets.errors import AsOfRefused, MeshError, TableMissing, UnknownName
from mesh_assets.history import KeyChange, key_history
from mesh_assets.lake.access import Principal, authorise
from mesh_assets.lake.ledger import Ledger
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.position import Lsn
from mesh_assets.lake.read import Pinned, changes_of, fresh, open_pinned
from mesh_assets.lake.table import Table
from mesh_assets.lake.version import AsOf, Cut, Horizon, VersionLog, VersionRow, parse_as_of
from mesh_assets.names import CHANGES, CURRENT, Layout, ProductName, publication_name, slot_name
from mesh_assets.settings import Settings
from mesh_assets.shift.plan import CapturePlan, Target, capture_plan
from mesh_assets.status import (
    InputStatus,
    ProductStatus,
    SourceStatus,
    latest_version,
    product_status,
    source_status,
)

if TYPE_CHECKING:
    import duckdb

    from mesh_assets.parity import ParityResult


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

    def product(self, name: str) -> Product:
        """The product that ``domain.product`` names.

        Raises:
            UnknownName: if there is none; it lists what there is.
            ContractError: if its contract is broken.
        """
        return self.discovery.product(ProductName.parse(name))

    def select(self, names: Sequence[str]) -> list[tuple[Product, TableContract]]:
        """The tables that domains, products and tables name, each once; all tables without a name.

        Raises:
            UnknownName: if a name selects nothing.
        """
        products = list(self.discovery.products.values())
        chosen: dict[tuple[ProductName, str], tuple[Product, TableContract]] = {}
        for name in names or self.discovery.domains:
            if "." not in name:
                if name not in self.discovery.domains:
                    raise UnknownName.of("domain", name, self.discovery.domains)
                found = [
                    (one, table)
                    for one in products
                    if one.name.domain == name
                    for table in one.contract.tables
                ]
            elif name.count(".") == 1:
                product = self.product(name)
                found = [(product, table) for table in product.contract.tables]
            else:
                found = [self.resolve(name)]
            chosen |= {(product.name, table.name): (product, table) for product, table in found}
        return list(chosen.values())

    def resolve(self, name: str) -> tuple[Product, TableContract]:
        """The product and table that ``domain.product[.table]`` names.

        Raises:
            UnknownName: if there is none; it lists what there is.
            ContractError: if the product's contract is broken.
        """
        parts = name.split(".")
        if len(parts) not in (2, 3):
            known = [str(product) for product in self.discovery.products]
            near = [one for one in known if name in one.split(".")] or get_close_matches(name, known, n=1)
            raise UnknownName(
                f"{name!r} is not a product or table",
                available=known,
                hint=f"did you mean {near[0]!r}?" if near else "write domain.product or domain.product.table",
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

    def derive_plan(self, name: str) -> DerivePlan:
        """The plan of one derived product.

        Raises:
            UnknownName: if there is none of that name.
        """
        return derive_plan(self.settings, self.discovery, ProductName.parse(name))

    def derive_plans(self, domain: str) -> Sequence[DerivePlan]:
        """The plans of a domain's derived products, each after those that it is made of."""
        return derive_plans(self.settings, self.discovery, domain)

    def target(self, name: str) -> tuple[CapturePlan, Target]:
        """The plan and target that capture ``domain.product[.table]``."""
        product, table = self.resolve(name)
        plan = self.plan(product.name.domain, product.definition.captured_source())
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
            generation=cut.generation(table.name),
        )
        return Dataset(product.name, table.name, cut, frame)

    def changes_uri(self, name: ProductName, table: str) -> str:
        """Where the change log of a table lies now."""
        row = latest_version(self.layout, name)
        return self.layout.table(name, CHANGES, table, row.generation(table) if row else 1)

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
        asked = parse_as_of(as_of) if isinstance(as_of, str) else as_of
        if isinstance(asked, Lsn) and self.discovery.product(name).derived:
            raise AsOfRefused(
                f"{name} is derived of several products, so {asked} does not say where",
                hint="ask for a version or a moment",
            )
        return versions.resolve(
            asked,
            log=lambda table, generation: ChangeLog.open(self.layout.table(name, CHANGES, table, generation)),
            horizon=self._horizon(name),
        )

    def _horizon(self, name: ProductName) -> Horizon | None:
        """How far the product's source was observed beyond its newest version."""
        product = self.discovery.product(name)
        if product.definition.source is None:
            return self._derived_horizon(product)
        uri = self.layout.source(name.domain, product.definition.source, "ledger")
        last = Ledger(uri).latest()
        if last is None:
            return None
        wanted = {table.name: table.physical_name for table in product.contract.tables}
        if not set(wanted.values()) <= last.tables.keys():
            # A table is parked or being read again: only versions are consistent.
            return None
        tables = {name: last.tables[physical_name] for name, physical_name in wanted.items()}
        # The next transaction may commit exactly where the last one ended.
        return Horizon(tables, last.end_lsn - 1, last.observed_at)

    def _derived_horizon(self, product: Product) -> Horizon | None:
        """As far as all inputs were observed, if the newest version was made of their newest ones."""
        last = latest_version(self.layout, product.name)
        if last is None:
            return None
        moments = []
        for name in sorted({one.product for one in product.definition.inputs}):
            newest, observed = latest_version(self.layout, name), self._horizon(name)
            if newest is None or observed is None or last.parents.get(str(name)) != newest.version:
                return None
            if any(observed.tables.get(table, seq) != seq for table, seq in newest.tables.items()):
                return None
            moments.append(observed.observed_at)
        return Horizon(last.tables, 0, min(moments))

    def changes(
        self,
        name: str,
        key: Mapping[str, object] | str,
        *,
        as_of: AsOf | None = None,
        principal: Principal | None = None,
    ) -> pl.DataFrame:
        """Every change of one key, oldest first, moves to and from other keys included.

        Of a table in its second or a later generation, those of this one: the earlier ones have other
        columns (:meth:`history` has them, too).

        Args:
            key: values by key column, or text: the value, or ``column=value,...``.
            as_of: only those up to then.

        Raises:
            UnknownName: if a key column is wrong.
            AsOfRefused: if the moment lies outside of what is held.
        """
        product, table = self.resolve(name)
        generation, cut = self._generations(product.name, table.name, as_of)[-1]
        return self._changes(product.name, table.name, key, generation, cut, principal)

    def history(
        self,
        name: str,
        key: Mapping[str, object] | str,
        *,
        as_of: AsOf | None = None,
        principal: Principal | None = None,
    ) -> list[KeyChange]:
        """Every change of one key with the whole row before and after it, truncates included.

        Also those in earlier generations of the table, as far as it had the same key columns there.
        Arguments and errors as for :meth:`changes`.
        """
        product, table = self.resolve(name)
        found: list[KeyChange] = []
        *earlier, last = self._generations(product.name, table.name, as_of)
        for generation, cut in (last, *reversed(earlier)):
            try:
                changes = self._changes(product.name, table.name, key, generation, cut, principal)
            except UnknownName:
                if generation == last[0]:
                    raise
                break
            log = ChangeLog.open(self.layout.table(product.name, CHANGES, table.name, generation))
            truncates = log.scan(upto=cut).filter(pl.col("_op") == "t").select(changes.columns).collect()
            found[:0] = key_history(pl.concat([changes, truncates]).sort("_seq"))
        return found

    def _changes(
        self,
        name: ProductName,
        table: str,
        key: Mapping[str, object] | str,
        generation: int,
        cut: int | None,
        principal: Principal | None,
    ) -> pl.DataFrame:
        if isinstance(key, str):
            uri = self.layout.table(name, CHANGES, table, generation)
            values = parse_key(table, ChangeLog.open(uri).key, key)
        else:
            values = dict(key)
        return changes_of(
            self.layout,
            name,
            table,
            values,
            principal=principal or Principal.local(),
            generation=generation,
            cut=cut,
        )

    def _generations(self, name: ProductName, table: str, as_of: AsOf | None) -> list[tuple[int, int | None]]:
        """A table's generations, oldest first, and the last ``_seq`` of each that counts (None: all)."""
        if as_of is None:
            last = latest_version(self.layout, name)
            if last is None or last.generation(table) == 1:
                return [(1, None)]
            found = VersionLog(self.layout.versions(name)).generations(table, last)
            return [*found[:-1], (found[-1][0], None)]
        cut = self.cut(name, as_of)
        return list(VersionLog(self.layout.versions(name)).generations(table, cut))

    def sql(self, text: str, *, as_of: AsOf | None = None, principal: Principal | None = None) -> Answer:
        """Run one SELECT over products, each named ``domain.product`` or ``domain.product.table``.

        All tables of a product are read at one cut; without ``as_of`` that of its latest version.

        Raises:
            QueryRefused: if the text is not one statement that only reads, or fails.
            UnknownName: if a table or column does not exist.
            AsOfRefused: if the moment lies outside of what is held, or a version or an LSN is
                given and the statement names several products or sources.
        """
        from mesh_assets.lake.query import sql

        asked = parse_as_of(as_of) if isinstance(as_of, str) else as_of
        who = principal or Principal.local()
        cuts: dict[ProductName, Cut] = {}
        scopes: dict[str, str] = {}

        def pinned(name: str) -> Pinned:
            product, table = self.resolve(name)
            if product.name not in cuts:
                scopes.setdefault(self._scope(product, asked), str(product.name))
                if len(scopes) > 1:
                    raise AsOfRefused(
                        f"{asked} does not mean the same for {' and '.join(scopes.values())}",
                        hint="give a moment, or ask for one product at a time",
                    )
                cuts[product.name] = self.cut(product.name, asked)
            cut = cuts[product.name]
            generation = cut.generation(table.name)
            return open_pinned(
                self.layout.table(product.name, CHANGES, table.name, generation),
                self.layout.table(product.name, CURRENT, table.name, generation),
                cut.tables.get(table.name, -1),
                authorise(who, product.name, table.name),
            )

        return Answer(sql(text, pinned), cuts)

    @staticmethod
    def _scope(product: Product, as_of: int | datetime | Lsn | None) -> str:
        """Within what an ``as of`` of this kind has one meaning."""
        if isinstance(as_of, Lsn) and not product.derived:
            return f"{product.name.domain}.{product.definition.source}"
        return str(product.name) if isinstance(as_of, int) else ""

    # -- state --------------------------------------------------------------------------------

    def product_status(self, product: Product) -> ProductStatus:
        """How a product stands in the lake: its version, and rows and changes of its tables."""
        status = product_status(self.layout, product)
        if not product.derived:
            return status
        plan = derive_plan(self.settings, self.discovery, product.name)
        held = status.version.parents if status.version else {}
        inputs = []
        for name in plan.input_products:
            newest = latest_version(self.layout, name)
            inputs.append(InputStatus(name, held.get(str(name), 0), newest.version if newest else 0))
        refusal = plan.refusal()
        return replace(status, inputs=tuple(inputs), problem=refusal["error"] if refusal else "")

    def latest_version(self, product: Product) -> VersionRow | None:
        """A product's newest version; None before the first."""
        return latest_version(self.layout, product.name)

    def captured_sources(self) -> list[tuple[str, str]]:
        """``(domain, source)`` of all that products are fed by, or were while they could be loaded."""
        fed = set(self.discovery.sources())
        for name, domain in self.discovery.domains.items():
            for source in domain.sources:
                if Table.exists(self.layout.source(name, source, "ledger")):
                    fed.add((name, source))
        return sorted(fed)

    def source_status(self, domain: str, source: str) -> SourceStatus:
        """How a source stands against the ledger; asks the source, 3 s at most."""
        publishers = self.discovery.publishers(domain, source)
        changes = {
            source_table: self.layout.table(product.name, CHANGES, table.name)
            for source_table, (product, table) in publishers.items()
        }
        plan: CapturePlan | MeshError
        try:
            plan = self.plan(domain, source)
        except MeshError as error:
            plan = error
        abandoned = None
        if not publishers and domain in self.discovery.domains:
            with suppress(MeshError):
                # Without an address, the plan's own error says what is missing.
                abandoned = SourceConfig(
                    domain=domain,
                    name=source,
                    url=self.settings.source_url(domain, source),
                    tables=(),
                    slot=slot_name(domain, source),
                    publication=publication_name(domain, source),
                )
        return source_status(self.layout, domain, source, changes, plan, abandoned=abandoned)

    # -- proof --------------------------------------------------------------------------------

    def parity(self, name: str, *, run_id: str = "", drain: Callable[[], None] | None = None) -> ParityResult:
        """Compare one table with its source at one LSN (:func:`mesh_assets.parity.parity`).

        A derived product's source is a recomputation of all of it from the versions it was made of.
        """
        product, table = self.resolve(name)
        if product.derived:
            from mesh_assets.derive.rebuild import derived_parity

            return derived_parity(derive_plan(self.settings, self.discovery, product.name), table.name)
        plan, target = self.target(name)
        # It brings all that a shift is made of.
        from mesh_assets.parity import parity

        return parity(plan, target, run_id=run_id, drain=drain)


@dataclass(frozen=True)
class Answer:
    """What a statement gave.

    Attributes:
        table: its rows.
        cuts: the cut at which each product was read.
    """

    table: pa.Table
    cuts: Mapping[ProductName, Cut]


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


def parse_key(table: str, key: Sequence[str], text: str) -> dict[str, object]:
    """Read ``42`` or ``order_id=42,line_number=1`` as texts of the values of a table's key.

    Raises:
        UnknownName: if the columns are not exactly the key's.
    """
    if len(key) == 1:
        return {key[0]: text.removeprefix(f"{key[0]}=")}
    pairs = dict(part.partition("=")[::2] for part in text.split(",") if "=" in part)
    values: dict[str, object] = {name.strip(): value.strip() for name, value in pairs.items()}
    if set(values) != set(key):
        raise UnknownName(
            f"{text!r} is not a key of {table}",
            available=key,
            hint="write " + ",".join(f"{name}=…" for name in key),
        )
    return values
