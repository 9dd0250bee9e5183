"""The warm process that run workers are forked from, see :mod:`mesh_assets.orchestration.launcher`."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import time
from collections import OrderedDict
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mesh_assets.local.process import die_with_parent, fork

WARM = (
    "dagster._cli.api",
    "dagster._daemon.cli",
    "dagster._grpc.server",
    "dagster_postgres",
    "dagster_webserver.app",
    "dagster_webserver.cli",
    "mesh_assets.orchestration",
    "mesh_assets.cdc.source",
)
"""What children share by being forked after it was imported. Never the Delta Lake library, nor polars."""
WARM_RUNS = (
    "dagster._core.execution.api",
    "dagster.components",
    "mesh_assets.cdc.warm",
    "mesh_assets.orchestration.location",
    "mesh_assets.orchestration.storage",
    "openlineage.client.event_v2",
    "pyarrow.acero",
    "pyarrow.parquet",
    "upath",
)
"""What run workers need besides; it brings pandas, which the others have no need of."""

_REMEMBERED_RUNS = 1000
_CANCEL_SECONDS = 8.0
_KEPT_LOGS = 200
_CALLER_SECONDS = 10.0


class Nursery:
    """Forks a run worker per request and knows what became of each.

    Args:
        path: the Unix socket to listen on, in a folder that only this account can enter.
        logs: folder that takes one log file per run.
    """

    def __init__(self, path: str, logs: Path) -> None:
        self._path = path
        self._logs = logs
        self._running: dict[int, str] = {}
        self._ended: OrderedDict[str, int] = OrderedDict()
        self._stopping = False

    def serve(self) -> int:
        """Answer requests until SIGTERM; then cancel what runs and wait for it."""
        self._logs.mkdir(parents=True, exist_ok=True)
        Path(self._path).unlink(missing_ok=True)
        # A signal must wake select(): its handler writes a byte into this pipe.
        waking, signalled = os.pipe()
        os.set_blocking(signalled, False)
        signal.set_wakeup_fd(signalled)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(self._path)
            listener.listen(32)
            # Whoever asks meanwhile waits.
            warm_up_runs()
            while not self._stopping:
                readable = self._wait(listener, waking)
                if waking in readable:
                    os.read(waking, 4096)
                self._reap()
                if listener.fileno() in readable:
                    self._answer(listener)
        self._end_all()
        return 0

    @staticmethod
    def _wait(listener: socket.socket, waking: int) -> list[int]:
        """Wait for a caller or a signal; the descriptors that have something."""
        readable, _, _ = select.select([listener.fileno(), waking], [], [])
        return readable

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _answer(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            # One slow caller may not hold up the others.
            connection.settimeout(_CALLER_SECONDS)
            request = json.loads(b"".join(iter(lambda: connection.recv(65536), b"")))
            # White space before the answer: a caller that has given up gets nothing done any more.
            connection.sendall(b" ")
            connection.sendall(json.dumps(self._reply(request)).encode())

    def _reply(self, request: dict[str, Any]) -> dict[str, object]:
        run_id = str(request["run_id"])
        match request["verb"]:
            case "launch":
                return {"pid": self._launch(run_id, str(request["arguments"]))}
            case "cancel":
                found = [pid for pid, running in self._running.items() if running == run_id]
                for pid in found:
                    os.kill(pid, signal.SIGTERM)
                return {"found": bool(found)}
            case _:
                return self._look(run_id)

    def _look(self, run_id: str) -> dict[str, object]:
        if run_id in self._running.values():
            return {"status": "RUNNING", "message": "its worker runs"}
        if run_id not in self._ended:
            return {"status": "NOT_FOUND", "message": "its worker ended or never started"}
        code = self._ended[run_id]
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return {"status": "FAILED" if code else "SUCCESS", "message": f"its worker ended with {how}"}

    def _launch(self, run_id: str, arguments: str) -> int:
        log = self._logs / f"{run_id}.log"

        def body() -> int:
            signal.set_wakeup_fd(-1)
            die_with_parent(signal.SIGTERM)
            return _work(arguments)

        pid = fork(body, name=f"run-{run_id}", log=log, group=os.getpgrp(), release=False)
        self._running[pid] = run_id
        return pid

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                run_id = self._running.pop(pid, None)
                if run_id is None:
                    continue
                self._ended[run_id] = os.waitstatus_to_exitcode(status)
                while len(self._ended) > _REMEMBERED_RUNS:
                    self._ended.popitem(last=False)
                self._prune_logs(run_id)

    def _prune_logs(self, run_id: str) -> None:
        """Remove the run's log if it is empty, as it mostly is, and the oldest beyond a number."""
        log = self._logs / f"{run_id}.log"
        if log.exists() and log.stat().st_size == 0:
            log.unlink()
        kept = sorted(self._logs.glob("*.log"), key=lambda file: file.stat().st_mtime)
        for file in kept[:-_KEPT_LOGS]:
            file.unlink(missing_ok=True)

    def _end_all(self) -> None:
        deadline = time.monotonic() + _CANCEL_SECONDS
        for pid in self._running:
            os.kill(pid, signal.SIGTERM)
        while self._running and time.monotonic() < deadline:
            time.sleep(0.05)
            self._reap()
        for pid in self._running:
            os.kill(pid, signal.SIGKILL)
        while self._running:
            time.sleep(0.02)
            self._reap()


def _work(arguments: str) -> int:
    """Execute one run, as ``dagster api execute_run`` does; returns its exit code."""
    from dagster._cli.api import execute_run_command

    result = execute_run_command.main([arguments], standalone_mode=False)
    return int(result or 0)


def warm_up(names: Sequence[str] = WARM) -> None:
    """Import what children need, before the first fork; nothing that starts threads of its own.

    Afterwards the garbage collector leaves all of it alone: its marks would make every child copy it.
    """
    for name in names:
        import_module(name)
    gc.collect()
    gc.freeze()


def warm_up_runs() -> None:
    """Do once, before the first fork, what every run would do at its start."""
    warm_up(WARM_RUNS)
    # Not before the modules above are there: this one brings numba, and compiles or loads the kernels.
    from numba.core.registry import cpu_target

    from mesh_assets.cdc.warm import warm
    from mesh_assets.orchestration.location import prepare

    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()
    warm()
    # A run worker makes them again if the products' files have changed since.
    prepare()
    gc.collect()
    gc.freeze()
