"""Ten expectations over ten million orders: one pass of ours against Great Expectations over pandas.

Each runs in a process of its own. Ours reads the file while it validates; Great Expectations' time is
that of validating alone, with the file in memory already, so the comparison favours it.
"""

from __future__ import annotations

import math
from typing import Any

from rich.table import Table

from benchmarks import child
from benchmarks.measure import Sampler, process_tree
from benchmarks.record import Record
from benchmarks.stage import Stage
from benchmarks.validator import EXPECTATIONS

TITLE = "ten expectations over ten million rows"

_ROWS = 10_000_000
_LEAST_ROWS = 10_000
_REPEATS = 3
_SPEED_GOAL = 5
_MEMORY_GOAL = 2


def run(stage: Stage) -> None:
    """Make the table, validate it twice, compare results, time and memory."""
    count = stage.amount(_ROWS, _LEAST_ROWS)
    file = str(stage.folder / "orders.parquet")
    with stage.progress("making the table", count) as advance:
        child.run(
            "validator",
            {"task": "make", "file": file, "row_count": count},
            folder=stage.folder / "make",
            on_progress=advance,
        )
    ours, our_bytes = _validated(stage, {"task": "ours", "file": file, "repeats": _REPEATS})
    theirs, their_bytes = _validated(stage, {"task": "theirs", "file": file})
    for (type, _), one, other in zip(EXPECTATIONS, ours["results"], theirs["results"], strict=True):
        if not _same(one, other):
            raise child.ContenderError(f"{type}: ours gives {one}, Great Expectations {other}")
    table = Table(
        title=f"{len(EXPECTATIONS)} expectations over {count:,} rows: equal results", title_justify="left"
    )
    for heading in ("what", "seconds", "to read before", "CPU seconds", "rows/CPU-s", "peak MB"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for what, one, peak in (
        ("mesh, with reading", ours, our_bytes),
        ("Great Expectations, pandas", theirs, their_bytes),
    ):
        table.add_row(
            what,
            f"{one['seconds']:.2f}",
            f"{one['load_seconds']:.2f}" if "load_seconds" in one else "",
            f"{one['cpu_seconds']:.2f}",
            f"{count / one['cpu_seconds']:,.0f}",
            f"{peak / 1e6:,.0f}",
        )
    stage.console.print(table)
    stage.record(
        Record(
            "expectations_speed",
            f"expectations: {len(EXPECTATIONS)} over {count:,} rows",
            ours["seconds"],
            theirs["seconds"],
            "Great Expectations, pandas",
            _SPEED_GOAL,
            "s",
            True,
        )
    )
    stage.record(
        Record(
            "expectations_memory",
            "expectations: peak memory",
            our_bytes / 1e6,
            their_bytes / 1e6,
            "Great Expectations, pandas",
            _MEMORY_GOAL,
            "MB",
            True,
        )
    )


def _validated(stage: Stage, parameters: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """A contender's result and the peak memory of its process."""
    task = parameters["task"]
    with (
        stage.progress(f"validating: {task}"),
        child.start("validator", parameters, folder=stage.folder / task) as contender,
        Sampler(memory={task: process_tree(contender.pid)}) as sampler,
    ):
        result = contender.result()
    return result, sampler.peak_bytes(task)


def _same(one: Any, other: Any) -> bool:
    """Equal, but for the rounding of sums."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-9)
    return bool(one == other)
