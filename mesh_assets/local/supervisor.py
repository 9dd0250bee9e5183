"""``mesh up``: starts everything on this machine, keeps it running, and stops it without a trace.

One process imports Dagster once and forks everything that needs it: a code server per location, the
web server, the daemon, the nursery of run workers. PostgreSQL's clusters and the sample applications
are programs of their own. See :mod:`mesh_assets.local.process` for who stops what.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from mesh_assets.errors import MeshError, SettingError
from mesh_assets.local import instance, organisation
from mesh_assets.local.database import Databases
from mesh_assets.local.edit import Edits
from mesh_assets.local.live import Show
from mesh_assets.local.nursery import Nursery, warm_up
from mesh_assets.local.place import Place
from mesh_assets.local.process import Child, Guardian, await_ends, fork, stop_group
from mesh_assets.local.sight import Sight, Sights
from mesh_assets.local.verdict import Patience, judge
from mesh_assets.settings import Settings

_READY_SECONDS = 180.0
_LOOP_SECONDS = 0.25
_LOOK_SECONDS = 2.0
_SILENT_SECONDS = 60.0
_DAEMON_SECONDS = 3.0
_STOP_SECONDS = 9.0
_NICENESS = 5
"""Of what only shows and decides: where cores are short, whatever moves data goes first."""


@dataclass(frozen=True)
class Options:
    """How to run.

    Attributes:
        seconds: stay up for this long once ready, and up to a minute more while something is on its
            way; None: until Ctrl-C or ``mesh down``.
        rate: transactions per second of each sample application; 0 leaves them out.
    """

    seconds: float | None = None
    rate: float = 5.0


def up(settings: Settings, options: Options | None = None, console: Console | None = None) -> int:
    """Start everything, show it, and stop it again.

    Returns:
        0 if everything worked, 1 if not (with ``options.seconds``: see :mod:`mesh_assets.local.verdict`).
    """
    out = console or Console()
    place = Place.of(settings)
    place.logs.mkdir(parents=True, exist_ok=True)
    with place.locked() as mine:
        if not mine:
            out.print(
                f"the mesh in {place.home} is already up{_where(place.running())}",
                style="red",
                highlight=False,
            )
            return 1
        try:
            return _Supervisor(settings, options or Options(), out, place).run()
        except MeshError as error:
            out.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
            return 1
        finally:
            place.record.unlink(missing_ok=True)
            settings.dagster_url_file.unlink(missing_ok=True)


def _where(running: Mapping[str, Any]) -> str:
    with contextlib.suppress(KeyError):
        return f": {running['addresses']['Dagster']} (process {running['pid']})"
    return ""


class _Stopped(Exception):  # an order, not an error
    """Somebody wants the mesh to end."""


class _Supervisor:
    """One ``mesh up``."""

    def __init__(self, settings: Settings, options: Options, console: Console, place: Place) -> None:
        self._settings = settings
        self._options = options
        self._console = console
        self._place = place
        self._started = time.monotonic()
        self._databases = Databases(settings, place)
        self._children: dict[str, Child] = {}
        self._locations: list[instance.Location] = []
        self._edits: Edits | None = None
        self._crashes: list[str] = []
        self._silenced = False
        reading, self._writing = os.pipe()
        self._sights = Sights(reading, lambda text: self._say(text, "yellow"))
        self._ready = False
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
        self._databases.start(self._group, meanwhile=warm_up)
        instance.publish_address(settings, self._databases.dagster_url)
        self._step("PostgreSQL")
        nursery = str(self._runtime / "nursery")
        os.environ.update(instance.environment(settings, self._databases.dagster_url, nursery))
        self._child("nursery", Nursery(nursery, place.logs / "runs").serve)
        self._start_applications()
        if fork_and_wait(instance.initialise_storage, place.logs / "storage.log", self._guardian.group):
            raise SettingError(
                "Dagster's storage cannot be set up", hint=f"look at {place.logs / 'storage.log'}"
            )
        self._step("storage")
        sockets = {}
        self._locations = found
        self._edits = Edits(settings.products, found)
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

    def _start_applications(self) -> None:
        cluster = self._databases.sources
        if cluster is None or self._options.rate <= 0:
            return
        for domain in organisation.DOMAINS:
            command = organisation.application_command(domain, rate=self._options.rate)
            extra = organisation.application_environment(cluster, domain)
            self._child(f"app-{domain}", _executing(command, extra))

    def _start_watch(self) -> None:
        settings, writing = self._settings, self._writing
        web_url = f"http://127.0.0.1:{self._port}"

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
        sight = self._sights.latest
        while not (sight.web and not sight.daemons and names <= _settled(sight)):
            self._tend(self._say)
            self._sights.read(_LOOP_SECONDS)
            sight = self._sights.latest
            if time.monotonic() > deadline:
                raise SettingError(
                    f"the mesh was not ready within {_READY_SECONDS:.0f} s: web server "
                    f"{'answers' if sight.web else 'does not answer'}, daemons not healthy: "
                    f"{', '.join(sight.daemons) or 'none'}, locations {sight.locations}",
                    hint=f"look at the logs in {self._place.logs}",
                )
        addresses = {"Dagster": f"http://127.0.0.1:{self._port}"}
        record = {"pid": os.getpid(), "addresses": addresses}
        self._place.record.write_text(json.dumps(record))
        self._ready = True
        self._step("ready")
        for name, address in addresses.items():
            self._say(f"{name}: {address}")
        for name, state in sight.locations.items():
            if state != "loaded":
                self._say(f"code location {name} did not load:\n{state}", "red")
        for product in sight.products:
            if product.problem:
                self._say(f"product {product.name} is left out: {product.problem}", "red")
        return addresses

    # -- while it runs

    def _watch_over(self, show: Show) -> None:
        patience, ready = Patience(self._options.seconds, show.message), time.monotonic()
        while patience.stays(time.monotonic() - ready, judge(self._sights.latest, self._crashes)):
            self._tend(show.message)
            if self._sights.read(_LOOP_SECONDS):
                show.sight(self._sights.latest)

    def _tend(self, say: Callable[[str, str], None]) -> None:
        """Notice ends, restart what is due, follow changed products; leave when asked to."""
        if self._stopping:
            raise _Stopped
        for child in self._children.values():
            if child.reap():
                ours = child.name == "watch" and self._silenced
                if child.name == "watch":
                    self._sights.writer_ended()
                    self._silenced = False
                if not ours:
                    self._crashes.append(f"{child.name} ended with exit code {child.exit_code}")
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
            and min(now - self._sights.came_at, watch.age_seconds) > _SILENT_SECONDS
        ):
            say("the watch says nothing; it is started again", "yellow")
            self._silenced = True
            watch.signal(signal.SIGKILL)
        for text in self._databases.tend(self._group):
            self._crashes.append(text)
            say(text, "yellow")
        for name in self._edits.changed() if self._edits else ():
            say(f"the products of {name} have changed; its code location is loaded again", "")
            self._children[f"code-{name}"].stop(5)
            self._children[f"code-{name}"].start(self._group)

    # -- the end

    def _stop(self) -> None:
        started = time.monotonic()
        self._say("stopping")
        if self._guardian is not None:
            self._databases.begin_stop()
            killed = self._stop_children() + stop_group(self._guardian.group)
            if killed:
                self._say(f"had to be killed: {', '.join(killed)}", "yellow")
        self._finish()
        if self._guardian is not None:
            self._guardian.dismiss()
        self._say(f"stopped in {time.monotonic() - started:.1f} s; the data is in {self._place.home}")

    def _stop_children(self) -> list[str]:
        """Stop all of them side by side; the runs, which end between two batches, take longest.

        Returns:
            Names of those that had to be killed.
        """
        deadline = time.monotonic() + _STOP_SECONDS
        serving = [child for name, child in self._children.items() if name.startswith("code-")]
        for child in self._children.values():
            if child not in serving:
                child.signal(signal.SIGTERM)
        if daemon := self._children.get("daemon"):
            # What it has begun still needs the code servers.
            await_ends([daemon], _DAEMON_SECONDS, kill=False)
        for child in serving:
            child.signal(signal.SIGTERM)
        return await_ends(self._children.values(), deadline - time.monotonic())

    def _finish(self) -> None:
        """Stop the clusters and remove what is temporary; also the guardian's last act."""
        self._databases.stop()
        shutil.rmtree(self._runtime, ignore_errors=True)

    def _verdict(self) -> int:
        """0 if everything worked; says what did not."""
        if self._options.seconds is None:
            return 0
        problems = []
        if self._stopping:
            problems.append("it was stopped before its time")
        if not self._ready:
            problems.append("it was never ready")
        problems += judge(self._sights.latest, self._crashes).problems
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


def _settled(sight: Sight) -> set[str]:
    """Code locations that have loaded, or failed to."""
    return {name for name, state in sight.locations.items() if state != "loading"}


def _serving(location: instance.Location, path: str) -> Callable[[], int]:
    return lambda: instance.serve_code(location, path)


def _executing(command: Sequence[str], extra: dict[str, str]) -> Callable[[], int]:
    def body() -> int:
        os.execve(command[0], list(command), os.environ | extra)

    return body


if __name__ == "__main__":
    sys.exit(up(Settings()))
