"""The embedded PostgreSQL clusters of a mesh that is up: those that it needs, side by side."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psycopg

from mesh_assets.errors import MeshError, SettingError
from mesh_assets.local import organisation
from mesh_assets.local.place import DAGSTER, SOURCES, Place
from mesh_assets.local.postgres import Cluster
from mesh_assets.local.process import fork
from mesh_assets.settings import Settings

_CHECKPOINT_SECONDS = 5
_REST_SECONDS = 30.0
"""Between two attempts to start a cluster again."""


class Databases:
    """Starts and stops the clusters, each from a fork.

    Args:
        settings: say which databases are somebody else's, and need no cluster.
        place: where clusters and logs are.
    """

    def __init__(self, settings: Settings, place: Place) -> None:
        self._settings = settings
        self._logs = place.logs
        sources = {settings.source_variable(domain, organisation.SOURCE) for domain in organisation.DOMAINS}
        elsewhere = {name for name in sources if os.environ.get(name)}
        needed = {DAGSTER: not settings.dagster_postgres_url, SOURCES: elsewhere != sources}
        self._clusters = {name: cluster for name, cluster in place.clusters.items() if needed[name]}
        self._restarts: dict[str, int] = {}
        self._rest_until = 0.0
        self._go: int | None = None
        self._stops: list[int] = []

    @property
    def sources(self) -> Cluster | None:
        """The cluster of the sample organisation; None if all of its sources are elsewhere."""
        return self._clusters.get(SOURCES)

    @property
    def dagster_url(self) -> str:
        """Where Dagster keeps its state."""
        return self._settings.dagster_postgres_url or self._clusters[DAGSTER].url("dagster")

    def start(self, group: int, meanwhile: Callable[[], object]) -> None:
        """Start what is needed and do something else meanwhile.

        Args:
            group: the process group that the starting forks join.

        Raises:
            SettingError: if a cluster did not start.
        """
        starts = {SOURCES: self._start_sources, DAGSTER: self._start_dagster}
        pids = {name: self._fork(name, starts[name], group) for name in self._clusters}
        codes: dict[str, int] = {}
        try:
            meanwhile()
        finally:
            # Waited for in any case: a server that starts after everything was stopped would stay.
            for name, pid in pids.items():
                codes[name] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        for name, code in codes.items():
            log = self._log(name)
            if code:
                raise SettingError(
                    f"the PostgreSQL cluster of {name} did not start (exit code {code}): {_tail(log)}",
                    hint=f"look at {log}",
                )

    def tend(self, group: int) -> list[str]:
        """Begin to start again what has ended by itself; what has happened, a sentence each.

        Args:
            group: the process group that the starting forks join.
        """
        happened = []
        for name, cluster in self._clusters.items():
            if name in self._restarts:
                ended, status = os.waitpid(self._restarts[name], os.WNOHANG)
                if ended:
                    del self._restarts[name]
                    self._rest_until = time.monotonic() + _REST_SECONDS if status else 0.0
                    how = "could not be started again" if status else "was started again"
                    happened.append(f"the PostgreSQL cluster of {name} {how}; its log is {self._log(name)}")
            elif not cluster.running and time.monotonic() >= self._rest_until:
                happened.append(f"the PostgreSQL cluster of {name} ended; it is started again")
                self._restarts[name] = self._fork(name, partial(_start, cluster), group)
        return happened

    def begin_stop(self) -> None:
        """Have each cluster write out what it holds while its clients still end; :meth:`stop` follows."""
        self._stopping(checkpoint=True)

    def stop(self) -> None:
        """Stop them and wait until they have stopped."""
        for pid in self._restarts.values():
            # A server that starts after everything was stopped would stay.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        if self._go is None:
            self._stopping(checkpoint=False)
        if self._go is not None:
            os.close(self._go)
            self._go = None
        for pid in self._stops:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)

    def _stopping(self, *, checkpoint: bool) -> None:
        """Fork a process for each cluster that stops it once the pipe's writing end is closed."""
        waiting, self._go = os.pipe()

        def stopping(cluster: Cluster) -> Callable[[], None]:
            def body() -> None:
                if checkpoint:
                    _checkpoint(cluster)
                os.read(waiting, 1)
                cluster.stop()

            return body

        self._stops = [
            fork(stopping(cluster), log=self._log(name), group=None, keep=(waiting,), release=False)
            for name, cluster in self._clusters.items()
        ]
        os.close(waiting)

    def _fork(self, name: str, body: Callable[[], None], group: int) -> int:
        return fork(body, log=self._log(name), group=group)

    def _start_sources(self) -> None:
        cluster = self._clusters[SOURCES]
        cluster.start()
        organisation.create(cluster, self._settings)

    def _start_dagster(self) -> None:
        cluster = self._clusters[DAGSTER]
        cluster.start()
        cluster.create_database("dagster")

    def _log(self, name: str) -> Path:
        return self._logs / f"postgres-{name}.log"


def _start(cluster: Cluster) -> None:
    cluster.start()


def _checkpoint(cluster: Cluster) -> None:
    """Write out what a cluster holds, so that its shutdown has little left to write."""
    # One that does not answer is stopped all the same.
    with contextlib.suppress(MeshError, psycopg.Error):
        if cluster.running:
            with cluster.connect() as connection:
                connection.execute(f"SET statement_timeout = '{_CHECKPOINT_SECONDS}s'".encode())
                connection.execute("CHECKPOINT")


def _tail(log: Path, line_count: int = 3) -> str:
    with contextlib.suppress(OSError):
        return " / ".join(log.read_text(errors="replace").strip().splitlines()[-line_count:])
    return ""
