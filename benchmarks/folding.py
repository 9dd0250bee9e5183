"""A contender: a product of many rows; its appends, fresh reads and folds."""

from __future__ import annotations

import shutil
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from benchmarks.changes import KEY, ROW_SCHEMA, change_frame
from benchmarks.child import Report, serve
from mesh_assets.lake.access import Principal
from mesh_assets.lake.current import Current
from mesh_assets.lake.fold import fold
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.read import fresh
from mesh_assets.names import CHANGES, CURRENT, Layout, ProductName

_NAME = ProductName("sales", "orders")
_TABLE = "orders"
_BASE_BATCH_ROWS = 500_000
_TAIL_BATCH_ROWS = 200_000
_BATCH_ROWS = 10_000
_READ_REPEATS = 9
_APPEND_REPEATS = 25
# A change log accepts positions that grow: every append gets the next.
_FIRST_POSITION = 1_000


class _Cost(NamedTuple):
    """What one piece of work took."""

    seconds: float
    cpu_seconds: float


class _Clock:
    """Starts when it is made."""

    def __init__(self) -> None:
        self._began, self._began_cpu = time.perf_counter(), time.process_time()

    def cost(self) -> _Cost:
        return _Cost(time.perf_counter() - self._began, time.process_time() - self._began_cpu)


def work(parameters: dict[str, Any], report: Report) -> dict[str, Any]:
    """Build the product, or measure on one that was built."""
    layout = Layout(parameters["lake"])
    if parameters["task"] == "build":
        return _build(layout, parameters["row_count"], report)
    return _measure(layout, parameters["tail_counts"], Path(parameters["scratch"]), report)


def _append(log: ChangeLog, order_ids: np.ndarray, op: str) -> _Cost:
    """Append changes of these orders; returns what it took, without making the frame."""
    held = log.position("benchmark")
    position = held[0] + 1 if held else _FIRST_POSITION
    frame = change_frame(order_ids, op, position)
    clock = _Clock()
    log.append(
        frame,
        source="benchmark",
        position=(position, len(order_ids) - 1),
        captured_at=datetime.now(UTC),
        schema_version=1,
    )
    return clock.cost()


def _build(layout: Layout, row_count: int, report: Report) -> dict[str, Any]:
    log = ChangeLog.create(layout.table(_NAME, CHANGES, _TABLE), ROW_SCHEMA, KEY)
    current = Current.create(layout.table(_NAME, CURRENT, _TABLE), ROW_SCHEMA, KEY)
    for first in range(0, row_count, _BASE_BATCH_ROWS):
        last = min(row_count, first + _BASE_BATCH_ROWS)
        _append(log, np.arange(first, last), "r")
        report(progress=last)
    done = fold(log, current, log.seq)
    return {"row_count": done.row_count, "seconds": done.seconds, "file_count": done.added}


def _measure(layout: Layout, tail_counts: list[int], scratch: Path, report: Report) -> dict[str, Any]:
    random = np.random.default_rng(1)
    log = ChangeLog.open(layout.table(_NAME, CHANGES, _TABLE))
    current = Current.open(layout.table(_NAME, CURRENT, _TABLE))
    base_count = current.row_count
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        report(progress=steps)

    def ended(part: str) -> None:
        report(part=part)

    def random_orders(count: int) -> np.ndarray:
        return random.choice(base_count, min(count, base_count // 2), replace=False)

    # The first tail: what a reader pays for it.
    _append(log, random_orders(_BATCH_ROWS), "u")
    step()
    ended("start")
    reads = _read(layout, current)
    step()
    ended("reads")
    folds = [_fold(log, current)]
    step()
    ended(f"fold {folds[-1]['row_count']}")
    # Appends to the large product and to new ones take turns.
    large: list[_Cost] = []
    few: list[_Cost] = []
    for number in range(_APPEND_REPEATS):
        orders = random_orders(_BATCH_ROWS)
        small = ChangeLog.create(str(scratch / f"small-{number}"), ROW_SCHEMA, KEY)
        # The very first commit of a table has nothing to look at; the large one's is long past, too.
        _append(small, orders[:1], "c")
        # Whoever is second finds the processor's caches warm.
        turns = [(small, few), (log, large)]
        for target, costs in turns if number % 2 else reversed(turns):
            costs.append(_append(target, orders, "u"))
        shutil.rmtree(scratch / f"small-{number}")
        step()
    ended("appends")
    _fold(log, current)
    step()
    for count in tail_counts:
        while (missing := count - (log.seq - current.folded)) > 0:
            _append(log, random_orders(min(missing, _TAIL_BATCH_ROWS)), "u")
        ended("between")
        folds.append(_fold(log, current))
        step()
        ended(f"fold {folds[-1]['row_count']}")
    if current.row_count != base_count:
        raise RuntimeError(f"{base_count} rows became {current.row_count} by updates alone")
    return {
        "base_count": base_count,
        **reads,
        "append_large": _median(large, _BATCH_ROWS),
        "append_small": _median(few, _BATCH_ROWS),
        "folds": folds,
    }


def _median(costs: list[_Cost], row_count: int) -> dict[str, float]:
    """The median costs of one that has so many rows."""
    return {
        "row_count": row_count,
        "seconds": statistics.median(one.seconds for one in costs),
        "cpu_seconds": statistics.median(one.cpu_seconds for one in costs),
    }


def _query(frame: pl.LazyFrame) -> pl.DataFrame:
    summed = frame.group_by("status").agg(pl.len().alias("count"), pl.col("amount").sum())
    return summed.collect(engine="streaming")


def _read(layout: Layout, current: Current) -> dict[str, dict[str, float]]:
    """The same question to the mesh and to the files of the last fold, in turns."""
    files = [str(Path(current.table.uri) / file.path) for file in current.table.files()]
    fresh_costs, scan_costs = [], []
    for _ in range(_READ_REPEATS):
        clock = _Clock()
        plain = _query(pl.scan_parquet(files))
        scan_costs.append(clock.cost())
        clock = _Clock()
        through = _query(fresh(layout, _NAME, _TABLE, principal=Principal.local()))
        fresh_costs.append(clock.cost())
        if plain["count"].sum() != through["count"].sum():
            raise RuntimeError(
                f"the fresh read has {through['count'].sum()} rows, not {plain['count'].sum()}"
            )
    return {
        "fresh": _median(fresh_costs, current.row_count),
        "scan": _median(scan_costs, current.row_count),
    }


def _fold(log: ChangeLog, current: Current) -> dict[str, float]:
    done = fold(log, current, log.seq)
    return {"row_count": done.tail_row_count, "seconds": done.seconds, "cpu_seconds": done.cpu_seconds}


if __name__ == "__main__":
    serve(work)
