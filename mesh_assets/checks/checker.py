"""Checks beside a shift, so that landing never waits for them."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mesh_assets.checks.evaluation import check_product
from mesh_assets.checks.log import FAULTS, CheckLog, rules_hash
from mesh_assets.checks.statistics import refresh
from mesh_assets.contract.discovery import Product
from mesh_assets.errors import StorageFull
from mesh_assets.lake.version import VersionLog, VersionRow
from mesh_assets.names import Layout, ProductName
from mesh_assets.quality.child import given_up
from mesh_assets.quality.rule import Ruleset
from mesh_assets.shift.report import CheckReport, VersionReport

if TYPE_CHECKING:
    from mesh_assets.shift.lineage import Tending

_REST_TIMES = 20.0
"""Checks rest for so many times as long as they took."""


class Checker:
    """Runs checks beside a shift, in a thread of its own, at a bounded rate, and refreshes statistics.

    Args:
        layout: of the lake.
        definitions: the products that the shift writes.
        rulesets: their rules.
        run_id: of the shift.
        every_seconds: least time between two evaluations of a product; None: nothing is evaluated.
        tending: the lineage of the shift.

    Attributes:
        messages: what could not be evaluated.
    """

    def __init__(
        self,
        layout: Layout,
        definitions: Mapping[ProductName, Product],
        rulesets: Mapping[ProductName, Ruleset],
        run_id: str,
        *,
        every_seconds: float | None,
        tending: Tending | None = None,
    ) -> None:
        self._layout = layout
        self._tending = tending
        self._definitions = definitions
        self._rulesets = dict(rulesets)
        self._run_id = run_id
        self._every_seconds = every_seconds
        self._ending = Event()
        self._resting = False
        self._pool = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix="checker",
            initializer=given_up.set,
            initargs=(self._ending.is_set,),
        )
        self._jobs: dict[ProductName, Future[None]] = {}
        self._latest: dict[ProductName, VersionRow] = {}
        self._known: dict[ProductName, tuple[int, str, str]] = {}
        self._due: dict[ProductName, float] = {}
        self._reports: queue.SimpleQueue[CheckReport] = queue.SimpleQueue()
        self.messages: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What is still evaluated is evaluated again by the next shift.
        self._ending.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def cut(self, report: VersionReport) -> None:
        """A product version is durable: it may be evaluated."""
        self._latest[report.name] = report.row
        now = time.monotonic()
        # The first version of a shift waits too: a snapshot or a backlog comes first.
        self._due.setdefault(report.name, now + (self._every_seconds or 0.0))
        if now >= self._due[report.name]:
            self._submit(report.name)

    def reports(self) -> Iterator[CheckReport]:
        """Evaluations since the last call; begins those that are due."""
        now = time.monotonic()
        for name, due in list(self._due.items()):
            if now >= due and not self._evaluated(name):
                self._submit(name)
        for name in list(self._jobs):
            if self._jobs[name].done():
                self._settle(name)
        while not self._reports.empty():
            yield self._reports.get()

    def rest(self) -> bool:
        """Begin nothing any more; True once nothing is under way."""
        self._resting = True
        for job in self._jobs.values():
            job.cancel()
        return all(job.done() for job in self._jobs.values())

    def conclude(self) -> bool:
        """Evaluate what changed, or whose rules did, since it was last evaluated; True once that is done.

        Does not wait: to be called again until it is, or until there is something to land.
        """
        if self._every_seconds is None:
            return True
        for name in self._rulesets:
            job = self._jobs.get(name)
            if job is not None and not job.done():
                continue
            self._settle(name)
            if name not in self._latest and (row := VersionLog(self._layout.versions(name)).latest()):
                self._latest[name] = row
            if not self._evaluated(name):
                self._submit(name)
        return not self._jobs

    def _evaluated(self, name: ProductName) -> bool:
        """Whether the newest version was evaluated under the contract as it is."""
        row = self._latest.get(name)
        if row is None or name not in self._rulesets:
            return True
        if name not in self._known:
            held = CheckLog(self._layout, name).latest()
            one = held[0] if held else None
            self._known[name] = (one.version, one.rules_hash, one.contract_hash) if one else (0, "", "")
        return self._known[name] == self._state(name, row)

    def _state(self, name: ProductName, row: VersionRow) -> tuple[int, str, str]:
        """What an evaluation is of: a version, by rules, and by the contract that says what may be told."""
        return row.version, rules_hash(self._rulesets[name]), self._definitions[name].contract.hash

    def _submit(self, name: ProductName) -> None:
        if self._every_seconds is None or self._resting or name not in self._rulesets:
            return
        job = self._jobs.get(name)
        if job is None or job.done():
            self._settle(name)
            self._jobs[name] = self._pool.submit(self._run, name)

    def _settle(self, name: ProductName) -> None:
        job = self._jobs.pop(name, None)
        if job is None or job.cancelled():
            return
        try:
            job.result()
        except StorageFull:
            raise
        except FAULTS as error:
            # Capture does not depend on it.
            self.messages.append(f"{name}: its quality rules could not be evaluated: {error}")

    def _run(self, name: ProductName) -> None:
        started_at, started, row = datetime.now(UTC), time.monotonic(), self._latest[name]
        product = self._definitions[name]
        try:
            outcomes = check_product(
                self._layout,
                product,
                row,
                run_id=self._run_id,
                ruleset=self._rulesets[name],
                tending=self._tending,
            )
            refresh(self._layout, product, row, tending=self._tending)
        finally:
            seconds = time.monotonic() - started
            self._known[name] = self._state(name, row)
            self._due[name] = time.monotonic() + max(self._every_seconds or 0.0, _REST_TIMES * seconds)
        if outcomes:
            told = [one.shown(product.contract) for one in outcomes]
            self._reports.put(CheckReport(name, row.version, told, started_at, seconds))
