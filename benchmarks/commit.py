"""Commits: whether an append stays as fast when the table has ten thousand versions behind it."""

from __future__ import annotations

import statistics

from rich.table import Table

from benchmarks import child
from benchmarks.commits import ROWS
from benchmarks.measure import Sampler, process_tree
from benchmarks.record import Record
from benchmarks.stage import Stage

TITLE = "Durable appends of 100 changes, early and after 10,000 Delta versions"

_VERSIONS = 10_000
_EARLY = 100
_WINDOW = 100


def run(stage: Stage) -> None:
    """Append that often and compare the medians of two windows."""
    count = stage.amount(_VERSIONS, 400)
    marks = sorted({_EARLY, count // 10, count // 4, count // 2, count})
    parameters = {"uri": str(stage.folder / "log"), "version_count": count, "marks": marks}
    peaks: list[int] = []
    with (
        stage.progress("appending", count) as advance,
        child.start("commits", parameters, folder=stage.folder / "work") as contender,
        Sampler(memory={"log": process_tree(contender.pid)}) as sampler,
    ):
        result = contender.result(advance, lambda part: peaks.append(sampler.lap_bytes("log")))
    table = Table(title=f"Appends of {ROWS} changes, medians of the last {_WINDOW}", title_justify="left")
    for heading in ("version", "ms", "CPU ms", "rows/CPU-s", "peak MB since the line before"):
        table.add_column(heading, justify="right")
    for mark, peak in zip(marks, peaks, strict=True):
        window = slice(max(0, mark - _WINDOW), mark)
        cpu_seconds = statistics.median(result["cpu_seconds"][window])
        table.add_row(
            f"{mark:,}",
            f"{statistics.median(result['seconds'][window]) * 1e3:.1f}",
            f"{cpu_seconds * 1e3:.1f}",
            f"{ROWS / cpu_seconds:,.0f}",
            f"{peak / 1e6:,.0f}",
        )
    stage.console.print(table)
    for name, title, unit in (("seconds", "append", "ms"), ("cpu_seconds", "append's CPU", "CPU ms")):
        values: list[float] = result[name]
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
