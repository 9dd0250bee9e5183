"""The lineage of derived products: one run per product and shift, with the columns its transform uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import polars as pl

from mesh_assets.derive.generation import going_on
from mesh_assets.derive.plan import DerivePlan, Subscription
from mesh_assets.derive.reading import change_logs, columns_made, columns_possible, schemas_of
from mesh_assets.lake.version import VersionLog, VersionRow
from mesh_assets.lineage import facet
from mesh_assets.lineage.columns import ColumnLineage
from mesh_assets.lineage.dataset import (
    Columns,
    Dataset,
    changes_dataset,
    versions_dataset,
)
from mesh_assets.lineage.event import LineageRun, Parent, orchestrated
from mesh_assets.lineage.reconcile import recover
from mesh_assets.lineage.recorder import Recorder, Recording
from mesh_assets.names import ProductName, lake_dataset, lineage_job
from mesh_assets.shift.lineage import Tending
from mesh_assets.shift.plan import Target, beside
from mesh_assets.shift.report import VersionReport


class DeriveLineage:
    """Emits, for each product, START when its work first begins, RUNNING per version, and a terminal event.

    Products may be worked on in several threads, each product in one at a time: what is kept here is
    kept by product, and none waits for another's.

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
        self._columns: dict[ProductName, ColumnLineage | None] = {}
        self._schemas: dict[ProductName, dict[str, pl.Schema]] = {}
        self._inputs: dict[ProductName, dict[str, str]] = {}
        self._targets: dict[ProductName, tuple[Target, ...]] = {}
        self._made: set[ProductName] = set()
        self._recovered: set[ProductName] = set()
        self._layout = plans[0].layout
        self.recorder = Recorder(self._layout.lineage(), log=log)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._open):
            self._end(name, error)
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
        if heads is not None and self._inputs.get(name) != change_logs(self._plans[name], heads):
            self._end(name)
        if name not in self._open:
            self._open[name] = self._begin(self._plans[name], heads)
        with self._open[name].making():
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
        mine = [lake_dataset(target.changes_uri) for target in self._targets[plan.name]]
        mine.append(lake_dataset(plan.layout.versions(plan.name)))
        made = {"mesh_product": facet.product_version(str(plan.name), report.row.version)}
        recording.gather()
        for name in mine:
            recording.note(name, made)
        recording.progress()

    def failed(self, name: ProductName, error: BaseException) -> None:
        """A product's run ends with an error; the others go on, and its next work begins another run."""
        if name not in self._open:
            self._open[name] = self._begin(self._plans[name])
        self._end(name, error)

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
        inputs = change_logs(plan, heads)
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
            parent=orchestrated(self._run_id, namespace),
            orchestrator=self._run_id,
            job_facets={
                "sourceCodeLocation": facet.code_location(plan.transform),
                "ownership": facet.job_owners(contract.owners[:1]),
            },
        )
        if plan.name not in self._recovered:
            self._recovered.add(plan.name)
            tables = [*plan.held_uris(), *beside(plan.layout, plan.name)]
            recover(self.recorder, (namespace, name), tables)
        self._targets[plan.name] = targets = going_on(plan, VersionLog(plan.versions_uri).latest())
        recording = Recording(self.recorder, run, self._datasets(plan))
        for uri in inputs.values():
            recording.read(lake_dataset(uri))
        outputs = [lake_dataset(target.changes_uri) for target in targets]
        recording.start(outputs=[*outputs, lake_dataset(plan.layout.versions(plan.name))])
        return recording

    def _end(self, name: ProductName, error: BaseException | None = None) -> None:
        """A product's run, if one is open, has ended."""
        if (recording := self._open.pop(name, None)) is not None:
            recording.end(error)
            self._made.discard(name)

    def _datasets(self, plan: DerivePlan) -> list[Dataset]:
        layout, contract = plan.layout, plan.product.contract
        found = [versions_dataset(layout, plan.name, contract)]
        uris = self._inputs[plan.name]
        inputs = {name: lake_dataset(uri) for name, uri in uris.items()}
        found += [
            changes_dataset(layout, one.product, one.table, uris[one.name], None) for one in plan.inputs
        ]
        for target in self._targets[plan.name]:

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
        schemas = self._schemas.get(plan.name) or schemas_of(plan, self._inputs[plan.name])
        if schemas is None:
            return {}
        self._schemas[plan.name] = schemas
        rows = [name for name in names if not name.startswith("_")]
        made = columns_possible(plan, schemas, rows)
        if plan.name in self._made:
            # Else its function may have failed or never end, and would not tell its columns either.
            if plan.name not in self._columns:
                self._columns[plan.name] = columns_made(plan, schemas, log=self._log)
            found = (self._columns[plan.name] or {}).get(table, {})
            made |= {name: found[name] for name in rows if name in found}
        return made
