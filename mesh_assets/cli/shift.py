"""``mesh shift``: one capture shift in this process, without Dagster."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mesh_assets.cli.terminal import cell, console, emit, note, table
from mesh_assets.errors import UnknownName
from mesh_assets.ingest.shift import Shift
from mesh_assets.product import Mesh
from mesh_assets.shift.report import BatchReport, Budget, FoldReport, ShiftResult, Silent, VersionReport

_INTERRUPTED = 130


class Watcher(Silent):
    """Tells on standard error what the shift does, and passes on Ctrl-C."""

    def __init__(self) -> None:
        self._cancelled = False

    def cancel(self) -> None:
        """Ask the shift to end after its batch."""
        self._cancelled = True

    def message(self, text: str) -> None:
        """Print it."""
        note(text, "")

    def batch(self, report: BatchReport) -> None:
        """Print what landed; the commit of what landed before is nothing to tell."""
        if not report.row_count:
            return
        counts = ", ".join(f"{one.name}.{one.table} {one.row_count:,}" for one in report.tables)
        note(f"batch of {report.row_count:,} changes in {report.seconds:.2f} s: {counts or 'none of ours'}")

    def version(self, report: VersionReport) -> None:
        """Print its number."""
        note(f"{report.name} version {report.row.version}")

    def fold(self, report: FoldReport) -> None:
        """Print what was folded."""
        counts = f"{report.tail_row_count:,} changes, {report.row_count:,} rows"
        note(f"{report.name}.{report.table} folded: {counts}")

    def cancelled(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._cancelled


def run(mesh: Mesh, domain: str, source: str | None, budget: Budget, *, as_json: bool) -> int:
    """Drain one source; returns 1 if a table could not take its changes."""
    plan = mesh.plan(domain, source or _only_source(mesh, domain))
    watcher = Watcher()
    with _interrupts(watcher):
        result = Shift(plan, budget=budget, observer=watcher).run()
    if as_json:
        emit(
            {
                "source": f"{plan.source.domain}.{plan.source.name}",
                "reason": result.reason,
                "changes": result.row_count,
                "snapshot_rows": result.snapshot_row_count,
                "transactions": result.transaction_count,
                "batches": result.batch_count,
                "parked_changes": result.parked_count,
                "refused": result.refused,
                "seconds": round(result.seconds, 3),
            }
        )
    else:
        _render(result)
    if result.reason == "cancelled":
        return _INTERRUPTED
    return 1 if result.refused else 0


def _only_source(mesh: Mesh, domain: str) -> str:
    sources = [name for owner, name in mesh.discovery.sources() if owner == domain]
    if len(sources) == 1:
        return sources[0]
    domains = sorted({owner for owner, _ in mesh.discovery.sources()})
    if not sources:
        raise UnknownName.of("domain with a source", domain, domains)
    raise UnknownName(f"{domain} has several sources", available=sources, hint="choose one with --source")


@contextmanager
def _interrupts(watcher: Watcher) -> Iterator[None]:
    """Ctrl-C ends the shift between two batches; pressed again, at once (nothing is lost either way)."""

    def interrupted(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, previous)
        # Past Python's streams: what the signal interrupts may be in the middle of writing to them.
        os.write(2, b"ending after this batch; Ctrl-C again ends at once\n")
        watcher.cancel()

    previous = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _render(result: ShiftResult) -> None:
    out = console()
    made = table(
        "table", "changes", "last seq", "Delta version", right=("changes", "last seq", "Delta version")
    )
    for (product, one), report in sorted(result.tables.items()):
        made.add_row(
            cell(f"{product}.{one}"),
            cell(f"{sum(report.op_count.values()):,}"),
            cell(report.last_seq),
            cell(report.delta_version),
        )
    if result.tables:
        out.print(made)
    out.print(
        f"ended ({result.reason}) after {result.seconds:.1f} s: {result.snapshot_row_count:,} rows read, "
        f"{result.row_count:,} changes in {result.transaction_count:,} transactions, "
        f"{result.parked_count:,} changes parked"
    )
    for name, reason in result.refused.items():
        out.print(cell(f"{name} is parked: {reason}", "red"), soft_wrap=True)
