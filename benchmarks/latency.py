"""Latency inside a shift: from a commit at the source to a fresh read, at 1,000 transactions a second.

A commit counts as visible when the first read that shows it has ended, so the reader's own time
and the pause between its reads are part of every figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks import child
from benchmarks.follower import Follower
from benchmarks.measure import Sampler, process_tree
from benchmarks.organisation import write_organisation
from benchmarks.record import Record
from benchmarks.stage import Stage
from benchmarks.workload import create_orders, source_cluster
from benchmarks.writer import LANE_WIDTH

TITLE = "From a commit at the source to a fresh read, inside a shift"

_PER_SECOND = 1_000
_LANES = 8
_SECONDS = 40
_WARM_SECONDS = 5.0
_PAUSE_SECONDS = 0.2
_LIMIT_SECONDS = 2.0
_CATCH_UP_SECONDS = 30.0
# To look at the memory of a whole PostgreSQL takes some time of the processor that commits take, too.
_LOOK_SECONDS = 1.0


def run(stage: Stage) -> None:
    """Write at the full rate while a shift and a reader run; record the distribution."""
    seconds = stage.amount(_SECONDS, 10)
    with source_cluster(stage.folder) as cluster:
        url = create_orders(cluster)
        write_organisation(stage.folder, url)
        place = {"folder": str(stage.folder)}
        with stage.progress("first shift: snapshot"):
            child.run("shift", {**place, "idle_seconds": 1.0}, folder=stage.folder / "shift")
        writing = {"url": url, "per_second": _PER_SECOND, "seconds": seconds, "lane_count": _LANES}
        watching = {**place, "pause_seconds": _PAUSE_SECONDS}
        postmaster = cluster.status().pid
        assert postmaster is not None
        with (
            child.start("shift", {**place, "idle_seconds": 3600.0}, folder=stage.folder / "shift") as shift,
            child.start("watcher", watching, folder=stage.folder / "watcher") as watcher,
            Sampler(
                memory={
                    "shift": process_tree(shift.pid),
                    "reader": process_tree(watcher.pid),
                    "source": process_tree(postmaster),
                },
                memory_seconds=_LOOK_SECONDS,
            ) as sampler,
        ):
            landed = Follower(shift)
            seen = Follower(watcher)
            with stage.progress("committing", seconds * _PER_SECOND) as advance:
                written = child.run("writer", writing, folder=stage.folder / "writer", on_progress=advance)
            lanes: list[list[float]] = written["lanes"]
            with stage.progress("catching up"):
                seen.reach(sum(map(len, lanes)), _CATCH_UP_SECONDS)
            for one in (watcher, shift):
                one.tell("end")
            watched = seen.result()
            result = landed.result()
    _show_costs(stage, result, watched, sampler)
    _report(stage, lanes, watched["reads"], result, seconds)


def delays(
    lanes: Sequence[Sequence[float]],
    reads: Sequence[tuple[float, dict[str, int], float]],
    warm_seconds: float,
) -> tuple[np.ndarray, int]:
    """Seconds from each commit after the warm-up to the end of the first read that shows it.

    Returns them with the number of commits that no read shows; those count as seen after the last.
    """
    parts, unseen = [], 0
    begin = min(lane[0] for lane in lanes if lane) + warm_seconds
    ended = np.array([read[0] for read in reads])
    for number, lane in enumerate(lanes):
        committed = np.array(lane)
        first = (number + 1) * LANE_WIDTH
        shown = np.array([read[1].get(str(number), first - 1) - first for read in reads])
        read_index = np.searchsorted(shown, np.arange(len(committed)))
        unseen += int((read_index == len(reads)).sum())
        delay = ended[np.minimum(read_index, len(reads) - 1)] - committed
        parts.append(delay[committed >= begin])
    return np.concatenate(parts), unseen


def _show_costs(stage: Stage, result: dict[str, Any], watched: dict[str, Any], sampler: Sampler) -> None:
    table = Table(title="Meanwhile", title_justify="left")
    for heading in ("process", "rows", "seconds", "CPU seconds", "rows/CPU-s", "peak MB"):
        table.add_column(heading, justify="left" if heading == "process" else "right")
    table.add_row(
        "shift",
        f"{result['row_count']:,}",
        f"{result['whole_seconds']:.2f}",
        f"{result['cpu_seconds']:.2f}",
        f"{result['row_count'] / result['cpu_seconds']:,.0f}",
        f"{sampler.peak_bytes('shift') / 1e6:,.0f}",
    )
    reading = sum(read[2] for read in watched["reads"])
    table.add_row(
        f"reader, in {len(watched['reads'])} reads",
        "",
        f"{reading:.2f}",
        f"{watched['cpu_seconds']:.2f}",
        "",
        f"{sampler.peak_bytes('reader') / 1e6:,.0f}",
    )
    table.add_row("both with PostgreSQL", "", "", "", "", f"{sampler.peak_bytes() / 1e6:,.0f}")
    stage.console.print(table)


def _report(
    stage: Stage, lanes: list[list[float]], reads: list[Any], result: dict[str, object], seconds: int
) -> None:
    count = sum(map(len, lanes))
    reached = count / seconds
    values, unseen = delays(lanes, reads, _WARM_SECONDS)
    half, most = np.percentile(values, [50, 95])
    read_seconds = float(np.median([read[2] for read in reads]))
    stage.console.print(
        f"{count:,} transactions at {reached:,.0f}/s; {result['batch_count']} batches, "
        f"{result['version_count']} versions, {result['fold_count']} folds; "
        f"{len(reads)} reads of {read_seconds * 1e3:.0f} ms (median); "
        f"slowest {values.max():.2f} s"
    )
    if unseen:
        stage.console.print(
            f"[red]{unseen:,} commits were not visible {_CATCH_UP_SECONDS:.0f} s after the last"
        )
    if reached < 0.95 * _PER_SECOND:
        stage.console.print(f"[yellow]this machine reached {reached:,.0f} transactions/s only")
    for name, share, value in (("latency_p50", "p50", half), ("latency_p95", "p95", most)):
        stage.record(
            Record(
                name,
                f"commit to fresh read at {reached:,.0f} transactions/s, {share}",
                float(value),
                _LIMIT_SECONDS,
                "the limit",
                1,
                "s",
                True,
            )
        )
