"""A table of the source: its columns, its key, and the schema of its change frames."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import pyarrow as pa

from mesh_assets.cdc.type import PostgresType
from mesh_assets.errors import SourceError, TableRefused

COMMITTED_AT_TYPE: Final = pa.timestamp("us", tz="UTC")
UNCHANGED_TYPE: Final = pa.list_(pa.string())
EXACT_TYPE: Final = pa.map_(pa.string(), pa.string())

BEFORE_PREFIX: Final = "_before."
"""Precedes a column's name in ``_exact`` where the value belongs to the before image."""

IDENTITY_DEFAULT: Final = "d"
IDENTITY_INDEX: Final = "i"
IDENTITY_FULL: Final = "f"
IDENTITY_NOTHING: Final = "n"


@dataclass(frozen=True)
class Column:
    """One column of a relation.

    Attributes:
        name: its name at the source.
        type: its type at the source.
        arrow: the Arrow type in which its values are kept.
        key: it is part of the row's key: of the replica identity or, where that is FULL,
            of the primary key.
        attnum: ``pg_attribute.attnum``; 0 where only the stream is known, which lacks it.
        missing: text of ``attmissingval``: what rows older than the column hold.
        generated: the column is generated.
        nullable: the column may hold null.
    """

    name: str
    type: PostgresType
    arrow: pa.DataType
    key: bool = False
    attnum: int = 0
    missing: str | None = None
    generated: bool = False
    nullable: bool = True


@dataclass(frozen=True)
class Leaf:
    """A partition of a table: ``relfilenode`` is its file, ``filled`` that it ever held a row."""

    oid: int
    relfilenode: int
    filled: bool


@dataclass(frozen=True)
class Relation:
    """One version of a table of the source.

    Attributes:
        oid: ``pg_class.oid``.
        schema: the schema's name.
        name: the table's name.
        identity: ``relreplident``: ``d`` primary key, ``i`` an index, ``f`` full, ``n`` nothing.
        columns: in the table's order, published ones only.
        relfilenode: changes when the table is rewritten; 0 where only the stream is known.
        leaves: the partitions that hold its rows; none for an ordinary table.

    Raises:
        SourceError: when there is no column, or a column's name starts with ``_``, which is
            kept for ours.
    """

    oid: int
    schema: str
    name: str
    identity: str
    columns: tuple[Column, ...]
    relfilenode: int = 0
    leaves: tuple[Leaf, ...] = ()

    def __post_init__(self) -> None:
        if not self.columns:
            raise SourceError(
                f"table {self.qualified_name} publishes no column",
                hint="take it out of the publication, or publish at least its key",
            )
        for column in self.columns:
            if column.name.startswith("_"):
                raise TableRefused(
                    f"column {column.name!r} of table {self.qualified_name} starts with an underscore",
                    hint="such names are kept for the change log's own columns: rename it, "
                    "or leave it out of the publication's column list",
                )

    @property
    def qualified_name(self) -> str:
        """``schema.table``."""
        return f"{self.schema}.{self.name}"

    @cached_property
    def key(self) -> tuple[str, ...]:
        """Names of the columns that identify a row; empty where nothing does."""
        return tuple(column.name for column in self.columns if column.key)

    @cached_property
    def row_schema(self) -> pa.Schema:
        """The row's columns alone. All may be null: a delete holds its key only."""
        return pa.schema([pa.field(column.name, column.arrow) for column in self.columns])

    @cached_property
    def frame_schema(self) -> pa.Schema:
        """The row's columns and then those that say what happened to the row, when, and in which order."""
        return pa.schema(
            [
                *self.row_schema,
                pa.field("_op", pa.string()),
                pa.field("_position", pa.int64()),
                pa.field("_ordinal", pa.int64()),
                pa.field("_xid", pa.int64()),
                pa.field("_committed_at", COMMITTED_AT_TYPE),
                pa.field("_unchanged", UNCHANGED_TYPE),
                pa.field("_before", pa.struct(list(self.row_schema))),
                pa.field("_exact", EXACT_TYPE),
            ]
        )
