"""Landing: a backlog of a million changes through a whole shift, durable and acknowledged.

The clock runs from the start of the shift, connections and catalog look-ups included, to its last
batch with position, version and ledger, every file and folder flushed to the disk. Folding runs
beside it, as it always does.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import psycopg
from rich.table import Table

from benchmarks import child
from benchmarks.measure import Sampler, process_tree
from benchmarks.organisation import write_organisation
from benchmarks.record import Record
from benchmarks.stage import Stage
from benchmarks.workload import create_orders, source_cluster, write_backlog

TITLE = "Landed in the change log from a backlog: positions, versions, ledger, fsync"

_ROWS = 1_000_000
_ROUNDS = 3
_ROWS_PER_SECOND = 100_000.0
_LIMIT_BYTES = 600e6


@dataclass(frozen=True)
class Landing:
    """One shift over one backlog; memory of the shift alone and with the whole source server."""

    row_count: int
    batch_count: int
    fold_count: int
    seconds: float
    cpu_seconds: float
    shift_bytes: int
    total_bytes: int


def run(stage: Stage) -> None:
    """Land a backlog several times and record rate and memory."""
    landings = []
    with source_cluster(stage.folder) as cluster:
        url = create_orders(cluster)
        write_organisation(stage.folder, url)
        parameters = {"folder": str(stage.folder), "idle_seconds": 1.0}
        wanted = stage.amount(_ROWS, 1_000)
        with stage.progress("first shift: snapshot"):
            child.run("shift", parameters, folder=stage.folder / "shift")
        postmaster = cluster.status().pid
        assert postmaster is not None
        for number in range(1, _ROUNDS + 1):
            with stage.progress(f"round {number}: writing the backlog", wanted) as advance:
                written = write_backlog(url, "", wanted, advance).row_count
            with (
                stage.progress(f"round {number}: landing it", written) as advance,
                child.start("shift", parameters, folder=stage.folder / "shift") as contender,
                Sampler(
                    memory={"shift": process_tree(contender.pid), "source": process_tree(postmaster)}
                ) as sampler,
            ):
                result = contender.result(advance)
            if result["row_count"] != written:
                raise child.ContenderError(f"{result['row_count']} of {written} changes landed")
            landings.append(
                Landing(
                    written,
                    result["batch_count"],
                    result["fold_count"],
                    result["seconds"],
                    result["cpu_seconds"],
                    sampler.peak_bytes("shift"),
                    sampler.peak_bytes(),
                )
            )
        with psycopg.connect(url) as connection:
            held = connection.execute("SELECT count(*), sum(amount)::text FROM shop.orders").fetchone()
        with stage.progress("comparing the product with its source"):
            content = child.run("content", {"folder": str(stage.folder)}, folder=stage.folder / "content")
        if held != (content["row_count"], content["amount"]):
            raise child.ContenderError(f"the source holds {held}, the product {content}")
    _report(stage, landings)


def _report(stage: Stage, landings: list[Landing]) -> None:
    table = Table(title="Shifts over a backlog", title_justify="left")
    for heading in (
        "round",
        "rows",
        "batches",
        "folds",
        "seconds",
        "rows/s",
        "rows/CPU-s",
        "peak MB",
        "peak MB with PostgreSQL",
    ):
        table.add_column(heading, justify="right")
    for number, landing in enumerate(landings, 1):
        table.add_row(
            str(number),
            f"{landing.row_count:,}",
            str(landing.batch_count),
            str(landing.fold_count),
            f"{landing.seconds:.2f}",
            f"{landing.row_count / landing.seconds:,.0f}",
            f"{landing.row_count / landing.cpu_seconds:,.0f}",
            f"{landing.shift_bytes / 1e6:,.0f}",
            f"{landing.total_bytes / 1e6:,.0f}",
        )
    stage.console.print(table)
    rate = statistics.median(landing.row_count / landing.seconds for landing in landings)
    stage.record(
        Record("landed_rate", "landed: rows per second", rate, _ROWS_PER_SECOND, "the promise", 1, "rows/s")
    )
    for name, title, peak in (
        ("landed_memory", "landed: memory of the shift", max(one.shift_bytes for one in landings)),
        (
            "landed_memory_total",
            "landed: memory of shift and PostgreSQL",
            max(one.total_bytes for one in landings),
        ),
    ):
        stage.record(Record(name, title, peak / 1e6, _LIMIT_BYTES / 1e6, "the limit", 1, "MB", True))
