"""What a shift tells Dagster: log lines and materialisations, both at a bounded rate.

Every event is a row in Dagster's event log, so a table is reported at most every
``REPORT_SECONDS`` and once at the end, however many batches land in between. A current table is
reported with its change log, folded or not: reads through the mesh add what is not folded yet.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from mesh_assets.errors import TableMissing
from mesh_assets.names import CHANGES, CURRENT, ProductName
from mesh_assets.orchestration.asset import COLUMN_SCHEMA, ROW_COUNT, URI, asset_key, captured_schema

if TYPE_CHECKING:
    # Loading these loads the Delta Lake library, which a code server has no need of.
    from mesh_assets.plan import CapturePlan, Target
    from mesh_assets.report import BatchReport, FoldReport, ShiftResult, VersionReport

REPORT_SECONDS = 10.0
QUEUE_LOOK_SECONDS = 2.0

Clock = Callable[[], float]
Metadata = dict[str, dg.MetadataValue]

_OPS = {
    "c": "cdc/inserts",
    "u": "cdc/updates",
    "d": "cdc/deletes",
    "r": "cdc/snapshot_rows",
    "t": "cdc/truncates",
}


def lsn_text(lsn: int) -> str:
    """An LSN as PostgreSQL writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:08X}"


@dataclass
class _Table:
    """What has to be told about one asset."""

    target: Target
    key: dg.AssetKey
    log_key: dg.AssetKey
    kind: str
    uri: str
    metadata: Metadata = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    data_version: str = ""
    op_count: Counter[str] = field(default_factory=Counter)
    reported_op_count: Counter[str] = field(default_factory=Counter)
    dirty: bool = False
    reported_at: float = float("-inf")


class RunObserver:
    """Watches a shift for the Dagster run that it is.

    Args:
        context: the run's context; only the run's own thread may call this object.
        plan: what the shift drains.
        interrupted: whether the run was asked to end.
        queued: whether a successor waits in the queue.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        plan: CapturePlan,
        interrupted: Callable[[], bool],
        queued: Callable[[], bool],
        clock: Clock = time.monotonic,
    ) -> None:
        self._context = context
        self._interrupted = interrupted
        self._queued = queued
        self._clock = clock
        self._tables: dict[tuple[ProductName, str, str], _Table] = {}
        for target in plan.targets:
            for kind, uri in ((CHANGES, target.changes_uri), (CURRENT, target.current_uri)):
                self._tables[target.name, kind, target.table] = _Table(
                    target,
                    asset_key(target.name, kind, target.table),
                    asset_key(target.name, CHANGES, target.table),
                    kind,
                    uri,
                )
        self._source = plan.source
        self._schemas_uri = plan.part_uri("schemas")
        self._code_versions = _code_versions(context)
        self._looked_at = float("-inf")
        self._relieved = False
        self._told_at = clock()
        self._untold = Counter[str]()

    # -- the Observer protocol

    def message(self, text: str) -> None:
        """A line in the run's log."""
        self._context.log.info(text)

    def batch(self, report: BatchReport) -> None:
        """A batch is durable: count it, and report the tables that are due."""
        for table in report.tables:
            seen = self._tables[table.name, CHANGES, table.table]
            seen.op_count = Counter(table.op_count)
            seen.data_version = str(table.delta_version)
            seen.metadata |= {
                ROW_COUNT: dg.MetadataValue.int(table.last_seq + 1),
                "delta/version": dg.MetadataValue.int(table.delta_version),
                "cdc/position": dg.MetadataValue.text(lsn_text(report.commit_lsn)),
            }
            for kind in (CHANGES, CURRENT):
                self._see_columns(self._tables[table.name, kind, table.table], table.columns)
            if report.committed_at is not None:
                lag_seconds = (datetime.now(UTC) - report.committed_at).total_seconds()
                seen.metadata["cdc/lag_seconds"] = dg.MetadataValue.float(round(max(0.0, lag_seconds), 3))
                seen.metadata["cdc/committed_at"] = dg.MetadataValue.timestamp(report.committed_at)
            seen.dirty = True
            self._tables[table.name, CURRENT, table.table].dirty = True
        self._untold.update(
            batches=1,
            changes=report.row_count,
            transactions=report.transaction_count,
            parked=report.parked_count,
        )
        now = self._clock()
        if now - self._told_at >= REPORT_SECONDS:
            self._tell(now)
        self._report_due(now)

    def version(self, report: VersionReport) -> None:
        """A product version is durable: its tables carry it from now on."""
        for (name, _kind, _table), seen in self._tables.items():
            if name == report.name:
                seen.metadata["mesh/version"] = dg.MetadataValue.int(report.row.version)

    def fold(self, report: FoldReport) -> None:
        """A current table was folded."""
        seen = self._tables[report.name, CURRENT, report.table]
        seen.metadata |= {
            ROW_COUNT: dg.MetadataValue.int(report.row_count),
            "delta/version": dg.MetadataValue.int(report.delta_version),
            "mesh/folded_seq": dg.MetadataValue.int(report.upto_seq),
            "mesh/folded_changes": dg.MetadataValue.int(report.tail_row_count),
            "mesh/fold_seconds": dg.MetadataValue.float(round(report.seconds, 3)),
        }
        seen.dirty = True
        self._report_due(self._clock())

    def cancelled(self) -> bool:
        """Whether the run was cancelled."""
        return self._interrupted()

    def relieved(self) -> bool:
        """Whether the successor of this shift waits in the queue; asks at most every two seconds."""
        now = self._clock()
        if now - self._looked_at >= QUEUE_LOOK_SECONDS:
            self._looked_at = now
            self._relieved = self._queued()
        return self._relieved

    # -- the end

    def ended(self, result: ShiftResult) -> None:
        """Sum the shift up in the log."""
        self._tell(self._clock())
        snapshot = f", {result.snapshot_row_count:,} rows of snapshots" if result.snapshot_row_count else ""
        self._context.log.info(
            f"shift over {self._source.domain}.{self._source.name} ended ({result.reason}) after "
            f"{result.seconds:.1f} s: {result.row_count:,} changes in {result.transaction_count:,} "
            f"transactions and {result.batch_count:,} batches{snapshot}"
        )
        for table, reason in result.refused.items():
            self._context.log.error(f"{table} is parked, its changes are kept: {reason}")

    def flush(self) -> None:
        """Report whatever has not been reported."""
        for seen in self._tables.values():
            if seen.dirty:
                self._log(seen)

    def results(
        self, note: Mapping[str, dg.MetadataValue] | None = None
    ) -> Iterator[dg.MaterializeResult[None]]:
        """The results of the selected assets; what was not selected but changed is reported beside."""
        selected = self._context.selected_asset_keys
        for seen in self._tables.values():
            if seen.key in selected:
                self._complete(seen)
                metadata = self._metadata(seen) | dict(note or {})
                data_version = self._data_version(seen)
                version = dg.DataVersion(data_version) if data_version else None
                yield dg.MaterializeResult(asset_key=seen.key, metadata=metadata, data_version=version)
            elif seen.dirty:
                self._log(seen)

    # -- inside

    def _tell(self, now: float) -> None:
        """One line for all batches since the last one."""
        untold, self._untold = self._untold, Counter()
        seconds, self._told_at = now - self._told_at, now
        if not untold["batches"]:
            return
        parked = f", {untold['parked']:,} parked" if untold["parked"] else ""
        self._context.log.info(
            f"{untold['changes']:,} changes of {untold['transactions']:,} transactions landed in "
            f"{untold['batches']:,} batches in {seconds:.1f} s{parked}"
        )

    def _report_due(self, now: float) -> None:
        for seen in self._tables.values():
            if seen.dirty and now - seen.reported_at >= REPORT_SECONDS:
                seen.reported_at = now
                self._log(seen)

    def _log(self, seen: _Table) -> None:
        self._complete(seen)
        tags = self._version_tags(seen)
        self._context.log_event(
            dg.AssetMaterialization(asset_key=seen.key, metadata=self._metadata(seen), tags=tags)
        )

    def _version_tags(self, seen: _Table) -> dict[str, str]:
        """What Dagster judges staleness by; it adds these itself only to results at the end of a run."""
        tags = {}
        if data_version := self._data_version(seen):
            tags["dagster/data_version"] = data_version
            if seen.kind == CURRENT:
                upstream = seen.log_key.to_user_string()
                tags[f"dagster/input_data_version/{upstream}"] = data_version
                # Which event of it was read is not known here; without the tag it would be a new dependency.
                tags[f"dagster/input_event_pointer/{upstream}"] = "NULL"
        if code_version := self._code_versions.get(seen.key):
            tags["dagster/code_version"] = code_version
        return tags

    def _data_version(self, seen: _Table) -> str:
        """A current table, read through the mesh, is as new as its change log."""
        log = next(one for one in self._tables.values() if one.key == seen.log_key)
        self._complete(log)
        return log.data_version

    def _complete(self, seen: _Table) -> None:
        """Read from the lake what no batch and no fold of this shift has told."""
        if ROW_COUNT in seen.metadata:
            return
        from mesh_assets.cdc.schema import SchemaLog
        from mesh_assets.lake.current import Current
        from mesh_assets.lake.log import ChangeLog
        from mesh_assets.lake.table import Table

        if not seen.columns and Table.exists(self._schemas_uri):
            shape = SchemaLog(self._schemas_uri).latest(seen.target.source_table)
            self._see_columns(seen, shape.types if shape else {})
        try:
            if seen.kind == CHANGES:
                log = ChangeLog.open(seen.uri)
                row_count, version = log.seq + 1, log.table.version
            else:
                current = Current.open(seen.uri)
                if current.folded < 0:
                    return
                row_count, version = current.row_count, current.table.version
        except TableMissing:
            return
        if seen.kind == CHANGES:
            seen.data_version = str(version)
        seen.metadata[ROW_COUNT] = dg.MetadataValue.int(row_count)
        seen.metadata["delta/version"] = dg.MetadataValue.int(version)

    @staticmethod
    def _see_columns(seen: _Table, columns: Mapping[str, str]) -> None:
        """Note the columns where they are not those that the asset's definition shows."""
        contract = seen.target.contract
        if contract is None or seen.columns == columns:
            return
        seen.columns = columns
        if schema := captured_schema(contract.columns, columns, log=seen.kind == CHANGES):
            seen.metadata[COLUMN_SCHEMA] = dg.MetadataValue.table_schema(schema)

    def _metadata(self, seen: _Table) -> Metadata:
        new = seen.op_count - seen.reported_op_count
        seen.reported_op_count = Counter(seen.op_count)
        seen.dirty = False
        counts: Metadata = {_OPS[op]: dg.MetadataValue.int(count) for op, count in new.items() if op in _OPS}
        if counts:
            counts["cdc/changes"] = dg.MetadataValue.int(sum(new.values()))
        return {URI: dg.MetadataValue.path(seen.uri), **seen.metadata, **counts}


def _code_versions(context: dg.AssetExecutionContext) -> Mapping[dg.AssetKey, str]:
    specs = context.assets_def.specs_by_key
    return {key: spec.code_version for key, spec in specs.items() if spec.code_version}
