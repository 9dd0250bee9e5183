"""Folding: 10,000 changes of random keys into a product of ten million rows, and larger tails."""

from __future__ import annotations

from itertools import pairwise

from rich.table import Table

from benchmarks import child
from benchmarks.measure import Sampler, process_tree
from benchmarks.record import Record
from benchmarks.stage import Stage

TITLE = "10,000 changes of random keys into a product of 10 million rows"

_ROWS = 10_000_000
_TAILS = (100_000, 1_000_000)
_LIMIT_BYTES = 1e9


def run(stage: Stage) -> None:
    """Build the product in one process; append, read and fold in another, whose memory counts."""
    rows = stage.amount(_ROWS, 500_000)
    place = {"lake": str(stage.folder / "lake")}
    with stage.progress("building the product", rows) as advance:
        building = {**place, "task": "build", "row_count": rows}
        built = child.run("folding", building, folder=stage.folder / "build", on_progress=advance)
    tails = [stage.amount(count, 100_000 * (number + 1)) for number, count in enumerate(_TAILS)]
    measuring = {**place, "task": "measure", "tail_counts": tails, "scratch": str(stage.folder / "small")}
    with (
        stage.progress("appending, reading, folding", 31) as advance,
        child.start("folding", measuring, folder=stage.folder / "measure") as contender,
        Sampler(memory={"fold": process_tree(contender.pid)}) as sampler,
    ):
        result = contender.result(advance)
    stage.console.print(
        f"{result['base_count']:,} rows in {built['file_count']} files, "
        f"first folded in {built['seconds']:.1f} s"
    )
    table = Table(title="Folds", title_justify="left")
    for heading in ("changes in the tail", "seconds", "CPU seconds", "CPU us/change"):
        table.add_column(heading, justify="right")
    for one in result["folds"]:
        table.add_row(
            f"{one['change_count']:,}",
            f"{one['seconds']:.2f}",
            f"{one['cpu_seconds']:.2f}",
            f"{one['cpu_seconds'] / one['change_count'] * 1e6:,.1f}",
        )
    stage.console.print(table)
    stage.record(
        Record(
            "fold_append",
            "append of 10,000 changes",
            result["append_large_seconds"] * 1e3,
            result["append_small_seconds"] * 1e3,
            "a product of one row",
            0.67,
            "ms",
            True,
        )
    )
    stage.record(
        Record(
            "fold_fresh_read",
            "fresh read with a tail of 10,000",
            result["fresh_seconds"] * 1e3,
            result["scan_seconds"] * 1e3,
            "a plain scan of the base",
            0.25,
            "ms",
            True,
        )
    )
    for before, after in pairwise(result["folds"]):
        cost, former = (one["cpu_seconds"] / one["change_count"] * 1e6 for one in (after, before))
        stage.record(
            Record(
                f"fold_tail_{after['change_count']}",
                f"fold per change, tail of {after['change_count']:,}",
                cost,
                former,
                f"a tail of {before['change_count']:,}",
                1,
                "CPU us",
                True,
            )
        )
    stage.record(
        Record(
            "fold_memory",
            "append, read, fold: memory",
            sampler.peak_bytes("fold") / 1e6,
            _LIMIT_BYTES / 1e6,
            "the limit",
            1,
            "MB",
            True,
        )
    )
