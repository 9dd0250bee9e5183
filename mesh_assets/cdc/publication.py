"""The publication of one source: it names the tables whose changes the server sends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import psycopg
from psycopg import sql

from mesh_assets.cdc import catalog
from mesh_assets.cdc.catalog import PARTITIONED
from mesh_assets.cdc.connection import Session
from mesh_assets.errors import PublicationLost, PublicationMissing, SourceError, TableRefused

_PUBLICATION = """
SELECT pubviaroot, pubinsert AND pubupdate AND pubdelete AND pubtruncate
FROM pg_publication WHERE pubname = %s
"""
_ALL_OPERATIONS = "publish = 'insert, update, delete, truncate'"
# Else the changes of a partition would come under the partition's name.
_BY_ROOT = "publish_via_partition_root = true"
_GENERATED = "publish_generated_columns = stored"


def ensure(
    session: Session, name: str, tables: Sequence[str], where: str, *, slot_is_new: bool
) -> tuple[str, ...]:
    """Create the publication, or extend it; returns the tables that it did not have before.

    Tables that it has beyond those asked for are left alone.

    Raises:
        PublicationLost: if it does not exist although the slot does.
        PublicationMissing: if this user may not create or extend it; the hint is the SQL to run.
        TableRefused: if it sends a part of a table's rows only.
    """
    found = session.execute(_PUBLICATION, (name,)).fetchone()
    if found is None:
        if not slot_is_new:
            raise PublicationLost(
                f"{where}: publication {name!r} does not exist any more, but its replication slot does",
                hint="changes made while it was gone were not published: drop the slot, and a shift reads "
                "the source's tables again",
            )
        options = [_BY_ROOT, *([_GENERATED] if session.info.server_version >= 180_000 else [])]
        create = sql.SQL("CREATE PUBLICATION {} FOR TABLE {} WITH ({})").format(
            sql.Identifier(name), _listed(tables), sql.SQL(", ".join(options))
        )
        _run(session, create, where, f"publication {name!r} does not exist and")
        return tuple(tables)

    by_root, all_operations = found
    records = catalog.tables(session, tables, name)
    options = [] if all_operations else [_ALL_OPERATIONS]
    if not by_root and any(record.kind == PARTITIONED for record in records.values()):
        options.append(_BY_ROOT)
    if options:
        change = sql.SQL("ALTER PUBLICATION {} SET ({})").format(
            sql.Identifier(name), sql.SQL(", ".join(options))
        )
        _run(session, change, where, f"publication {name!r} does not send every change and")
        records = catalog.tables(session, tables, name)
    filtered = [table for table, record in records.items() if record.row_filter is not None]
    if filtered:
        raise TableRefused(
            f"{where}: publication {name!r} sends only some rows of {', '.join(sorted(filtered))}",
            hint=f"remove the WHERE of these tables from the publication: see \\dRp+ {name} in psql",
        )
    lacking = tuple(
        table for table in tables if table not in records or records[table].published_columns is None
    )
    if lacking:
        add = sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(sql.Identifier(name), _listed(lacking))
        _run(session, add, where, f"publication {name!r} lacks {', '.join(lacking)} and")
    return lacking


def drop(session: Session, name: str, where: str) -> None:
    """Drop the publication, if there is one.

    Raises:
        SourceError: if this user may not.
    """
    try:
        session.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(name)))
    except psycopg.errors.InsufficientPrivilege as error:
        raise SourceError(
            f"{where}: publication {name!r} cannot be dropped by this user: {error.diag.message_primary}",
            hint="have its owner drop it",
        ) from error


def _listed(tables: Iterable[str]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(*catalog.split_name(table)) for table in tables)


def _run(session: Session, statement: sql.Composed, where: str, problem: str) -> None:
    try:
        session.execute(statement)
    except psycopg.errors.InsufficientPrivilege as error:
        raise PublicationMissing(
            f"{where}: {problem} this user may not change that: {error.diag.message_primary}",
            hint=f"have the owner of the tables (or a superuser) run: {statement.as_string(session)};",
        ) from error
