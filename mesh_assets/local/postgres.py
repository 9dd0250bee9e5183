"""Embedded PostgreSQL clusters: real PostgreSQL from a wheel, on loopback TCP, with passwords.

A cluster is a folder::

    port                the TCP port, chosen once
    secrets/<role>      a random password per role, mode 0600
    server/data         PostgreSQL's data folder
    server/postgres.log the server's log

The server outlives the process that started it; the next :meth:`Cluster.start` finds and reuses it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from mesh_assets.errors import MeshNotRunning, SettingError
from mesh_assets.local.installation import Installation, prepare_folder, reachable_place
from mesh_assets.local.server import Server

SUPERUSER = "postgres"

_HOST = "127.0.0.1"
# Below Linux's and macOS's ranges for outgoing connections, so that the port is still free tomorrow.
_PORTS = range(20_000, 30_000)
_LOG_BYTES = 16 << 20
_POLL_SECONDS = 0.02
_IN_USE_SECONDS = 60.0
_ACCESS = f"""\
# Written by mesh_assets: every connection needs a password, none comes from another machine.
local all         all              scram-sha-256
host  all         all {_HOST}/32 scram-sha-256
host  replication all {_HOST}/32 scram-sha-256
"""


@dataclass(frozen=True)
class ClusterStatus:
    """What a cluster is doing: ``pid`` is None unless the server runs."""

    folder: Path
    port: int | None
    pid: int | None

    @property
    def running(self) -> bool:
        """Whether the server runs."""
        return self.pid is not None


class Cluster:
    """One embedded PostgreSQL cluster.

    Args:
        folder: where it lives; made when missing.
        port: a fixed TCP port; None chooses a free one and remembers it.
        logical: whether the server writes logical WAL, so that it can be captured.
        shared_buffers_mb: PostgreSQL's own cache, in MiB.
        max_connections: limit of connections.
        options: further settings of ``postgresql.conf``; ``fsync=off`` also speeds up ``initdb``.
    """

    def __init__(
        self,
        folder: Path,
        port: int | None = None,
        *,
        logical: bool = True,
        shared_buffers_mb: int = 64,
        max_connections: int = 100,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self._fixed_port = port
        self._options = {
            "listen_addresses": _HOST,
            "unix_socket_directories": "",
            "max_connections": str(max_connections),
            "shared_buffers": f"{shared_buffers_mb}MB",
            "wal_level": "logical" if logical else "replica",
            "max_wal_senders": "24",
            "max_replication_slots": "24",
            "max_logical_replication_workers": "0",
            "io_method": "sync",
            "jit": "off",
            "autovacuum": "on",
            # Small tables, several clusters on one machine: by default three workers may take 64 MB each.
            "autovacuum_max_workers": "2",
            "autovacuum_work_mem": "16MB",
            "maintenance_work_mem": "32MB",
            "password_encryption": "scram-sha-256",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_checkpoints": "off",
            "log_line_prefix": "%m [%p] %q%u@%d ",
            **(options or {}),
        }

    def __enter__(self) -> Cluster:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- where things are

    @property
    def _installation(self) -> Installation:
        return Installation.locate(self.folder)

    @property
    def _server(self) -> Server:
        return Server(self._installation)

    @property
    def data(self) -> Path:
        """PostgreSQL's data folder."""
        return self._server.data

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self._server.log

    @property
    def port(self) -> int:
        """The TCP port.

        Raises:
            MeshNotRunning: if the cluster was never started.
        """
        if self._fixed_port is not None:
            return self._fixed_port
        try:
            return int((self.folder / "port").read_text())
        except FileNotFoundError:
            raise MeshNotRunning(
                f"the PostgreSQL cluster in {self.folder} was never started", hint="run `make up`"
            ) from None

    def password(self, role: str = SUPERUSER) -> str:
        """A role's password.

        Raises:
            MeshNotRunning: if the cluster does not exist or the role was not made by this class.
        """
        try:
            return self._secret(role).read_text()
        except FileNotFoundError:
            raise MeshNotRunning(
                f"there is no password of {role!r} in {self.folder / 'secrets'}", hint="run `make up`"
            ) from None

    def url(self, database: str = "postgres", role: str = SUPERUSER) -> str:
        """The connection URL of a database as a role (passwords and names need no escaping)."""
        return f"postgresql://{role}:{self.password(role)}@{_HOST}:{self.port}/{database}"

    def status(self) -> ClusterStatus:
        """What the cluster is doing; works on a folder that does not exist, too."""
        port_known = self._fixed_port is not None or (self.folder / "port").exists()
        return ClusterStatus(self.folder, self.port if port_known else None, self._server.pid())

    @property
    def running(self) -> bool:
        """Whether the server runs."""
        return self._server.pid() is not None

    # -- life

    def initialise(self) -> None:
        """Make the cluster unless it exists: UTF-8, checksums, passwords everywhere."""
        prepare_folder(self.folder)
        with self._locked():
            self._initialise()

    def start(self, timeout_seconds: float = 60) -> Cluster:
        """Start the server and wait until it takes connections; reuse one that already runs.

        What a crash left behind (a stale lock file, backends without a postmaster) is cleared away.
        A server that runs with other settings is restarted.

        Raises:
            SettingError: if the server does not start, with the end of its log.
        """
        prepare_folder(self.folder)
        with self._locked():
            self._initialise()
            if self._server.pid() is not None:
                changed = self._configure(self.port)
                if not changed and self._answers(timeout_seconds):
                    return self
                self._server.stop(timeout_seconds)
            self._server.clear_crash()
            self._server.rotate_log(_LOG_BYTES)
            for _ in range(5):
                self._configure(self._free_port())
                report = self._server.launch(timeout_seconds)
                if not report:
                    return self
                taken = "could not create any TCP/IP sockets" in report
                if not taken or self._fixed_port is not None:
                    break
        raise SettingError(f"PostgreSQL in {self.folder} did not start:\n{report}", hint=f"see {self.log}")

    def stop(self, timeout_seconds: float = 10) -> None:
        """Stop the server: at first gently, at half of the time by crashing it, which loses nothing."""
        if self.folder.exists():
            with self._locked():
                self._server.stop(timeout_seconds)

    def kill(self) -> None:
        """Kill every process of the server at once, as a crash would."""
        self._server.kill()

    def remove(self) -> None:
        """Stop the server and delete the cluster with all of its data."""
        self.stop()
        shutil.rmtree(reachable_place(self.folder), ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- contents

    def connect(self, database: str = "postgres") -> psycopg.Connection[TupleRow]:
        """Connect as the superuser, in autocommit mode."""
        return psycopg.connect(self.url(database), autocommit=True, connect_timeout=10)

    def create_role(self, name: str, *, replication: bool = False) -> None:
        """Make a login role with a random password unless it exists; its password is kept beside it."""
        secret = self._secret(name)
        known = secret.exists()
        if not known:
            _write_private(secret, secrets.token_urlsafe(24))
        with self.connect() as connection:
            exists = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", (name,)).fetchone()
            if exists is None or not known:
                connection.execute(
                    sql.SQL("{} ROLE {} LOGIN {} PASSWORD {}").format(
                        sql.SQL("CREATE" if exists is None else "ALTER"),
                        sql.Identifier(name),
                        sql.SQL("REPLICATION" if replication else "NOREPLICATION"),
                        sql.Literal(self.password(name)),
                    )
                )

    def create_database(self, name: str, owner: str = SUPERUSER) -> str:
        """Make a database unless it exists and return its URL as its owner."""
        with self.connect() as connection:
            found = connection.execute("SELECT FROM pg_database WHERE datname = %s", (name,)).fetchone()
            if found is None:
                create = sql.SQL("CREATE DATABASE {} OWNER {}")
                _once_unused(connection, create.format(sql.Identifier(name), sql.Identifier(owner)))
        return self.url(name, owner)

    def drop_database(self, name: str) -> None:
        """Drop a database with its connections and replication slots, if it exists."""
        drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))

        def free() -> None:
            # DROP DATABASE drops its idle slots itself but refuses while one is in use.
            connection.execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots "
                "WHERE database = %s AND active_pid IS NOT NULL",
                (name,),
            )

        with self.connect() as connection:
            _once_unused(connection, drop, free)

    # -- inside

    def _secret(self, role: str) -> Path:
        return self.folder / "secrets" / role

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from starting or stopping the same cluster meanwhile."""
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _initialise(self) -> None:
        installation, secret = self._installation, self._secret(SUPERUSER)
        if (installation.server / "data" / "PG_VERSION").exists() and secret.exists():
            installation.prepare()
            return
        link = self.folder / "server"
        if link.exists() and (installation.server / "data").exists():
            raise SettingError(
                f"the password of the PostgreSQL cluster in {self.folder} is gone: {secret} is missing",
                hint="put it back, or delete the cluster with its data by `mesh reset`",
            )
        # What is there now is half of an interrupted initialisation, or the data of a deleted home.
        self._server.stop(timeout_seconds=10)
        shutil.rmtree(installation.server, ignore_errors=True)
        installation.prepare()
        if installation.server != link:
            link.unlink(missing_ok=True)
            link.symlink_to(installation.server)
        _write_private(secret, secrets.token_urlsafe(24))
        password_file = installation.server / "password"
        _write_private(password_file, secret.read_text(), installation)
        # Made under another name, so that an interrupted initdb does not look like a cluster.
        unfinished = installation.server / "unfinished"
        done = installation.run(
            "initdb",
            f"--pgdata={unfinished}",
            f"--username={SUPERUSER}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--data-checksums",
            *(["--no-sync"] if self._options.get("fsync") == "off" else []),
        )
        password_file.unlink()
        if done.returncode:
            raise SettingError(f"PostgreSQL's initdb failed in {unfinished}:\n{done.stdout.strip()}")
        (unfinished / "pg_hba.conf").write_text(_ACCESS)
        with (unfinished / "postgresql.conf").open("a") as file:
            file.write("include_if_exists = 'mesh.conf'\n")
        unfinished.rename(installation.server / "data")

    def _configure(self, port: int) -> bool:
        """Write the settings; returns whether they differ from what was written before."""
        lines = [f"{name} = '{value}'\n" for name, value in {**self._options, "port": str(port)}.items()]
        text = "".join(["# Written by mesh_assets at every start.\n", *lines])
        file = self.data / "mesh.conf"
        if file.exists() and file.read_text() == text:
            return False
        _write_private(file, text, self._installation)
        (self.folder / "port").write_text(str(port))
        return True

    def _free_port(self) -> int:
        """The remembered port if it is free, else the next free one; a fixed one in any case."""
        if self._fixed_port is not None:
            return self._fixed_port
        remembered = self.folder / "port"
        if remembered.exists():
            first = int(remembered.read_text())
        else:
            first = _PORTS.start + zlib.crc32(str(self.folder).encode()) % len(_PORTS)
        for step in range(len(_PORTS)):
            port = _PORTS.start + (first - _PORTS.start + step) % len(_PORTS)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((_HOST, port))
                except OSError:
                    continue
            return port
        raise SettingError(f"no TCP port of {_PORTS.start} to {_PORTS.stop - 1} is free on {_HOST}")

    def _answers(self, timeout_seconds: float) -> bool:
        """Wait until the running server takes connections; False if it dies or never does."""
        deadline = time.monotonic() + timeout_seconds
        while self._server.pid() is not None and time.monotonic() < deadline:
            try:
                self.connect().close()
                return True
            except psycopg.OperationalError:
                # Still starting, or dying at this moment.
                time.sleep(_POLL_SECONDS)
        return False


def _once_unused(
    connection: psycopg.Connection[TupleRow], statement: sql.Composed, free: Callable[[], None] = lambda: None
) -> None:
    """Run a statement about a database that nobody may be connected to, such as an autovacuum worker."""
    deadline = time.monotonic() + _IN_USE_SECONDS
    while True:
        free()
        try:
            connection.execute(statement)
            return
        except psycopg.errors.ObjectInUse:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)


def _write_private(file: Path, text: str, reader: Installation | None = None) -> None:
    """Write a file that only this account, or the one that runs ``reader``, can read."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Never through a link that the other account may have put there.
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        if reader and reader.account:
            os.fchown(stream.fileno(), reader.account.uid, reader.account.gid)
        stream.write(text)
