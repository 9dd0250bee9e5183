"""Replication slots: making, dropping and watching them, and naming who is in the way."""

from __future__ import annotations

import secrets
import select
import time
from dataclasses import dataclass

import psycopg
from psycopg import pq

from mesh_assets.cdc.connection import Session, connect, place, redacted
from mesh_assets.errors import (
    CredentialsRejected,
    SlotBusy,
    SnapshotBlocked,
    SourceDisconnected,
    SourceError,
    SourceNotLogical,
)

_STATE = """
SELECT slot_name, plugin, active_pid, (confirmed_flush_lsn - '0/0'::pg_lsn)::int8,
    (restart_lsn - '0/0'::pg_lsn)::int8, (pg_current_wal_lsn() - restart_lsn)::int8, wal_status, safe_wal_size
FROM pg_replication_slots WHERE slot_name = %s
"""

# Whoever holds a transaction id may be waited for, in every database of the server.
_HOLDERS = """
SELECT format('pid %%s, user %%s, database %%s, application %%s, %%s, transaction open for %%s s',
    a.pid, coalesce(a.usename, '?'), coalesce(a.datname, '?'), coalesce(nullif(a.application_name, ''), '?'),
    coalesce(a.state, 'state hidden'),
    coalesce(round(extract(epoch FROM clock_timestamp() - a.xact_start))::text, '?'))
FROM pg_stat_activity a
WHERE a.pid = ANY(pg_blocking_pids(%(pid)s)) OR (a.backend_xid IS NOT NULL AND a.pid <> %(pid)s)
ORDER BY a.pid = ANY(pg_blocking_pids(%(pid)s)) DESC, a.xact_start NULLS LAST LIMIT 10
"""
_PREPARED = """
SELECT format('prepared transaction %L, user %s, database %s, prepared %s s ago',
    gid, owner, database, round(extract(epoch FROM clock_timestamp() - prepared)))
FROM pg_prepared_xacts ORDER BY prepared LIMIT 10
"""

# A snapshot's exporter waits silently, as long as its tables take to read.
_PATIENT = "-c idle_session_timeout=0 -c idle_in_transaction_session_timeout=0 -c statement_timeout=0"


@dataclass(frozen=True)
class Slot:
    """A replication slot's state.

    Attributes:
        active_pid: the server process that holds it, None when free.
        confirmed_lsn: everything committed before it was acknowledged.
        restart_lsn: from here on the server retains its WAL for this slot.
        retained_bytes: how much WAL that is now.
        wal_status: ``reserved``, ``extended``, ``unreserved`` or ``lost``.
        safe_wal_bytes: how much more can be written before the slot is lost; None without limit.
    """

    name: str
    plugin: str
    active_pid: int | None
    confirmed_lsn: int
    restart_lsn: int
    retained_bytes: int
    wal_status: str
    safe_wal_bytes: int | None


@dataclass
class CreatedSlot:
    """A slot just made: every transaction with a commit LSN below ``lsn`` is before it.

    ``snapshot`` names its exported snapshot, which lives until ``session`` is used or closed.
    """

    name: str
    lsn: int
    snapshot: str
    session: Session


def state(session: Session, name: str) -> Slot | None:
    """The slot's state, or None if it does not exist."""
    row = session.execute(_STATE, (name,)).fetchone()
    if row is None:
        return None
    slot_name, plugin, active_pid, confirmed, restart, retained, wal_status, safe = row
    # An invalidated slot has no restart position any more.
    return Slot(
        slot_name, plugin, active_pid, confirmed or 0, restart or 0, retained or 0, wal_status or "lost", safe
    )


def drop(session: Session, name: str, where: str) -> bool:
    """Drop a slot; returns whether there was one.

    Raises:
        SlotBusy: if a connection holds it.
    """
    try:
        session.execute("SELECT pg_drop_replication_slot(%s)", (name,))
    except psycopg.errors.UndefinedObject:
        return False
    except psycopg.errors.ObjectInUse as error:
        raise SlotBusy(
            f"{where}: {error.diag.message_primary}",
            hint="stop the shift of this source, or run pg_terminate_backend(<PID>)",
        ) from error
    return True


def temporary_name(slot: str) -> str:
    """A name for a slot that lives as long as its connection."""
    return f"{slot[:50]}_{secrets.token_hex(6)}"


def create(url: str, name: str, *, temporary: bool, timeout_seconds: float) -> CreatedSlot:
    """Make a slot for ``pgoutput`` and export its snapshot; the caller closes the session.

    PostgreSQL first waits for every transaction that is open at that moment, in any database.

    Raises:
        SnapshotBlocked: if they last longer than the timeout; it names them.
        SlotBusy: if a slot of that name exists.
        SourceNotLogical: if the server has no free slot or writes no logical WAL.
    """
    session = connect(url, replication="database", options=_PATIENT)
    kind = "TEMPORARY " if temporary else ""
    command = f"CREATE_REPLICATION_SLOT \"{name}\" {kind}LOGICAL pgoutput (SNAPSHOT 'export')"
    try:
        result = _answer(session, url, command, timeout_seconds)
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise _refused(result, url, name)
        values = [(result.get_value(0, column) or b"").decode() for column in range(3)]
    except BaseException:
        session.close()
        raise
    high, low = values[1].split("/")
    return CreatedSlot(values[0], (int(high, 16) << 32) | int(low, 16), values[2], session)


def _answer(session: Session, url: str, command: str, timeout_seconds: float) -> pq.abc.PGresult:
    connection = session.pgconn
    connection.send_query(command.encode())
    deadline = time.monotonic() + timeout_seconds
    try:
        while connection.is_busy():
            readable, _, _ = select.select([connection.socket], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                holders = _holders(url, connection.backend_pid)
                raise SnapshotBlocked(
                    f"{place(url)}: open transactions kept a replication slot from being created "
                    f"for {timeout_seconds:g} s: {holders}",
                    hint="let them end (SELECT pg_terminate_backend(<pid>) ends one by force) and try again",
                )
            connection.consume_input()
        result = connection.get_result()
    except psycopg.OperationalError as error:
        raise SourceDisconnected(
            f"{place(url)}: the connection broke while creating a slot: {error}"
        ) from error
    if result is None:
        raise SourceDisconnected(f"{place(url)}: the server gave no answer to CREATE_REPLICATION_SLOT")
    return result


def _holders(url: str, pid: int) -> str:
    with connect(url, timeout_seconds=3) as session:
        rows = session.execute(_HOLDERS, {"pid": pid}).fetchall() + session.execute(_PREPARED).fetchall()
    return "; ".join(text for (text,) in rows) or "they belong to users whose sessions this user may not see"


def _refused(result: pq.abc.PGresult, url: str, name: str) -> SourceError:
    sqlstate = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
    message = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or result.error_message or b"").decode()
    text = f"{place(url)}: {redacted(message.strip(), url)}"
    if sqlstate == "42710":
        return SlotBusy(text, hint=f"if nothing uses it: SELECT pg_drop_replication_slot('{name}')")
    if sqlstate == "53400":
        return SourceNotLogical(text, hint="drop unused slots or raise max_replication_slots")
    if "wal_level" in message:
        return SourceNotLogical(text, hint="set wal_level = logical and restart the server")
    if sqlstate == "42501":
        return CredentialsRejected(text, hint="the user needs the REPLICATION attribute")
    return SourceError(text)
