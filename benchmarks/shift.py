"""A contender: one shift of the benchmarks' source, as it runs in production."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

from benchmarks.child import Report, asked_to_end, serve
from benchmarks.organisation import DOMAIN, SOURCE, settings_of
from mesh_assets.ingest.shift import Shift
from mesh_assets.product import Mesh
from mesh_assets.shift.report import BatchReport, Budget, FoldReport, Silent, VersionReport


class _Watch(Silent):
    """Reports what is durable, and ends the shift when the harness asks for it."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.row_count = self.version_count = self.fold_count = 0
        self.last_batch = 0.0

    def batch(self, report: BatchReport) -> None:
        self.row_count += report.row_count
        self.last_batch = time.monotonic()
        self._report(progress=self.row_count)

    def version(self, report: VersionReport) -> None:
        self.version_count += 1
        self._report(version=report.row.version)

    def fold(self, report: FoldReport) -> None:
        self.fold_count += 1

    def cancelled(self) -> bool:
        return asked_to_end.is_set()


def work(parameters: dict[str, Any], report: Report) -> dict[str, Any]:
    """Run a shift until it is idle or asked to end; ``seconds`` last until its last batch was durable."""
    mesh = Mesh(settings_of(Path(parameters["folder"])))
    plan = mesh.plan(DOMAIN, SOURCE)
    watch = _Watch(report)
    budget = Budget(max_seconds=3600, idle_seconds=parameters["idle_seconds"])
    began, began_cpu = time.monotonic(), _cpu_seconds()
    result = Shift(plan, budget=budget, observer=watch).run()
    if result.refused:
        raise RuntimeError(f"the shift refused {result.refused}")
    return {
        "row_count": result.row_count,
        "snapshot_row_count": result.snapshot_row_count,
        "batch_count": result.batch_count,
        "version_count": watch.version_count,
        "fold_count": watch.fold_count,
        "seconds": watch.last_batch - began if watch.last_batch else 0.0,
        "whole_seconds": result.seconds,
        "cpu_seconds": _cpu_seconds() - began_cpu,
        "reason": result.reason,
    }


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    serve(work)
