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
    peaks: dict[str, int] = {}
    with (
        stage.progress("appending, reading, folding", 31) as advance,
        child.start("folding", measuring, folder=stage.folder / "measure") as contender,
        Sampler(memory={"fold": process_tree(contender.pid)}) as sampler,
    ):
        result = contender.result(advance, lambda part: peaks.update({part: sampler.lap_bytes("fold")}))
    stage.console.print(
        f"{result['base_count']:,} rows in {built['file_count']} files, "
        f"first folded in {built['seconds']:.1f} s"
    )
    table = Table(title="Appends, reads and folds; what takes turns has one peak", title_justify="left")
    for heading in ("what", "rows", "seconds", "CPU seconds", "CPU us/row", "rows/CPU-s", "peak MB"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    lines = [
        ("append to it", result["append_large"], "appends"),
        ("append to a product of one row", result["append_small"], "appends"),
        ("fresh read", result["fresh"], "reads"),
        ("plain scan of the base", result["scan"], "reads"),
    ]
    lines += [("fold of a tail", one, f"fold {one['row_count']}") for one in result["folds"]]
    for what, one, part in lines:
        table.add_row(
            what,
            f"{one['row_count']:,}",
            f"{one['seconds']:.3f}",
            f"{one['cpu_seconds']:.3f}",
            f"{one['cpu_seconds'] / one['row_count'] * 1e6:,.2f}",
            f"{one['row_count'] / one['cpu_seconds']:,.0f}",
            f"{peaks[part] / 1e6:,.0f}",
        )
    stage.console.print(table)
    stage.record(
        Record(
            "fold_append",
            "append of 10,000 changes",
            result["append_large"]["seconds"] * 1e3,
            result["append_small"]["seconds"] * 1e3,
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
            result["fresh"]["seconds"] * 1e3,
            result["scan"]["seconds"] * 1e3,
            "a plain scan of the base",
            0.25,
            "ms",
            True,
        )
    )
    for before, after in pairwise(result["folds"]):
        cost, former = (one["cpu_seconds"] / one["row_count"] * 1e6 for one in (after, before))
        stage.record(
            Record(
                f"fold_tail_{after['row_count']}",
                f"fold per change, tail of {after['row_count']:,}",
                cost,
                former,
                f"a tail of {before['row_count']:,}",
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
