"""Where the time of an order went on its way into a derived product, read from the lake afterwards.

A row carries when it was taken from its source, a version when it was made: no clock but this machine's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from rich.table import Table

from benchmarks.child import ContenderError
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.version import VersionLog, VersionRow
from mesh_assets.names import CHANGES, Layout, ProductName
from mesh_assets.settings import Settings

_INPUT = ProductName("sales", "orders")
_OUTPUT = ProductName("sales", "customer_360")
_STEPS = ("taken from source", "in a version", "derived", "in its version", "read")
_SLOWEST = 8


@dataclass(frozen=True)
class Trail:
    """One order's way from its commit to a read; moments are seconds since 1970.

    Attributes:
        committed: when its commit returned.
        reached: when each of the steps was done.
        run_ids: of the shifts that captured and derived it.
    """

    number: int
    committed: float
    reached: tuple[float, ...]
    run_ids: tuple[str, str]

    @property
    def seconds(self) -> float:
        """From the commit to the read."""
        return self.reached[-1] - self.committed

    @property
    def parts(self) -> list[float]:
        """How long each of the steps took."""
        parts: list[float] = np.diff([self.committed, *self.reached]).tolist()
        return parts


class _Arrivals:
    """When rows were appended to a table, and with which version readers got them."""

    def __init__(self, layout: Layout, name: ProductName, customer_id: int, value: str) -> None:
        self._table = name.product
        log = ChangeLog.open(layout.table(name, CHANGES, self._table))
        mine = log.scan().filter(pl.col("customer_id") == customer_id)
        self._rows = mine.select("_seq", "_captured_at", value).sort("_seq").collect()
        self._value = value
        versions = VersionLog.open(layout.versions(name))
        self._versions = versions.between(1, versions.records.number)

    def of(self, least: int) -> tuple[float, VersionRow]:
        """When the first row with at least this value was taken, and the first version that has it."""
        row = self._rows.filter(pl.col(self._value) >= least).row(0, named=True)
        has_it = (one for one in self._versions if one.tables[self._table] >= row["_seq"])
        return row["_captured_at"].timestamp(), next(has_it)


def trails(
    settings: Settings, customer_id: int, committed: Sequence[float], seen: Sequence[tuple[float, int]]
) -> list[Trail]:
    """The ways of a customer's orders, numbered on from her own number; the first is not among them.

    Args:
        settings: of the mesh that they took.
        customer_id: whose orders.
        committed: when each was committed.
        seen: when a read showed how many of them.

    Raises:
        ContenderError: if one was never seen.
    """
    layout = Layout(settings.lake_root)
    captured = _Arrivals(layout, _INPUT, customer_id, "order_id")
    derived = _Arrivals(layout, _OUTPUT, customer_id, "order_count")
    found = []
    for number, moment in enumerate(committed, 1):
        shown = [at for at, count in seen if count > number]
        if not shown:
            raise ContenderError(f"order {number} of {len(committed)} never reached the derived product")
        taken_at, version = captured.of(customer_id + number)
        derived_at, its_version = derived.of(number + 1)
        reached = (taken_at, version.created_at.timestamp(), derived_at, its_version.created_at.timestamp())
        found.append(Trail(number, moment, (*reached, shown[0]), (version.run_id, its_version.run_id)))
    return found


def relieved_count(found: Sequence[Trail]) -> int:
    """How often a shift was followed by the next while these orders were on their way."""
    return sum(
        before != after
        for first, second in itertools.pairwise(found)
        for before, after in zip(first.run_ids, second.run_ids, strict=True)
    )


def trail_table(found: Sequence[Trail]) -> Table:
    """How long each step took: for all of them, and for the slowest one by one."""
    table = Table(title="Where the seconds went", title_justify="left")
    table.add_column("order")
    for name in (*_STEPS, "together"):
        table.add_column(name, justify="right")
    rows = np.array([[*trail.parts, trail.seconds] for trail in found])
    for share in (50, 95):
        table.add_row(f"p{share} of each", *(f"{part:.2f}" for part in np.percentile(rows, share, axis=0)))
    table.add_section()
    for trail in sorted(found, key=lambda one: one.seconds, reverse=True)[:_SLOWEST]:
        table.add_row(str(trail.number), *(f"{part:.2f}" for part in (*trail.parts, trail.seconds)))
    return table
