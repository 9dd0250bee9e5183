"""Schema versions of a captured table, and which migrations apply by themselves.

A schema version is what the source's catalog said of a table when its first change in that
shape arrived. The log keeps every version; rows refer to theirs in ``_schema_version``.
Columns are identified by attribute number: a dropped and re-added name is another column.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa

from mesh_assets.cdc.relation import Column, Relation
from mesh_assets.errors import MigrationRefused
from mesh_assets.lake.table import Table

SCHEMA = pa.schema(
    [
        pa.field("table", pa.string(), nullable=False),
        pa.field("schema_version", pa.int32(), nullable=False),
        pa.field("columns", pa.string(), nullable=False),
        pa.field("identity", pa.string(), nullable=False),
        pa.field("oid", pa.int64(), nullable=False),
        pa.field("relfilenode", pa.int64(), nullable=False),
        pa.field("recorded_at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("leaves", pa.string()),
    ]
)


@dataclass(frozen=True)
class ColumnVersion:
    """One column of a schema version: its attribute number, name and source type."""

    attnum: int
    name: str
    type_name: str
    key: bool


@dataclass(frozen=True)
class SchemaVersion:
    """The shape of ``table`` (``schema.table``) from its version number on.

    ``oid`` and ``relfilenode`` are of the table when it was last looked at: they tell that it was
    replaced or rewritten, which changes rows without a message. ``leaves`` are those of its partitions;
    None if they were not noted.
    """

    table: str
    number: int
    columns: tuple[ColumnVersion, ...]
    identity: str
    oid: int
    relfilenode: int
    leaves: frozenset[tuple[int, int]] | None = None

    @property
    def types(self) -> dict[str, str]:
        """Source type by column name."""
        return {column.name: column.type_name for column in self.columns}

    @classmethod
    def of(cls, relation: Relation, number: int) -> SchemaVersion:
        """The version that a relation described by the source's catalog stands for."""
        return cls(
            f"{relation.schema}.{relation.name}",
            number,
            tuple(ColumnVersion(c.attnum, c.name, c.type.name, c.key) for c in relation.columns),
            relation.identity,
            relation.oid,
            relation.relfilenode,
            leaves_of(relation),
        )

    def replaced(self, relation: Relation) -> bool:
        """Whether rows came or went without a message: another table or file, partitions put in or out."""
        if (self.oid, self.relfilenode) != (relation.oid, relation.relfilenode):
            return True
        if self.leaves is None:
            return False
        known = {oid for oid, _ in self.leaves}
        # A partition that was made empty has only rows that came with messages.
        put_in = any(leaf.filled and leaf.oid not in known for leaf in relation.leaves)
        return put_in or not self.leaves <= leaves_of(relation)

    def names(self) -> list[str]:
        """Column names in order."""
        return [column.name for column in self.columns]


def leaves_of(relation: Relation) -> frozenset[tuple[int, int]]:
    """The partitions that hold a relation's rows, each with its file."""
    return frozenset((leaf.oid, leaf.relfilenode) for leaf in relation.leaves)


def added_columns(known: SchemaVersion, relation: Relation) -> tuple[Column, ...]:
    """Columns that ``relation`` (from the source's catalog) adds to the ``known`` version.

    Raises:
        MigrationRefused: for every other difference, naming all of them.
    """
    present = {column.attnum: column for column in relation.columns}
    problems: list[str] = []
    for old in known.columns:
        new = present.get(old.attnum)
        if new is None:
            problems.append(f"column {old.name!r} was dropped")
        elif new.name != old.name:
            problems.append(f"column {old.name!r} was renamed to {new.name!r}")
        elif new.type.name != old.type_name:
            problems.append(f"column {old.name!r} changed from {old.type_name} to {new.type.name}")
        elif new.key != old.key and relation.identity == known.identity:
            problems.append(f"column {old.name!r} {'joined' if new.key else 'left'} the key")
    if problems:
        raise MigrationRefused(
            f"{known.table}: {'; '.join(problems)}",
            hint="its changes are kept in the source's parking log, other tables go on; "
            "revert the migration at the source",
        )
    highest = max((column.attnum for column in known.columns), default=0)
    return tuple(column for column in relation.columns if column.attnum > highest)


def same_shape(streamed: Relation, described: Relation) -> bool:
    """Whether a relation announced by the stream is what the catalog describes now.

    The stream's message lacks attribute numbers, so names and types decide.
    """

    def shape(relation: Relation) -> list[tuple[str, int, int]]:
        return [(c.name, c.type.oid, c.type.typmod) for c in relation.columns]

    return shape(streamed) == shape(described)


class SchemaLog:
    """The schema versions of all tables of one source, in a Delta table."""

    def __init__(self, uri: str) -> None:
        self._table = (
            Table.open(uri)
            if Table.exists(uri)
            else Table.create(
                uri, SCHEMA, append_only=True, name="schemas", description="schema versions of a source"
            )
        )
        # Logs that were made before partitions were noted lack it.
        self._table.add_columns([SCHEMA.field("leaves")])
        self._latest: dict[str, SchemaVersion] = {}
        for row in sorted(
            self._table.read().to_pylist(), key=lambda row: (row["schema_version"], row["recorded_at"])
        ):
            columns = tuple(ColumnVersion(**column) for column in json.loads(row["columns"]))
            self._latest[row["table"]] = SchemaVersion(
                row["table"],
                row["schema_version"],
                columns,
                row["identity"],
                row["oid"],
                row["relfilenode"],
                None if row["leaves"] is None else frozenset((a, b) for a, b in json.loads(row["leaves"])),
            )

    def latest(self, table: str) -> SchemaVersion | None:
        """The newest version of ``schema.table``, or None before its first capture."""
        return self._latest.get(table)

    def record(self, versions: Sequence[SchemaVersion], at: datetime) -> None:
        """Append new versions durably."""
        if not versions:
            return
        rows = [
            {
                "table": version.table,
                "schema_version": version.number,
                "columns": json.dumps([vars(column) for column in version.columns]),
                "identity": version.identity,
                "oid": version.oid,
                "relfilenode": version.relfilenode,
                "recorded_at": at,
                "leaves": None if version.leaves is None else json.dumps(sorted(version.leaves)),
            }
            for version in versions
        ]
        self._table.append(pa.Table.from_pylist(rows, schema=SCHEMA), transactions={})
        for version in versions:
            self._latest[version.table] = version
