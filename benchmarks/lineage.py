"""Lineage: what its events and their durable table add to the CPU time of a shift.

Shifts with and without lineage land equal backlogs in turn, and one with lineage follows a source
that is written to all the time. What is held against the goal is the CPU time that the shift's
thread spends in lineage, commits to the event table included: the difference of two whole shifts
says the same, but less exactly.
"""

from __future__ import annotations

import statistics
import threading
import time
from typing import Any

from rich.table import Table

from benchmarks import child
from benchmarks.organisation import write_organisation
from benchmarks.record import Record
from benchmarks.stage import Stage
from benchmarks.workload import create_orders, source_cluster, write_backlog

TITLE = "CPU time of a shift with lineage, over that without"

_ROWS = 1_000_000
_ROUNDS = 3
_LIVE_SECONDS = 30.0
_LIVE_ROWS = 500
_LIVE_PAUSE = 0.25
_LIVE_IDLE_SECONDS = 5.0
_GOAL = 1.03


def run(stage: Stage) -> None:
    """Land backlogs with and without lineage, follow a live source, and record what lineage costs."""
    with source_cluster(stage.folder) as cluster:
        url = create_orders(cluster)
        write_organisation(stage.folder, url)
        with stage.progress("first shift: snapshot"):
            _shift(stage, lineage=True)
        drains: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for number in range(1, _ROUNDS + 1):
            for lineage in (True, False):
                wanted = stage.amount(_ROWS, 1_000)
                name = "with" if lineage else "without"
                with stage.progress(f"round {number}: writing the backlog", wanted) as advance:
                    written = write_backlog(url, "", wanted, advance).row_count
                with stage.progress(f"round {number}: landing it {name} lineage"):
                    result = _shift(stage, lineage=lineage)
                if result["row_count"] != written:
                    raise child.ContenderError(f"{result['row_count']} of {written} changes landed")
                drains[lineage].append(result)
        with stage.progress("following a live source"):
            live = _follow(stage, url)
    _report(stage, drains, live)


def _shift(stage: Stage, *, lineage: bool, idle_seconds: float = 1.0) -> dict[str, Any]:
    parameters = {"folder": str(stage.folder), "idle_seconds": idle_seconds, "lineage": lineage}
    return child.run("recorded", parameters, folder=stage.folder / "shift")


def _follow(stage: Stage, url: str) -> dict[str, Any]:
    seconds = max(20.0, _LIVE_SECONDS * stage.scale)
    writing = threading.Event()

    def write() -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            write_backlog(url, "", _LIVE_ROWS)
            writing.wait(_LIVE_PAUSE)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        return _shift(stage, lineage=True, idle_seconds=_LIVE_IDLE_SECONDS)
    finally:
        writer.join()


def _report(stage: Stage, drains: dict[bool, list[dict[str, Any]]], live: dict[str, Any]) -> None:
    table = Table(title="Shifts", title_justify="left")
    for heading in ("what", "rows", "versions", "CPU s", "of it lineage", "lineage ms per version"):
        table.add_column(heading, justify="right")
    shifts = [("backlog, with", one) for one in drains[True]]
    shifts += [("backlog, without", one) for one in drains[False]]
    for what, one in [*shifts, ("live, with", live)]:
        share = one["lineage_seconds"] / one["cpu_seconds"]
        per_version = 1000 * one["lineage_seconds"] / max(1, one["version_count"])
        without = what.endswith("without")
        table.add_row(
            what,
            f"{one['row_count']:,}",
            "" if without else str(one["version_count"]),
            f"{one['cpu_seconds']:.2f}",
            "" if without else f"{share:.1%}",
            "" if without else f"{per_version:.1f}",
        )
    stage.console.print(table)
    with_, without = (statistics.median(one["cpu_seconds"] for one in drains[on]) for on in (True, False))
    stage.console.print(f"backlog: {with_:.2f} s of CPU with lineage, {without:.2f} s without (medians)")
    drain = sorted(drains[True], key=lambda one: one["lineage_seconds"] / one["cpu_seconds"])[_ROUNDS // 2]
    for name, title, one in (
        ("lineage_backlog", "lineage: CPU of landing a backlog", drain),
        ("lineage_live", "lineage: CPU of following a source", live),
    ):
        bare = one["cpu_seconds"] - one["lineage_seconds"]
        stage.record(
            Record(name, title, one["cpu_seconds"], bare, "without lineage", 1 / _GOAL, "CPU s", True)
        )
