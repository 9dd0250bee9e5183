"""Great Expectations in a child process: bounded in time and memory, behind everything else, never left over.

Importing it costs seconds of CPU and a quarter of a gigabyte, so the processes of the mesh never do.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from mesh_assets.errors import MeshError
from mesh_assets.lake.scratch import Scratch

MAX_BYTES = 2 << 30
"""Resident memory of a child; the same that a transform has by default."""

given_up: ContextVar[Callable[[], bool]] = ContextVar("given_up", default=lambda: False)
"""Whether nobody waits for an answer any more; set by who runs rules in a thread that has to end soon."""

_LOOK_SECONDS = 0.1
_PARENT_SECONDS = 1.0
_START_SECONDS = 120.0
"""How long loading may take; behind everything else on a busy machine it takes long."""
_NICE = 10
_ERROR_LINES = 3
_MEBIBYTE = 1 << 20


class ChildFailed(Exception):
    """The child ended before it had answered everything.

    Attributes:
        answers: those that it gave before, in order.
    """

    def __init__(self, message: str, answers: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(message)
        self.answers = list(answers)


class GivenUp(MeshError):
    """The answer of a child was not waited for."""


def run(
    module: str, asked: Mapping[str, Any], *, max_seconds: float, max_bytes: int = MAX_BYTES
) -> list[dict[str, Any]]:
    """Run a module's ``answers`` in a fresh interpreter: JSON in, JSON after JSON out.

    Args:
        module: has a function ``answers``, from a mapping to mappings, one after another.
        asked: what it is given.
        max_seconds: how long each answer may take, once the module is loaded.
        max_bytes: how much memory the child may hold.

    Raises:
        ChildFailed: if it ends otherwise than with all answers, takes too long or needs too much memory.
        GivenUp: if :data:`given_up` says so meanwhile.
    """
    with Scratch("quality") as folder:
        question, given, said = (folder / name for name in ("asked.json", "answers.jsonl", "said.txt"))
        question.write_text(json.dumps(asked), encoding="utf-8")
        given.touch()
        with said.open("wb") as stream:
            child = subprocess.Popen(
                [
                    *(sys.executable, "-c", f"from {__name__} import serve; serve()"),
                    *(str(os.getpid()), module, question, given),
                ],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=os.environ | {"GX_ANALYTICS_ENABLED": "false"},
            )
        try:
            wrong = _wrong(child, given, max_seconds, max_bytes)
        finally:
            child.kill()
            child.wait()
        lines = given.read_bytes().splitlines(keepends=True)
        answers = [json.loads(line) for line in lines if b"\n" in line and line.strip()]
        if wrong is None and child.returncode:
            text = said.read_text(encoding="utf-8", errors="replace")
            last = " | ".join(text.strip().splitlines()[-_ERROR_LINES:])
            wrong = f"Great Expectations ended with code {child.returncode}: {last}"
        if wrong is not None:
            raise ChildFailed(wrong, answers)
    return answers


def _wrong(child: subprocess.Popen[bytes], given: Path, max_seconds: float, max_bytes: int) -> str | None:
    """Wait for the end of the child; what it may not go on for, if there is something.

    Raises:
        GivenUp: if nobody waits for it any more.
    """
    watched = psutil.Process(child.pid)
    abandoned = given_up.get()
    size, since = 0, time.monotonic()
    while True:
        with suppress(subprocess.TimeoutExpired):
            child.wait(_LOOK_SECONDS)
            return None
        if abandoned():
            raise GivenUp("Great Expectations was ended: who asked it has to end")
        if (now := given.stat().st_size) > size:
            size, since = now, time.monotonic()
        limit = max_seconds if size else max(_START_SECONDS, max_seconds)
        if time.monotonic() - since > limit:
            return f"Great Expectations took longer than {limit:g} s"
        with suppress(psutil.NoSuchProcess):
            if watched.memory_info().rss > max_bytes:
                return f"Great Expectations needed more than {max_bytes / _MEBIBYTE:,.0f} MiB"


# -- the child ----------------------------------------------------------------------------------------


def serve() -> None:
    """Be the child of a process: have a module answer what is asked in one file into another."""
    parent, module, question, given = sys.argv[1:]
    os.nice(_NICE)
    # Ctrl-C reaches the whole group; the parent says when it is over.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _expendable()
    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    asked = json.loads(Path(question).read_text(encoding="utf-8"))
    with Path(given).open("w", encoding="utf-8") as stream:
        answers = import_module(module).answers(asked)
        # An empty line: it is loaded, and the time of the first answer begins.
        stream.write("\n")
        stream.flush()
        for found in answers:
            stream.write(f"{encoded(found)}\n")
            stream.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def encoded(content: object) -> str:
    """As JSON; Great Expectations leaves scalars of numpy in its results."""
    return json.dumps(content, default=lambda value: value.item())


def _expendable() -> None:
    """Where memory runs out, this process goes first (Linux)."""
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        with suppress(OSError):
            score.write_text("1000")


def _end_with(parent: int) -> None:
    """End with the parent, also in the middle of an expectation."""
    while os.getppid() == parent:
        time.sleep(_PARENT_SECONDS)
    os._exit(1)
