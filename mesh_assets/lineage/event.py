"""OpenLineage run events, built from plain values; nothing here does I/O.

One :class:`LineageRun` per shift, fold, check or piece of upkeep: a START, any number of RUNNING
events, and one of COMPLETE, FAIL or ABORT. Facets beyond the ones set here are passed in by name.

Source: OpenLineage specification 2-0-2 and its naming rules.
"""

from __future__ import annotations

import json
import traceback
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, cached_property
from importlib import metadata
from typing import Any, Literal

import attr
import pyarrow as pa
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import (
    DatasetFacet,
    InputDatasetFacet,
    JobFacet,
    OutputDatasetFacet,
    RunFacet,
    dataset_version_dataset,
    error_message_run,
    input_statistics_input_dataset,
    job_type_job,
    output_statistics_output_dataset,
    parent_run,
    processing_engine_run,
)
from openlineage.client.serde import Serde
from openlineage.client.uuid import generate_new_uuid

from mesh_assets import names
from mesh_assets.lineage.facet import PRODUCER, delta_versions, moment, schema_facet, storage
from mesh_assets.lineage.secret import redacted

_ENGINE = "mesh-assets"
_INTEGRATION = "MESH"
_ADAPTER_VERSION = metadata.version("openlineage-python")
_STACK_LIMIT = 16_000


@dataclass(frozen=True)
class Parent:
    """The run that started a run, for example Dagster's; ``run_id`` is a UUID."""

    run_id: str
    namespace: str
    name: str


def orchestrated(run_id: str, namespace: str) -> Parent | None:
    """The orchestrator's run as the one above; None if its id is none that OpenLineage takes."""
    try:
        return Parent(str(uuid.UUID(run_id)), namespace, "dagster")
    except ValueError:
        return None


def new_run_id(at: datetime | None = None) -> str:
    """A UUID that sorts by time (version 7)."""
    return str(generate_new_uuid(at))


@dataclass(frozen=True)
class LineageRun:
    """One run of one job, from which its events are made.

    Attributes:
        namespace: the job's namespace (see :func:`mesh_assets.names.lineage_job`).
        name: the job's name in it.
        kind: what the job is, in capitals: CAPTURE, FOLD, DERIVE, CHECKS, STATISTICS, UPKEEP.
        run_id: a UUID; made when left out.
        streaming: whether the job follows a stream, or works off something finite.
        parent: the run that started this one.
        orchestrator: the orchestrator's own id of the run that this is part of.
        run_facets: further facets of the run, in every event.
        job_facets: further facets of the job, in every event.
    """

    namespace: str
    name: str
    kind: str
    run_id: str = field(default_factory=new_run_id)
    streaming: bool = False
    parent: Parent | None = None
    orchestrator: str = ""
    run_facets: Mapping[str, RunFacet] = field(default_factory=dict)
    job_facets: Mapping[str, JobFacet] = field(default_factory=dict)

    def event(
        self,
        state: RunState,
        at: datetime | None = None,
        *,
        inputs: Iterable[InputDataset] = (),
        outputs: Iterable[OutputDataset] = (),
        facets: Mapping[str, RunFacet] | None = None,
    ) -> RunEvent:
        """An event of this run.

        Args:
            state: the transition that it reports.
            at: when it happened; now when left out.
            inputs: what the run read.
            outputs: what it wrote.
            facets: further facets of the run, for this event.
        """
        return RunEvent(
            eventTime=moment(at),
            producer=PRODUCER,
            eventType=state,
            run=Run(self.run_id, facets=self._run_facets | dict(facets or {})),
            job=Job(self.namespace, self.name, facets=dict(self._job_facets)),
            inputs=list(inputs),
            outputs=list(outputs),
        )

    def start(
        self,
        at: datetime | None = None,
        *,
        inputs: Iterable[InputDataset] = (),
        outputs: Iterable[OutputDataset] = (),
        facets: Mapping[str, RunFacet] | None = None,
    ) -> RunEvent:
        """The run began; inputs and outputs are what it is about to use."""
        return self.event(RunState.START, at, inputs=inputs, outputs=outputs, facets=facets)

    def running(
        self,
        at: datetime | None = None,
        *,
        inputs: Iterable[InputDataset] = (),
        outputs: Iterable[OutputDataset] = (),
        facets: Mapping[str, RunFacet] | None = None,
    ) -> RunEvent:
        """The run has done a part of its work, for example one product version."""
        return self.event(RunState.RUNNING, at, inputs=inputs, outputs=outputs, facets=facets)

    def complete(
        self,
        at: datetime | None = None,
        *,
        inputs: Iterable[InputDataset] = (),
        outputs: Iterable[OutputDataset] = (),
        facets: Mapping[str, RunFacet] | None = None,
    ) -> RunEvent:
        """The run ended well."""
        return self.event(RunState.COMPLETE, at, inputs=inputs, outputs=outputs, facets=facets)

    def abort(
        self,
        at: datetime | None = None,
        *,
        inputs: Iterable[InputDataset] = (),
        outputs: Iterable[OutputDataset] = (),
        facets: Mapping[str, RunFacet] | None = None,
    ) -> RunEvent:
        """The run was ended from outside (cancelled, overtaken)."""
        return self.event(RunState.ABORT, at, inputs=inputs, outputs=outputs, facets=facets)

    def fail(
        self,
        error: BaseException,
        at: datetime | None = None,
        *,
        inputs: Iterable[InputDataset] = (),
        outputs: Iterable[OutputDataset] = (),
    ) -> RunEvent:
        """The run ended by an error, which goes into the ``errorMessage`` facet."""
        facets = {"errorMessage": error_facet(error)}
        return self.event(RunState.FAIL, at, inputs=inputs, outputs=outputs, facets=facets)

    @cached_property
    def _run_facets(self) -> dict[str, RunFacet]:
        facets: dict[str, RunFacet] = {
            "processing_engine": processing_engine_run.ProcessingEngineRunFacet(
                version=PRODUCER.rpartition(":")[2],
                name=_ENGINE,
                openlineageAdapterVersion=_ADAPTER_VERSION,
                producer=PRODUCER,
            )
        }
        if self.parent is not None:
            facets["parent"] = parent_run.ParentRunFacet(
                run=parent_run.Run(self.parent.run_id),
                job=parent_run.Job(self.parent.namespace, self.parent.name),
                producer=PRODUCER,
            )
        return facets | dict(self.run_facets)

    @cached_property
    def _job_facets(self) -> dict[str, JobFacet]:
        kind = job_type_job.JobTypeJobFacet(
            processingType="STREAMING" if self.streaming else "BATCH",
            integration=_INTEGRATION,
            jobType=self.kind,
            producer=PRODUCER,
        )
        return {"jobType": kind} | dict(self.job_facets)


def source_table(
    host: str,
    port: int,
    database: str,
    table: str,
    *,
    position: str | None = None,
    row_count: int | None = None,
    schema: pa.Schema | None = None,
    facets: Mapping[str, DatasetFacet] | None = None,
) -> InputDataset:
    """A PostgreSQL table that a run read.

    Args:
        host, port, database: where it is.
        table: ``schema.table``.
        position: how far it was read, as PostgreSQL writes a position (``0/16B3748``).
        row_count: changes read.
        schema: its columns, if the event shall carry them.
        facets: further facets.
    """
    schema_name, _, table_name = table.partition(".")
    namespace, name = names.postgres_dataset(host, port, database, schema_name, table_name)
    return InputDataset(
        namespace,
        name,
        facets=_dataset_facets(position, None, schema, facets),
        inputFacets=_input_statistics(row_count, None, None),
    )


def lake_input(
    uri: str,
    *,
    version: int | None = None,
    first_version: int | None = None,
    row_count: int | None = None,
    byte_count: int | None = None,
    file_count: int | None = None,
    schema: pa.Schema | None = None,
    facets: Mapping[str, DatasetFacet] | None = None,
) -> InputDataset:
    """A Delta table that a run read; see :func:`lake_output`."""
    namespace, name = names.lake_dataset(uri)
    span = _span(first_version, version)
    return InputDataset(
        namespace,
        name,
        facets=_dataset_facets(version, span, schema, {"storage": storage()} | dict(facets or {})),
        inputFacets=_input_statistics(row_count, byte_count, file_count),
    )


def lake_output(
    uri: str,
    *,
    version: int | None = None,
    first_version: int | None = None,
    row_count: int | None = None,
    byte_count: int | None = None,
    file_count: int | None = None,
    schema: pa.Schema | None = None,
    facets: Mapping[str, DatasetFacet] | None = None,
) -> OutputDataset:
    """A Delta table that a run wrote.

    Args:
        uri: where the table lies.
        version: the Delta version after writing.
        first_version: the first of the Delta versions that the event covers, if there are several.
        row_count, byte_count, file_count: what was written.
        schema: its columns, if the event shall carry them (enough at START and when they changed).
        facets: further facets.
    """
    namespace, name = names.lake_dataset(uri)
    span = _span(first_version, version)
    output_facets: dict[str, OutputDatasetFacet] = {}
    if (row_count, byte_count, file_count) != (None, None, None):
        output_facets["outputStatistics"] = (
            output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
                rowCount=row_count, size=byte_count, fileCount=file_count, producer=PRODUCER
            )
        )
    return OutputDataset(
        namespace,
        name,
        facets=_dataset_facets(version, span, schema, {"storage": storage()} | dict(facets or {})),
        outputFacets=output_facets,
    )


def error_facet(error: BaseException) -> error_message_run.ErrorMessageRunFacet:
    """What went wrong, with the end of the stack trace, and without passwords."""
    stack = "".join(traceback.format_exception(error))
    return error_message_run.ErrorMessageRunFacet(
        message=redacted(str(error)) or type(error).__name__,
        programmingLanguage="PYTHON",
        stackTrace=redacted(stack[-_STACK_LIMIT:]),
        producer=PRODUCER,
    )


def to_json(event: RunEvent) -> str:
    """An event as the JSON that OpenLineage defines: one line, sorted keys, no nulls."""
    try:
        return json.dumps(_plain(event), sort_keys=True)
    except TypeError:
        # A facet of somebody else's holds what has no form in JSON: the client puts a text in its place.
        return Serde.to_json(event)


_SCALARS = frozenset({str, int, float, bool})


def _plain(value: object) -> Any:  # noqa: ANN401 - whatever JSON has
    """What the client's own serialisation makes of a value, in one pass instead of three."""
    kind = type(value)
    if kind in _SCALARS:
        return value
    if (names := _attributes(kind)) is not None:  # type: ignore[arg-type]  # to mypy no class is hashable
        found = ((name, getattr(value, name)) for name in names)
        return {name: _plain(one) for name, one in found if one is not None}
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items() if one is not None}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain for one in value if one is not None and (plain := _plain(one)) != {}]
    return Serde.remove_nulls_and_enums(value)


@cache
def _attributes(kind: type[object]) -> tuple[str, ...] | None:
    """The attributes of a class of the client's; None if it is none."""
    return tuple(one.name for one in attr.fields(kind)) if attr.has(kind) else None


Direction = Literal["inputs", "outputs"]


def datasets(event: RunEvent, direction: Direction) -> list[dict[str, str | None]]:
    """Namespace, name and version of each input or output of an event."""
    found: Sequence[InputDataset | OutputDataset] = (
        (event.inputs or []) if direction == "inputs" else (event.outputs or [])
    )
    listed: list[dict[str, str | None]] = []
    for dataset in found:
        version = (dataset.facets or {}).get("version")
        known = isinstance(version, dataset_version_dataset.DatasetVersionDatasetFacet)
        listed.append(
            {
                "namespace": dataset.namespace,
                "name": dataset.name,
                "version": version.datasetVersion if known else None,  # type: ignore[union-attr]
            }
        )
    return listed


def _span(first_version: int | None, version: int | None) -> tuple[int, int] | None:
    if first_version is None or version is None:
        return None
    if first_version > version:
        raise ValueError(f"first_version {first_version} is after version {version}")
    return first_version, version


def _dataset_facets(
    version: str | int | None,
    span: tuple[int, int] | None,
    schema: pa.Schema | None,
    facets: Mapping[str, DatasetFacet] | None,
) -> dict[str, DatasetFacet]:
    built: dict[str, DatasetFacet] = {}
    if version is not None:
        built["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(
            datasetVersion=str(version), producer=PRODUCER
        )
    if span is not None:
        built["mesh_deltaVersions"] = delta_versions(range(span[0], span[1] + 1))
    if schema is not None:
        built["schema"] = schema_facet(schema)
    return built | dict(facets or {})


def _input_statistics(
    row_count: int | None, byte_count: int | None, file_count: int | None
) -> dict[str, InputDatasetFacet]:
    if (row_count, byte_count, file_count) == (None, None, None):
        return {}
    return {
        "inputStatistics": input_statistics_input_dataset.InputStatisticsInputDatasetFacet(
            rowCount=row_count, size=byte_count, fileCount=file_count, producer=PRODUCER
        )
    }
