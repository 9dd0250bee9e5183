"""The lineage of quality checks and statistics: which tables they looked at, as of when, what they found."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime

from mesh_assets.contract.model import Contract
from mesh_assets.lineage import facet
from mesh_assets.lineage.dataset import Dataset, Name, changes_dataset, current_dataset
from mesh_assets.lineage.event import Parent
from mesh_assets.lineage.recorder import Recorder, Recording
from mesh_assets.names import CHANGES, CURRENT, Layout, ProductName, lake_dataset, mesh_dataset

logger = logging.getLogger(__name__)


class CheckRecording:
    """One evaluation under way."""

    def __init__(self, recording: Recording, inputs: Mapping[str, tuple[Dataset, Dataset]]) -> None:
        self._recording = recording
        self._inputs = inputs

    def outcomes(
        self,
        table: str,
        assertions: Iterable[facet.Assertion],
        *,
        row_count: int | None = None,
        columns: Mapping[str, facet.ColumnMetrics] | None = None,
    ) -> None:
        """How the rules of one table came out.

        Args:
            table: the table.
            assertions: one per rule.
            row_count: how many rows it had.
            columns: what is known of its columns.
        """
        facets = {
            "dataQualityAssertions": facet.assertions(assertions),
            "dataQualityMetrics": facet.input_metrics(row_count=row_count, columns=columns),
        }
        _, current = self._inputs[table]
        self._recording.read(current.name, row_count=row_count, input_facets=facets)


@contextmanager
def check_run(
    layout: Layout,
    contract: Contract,
    version: int,
    tables: Iterable[str],
    checks_uri: str,
    *,
    generations: Mapping[str, int] | None = None,
    recorder: Recorder | None = None,
    parent: Parent | None = None,
    orchestrator: str = "",
    log: Callable[[str], None] = logger.warning,
) -> Iterator[CheckRecording]:
    """One evaluation of a product's rules, from its beginning to its end.

    Args:
        layout: of the lake.
        contract: the product's.
        version: of the product.
        tables: those that have rules.
        checks_uri: the table that keeps the outcomes.
        generations: of the tables that lie in another than the first.
        recorder: takes the events; one of its own when left out.
        parent: the run above it.
        orchestrator: the orchestrator's id of the run above it, where that is none of lineage.
        log: told of what fails, if the recorder is its own.
    """
    name = contract.name
    inputs = {
        table: _datasets(layout, contract, table, (generations or {}).get(table, 1)) for table in tables
    }
    kept = Dataset(lake_dataset(checks_uri), mesh_dataset(name, "checks"), layout.root, contract)
    datasets = [one for pair in inputs.values() for one in pair] + [kept]
    with ExitStack() as stack:
        if recorder is None:
            recorder = stack.enter_context(Recorder(layout.lineage(), log=log))
        recording = stack.enter_context(
            recorder.run(
                name.domain,
                name.product,
                "checks",
                datasets=datasets,
                reads=[one.name for one in datasets if one is not kept],
                parent=parent,
                orchestrator="" if parent else orchestrator,
                always=True,
            )
        )
        for one in datasets:
            recording.note(one.name, {"mesh_product": facet.product_version(str(name), version)})
        if parent is None:
            # No run above accounts for what is kept before this one is told, or if it never is.
            recording.start(outputs=[kept.name])
        yield CheckRecording(recording, inputs)


class StatisticsRecording:
    """Statistics that are being brought up to date."""

    def __init__(
        self, product: ProductName, recording: Recording, inputs: Mapping[str, Dataset], alone: Name | None
    ) -> None:
        self._product = product
        self._alone = alone
        self._recording = recording
        self._inputs = inputs

    def profiled(
        self,
        table: str,
        delta_version: int,
        columns: Mapping[str, facet.ColumnMetrics],
        *,
        row_count: int,
        byte_count: int,
        file_count: int,
        version: int | None,
    ) -> None:
        """The columns of a current table, as of a Delta version of it, are known.

        Args:
            table: the table.
            delta_version: of the current table.
            columns: what may be told of each.
            row_count, byte_count, file_count: of the table.
            version: of the product, if that is what the table holds.
        """
        metrics = facet.dataset_metrics(
            row_count=row_count,
            byte_count=byte_count,
            file_count=file_count,
            columns=columns,
            at=datetime.now(UTC),
        )
        current = self._inputs[table]
        self._recording.read(current.name, version=delta_version, row_count=row_count)
        self._recording.note(current.name, {"dataQualityMetrics": metrics})
        if version is not None:
            made = facet.product_version(str(self._product), version)
            self._recording.note(current.name, {"mesh_product": made})
        if self._alone and not self._recording.started:
            # As for checks; something is about to be kept.
            self._recording.start(outputs=[self._alone])


@contextmanager
def statistics_run(
    layout: Layout,
    contract: Contract,
    statistics_uri: str,
    *,
    generations: Mapping[str, int] | None = None,
    recorder: Recorder | None = None,
    parent: Parent | None = None,
    log: Callable[[str], None] = logger.warning,
) -> Iterator[StatisticsRecording]:
    """One refresh of a product's statistics; nothing is told of one that finds nothing new.

    Args:
        layout: of the lake.
        contract: the product's.
        statistics_uri: the table that keeps the statistics.
        generations: of the tables that lie in another than the first.
        recorder: takes the events; one of its own when left out.
        parent: the run above it.
        log: told of what fails, if the recorder is its own.
    """
    name = contract.name
    inputs = {
        table.name: _datasets(layout, contract, table.name, (generations or {}).get(table.name, 1))[1]
        for table in contract.tables
    }
    kept = Dataset(lake_dataset(statistics_uri), mesh_dataset(name, "statistics"), layout.root, contract)
    with ExitStack() as stack:
        if recorder is None:
            recorder = stack.enter_context(Recorder(layout.lineage(), log=log))
        datasets = (*inputs.values(), kept)
        run = recorder.run(name.domain, name.product, "statistics", datasets=datasets, parent=parent)
        alone = kept.name if parent is None else None
        yield StatisticsRecording(name, stack.enter_context(run), inputs, alone)


def _datasets(layout: Layout, contract: Contract, table: str, generation: int) -> tuple[Dataset, Dataset]:
    """A table's change log and its current table."""
    name = contract.name
    changes_uri = layout.table(name, CHANGES, table, generation)
    changes = changes_dataset(layout, name, table, changes_uri, contract)
    uri, key = layout.table(name, CURRENT, table, generation), contract.table(table).key
    return changes, current_dataset(layout, name, table, uri, contract, changes=changes.name, key=key)
