"""The processes of one PostgreSQL server: found, started, stopped, killed, cleared away after a crash."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil

from mesh_assets.local.installation import Installation

_POLL_SECONDS = 0.02
_ORPHAN_SECONDS = 2.0


class Server:
    """The server whose data is below ``installation.server``, running or not."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self.data: Path = installation.server / "data"
        self.log: Path = installation.server / "postgres.log"

    def pid(self) -> int | None:
        """The postmaster's process id, None if the lock file is missing or stale."""
        try:
            with (self.data / "postmaster.pid").open() as file:
                pid = int(file.readline())
            # After a reboot the number may belong to anything, another cluster's server included.
            alive = psutil.Process(pid).cwd() == os.path.realpath(self.data)
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
            return None
        return pid if alive else None

    def launch(self, timeout_seconds: float) -> str:
        """Start the server; returns an empty text, or the end of its log if it did not start."""
        written = self.log.stat().st_size if self.log.exists() else 0
        # pg_ctl makes the server a session of its own: a Ctrl-C at the terminal does not reach it.
        done = self._installation.run(
            "pg_ctl",
            "start",
            "--wait",
            f"--timeout={max(1, round(timeout_seconds))}",
            f"--pgdata={self.data}",
            f"--log={self.log}",
        )
        if done.returncode == 0:
            return ""
        report = done.stdout.strip()
        if self.log.exists():
            with self.log.open(errors="replace") as file:
                file.seek(written)
                report += f"\n{file.read()[-2000:].strip()}"
        return report

    def stop(self, timeout_seconds: float) -> None:
        """Stop the server: at first gently, at half of the time by crashing it, which loses nothing."""
        # A fast shutdown waits for a walsender whose client never confirms: hence the second step.
        for order in (signal.SIGINT, signal.SIGQUIT):
            pid = self.pid()
            if pid is None:
                return
            os.kill(pid, order)
            deadline = time.monotonic() + timeout_seconds / 2
            while self.pid() is not None and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Kill every process of the server at once, as a crash would."""
        pid = self.pid()
        if pid is not None:
            # First, so that it does not start others for those that die before it.
            os.kill(pid, signal.SIGKILL)
        self._kill_remaining(wait_seconds=0)

    def clear_crash(self) -> None:
        """Remove a stale lock file once no process of the old server is left."""
        lock = self.data / "postmaster.pid"
        if lock.exists():
            # Backends end by themselves when they notice that their postmaster is gone.
            self._kill_remaining(wait_seconds=_ORPHAN_SECONDS)
            lock.unlink(missing_ok=True)

    def rotate_log(self, byte_count: int) -> None:
        """Set the log aside if it is larger than ``byte_count``; one old log is kept."""
        if self.log.exists() and self.log.stat().st_size > byte_count:
            self.log.rename(self.log.with_suffix(".log.1"))

    def _processes(self) -> list[psutil.Process]:
        """Every process of this server: each works inside of the data folder."""
        data = os.path.realpath(self.data)
        found = []
        for process in psutil.process_iter():
            try:
                if process.name().startswith("postgres") and process.cwd() == data:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def _kill_remaining(self, wait_seconds: float) -> None:
        deadline = time.monotonic() + wait_seconds
        while processes := self._processes():
            if time.monotonic() >= deadline:
                for process in processes:
                    try:
                        process.kill()
                    except psutil.NoSuchProcess:
                        continue
            time.sleep(_POLL_SECONDS)
