"""A data contract: what a product promises, frozen and cheap to pass around."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from mesh_assets.contract import standard
from mesh_assets.errors import UnknownName
from mesh_assets.names import ProductName

END_OF_SUPPORT = "endOfSupport"
"""The service-level promise that names the last day of support."""


@dataclass(frozen=True)
class QualityRule:
    """A quality rule as written; it is evaluated by the quality layer.

    Attributes:
        table: the table it is about.
        column: the column it is about, or ``None`` for the whole table.
        definition: the ODCS fields as written.
        line: where it stands in the contract.
    """

    table: str
    column: str | None
    definition: Mapping[str, Any] = field(hash=False)
    line: int = field(default=1, compare=False)


@dataclass(frozen=True)
class ColumnContract:
    """One promised column.

    Attributes:
        name: its name, at the source and in the product.
        logical_type: ODCS logical type.
        physical_type: the source's type as PostgreSQL writes it (``numeric(12,2)``), or "".
        required: whether it is never null; key columns always are.
        key: whether it is part of the primary key.
        unique: whether its values are unique by themselves.
        classification: public, internal, confidential or restricted; ``None`` if not classified.
        values: the only values allowed (ODCS 3.2 ``enum``); empty if any is.
        options: ODCS ``logicalTypeOptions``.
        line: where it stands in the contract.
    """

    name: str
    logical_type: str
    physical_type: str = ""
    required: bool = False
    key: bool = False
    unique: bool = False
    classification: str | None = None
    business_name: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    examples: tuple[Any, ...] = field(default=(), hash=False)
    values: tuple[Any, ...] = field(default=(), hash=False)
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    line: int = field(default=1, compare=False)


@dataclass(frozen=True)
class TableContract:
    """One promised table.

    Attributes:
        name: its name in the product.
        physical_name: ``schema.table`` at the source; for a derived product its own name.
        columns: in the order of the contract.
        key: names of the primary key's columns, in key order; never empty.
        quality: rules about this table and its columns.
        line: where it stands in the contract.
    """

    name: str
    physical_name: str
    columns: tuple[ColumnContract, ...]
    key: tuple[str, ...]
    business_name: str = ""
    description: str = ""
    granularity: str = ""
    tags: tuple[str, ...] = ()
    quality: tuple[QualityRule, ...] = ()
    line: int = field(default=1, compare=False)

    def column(self, name: str) -> ColumnContract:
        """A column by name.

        Raises:
            UnknownName: if the contract has no such column.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise UnknownName.of(f"column of {self.name}", name, [column.name for column in self.columns])


@dataclass(frozen=True)
class SlaProperty:
    """One service-level promise (ODCS ``slaProperties``): ``name`` is latency, retention, …"""

    name: str
    value: str | float | int | bool
    unit: str = ""
    element: str = ""
    description: str = ""
    line: int = field(default=1, compare=False)

    @property
    def seconds(self) -> float | None:
        """The value as seconds, or ``None`` if it is not a number of time units."""
        factor = standard.UNIT_SECONDS.get(self.unit)
        if factor is None or isinstance(self.value, str | bool):
            return None
        return self.value * factor


@dataclass(frozen=True)
class Contract:
    """What one data product promises.

    Attributes:
        name: the product.
        id: identity of the contract, unique over all contracts.
        version: version of the contract, as its owner counts.
        status: proposed, draft, active, deprecated or retired.
        description, usage, limitations: the three parts of ODCS ``description`` (purpose first).
        owners: ``team:<name>`` and e-mail addresses, the owning team first; never empty.
        tables: at least one.
        sla: service-level promises.
        quality: all rules of all tables.
        servers: ODCS ``servers``, as written.
        support: ODCS ``support``, as written.
        hash: SHA-256 (hex) of the content: equal content, however written, has an equal hash.
        content: the whole contract as ODCS 3.1 fields (plus what only 3.2 has).
        path: the file it was read from.
    """

    name: ProductName
    id: str
    version: str
    status: str
    owners: tuple[str, ...]
    tables: tuple[TableContract, ...]
    hash: str
    description: str = ""
    usage: str = ""
    limitations: str = ""
    tags: tuple[str, ...] = ()
    sla: tuple[SlaProperty, ...] = ()
    servers: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    support: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    content: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)
    path: Path = field(default=Path(), compare=False)

    @property
    def domain(self) -> str:
        """The domain that owns the product."""
        return self.name.domain

    @property
    def product(self) -> str:
        """The product's name inside its domain."""
        return self.name.product

    @property
    def quality(self) -> tuple[QualityRule, ...]:
        """All quality rules, table by table."""
        return tuple(rule for table in self.tables for rule in table.quality)

    @property
    def default_table(self) -> TableContract | None:
        """The table that may be left out of names: the one named like the product, or the only one.

        Of an old version that is kept it is the one that is named like the product that it keeps.
        """
        keeps = self.name.keeps
        for name in (self.product, keeps[0].product if keeps else ""):
            for table in self.tables:
                if table.name == name:
                    return table
        return self.tables[0] if len(self.tables) == 1 else None

    def table(self, name: str) -> TableContract:
        """A table by name.

        Raises:
            UnknownName: if the contract has no such table.
        """
        for table in self.tables:
            if table.name == name:
                return table
        raise UnknownName.of(f"table in {self.name}", name, [table.name for table in self.tables])

    def promise(self, name: str) -> SlaProperty | None:
        """The first service-level promise of that kind (``latency``, ``retention``, …)."""
        for promise in self.sla:
            if promise.name == name:
                return promise
        return None

    @property
    def last_day(self) -> date | None:
        """The last day of support; None if none is promised, or what is no day."""
        end = self.promise(END_OF_SUPPORT)
        if end is not None:
            with suppress(ValueError):
                return date.fromisoformat(str(end.value)[:10])
        return None

    @property
    def ended(self) -> bool:
        """Whether the support that is promised is over."""
        last = self.last_day
        return last is not None and datetime.now(UTC).date() > last

    def json_schema(self, table: str) -> dict[str, Any]:
        """JSON Schema of the change events of one table.

        Raises:
            UnknownName: if the contract has no such table.
        """
        from mesh_assets.contract.json_schema import event_schema

        return event_schema(self, self.table(table))

    def to_yaml(self) -> str:
        """The contract as the text of an ODCS 3.1.0 file."""
        return standard.to_yaml(self.content)
