"""The current table: the latest accepted row per key, folded from the change log when that pays.

Appending a change never waits for a fold: readers through the mesh add the tail themselves. So a
fold is a matter of cost only, and :func:`should_fold` keeps that within a share of the CPU.

The table's row columns come first, then :data:`~mesh_assets.lake.shape.META_COLUMNS`. App
transactions: ``folded`` (the last ``_seq`` that is in), ``held`` (:attr:`Tail.held`) and ``clustered``
(names the set of files whose key spans are known to be disjoint).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from mesh_assets.errors import LayoutUnknown
from mesh_assets.lake.file import FileRef
from mesh_assets.lake.log import CHANGE_FIELDS, ChangeLog
from mesh_assets.lake.shape import META_COLUMNS, Shape
from mesh_assets.lake.table import Table

FOLDED = "folded"
HELD = "held"
CLUSTERED = "clustered"

_PLAIN_FEATURES = frozenset({"timestampNtz"})
"""Delta reader features that do not change how a data file is read."""

_META_FIELDS = tuple(field for name in META_COLUMNS for field in CHANGE_FIELDS if field.name == name)


def current_schema(row_schema: pa.Schema) -> pa.Schema:
    """The Delta columns of a current table over these row columns."""
    return pa.schema([*(pa.field(one.name, one.type) for one in row_schema), *_META_FIELDS])


class Current:
    """A handle on one current table, at one Delta version until :meth:`refresh`.

    Attributes:
        table: the Delta table below.
        key: the names of the key columns (may be empty).
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.key: tuple[str, ...] = tuple(json.loads(table.property("key") or "[]"))
        self._starts: dict[str, pl.DataFrame] = {}

    @classmethod
    def open(cls, uri: str) -> Current:
        """Open an existing current table.

        Raises:
            TableMissing: if there is none.
        """
        return cls(Table.open(uri))

    @classmethod
    def create(
        cls,
        uri: str,
        row_schema: pa.Schema,
        key: Sequence[str],
        *,
        name: str | None = None,
        description: str | None = None,
    ) -> Current:
        """Create an empty current table into which nothing was folded yet."""
        table = Table.create(
            uri,
            current_schema(row_schema),
            statistics=[*key, "_seq"],
            name=name,
            description=description,
            properties={"key": json.dumps(list(key))},
        )
        return cls(table)

    @classmethod
    def open_or_create(
        cls,
        uri: str,
        row_schema: pa.Schema,
        key: Sequence[str],
        *,
        name: str | None = None,
        description: str | None = None,
    ) -> Current:
        """Open the table, or create it where there is none."""
        if Table.exists(uri):
            return cls.open(uri)
        return cls.create(uri, row_schema, key, name=name, description=description)

    @property
    def folded(self) -> int:
        """The last ``_seq`` that was folded; -1 before the first fold."""
        value = self.table.transaction(FOLDED)
        return -1 if value is None else value

    @property
    def held(self) -> int:
        """No rejected row before this ``_seq`` is the last image of its key at :attr:`folded`."""
        value = self.table.transaction(HELD)
        return self.folded + 1 if value is None else value

    @property
    def row_count(self) -> int:
        """Rows as of the last fold."""
        return sum(file.row_count for file in self.table.files())

    @property
    def byte_count(self) -> int:
        """Bytes of the data files."""
        return sum(file.size for file in self.table.files())

    @property
    def clustered(self) -> bool:
        """Whether the files are those that a fold left, with disjoint key spans."""
        return self.table.transaction(CLUSTERED) == digest(self.table.files())

    def refresh(self) -> int:
        """Move to the newest commit; returns :attr:`folded`."""
        self.table.refresh()
        return self.folded

    def scan(self, shape: Shape, files: Iterable[FileRef] | None = None) -> pl.LazyFrame:
        """Row and meta columns, from all files or some; row columns that no fold has seen yet are null.

        Raises:
            LayoutUnknown: if another program gave the table deletion vectors or mapped columns: its data
                files no longer hold just its rows.
        """
        self._check_plain()
        frame = self.table.scan(self.table.files() if files is None else files)
        held = self.table.schema.names
        new = [
            pl.lit(None, dtype=kind).alias(name) for name, kind in shape.columns.items() if name not in held
        ]
        return frame.with_columns(new).select(shape.names(meta=True))

    def batches(
        self, shape: Shape, files: Iterable[FileRef], *, row_count: int, narrow: bool = False
    ) -> Iterator[pl.DataFrame]:
        """The rows of some files in the order given, about so many at a time; little more is in memory.

        ``narrow`` leaves out all columns but those that tell keys apart.

        Raises:
            LayoutUnknown: as :meth:`scan`.
        """
        self._check_plain()
        names = shape.names(meta=True)
        if narrow:
            names = [*shape.key, "_exact"] if shape.inexact else list(shape.key)
        for part in self.table.batches(files, names, row_count=row_count):
            frame = pl.from_arrow(part)
            assert isinstance(frame, pl.DataFrame)
            yield frame

    def _check_plain(self) -> None:
        delta = self.table.delta()
        odd = set(delta.protocol().reader_features or []) - _PLAIN_FEATURES
        if delta.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
            odd.add("columnMapping")
        if odd:
            raise LayoutUnknown(
                f"another program changed {self.table.uri}: it needs {', '.join(sorted(odd))} to be read",
                hint="remove this folder: the table is folded again from its change log",
            )

    def starts(self, shape: Shape, files: Sequence[FileRef]) -> pl.DataFrame:
        """The first identity of each file, with ``_file`` (its place in ``files``), in key order.

        Files are sorted, so this reads one row of each; what was read once is kept.
        """
        for file in files:
            if file.path not in self._starts:
                first = next(self.batches(shape, [file], row_count=1, narrow=True))
                self._starts[file.path] = shape.identified(first.lazy()).select(shape.identity).collect()
        paths = [file.path for file in files]
        self._starts = {path: self._starts[path] for path in paths}
        return (
            pl.concat([self._starts[path] for path in paths])
            .with_row_index("_file")
            .sort(shape.identity, nulls_last=False)
        )

    def touched_bytes(self, log: ChangeLog, upto: int) -> int:
        """About how many bytes a fold up to ``upto`` would read, from file statistics alone."""
        files = self.table.files()
        tail = [file for file in log.table.files() if file.high.get("_seq", upto) > self.folded]
        column = self.key[0] if self.key else None
        if column is None or any(column not in file.low or column not in file.high for file in tail):
            return sum(file.size for file in files)
        ranges = [(file.low[column], file.high[column]) for file in tail]

        def meets(file: FileRef) -> bool:
            if column not in file.low or column not in file.high:
                return True
            return any(low <= file.high[column] and high >= file.low[column] for low, high in ranges)

        return sum(file.size for file in files if meets(file))


def digest(files: Iterable[FileRef]) -> int:
    """A number that names a set of files."""
    text = "\n".join(sorted(file.path for file in files))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


@dataclass(frozen=True)
class FoldCase:
    """What is known when asking whether to fold.

    Attributes:
        tail_count: log rows beyond the last fold, up to the cut.
        base_count: rows of the current table.
        touched_bytes: what a fold would read (:meth:`Current.touched_bytes`) plus the tail's own bytes.
        seconds_per_byte: measured in the previous fold; None before the first.
        age_seconds: since the oldest change of the tail was captured.
        cpu_seconds: CPU time available since the last fold ended (wall time times the cores one may use).
    """

    tail_count: int
    base_count: int
    touched_bytes: int
    seconds_per_byte: float | None
    age_seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class FoldPolicy:
    """When a fold pays.

    Attributes:
        share: fold when the tail is this share of the base.
        min_count: but not for fewer rows than this.
        budget: fold when the estimated cost is within this share of the CPU time since the last fold.
        max_age_seconds: fold a tail that has waited this long, whatever it costs.
        min_age_seconds: and none that is younger than this.
    """

    share: float = 0.10
    min_count: int = 5_000
    budget: float = 0.10
    max_age_seconds: float = 3600.0
    min_age_seconds: float = 5.0


SECONDS_PER_BYTE = 4e-8
"""The cost assumed before the first measurement (about 25 MB of Parquet a second)."""

FIXED_SECONDS = 0.05
"""What a fold costs whatever its size: opening, committing, forcing to disk."""


def should_fold(case: FoldCase, policy: FoldPolicy | None = None) -> str | None:
    """Whether a fold pays now: ``share``, ``age`` or ``budget``, or None if it does not.

    A fold costs what it touches, not what it brings, so waiting lets one fold carry more changes: by
    the share rule a change is rewritten with at most ``1 / share`` others, and by the budget rule the
    time between folds grows with their cost.
    """
    policy = policy or FoldPolicy()
    if case.tail_count <= 0:
        return None
    if case.age_seconds >= policy.max_age_seconds:
        return "age"
    if case.age_seconds < policy.min_age_seconds:
        return None
    if case.tail_count >= max(policy.min_count, policy.share * case.base_count):
        return "share"
    rate = SECONDS_PER_BYTE if case.seconds_per_byte is None else case.seconds_per_byte
    if FIXED_SECONDS + case.touched_bytes * rate <= policy.budget * case.cpu_seconds:
        return "budget"
    return None
