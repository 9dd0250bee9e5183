"""``mesh up``: starts everything on this machine, keeps it running, and stops it without a trace.

One process imports Dagster once and forks everything that needs it: a code server per location, the
web server, the daemon, the nursery of run workers. PostgreSQL's clusters and the sample applications
are programs of their own. See :mod:`mesh_assets.local.process` for who stops what.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from mesh_assets.errors import MeshError, MeshNotRunning, SettingError
from mesh_assets.local import instance, organisation
from mesh_assets.local.live import Show
from mesh_assets.local.nursery import Nursery, warm_up
from mesh_assets.local.postgres import Cluster
from mesh_assets.local.process import Child, Guardian, fork, stop_group
from mesh_assets.local.removal import Removal
from mesh_assets.local.sight import Sight
from mesh_assets.settings import Settings

_READY_SECONDS = 120.0
_LOOP_SECONDS = 0.25
_LOOK_SECONDS = 2.0
_LAG_SECONDS = 15.0
_SILENT_SECONDS = 60.0
_DOWN_SECONDS = 60.0
_NICENESS = 5
"""Of what only shows and decides: where cores are short, whatever moves data goes first."""


@dataclass(frozen=True)
class Options:
    """How to run.

    Attributes:
        seconds: stay up for this long once ready; None: until Ctrl-C or ``mesh down``.
        rate: transactions per second of each sample application; 0 leaves them out.
    """

    seconds: float | None = None
    rate: float = 5.0


@dataclass(frozen=True)
class _Place:
    """Where the state of one installation lies."""

    home: Path

    @property
    def lock(self) -> Path:
        return self.home / "up.lock"

    @property
    def record(self) -> Path:
        return self.home / "up.json"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def clusters(self) -> Path:
        return self.home / "clusters"


def clusters(settings: Settings) -> dict[str, Cluster]:
    """The embedded clusters of this installation: the sample sources', and Dagster's."""
    folder = _Place(settings.home.absolute()).clusters
    return {
        "sources": Cluster(folder / "sources"),
        "dagster": Cluster(folder / "dagster", logical=False, shared_buffers_mb=32),
    }


def up(settings: Settings, options: Options | None = None, console: Console | None = None) -> int:
    """Start everything, show it, and stop it again.

    Returns:
        0 if everything worked, 1 if not (with ``options.seconds``: every location loaded, every
        source captured without lag, no run failed, nothing crashed).
    """
    out = console or Console()
    place = _Place(settings.home.absolute())
    place.logs.mkdir(parents=True, exist_ok=True)
    with _locked(place) as mine:
        if not mine:
            out.print(f"the mesh in {place.home} is already up{_where(place)}", style="red", highlight=False)
            return 1
        try:
            return _Supervisor(settings, options or Options(), out, place).run()
        except MeshError as error:
            out.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
            return 1
        finally:
            place.record.unlink(missing_ok=True)
            settings.dagster_url_file.unlink(missing_ok=True)


def down(settings: Settings) -> None:
    """Stop the running mesh and wait until it is gone.

    Raises:
        MeshNotRunning: if it is not up, or does not end within a minute.
    """
    place = _Place(settings.home.absolute())
    with _locked(place) as free:
        if free:
            raise MeshNotRunning(f"the mesh in {place.home} is not up")
    pid = running(settings).get("pid")
    if isinstance(pid, int):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _DOWN_SECONDS
    while time.monotonic() < deadline:
        with _locked(place) as free:
            if free:
                return
        time.sleep(0.1)
    raise MeshNotRunning(f"process {pid} did not stop within {_DOWN_SECONDS:.0f} s", hint=f"kill -9 {pid}")


def running(settings: Settings) -> dict[str, object]:
    """Process id and addresses of the running mesh; empty if it is not up."""
    try:
        found = json.loads(_Place(settings.home.absolute()).record.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def reset(settings: Settings, removal: Removal) -> tuple[str, ...]:
    """Remove all data of this installation: clusters, lake, Dagster's home, logs, traces at sources.

    Args:
        removal: what the user has agreed to.

    Returns:
        What is left to be done by hand, one sentence each.

    Raises:
        SettingError: if the mesh is up.
    """
    place = _Place(settings.home.absolute())
    with _locked(place) as free:
        if not free:
            raise SettingError(f"the mesh in {place.home} is up", hint="stop it first: `mesh down`")
        left = removal.carry_out()
        for cluster in clusters(settings).values():
            cluster.remove()
        for name in ("clusters", "sources", "dagster", "logs", "lake"):
            shutil.rmtree(place.home / name, ignore_errors=True)
        for file in (place.record, place.lock):
            file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        place.home.rmdir()
    return left


@contextlib.contextmanager
def _locked(place: _Place) -> Iterator[bool]:
    """Hold the installation's lock; yields False if another process does."""
    place.home.mkdir(parents=True, exist_ok=True)
    with place.lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _where(place: _Place) -> str:
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        found = json.loads(place.record.read_text())
        return f": {found['addresses']['Dagster']} (process {found['pid']})"
    return ""


class _Stopped(Exception):  # an order, not an error
    """Somebody wants the mesh to end."""


class _Supervisor:
    """One ``mesh up``."""

    def __init__(self, settings: Settings, options: Options, console: Console, place: _Place) -> None:
        self._settings = settings
        self._options = options
        self._console = console
        self._place = place
        self._started = time.monotonic()
        self._clusters = self._needed_clusters()
        self._children: dict[str, Child] = {}
        self._fingerprints: dict[str, int] = {}
        self._states: list[tuple[str, int, int] | None] = []
        self._locations: list[instance.Location] = []
        self._problems: list[str] = []
        self._sight = Sight()
        self._sight_at = time.monotonic()
        self._line = b""
        self._stopping = 0
        self._looked_at = 0.0

    # -- the whole way

    def run(self) -> int:
        previous = {
            number: signal.signal(number, self._interrupt) for number in (signal.SIGINT, signal.SIGTERM)
        }
        runtime = Path(tempfile.mkdtemp(prefix="mesh-"))
        self._runtime = runtime
        self._port = instance.free_port(self._settings.port)
        self._guardian: Guardian | None = None
        try:
            addresses = self._start()
            with Show(self._console, addresses) as show:
                self._watch_over(show)
        except _Stopped:
            pass
        finally:
            self._stop()
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self._verdict()

    def _interrupt(self, *_: object) -> None:
        self._stopping += 1
        if self._stopping > 1 and self._guardian is not None:
            # Impatience: end the children at once, the clusters follow.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._guardian.group, signal.SIGKILL)

    # -- start

    def _start(self) -> dict[str, str]:
        settings, place = self._settings, self._place
        found = instance.locations(instance.project_file(settings, "workspace.yaml"))
        home = instance.prepare_home(settings)
        self._say(f"starting the mesh in {place.home}")
        self._guardian = Guardian(self._finish, place.logs / "guardian.log")
        self._start_clusters()
        os.environ.update(instance.environment(settings, self._dagster_url(), str(self._runtime / "nursery")))
        self._child("nursery", Nursery(str(self._runtime / "nursery"), place.logs / "runs").serve)
        self._start_applications()
        if fork_and_wait(instance.initialise_storage, place.logs / "storage.log", self._guardian.group):
            raise SettingError(
                "Dagster's storage cannot be set up", hint=f"look at {place.logs / 'storage.log'}"
            )
        self._step("storage")
        sockets = {}
        self._locations = found
        self._changed_locations()
        for location in found:
            path = str(self._runtime / f"{location.name}.sock")
            sockets[location.name] = path
            self._child(f"code-{location.name}", _serving(location, path), niceness=_NICENESS)
        workspace = home / "workspace.yaml"
        workspace.write_text(instance.served_workspace(sockets))
        self._await_sockets(sockets)
        self._step(f"{len(sockets)} code locations")
        self._child("webserver", lambda: instance.serve_web(workspace, self._port), niceness=_NICENESS)
        self._child("daemon", lambda: instance.serve_daemon(workspace))
        self._start_watch()
        return self._await_ready()

    def _needed_clusters(self) -> dict[str, Cluster]:
        settings = self._settings
        needed = clusters(settings)
        if settings.dagster_postgres_url:
            del needed["dagster"]
        if all(
            settings.source_variable(domain, organisation.SOURCE) in os.environ
            for domain in organisation.DOMAINS
        ):
            del needed["sources"]
        return needed

    def _start_clusters(self) -> None:
        """Start the clusters side by side, each from a fork, while this process imports Dagster."""
        logs = self._place.logs
        starts: dict[str, Callable[[], int]] = {}
        if "sources" in self._clusters:
            starts["sources"] = lambda: _start_sources(self._clusters["sources"], self._settings)
        if "dagster" in self._clusters:
            starts["dagster"] = lambda: _start_dagster(self._clusters["dagster"])
        pids = {
            name: fork(body, log=logs / f"postgres-{name}.log", group=self._group)
            for name, body in starts.items()
        }
        codes: dict[str, int] = {}
        try:
            warm_up()
        finally:
            # Waited for in any case: a server that starts after everything was stopped would stay.
            for name, pid in pids.items():
                codes[name] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        for name, code in codes.items():
            log = logs / f"postgres-{name}.log"
            if code:
                raise SettingError(
                    f"the PostgreSQL cluster of {name} did not start (exit code {code}): {_tail(log)}",
                    hint=f"look at {log}",
                )
        self._step("PostgreSQL")

    def _dagster_url(self) -> str:
        if self._settings.dagster_postgres_url:
            return self._settings.dagster_postgres_url
        return self._clusters["dagster"].url("dagster")

    def _start_applications(self) -> None:
        if "sources" not in self._clusters or self._options.rate <= 0:
            return
        for domain in organisation.DOMAINS:
            command = organisation.application_command(domain, rate=self._options.rate)
            extra = organisation.application_environment(self._clusters["sources"], domain)
            self._child(f"app-{domain}", _executing(command, extra))

    def _start_watch(self) -> None:
        self._reading, writing = os.pipe()
        os.set_blocking(self._reading, False)
        settings, web_url = self._settings, f"http://127.0.0.1:{self._port}"

        def body() -> int:
            # Loads the Delta Lake library, which this process must never do.
            from mesh_assets.local.watch import Watch

            return Watch(settings, web_url, writing).run()

        self._child("watch", body, keep=(writing,), niceness=_NICENESS)

    def _child(
        self, name: str, body: Callable[[], int | None], keep: Sequence[int] = (), niceness: int = 0
    ) -> None:
        child = Child(name, body, self._place.logs / f"{name}.log", keep=keep, niceness=niceness)
        self._children[name] = child
        child.start(self._group)

    @property
    def _group(self) -> int:
        if self._guardian is None:
            raise RuntimeError("there is no guardian yet")
        return self._guardian.group

    def _await_sockets(self, sockets: dict[str, str]) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        waiting = dict(sockets)
        while waiting:
            for name, path in list(waiting.items()):
                with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                    probe.connect(path)
                    del waiting[name]
            self._tend(self._say)
            if time.monotonic() > deadline:
                raise SettingError(
                    f"code locations did not start: {', '.join(waiting)}",
                    hint=f"look at their logs in {self._place.logs}",
                )
            time.sleep(0.05)

    def _await_ready(self) -> dict[str, str]:
        deadline = time.monotonic() + _READY_SECONDS
        names = {location.name for location in self._locations}
        while not (self._sight.web and not self._sight.daemons and names <= self._settled()):
            self._tend(self._say)
            self._read_sights(_LOOP_SECONDS)
            if time.monotonic() > deadline:
                raise SettingError(
                    f"the mesh was not ready within {_READY_SECONDS:.0f} s: web server "
                    f"{'answers' if self._sight.web else 'does not answer'}, daemons not healthy: "
                    f"{', '.join(self._sight.daemons) or 'none'}, locations {self._sight.locations}",
                    hint=f"look at the logs in {self._place.logs}",
                )
        addresses = {"Dagster": f"http://127.0.0.1:{self._port}"}
        record = {"pid": os.getpid(), "addresses": addresses}
        self._place.record.write_text(json.dumps(record))
        self._step("ready")
        for name, address in addresses.items():
            self._say(f"{name}: {address}")
        for name, state in self._sight.locations.items():
            if state != "loaded":
                self._say(f"code location {name} did not load:\n{state}", "red")
        for product in self._sight.products:
            if product.problem:
                self._say(f"product {product.name} is left out: {product.problem}", "red")
        return addresses

    def _settled(self) -> set[str]:
        return {name for name, state in self._sight.locations.items() if state != "loading"}

    # -- while it runs

    def _watch_over(self, show: Show) -> None:
        ready = time.monotonic()
        while True:
            if self._options.seconds is not None and time.monotonic() - ready >= self._options.seconds:
                return
            self._tend(show.message)
            if self._read_sights(_LOOP_SECONDS):
                show.sight(self._sight)

    def _tend(self, say: Callable[[str, str], None]) -> None:
        """Notice ends, restart what is due, follow changed products; leave when asked to."""
        if self._stopping:
            raise _Stopped
        for child in self._children.values():
            if child.reap():
                self._problems.append(f"{child.name} ended with exit code {child.exit_code}")
                say(
                    f"{child.name} ended (exit code {child.exit_code}); it is started again in "
                    f"{child.due_seconds:.1f} s; its log is {child.log}",
                    "yellow",
                )
            if child.restart_when_due(self._group):
                say(f"{child.name} was started again", "yellow")
        now = time.monotonic()
        if now - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = now
        watch = self._children.get("watch")
        if (
            watch is not None
            and watch.running
            and min(now - self._sight_at, watch.age_seconds) > _SILENT_SECONDS
        ):
            say("the watch says nothing; it is started again", "yellow")
            watch.signal(signal.SIGKILL)
        for name in self._changed_locations():
            say(f"the products of {name} have changed; its code location is loaded again", "")
            self._children[f"code-{name}"].stop(5)
            self._children[f"code-{name}"].start(self._group)

    def _changed_locations(self) -> list[str]:
        """Code locations whose definitions are made of files that have changed since the last call."""
        # Brings Dagster, which is imported while the clusters start.
        from mesh_assets.orchestration.component import file_states

        states = file_states(self._settings.products.absolute())
        if states == self._states:
            return []
        self._states = states
        found = {one.name: self._fingerprint(one.attribute) for one in self._locations}
        changed = [name for name, known in self._fingerprints.items() if found[name] != known]
        self._fingerprints = found
        return changed

    def _fingerprint(self, attribute: str) -> int:
        """Changes with any file that a code location's definitions are made of."""
        from mesh_assets.orchestration.component import discovered
        from mesh_assets.orchestration.enterprise import DOMAIN

        discovery = discovered(self._settings.products)
        # A domain's depend on what its own products are made of, the enterprise's on all products.
        domains = {attribute, *(discovery.domains if attribute == DOMAIN else ())}
        for product in discovery.derived(attribute):
            domains.update(one.product.domain for one in product.definition.inputs)
        folders = [str(self._settings.products.absolute() / name) + os.sep for name in sorted(domains)]
        return hash(tuple(one for one in self._states if one and one[0].startswith(tuple(folders))))

    def _read_sights(self, timeout_seconds: float) -> bool:
        """Take in what the watch has written; True if there was a new sight."""
        try:
            readable, _, _ = select.select([self._reading], [], [], timeout_seconds)
            received = os.read(self._reading, 1 << 20) if readable else b""
        except (InterruptedError, BlockingIOError):
            return False
        if not received:
            if readable:
                # Nobody has the other end: the watch is being started again.
                time.sleep(timeout_seconds)
            return False
        *whole, self._line = (self._line + received).split(b"\n")
        if not whole:
            return False
        self._sight = Sight.load(whole[-1].decode())
        self._sight_at = time.monotonic()
        return True

    # -- the end

    def _stop(self) -> None:
        started = time.monotonic()
        self._say("stopping")
        if self._guardian is not None:
            # First what starts runs and writes, then the runs, which end between two batches.
            for name in ("watch", "daemon", "nursery"):
                if child := self._children.get(name):
                    child.signal(signal.SIGTERM)
            for name, child in self._children.items():
                if name.startswith("app-"):
                    child.signal(signal.SIGTERM)
            for name, timeout_seconds in (("nursery", 10.0), ("daemon", 3.0)):
                if child := self._children.get(name):
                    child.stop(timeout_seconds)
            stop_group(self._guardian.group)
            for child in self._children.values():
                child.stop(1)
        self._finish()
        if self._guardian is not None:
            self._guardian.dismiss()
        self._say(f"stopped in {time.monotonic() - started:.1f} s; the data is in {self._place.home}")

    def _finish(self) -> None:
        """Stop the clusters, side by side, and remove what is temporary; also the guardian's last act."""
        logs = self._place.logs
        pids = [
            fork(_stopping(cluster), log=logs / f"postgres-{name}.log", group=None, release=False)
            for name, cluster in self._clusters.items()
        ]
        for pid in pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        shutil.rmtree(self._runtime, ignore_errors=True)

    def _verdict(self) -> int:
        """0 if everything worked; says what did not."""
        if self._options.seconds is None:
            return 0
        sight, problems = self._sight, list(self._problems)
        if self._stopping:
            problems.append("it was stopped before its time")
        problems += [
            f"code location {name}: {state}" for name, state in sight.locations.items() if state != "loaded"
        ]
        problems += [f"Dagster's {name} daemon is not healthy" for name in sight.daemons]
        problems += [f"run failed: {run}" for run in sight.failed_runs]
        problems += [f"product {one.name}: {one.problem}" for one in sight.products if one.problem]
        problems += [f"product {one.name} has no version" for one in sight.products if not one.version]
        for source in sight.sources:
            if source.problem:
                problems.append(f"source {source.name}: {source.problem}")
            elif source.lag_seconds is None:
                problems.append(f"source {source.name} was not captured")
            elif source.lag_seconds > _LAG_SECONDS:
                problems.append(f"source {source.name} lags by {source.lag_seconds:.0f} s")
        if not sight.locations:
            problems.append("it was never ready")
        for problem in problems:
            self._say(problem, "red")
        self._say(
            "not everything worked" if problems else "everything worked", "red" if problems else "green"
        )
        return 1 if problems else 0

    # -- words

    def _age(self) -> float:
        return time.monotonic() - self._started

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style or None, highlight=False, soft_wrap=True, markup=False)

    def _step(self, what: str) -> None:
        self._say(f"  {self._age():5.1f} s  {what}", "dim")


def fork_and_wait(body: Callable[[], int | None], log: Path, group: int) -> int:
    """Run ``body`` in a forked child to its end; returns its exit code."""
    pid = fork(body, log=log, group=group)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _serving(location: instance.Location, path: str) -> Callable[[], int]:
    return lambda: instance.serve_code(location, path)


def _executing(command: Sequence[str], extra: dict[str, str]) -> Callable[[], int]:
    def body() -> int:
        os.execve(command[0], list(command), os.environ | extra)

    return body


def _stopping(cluster: Cluster) -> Callable[[], None]:
    return cluster.stop


def _start_sources(cluster: Cluster, settings: Settings) -> int:
    cluster.start()
    organisation.create(cluster, settings)
    return 0


def _start_dagster(cluster: Cluster) -> int:
    cluster.start()
    cluster.create_database("dagster")
    return 0


def _tail(log: Path, line_count: int = 3) -> str:
    with contextlib.suppress(OSError):
        return " / ".join(log.read_text(errors="replace").strip().splitlines()[-line_count:])
    return ""


if __name__ == "__main__":
    sys.exit(up(Settings()))
