"""The lineage of quality checks: which tables they looked at, at which version, and how they came out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from mesh_assets.contract.model import Contract
from mesh_assets.lineage import facet
from mesh_assets.lineage.dataset import Dataset, changes_dataset, current_dataset
from mesh_assets.lineage.event import Parent
from mesh_assets.lineage.recorder import Recorder, Recording
from mesh_assets.names import CHANGES, CURRENT, Layout, lake_dataset, mesh_dataset

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
    recorder: Recorder | None = None,
    parent: Parent | None = None,
    log: Callable[[str], None] = logger.warning,
) -> Iterator[CheckRecording]:
    """One evaluation of a product's rules, from its beginning to its end.

    Args:
        layout: of the lake.
        contract: the product's.
        version: of the product.
        tables: those that have rules.
        checks_uri: the table that keeps the outcomes.
        recorder: takes the events; one of its own when left out.
        parent: the run above it.
        log: told of what fails, if the recorder is its own.
    """
    name = contract.name
    inputs = {}
    for table in tables:
        changes = changes_dataset(layout, name, table, layout.table(name, CHANGES, table), contract)
        current = current_dataset(
            layout,
            name,
            table,
            layout.table(name, CURRENT, table),
            contract,
            changes=changes.name,
            key=contract.table(table).key,
        )
        inputs[table] = (changes, current)
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
                always=True,
            )
        )
        for one in datasets:
            recording.note(one.name, {"mesh_product": facet.product_version(str(name), version)})
        yield CheckRecording(recording, inputs)
