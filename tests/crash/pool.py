"""Shift processes that have loaded everything and wait for their order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import IO, Self

KILLED = -signal.SIGKILL


@dataclass(frozen=True)
class Order:
    """What the process shall do: capture a source into a lake, under rules or not, and where to die.

    Attributes:
        claim_seconds: how long it waits for the source, which a process that was just killed still has.
    """

    url: str
    lake: str
    failpoint: str = ""
    gated: bool = False
    claim_seconds: float = 1.0


@dataclass(frozen=True)
class Ending:
    """How the shift ended: its reason, or the class and text of the error that ended it."""

    reason: str = ""
    row_count: int = 0
    error: str = ""
    message: str = ""


class Process:
    """One process: it loads at once, and runs when it has its order."""

    def __init__(self) -> None:
        self._output: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        environment = {name: value for name, value in os.environ.items() if name != "MESH_FAILPOINT"}
        self._ready, ready = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.shift", str(ready)],
            stdin=subprocess.PIPE,
            pass_fds=[ready],
            stdout=self._output,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        os.close(ready)

    def go(self, order: Order) -> Self:
        """Wait until it has loaded, and give the order."""
        if os.read(self._ready, 1) != b"+":
            raise AssertionError(f"the process did not load:\n{self.output()}")
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(order)) + "\n")
        self._process.stdin.flush()
        return self

    def wait(self, timeout_seconds: float) -> int | None:
        """Wait for the end; returns the exit code (:data:`KILLED` after SIGKILL), None if it still runs."""
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> int:
        """Kill it, as a power cut would; returns the exit code, which another may be if it had ended."""
        self._process.kill()
        return self._process.wait()

    def output(self) -> str:
        """All that it printed."""
        self._output.seek(0)
        return self._output.read()

    def ending(self) -> Ending | None:
        """How its shift ended; None if the process died of something unexpected."""
        lines = self.output().splitlines()
        return Ending(**json.loads(lines[-1])) if lines and lines[-1].startswith("{") else None

    @property
    def closed(self) -> bool:
        """Whether it is over and done with."""
        return self._output.closed

    def close(self) -> None:
        """Kill it if it still runs, and forget its output."""
        if self.closed:
            return
        self.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        os.close(self._ready)
        self._output.close()


class Pool:
    """Keeps some processes loaded ahead.

    Args:
        size: how many; each takes about 150 MB.
    """

    def __init__(self, size: int = 2) -> None:
        self._size = size
        self._waiting: deque[Process] = deque()

    def __enter__(self) -> Self:
        self.fill()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._waiting:
            process.close()

    def fill(self) -> None:
        """Start what is missing."""
        while len(self._waiting) < self._size:
            self._waiting.append(Process())

    def go(self, order: Order) -> Process:
        """Give the order to the process that has waited longest, and start another for the next."""
        if not self._waiting:
            self.fill()
        process = self._waiting.popleft().go(order)
        self.fill()
        return process
