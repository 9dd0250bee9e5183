"""The lineage of a capture shift: one run from its start to its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from openlineage.client.facet_v2 import JobFacet
from psycopg.conninfo import conninfo_to_dict

from mesh_assets.contract.model import Contract
from mesh_assets.lake.position import Lsn
from mesh_assets.lineage import facet
from mesh_assets.lineage.dataset import (
    Dataset,
    Name,
    changes_dataset,
    same_columns,
    versions_dataset,
)
from mesh_assets.lineage.event import LineageRun, orchestrated
from mesh_assets.lineage.reconcile import recover
from mesh_assets.lineage.recorder import Recorder, Recording
from mesh_assets.names import ProductName, lake_dataset, lineage_job, postgres_dataset
from mesh_assets.shift.lineage import Tending
from mesh_assets.shift.plan import CapturePlan, Target, beside
from mesh_assets.shift.report import TableReport, VersionReport


class ShiftLineage:
    """Emits START when entered, RUNNING per product version, and a terminal event when left.

    Everything that the thread commits inside is the capture run's.

    Attributes:
        recorder: takes the runs of folds and upkeep, from whichever thread.
    """

    def __init__(self, plan: CapturePlan, run_id: str, log: Callable[[str], None]) -> None:
        self._plan = plan
        self._log = log
        self.recorder = Recorder(plan.layout.lineage(), log=log)
        source = plan.source
        namespace, name = lineage_job(source.domain, source.name, "capture")
        run = LineageRun(
            namespace,
            name,
            "CAPTURE",
            streaming=True,
            parent=orchestrated(run_id, namespace),
            orchestrator=run_id,
            job_facets=_job_facets(plan),
        )
        self._sources = {(target.name, target.table): _source_name(plan, target) for target in plan.targets}
        self._parts = {name: self._parts_of(name) for name in plan.products}
        self._recording = Recording(self.recorder, run, self._datasets())
        self._truncate_count: Counter[tuple[ProductName, str]] = Counter()
        self._inside = ExitStack()

    def __enter__(self) -> Self:
        recording, layout = self._recording, self._plan.layout
        self._close_dead()
        for name in self._sources.values():
            recording.read(name)
        outputs = [lake_dataset(target.changes_uri) for target in self._plan.targets]
        outputs += [lake_dataset(layout.versions(name)) for name in self._plan.products]
        recording.start(outputs=outputs)
        self._inside.enter_context(recording.making())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside.close()
        self._recording.end(error)
        self.recorder.close()

    @property
    def tending(self) -> Tending:
        """The lineage of folds and upkeep beside this shift."""
        contracts = {name: product.contract for name, product in self._plan.definitions.items()}
        return Tending(self.recorder, self._plan.layout, contracts, lambda name: self._recording.parent)

    def appended(self, report: TableReport) -> None:
        """A change log has grown by one commit."""
        key = (report.name, report.table)
        self._recording.read(self._sources[key], row_count=report.row_count)
        truncate_count = report.op_count.get("t", 0)
        if truncate_count > self._truncate_count[key]:
            self._truncate_count[key] = truncate_count
            target = next(one for one in self._plan.targets if (one.name, one.table) == key)
            self._recording.changed(lake_dataset(target.changes_uri), "TRUNCATE")

    def snapshot(self, target: Target, row_count: int) -> None:
        """Rows of a table were read by a snapshot."""
        self._recording.read(self._sources[(target.name, target.table)], row_count=row_count)

    def version(self, report: VersionReport) -> None:
        """A product version is durable: list every Delta version that it covers."""
        lsn = report.row.lsn
        made = {"mesh_product": facet.product_version(str(report.name), report.row.version)}
        sources, written = self._parts[report.name]
        if lsn:
            for name in sources:
                self._recording.reached(name, str(Lsn(lsn)))
        self._recording.gather()
        for name in (*written, *sources):
            self._recording.note(name, made)
        self._recording.progress((*written, *sources))

    def flush_if_due(self) -> None:
        """Write what waits; called where nothing else happens."""
        if self.recorder.store.due:
            self._recording.gather()
            self.recorder.flush_if_due()

    def _close_dead(self) -> None:
        """Tell the end of an earlier shift that was killed, and what it and its folds committed."""
        run = self._recording.run
        tables = [target.changes_uri for target in self._plan.targets]
        tables += [target.current_uri for target in self._plan.targets]
        tables += [uri for name in self._plan.products for uri in beside(self._plan.layout, name)]
        recover(self.recorder, (run.namespace, run.name), tables)

    def _datasets(self) -> list[Dataset]:
        plan, layout = self._plan, self._plan.layout
        found = [versions_dataset(layout, name, self._contract(name)) for name in plan.products]
        for target in plan.targets:
            source = self._sources[(target.name, target.table)]
            found.append(_source_dataset(plan, target, source))
            found.append(
                changes_dataset(
                    layout,
                    target.name,
                    target.table,
                    target.changes_uri,
                    self._contract(target.name),
                    columns=same_columns("source"),
                    inputs={"source": source},
                )
            )
        return found

    def _parts_of(self, product: ProductName) -> tuple[list[Name], list[Name]]:
        """What a version of a product covers: the source's tables, and those that capture writes."""
        mine = [target for target in self._plan.targets if target.name == product]
        written = [lake_dataset(self._plan.layout.versions(product))]
        written += [lake_dataset(target.changes_uri) for target in mine]
        return [self._sources[(target.name, target.table)] for target in mine], written

    def _contract(self, name: ProductName) -> Contract | None:
        product = self._plan.definitions.get(name)
        return product.contract if product else None


def _job_facets(plan: CapturePlan) -> dict[str, JobFacet]:
    owners = [
        product.contract.owners[0]
        for _, product in sorted(plan.definitions.items())
        if product.contract.owners
    ]
    facets: dict[str, JobFacet] = {
        "sourceCodeLocation": facet.code_location(Path(__file__).with_name("shift.py"))
    }
    if owners:
        facets["ownership"] = facet.job_owners(list(dict.fromkeys(owners)))
    return facets


def _address(plan: CapturePlan) -> tuple[str, int, str]:
    address = conninfo_to_dict(plan.source.url)
    host = str(address.get("host") or "localhost").split(",")[0]
    port = int(str(address.get("port") or 5432).split(",")[0])
    return host, port, str(address.get("dbname") or "")


def _source_name(plan: CapturePlan, target: Target) -> Name:
    schema, _, table = target.source_table.partition(".")
    return postgres_dataset(*_address(plan), schema, table)


def _source_dataset(plan: CapturePlan, target: Target, name: Name) -> Dataset:
    host, port, database = _address(plan)
    source = plan.source
    address = facet.data_source(f"{source.domain}.{source.name}", f"postgresql://{host}:{port}/{database}")
    return Dataset(name, facets={"dataSource": address})
