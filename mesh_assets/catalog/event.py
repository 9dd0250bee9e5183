"""Lineage events as rows of the enterprise catalog: runs, and edges between tables and columns.

Events come late, twice, and in no order, so whatever is made of them is a union: what two events
say of one run or one edge is joined by rules that do not care which came first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pyarrow as pa

from mesh_assets.catalog.shape import EDGES, RUNS
from mesh_assets.names import CHANGES, CURRENT, HISTORY, QUARANTINE, Layout, lake_dataset

Row = dict[str, Any]
MESH = "mesh"
"""The namespace of names that the mesh itself gives (:func:`mesh_assets.names.mesh_dataset`)."""

_DATA = (CHANGES, CURRENT, HISTORY, QUARANTINE)
_TERMINAL = ("ABORT", "COMPLETE", "FAIL")
_CAPTURE = "CAPTURE"
_NEVER = datetime.min.replace(tzinfo=UTC)
_KEY = [name for name in EDGES.schema.names if name not in ("first_seen_at", "last_seen_at")]


@dataclass(frozen=True)
class Dataset:
    """A dataset of an event: its OpenLineage name, and what the mesh calls it ("" if it is not ours)."""

    namespace: str
    name: str
    dataset: str
    kind: str

    @property
    def kept(self) -> bool:
        """Whether it is kept about data (versions, outcomes of checks) and is no data itself."""
        return self.dataset != "" and self.kind not in _DATA

    def end(self, end: str, column: str = "") -> Row:
        """The columns of an edge that name it."""
        return {
            f"{end}_namespace": self.namespace,
            f"{end}_name": self.name,
            f"{end}_dataset": self.dataset,
            f"{end}_kind": self.kind,
            f"{end}_column": column,
        }


@dataclass
class Folded:
    """What some events say.

    Attributes:
        runs: what is known of each run.
        edges: between tables and columns.
        uses: what runs read and wrote.
    """

    runs: dict[str, Row] = field(default_factory=dict)
    edges: list[Row] = field(default_factory=list)
    uses: list[Row] = field(default_factory=list)


class Reader:
    """Reads events of one lake."""

    def __init__(self, layout: Layout) -> None:
        self._namespace, root = lake_dataset(layout.root)
        self._root = root.rstrip("/") + "/"
        self._known: dict[tuple[str, str], Dataset] = {}

    def fold(self, events: Iterable[str]) -> Folded:
        """What these events say, each the JSON of a run event."""
        folded = Folded()
        for text in events:
            event = json.loads(text)
            if "run" in event:
                self._event(event, folded)
        return folded

    def dataset(self, plain: Row) -> Dataset:
        """A dataset of an event."""
        key = (plain["namespace"], plain["name"])
        for link in (plain.get("facets") or {}).get("symlinks", {}).get("identifiers", ()):
            if link.get("namespace") == MESH:
                self._known[key] = Dataset(*key, *self._mesh(link["name"]))
        if key not in self._known:
            self._known[key] = Dataset(*key, *self._placed(*key))
        return self._known[key]

    @staticmethod
    def _mesh(name: str) -> tuple[str, str]:
        full, _, kind = name.partition(":")
        return full, kind or CURRENT

    def _placed(self, namespace: str, name: str) -> tuple[str, str]:
        """What lies at this place in the lake."""
        if namespace == MESH:
            return self._mesh(name)
        if namespace != self._namespace or not name.startswith(self._root):
            return "", ""
        parts = name.removeprefix(self._root).split("/")
        if len(parts) == 4:
            domain, product, kind, table = parts
            if kind not in _DATA:
                return f"{domain}.{product}", table
            # A later generation of a table is the same table.
            return f"{domain}.{product}.{table.partition('.')[0]}", kind
        if len(parts) == 3:
            return f"{parts[0]}.{parts[1]}", parts[2]
        return "", ""

    def _event(self, event: Row, folded: Folded) -> None:
        run = _run(event)
        held = folded.runs.get(run["run_id"])
        folded.runs[run["run_id"]] = run if held is None else joined(held, run)
        at = datetime.fromisoformat(event["eventTime"])
        inputs = [(self.dataset(one), one) for one in event.get("inputs") or ()]
        outputs = [(self.dataset(one), one) for one in event.get("outputs") or ()]
        job = f"{run['namespace']}/{run['job']}"
        folded.uses += _uses(run["run_id"], "from", inputs, at)
        for known, plain in outputs:
            stated = list(self._columns(known, plain, at, job))
            statement = {"statement": stated[0]["statement"], "job": job} if stated else {}
            folded.uses += _uses(run["run_id"], "to", [(known, plain)], at, statement)
            if known.kept:
                continue
            folded.edges += stated
            tables = {row["from_name"]: row for row in stated}
            for origin, _ in () if run["kind"] == _CAPTURE or tables else inputs:
                if origin != known and not origin.kept:
                    folded.edges.append(_edge("table", origin, known, at, job))
            for row in tables.values():
                column = {"from_column": "", "to_column": "", "type": "", "subtype": ""}
                table = {"kind": "table", "description": "", "masking": False}
                folded.edges.append({**row, **column, **table})

    def _columns(self, output: Dataset, plain: Row, at: datetime, job: str) -> Iterator[Row]:
        facet = (plain.get("facets") or {}).get("columnLineage")
        if not facet:
            return
        canonical = json.dumps(
            {name: facet.get(name) for name in ("fields", "dataset")}, sort_keys=True, separators=(",", ":")
        )
        statement = hashlib.sha256(canonical.encode()).hexdigest()[:16]
        # What concerns the whole output (a filter, a sort) has no column of its own.
        whole = {"": {"inputFields": facet.get("dataset") or ()}}
        for column, made in {**(facet.get("fields") or {}), **whole}.items():
            for origin in made.get("inputFields") or ():
                ways = origin.get("transformations") or [
                    {
                        "type": made.get("transformationType") or "DIRECT",
                        "description": made.get("transformationDescription"),
                    }
                ]
                for way in ways:
                    row = _edge("column", self.dataset(origin), output, at, job)
                    yield {
                        **row,
                        "from_column": origin["field"],
                        "to_column": column,
                        "type": way.get("type") or "",
                        "subtype": way.get("subtype") or "",
                        "description": way.get("description") or "",
                        "masking": bool(way.get("masking")),
                        "statement": statement,
                    }


def joined(one: Row, other: Row) -> Row:
    """What two accounts of one run say together; which is given first does not matter."""
    end = max((one, other), key=_ending)
    whole = {
        name: max(one[name] or "", other[name] or "")
        for name in (
            *("run_id", "namespace", "job", "kind", "processing"),
            *("parent_run_id", "parent_namespace", "parent_job"),
        )
    }
    return {
        **whole,
        "state": end["state"],
        "started_at": min(one["started_at"], other["started_at"]),
        "ended_at": end["ended_at"],
        "seen_at": max(one["seen_at"], other["seen_at"]),
        "error": end["error"],
    }


def runs_table(runs: Iterable[Row]) -> pa.Table:
    """Rows of the table ``runs``."""
    return pa.Table.from_pylist(list(runs), schema=RUNS.schema)


def edges_table(rows: list[Row]) -> pa.Table:
    """Rows of the table ``edges``."""
    return pa.Table.from_pylist(rows, schema=EDGES.schema)


def union(*tables: pa.Table) -> pa.Table:
    """Edges that several tables hold, each once, seen from the first time to the last."""
    frame = _frame(*tables)
    grouped = frame.group_by(_KEY).agg(pl.col("first_seen_at").min(), pl.col("last_seen_at").max())
    return grouped.select(EDGES.schema.names).to_arrow().cast(EDGES.schema)


def distinct(*tables: pa.Table) -> pa.Table:
    """What runs read and wrote as several tables hold it, each use once."""
    return _frame(*tables).unique().to_arrow().cast(EDGES.schema)


def _frame(*tables: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(pa.concat_tables(tables))
    assert isinstance(frame, pl.DataFrame)
    return frame


def bucket_of_run(run_id: str) -> str:
    """Runs whose ids begin in the same hour lie together; ids without a time by their first digit."""
    digits = run_id.replace("-", "").lower()
    if len(digits) == 32 and digits[12] == "7":
        try:
            return f"h{int(digits[:12], 16) // 3_600_000:08d}"
        except ValueError:
            pass
    first = digits[:1]
    return f"x{first if first.isalnum() and first.isascii() else '_'}"


def _ending(row: Row) -> tuple[datetime, str, str]:
    return row["ended_at"] or _NEVER, row["state"], row["error"]


def _run(event: Row) -> Row:
    run, job = event["run"], event["job"]
    facets, kind = run.get("facets") or {}, (job.get("facets") or {}).get("jobType") or {}
    parent = facets.get("parent") or {}
    at = datetime.fromisoformat(event["eventTime"])
    terminal = event.get("eventType") in _TERMINAL
    return {
        "run_id": run["runId"],
        "namespace": job["namespace"],
        "job": job["name"],
        "kind": kind.get("jobType") or "",
        "processing": kind.get("processingType") or "",
        "state": event["eventType"] if terminal else "RUNNING",
        "started_at": at,
        "ended_at": at if terminal else None,
        "seen_at": at,
        "parent_run_id": parent.get("run", {}).get("runId") or "",
        "parent_namespace": parent.get("job", {}).get("namespace") or "",
        "parent_job": parent.get("job", {}).get("name") or "",
        "error": (facets.get("errorMessage") or {}).get("message") or "",
    }


def _blank(kind: str, at: datetime) -> Row:
    texts = ("type", "subtype", "description", "job", "statement", "run_id")
    numbers = ("first_delta_version", "last_delta_version", "row_count")
    return {
        "kind": kind,
        "origin": "lineage",
        "masking": False,
        **dict.fromkeys(texts, ""),
        **dict.fromkeys(numbers),
        "first_seen_at": at,
        "last_seen_at": at,
    }


def _edge(kind: str, origin: Dataset, output: Dataset, at: datetime, job: str) -> Row:
    return {**_blank(kind, at), **origin.end("from"), **output.end("to"), "job": job}


def _uses(
    run_id: str, end: str, used: Iterable[tuple[Dataset, Row]], at: datetime, statement: Row | None = None
) -> Iterator[Row]:
    """What a run read or wrote; not what it only announced."""
    nobody = Dataset("", "", "", "")
    other = "to" if end == "from" else "from"
    for known, plain in used:
        facets = plain.get("facets") or {}
        version = (facets.get("version") or {}).get("datasetVersion")
        span = facets.get("mesh_deltaVersions") or {}
        counted = plain.get("inputFacets" if end == "from" else "outputFacets") or {}
        statistics = counted.get("inputStatistics" if end == "from" else "outputStatistics") or {}
        rows = statistics.get("rowCount")
        if version is None and not span and rows is None and not statement:
            continue
        number = int(version) if version is not None and str(version).isdecimal() else None
        yield {
            **_blank("run", at),
            **known.end(end),
            **nobody.end(other),
            **(statement or {}),
            "run_id": run_id,
            "first_delta_version": span.get("firstVersion", number),
            "last_delta_version": span.get("lastVersion", number),
            "row_count": rows,
        }
