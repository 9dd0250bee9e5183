"""Work in a process of its own: one JSON line in, progress and one result as JSON lines out.

A contender runs apart from the harness so that its CPU and memory are its own, and so that it can
run under another interpreter. This module needs nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PROJECT = Path(__file__).resolve().parent.parent
_STOP_SECONDS = 5

Report = Callable[..., None]


class ContenderError(Exception):
    """A contender ended without a result."""


class Child:
    """A running contender; made by :func:`start`."""

    def __init__(self, process: subprocess.Popen[str], errors: Path, module: str) -> None:
        self._process, self._errors, self._module = process, errors, module

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def messages(self) -> Iterator[dict[str, Any]]:
        """What it reports, until it ends.

        Raises:
            ContenderError: if it ends in failure, with the end of what it wrote to standard error.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
        code = self._process.wait()
        if code:
            tail = self._errors.read_text(errors="replace").strip()[-3000:]
            raise ContenderError(f"{self._module} ended with exit code {code}:\n{tail}")

    def result(
        self,
        on_progress: Callable[[int], None] | None = None,
        on_part: Callable[[str], None] | None = None,
    ) -> dict[str, Any]:
        """Its result; meanwhile its progress goes to ``on_progress``, the parts that it ended to ``on_part``.

        Raises:
            ContenderError: if it ends without one.
        """
        result: dict[str, Any] | None = None
        for message in self.messages():
            if "progress" in message and on_progress:
                on_progress(message["progress"])
            if "part" in message and on_part:
                on_part(message["part"])
            result = message.get("result", result)
        if result is None:
            raise ContenderError(f"{self._module} ended without a result")
        return result

    def tell(self, text: str) -> None:
        """Send it a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()

    def stop(self) -> None:
        """End it and everything that it started."""
        for order in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, order)
                self._process.wait(_STOP_SECONDS)
            except (ProcessLookupError, PermissionError):
                break
            except subprocess.TimeoutExpired:
                continue
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


@contextmanager
def start(
    module: str, parameters: dict[str, Any], *, folder: Path, python: str = sys.executable
) -> Iterator[Child]:
    """Run ``benchmarks.<module>`` in a process of its own, working in ``folder``; stopped at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    # The peers' interpreter shall find this package, not the mesh's dependencies.
    path = [str(_PROJECT)]
    if python == sys.executable and (inherited := os.environ.get("PYTHONPATH")):
        path.append(inherited)
    descriptor, name = tempfile.mkstemp(prefix=f"{module}-", suffix=".log", dir=folder)
    with os.fdopen(descriptor, "w") as errors:
        process = subprocess.Popen(
            [python, "-m", f"benchmarks.{module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
            # A Ctrl-C at the terminal is the harness's, which stops the contender in order.
            start_new_session=True,
        )
    child = Child(process, Path(name), module)
    try:
        child.tell(json.dumps(parameters))
        yield child
    finally:
        child.stop()


def run(
    module: str,
    parameters: dict[str, Any],
    *,
    folder: Path,
    python: str = sys.executable,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Run a contender to its end and return its result."""
    with start(module, parameters, folder=folder, python=python) as child:
        return child.result(on_progress)


def serve(work: Callable[[dict[str, Any], Report], dict[str, Any]]) -> None:
    """Be a contender: read the parameters, work, report the result and end.

    The harness holds the other end of standard input: when it is gone, so is the contender.
    """
    parameters = json.loads(sys.stdin.readline())
    threading.Thread(target=_follow_harness, name="lifeline", daemon=True).start()
    # Whatever a library prints to standard output must not end up between the JSON lines.
    wire = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def report(**message: object) -> None:
        wire.write(json.dumps(message) + "\n")

    code = 0
    try:
        report(result=work(parameters, report))
    except BaseException:  # noqa: BLE001 - it is told, and the exit code says it again
        traceback.print_exc()
        code = 1
    wire.flush()
    sys.stderr.flush()
    # Neither a Java machine's threads nor a native runtime's exit handlers may hold up or break the end.
    os._exit(code)


#: Set when the harness has sent a further line: the contender is asked to come to its end.
asked_to_end = threading.Event()


def _follow_harness() -> None:
    if sys.stdin.readline():
        asked_to_end.set()
        sys.stdin.read()
    os._exit(1)
