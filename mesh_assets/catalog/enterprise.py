"""The enterprise catalog: folds the records, versions and lineage of all products into Delta tables.

Everything is taken from what products publish, and only what is new is read: a bucket of rows is
made again when the fingerprint in its file's name says so, lineage goes on from the Delta version
that stands in the same commit as its rows. So a fold that dies at any point is simply done again,
nothing is missing and nothing is there twice, and tables that are deleted come back byte for byte.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mesh_assets.catalog import event, history, standing
from mesh_assets.catalog.canonical import Canonical, Content, Shape, bucket_of
from mesh_assets.catalog.local import RECORD_FILE, LocalRecord, parse
from mesh_assets.catalog.shape import CHANGES, CHECKS, COLUMNS, DATASETS, DOMAINS, EDGES, RUNS, SHAPES
from mesh_assets.errors import CommitConflict, LakeError, MeshError, TableMissing
from mesh_assets.lake.commit import read_commit
from mesh_assets.lake.file import FileRef
from mesh_assets.lake.storage import storage_of
from mesh_assets.lake.table import Table
from mesh_assets.names import Layout, ProductName, valid_part

LINEAGE = "lineage"
"""The app transaction that names the folded Delta version of the lineage table, plus one."""

_ATTEMPTS = 5
_FORMAT = 1
_NOT_DOMAINS = ("enterprise", "lineage")
_ALL = "all"


@dataclass(frozen=True)
class FoldSummary:
    """What one fold did.

    Attributes:
        product_count: products whose records were found.
        file_count: buckets written, per table.
        event_count: lineage events read.
        seconds: how long it took.
        problems: what could not be folded, and why; everything else was.
    """

    product_count: int
    file_count: Mapping[str, int]
    event_count: int
    seconds: float
    problems: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether any table changed."""
        return any(self.file_count.values())


@dataclass(frozen=True)
class _Published:
    """A product's record, and the hash of its file."""

    record: LocalRecord
    digest: str


def fold(layout: Layout) -> FoldSummary:
    """Bring the enterprise catalog up to what all products have published.

    Several processes may fold at once: who comes second begins the table again. Tables that an earlier
    version of this program wrote are made anew.

    Raises:
        StorageFull: if the disk is full.
        LayoutUnknown: if the tables were written by a newer version of this program.
        CommitConflict: if others were first again and again.
    """
    began = time.monotonic()
    problems: list[str] = []
    published = _published(layout, problems)
    records = [one.record for one in published]
    written: dict[str, int] = {}
    for shape, rows in (
        (DATASETS, standing.datasets),
        (COLUMNS, standing.columns),
        (CHECKS, standing.checks),
    ):
        written[shape.name] = _persist(layout, shape, _standing(published, rows))
    written[DOMAINS.name] = _persist(layout, DOMAINS, _domains(published))
    written[CHANGES.name] = _persist(
        layout, CHANGES, lambda table: history.contents(layout, table, records, problems)
    )
    lineage = _Lineage(layout)
    written[RUNS.name] = _persist(layout, RUNS, lineage.runs, lineage.cursor)
    written[EDGES.name] = _persist(layout, EDGES, lineage.edges(published), lineage.cursor)
    return FoldSummary(
        product_count=len(records),
        file_count={name: written[name] for name in SHAPES},
        event_count=lineage.event_count,
        seconds=time.monotonic() - began,
        problems=tuple(dict.fromkeys(problems)),
    )


def products(layout: Layout) -> list[ProductName]:
    """Every product below the lake's root that has published a record."""
    root = storage_of(layout.root)
    found = []
    for domain in root.folders(""):
        if domain in _NOT_DOMAINS or not valid_part(domain):
            continue
        for product in root.folders(domain):
            name = f"{domain}/{product}/catalog/{RECORD_FILE}"
            if valid_part(product) and product != "sources" and root.exists(name):
                found.append(ProductName(domain, product))
    return sorted(found)


def digest(layout: Layout) -> dict[str, str]:
    """Per table, a hash of its content: equal content has an equal one, however it came about."""
    return {name: Canonical(layout.enterprise(name), shape).digest() for name, shape in SHAPES.items()}


def exists(layout: Layout) -> bool:
    """Whether the catalog was folded before."""
    return all(Table.exists(layout.enterprise(name)) for name in SHAPES)


Make = Callable[[Canonical], Mapping[str, Content]]


def _persist(
    layout: Layout, shape: Shape, make: Make, transactions: Callable[[], Mapping[str, int]] | None = None
) -> int:
    """Replace what ``make`` says must be replaced, again from the start if another fold was first."""
    for attempt in range(1, _ATTEMPTS + 1):
        table = Canonical(layout.enterprise(shape.name), shape, folding=True)
        try:
            return table.replace(make(table), transactions=transactions() if transactions else None)
        except CommitConflict:
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _published(layout: Layout, problems: list[str]) -> list[_Published]:
    found = []
    for name in products(layout):
        storage = storage_of(layout.catalog(name))
        try:
            data = storage.read(RECORD_FILE)
            record = parse(data, storage.address(RECORD_FILE))
            if record.product != str(name):
                raise LakeError(f"{storage.address(RECORD_FILE)} is that of {record.product}, not of {name}")
        except FileNotFoundError:  # Removed since it was listed.
            continue
        except MeshError as error:
            problems.append(str(error))
        else:
            found.append(_Published(record, hashlib.sha256(data).hexdigest()))
    return found


def _standing(
    published: Sequence[_Published],
    rows: Callable[[LocalRecord], list[dict[str, Any]]],
    prefix: str = "",
) -> Make:
    """Buckets of rows that follow from the records alone; their names begin with ``prefix``."""

    def make(table: Canonical) -> dict[str, Content]:
        live = {name: one for name, one in table.buckets().items() if name.startswith(prefix)}
        grouped: dict[str, list[_Published]] = {}
        for one in published:
            grouped.setdefault(prefix + bucket_of(one.record.product), []).append(one)
        found: dict[str, Content] = {}
        for bucket in sorted({*grouped, *live}):
            own = grouped.get(bucket, [])
            print_ = _fingerprint(own)
            if bucket in live and live[bucket].fingerprint == print_:
                continue
            plain = [row for one in own for row in rows(one.record)]
            if plain or bucket in live:
                found[bucket] = Content(pa.Table.from_pylist(plain, schema=table.shape.schema), print_)
        return found

    return make


def _domains(published: Sequence[_Published]) -> Make:
    def make(table: Canonical) -> dict[str, Content]:
        print_ = _fingerprint(published)
        live = table.buckets().get(_ALL)
        if live is not None and live.fingerprint == print_:
            return {}
        rows = standing.domains(one.record for one in published)
        return {_ALL: Content(pa.Table.from_pylist(rows, schema=table.shape.schema), print_)}

    return make


def _fingerprint(published: Iterable[_Published]) -> str:
    """Of the records that a bucket is made from."""
    whole = hashlib.sha256(f"format {_FORMAT}\n".encode())
    for one in sorted(published, key=lambda one: one.record.product):
        whole.update(f"{one.record.product} {one.digest}\n".encode())
    return whole.hexdigest()[:16]


class _Lineage:
    """The events that a table has not folded yet; what both tables need of them is read once."""

    def __init__(self, layout: Layout) -> None:
        self._reader = event.Reader(layout)
        self._folded: dict[int, event.Folded] = {}
        self.event_count = 0
        try:
            self._table: Table | None = Table.open(layout.lineage())
        except TableMissing:
            self._table = None

    def cursor(self) -> dict[str, int]:
        """What a table that has folded everything carries."""
        return {LINEAGE: 0 if self._table is None else self._table.version + 1}

    def runs(self, table: Canonical) -> dict[str, Content]:
        """The buckets of runs that changed."""
        grouped: dict[str, list[event.Row]] = {}
        for run in self._since(table).runs.values():
            grouped.setdefault(event.bucket_of_run(run["run_id"]), []).append(run)
        found = {}
        for bucket, runs in grouped.items():
            held = table.read([bucket])
            mine = pc.is_in(held["run_id"], pa.array([run["run_id"] for run in runs]))
            known = {row["run_id"]: row for row in held.filter(mine).to_pylist()}
            whole = [
                event.joined(known[run["run_id"]], run) if run["run_id"] in known else run for run in runs
            ]
            rows = pa.concat_tables([held.filter(pc.invert(mine)), event.runs_table(whole)])
            found[bucket] = Content(rows)
        return found

    def edges(self, published: Sequence[_Published]) -> Make:
        """The buckets of edges that changed: declared ones, those of lineage, and what runs used."""
        declared = _standing(published, standing.edges, "d")

        def make(table: Canonical) -> dict[str, Content]:
            folded = self._since(table)
            found = dict(declared(table))
            for prefix, rows, place, join in (
                ("c", folded.edges, _place_of_edge, event.union),
                ("r", folded.uses, _place_of_use, event.distinct),
            ):
                grouped: dict[str, list[event.Row]] = {}
                for row in rows:
                    grouped.setdefault(f"{prefix}{place(row)}", []).append(row)
                for bucket, own in grouped.items():
                    found[bucket] = Content(join(table.read([bucket]), event.edges_table(own)))
            return found

        return make

    def _since(self, table: Canonical) -> event.Folded:
        """What the events say that came after those that a table holds."""
        if self._table is None:
            return event.Folded()
        after = (table.transaction(LINEAGE) or 0) - 1
        if after not in self._folded:
            texts = self._events(after)
            self.event_count = max(self.event_count, len(texts))
            self._folded[after] = self._reader.fold(texts)
        return self._folded[after]

    def _events(self, after: int) -> list[str]:
        assert self._table is not None
        texts: list[str] = self._table.read(self._files(after), ["event"])["event"].to_pylist()
        return texts

    def _files(self, after: int) -> list[FileRef]:
        """The files that came since a Delta version; all of them, if its log is archived already.

        Upkeep puts old events into new files. They are folded again then, which changes nothing.
        """
        assert self._table is not None
        live = {file.path: file for file in self._table.files()}
        if after > self._table.version:
            return list(live.values())
        added: list[str] = []
        try:
            for number in range(after + 1, self._table.version + 1):
                commit = read_commit(self._table.storage, number, self._table.schema)
                added += [file.path for file in commit.added]
        except FileNotFoundError:
            return list(live.values())
        return [live[path] for path in added if path in live]


def _place_of_edge(row: event.Row) -> str:
    return bucket_of(row["to_dataset"] or f"{row['to_namespace']} {row['to_name']}")


def _place_of_use(row: event.Row) -> str:
    return event.bucket_of_run(row["run_id"])
