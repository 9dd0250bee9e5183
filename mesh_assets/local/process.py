"""Child processes forked from one warm process, restarted when they end, never left behind.

Everything a child needs is imported once, before the first fork, and shared by all of them. So this
process must stay single-threaded and must never import the Delta Lake library, which refuses to
work after a fork.

All children form one process group, led by a *guardian*: a process that does nothing but wait for
the end of its pipe. When the supervisor ends in whatever way, ``kill -9`` included, the guardian
stops the group and then the PostgreSQL clusters, so that nothing is left.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_FIRST_DESCRIPTOR = 3
_DESCRIPTOR_LIMIT = 4096
_BACKOFF_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_STEADY_SECONDS = 60.0
_LOG_BYTES = 8 << 20
_TERMINATE_SECONDS = 6.0
_POLL_SECONDS = 0.02
_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP)
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_NAME = 15  # PR_SET_NAME
_NAME_BYTES = 15


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send this process a signal when its parent ends; a no-op except on Linux."""
    _control(_DIE_WITH_PARENT, signal_number)


def rename(name: str) -> None:
    """Have ``ps -o comm`` and ``top`` show this process by name, cut to 15 bytes; a no-op except on Linux."""
    _control(_NAME, name.encode()[:_NAME_BYTES])


def _control(option: int, value: int | bytes) -> None:
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(option, value)


def fork(
    body: Callable[[], int | None],
    *,
    name: str = "",
    log: Path | None,
    group: int | None,
    keep: Sequence[int] = (),
    release: bool = True,
) -> int:
    """Fork a child that runs ``body`` and ends with the exit code that it returns (None: 0).

    Args:
        body: what the child does; an exception is written to the log and ends it with code 1.
        name: how the system's tools call it; empty: as this process.
        log: file that takes the child's output; None keeps this process's.
        group: process group that the child joins; None makes it the leader of a new one.
        keep: file descriptors, besides the standard ones, that the child needs.
        release: whether to freeze the garbage collector first, which keeps memory shared.

    Returns:
        The child's process id.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if release:
        gc.collect()
        gc.freeze()
    # What arrives before the child has handlers of its own waits; it would run, and be lost in, ours.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # Both sides do it: whoever comes first, it is done before either goes on.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(pid, group or pid)
        return pid
    code = 1
    try:
        os.setpgid(0, group or 0)
        if name:
            rename(name)
        _detach(log, keep)
        for number in _HANDLED:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        code = body() or 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:
        code = 130
    except BaseException:  # noqa: BLE001 - the child ends here; its log takes the traceback.
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        # Never through the parent's clean-up, nor the Delta library's, which may abort.
        os._exit(code)


def _detach(log: Path | None, keep: Sequence[int]) -> None:
    """Take /dev/null as input and the log as output; close all other descriptors, the lock's too."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    if log is not None:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
    last = _FIRST_DESCRIPTOR
    for descriptor in sorted(keep):
        os.closerange(last, descriptor)
        last = descriptor + 1
    os.closerange(last, _DESCRIPTOR_LIMIT)


def rotate(log: Path) -> None:
    """Keep one older log beside the present one, so that logs stay bounded."""
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.replace(log.with_suffix(log.suffix + ".1"))


@dataclass
class Child:
    """One process that the supervisor keeps running.

    Attributes:
        name: how messages and the log file call it.
        body: what it does, see :func:`fork`.
        log: file that takes its output.
        keep: file descriptors that it needs.
        essential: whether the mesh has not worked if it ended by itself.
        niceness: by how much the system's scheduler prefers others, 0 to 19.
    """

    name: str
    body: Callable[[], int | None]
    log: Path
    keep: Sequence[int] = ()
    essential: bool = True
    niceness: int = 0
    pid: int | None = None
    restart_count: int = 0
    exit_code: int | None = None
    _started_at: float = 0.0
    _failures: int = 0
    _due_at: float = field(default=0.0)

    @property
    def running(self) -> bool:
        """Whether the process runs, as far as has been noticed."""
        return self.pid is not None

    @property
    def age_seconds(self) -> float:
        """Seconds since it was last started."""
        return time.monotonic() - self._started_at

    def start(self, group: int) -> None:
        """Fork it."""
        rotate(self.log)
        self._started_at = time.monotonic()
        self.exit_code = None
        self.pid = fork(self._run, name=self.name, log=self.log, group=group, keep=self.keep, release=False)

    def _run(self) -> int | None:
        os.nice(self.niceness)
        return self.body()

    def reap(self) -> bool:
        """Notice its end; True the moment that it is noticed. The next start waits for longer each time."""
        if self.pid is None:
            return False
        done, status = os.waitpid(self.pid, os.WNOHANG)
        if not done:
            return False
        self.exit_code = os.waitstatus_to_exitcode(status)
        self.pid = None
        if self.age_seconds > _STEADY_SECONDS:
            self._failures = 0
        self._due_at = time.monotonic() + self.backoff_seconds
        self._failures += 1
        return True

    @property
    def due_seconds(self) -> float:
        """How long the next start still waits."""
        return max(0.0, self._due_at - time.monotonic())

    @property
    def backoff_seconds(self) -> float:
        """How long the next restart waits."""
        return _BACKOFF_SECONDS[min(self._failures, len(_BACKOFF_SECONDS) - 1)]

    def restart_when_due(self, group: int) -> bool:
        """Start it again if it ended and its waiting time is over; True if it was started."""
        if self.running or time.monotonic() < self._due_at:
            return False
        self.start(group)
        self.restart_count += 1
        return True

    def signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def stop(self, timeout_seconds: float) -> None:
        """Ask it to end, wait, and kill it at the deadline."""
        self.signal(signal.SIGTERM)
        await_ends([self], timeout_seconds)


def await_ends(children: Iterable[Child], timeout_seconds: float, *, kill: bool = True) -> list[str]:
    """Wait until all of them, which were asked to end, have ended, or it is too late.

    Args:
        kill: those that have not ended in time.

    Returns:
        Names of those that have not ended in time.
    """
    deadline = time.monotonic() + timeout_seconds
    late: list[str] = []
    while running := [child for child in children if child.running and not child.reap()]:
        if not late and time.monotonic() > deadline:
            late = [child.name for child in running]
            if not kill:
                break
            for child in running:
                child.signal(signal.SIGKILL)
        time.sleep(_POLL_SECONDS)
    return late


class Guardian:
    """The leader of the children's process group, which ends everything if the supervisor cannot.

    Args:
        finish: what to do after the group has ended: stop the clusters, remove temporary folders.
        log: file that takes its output.
    """

    def __init__(self, finish: Callable[[], None], log: Path) -> None:
        reading, self._writing = os.pipe()

        def body() -> int:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            if os.read(reading, 1):
                return 0
            stop_group(os.getpgrp())
            finish()
            return 0

        self.pid = fork(body, name="guardian", log=log, group=None, keep=(reading,))
        os.close(reading)

    @property
    def group(self) -> int:
        """The children's process group."""
        return self.pid

    def dismiss(self) -> None:
        """Let it end without doing anything: the supervisor has stopped everything itself."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._writing, b".")
        os.close(self._writing)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def group_members(group: int) -> list[int]:
    """Process ids of a process group except for its leader, zombies left out."""
    members = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            # The group first, which costs a fraction of a look at every process of the machine.
            ours = pid != group and os.getpgid(pid) == group
            if ours and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                members.append(pid)
    return members


def stop_group(group: int) -> list[str]:
    """Ask all members of a process group to end, and kill those that have not after some seconds.

    Returns:
        Names of those that had to be killed.
    """
    killed: list[str] = []
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + _TERMINATE_SECONDS
        members = group_members(group)
        for pid in members:
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                name = psutil.Process(pid).name()
                os.kill(pid, number)
                if number == signal.SIGKILL:
                    killed.append(name)
        while members and time.monotonic() < deadline:
            time.sleep(0.05)
            members = group_members(group)
        if not members:
            break
    return killed
