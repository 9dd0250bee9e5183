"""Who makes a commit: the run in whose name a thread writes.

A thread names its run once, around everything that it does for it. Each commit it then makes
carries the run in its ``commitInfo`` and is noted here, so that lineage cannot miss one, whichever
layer made it; what a crash keeps from being told can be read from the commit itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

RUN_KEY = "mesh.run"
JOB_KEY = "mesh.job"
PARENT_KEY = "mesh.parent"
"""Names in ``commitInfo``: the run's id, its job as ``namespace/name``, and the id of the run above it."""

Operation = Literal["create", "alter", "append", "rewrite", "compact"]


@dataclass(frozen=True, slots=True)
class Made:
    """One commit.

    Attributes:
        uri: the table's (:attr:`mesh_assets.lake.table.Table.uri`).
        version: the Delta version.
        operation: what it did; ``compact`` changed no row.
        row_count, byte_count, file_count: of the data files it added.
        schema: the table's columns.
    """

    uri: str
    version: int
    operation: Operation
    row_count: int = 0
    byte_count: int = 0
    file_count: int = 0
    schema: pa.Schema | None = None


class Origin:
    """One run as far as commits know of it.

    Args:
        run_id: a UUID.
        job: ``namespace/name`` of its job.
        parent: the run above it; empty if none is known.
    """

    def __init__(self, run_id: str, job: str, parent: str = "") -> None:
        self.run_id = run_id
        self.job = job
        self.parent = parent
        self._lock = threading.Lock()
        self._made: list[Made] = []

    def metadata(self) -> dict[str, str]:
        """What a commit says of it."""
        said = {RUN_KEY: self.run_id, JOB_KEY: self.job}
        return said | {PARENT_KEY: self.parent} if self.parent else said

    def note(self, made: Made) -> None:
        """A commit is durable."""
        with self._lock:
            self._made.append(made)

    @property
    def waiting(self) -> bool:
        """Whether there is something to take."""
        return bool(self._made)

    def take(self) -> list[Made]:
        """The commits made since the last call, in order."""
        with self._lock:
            made, self._made = self._made, []
        return made


_CURRENT: ContextVar[Origin | None] = ContextVar("origin", default=None)


@contextmanager
def made_by(origin: Origin) -> Iterator[Origin]:
    """Let every commit that this thread makes inside be ``origin``'s."""
    token = _CURRENT.set(origin)
    try:
        yield origin
    finally:
        _CURRENT.reset(token)


def note(made: Made) -> None:
    """Tell the run that this thread works for of a durable commit; nobody, if it works for none."""
    if (origin := _CURRENT.get()) is not None:
        origin.note(made)


def signed(metadata: Mapping[str, str] | None) -> dict[str, str] | None:
    """A commit's metadata with the run that this thread works for."""
    origin = _CURRENT.get()
    return (dict(metadata or {}) | (origin.metadata() if origin else {})) or None
