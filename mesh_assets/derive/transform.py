"""Runs a product's own function beside the shift, within its limits, and names what is wrong with it.

The function runs in a child process (:mod:`mesh_assets.derive.child`) that is kept for the next run. One
that never ends or eats memory is ended; the line at which it was is part of the error.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

import polars as pl
import psutil

from mesh_assets.contract.document import display
from mesh_assets.derive import child
from mesh_assets.derive.plan import DerivePlan
from mesh_assets.derive.reading import columns_read
from mesh_assets.derive.secrecy import Prints, forget_error, keep_error, secretive
from mesh_assets.errors import TransformError
from mesh_assets.lake.scratch import Scratch, private
from mesh_assets.lake.shape import Shape
from mesh_assets.quality.concealment import MORE, restricted

_LOOK_SECONDS = 0.02
_START_SECONDS = 60.0
_DUMP_SECONDS = 0.5
_END_SECONDS = 5.0
_RETIRE_BYTES = 400 << 20
"""A child that holds more than this after a run gives it back by ending."""
_MEBIBYTE = 1 << 20
_SCRATCH = "scratch"
_REQUEST = "request"
_SAID = "said.txt"


class Cancelled(Exception):
    """The shift was told to end while a transform ran."""


@dataclass(frozen=True)
class Made:
    """What one run of a transform gave: each table's rows, on local disk until the block ends.

    Attributes:
        tables: a lazy frame per table, with the contract's columns in its types.
        seconds: how long it took.
    """

    tables: Mapping[str, pl.LazyFrame]
    seconds: float


@dataclass
class _Child:
    """One process, ready for a request."""

    process: subprocess.Popen[bytes]
    requests: Connection
    replies: Connection
    dump: Path
    loaded: bool = field(default=False)

    @classmethod
    def start(cls, folder: Path) -> _Child:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        requests, replies = Connection(ours_out, readable=False), Connection(ours_in, writable=False)
        handle, dump = tempfile.mkstemp(prefix="stack-", dir=folder)
        os.close(handle)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", child.__file__, str(theirs_in), str(theirs_out), dump],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs_in, theirs_out),
                env=environment,
            )
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        return cls(process, requests, replies, Path(dump))

    def close(self) -> None:
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):
            # Longer only if the system itself is stuck, on a disk that does not answer for example.
            self.process.wait(_END_SECONDS)
        self.requests.close()
        self.replies.close()
        self.dump.unlink(missing_ok=True)

    def answered(self) -> bool:
        """Wait a moment for an answer, or for there being none any more."""
        # A process that the transform started may keep the pipe open beyond the end of its own.
        return self.replies.poll(_LOOK_SECONDS) or self.process.poll() is not None

    def reply(self) -> dict[str, Any] | None:
        """The answer; None if there will be none."""
        with suppress(EOFError, OSError):
            if self.replies.poll():
                return dict(self.replies.recv())
        return None

    def memory(self) -> int:
        """Bytes that only this process has, files that it reads not counted."""
        status = Path(f"/proc/{self.process.pid}/status")
        try:
            if status.parent.parent.joinpath("self").exists():
                found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text())
                return int(found[1]) * 1024 if found else 0
            return int(psutil.Process(self.process.pid).memory_info().rss)
        except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
            return 0

    def line(self, path: Path) -> int | None:
        """The line of the user's file at which it is now, if it is in there."""
        self.process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + _DUMP_SECONDS
        while time.monotonic() < deadline:
            text = self.dump.read_text()
            # The innermost frame comes first.
            found = re.search(rf'File "{re.escape(str(path))}", line (\d+)', text)
            if found:
                return int(found[1])
            time.sleep(_LOOK_SECONDS)
        return None


class Transformer:
    """Runs transforms, several at a time if asked from several threads.

    Args:
        home: the installation's folder for derive shifts: what transforms give lies there.
        cancelled: asked while one runs: whether to give it up.
    """

    def __init__(self, home: Path, cancelled: Callable[[], bool] | None = None) -> None:
        self._cancelled = cancelled or (lambda: False)
        self._scratch = Scratch("transform", private(home) / _SCRATCH)
        self._folder = self._scratch.folder
        self._prints = Prints()
        self._idle: list[_Child] = []
        self._lock = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def messages(self) -> list[str]:
        """What somebody should know of the runs so far; to be emptied by who tells it."""
        return self._prints.messages

    def warm(self) -> None:
        """Start a process beforehand, so that it has imported what it needs when it is asked."""
        with self._lock:
            self._idle.append(_Child.start(self._folder))

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            while self._idle:
                self._idle.pop().close()
        self._scratch.close()

    @contextmanager
    def run(
        self,
        plan: DerivePlan,
        shapes: Mapping[str, Shape],
        inputs: Mapping[str, pl.LazyFrame],
        region: pl.DataFrame | None = None,
    ) -> Iterator[Made]:
        """Run a product's function; its result can be read within the block.

        Args:
            plan: the product.
            shapes: of its tables.
            inputs: what the function gets.
            region: values of columns of the output's key: all other rows of the result are left out.

        Raises:
            TransformError: if it fails, takes too much, or gives anything but the promised tables.
            Cancelled: if the shift was told to end.
        """
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        said = folder / _SAID if secretive(plan) else None
        try:
            asked = {
                "path": str(plan.transform),
                "inputs": {name: _packed(frame) for name, frame in inputs.items()},
                "tables": {
                    table: {"columns": dict(shape.columns), "key": shape.key}
                    for table, shape in shapes.items()
                },
                "region": region,
                "folder": str(folder),
                "said": None if said is None else str(said),
            }
            # Not through the pipe: more than fits is written only as fast as the process reads.
            request = folder / _REQUEST
            request.write_bytes(pickle.dumps(asked))
            started = time.monotonic()
            try:
                self._ask(plan, request, inputs)
            finally:
                if said is not None:
                    # A full disk is told by what needs it, and not in place of what went wrong.
                    with suppress(OSError):
                        self._prints.keep(plan, said)
            frames = {}
            for table, shape in shapes.items():
                frames[table] = pl.scan_ipc(folder / f"{table}.arrow")
                _require_keys(plan, table, frames[table], shape)
            yield Made(frames, time.monotonic() - started)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _ask(self, plan: DerivePlan, request: Path, inputs: Mapping[str, pl.LazyFrame]) -> None:
        worker = self._take()
        try:
            reply = self._await(plan, worker, request)
        except BaseException:
            worker.close()
            raise
        if worker.memory() > _RETIRE_BYTES:
            worker.close()
        else:
            with self._lock:
                self._idle.append(worker)
        if "error" not in reply:
            forget_error(plan)
            return
        error, hint = reply["error"], reply.get("hint", "")
        if "bare" in reply and _reads_restricted(plan, inputs):
            hint = keep_error(plan, f"{error}\n")
            error = f"{reply['bare']} ({MORE})"
        raise TransformError(f"{display(plan.transform)}:{reply['line']}: {plan.name}: {error}", hint=hint)

    def _take(self) -> _Child:
        with self._lock:
            while self._idle:
                waiting = self._idle.pop()
                if waiting.process.poll() is None:
                    return waiting
                waiting.close()
        return _Child.start(self._folder)

    def _await(self, plan: DerivePlan, worker: _Child, request: Path) -> dict[str, Any]:
        if not worker.loaded:
            self._load(plan, worker)
        worker.requests.send(str(request))
        limits = plan.limits
        deadline = time.monotonic() + limits.max_seconds
        while not worker.answered():
            if self._cancelled():
                raise Cancelled
            if (held := worker.memory()) > limits.max_memory_bytes:
                raise self._ended(
                    plan,
                    worker,
                    f"it took {held // _MEBIBYTE:,} MiB of memory, more than the "
                    f"{limits.max_memory_bytes // _MEBIBYTE:,} MiB it may have, and was ended",
                    "keep it lazy and join on keys, or raise limits.max_memory_mb in defs.yaml",
                )
            if time.monotonic() > deadline:
                raise self._ended(
                    plan,
                    worker,
                    f"it did not finish within {limits.max_seconds:g} s and was ended",
                    "let polars do the loop, or raise limits.max_seconds in defs.yaml",
                )
        reply = worker.reply()
        if reply is None:
            raise self._died(plan, worker)
        return reply

    def _load(self, plan: DerivePlan, worker: _Child) -> None:
        """Wait until a new process has imported what it needs."""
        deadline = time.monotonic() + _START_SECONDS
        while not (answered := worker.answered()) and time.monotonic() < deadline:
            if self._cancelled():
                raise Cancelled
        if not answered or worker.reply() is None:
            raise TransformError(
                f"{plan.name}: no process could be started for its transform",
                hint="memory may have run out, or the machine has too much to do; it is tried again",
            ) from EOFError()
        worker.loaded = True

    def _died(self, plan: DerivePlan, worker: _Child) -> TransformError:
        """Why a process answers no more."""
        try:
            code = worker.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return self._ended(
                plan,
                worker,
                "it closed the pipe through which its process answers, and was ended",
                "a transform may close only files that it has opened",
            )
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        died = TransformError(
            f"{display(plan.transform)}:1: {plan.name}: its process ended {how}",
            hint="memory may have run out, or native code crashed",
        )
        if code == -signal.SIGKILL:
            # Killed from outside: the same attempt may well succeed.
            died.__cause__ = EOFError()
        return died

    def _ended(self, plan: DerivePlan, worker: _Child, what: str, hint: str) -> TransformError:
        line = worker.line(plan.transform) or _first_line(plan.transform)
        return TransformError(f"{display(plan.transform)}:{line}: {plan.name}: {what}", hint=hint)


def _packed(frame: pl.LazyFrame) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return frame.serialize()


def _first_line(path: Path) -> int:
    lines = path.read_text(errors="replace").splitlines()
    return next((n for n, text in enumerate(lines, 1) if re.match(rf"def {child.FUNCTION}\b", text)), 1)


def shown_key(plan: DerivePlan, table: str, row: Mapping[str, Any], key: Sequence[str]) -> str:
    """A key for a message that many may read: without values of restricted columns."""
    hidden = restricted(plan.product.contract.table(table))

    def shown(name: str) -> str:
        return f"{name}=(restricted)" if name in hidden else f"{name}={row[name]!r}"

    return ", ".join(map(shown, key))


def _reads_restricted(plan: DerivePlan, inputs: Mapping[str, pl.LazyFrame]) -> bool:
    """Whether values of restricted columns, of an input or its own, may be in what a transform says."""
    if any(restricted(table) for table in plan.product.contract.tables):
        return True
    if not any(one.restricted for one in plan.inputs):
        return False
    read = columns_read(plan, {name: frame.collect_schema() for name, frame in inputs.items()})
    return any(read[one.name] & one.restricted for one in plan.inputs)


def _require_keys(plan: DerivePlan, table: str, frame: pl.LazyFrame, shape: Shape) -> None:
    """Refuse a result in which a key is null or occurs twice.

    Raises:
        TransformError: naming some of them.
    """
    key = list(shape.key)
    nulls = pl.any_horizontal(pl.col(name).is_null() for name in key)
    counted = frame.group_by(key).agg(_count=pl.len())
    wrong = counted.filter((pl.col("_count") > 1) | nulls).head(3).collect(engine="streaming")
    if wrong.is_empty():
        return
    named = "; ".join(
        f"{shown_key(plan, table, row, key)} ({row['_count']} rows)" for row in wrong.iter_rows(named=True)
    )
    null = any(row[name] is None for row in wrong.iter_rows(named=True) for name in key)
    raise TransformError(
        f"{display(plan.transform)}:{_first_line(plan.transform)}: {plan.name}: table {table!r} "
        f"{'has null in its key' if null else 'has keys more than once'}: {named}",
        hint=f"one row per {', '.join(key)}: group, or join on a column that is unique",
    )
