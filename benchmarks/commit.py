"""Commits: whether an append stays as fast when the table has ten thousand versions behind it."""

from __future__ import annotations

import statistics

from benchmarks import child
from benchmarks.record import Record
from benchmarks.stage import Stage

TITLE = "Durable appends of 100 changes, early and after 10,000 Delta versions"

_VERSIONS = 10_000
_EARLY = 100
_WINDOW = 100


def run(stage: Stage) -> None:
    """Append that often and compare the medians of two windows."""
    count = stage.amount(_VERSIONS, 400)
    with stage.progress("appending", count) as advance:
        result = child.run(
            "commits",
            {"uri": str(stage.folder / "log"), "version_count": count},
            folder=stage.folder / "work",
            on_progress=advance,
        )
    seconds: list[float] = result["seconds"]
    early = seconds[_EARLY - _WINDOW // 2 : _EARLY + _WINDOW // 2]
    late = seconds[-_WINDOW:]
    marks = sorted({_EARLY, count // 10, count // 4, count // 2, count})
    stage.console.print(
        "median of the last 100 appends, ms: "
        + ", ".join(
            f"{statistics.median(seconds[max(0, mark - _WINDOW) : mark]) * 1e3:.1f} at {mark:,}"
            for mark in marks
        )
    )
    stage.record(
        Record(
            "commit_growth",
            f"append at version {count:,}",
            statistics.median(late) * 1e3,
            statistics.median(early) * 1e3,
            f"version {_EARLY}",
            0.5,
            "ms",
            True,
        )
    )
