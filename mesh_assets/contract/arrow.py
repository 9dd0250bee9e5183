"""A contract's columns as Arrow types, and a contract compared with the source's live table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import pyarrow as pa

from mesh_assets.contract.model import ColumnContract, TableContract
from mesh_assets.contract.physical import PhysicalType

_SCALAR: dict[str, pa.DataType] = {
    "smallint": pa.int16(),
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "oid": pa.int64(),
    "real": pa.float32(),
    "double precision": pa.float64(),
    "boolean": pa.bool_(),
    "bytea": pa.binary(),
    "date": pa.date32(),
}
_BY_LOGICAL_TYPE: dict[str, pa.DataType] = {
    "string": pa.string(),
    "boolean": pa.bool_(),
    "date": pa.date32(),
    "time": pa.string(),
    "object": pa.string(),
    "map": pa.string(),
}
_WIDEST_DECIMAL = 38
_FULL = "f"


class SourceType(Protocol):
    """A column's type at the source: its name as PostgreSQL writes it, and what it is below domains."""

    @property
    def name(self) -> str: ...
    @property
    def root(self) -> SourceType: ...


class SourceColumn(Protocol):
    """A live column; ``key`` says whether it is part of the replica identity or primary key."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> SourceType: ...
    @property
    def key(self) -> bool: ...
    @property
    def nullable(self) -> bool: ...


class SourceTable(Protocol):
    """A live table; ``identity`` is PostgreSQL's ``relreplident`` (d, i, f or n)."""

    @property
    def schema(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> str: ...
    @property
    def columns(self) -> Sequence[SourceColumn]: ...


@dataclass(frozen=True)
class Mismatch:
    """One difference between a contract and the source's live table.

    Attributes:
        kind: what differs.
        table: ``schema.table`` at the source.
        column: the column, or ``None`` for the key as a whole.
        promised: what the contract says; "" where it says nothing.
        found: what the source has; "" where it has nothing.
        blocking: the promise cannot be kept, so the table must not be captured as it is.
        line: where the contract says so.
    """

    kind: Literal["missing column", "extra column", "type", "key", "nullability"]
    table: str
    column: str | None
    promised: str
    found: str
    blocking: bool
    line: int = field(default=1, compare=False)

    def __str__(self) -> str:
        if self.kind == "missing column":
            return f"column {self.column!r} of the contract is not in {self.table}"
        if self.kind == "extra column":
            return f"column {self.column!r} ({self.found}) of {self.table} is not in the contract"
        if self.kind == "type":
            return (
                f"column {self.column!r} is {self.promised} in the contract and {self.found} in {self.table}"
            )
        if self.kind == "key":
            found = f"is identified by {self.found}" if self.found else "has no replica identity"
            return f"the contract's key is {self.promised}, but {self.table} {found}"
        return f"column {self.column!r} is required by the contract, but {self.table} lets it be null"


def arrow_type(column: ColumnContract) -> pa.DataType | None:
    """The Arrow type in which a column's values are kept.

    Follows the physical type; without one the logical type, as far as that decides (``None``
    for integers, numbers, timestamps and arrays, whose width, zone or elements it leaves open).
    """
    if not column.physical_type:
        return _BY_LOGICAL_TYPE.get(column.logical_type)
    physical = PhysicalType.parse(column.physical_type)
    scalar = _scalar(physical)
    return pa.list_(scalar) if physical.array else scalar


def _scalar(physical: PhysicalType) -> pa.DataType:
    if physical.name == "timestamp":
        return pa.timestamp("us", tz="UTC" if physical.zone == "with time zone" else None)
    if physical.name == "numeric" and len(physical.numbers) == 2:
        precision, scale = physical.numbers
        if 1 <= precision <= _WIDEST_DECIMAL and 0 <= scale <= precision:
            return pa.decimal128(precision, scale)
    return _SCALAR.get(physical.name, pa.string())


def compare(table: TableContract, source: SourceTable) -> list[Mismatch]:
    """Every difference between a table's contract and the source's live table.

    A column that only the source has does not block (it is captured and can be promised later),
    nor does one that may be null although promised never to be (the data decides). A missing
    column, another type or another key blocks. With replica identity FULL the whole old row is
    known, so any key will do.
    """
    name = f"{source.schema}.{source.name}"
    live = {column.name: column for column in source.columns}
    mismatches: list[Mismatch] = []
    for column in table.columns:
        found = live.get(column.name)
        if found is None:
            promised = column.physical_type or column.logical_type
            mismatches.append(Mismatch("missing column", name, column.name, promised, "", True, column.line))
            continue
        if not _same_type(column, found.type):
            promised = column.physical_type or column.logical_type
            mismatches.append(
                Mismatch("type", name, column.name, promised, found.type.name, True, column.line)
            )
        if column.required and found.nullable:
            mismatches.append(
                Mismatch("nullability", name, column.name, "not null", "null", False, column.line)
            )
    promised_names = {column.name for column in table.columns}
    mismatches += [
        Mismatch("extra column", name, column.name, "", column.type.name, False, table.line)
        for column in source.columns
        if column.name not in promised_names
    ]
    identity = [column.name for column in source.columns if column.key]
    if source.identity != _FULL and set(identity) != set(table.key):
        mismatches.append(
            Mismatch("key", name, None, ", ".join(table.key), ", ".join(identity), True, table.line)
        )
    return mismatches


def _same_type(column: ColumnContract, live: SourceType) -> bool:
    names = [PhysicalType.parse(live.name), PhysicalType.parse(live.root.name)]
    if column.physical_type:
        promised = PhysicalType.parse(column.physical_type)
        return any(promised.same(name) for name in names)
    logical_types = names[-1].logical_types
    return not logical_types or column.logical_type in logical_types
