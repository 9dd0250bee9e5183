"""What a source's system catalog says of its tables, columns, types and output functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from psycopg import sql

from mesh_assets.cdc.connection import Session
from mesh_assets.cdc.relation import Column, Leaf, Relation
from mesh_assets.cdc.type import PostgresType, arrow_type, builtin

ORDINARY = "r"
PARTITIONED = "p"

# A deferrable primary key is no replica identity; with FULL the key only names rows, so any will do.
_TABLES = """
SELECT asked.schema, asked.name, c.oid::int8, c.relkind::text, c.relpersistence::text, c.relreplident::text,
    c.relfilenode::int8, k.indexrelid::int8,
    has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'), row_security_active(c.oid),
    p.attnames::text[], p.rowfilter
FROM unnest(%(schemas)s::text[], %(names)s::text[]) AS asked (schema, name)
JOIN pg_namespace n ON n.nspname = asked.schema
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = asked.name
    AND c.relkind NOT IN ('i', 'I', 'S', 't', 'c')
LEFT JOIN LATERAL (
    SELECT i.indexrelid FROM pg_index i
    WHERE i.indrelid = c.oid AND i.indisvalid AND CASE c.relreplident
        WHEN 'i' THEN i.indisreplident
        WHEN 'f' THEN i.indisprimary
        ELSE i.indisprimary AND i.indimmediate END
) k ON true
LEFT JOIN pg_publication_tables p
    ON p.pubname = %(publication)s AND p.schemaname = n.nspname AND p.tablename = c.relname
"""

_COLUMNS = """
SELECT a.attnum::int4, a.attname, a.atttypid::int8, a.atttypmod, NOT a.attnotnull,
    a.attgenerated::text, CASE WHEN a.atthasmissing THEN (a.attmissingval::text::text[])[1] END
FROM pg_attribute a
WHERE a.attrelid = ANY(%s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
"""

_KEY_COLUMNS = """
SELECT k.attnum::int4, a.attname, t.oid::int8, a.atttypmod,
    CASE WHEN i.indcollation[k.place - 1] <> a.attcollation
        THEN quote_ident(n.nspname) || '.' || quote_ident(l.collname) END
FROM pg_index i
CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_collation l ON l.oid = i.indcollation[k.place - 1]
LEFT JOIN pg_namespace n ON n.oid = l.collnamespace
WHERE i.indexrelid = %s::oid AND k.place <= i.indnkeyatts
ORDER BY k.place
"""

_PARTITIONS = """
SELECT c.oid::int8, n.nspname, c.relname, c.relfilenode::int8, c.relreplident::text,
    c.relreplident = 'f' OR c.relreplident <> 'n' AND EXISTS (
        SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND CASE c.relreplident
            WHEN 'i' THEN i.indisreplident ELSE i.indisprimary AND i.indimmediate END
    ), pg_relation_size(c.oid) > 0
FROM pg_partition_tree(%s::oid::regclass) t
JOIN pg_class c ON c.oid = t.relid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE t.isleaf ORDER BY c.oid
"""

_OUTPUTS = """
SELECT t.oid::int8, quote_ident(n.nspname) || '.' || quote_ident(p.proname), p.proisstrict,
    format_type(t.oid, -1)
FROM pg_type t JOIN pg_proc p ON p.oid = t.typoutput JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE t.oid = ANY(%s::oid[])
"""

_CAPTURABLE = """
SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
    AND n.nspname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1
"""

_TYPE = """
SELECT format_type(t.oid, %s::int4), t.typtype::text, t.typbasetype::int8, t.typtypmod,
    CASE WHEN t.typcategory = 'A' THEN t.typelem::int8 ELSE 0 END, t.typdelim::text
FROM pg_type t WHERE t.oid = %s::oid
"""


@dataclass(frozen=True)
class TableRecord:
    """One table as the catalog has it.

    Attributes:
        kind: ``relkind``: ``r`` ordinary, ``p`` partitioned, others cannot be captured.
        persistence: ``relpersistence``: only ``p`` is in the WAL.
        identity: ``relreplident``.
        key_index: the index behind the replica identity (the primary key where that is FULL), or None.
        readable: this user may read it.
        hidden_rows: row level security hides rows from this user.
        published_columns: what the publication sends of it; None if it is not published.
        row_filter: the publication's row filter, or None.
    """

    schema: str
    name: str
    oid: int
    kind: str
    persistence: str
    identity: str
    relfilenode: int
    key_index: int | None
    readable: bool
    hidden_rows: bool
    published_columns: list[str] | None
    row_filter: str | None

    @property
    def qualified_name(self) -> str:
        """``schema.table``."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True)
class Partition:
    """A leaf partition.

    ``identified`` says that its own replica identity is usable, ``filled`` that it ever held a row.
    """

    oid: int
    schema: str
    name: str
    relfilenode: int
    identity: str
    identified: bool
    filled: bool

    @property
    def qualified_name(self) -> str:
        """``schema.table``."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True)
class KeyColumn:
    """A column of the key's index, in its order; ``collation`` only where it is not the column's own."""

    attnum: int
    name: str
    type: PostgresType
    collation: str | None


@dataclass(frozen=True)
class OutputFunction:
    """The function that prints a type's values.

    Attributes:
        name: schema-qualified and quoted.
        strict: it is not called for null.
        argument: the type's own name, to cast domains over it.
    """

    name: str
    strict: bool
    argument: str


def split_name(table: str) -> tuple[str, str]:
    """``schema`` and ``table`` of ``schema.table``; without a schema it is ``public``."""
    schema, dot, name = table.partition(".")
    return (schema, name) if dot else ("public", table)


def tables(session: Session, names: Sequence[str], publication: str) -> dict[str, TableRecord]:
    """The tables among ``names`` (``schema.table``) that exist."""
    parts = [split_name(name) for name in names]
    rows = session.execute(
        _TABLES,
        {
            "schemas": [schema for schema, _ in parts],
            "names": [name for _, name in parts],
            "publication": publication,
        },
    ).fetchall()
    records = [TableRecord(*row) for row in rows]
    return {record.qualified_name: record for record in records}


def capturable(session: Session) -> list[str]:
    """Every table that could be captured, as ``schema.table``."""
    return [name for (name,) in session.execute(_CAPTURABLE)]


def partitions(session: Session, oid: int) -> list[Partition]:
    """The leaf partitions of a partitioned table; empty for an ordinary one."""
    return [Partition(*row) for row in session.execute(_PARTITIONS, (oid,))]


def key_columns(session: Session, index: int) -> list[KeyColumn]:
    """The columns of an index, in its order."""
    return [
        KeyColumn(attnum, name, resolve(session, type_oid, typmod), collation)
        for attnum, name, type_oid, typmod, collation in session.execute(_KEY_COLUMNS, (index,)).fetchall()
    ]


def describe(session: Session, record: TableRecord) -> Relation:
    """A table's columns, those that are (or would be) published only, with everything the catalog knows.

    Raises:
        SourceError: if a column's name is reserved.
    """
    rows = _column_rows(session, [record.oid])
    chosen = [row for row in rows if _published(session, record, row)]
    key = set()
    if record.key_index is not None:
        key = {column.attnum for column in key_columns(session, record.key_index)}
    if not key <= {row.attnum for row in chosen}:
        key = set()
    missing = {row.name: row.missing for row in rows}
    leaves: list[Partition] = []
    if record.kind == PARTITIONED:
        # Only leaves hold rows, so only they can hold rows older than a column.
        leaves = partitions(session, record.oid)
        older = _column_rows(session, [leaf.oid for leaf in leaves])
        missing = {row.name: row.missing for row in older if row.missing is not None}
    return Relation(
        record.oid,
        record.schema,
        record.name,
        record.identity,
        tuple(
            Column(
                row.name,
                type_ := resolve(session, row.type_oid, row.typmod),
                arrow_type(type_),
                row.attnum in key,
                row.attnum,
                missing.get(row.name),
                bool(row.generated),
                row.nullable,
            )
            for row in chosen
        ),
        record.relfilenode,
        tuple(Leaf(leaf.oid, leaf.relfilenode, leaf.filled) for leaf in leaves),
    )


class _ColumnRow(NamedTuple):
    attnum: int
    name: str
    type_oid: int
    typmod: int
    nullable: bool
    generated: str
    missing: str | None


def _column_rows(session: Session, oids: list[int]) -> list[_ColumnRow]:
    return [_ColumnRow(*row) for row in session.execute(_COLUMNS, (oids,))]


def _published(session: Session, record: TableRecord, row: _ColumnRow) -> bool:
    if record.published_columns is not None:
        return row.name in record.published_columns
    # What ensure_publication is going to ask for: stored columns where the server can send them.
    return not row.generated or (row.generated == "s" and session.info.server_version >= 180_000)


def resolve(session: Session, oid: int, typmod: int) -> PostgresType:
    """The type behind an oid and modifier.

    A type that has been dropped meanwhile, which old changes may still refer to, keeps its values
    as exact text.
    """
    known = builtin(oid, typmod)
    if known is not None:
        return known
    row = session.execute(_TYPE, (typmod, oid)).fetchone()
    if row is None:
        return PostgresType(oid, typmod, f"dropped type {oid}")
    name, kind, base_oid, base_typmod, element_oid, delimiter = row
    return PostgresType(
        oid,
        typmod,
        name,
        base=resolve(session, base_oid, base_typmod) if kind == "d" else None,
        element=resolve(session, element_oid, typmod) if element_oid and kind != "d" else None,
        delimiter=delimiter,
    )


def output_functions(session: Session, types: Iterable[PostgresType]) -> dict[int, OutputFunction]:
    """By oid, the output functions of types (of what lies below them, for domains)."""
    oids = sorted({type_.root.oid for type_ in types})
    return {oid: OutputFunction(*rest) for oid, *rest in session.execute(_OUTPUTS, (oids,))}


def column_text(column: Column, outputs: dict[int, OutputFunction]) -> sql.Composable:
    """SQL for a column's value as ``pgoutput`` would send it.

    Casting to text is not enough: it prints boolean, padded characters and addresses in another
    way than the type's output function does.
    """
    output = outputs[column.type.root.oid]
    value: sql.Composable = sql.SQL("t.{}").format(sql.Identifier(column.name))
    if column.type.base is not None:
        value = sql.SQL("({}::{})").format(value, sql.SQL(output.argument))
    printed = sql.SQL("pg_catalog.textin({}({}))").format(sql.SQL(output.name), value)
    if not output.strict:
        printed = sql.SQL("CASE WHEN {} IS NOT NULL THEN {} END").format(value, printed)
    return sql.SQL("{} AS {}").format(printed, sql.Identifier(column.name))
