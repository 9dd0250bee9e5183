"""Reads a product in a loop, in every way there is: ``python -m tests.crash.reader PRODUCTS LAKE``.

Every transaction at the source keeps the sum of all quantities at zero and the number of rows
even, so every cut must too. Prints a line when the first reads are done and another when it has read
enough, goes on until its standard input ends, and prints what it found as JSON, a :class:`Report`.
"""

from __future__ import annotations

import json
import os
import random
import select
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import polars as pl

from mesh_assets.lake.position import Lsn
from mesh_assets.lake.version import VersionLog
from mesh_assets.names import ProductName
from mesh_assets.product import Mesh
from mesh_assets.settings import Settings

TABLE = "shop.everything.line"
_PRODUCT = ProductName("shop", "everything")
_SQL = f"select coalesce(sum(quantity), 0) as total, count(*) as row_count from {TABLE}"
_MOST_PROBLEMS = 5
ENOUGH_VERSIONS = 4
"""Different versions that have to be read."""
GRACE_SECONDS = 8.0
"""How long the writing shift's vacuum spares a file that nothing refers to any more."""
_PIN_SECONDS = 1.0
"""How long a frame is held, at least, before it is read."""


@dataclass
class Report:
    """What was read, how often, from which versions, and what was wrong."""

    read_count: int = 0
    pinned_count: int = 0
    versions: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def enough(self) -> bool:
        """Whether what was read proves something."""
        return len(set(self.versions)) >= ENOUGH_VERSIONS and self.pinned_count > 0


class Reader:
    """One reader and its findings."""

    def __init__(self, products: Path, lake: str) -> None:
        self.report = Report()
        self._settings = Settings(products=products, lake=lake)
        self._random = random.Random(1)
        self._pinned: list[tuple[float, pl.LazyFrame]] = []

    def round(self) -> None:
        """Read once in every way."""
        mesh = Mesh(self._settings)
        versions = VersionLog.open(mesh.layout.versions(_PRODUCT))
        latest = versions.latest()
        assert latest is not None
        number = self._random.randint(1, latest.version)
        past = versions.at(number)
        assert past is not None
        self.report.versions.append(latest.version)
        self._try("latest", lambda: self._totals(mesh.open(TABLE).lazy))
        self._try(f"version {number}", lambda: self._totals(mesh.open(TABLE, as_of=number).lazy))
        self._try(f"LSN of {number}", lambda: self._totals(mesh.open(TABLE, as_of=Lsn(past.lsn or 0)).lazy))
        at = past.committed_at
        self._try(f"time of {number}", lambda: self._totals(mesh.open(TABLE, as_of=at).lazy))
        self._try("SQL", lambda: _answer(mesh, None))
        self._try(f"SQL at {number}", lambda: _answer(mesh, number))
        # What was opened a while ago is still readable, whatever was folded and compacted since.
        self._try("pinned", lambda: self._pin(mesh))

    def _pin(self, mesh: Mesh) -> tuple[int, int]:
        opened = time.monotonic()
        self._pinned.append((opened, mesh.open(TABLE).lazy))
        opened, rows = self._pinned[0]
        if time.monotonic() - opened < _PIN_SECONDS:
            return (0, 0)
        del self._pinned[0]
        try:
            totals = self._totals(rows)
        except Exception:
            # Files are kept for the vacuum's grace: a slow machine may have held this one for longer.
            if time.monotonic() - opened < GRACE_SECONDS:
                raise
            return (0, 0)
        self.report.pinned_count += 1
        return totals

    def _totals(self, rows: pl.LazyFrame) -> tuple[int, int]:
        total, count = rows.select(pl.col("quantity").sum().alias("total"), pl.len()).collect().row(0)
        return int(total), int(count)

    def _try(self, how: str, read: Callable[[], tuple[int, int]]) -> None:
        self.report.read_count += 1
        try:
            total, count = read()
        except Exception:  # noqa: BLE001 - whatever it is, it is what this looks for
            self.report.problems.append(f"{how}: {traceback.format_exc()}")
            return
        if total or count % 2:
            self.report.problems.append(f"{how}: a sum of {total} over {count} rows")


def _answer(mesh: Mesh, as_of: int | None) -> tuple[int, int]:
    row = mesh.sql(_SQL, as_of=as_of).table.to_pylist()[0]
    return int(row["total"]), int(row["row_count"])


def main() -> None:
    """Read until told to stop."""
    reader = Reader(Path(sys.argv[1]), sys.argv[2])
    reader.round()
    print("reading", flush=True)
    told = False
    while not select.select([sys.stdin], [], [], 0)[0] and len(reader.report.problems) < _MOST_PROBLEMS:
        reader.round()
        if reader.report.enough and not told:
            told = True
            print("enough", flush=True)
    print(json.dumps(asdict(reader.report)), flush=True)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
