"""Closes runs that died: killed, or cut off by a power failure, before they could tell their end.

A run's first event says which process it lives in. Where that is gone, the run is over: what it
committed is read from the tables themselves, whose commits carry the run's id, and told with an
ABORT. The same goes for a run that did not come to tell anything. The moment of such an event
follows from what is known of the run, so that two who close the same run say the same.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import polars as pl
import psutil
from openlineage.client.event_v2 import OutputDataset, RunEvent
from openlineage.client.facet_v2 import (
    DatasetFacet,
    OutputDatasetFacet,
    dataset_version_dataset,
    error_message_run,
    output_statistics_output_dataset,
)

from mesh_assets.lake.signature import Signature, signatures
from mesh_assets.lineage import facet
from mesh_assets.lineage.dataset import Name
from mesh_assets.lineage.event import LineageRun, Parent
from mesh_assets.lineage.facet import PRODUCER
from mesh_assets.lineage.recorder import Recorder
from mesh_assets.lineage.store import OVER, STORAGE_ERRORS, read
from mesh_assets.names import lake_dataset

logger = logging.getLogger(__name__)

LOOK_BACK = timedelta(days=7)
"""How long ago a run may have begun to be looked at; an older one was closed by an earlier look."""
SILENCE = timedelta(hours=24)
"""A run of another host is taken for dead after this long without an event, unless somebody knows better."""
UNTOLD = timedelta(hours=1)
"""A run that has told nothing, and is under none that has, is taken for dead this long after it committed."""
_STEP = timedelta(microseconds=1)
_START_TOLERANCE = 2.0


class Emitter(Protocol):
    """Who takes events: a :class:`~mesh_assets.lineage.recorder.Recorder`."""

    def emit(self, *events: RunEvent, urgent: bool | None = None) -> None:
        """Take events over."""

    def flush(self) -> bool:
        """Write what waits; whether nothing waits any more."""


@dataclass(frozen=True)
class OpenRun:
    """A run without an end.

    Attributes:
        orchestrator: the orchestrator's id of it, as it was given; empty if none.
        host, pid, process_started: the process it lives in; pid 0 if it is not known.
        outputs: the lake tables it was about to write, or has listed.
        listed: the Delta versions of them that its events list.
    """

    run_id: str
    namespace: str
    job: str
    kind: str
    started_at: datetime
    last_at: datetime
    orchestrator: str = ""
    host: str = ""
    pid: int = 0
    process_started: float = 0.0
    parent: Parent | None = None
    outputs: tuple[Name, ...] = ()
    listed: Mapping[Name, frozenset[int]] = field(default_factory=dict)

    @property
    def present(self) -> bool | None:
        """Whether its process is there; None if that cannot be told from here."""
        if not self.pid or self.host != facet.this_process().host:
            return None
        try:
            found = psutil.Process(self.pid)
            return (
                abs(found.create_time() - self.process_started) <= _START_TOLERANCE
                and found.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.Error:
            return False


def open_runs(uri: str, *, job: Name | None = None, since: datetime | None = None) -> list[OpenRun]:
    """The runs that have no terminal event.

    Args:
        uri: where the event table lies.
        job: only runs of this job.
        since: only runs that began at or after this moment; a week ago when left out.
    """
    since = since or datetime.now(UTC) - LOOK_BACK
    every = read(uri, since=since, job=job)
    states = every.select("run_id", "event_type").collect()
    over = states.filter(pl.col("event_type").is_in(OVER)).get_column("run_id").unique()
    waiting = states.filter(~pl.col("run_id").is_in(over.implode())).get_column("run_id").unique()
    if waiting.is_empty():
        return []
    events = (
        every.filter(pl.col("run_id").is_in(waiting.implode()))
        .select("run_id", "event")
        .collect()
        .group_by("run_id")
        .agg("event")
    )
    return sorted(
        (_open_run([json.loads(text) for text in texts]) for _, texts in events.iter_rows()),
        key=lambda run: (run.started_at, run.run_id),
    )


def close_dead(
    uri: str,
    emitter: Emitter,
    *,
    job: Name | None = None,
    alive: Callable[[OpenRun], bool | None] | None = None,
    since: datetime | None = None,
    now: datetime | None = None,
) -> list[OpenRun]:
    """Close every run that died; returns those runs.

    Args:
        uri: where the event table lies.
        emitter: takes the events.
        job: only runs of this job.
        alive: whether the orchestrator says that a run is alive; None: it does not know. Asked first.
        since: as for :func:`open_runs`.
        now: the present moment, unless a test says otherwise.
    """
    moment = now or datetime.now(UTC)
    closed = []
    for run in open_runs(uri, job=job, since=since):
        verdict = alive(run) if alive is not None else None
        if verdict is None:
            verdict = run.present
        if verdict is None:
            verdict = moment - run.last_at < SILENCE
        if not verdict:
            made = {name: list(signatures(uri_of(name), since=run.started_at)) for name in run.outputs}
            emitter.emit(_aborted(run, made), urgent=False)
            closed.append(run)
    if closed:
        emitter.flush()
    return closed


def recover(recorder: Recorder, job: Name, tables: Iterable[str]) -> list[OpenRun]:
    """Close what died of a job, and tell what it and the runs below it committed to ``tables``.

    Every run of the job does so before it begins: where the newest has ended, all before it are closed.
    What goes wrong with that is for a later call: a new run does not depend on it.
    """
    store = recorder.store
    try:
        end = store.newest_end(job)
        closed = close_dead(store.uri, recorder, job=job) if end is None else []
        # Somebody else may have closed it, who does not know where the runs below it write.
        if not closed and end != "ABORT":
            return []
        since = min((run.started_at for run in closed), default=datetime.now(UTC) - LOOK_BACK)
        return closed + recover_untold(store.uri, recorder, tables, since=since)
    except STORAGE_ERRORS as error:
        logger.warning("lineage: runs that died could not be closed: %s", error)
        return []


def recover_untold(
    uri: str,
    emitter: Emitter,
    tables: Iterable[str],
    *,
    since: datetime | None = None,
    now: datetime | None = None,
) -> list[OpenRun]:
    """Tell runs that committed to ``tables`` but died before any event of theirs was written.

    A run counts as dead once the run above it is over; if that is not known, after :data:`UNTOLD`.

    Args:
        uri: where the event table lies.
        emitter: takes the events.
        tables: where the tables lie that such runs may have written.
        since: only runs that committed at or after this moment.
        now: the present moment, unless a test says otherwise.
    """
    moment = now or datetime.now(UTC)
    made = {lake_dataset(table): list(signatures(table, since=since)) for table in tables}
    named = {one.run_id: one for signed in made.values() for one in signed if one.run_id}
    if not named:
        return []
    states = read(uri).select("run_id", "event_type", "job_namespace", "job_name").collect()
    told = set(states.get_column("run_id").unique())
    over = set(states.filter(pl.col("event_type").is_in(OVER)).get_column("run_id").unique())
    above = pl.col("run_id").is_in({one.parent for one in named.values()})
    parents = states.filter(above).select("run_id", "job_namespace", "job_name").unique()
    jobs = {run_id: (namespace, job) for run_id, namespace, job in parents.iter_rows()}
    recovered = []
    for run_id in sorted(named.keys() - told):
        mine = {name: [one for one in signed if one.run_id == run_id] for name, signed in made.items()}
        moments = [one.made_at for signed in mine.values() for one in signed]
        parent = named[run_id].parent
        if parent not in over and (parent in told or moment - max(moments) < UNTOLD):
            continue
        outputs = tuple(name for name, signed in mine.items() if signed)
        run = _untold(named[run_id], jobs.get(parent), outputs, moments)
        emitter.emit(_run_of(run).start(run.started_at), _aborted(run, mine), urgent=False)
        recovered.append(run)
    if recovered:
        emitter.flush()
    return recovered


def uri_of(name: Name) -> str:
    """Where the lake table with this OpenLineage name lies."""
    namespace, path = name
    return path if namespace == "file" else f"{namespace}/{path}"


def versions_of(dataset: Mapping[str, Any]) -> frozenset[int]:
    """The Delta versions that an event lists of a dataset, given the event's JSON."""
    facets = dataset.get("facets") or {}
    spans = (facets.get("mesh_deltaVersions") or {}).get("versions")
    if spans is None:
        known = facets.get("mesh_deltaVersions") or {}
        spans = [[known["firstVersion"], known["lastVersion"]]] if "firstVersion" in known else []
    return frozenset(number for first, last in spans for number in range(first, last + 1))


def _open_run(events: Sequence[Mapping[str, Any]]) -> OpenRun:
    ordered = sorted(events, key=lambda event: str(event["eventTime"]))
    first = next((event for event in ordered if event.get("eventType") == "START"), ordered[0])
    run_facets = first["run"].get("facets") or {}
    job_facets = first["job"].get("facets") or {}
    process = run_facets.get("mesh_process") or {}
    listed: dict[Name, frozenset[int]] = {}
    for event in ordered:
        for dataset in event.get("outputs") or []:
            name = (str(dataset["namespace"]), str(dataset["name"]))
            listed[name] = listed.get(name, frozenset()) | versions_of(dataset)
    above = run_facets.get("parent")
    return OpenRun(
        run_id=str(first["run"]["runId"]),
        namespace=str(first["job"]["namespace"]),
        job=str(first["job"]["name"]),
        kind=str((job_facets.get("jobType") or {}).get("jobType", "")),
        started_at=datetime.fromisoformat(str(ordered[0]["eventTime"])),
        last_at=datetime.fromisoformat(str(ordered[-1]["eventTime"])),
        orchestrator=str(process.get("orchestrator", "")),
        host=str(process.get("host", "")),
        pid=int(process.get("pid", 0)),
        process_started=float(process.get("started", 0.0)),
        parent=above and Parent(above["run"]["runId"], above["job"]["namespace"], above["job"]["name"]),
        outputs=tuple(listed),
        listed=listed,
    )


def _untold(
    signature: Signature, above: Name | None, outputs: tuple[Name, ...], moments: Sequence[datetime]
) -> OpenRun:
    namespace, _, job = signature.job.partition("/")
    return OpenRun(
        run_id=signature.run_id,
        namespace=namespace,
        job=job,
        kind=job.rpartition(".")[2].upper(),
        started_at=min(moments),
        last_at=max(moments),
        parent=Parent(signature.parent, *above) if above else None,
        outputs=outputs,
    )


def _run_of(run: OpenRun) -> LineageRun:
    streaming = run.kind == "CAPTURE"
    return LineageRun(
        run.namespace, run.job, run.kind, run_id=run.run_id, streaming=streaming, parent=run.parent
    )


def _aborted(run: OpenRun, made: Mapping[Name, Sequence[Signature]]) -> RunEvent:
    """The end of a run that died, with what it committed and never told."""
    outputs, last = [], run.last_at
    for name, signed in made.items():
        untold = [
            one
            for one in signed
            if one.run_id == run.run_id and one.version not in run.listed.get(name, frozenset())
        ]
        if untold:
            last = max(last, *(one.made_at for one in untold))
            outputs.append(_output(name, untold))
    message = error_message_run.ErrorMessageRunFacet(
        message="the process of this run ended before the run told its end",
        programmingLanguage="PYTHON",
        producer=PRODUCER,
    )
    return _run_of(run).abort(last + _STEP, outputs=outputs, facets={"errorMessage": message})


def _output(name: Name, signed: Sequence[Signature]) -> OutputDataset:
    facets: dict[str, DatasetFacet] = {
        "version": dataset_version_dataset.DatasetVersionDatasetFacet(
            datasetVersion=str(max(one.version for one in signed)), producer=PRODUCER
        ),
        "mesh_deltaVersions": facet.delta_versions(one.version for one in signed),
        "storage": facet.storage(),
    }
    output_facets: dict[str, OutputDatasetFacet] = {
        "outputStatistics": output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
            rowCount=sum(one.row_count for one in signed),
            size=sum(one.byte_count for one in signed),
            fileCount=sum(one.file_count for one in signed),
            producer=PRODUCER,
        )
    }
    return OutputDataset(*name, facets=facets, outputFacets=output_facets)
