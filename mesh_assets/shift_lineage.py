"""The lineage of a shift: OpenLineage events for the capture and for each fold beside it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from openlineage.client.event_v2 import InputDataset, OutputDataset
from psycopg.conninfo import conninfo_to_dict

from mesh_assets.lake.position import Lsn
from mesh_assets.lineage.event import (
    LineageRun,
    Parent,
    lake_input,
    lake_output,
    source_table,
)
from mesh_assets.lineage.store import LineageStore
from mesh_assets.names import ProductName, lineage_job
from mesh_assets.plan import CapturePlan, Target
from mesh_assets.report import FoldReport, TableReport, VersionReport


@dataclass
class _Written:
    """Delta versions and rows of one change log that no version event has listed yet."""

    first_delta_version: int
    delta_version: int
    row_count: int


class ShiftLineage:
    """Emits START when entered, RUNNING per product version, and a terminal event when left."""

    def __init__(self, plan: CapturePlan, run_id: str, log: Callable[[str], None]) -> None:
        self._plan = plan
        self._store = LineageStore(plan.layout.lineage(), log=log)
        source = plan.source
        namespace, name = lineage_job(source.domain, source.name, "capture")
        self._run = LineageRun(namespace, name, "CAPTURE", streaming=True, parent=_parent(run_id, namespace))
        self._targets = {(target.name, target.table): target for target in plan.targets}
        self._written: dict[tuple[ProductName, str], _Written] = {}

    def __enter__(self) -> Self:
        targets = self._plan.targets
        self._store.emit(
            self._run.start(
                inputs=[self._input(target) for target in targets],
                outputs=[lake_output(target.changes_uri) for target in targets],
            )
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        inputs, outputs = self._datasets(self._targets, "")
        if error is not None:
            self._store.emit(self._run.fail(error, inputs=inputs, outputs=outputs))
        else:
            self._store.emit(self._run.complete(inputs=inputs, outputs=outputs))
        self._store.close()

    def appended(self, report: TableReport) -> None:
        """A change log has grown by one commit."""
        key = (report.name, report.table)
        written = self._written.setdefault(key, _Written(report.delta_version, report.delta_version, 0))
        written.delta_version = report.delta_version
        written.row_count += report.row_count

    def version(self, report: VersionReport) -> None:
        """A product version is durable: list every Delta version that it covers."""
        lsn = report.row.lsn
        mine = {key: target for key, target in self._targets.items() if key[0] == report.name}
        inputs, outputs = self._datasets(mine, str(Lsn(lsn)) if lsn else "")
        outputs.append(lake_output(self._plan.layout.versions(report.name), row_count=1))
        self._store.emit(self._run.running(inputs=inputs, outputs=outputs))

    def fold(self, report: FoldReport) -> None:
        """A current table was folded: a run of its own, begun and ended."""
        target = self._targets[(report.name, report.table)]
        namespace, name = lineage_job(report.name.domain, f"{report.name.product}.{report.table}", "fold")
        parent = Parent(self._run.run_id, self._run.namespace, self._run.name)
        run = LineageRun(namespace, name, "FOLD", parent=parent)
        inputs = [lake_input(target.changes_uri, row_count=report.tail_row_count)]
        outputs = [lake_output(target.current_uri, version=report.delta_version, row_count=report.row_count)]
        start = run.start(report.started_at, inputs=inputs, outputs=[lake_output(target.current_uri)])
        self._store.emit(start, run.complete(inputs=inputs, outputs=outputs), urgent=False)

    def flush_if_due(self) -> None:
        """Write what waits; called where nothing else happens."""
        self._store.flush_if_due()

    def _input(self, target: Target, position: str = "", row_count: int | None = None) -> InputDataset:
        address = conninfo_to_dict(self._plan.source.url)
        return source_table(
            str(address.get("host") or "localhost").split(",")[0],
            int(str(address.get("port") or 5432).split(",")[0]),
            str(address.get("dbname") or ""),
            target.source_table,
            position=position or None,
            row_count=row_count,
        )

    def _datasets(
        self, targets: dict[tuple[ProductName, str], Target], position: str
    ) -> tuple[list[InputDataset], list[OutputDataset]]:
        """What was read and written since the last event that listed it."""
        inputs, outputs = [], []
        for key, target in targets.items():
            written = self._written.pop(key, None)
            if written is None:
                continue
            inputs.append(self._input(target, position, written.row_count))
            outputs.append(
                lake_output(
                    target.changes_uri,
                    version=written.delta_version,
                    first_version=written.first_delta_version,
                    row_count=written.row_count,
                )
            )
        return inputs, outputs


def _parent(run_id: str, namespace: str) -> Parent | None:
    try:
        return Parent(str(uuid.UUID(run_id)), namespace, "dagster")
    except ValueError:
        return None
