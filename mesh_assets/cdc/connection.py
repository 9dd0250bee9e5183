"""Connections to a source: one set of session settings, and no password in any message.

The settings decide how PostgreSQL prints values, so everything that reads values (the stream,
the snapshot, a row read again) must use them: then equal values are equal text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from mesh_assets.errors import (
    CredentialsRejected,
    SourceDisconnected,
    SourceError,
    SourceNotLogical,
    SourceUnreachable,
)

Session = psycopg.Connection[TupleRow]

SETTINGS: Mapping[str, str] = {
    "timezone": "UTC",
    "datestyle": "ISO",
    "intervalstyle": "iso_8601",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    # Type names and regclass values then always carry their schema.
    "search_path": "pg_catalog",
}
"""Session settings of every connection that reads values."""

_UNREACHABLE = re.compile(
    r"Connection refused|No route to host|unreachable|timed out|timeout expired|resolve host|"
    r"translate host name|No such file or directory|reset by peer|closed the connection|"
    r"the database system is|remaining connection slots|too many (clients|connections)",
    re.IGNORECASE,
)
_NO_SENDER = re.compile(r"max_wal_senders", re.IGNORECASE)
_NO_REPLICATION = re.compile(r"REPLICATION|start WAL sender", re.IGNORECASE)


def _parameters(url: str) -> dict[str, Any]:
    try:
        found = dict(conninfo_to_dict(url))
    except psycopg.ProgrammingError:
        found = {}
    misplaced = "@" in f"{found.get('host', '')}{found.get('dbname', '')}"
    numeric = all(port.isdigit() for port in str(found.get("port") or "0").split(","))
    if not found or misplaced or not numeric:
        # The parser's own message may quote a piece of the password.
        raise CredentialsRejected(
            "the connection URL of the source cannot be parsed",
            hint="write postgresql://user:password@host:port/database and percent-encode "
            "special characters in user and password",
        ) from None
    return found


def place(url: str) -> str:
    """Where a URL points, for messages: ``user@host:port/database``, never the password."""
    found = _parameters(url)
    user = found.get("user") or "(default user)"
    host = found.get("host") or found.get("hostaddr") or "(local socket)"
    return f"{user}@{host}:{found.get('port') or 5432}/{found.get('dbname') or user}"


def conninfo(url: str, **overrides: str | int) -> str:
    """The libpq connection string of a URL with our session settings; contains the password.

    ``options`` (server settings, ``-c name=value ...``) are added; other overrides replace.
    """
    found = _parameters(url)
    settings = " ".join(f"-c {name}={value}" for name, value in SETTINGS.items())
    options = [found.get("options") or "", settings, str(overrides.pop("options", ""))]
    found["options"] = " ".join(options).strip()
    found["client_encoding"] = "UTF8"
    found["application_name"] = "mesh"
    found.setdefault("connect_timeout", 10)
    # A peer that vanished without a word is noticed, and its slot freed, within half a minute.
    found.setdefault("keepalives_idle", 10)
    found.setdefault("keepalives_interval", 5)
    found.setdefault("keepalives_count", 3)
    found.setdefault("tcp_user_timeout", 30_000)
    # Kerberos encryption would be negotiated silently and hide the plain socket; ask for it explicitly.
    found.setdefault("gssencmode", "disable")
    found.update(overrides)
    return make_conninfo("", **found)


def connect(url: str, *, timeout_seconds: int = 10, **overrides: str | int) -> Session:
    """Open a session in autocommit mode with our settings.

    ``replication="database"`` makes it a replication connection.

    Raises:
        SourceUnreachable: if no server answers within the timeout or it takes no connections.
        CredentialsRejected: if it refuses user, password, database or the REPLICATION attribute.
        SourceNotLogical: if it has no free WAL sender.
    """
    text = conninfo(url, connect_timeout=timeout_seconds, **overrides)
    try:
        session = psycopg.connect(text, autocommit=True)
    except psycopg.OperationalError as error:
        raise _refusal(str(error), url, replication="replication" in overrides) from None
    # Prepared statements would break behind a transaction pooler and gain nothing here.
    session.prepare_threshold = None
    return session


def _refusal(message: str, url: str, *, replication: bool) -> SourceError:
    """The error that stands for a failed connection attempt."""
    # With several hosts or TLS fallbacks the message has a line per attempt; the last one decides.
    text = redacted(message.strip().splitlines()[0].rsplit(" failed: ", 1)[-1], url)
    where = place(url)
    if replication and _NO_SENDER.search(message):
        return SourceNotLogical(
            f"{where} has no free WAL sender: {text}", hint="raise max_wal_senders and restart the server"
        )
    if _UNREACHABLE.search(message):
        return SourceUnreachable(
            f"{where} does not answer: {text}", hint="is the server running, and are host and port right?"
        )
    if replication and _NO_REPLICATION.search(message) and "pg_hba" not in message:
        user = where.split("@")[0]
        return CredentialsRejected(
            f"{where} refuses replication: {text}",
            hint=f"as a superuser run: ALTER ROLE {user} REPLICATION "
            "(on Amazon RDS: GRANT rds_replication, on Azure the same statement as the admin)",
        )
    hint = "check user and password"
    if "pg_hba" in message:
        hint = "add a line for this user, database and client address to the server's pg_hba.conf"
    elif "database" in text and "does not exist" in text:
        hint = "check the database name at the end of the URL"
    elif "no password supplied" in text:
        hint = "the URL holds no password"
    elif "SSL" in text:
        hint = "check sslmode and the certificates named in the URL"
    return CredentialsRejected(f"{where} refuses the connection: {text}", hint=hint)


def redacted(text: str, url: str) -> str:
    """``text`` without the URL's password."""
    password = _parameters(url).get("password")
    return text.replace(str(password), "***") if password else text


@contextmanager
def translated(url: str, doing: str) -> Iterator[None]:
    """Turn psycopg's errors inside into ours, saying what was being done.

    Raises:
        SourceDisconnected: if the connection broke or a timeout ended the statement.
        CredentialsRejected: if a privilege is lacking.
        SourceError: for everything else that the server refuses.
    """
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise CredentialsRejected(
            f"{place(url)} may not {doing}: {_first_line(error, url)}",
            hint="grant the privilege to this user",
        ) from error
    except psycopg.OperationalError as error:
        raise SourceDisconnected(
            f"the connection to {place(url)} broke while trying to {doing}: {_first_line(error, url)}"
        ) from error
    except psycopg.Error as error:
        raise SourceError(f"{place(url)} refuses to {doing}: {_first_line(error, url)}") from error


def _first_line(error: psycopg.Error, url: str) -> str:
    text = error.diag.message_primary or str(error) or type(error).__name__
    return redacted(text.strip().splitlines()[0], url)
