"""Folds and log upkeep beside a drain, so that appending never waits for them.

One background thread per shift, with Delta handles of its own. It folds a table when that pays
(:func:`mesh_assets.lake.current.should_fold`), compacts and archives logs, and hands its reports
to the shift's own thread. A table that it cannot tend is named and left alone: capture goes on.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import polars as pl
import pyarrow as pa
from deltalake.exceptions import DeltaError

from mesh_assets.errors import CommitConflict, MeshError, StorageFull
from mesh_assets.lake.current import Current, FoldCase, FoldPolicy, should_fold
from mesh_assets.lake.fold import fold
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.table import Table
from mesh_assets.lake.upkeep import Upkeep, maintain
from mesh_assets.names import ProductName
from mesh_assets.shift.lineage import FoldRecording, Tending
from mesh_assets.shift.memory import release
from mesh_assets.shift.plan import Tables, Target
from mesh_assets.shift.report import FoldReport, VersionReport

_FAULTS = (MeshError, DeltaError, OSError, pl.exceptions.PolarsError, pa.ArrowException)
_PATIENCE_SECONDS = 60.0
"""How long folding gives way to a backlog."""
_CORES = 1.0
"""Cores whose time counts for the fold budget."""


@dataclass
class _Measured:
    """What the last fold of a table told of its cost."""

    seconds_per_byte: float | None = None
    ended: float = 0.0


class Housekeeper:
    """Tends the tables of one source.

    Args:
        plan: whose tables.
        policy: when folds pay; None: nothing is folded or tended (parity's short shifts).
        upkeep: when and how tables are tended.
        tending: told of every fold and piece of upkeep, for lineage.
    """

    def __init__(
        self,
        plan: Tables,
        policy: FoldPolicy | None,
        upkeep: Upkeep,
        tending: Tending | None = None,
    ) -> None:
        self._tending = tending
        self._layout = plan.layout
        self._targets = {(target.name, target.table): target for target in plan.targets}
        self._policy = policy
        self._upkeep = upkeep
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="housekeeper")
        self._jobs: dict[tuple[ProductName, str], Future[None]] = {}
        self._waiting: dict[tuple[ProductName, str], datetime] = {}
        self._cuts: dict[tuple[ProductName, str], tuple[Target, int, datetime]] = {}
        self._measured: dict[tuple[ProductName, str], _Measured] = {}
        self._faulty: set[tuple[ProductName, str]] = set()
        self.messages: list[str] = []
        self._maintained: dict[str, int] = {}
        self._looked: dict[str, float] = {}
        self._tended: dict[tuple[ProductName, str], float] = {}
        self._shared = plan.shared
        self._concluded: dict[tuple[ProductName, str], int] = {}
        self._resting = False
        self._reports: queue.SimpleQueue[FoldReport] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def cut(self, report: VersionReport, *, later: bool = False) -> None:
        """A product version is durable: its tables may be folded up to it.

        ``later`` says that a backlog comes first.
        """
        if self._policy is None:
            return
        for table, seq in report.row.tables.items():
            key = (report.name, table)
            target = self._targets[key].at(self._layout, report.row.generation(table))
            self._cuts[key] = (target, seq, report.row.created_at)
            self._waiting.setdefault(key, report.row.created_at)
            job = self._jobs.get(key)
            if self._resting or (job is not None and not job.done()):
                continue
            self._settle(key)
            if key in self._faulty:
                continue
            now = time.monotonic()
            patience = _PATIENCE_SECONDS if later else self._upkeep.tend_seconds
            if now - self._tended.setdefault(key, now if later else 0.0) >= patience:
                self._tended[key] = now
                self._jobs[key] = self._pool.submit(self._tend, key)

    def reports(self) -> Iterator[FoldReport]:
        """Folds since the last call; raises what ended a job."""
        for key in list(self._jobs):
            if self._jobs[key].done():
                self._settle(key)
        while not self._reports.empty():
            yield self._reports.get()

    def rest(self) -> bool:
        """Begin nothing any more; True once nothing is under way."""
        self._resting = True
        for job in self._jobs.values():
            job.cancel()
        return all(job.done() for job in self._jobs.values())

    def conclude(self) -> bool:
        """Tend every table once more, as no more changes are worth waiting for; True once that is done.

        Does not wait: to be called again until it is, or until there is something to land.
        """
        for key, (_, seq, _) in self._cuts.items():
            job = self._jobs.get(key)
            if job is not None and not job.done():
                continue
            self._settle(key)
            if key not in self._faulty and self._concluded.get(key) != seq:
                self._concluded[key] = seq
                self._jobs[key] = self._pool.submit(self._tend, key, last=True)
        return not self._jobs

    def _settle(self, key: tuple[ProductName, str]) -> None:
        job = self._jobs.pop(key, None)
        if job is None or job.cancelled():
            return
        try:
            job.result()
        except StorageFull:
            raise
        except _FAULTS as error:
            # Capture does not depend on it: the table is left alone until the next shift.
            self._faulty.add(key)
            self.messages.append(f"{key[0]}.{key[1]} cannot be folded or tended: {error}")

    # -- in the background --------------------------------------------------------------------

    def _tend(self, key: tuple[ProductName, str], *, last: bool = False) -> None:
        target, seq, cut_at = self._cuts[key]
        policy = replace(self._policy, min_age_seconds=0.0) if last and self._policy else self._policy
        try:
            log = ChangeLog.open(target.changes_uri)
            with self._tending.fold(target) if self._tending else nullcontext() as lineage:
                self._fold(target, log, seq, cut_at, policy, lineage)
            self._maintain(target, target.changes_uri)
            self._maintain(target, target.current_uri, compacting=False)
            for uri in self._shared:
                self._maintain(target, uri)
            for earlier in (target.at(self._layout, number) for number in range(1, target.generation)):
                # Nothing is appended there any more, so once in a shift is enough.
                if earlier.changes_uri not in self._looked:
                    self._maintain(earlier, earlier.changes_uri)
                    self._maintain(earlier, earlier.current_uri, compacting=False)
        except CommitConflict:
            # Another shift's housekeeper was first; what it left is as good.
            return

    def _maintain(self, target: Target, uri: str, *, compacting: bool = True) -> None:
        """Compact, archive and vacuum a table that has grown by enough commits."""
        now = time.monotonic()
        if now - self._looked.get(uri, 0.0) < self._upkeep.look_seconds or not Table.exists(uri):
            return
        self._looked[uri] = now
        table = Table.open(uri)
        if table.version - self._maintained.get(uri, 0) >= self._upkeep.commit_count:
            with self._tending.upkeep(target, uri) if self._tending else nullcontext():
                maintain(table, self._upkeep, compacting=compacting)
            self._maintained[uri] = table.version

    def _fold(
        self,
        target: Target,
        log: ChangeLog,
        seq: int,
        cut_at: datetime,
        policy: FoldPolicy | None,
        lineage: FoldRecording | None,
    ) -> None:
        key = (target.name, target.table)
        current = Current.open_or_create(target.current_uri, log.row_schema, log.key)
        tail_count = seq - max(current.folded, log.after)
        if tail_count <= 0:
            self._waiting.pop(key, None)
            return
        measured = self._measured.setdefault(key, _Measured())
        case = FoldCase(
            tail_count=tail_count,
            base_count=current.row_count,
            touched_bytes=current.touched_bytes(log, seq),
            seconds_per_byte=measured.seconds_per_byte,
            age_seconds=(datetime.now(UTC) - self._waiting.get(key, cut_at)).total_seconds(),
            cpu_seconds=(time.monotonic() - measured.ended) * _CORES if measured.ended else 60.0,
        )
        if should_fold(case, policy) is None:
            return
        started_at = datetime.now(UTC)
        release()
        done = fold(log, current, seq)
        measured.ended = time.monotonic()
        measured.seconds_per_byte = done.seconds_per_byte or measured.seconds_per_byte
        # Cuts after this one wait since it at the earliest.
        self._waiting[key] = cut_at
        if done.outcome != "folded":
            return
        if lineage is not None:
            lineage.folded(log, current, done)
        self._reports.put(
            FoldReport(
                target.name,
                target.table,
                seq,
                done.tail_row_count,
                done.row_count,
                done.delta_version,
                started_at,
                done.seconds,
            )
        )
