"""What a shift tells Dagster: log lines and materialisations, both at a bounded rate.

Every event is a row in Dagster's event log, so a table is reported at most every
``REPORT_SECONDS`` and once at the end, however many batches land in between. A current table is
reported with its change log, folded or not: reads through the mesh add what is not folded yet.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from mesh_assets.errors import TableMissing
from mesh_assets.names import CHANGES, CURRENT, Layout, ProductName
from mesh_assets.orchestration.asset import (
    COLUMN_LINEAGE,
    COLUMN_SCHEMA,
    ROW_COUNT,
    URI,
    VERSION,
    asset_key,
    captured_schema,
    input_keys,
)
from mesh_assets.orchestration.lineage import derived_lineage
from mesh_assets.orchestration.outcome import Outcomes

if TYPE_CHECKING:
    # Loading these loads the Delta Lake library, which a code server has no need of.
    from mesh_assets.derive import DerivePlan
    from mesh_assets.lake.version import VersionRow
    from mesh_assets.shift.plan import CapturePlan, Target
    from mesh_assets.shift.report import BatchReport, CheckReport, FoldReport, ShiftResult, VersionReport

REPORT_SECONDS = 10.0
_PAUSE_SECONDS = 0.05
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


@dataclass(frozen=True)
class Subject:
    """What a shift is about.

    Attributes:
        title: how its log calls it.
        targets: the tables that it may write.
        schemas_uri: where the columns of captured tables are recorded; empty for derived ones.
        inputs: derived product -> the assets that it is made of, and whose they are.
        plans: of derived products.
    """

    title: str
    layout: Layout
    targets: Sequence[Target]
    schemas_uri: str = ""
    inputs: Mapping[ProductName, Mapping[dg.AssetKey, ProductName]] = field(default_factory=dict)
    plans: Mapping[ProductName, DerivePlan] = field(default_factory=dict)

    @classmethod
    def captured(cls, plan: CapturePlan) -> Subject:
        """A source."""
        source = plan.source
        return cls(f"{source.domain}.{source.name}", plan.layout, plan.targets, plan.part_uri("schemas"))

    @classmethod
    def derived(cls, domain: str, plans: Sequence[DerivePlan]) -> Subject:
        """The derived products of a domain."""
        inputs = {
            plan.name: {key: ProductName(*key.path[:2]) for key in input_keys(plan.product)} for plan in plans
        }
        targets = [target for plan in plans for target in plan.targets]
        return cls(
            f"the derived products of {domain}",
            plans[0].layout,
            targets,
            inputs=inputs,
            plans={plan.name: plan for plan in plans},
        )


@dataclass
class _Table:
    """What has to be told about one asset."""

    target: Target
    key: dg.AssetKey
    log_key: dg.AssetKey
    kind: str
    metadata: Metadata = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    op_count: Counter[str] = field(default_factory=Counter)
    reported_op_count: Counter[str] = field(default_factory=Counter)
    dirty: bool = False
    reported_at: float = float("-inf")


class RunObserver:
    """Watches a shift for the Dagster run that it is.

    Args:
        context: the run's context; only the run's own thread may call this object.
        plan: what the shift drains, or the whole subject.
        interrupted: whether the run was asked to end.
        succeeded: whether the successor of this shift is ready.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        plan: CapturePlan | Subject,
        interrupted: Callable[[], bool],
        succeeded: Callable[[], bool],
        clock: Clock = time.monotonic,
    ) -> None:
        self._context = context
        self._interrupted = interrupted
        self._succeeded = succeeded
        self._clock = clock
        self._subject = subject = plan if isinstance(plan, Subject) else Subject.captured(plan)
        self._tables: dict[tuple[ProductName, str, str], _Table] = {}
        self._versions: dict[ProductName, VersionRow | None] = {}
        self._lineage: dict[ProductName, Mapping[str, dg.TableColumnLineage]] = {}
        for target in subject.targets:
            for kind in (CHANGES, CURRENT):
                self._tables[target.name, kind, target.table] = _Table(
                    target,
                    asset_key(target.name, kind, target.table),
                    asset_key(target.name, CHANGES, target.table),
                    kind,
                )
        self._code_versions = _code_versions(context)
        self._outcomes = Outcomes(self._log_check, subject.layout, clock)
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
            seen.metadata |= {
                ROW_COUNT: dg.MetadataValue.int(table.last_seq + 1),
                "delta/version": dg.MetadataValue.int(table.delta_version),
            }
            if not self._subject.inputs:
                seen.metadata["cdc/position"] = dg.MetadataValue.text(lsn_text(report.commit_lsn))
            if table.rejected_count:
                seen.metadata["mesh/rejected"] = dg.MetadataValue.int(table.rejected_count)
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
        self._versions[report.name] = report.row
        for (name, _kind, _table), seen in self._tables.items():
            if name == report.name:
                # A derived product's version says also that its inputs' changes changed nothing in it.
                seen.dirty = seen.dirty or bool(self._subject.inputs)

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

    def checked(self, report: CheckReport) -> None:
        """The quality rules of a product were evaluated: tell what is new."""
        failing = [one.sentence() for one in self._outcomes.tell(report) if not one.passed]
        if failing:
            self._context.log.warning(f"{report.name} version {report.version}: {'; '.join(failing)}")

    def cancelled(self) -> bool:
        """Whether the run was cancelled."""
        return self._interrupted()

    def relieved(self) -> bool:
        """Whether the successor of this shift is ready; asks at most every two seconds."""
        now = self._clock()
        if now - self._looked_at >= QUEUE_LOOK_SECONDS:
            self._looked_at = now
            self._relieved = self._succeeded()
        return self._relieved

    # -- the end

    def ended(self, result: ShiftResult) -> None:
        """Sum the shift up in the log."""
        self._tell(self._clock())
        snapshot = f", {result.snapshot_row_count:,} rows of snapshots" if result.snapshot_row_count else ""
        self._context.log.info(
            f"shift over {self._subject.title} ended ({result.reason}) after "
            f"{result.seconds:.1f} s: {result.row_count:,} changes in {result.transaction_count:,} "
            f"transactions and {result.batch_count:,} batches{snapshot}"
        )
        for name, reason in result.refused.items():
            kept = "stands as it is" if self._subject.inputs else "is parked, its changes are kept"
            self._context.log.error(f"{name} {kept}: {reason}")

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
                yield dg.MaterializeResult(
                    asset_key=seen.key, metadata=metadata, tags=self._version_tags(seen)
                )
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
        """Report tables that are due, the longest first: as many as do not keep the drain waiting."""
        began = time.monotonic()
        due = [one for one in self._tables.values() if one.dirty and now - one.reported_at >= REPORT_SECONDS]
        for seen in sorted(due, key=lambda one: one.reported_at):
            seen.reported_at = now
            self._log(seen)
            if time.monotonic() - began > _PAUSE_SECONDS:
                return

    def _log(self, seen: _Table) -> None:
        self._complete(seen)
        tags = self._version_tags(seen)
        self._context.log_event(
            dg.AssetMaterialization(asset_key=seen.key, metadata=self._metadata(seen), tags=tags)
        )

    def _version_tags(self, seen: _Table) -> dict[str, str]:
        """What Dagster judges staleness by: versions of the product and of what it is made of."""
        tags = {}
        name = seen.target.name
        own = self._data_version(seen)
        if own:
            tags["dagster/data_version"] = own
            row, made_of = self._version(name), self._subject.inputs.get(name, {})
            inputs = {seen.log_key: own} if seen.kind == CURRENT else {}
            if row is not None and seen.kind == CHANGES:
                inputs = {key: str(row.parents.get(str(one), 0)) for key, one in made_of.items()}
            for key, version in inputs.items():
                upstream = key.to_user_string()
                tags[f"dagster/input_data_version/{upstream}"] = version
                # Which event of it was read is not known here; without the tag it would be a new dependency.
                tags[f"dagster/input_event_pointer/{upstream}"] = "NULL"
        if code_version := self._code_versions.get(seen.key):
            tags["dagster/code_version"] = code_version
        return tags

    def _data_version(self, seen: _Table) -> str:
        """The product's version; before the first, that of the change log."""
        if row := self._version(seen.target.name):
            return str(row.version)
        log = next(one for one in self._tables.values() if one.key == seen.log_key)
        self._complete(log)
        version = log.metadata.get("delta/version")
        return f"log-{version.value}" if version is not None else ""

    def _version(self, name: ProductName) -> VersionRow | None:
        """The newest version of a product, whoever wrote it."""
        if name not in self._versions:
            from mesh_assets.status import latest_version

            self._versions[name] = latest_version(self._subject.layout, name)
        return self._versions[name]

    def _uri(self, seen: _Table) -> str:
        """Where the table lies at the product's newest version."""
        row, target = self._version(seen.target.name), seen.target
        generation = row.generation(target.table) if row else target.generation
        return self._subject.layout.table(target.name, seen.kind, target.table, generation)

    def _complete(self, seen: _Table) -> None:
        """Read from the lake what no batch and no fold of this shift has told."""
        if ROW_COUNT in seen.metadata:
            return
        from mesh_assets.cdc.schema import SchemaLog
        from mesh_assets.lake.current import Current
        from mesh_assets.lake.log import ChangeLog
        from mesh_assets.lake.table import Table

        schemas_uri = self._subject.schemas_uri
        if schemas_uri and not seen.columns and Table.exists(schemas_uri):
            shape = SchemaLog(schemas_uri).latest(seen.target.source_table)
            self._see_columns(seen, shape.types if shape else {})
        try:
            if seen.kind == CHANGES:
                log = ChangeLog.open(self._uri(seen))
                row_count, version = log.seq + 1, log.table.version
            else:
                current = Current.open(self._uri(seen))
                if current.folded < 0:
                    return
                row_count, version = current.row_count, current.table.version
        except TableMissing:
            return
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

    def _log_check(self, evaluation: dg.AssetCheckEvaluation) -> None:
        # Dagster takes it, though its signature does not say so.
        self._context.log_event(evaluation)

    def _column_lineage(self, seen: _Table) -> dg.TableColumnLineage | None:
        """What a derived table's columns are made of; planned once in a shift."""
        name = seen.target.name
        plan = self._subject.plans.get(name)
        if plan is None or self._version(name) is None:
            return None
        if name not in self._lineage:
            self._lineage[name] = derived_lineage(plan, self._context.log.info)
        return self._lineage[name].get(seen.target.table)

    def _metadata(self, seen: _Table) -> Metadata:
        new = seen.op_count - seen.reported_op_count
        seen.reported_op_count = Counter(seen.op_count)
        seen.dirty = False
        counts: Metadata = {_OPS[op]: dg.MetadataValue.int(count) for op, count in new.items() if op in _OPS}
        if counts:
            counts["cdc/changes"] = dg.MetadataValue.int(sum(new.values()))
        if row := self._version(seen.target.name):
            seen.metadata[VERSION] = dg.MetadataValue.int(row.version)
        if seen.kind == CHANGES and (lineage := self._column_lineage(seen)) is not None:
            seen.metadata[COLUMN_LINEAGE] = dg.MetadataValue.column_lineage(lineage)
        return {URI: dg.MetadataValue.path(self._uri(seen)), **seen.metadata, **counts}


def _code_versions(context: dg.AssetExecutionContext) -> Mapping[dg.AssetKey, str]:
    specs = context.assets_def.specs_by_key
    return {key: spec.code_version for key, spec in specs.items() if spec.code_version}
