"""The lineage of what runs beside a shift: one run for each fold and piece of upkeep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

from mesh_assets.contract.model import Contract
from mesh_assets.lake.current import Current
from mesh_assets.lake.fold import Fold
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lineage import facet
from mesh_assets.lineage.dataset import (
    Dataset,
    Name,
    changes_dataset,
    current_dataset,
    versions_dataset,
)
from mesh_assets.lineage.event import Parent
from mesh_assets.lineage.recorder import Recorder, Recording
from mesh_assets.names import Layout, ProductName, lake_dataset
from mesh_assets.shift.plan import Target


class FoldRecording:
    """One fold under way."""

    def __init__(self, recording: Recording, changes: Name, current: Name) -> None:
        self._recording = recording
        self._changes = changes
        self._current = current

    def folded(self, log: ChangeLog, current: Current, done: Fold) -> None:
        """The fold is done: say what was read, and what the table holds now."""
        recording = self._recording
        recording.read(self._changes, version=log.table.version, row_count=done.tail_row_count)
        recording.gather()
        metrics = facet.dataset_metrics(
            row_count=done.row_count,
            byte_count=current.byte_count,
            file_count=len(current.table.files()),
            at=datetime.now(UTC),
        )
        recording.note(self._current, {"dataQualityMetrics": metrics})


class Tending:
    """The lineage of what is done with tables beside a shift, from whichever thread.

    Attributes:
        recorder: takes the runs.
        parent: the run of the shift that writes a product.

    Args:
        recorder: takes the runs.
        layout: of the lake.
        contracts: of the products whose tables are tended.
        parent: the run of the shift that a product is written by, if there is one now.
    """

    def __init__(
        self,
        recorder: Recorder,
        layout: Layout,
        contracts: Mapping[ProductName, Contract],
        parent: Callable[[ProductName], Parent | None],
    ) -> None:
        self.recorder = recorder
        self.parent = parent
        self._layout = layout
        self._contracts = contracts

    @contextmanager
    def fold(self, target: Target) -> Iterator[FoldRecording]:
        """A current table is folded."""
        changes, current = self._tables(target)
        parent = self.parent(target.name)
        with self.recorder.run(
            target.name.domain,
            f"{target.name.product}.{target.table}",
            "fold",
            datasets=(changes, current),
            parent=parent,
        ) as recording:
            if parent is None:
                # No run above accounts for what this commits if it is never told.
                recording.start(outputs=[current.name])
            yield FoldRecording(recording, changes.name, current.name)

    @contextmanager
    def upkeep(self, target: Target, uri: str) -> Iterator[Recording]:
        """A table is compacted, archived and vacuumed: one of the target's, or one that lies beside it."""
        dataset = next(
            (one for one in self._tables(target) if one.name == lake_dataset(uri)),
            None,
        )
        subject = f"{target.name.product}.{target.table}"
        if dataset is None:
            dataset = self._beside(uri)
            subject = "/".join(part for part in uri.removeprefix(self._layout.root).split("/") if part)
        with self.recorder.run(
            target.name.domain, subject, "upkeep", datasets=(dataset,), parent=self.parent(target.name)
        ) as recording:
            yield recording

    def _tables(self, target: Target) -> tuple[Dataset, Dataset]:
        contract = self._contracts.get(target.name)
        changes = changes_dataset(self._layout, target.name, target.table, target.changes_uri, contract)
        current = current_dataset(
            self._layout,
            target.name,
            target.table,
            target.current_uri,
            contract,
            changes=changes.name,
            key=target.key,
        )
        return changes, current

    def _beside(self, uri: str) -> Dataset:
        for name, contract in self._contracts.items():
            if uri == self._layout.versions(name):
                return versions_dataset(self._layout, name, contract)
        return Dataset(lake_dataset(uri), warehouse=self._layout.root)
