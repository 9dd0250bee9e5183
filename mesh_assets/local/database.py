"""The embedded PostgreSQL clusters of a mesh that is up: those that it needs, side by side."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import psycopg

from mesh_assets.errors import MeshError, SettingError
from mesh_assets.local import organisation
from mesh_assets.local.place import Place
from mesh_assets.local.postgres import Cluster
from mesh_assets.local.process import fork
from mesh_assets.settings import Settings

_DAGSTER = "dagster"
_SOURCES = "sources"
_CHECKPOINT_SECONDS = 5


class Databases:
    """Starts and stops the clusters, each from a fork.

    Args:
        settings: say which databases are somebody else's, and need no cluster.
        place: where clusters and logs are.
    """

    def __init__(self, settings: Settings, place: Place) -> None:
        self._settings = settings
        self._logs = place.logs
        self._clusters = place.clusters
        if settings.dagster_postgres_url:
            del self._clusters[_DAGSTER]
        if all(
            settings.source_variable(domain, organisation.SOURCE) in os.environ
            for domain in organisation.DOMAINS
        ):
            del self._clusters[_SOURCES]
        self._go: int | None = None
        self._stops: list[int] = []

    @property
    def sources(self) -> Cluster | None:
        """The cluster of the sample organisation; None if all of its sources are elsewhere."""
        return self._clusters.get(_SOURCES)

    @property
    def dagster_url(self) -> str:
        """Where Dagster keeps its state."""
        return self._settings.dagster_postgres_url or self._clusters[_DAGSTER].url("dagster")

    def start(self, group: int, meanwhile: Callable[[], object]) -> None:
        """Start what is needed and do something else meanwhile.

        Args:
            group: the process group that the starting forks join.

        Raises:
            SettingError: if a cluster did not start.
        """
        starts = {_SOURCES: self._start_sources, _DAGSTER: self._start_dagster}
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

    def begin_stop(self) -> None:
        """Have each cluster write out what it holds while its clients still end; :meth:`stop` follows."""
        self._stopping(checkpoint=True)

    def stop(self) -> None:
        """Stop them and wait until they have stopped."""
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
        cluster = self._clusters[_SOURCES]
        cluster.start()
        organisation.create(cluster, self._settings)

    def _start_dagster(self) -> None:
        cluster = self._clusters[_DAGSTER]
        cluster.start()
        cluster.create_database("dagster")

    def _log(self, name: str) -> Path:
        return self._logs / f"postgres-{name}.log"


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
