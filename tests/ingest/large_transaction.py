"""One transaction much larger than a batch: ``python -m tests.ingest.large_transaction URL LAKE``.

Prints what it took as JSON, a :class:`Report`. A process of its own, so that its peak of memory is.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import psycopg

from mesh_assets.parity import parity
from tests.crash.world import plan_for
from tests.ingest.capture import LARGE, drain

SMALL_COUNT, LARGE_COUNT = 40_000, 300_000
"""Rows of about 1 kB: the first are one full batch, which a shift may hold."""

_BUDGET = replace(LARGE, fold=None, check_seconds=None)
"""Folds and checks have bounds of their own: what is measured is the capture."""

_INSERT = """
insert into shop.item
select g, 'item ' || g, g, g / 7.0, 'ok', array['a', md5(g::text)], repeat(md5(g::text), 24), now(),
    jsonb_build_object('a', g)
from generate_series({first}, {last}) g
"""
_WAL = "select (pg_current_wal_insert_lsn() - '0/0')::int8"


@dataclass
class Report:
    """What it took.

    Attributes:
        transaction_bytes: of WAL that the large transaction wrote.
        batch_count: in how many batches it landed.
        row_count: changes landed.
        growth_bytes: what its capture added to the peak of memory.
        differing: tables that differ from the source.
    """

    transaction_bytes: int = 0
    batch_count: int = 0
    row_count: int = 0
    growth_bytes: int = 0
    differing: list[str] = field(default_factory=list)


def peak_bytes() -> int:
    """The most memory that this process had at a time; ``ru_maxrss`` begins with its parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel does not tell")


def insert(url: str, first: int, count: int) -> int:
    """Insert rows in one transaction; returns the bytes of WAL."""
    with psycopg.connect(url, autocommit=True) as connection:
        before = connection.execute(_WAL).fetchone()
        connection.execute(_INSERT.format(first=first, last=first + count - 1).encode())
        after = connection.execute(_WAL).fetchone()
    assert before is not None
    assert after is not None
    return int(after[0] - before[0])


def run(url: str, lake: Path) -> Report:
    """Capture one full batch, then the large transaction, and compare."""
    report, plan = Report(), plan_for(url, lake)
    drain(plan, budget=_BUDGET)
    insert(url, 1, SMALL_COUNT)
    drain(plan, budget=_BUDGET)
    before = peak_bytes()
    report.transaction_bytes = insert(url, SMALL_COUNT + 1, LARGE_COUNT)
    result = drain(plan, budget=_BUDGET)
    report.growth_bytes = peak_bytes() - before
    report.batch_count, report.row_count = result.batch_count, result.row_count
    for target in plan.targets:
        compared = parity(plan, target)
        if not compared.equal:
            report.differing.append(compared.sentence())
    return report


if __name__ == "__main__":
    code = 1
    try:
        print(json.dumps(asdict(run(sys.argv[1], Path(sys.argv[2])))))
        code = 0
    except Exception:  # noqa: BLE001 - printed for the test that reads it
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # A process that has written Delta may abort in its exit handlers.
    os._exit(code)
