"""The lineage of derived products: one run per product and shift, with the columns its transform uses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import polars as pl
from deltalake.exceptions import DeltaError

from mesh_assets.derive.plan import DerivePlan, Subscription
from mesh_assets.errors import MeshError, TransformError
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.version import VersionLog, VersionRow
from mesh_assets.lineage import facet
from mesh_assets.lineage.columns import ColumnLineage, everything
from mesh_assets.lineage.dataset import (
    Columns,
    Dataset,
    changes_dataset,
    versions_dataset,
)
from mesh_assets.lineage.event import LineageRun, Parent
from mesh_assets.lineage.reconcile import recover
from mesh_assets.lineage.recorder import Recorder, Recording
from mesh_assets.lineage.transform import transform_columns
from mesh_assets.names import ProductName, lake_dataset, lineage_job
from mesh_assets.shift.lineage import Tending, parent_of
from mesh_assets.shift.report import VersionReport


class DeriveLineage:
    """Emits, for each product, START when its work first begins, RUNNING per version, and a terminal event.

    Products may be worked on in several threads, each product in one at a time.

    Attributes:
        recorder: takes the events of all runs, from whichever thread.

    Args:
        plans: the products of the shift; at least one.
        run_id: the orchestrator's run.
        log: told of what fails.
    """

    def __init__(self, plans: Sequence[DerivePlan], run_id: str, log: Callable[[str], None]) -> None:
        self._plans = {plan.name: plan for plan in plans}
        self._run_id = run_id
        self._log = log
        self._open: dict[ProductName, Recording] = {}
        self._columns: dict[ProductName, tuple[str, ColumnLineage | None]] = {}
        self._schemas: dict[ProductName, dict[str, pl.Schema]] = {}
        self._inputs: dict[ProductName, dict[str, str]] = {}
        self._made: set[ProductName] = set()
        self._recovered: set[ProductName] = set()
        self._layout = plans[0].layout
        self._lock = threading.RLock()
        self.recorder = Recorder(self._layout.lineage(), log=log)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, recording in self._open.items():
            if name not in self._made:
                # Nothing was written that a column could be told of, and its function may never end.
                self._columns.setdefault(name, (self._plans[name].code_hash, None))
            recording.end(error)
        self._open.clear()
        self.recorder.close()

    @contextmanager
    def product(
        self, name: ProductName, heads: Mapping[ProductName, VersionRow] | None = None
    ) -> Iterator[None]:
        """Let all that this thread commits inside be the product's run's, which begins if none is open.

        Args:
            name: the product.
            heads: the versions of its inputs that are read; a run reads each input in one generation.
        """
        with self._lock:
            moved = heads is not None and self._inputs.get(name) != _uris(self._plans[name], heads)
            if moved and name in self._open:
                self._open.pop(name).end(None)
            if name not in self._open:
                self._open[name] = self._begin(self._plans[name], heads)
            recording = self._open[name]
        with recording.making():
            yield

    def read(
        self,
        name: ProductName,
        subscription: Subscription,
        *,
        version: int | None = None,
        first_version: int | None = None,
        row_count: int | None = None,
    ) -> None:
        """A product read (some more of) the change log of an input.

        Args:
            name: the product.
            subscription: the input.
            version: the Delta version of the log that was read.
            first_version: the first of the Delta versions whose changes were read.
            row_count: changes read.
        """
        if (recording := self._open.get(name)) is not None:
            recording.read(
                lake_dataset(self._inputs[name][subscription.name]),
                version=version,
                first_version=first_version,
                row_count=row_count,
            )

    def version(self, report: VersionReport) -> None:
        """A product version is durable: list every Delta version that it covers, and what it was made of."""
        plan, recording = self._plans[report.name], self._open[report.name]
        self._made.add(report.name)
        for one in plan.inputs:
            name = lake_dataset(self._inputs[plan.name][one.name])
            recording.read(name)
            parent = report.row.parents.get(str(one.product))
            if parent is not None:
                recording.note(name, {"mesh_product": facet.product_version(str(one.product), parent)})
        mine = [lake_dataset(target.changes_uri) for target in plan.targets]
        mine.append(lake_dataset(plan.layout.versions(plan.name)))
        made = {"mesh_product": facet.product_version(str(plan.name), report.row.version)}
        recording.gather()
        for name in mine:
            recording.note(name, made)
        recording.progress()

    def failed(self, name: ProductName, error: BaseException) -> None:
        """A product's run ends with an error; the others go on, and its next work begins another run."""
        with self._lock:
            recording = self._open.pop(name, None) or self._begin(self._plans[name])
        if isinstance(error, TransformError):
            # A function that fails, or never ends, would not tell its columns either.
            self._columns.setdefault(name, (self._plans[name].code_hash, None))
        recording.end(error)

    def flush_if_due(self) -> None:
        """Write what waits; called where nothing else happens."""
        for recording in list(self._open.values()):
            recording.gather()
        self.recorder.flush_if_due()

    @property
    def tending(self) -> Tending:
        """The lineage of folds, upkeep and checks of the products' tables."""
        contracts = {name: plan.product.contract for name, plan in self._plans.items()}

        def parent(name: ProductName) -> Parent | None:
            recording = self._open.get(name)
            return recording.parent if recording else None

        return Tending(self.recorder, self._layout, contracts, parent)

    # -- one run ------------------------------------------------------------------------------

    def _begin(self, plan: DerivePlan, heads: Mapping[ProductName, VersionRow] | None = None) -> Recording:
        inputs = _uris(plan, heads)
        if self._inputs.get(plan.name) != inputs:
            self._inputs[plan.name] = inputs
            self._schemas.pop(plan.name, None)
            self._columns.pop(plan.name, None)
        namespace, name = lineage_job(plan.name.domain, plan.name.product, "derive")
        contract = plan.product.contract
        run = LineageRun(
            namespace,
            name,
            "DERIVE",
            streaming=True,
            parent=parent_of(self._run_id, namespace),
            orchestrator=self._run_id,
            job_facets={
                "sourceCodeLocation": facet.code_location(plan.transform),
                "ownership": facet.job_owners(contract.owners[:1]),
            },
        )
        if plan.name not in self._recovered:
            self._recovered.add(plan.name)
            tables = [target.changes_uri for target in plan.targets]
            tables += [target.current_uri for target in plan.targets]
            tables.append(plan.layout.versions(plan.name))
            recover(plan.layout.lineage(), self.recorder, (namespace, name), tables)
        recording = Recording(self.recorder, run, self._datasets(plan))
        for uri in inputs.values():
            recording.read(lake_dataset(uri))
        outputs = [lake_dataset(target.changes_uri) for target in plan.targets]
        recording.start(outputs=[*outputs, lake_dataset(plan.layout.versions(plan.name))])
        return recording

    def _datasets(self, plan: DerivePlan) -> list[Dataset]:
        layout, contract = plan.layout, plan.product.contract
        found = [versions_dataset(layout, plan.name, contract)]
        uris = self._inputs[plan.name]
        inputs = {name: lake_dataset(uri) for name, uri in uris.items()}
        found += [
            changes_dataset(layout, one.product, one.table, uris[one.name], None) for one in plan.inputs
        ]
        for target in plan.targets:

            def columns(names: Sequence[str], table: str = target.table) -> Columns:
                return self._columns_of(plan, table, names)

            found.append(
                changes_dataset(
                    layout,
                    plan.name,
                    target.table,
                    target.changes_uri,
                    contract,
                    columns=columns,
                    inputs=inputs,
                )
            )
        return found

    def _columns_of(self, plan: DerivePlan, table: str, names: Sequence[str]) -> Columns:
        """The sources of a table's own columns; of everything, where the transform does not say."""
        schemas = self._schemas.setdefault(plan.name, {})
        for one in plan.inputs:
            uri = self._inputs[plan.name][one.name]
            if one.name not in schemas and (schema := _schema_of(uri)) is not None:
                schemas[one.name] = one.schema(schema)
        if len(schemas) < len(plan.inputs):
            return {}
        known = self._columns.get(plan.name)
        if known is None or known[0] != plan.code_hash:
            default = plan.product.contract.default_table
            known = (
                plan.code_hash,
                transform_columns(
                    plan.transform,
                    schemas,
                    default.name if default else plan.targets[0].table,
                    kept=plan.layout.catalog(plan.name, "lineage"),
                    log=self._log,
                ),
            )
            self._columns[plan.name] = known
        rows = [name for name in names if not name.startswith("_")]
        found = (known[1] or {}).get(table, {})
        made = everything(schemas, rows) | {name: sources for name, sources in found.items() if name in rows}
        named = {one.name: one for one in plan.inputs}
        return {
            name: tuple(
                dict.fromkeys(
                    source._replace(column=named[source.input].column(source.column)) for source in sources
                )
            )
            for name, sources in made.items()
        }


def _uris(plan: DerivePlan, heads: Mapping[ProductName, VersionRow] | None) -> dict[str, str]:
    """By input the change log that it is read from, at these versions or at the newest ones."""
    rows: Mapping[ProductName, VersionRow | None] = heads or {
        name: VersionLog(plan.layout.versions(name)).latest() for name in plan.input_products
    }
    return {one.name: one.changes_uri(rows[one.product]) for one in plan.inputs}


def _schema_of(uri: str) -> pl.Schema | None:
    """The columns of an input as the transform sees them; None while it cannot be read."""
    try:
        frame = pl.from_arrow(ChangeLog.open(uri).row_schema.empty_table())
    except (MeshError, DeltaError, OSError):
        return None
    assert isinstance(frame, pl.DataFrame)
    return frame.schema
