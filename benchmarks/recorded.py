"""A contender: one shift with its lineage, whose CPU time is taken apart, or without any."""

from __future__ import annotations

import gc
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.child import Report, asked_to_end, serve
from benchmarks.organisation import DOMAIN, SOURCE, settings_of
from mesh_assets.ingest import shift
from mesh_assets.ingest.lineage import ShiftLineage
from mesh_assets.ingest.shift import Shift
from mesh_assets.lineage.event import LineageRun
from mesh_assets.lineage.reconcile import close_dead
from mesh_assets.lineage.recorder import Recorder
from mesh_assets.product import Mesh
from mesh_assets.shift.plan import CapturePlan, Target
from mesh_assets.shift.report import BatchReport, Budget, Silent, TableReport, VersionReport


class _Clock:
    """Adds up the CPU time that the process spends while the shift's thread is inside.

    So what Delta Lake and polars do for lineage in threads of their own counts, and what others do at that
    moment, too.
    """

    seconds = 0.0

    def __enter__(self) -> None:
        self._began = time.process_time()

    def __exit__(self, *exception: object) -> None:
        _Clock.seconds += time.process_time() - self._began


class _Timed(ShiftLineage):
    """Counts the CPU time that lineage takes, from where it is made to its end."""

    version_count = 0

    def __init__(self, plan: CapturePlan, run_id: str, log: Callable[[str], None]) -> None:
        with _Clock():
            super().__init__(plan, run_id, log)

    def __enter__(self) -> Self:
        with _Clock():
            return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _Clock():
            super().__exit__(kind, error, trace)

    def appended(self, report: TableReport) -> None:
        with _Clock():
            super().appended(report)

    def snapshot(self, target: Target, row_count: int) -> None:
        with _Clock():
            super().snapshot(target, row_count)

    def version(self, report: VersionReport) -> None:
        _Timed.version_count += 1
        with _Clock():
            super().version(report)

    def flush_if_due(self) -> None:
        with _Clock():
            super().flush_if_due()


class _Off:
    """No lineage at all."""

    tending = None

    def __init__(self, plan: CapturePlan, run_id: str, log: Callable[[str], None]) -> None:
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def appended(self, report: TableReport) -> None:
        return

    def snapshot(self, target: Target, row_count: int) -> None:
        return

    def version(self, report: VersionReport) -> None:
        return

    def flush_if_due(self) -> None:
        return


class _Watch(Silent):
    def __init__(self, report: Report) -> None:
        self._report = report
        self.row_count = 0

    def batch(self, report: BatchReport) -> None:
        self.row_count += report.row_count
        self._report(progress=self.row_count)

    def cancelled(self) -> bool:
        return asked_to_end.is_set()


def work(parameters: dict[str, Any], report: Report) -> dict[str, Any]:
    """Run a shift until it is idle or asked to end."""
    vars(shift)["ShiftLineage"] = _Timed if parameters["lineage"] else _Off
    plan = Mesh(settings_of(Path(parameters["folder"]))).plan(DOMAIN, SOURCE)
    # Checks and folds would only add to the noise: what they cost depends on the table, not on the changes.
    budget = Budget(
        max_seconds=3600,
        idle_seconds=parameters["idle_seconds"],
        fold=None,
        check_seconds=None,
    )
    _warm(Path(parameters["folder"]))
    # As where run workers are forked: without, a collection of all modules falls into some shifts.
    gc.collect()
    gc.freeze()
    began = _cpu_seconds()
    result = Shift(plan, budget=budget, observer=_Watch(report)).run()
    if result.refused:
        raise RuntimeError(f"the shift refused {result.refused}")
    return {
        "row_count": result.row_count,
        "seconds": result.seconds,
        "cpu_seconds": _cpu_seconds() - began,
        "lineage_seconds": _Clock.seconds,
        "version_count": _Timed.version_count,
    }


def _warm(folder: Path) -> None:
    """Use Delta and polars once: whoever comes first would pay for what all of the shift needs."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        uri = f"{scratch}/lineage"
        with Recorder(uri, log=print) as recorder:
            run = LineageRun("benchmark", "warm.capture", "CAPTURE")
            recorder.emit(run.start(), run.complete())
            close_dead(uri, recorder)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    serve(work)
