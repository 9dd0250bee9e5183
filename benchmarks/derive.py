"""Derived products: 10,000 changes into inputs of ten million rows, held against a whole recomputation."""

from __future__ import annotations

from rich.table import Table

from benchmarks import child
from benchmarks.measure import Sampler, process_tree
from benchmarks.record import Record
from benchmarks.stage import Stage

TITLE = "10,000 changes into two inputs of 10 million rows, of which a product is derived"

_ROWS = 10_000_000
_STEPS = 13


def run(stage: Stage) -> None:
    """Build inputs and product in one process; change and refresh in another."""
    rows = stage.amount(_ROWS, 200_000)
    place = {"folder": str(stage.folder / "mesh"), "row_count": rows}
    with stage.progress("building inputs and product", rows) as advance:
        building = {**place, "task": "build"}
        built = child.run("refreshing", building, folder=stage.folder / "build", on_progress=advance)
    stage.console.print(f"first made of {rows:,} + {rows:,} rows in {built['seconds']:.1f} s")
    peaks: dict[str, int] = {}
    with (
        stage.progress("changing and refreshing", _STEPS) as advance,
        child.start("refreshing", {**place, "task": "measure"}, folder=stage.folder / "measure") as contender,
        Sampler(memory={"derive": process_tree(contender.pid)}) as sampler,
    ):
        result = contender.result(advance, lambda part: peaks.update({part: sampler.lap_bytes("derive")}))
    table = Table(title="Refreshes, transform's process included", title_justify="left")
    for heading in ("keys", "rows", "seconds", "of it transform", "CPU seconds", "rows/CPU-s", "peak MB"):
        table.add_column(heading, justify="left" if heading == "keys" else "right")
    for name, title, row_count in (
        ("random", "at random", result["change_count"]),
        ("clustered", "side by side", result["change_count"]),
        # It reads all rows of both inputs.
        ("whole", "all, a whole recomputation", 2 * rows),
    ):
        table.add_row(
            title,
            f"{row_count:,}",
            f"{result[f'{name}_seconds']:.2f}",
            f"{result[f'{name}_transform_seconds']:.2f}",
            f"{result[f'{name}_cpu_seconds']:.2f}",
            f"{row_count / result[f'{name}_cpu_seconds']:,.0f}",
            f"{peaks[name] / 1e6:,.0f}",
        )
    stage.console.print(table)
    for name, title, goal in (("random", "keys at random", 4), ("clustered", "keys side by side", 20)):
        stage.record(
            Record(
                f"derive_{name}",
                f"refresh after {result['change_count']:,} changes, {title}",
                result[f"{name}_seconds"],
                result["whole_seconds"],
                "a whole recomputation",
                goal,
                "s",
                True,
            )
        )
