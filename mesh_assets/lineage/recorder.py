"""Runs as they happen: what a run reads and commits becomes its events.

A :class:`Recording` is one run under way. Every Delta commit made inside of
:meth:`Recording.making` is noted by the table itself (:mod:`mesh_assets.lake.origin`), so an event
lists exactly the versions that the run made, and none can be forgotten.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import pyarrow as pa
from openlineage.client.event_v2 import InputDataset, OutputDataset, RunEvent
from openlineage.client.facet_v2 import (
    DatasetFacet,
    InputDatasetFacet,
    OutputDatasetFacet,
    RunFacet,
    dataset_version_dataset,
    input_statistics_input_dataset,
    output_statistics_output_dataset,
)

from mesh_assets.errors import CommitConflict
from mesh_assets.lake.origin import Made, Origin, made_by
from mesh_assets.lineage import facet
from mesh_assets.lineage.dataset import Dataset, Name
from mesh_assets.lineage.event import LineageRun, Parent, orchestrated
from mesh_assets.lineage.facet import PRODUCER
from mesh_assets.lineage.store import FLUSH_SECONDS
from mesh_assets.lineage.transport import DeltaConfig, DeltaTransport, configured_forwarder
from mesh_assets.names import lake_dataset, lineage_job


@dataclass
class _Read:
    """What was read of one input."""

    versions: set[int] = field(default_factory=set)
    version: str | None = None
    row_count: int | None = None
    input_facets: dict[str, InputDatasetFacet] = field(default_factory=dict)
    facets: dict[str, DatasetFacet] = field(default_factory=dict)

    def add(self, other: _Read) -> None:
        self.versions |= other.versions
        self.version = other.version or self.version
        self.input_facets |= other.input_facets
        self.facets |= other.facets
        if other.row_count is not None:
            self.row_count = (self.row_count or 0) + other.row_count


@dataclass
class _Written:
    """What was committed to one output."""

    versions: set[int] = field(default_factory=set)
    row_count: int = 0
    byte_count: int = 0
    file_count: int = 0
    change: facet.Change | None = None
    schema: pa.Schema | None = None
    facets: dict[str, DatasetFacet] = field(default_factory=dict)

    def take(self, made: Made) -> None:
        self.versions.add(made.version)
        self.row_count += made.row_count
        self.byte_count += made.byte_count
        self.file_count += made.file_count
        self.schema = made.schema or self.schema
        if made.operation == "create" or self.change == "CREATE":
            self.change = "CREATE"
        elif made.operation == "alter":
            self.change = "ALTER"

    def add(self, other: _Written) -> None:
        self.versions |= other.versions
        self.row_count += other.row_count
        self.byte_count += other.byte_count
        self.file_count += other.file_count
        self.schema = other.schema or self.schema
        self.facets |= other.facets
        if self.change != "CREATE":
            self.change = other.change or self.change


class Recorder:
    """Takes the events of runs: into the lake's table first, then to what OpenLineage is configured with.

    Safe to use from several threads. It never raises for want of storage or of a receiver.

    Args:
        uri: the event table (:meth:`mesh_assets.names.Layout.lineage`).
        log: told of what fails, and of its end.
        flush_seconds: how long an event that is not urgent may wait in memory.
    """

    def __init__(self, uri: str, *, log: Callable[[str], None], flush_seconds: float = FLUSH_SECONDS) -> None:
        self._forwarder = configured_forwarder(log)
        # To whoever else wants it goes what the lake has.
        written = self._forwarder.emit if self._forwarder is not None else None
        self.store = DeltaTransport(DeltaConfig(uri, flush_seconds), log, written).store
        self._later: deque[Callable[[], RunEvent]] = deque()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def emit(self, *events: RunEvent, urgent: bool | None = None) -> None:
        """Take events over, in the order in which they happened (:meth:`LineageStore.emit`)."""
        with self._lock:
            waited = [self._later.popleft()() for _ in range(len(self._later))]
            self.store.emit(*waited, *events, urgent=urgent)

    def emit_later(self, make: Callable[[], RunEvent]) -> None:
        """Take over an event that is not urgent, to be made when it is written.

        A dozen made in a row cost half of what they do one by one, seconds apart, and what happens
        between two versions waits for none of them.
        """
        self._later.append(make)
        self.flush_if_due()

    def flush_if_due(self) -> None:
        """Write what waits, if it has waited long enough; call it where nothing else happens."""
        if self.store.due and (self._later or self.store.unsent_count):
            self.emit()

    def flush(self) -> bool:
        """Write what waits; whether nothing waits any more."""
        self.emit()
        return self.store.flush()

    def close(self) -> bool:
        """Write what waits; whether the lake has everything."""
        self.emit()
        written = self.store.close()
        if self._forwarder is not None:
            self._forwarder.close()
        return written

    @contextmanager
    def run(
        self,
        domain: str,
        subject: str,
        kind: str,
        *,
        datasets: Iterable[Dataset],
        reads: Iterable[Name] = (),
        parent: Parent | None = None,
        orchestrator: str = "",
        always: bool = False,
    ) -> Iterator[Recording]:
        """One run from its beginning to its end; every commit made inside is its own.

        Nothing is told of a run that neither committed nor failed, unless it was started (by
        :meth:`Recording.start`: at once, durably) or is to be told ``always``. A run that gives way to
        another writer (:class:`CommitConflict`) has not failed.

        Args:
            domain: whose job it is.
            subject: what the job is about, such as ``orders.order_lines``.
            kind: what it does, as in ``fold``; in capitals it is the job's type.
            datasets: the tables that it may read or write.
            reads: those of them that it reads.
            parent: the run above it.
            orchestrator: the orchestrator's id of the run above it, where that is none of lineage.
            always: tell of it even if it committed nothing.
        """
        namespace, name = lineage_job(domain, subject, kind)
        above = parent or orchestrated(orchestrator, namespace)
        run = LineageRun(namespace, name, kind.upper(), parent=above, orchestrator=orchestrator)
        recording = Recording(self, run, datasets)
        for one in reads:
            recording.read(one)
        started = datetime.now(UTC)
        try:
            with recording.making():
                yield recording
        except CommitConflict:
            recording.finish(started, told=always)
            raise
        except BaseException as error:
            recording.finish(started, told=True, error=error)
            raise
        recording.finish(started, told=always)


class Recording:
    """One run under way; safe to use from several threads.

    Args:
        recorder: where its events go.
        run: what it is.
        datasets: the tables that it may read or write; commits to others are not told.
    """

    def __init__(self, recorder: Recorder, run: LineageRun, datasets: Iterable[Dataset]) -> None:
        self.run = run
        self.started = False
        self._recorder = recorder
        self._datasets = {dataset.name: dataset for dataset in datasets}
        parent = run.parent.run_id if run.parent else ""
        self._origin = Origin(run.run_id, f"{run.namespace}/{run.name}", parent)
        self._reads: dict[Name, _Read] = {}
        self._writes: dict[Name, _Written] = {}
        self._all_reads: dict[Name, _Read] = {}
        self._all_writes: dict[Name, _Written] = {}
        self._shapes: dict[Name, pa.Schema] = {}
        self._named: dict[str, Name] = {}
        self._facets: dict[Name, dict[str, DatasetFacet]] = {}
        self._lock = threading.RLock()

    @property
    def parent(self) -> Parent:
        """This run as the one above another."""
        return Parent(self.run.run_id, self.run.namespace, self.run.name)

    @contextmanager
    def making(self) -> Iterator[None]:
        """Let every commit that this thread makes inside be this run's."""
        with made_by(self._origin):
            yield

    def read(
        self,
        name: Name,
        *,
        version: str | int | None = None,
        first_version: int | None = None,
        row_count: int | None = None,
        input_facets: Mapping[str, InputDatasetFacet] | None = None,
    ) -> None:
        """The run read (some more of) an input.

        Args:
            name: one of the datasets.
            version: how far: a Delta version, or a source's position.
            first_version: the first of the Delta versions, if it read what they changed.
            row_count: rows read.
            input_facets: further facets of the input.
        """
        versions = set()
        if first_version is not None and isinstance(version, int):
            versions = set(range(first_version, version + 1))
        more = _Read(versions, None if version is None else str(version), row_count, dict(input_facets or {}))
        with self._lock:
            self._reads.setdefault(name, _Read()).add(more)

    def reached(self, name: Name, version: str) -> None:
        """An input of which something was read was read as far as this."""
        with self._lock:
            if version and name in self._reads:
                self._reads[name].version = version

    def note(self, name: Name, facets: Mapping[str, DatasetFacet]) -> None:
        """Facets of a dataset in the next event that names it (and in the last), if one is to."""
        with self._lock:
            for one in (self._reads.get(name), self._writes.get(name)):
                if one is not None:
                    one.facets |= facets

    def describe(self, name: Name, facets: Mapping[str, DatasetFacet]) -> None:
        """Further facets of a dataset, in all events that name it from now on."""
        self._facets.setdefault(name, {}).update(facets)

    def changed(self, name: Name, change: facet.Change) -> None:
        """Something happened to an output as a whole; its next event says so."""
        with self._lock:
            self.gather()
            self._writes.setdefault(name, _Written()).change = change

    def start(self, at: datetime | None = None, *, outputs: Iterable[Name] = ()) -> None:
        """Tell that the run has begun, and what it is about to read and write."""
        self.started = True
        event = self.run.start(
            at,
            inputs=[self._input(name, _Read(), full=True) for name in self._reads],
            outputs=[self._output(name, None, self._about(name)) for name in outputs],
            facets=self._process(),
        )
        self._told(dict(self._reads), {})
        self._recorder.emit(event)

    def progress(self, names: Iterable[Name] | None = None) -> None:
        """Tell what was read and committed since it was last told; of some datasets, or of all."""
        with self._lock:
            self.gather()
            chosen = None if names is None else set(names)
            reads = {name: read for name, read in self._reads.items() if chosen is None or name in chosen}
            writes = {name: one for name, one in self._writes.items() if chosen is None or name in chosen}
            if not reads and not writes:
                return
            shapes = {name: self._shape(name, written) for name, written in writes.items()}
            self._told(reads, writes)
        at = datetime.now(UTC)

        def running() -> RunEvent:
            return self.run.running(
                at,
                inputs=[self._input(name, read) for name, read in reads.items()],
                outputs=[self._output(name, one, shapes[name]) for name, one in writes.items()],
            )

        self._recorder.emit_later(running)

    def end(self, error: BaseException | None = None) -> None:
        """Tell the end, with all that the run read and committed from its beginning."""
        inputs, outputs = self._whole()
        if error is not None:
            self._recorder.emit(self.run.fail(error, inputs=inputs, outputs=outputs))
        else:
            self._recorder.emit(self.run.complete(inputs=inputs, outputs=outputs))

    def finish(self, started: datetime, *, told: bool, error: BaseException | None = None) -> None:
        """Tell a short run as a whole; one that committed nothing only if it is to be ``told``."""
        inputs, outputs = self._whole()
        if not (told or outputs or self.started):
            return
        events = []
        if not self.started:
            named = [OutputDataset(one.namespace, one.name) for one in outputs]
            listed = [InputDataset(one.namespace, one.name) for one in inputs]
            events.append(self.run.start(started, inputs=listed, outputs=named, facets=self._process()))
        if error is not None:
            events.append(self.run.fail(error, inputs=inputs, outputs=outputs))
        else:
            events.append(self.run.complete(inputs=inputs, outputs=outputs))
        self._recorder.emit(*events, urgent=self.started)

    def _whole(self) -> tuple[list[InputDataset], list[OutputDataset]]:
        with self._lock:
            self.gather()
            self._told(dict(self._reads), dict(self._writes))
            inputs = [self._input(name, read, full=True) for name, read in self._all_reads.items()]
            outputs = [
                self._output(name, one, self._about(name) | self._shape(name, one, full=True))
                for name, one in self._all_writes.items()
            ]
        return inputs, outputs

    def _process(self) -> dict[str, RunFacet]:
        return {"mesh_process": facet.this_process(self.run.orchestrator)}

    def gather(self) -> None:
        """Take over what was noted of commits; call it now and then in a long run that tells nothing."""
        if not self._origin.waiting:
            return
        with self._lock:
            for made in self._origin.take():
                name = self._named.get(made.uri) or self._named.setdefault(made.uri, lake_dataset(made.uri))
                if name in self._datasets:
                    self._writes.setdefault(name, _Written()).take(made)

    def _told(self, reads: Mapping[Name, _Read], writes: Mapping[Name, _Written]) -> None:
        for name, read in reads.items():
            del self._reads[name]
            self._all_reads.setdefault(name, _Read()).add(read)
        for name, written in writes.items():
            del self._writes[name]
            self._all_writes.setdefault(name, _Written()).add(written)

    def _input(self, name: Name, read: _Read, *, full: bool = False) -> InputDataset:
        facets = self._about(name) if full else {}
        facets |= read.facets | _version(read.version, read.versions)
        input_facets = dict(read.input_facets)
        if read.row_count is not None:
            input_facets["inputStatistics"] = input_statistics_input_dataset.InputStatisticsInputDatasetFacet(
                rowCount=read.row_count, producer=PRODUCER
            )
        return InputDataset(*name, facets=facets, inputFacets=input_facets)

    def _about(self, name: Name) -> dict[str, DatasetFacet]:
        """What is told of a dataset at the beginning and the end of the run."""
        return (self._datasets.get(name) or Dataset(name)).about() | self._facets.get(name, {})

    def _shape(self, name: Name, written: _Written, *, full: bool = False) -> dict[str, DatasetFacet]:
        """The columns of an output and where they come from; nothing if that was told, unless ``full``."""
        schema = written.schema
        if schema is None or (schema == self._shapes.get(name) and not full):
            return {}
        self._shapes[name] = schema
        return (self._datasets.get(name) or Dataset(name)).shape(schema)

    def _output(
        self, name: Name, written: _Written | None, told: Mapping[str, DatasetFacet]
    ) -> OutputDataset:
        facets = dict(told)
        output_facets: dict[str, OutputDatasetFacet] = {}
        if written is not None:
            facets |= written.facets
            if written.versions:
                facets |= _version(str(max(written.versions)), written.versions)
            if written.change is not None:
                facets["lifecycleStateChange"] = facet.lifecycle(written.change)
            output_facets["outputStatistics"] = (
                output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
                    rowCount=written.row_count,
                    size=written.byte_count,
                    fileCount=written.file_count,
                    producer=PRODUCER,
                )
            )
        return OutputDataset(*name, facets=facets, outputFacets=output_facets)


def _version(version: str | None, versions: Iterable[int]) -> dict[str, DatasetFacet]:
    built: dict[str, DatasetFacet] = {}
    if version:
        built["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(
            datasetVersion=version, producer=PRODUCER
        )
    covered = list(versions)
    if covered:
        built["mesh_deltaVersions"] = facet.delta_versions(covered)
    return built
