"""Short shifts in this process, and what is looked at afterwards."""

from __future__ import annotations

import psycopg

from mesh_assets.ingest.shift import Shift
from mesh_assets.lake.log import ChangeLog
from mesh_assets.parity import parity
from mesh_assets.shift.plan import CapturePlan
from mesh_assets.shift.report import Budget, ShiftResult, Silent

QUICK = Budget(idle_seconds=0.1, batch_seconds=0.02, batch_rows=500, snapshot_rows=30, claim_seconds=60)
LARGE = Budget(idle_seconds=0.1, batch_seconds=0.02, claim_seconds=60)
"""For more rows than a handful."""


def drain(plan: CapturePlan, observer: Silent | None = None, budget: Budget = QUICK) -> ShiftResult:
    """One short shift."""
    return Shift(plan, budget=budget, observer=observer).run()


def assert_equal(plan: CapturePlan, *tables: str) -> None:
    """Parity of all tables, or of those named."""
    for target in plan.targets:
        if not tables or target.table in tables:
            result = parity(plan, target)
            assert result.equal, result.sentence()


def log_of(plan: CapturePlan, table: str) -> ChangeLog:
    """The change log of one table."""
    return ChangeLog.open(next(one.changes_uri for one in plan.targets if one.table == table))


def execute(url: str, *statements: str) -> None:
    """Run statements at the source, each in its own transaction."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)
