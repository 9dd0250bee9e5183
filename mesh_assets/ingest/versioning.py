"""Cuts product versions: one row per consistent cut over all tables of a product."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator
from importlib.metadata import version as package_version

from mesh_assets.ingest.landing import Landing
from mesh_assets.lake.access import Principal
from mesh_assets.lake.version import InputPosition, VersionLog
from mesh_assets.names import ProductName
from mesh_assets.shift.plan import CapturePlan
from mesh_assets.shift.report import VersionReport

VERSION_SECONDS = 0.5
"""A product gets at most one version in this time, so that its version log stays small."""


class Cutter:
    """Writes the versions of the products of one source.

    A version is written only at a transaction boundary at or beyond every table's position: after
    a crash a redelivered batch may end earlier than what a table already holds. There is none
    while a table of the product is parked.

    Attributes:
        owing: products whose last cut came too soon after a version, and is still to be written.
    """

    def __init__(self, plan: CapturePlan, run_id: str) -> None:
        self._plan = plan
        self._run_id = run_id
        self._logs = {name: VersionLog(plan.layout.versions(name)) for name in plan.products}
        self._written: dict[ProductName, float] = {}
        self._suspended: set[ProductName] = set()
        self.owing: set[ProductName] = set()
        self._code_version = package_version("mesh-assets")

    def suspend(self, name: ProductName) -> None:
        """Write no versions of a product: one of its tables is parked."""
        self._suspended.add(name)

    def cut(
        self, landings: Collection[Landing], commit_lsn: int, end_lsn: int, *, final: bool
    ) -> Iterator[VersionReport]:
        """Write the versions that are due at this transaction boundary (``final``: all that differ)."""
        now = time.monotonic()
        for name, log in self._logs.items():
            if name in self._suspended:
                continue
            if not final and now - self._written.get(name, 0.0) < VERSION_SECONDS:
                self.owing.add(name)
                continue
            self.owing.discard(name)
            mine = [landing for landing in landings if landing.target.name == name]
            tables = {landing.target.table: landing.log.seq for landing in mine}
            last = log.latest()
            if last is not None and last.tables == tables:
                continue
            if any(landing.committed_lsn > commit_lsn for landing in mine):
                continue
            ops: Counter[str] = Counter()
            moments = []
            for landing in mine:
                since = landing.since(last.tables.get(landing.target.table, -1) if last else -1)
                ops.update(since.op_count)
                moments += [since.committed_at] if since.committed_at else []
            row = log.append(
                tables=tables,
                positions={self._plan.source.name: InputPosition(commit_lsn, 0, end_lsn)},
                row_count=dict(ops),
                contract_hash=self._plan.contract_hashes[name],
                code_version=self._code_version,
                run_id=self._run_id,
                actor=Principal.local().name,
                committed_at=max(moments, default=None),
            )
            self._written[name] = now
            yield VersionReport(name, row)
