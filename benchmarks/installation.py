"""A whole mesh as a contender: ``mesh up`` in a home of its own, and all of its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks import child
from benchmarks.measure import ProcessSource, process_tree
from benchmarks.stage import Stage
from mesh_assets.local import organisation
from mesh_assets.local.place import SOURCES, Place
from mesh_assets.local.postgres import Cluster
from mesh_assets.settings import Settings

PRODUCTS = Path(__file__).resolve().parent.parent / "products"

_COMMAND = [str(Path(sys.executable).with_name("mesh")), "up"]
_GIVE_UP_SECONDS = 180.0
_STOP_SECONDS = 60.0
_APPLICATION_COUNT = "SELECT count(DISTINCT datname) FROM pg_stat_activity WHERE usename = datname || '_app'"


@contextmanager
def mesh_up(stage: Stage, settings: Settings, *, rate: float | None = None) -> Iterator[float]:
    """``mesh up``; yields the seconds until it was ready, and stops it as a Ctrl-C would.

    Args:
        stage: whose folder takes the log.
        settings: where it runs.
        rate: transactions per second of each sample application; its default if left out.

    Raises:
        ContenderError: if it does not get ready.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    environment |= {
        "MESH_HOME": str(settings.home),
        "MESH_PRODUCTS": str(settings.products),
        "MESH_SHIFT_SECONDS": str(settings.shift_seconds),
    }
    log = stage.folder / "up.log"
    record = settings.home / "up.json"
    with log.open("a") as output:
        began = time.monotonic()
        process = subprocess.Popen(
            [*_COMMAND, *([] if rate is None else ["--rate", str(rate)])],
            env=environment,
            cwd=PRODUCTS.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = everything(process.pid, settings)
    seen: dict[int, psutil.Process] = {}
    try:
        with stage.progress("starting the mesh"):
            while not record.exists():
                if process.poll() is not None or time.monotonic() - began > _GIVE_UP_SECONDS:
                    raise child.ContenderError(f"the mesh did not get ready:\n{log.read_text()[-3000:]}")
                time.sleep(0.05)
        yield time.monotonic() - began
        seen = {one.pid: one for one in running()}
    finally:
        with stage.progress("stopping the mesh"):
            _stop(process)
    left = [one for one in seen.values() if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    if left:
        stage.console.print(f"[red]processes were left: {', '.join(map(str, left))}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def idle_applications(stage: Stage, settings: Settings) -> Iterator[ProcessSource]:
    """The sample applications at rate 0, connected; yields the source of their processes.

    ``mesh up --rate 0`` leaves them out, but an organisation that is idle has them.

    Raises:
        ContenderError: if one does not connect to its database, or has ended before its time.
    """
    cluster = Place.of(settings).clusters[SOURCES]
    log = stage.folder / "applications.log"
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with log.open("w") as output, stage.progress("starting the applications"):
            processes.extend(
                subprocess.Popen(
                    organisation.application_command(domain, rate=0),
                    env=os.environ | organisation.application_environment(cluster, domain),
                    cwd=PRODUCTS.parent,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                for domain in organisation.DOMAINS
            )
            _await_applications(cluster, log)
        yield lambda: [process for one in processes for process in process_tree(one.pid)()]
        if any(one.poll() is not None for one in processes):
            raise child.ContenderError(f"an idle application ended:\n{log.read_text()[-3000:]}")
    finally:
        for one in processes:
            _stop(one)


def _await_applications(cluster: Cluster, log: Path) -> None:
    began = time.monotonic()
    with cluster.connect("postgres") as connection:
        while connection.execute(_APPLICATION_COUNT).fetchone() != (len(organisation.DOMAINS),):
            if time.monotonic() - began > _GIVE_UP_SECONDS:
                raise child.ContenderError(f"an application did not connect:\n{log.read_text()[-3000:]}")
            time.sleep(0.05)


def everything(pid: int, settings: Settings) -> ProcessSource:
    """A source of all processes of the mesh: the supervisor's tree and both clusters'."""

    def processes() -> list[psutil.Process]:
        pids = [pid, *(cluster.status().pid for cluster in Place.of(settings).clusters.values())]
        found = {one.pid: one for root in pids if root is not None for one in process_tree(root)()}
        return list(found.values())

    return processes
