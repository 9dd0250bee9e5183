"""Everything that a source must offer before capture, checked at once and named together."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from mesh_assets.cdc import catalog, slot
from mesh_assets.cdc.catalog import ORDINARY, PARTITIONED, TableRecord
from mesh_assets.cdc.connection import Session, connect, place
from mesh_assets.cdc.relation import (
    IDENTITY_DEFAULT,
    IDENTITY_FULL,
    IDENTITY_INDEX,
    IDENTITY_NOTHING,
    Relation,
)
from mesh_assets.errors import (
    CredentialsRejected,
    IdentityMissing,
    MeshError,
    SourceError,
    SourceNotLogical,
    SourceNotReady,
    TableRefused,
    UnknownName,
)

_OLDEST_VERSION = 150_000

_SERVER = """
SELECT current_setting('wal_level'), current_setting('server_encoding'), pg_is_in_recovery(),
    current_setting('max_replication_slots')::int4, (SELECT count(*) FROM pg_replication_slots)::int4,
    current_setting('max_wal_senders')::int4, (SELECT count(*) FROM pg_stat_replication)::int4,
    current_setting('server_version')
"""

# Unique indexes that REPLICA IDENTITY USING INDEX would take.
_IDENTITY_INDEXES = """
SELECT quote_ident(c.relname) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = %s::oid AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL
    AND i.indexprs IS NULL AND NOT EXISTS (
        SELECT FROM pg_attribute a
        WHERE a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey::int2[]) AND NOT a.attnotnull
    )
ORDER BY 1
"""
_KIND = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}


def check(
    session: Session, url: str, tables: Sequence[str], slot_name: str, publication: str
) -> dict[str, Relation]:
    """Check a source; returns its tables as the catalog describes them.

    Raises:
        CredentialsRejected, SourceNotLogical, IdentityMissing, TableRefused, UnknownName: the one
            thing that is wrong.
        SourceNotReady: all of them, if several things are wrong.
    """
    where = place(url)
    problems: list[MeshError] = [*_server(session, where, slot_name), *_replication(url)]
    records = catalog.tables(session, tables, publication)
    relations: dict[str, Relation] = {}
    available: list[str] | None = None
    for table in tables:
        record = records.get(table)
        if record is None:
            available = catalog.capturable(session) if available is None else available
            problems.append(UnknownName.of(f"table at {where} named", table, available))
            continue
        found = _table(session, record, where)
        problems += found
        if not found:
            try:
                relations[table] = catalog.describe(session, record)
            except SourceError as error:
                problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise SourceNotReady(f"{len(problems)} things at {where} must be put right first", problems)
    return relations


def _server(session: Session, where: str, slot_name: str) -> list[MeshError]:
    row = session.execute(_SERVER).fetchone()
    assert row is not None
    wal_level, encoding, standby, slot_limit, slot_count, sender_limit, sender_count, version = row
    if session.info.server_version < _OLDEST_VERSION:
        return [SourceNotLogical(f"{where} runs PostgreSQL {version}", hint="15 or newer is needed")]
    if standby:
        return [
            SourceNotLogical(
                f"{where} is a standby: publications are made and heartbeats written on the primary",
                hint="give the primary's address",
            )
        ]
    problems: list[MeshError] = []
    if wal_level != "logical":
        problems.append(
            SourceNotLogical(
                f"{where} has wal_level = {wal_level}",
                hint="as a superuser run: ALTER SYSTEM SET wal_level = logical; then restart the server",
            )
        )
    # One slot stays; the snapshot needs another for a while.
    slots_needed = 1 if slot.state(session, slot_name) else 2
    if slot_limit - slot_count < slots_needed:
        problems.append(
            SourceNotLogical(
                f"{where} has {slot_count} replication slots of at most {slot_limit}; "
                f"{slots_needed} more are needed",
                hint="drop slots that nothing uses (SELECT * FROM pg_replication_slots) "
                "or raise max_replication_slots and restart the server",
            )
        )
    if sender_limit - sender_count < 1:
        problems.append(
            SourceNotLogical(
                f"{where} has {sender_count} WAL senders of at most {sender_limit}",
                hint="raise max_wal_senders and restart the server",
            )
        )
    if encoding == "SQL_ASCII":
        problems.append(
            SourceNotLogical(
                f"{where} has the encoding SQL_ASCII, so its texts may be in any encoding",
                hint="dump it and restore it into a database made with ENCODING 'UTF8'",
            )
        )
    return problems


def _replication(url: str) -> list[MeshError]:
    """Only a replication connection tells whether one is allowed: clouds grant it by roles of their own."""
    try:
        connect(url, replication="database").close()
    except (CredentialsRejected, SourceNotLogical) as error:
        return [error]
    return []


def _table(session: Session, record: TableRecord, where: str) -> list[MeshError]:
    name = f"table {record.qualified_name} at {where}"
    if record.kind not in (ORDINARY, PARTITIONED):
        kind = _KIND.get(record.kind, "no ordinary table")
        return [TableRefused(f"{name} is {kind}", hint="capture the tables behind it")]
    if record.persistence != "p":
        return [
            TableRefused(
                f"{name} is unlogged or temporary: its changes are not in the WAL",
                hint=f"ALTER TABLE {record.qualified_name} SET LOGGED",
            )
        ]
    problems = [*_privilege(session, record, name)]
    if record.identity == IDENTITY_NOTHING or (record.identity != IDENTITY_FULL and record.key_index is None):
        problems.append(_identity_missing(session, record.oid, record.qualified_name, record.identity, where))
    if record.kind == PARTITIONED:
        problems += [
            _identity_missing(session, leaf.oid, leaf.qualified_name, leaf.identity, where)
            for leaf in catalog.partitions(session, record.oid)
            if not leaf.identified
        ]
    return problems


def _privilege(session: Session, record: TableRecord, name: str) -> list[MeshError]:
    user = sql.Identifier(session.info.user).as_string(session)
    if not record.readable:
        table = sql.Identifier(record.schema, record.name).as_string(session)
        schema = sql.Identifier(record.schema).as_string(session)
        return [
            CredentialsRejected(
                f"{name} may not be read by this user",
                hint=f"run: GRANT USAGE ON SCHEMA {schema} TO {user}; GRANT SELECT ON {table} TO {user};",
            )
        ]
    if record.hidden_rows:
        return [
            TableRefused(
                f"{name} has row level security, which would hide rows of its snapshot from this user",
                hint=f"as a superuser run: ALTER ROLE {user} BYPASSRLS",
            )
        ]
    return []


def _identity_missing(session: Session, oid: int, table: str, identity: str, where: str) -> IdentityMissing:
    schema, name = catalog.split_name(table)
    quoted = sql.Identifier(schema, name).as_string(session)
    indexes = [index for (index,) in session.execute(_IDENTITY_INDEXES, (oid,))]
    reason = {
        IDENTITY_DEFAULT: "no primary key (a deferrable one does not count)",
        IDENTITY_INDEX: "lost the index of its replica identity",
        IDENTITY_NOTHING: "REPLICA IDENTITY NOTHING",
    }.get(identity, "no usable replica identity")
    ways = [f"ALTER TABLE {quoted} ADD PRIMARY KEY (...)"]
    if identity == IDENTITY_NOTHING:
        ways.insert(0, f"ALTER TABLE {quoted} REPLICA IDENTITY DEFAULT (if it has a primary key)")
    if indexes:
        ways.insert(0, f"ALTER TABLE {quoted} REPLICA IDENTITY USING INDEX {indexes[0]}")
    ways.append(f"ALTER TABLE {quoted} REPLICA IDENTITY FULL (more WAL for every change)")
    return IdentityMissing(
        f"table {table} at {where} has {reason}: once published, every UPDATE and DELETE of it would fail",
        hint="run one of: " + "; ".join(ways),
    )
