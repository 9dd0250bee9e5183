"""Lineage: what its events and their durable table add to the CPU time of a shift.

Counted is the CPU time of the whole process, with all its threads, while the shift's own thread is in
lineage, commits to the event table included: while it lands backlogs, and while it follows a source that
is written to all the time. Folds and checks run beside it and are left out.

Whole processes with and without lineage are compared as well, in pairs, each in the other order. That
leaves nothing out, and its standard error says how much of it is noise.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from typing import Any

from rich.table import Table

from benchmarks import child
from benchmarks.measure import Sampler, process_tree
from benchmarks.organisation import write_organisation
from benchmarks.record import Record
from benchmarks.stage import Stage
from benchmarks.workload import create_orders, source_cluster, write_backlog

TITLE = "CPU time of a shift with lineage, over that without"

_ROWS = 1_000_000
_ROUNDS = 3
_PAIRS = 12
# A shift that follows a source lasts a quarter of an hour: in one of seconds, start and end weigh too much.
_LIVE_SECONDS = 120.0
_LIVE_ROWS = 500
_LIVE_PAUSE = 0.25
_LIVE_IDLE_SECONDS = 5.0
# Seldom, so that who looks takes nothing from the CPU time that is compared.
_LOOK_SECONDS = 1.0
_GOAL = 1.03


def run(stage: Stage) -> None:
    """Land backlogs with and without lineage, follow a live source, and record what lineage costs."""
    with source_cluster(stage.folder) as cluster:
        url = create_orders(cluster)
        write_organisation(stage.folder, url)
        with stage.progress("first shift: snapshot"):
            _shift(stage, lineage=True)
        drains = [_drain(stage, url, _ROWS, lineage=True) for _ in range(_ROUNDS)]
        with stage.progress("following a live source"):
            live = _follow(stage, url)
        pairs = []
        for number in range(_PAIRS):
            first = number % 2 == 0
            pairs.append({one: _drain(stage, url, _ROWS, lineage=one) for one in (first, not first)})
    _report(stage, drains, live, pairs)


def _drain(stage: Stage, url: str, rows: int, *, lineage: bool) -> dict[str, Any]:
    """Write a backlog, and land it."""
    wanted = stage.amount(rows, 1_000)
    with stage.progress("writing a backlog", wanted) as advance:
        written = write_backlog(url, "", wanted, advance).row_count
    with stage.progress(f"landing it {'with' if lineage else 'without'} lineage"):
        result = _shift(stage, lineage=lineage)
    if result["row_count"] != written:
        raise child.ContenderError(f"{result['row_count']} of {written} changes landed")
    return result


def _shift(stage: Stage, *, lineage: bool, idle_seconds: float = 1.0) -> dict[str, Any]:
    parameters = {"folder": str(stage.folder), "idle_seconds": idle_seconds, "lineage": lineage}
    with (
        child.start("recorded", parameters, folder=stage.folder / "shift") as contender,
        Sampler(memory={"shift": process_tree(contender.pid)}, memory_seconds=_LOOK_SECONDS) as sampler,
    ):
        result = contender.result()
    return {**result, "peak_bytes": sampler.peak_bytes("shift")}


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


def _report(
    stage: Stage,
    drains: list[dict[str, Any]],
    live: dict[str, Any],
    pairs: list[dict[bool, dict[str, Any]]],
) -> None:
    table = Table(title="Shifts", title_justify="left")
    for heading in (
        "what",
        "rows",
        "versions",
        "CPU s",
        "rows/CPU-s",
        "peak MB",
        "of the CPU in lineage",
        "lineage ms per version",
    ):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    shifts = [*(("backlog, with", one) for one in drains), ("live, with", live)]
    for pair in pairs:
        shifts += [("backlog, with", pair[True]), ("backlog, without", pair[False])]
    for what, one in shifts:
        share = one["lineage_seconds"] / one["cpu_seconds"]
        per_version = 1000 * one["lineage_seconds"] / max(1, one["version_count"])
        without = what.endswith("without")
        table.add_row(
            what,
            f"{one['row_count']:,}",
            "" if without else str(one["version_count"]),
            f"{one['cpu_seconds']:.2f}",
            f"{one['row_count'] / one['cpu_seconds']:,.0f}",
            f"{one['peak_bytes'] / 1e6:,.0f}",
            "" if without else f"{share:.1%}",
            "" if without else f"{per_version:.1f}",
        )
    stage.console.print(table)
    drain = sorted(drains, key=lambda one: one["lineage_seconds"] / one["cpu_seconds"])[_ROUNDS // 2]
    for name, title, one in (
        ("lineage_backlog", "lineage: CPU of landing a backlog", drain),
        ("lineage_live", "lineage: CPU of following a source", live),
    ):
        bare = one["cpu_seconds"] - one["lineage_seconds"]
        stage.record(
            Record(name, title, one["cpu_seconds"], bare, "without lineage", 1 / _GOAL, "CPU s", True)
        )
    added = [pair[True]["cpu_seconds"] - pair[False]["cpu_seconds"] for pair in pairs]
    bare = statistics.mean(pair[False]["cpu_seconds"] for pair in pairs)
    mean, error = statistics.mean(added), statistics.stdev(added) / math.sqrt(len(added))
    stage.console.print(
        f"whole processes: lineage adds {mean / bare:.1%}, standard error {error / bare:.1%} ({len(pairs)} "
        f"pairs, from {min(added) / bare:.1%} to {max(added) / bare:.1%}, median "
        f"{statistics.median(added) / bare:.1%})"
    )
    stage.record(
        Record(
            "lineage_process",
            "lineage: CPU of a whole process",
            bare + mean,
            bare,
            "without lineage",
            1 / _GOAL,
            "CPU s",
            True,
            spread=error,
        )
    )
