"""What people and programs ask of the mesh: its products, their data now and then, their state.

Nothing here knows Dagster, and nothing needs the mesh to be running: it reads the products'
folders, the lake and, where asked, the sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import polars as pl
import pyarrow as pa

from mesh_assets.cdc.source import Head, Source
from mesh_assets.contract.discovery import Discovery, Product, discover
from mesh_assets.contract.model import TableContract
from mesh_assets.errors import AsOfRefused, MeshError, TableMissing, UnknownName
from mesh_assets.lake.access import Principal, local_principal
from mesh_assets.lake.ledger import Ledger, LedgerRow
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.version import Cut, VersionLog, VersionRow
from mesh_assets.names import CHANGES, CURRENT, Layout, ProductName
from mesh_assets.parity import ParityResult, parity
from mesh_assets.plan import CapturePlan, Target, capture_plan
from mesh_assets.settings import Settings

AsOf = int | str | datetime
"""A product version (int), a moment, or an LSN written ``X/Y``."""


@dataclass(frozen=True)
class SourceStatus:
    """One source: what it has, what we hold, and what that costs it.

    Attributes:
        pending: whether it has changes that no shift has seen.
        lag_seconds: age of what we hold, 0 when nothing is pending.
        problem: why it cannot be asked; empty if it can.
    """

    domain: str
    source: str
    ledger: LedgerRow | None
    head: Head | None
    pending: bool
    lag_seconds: float | None
    problem: str = ""


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

    @property
    def committed_at(self) -> datetime | None:
        """Source time of the newest change in the latest version."""
        return self.version.committed_at if self.version else None


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

    # -- proof --------------------------------------------------------------------------------

    def parity(self, name: str, *, drain: Callable[[], None] | None = None) -> ParityResult:
        """Compare one table with its source at one LSN (:func:`mesh_assets.parity.parity`)."""
        plan, target = self.target(name)
        return parity(plan, target, drain=drain)
