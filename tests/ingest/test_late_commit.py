"""A transaction whose changes have landed before its commit has come."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from mesh_assets.cdc.stream import ReplicationStream
from mesh_assets.lake.ledger import Ledger
from mesh_assets.lake.version import VersionLog
from mesh_assets.shift.report import BatchReport, Silent, VersionReport
from tests.crash.world import PRODUCT, World
from tests.ingest.capture import QUICK, drain, execute
from tests.waiting import PATIENCE_SECONDS


class LateCommits(ReplicationStream):
    """Hands out a Commit, and what comes after it, only some time later, as a busy server may."""

    _withheld_since: float | None = None
    _released = False

    @property
    def end(self) -> int:
        at, end, buffer = self.start, super().end, self.buffer
        while not self._released and at < end:
            # CopyData, XLogData behind its header, Commit.
            if buffer[at + 5] == ord("w") and buffer[at + 30] == ord("C"):
                return at
            at += 1 + int.from_bytes(buffer[at + 1 : at + 5].tobytes(), "big")
        return end

    def receive(self, timeout_seconds: float) -> int:
        self._released = False
        got = super().receive(min(timeout_seconds, 0.01))
        if self.end == super().end:
            self._withheld_since = None
            return got
        now = time.monotonic()
        self._withheld_since = self._withheld_since or now
        self._released = now - self._withheld_since > 5 * QUICK.batch_seconds
        return got or int(self._released)


def test_a_commit_that_comes_late_is_a_version_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its changes have landed already, and nothing comes after it for a long time."""
    drain(world.plan)
    monkeypatch.setattr("mesh_assets.ingest.shift.ReplicationStream", LateCommits)
    versions = VersionLog.open(world.plan.layout.versions(PRODUCT))
    before = versions.latest()
    assert before is not None
    deadline = time.monotonic() + PATIENCE_SECONDS
    landed: list[BatchReport] = []

    class Until(Silent):
        def batch(self, report: BatchReport) -> None:
            landed.append(report)

        def version(self, report: VersionReport) -> None:
            self.made = True

        def cancelled(self) -> bool:
            return hasattr(self, "made") or time.monotonic() > deadline

    execute(world.url, "insert into shop.badge (code) values ('late')")
    drain(world.plan, Until(), replace(QUICK, idle_seconds=3600))
    # It was in the log before its commit had come.
    assert [(one.row_count, one.end_lsn > 0) for one in landed] == [(1, False), (0, True)]
    versions.refresh()
    after = versions.latest()
    assert after is not None
    assert after.version == before.version + 1
    assert after.tables["badge"] == before.tables["badge"] + 1
    ledger = Ledger(world.plan.part_uri("ledger")).latest()
    assert ledger is not None
    assert ledger.end_lsn == after.positions["app"].end_lsn
