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
    marks = sorted({_EARLY, count // 10, count // 4, count // 2, count})
    for name, title, unit in (("seconds", "append", "ms"), ("cpu_seconds", "append's CPU", "CPU ms")):
        values: list[float] = result[name]
        medians = (statistics.median(values[max(0, mark - _WINDOW) : mark]) * 1e3 for mark in marks)
        told = ", ".join(f"{value:.1f} at {mark:,}" for mark, value in zip(marks, medians, strict=True))
        stage.console.print(f"{title}, median of the last {_WINDOW}, {unit}: {told}")
        early = values[_EARLY - _WINDOW // 2 : _EARLY + _WINDOW // 2]
        stage.record(
            Record(
                "commit_growth" if name == "seconds" else "commit_growth_cpu",
                f"{title} at version {count:,}",
                statistics.median(values[-_WINDOW:]) * 1e3,
                statistics.median(early) * 1e3,
                f"version {_EARLY}",
                0.5,
                unit,
                True,
            )
        )
