"""Parity: at one and the same LSN the source table and our table are equal, row by row.

The source is read through an exported snapshot, so its applications go on writing; the lake is
read as of the snapshot's consistent point. Rows are compared as counts and checksums per key
range; where a range differs, its keys are compared.

A key whose last change is in quarantine is not what the source has, on purpose. It is told as such, and
the change in quarantine is what is held against the source: nothing may be lost there either.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from mesh_assets.cdc.message import position_text
from mesh_assets.cdc.snapshot import ExportedSnapshot, chunks
from mesh_assets.cdc.source import Source
from mesh_assets.errors import AsOfRefused, SlotBusy, TableMissing
from mesh_assets.ingest.shift import Shift
from mesh_assets.lake.checksum import key_hash, row_hash
from mesh_assets.lake.ledger import Ledger
from mesh_assets.lake.log import REJECTED, ChangeLog
from mesh_assets.lake.quarantine import RULES, last_rows, open_rows, source_rows
from mesh_assets.lake.shape import Shape
from mesh_assets.lake.table import Table
from mesh_assets.lake.tail import shape_of
from mesh_assets.names import ProductName
from mesh_assets.shift.plan import CapturePlan, Target
from mesh_assets.shift.report import Budget

RANGE_ROWS = 250_000
_BATCH_ROWS = 250_000


@dataclass(frozen=True)
class RangeResult:
    """One key range, from ``lower`` (inclusive) to ``upper`` (exclusive) of the first key column.

    Attributes:
        lower, upper: bounds as text; empty where open.
        source_checksum, lake_checksum: order-free sums of row hashes, as hexadecimal text.
    """

    lower: str
    upper: str
    source_row_count: int
    lake_row_count: int
    source_checksum: str
    lake_checksum: str

    @property
    def equal(self) -> bool:
        """Whether both sides hold the same rows."""
        return (self.source_row_count, self.source_checksum) == (self.lake_row_count, self.lake_checksum)


@dataclass(frozen=True)
class Difference:
    """One key whose rows differ: ``missing`` in the lake, ``extra`` in the lake, or ``different``."""

    key: dict[str, object]
    kind: str


@dataclass(frozen=True)
class ParityResult:
    """The verdict on one table at one position.

    Attributes:
        ranges: every key range; a quarantined key counts with its quarantined row.
        differences: the first keys that differ.
        quarantined_count: keys whose last change is in quarantine.
        quarantined: the first of them.
        version: of a derived product, which has no source with positions: the version that was compared.
    """

    name: ProductName
    table: str
    lsn: int
    ranges: tuple[RangeResult, ...]
    differences: tuple[Difference, ...] = field(default=())
    seconds: float = 0.0
    quarantined_count: int = 0
    quarantined: tuple[dict[str, object], ...] = ()
    version: int | None = None

    @property
    def equal(self) -> bool:
        """Whether source and lake, what is in quarantine included, hold the same rows."""
        return all(one.equal for one in self.ranges)

    @property
    def row_count(self) -> int:
        """Rows at the source."""
        return sum(one.source_row_count for one in self.ranges)

    @property
    def lake_row_count(self) -> int:
        """Rows in the lake."""
        return sum(one.lake_row_count for one in self.ranges)

    def sentence(self, hidden: frozenset[str] = frozenset()) -> str:
        """The verdict in words, without values of the columns that are hidden."""
        at = f"LSN {position_text(self.lsn)}" if self.version is None else f"version {self.version}"
        place = f"{self.name}.{self.table} at {at}"
        kept = ""
        if self.quarantined_count:
            first = "; ".join(_pairs(key, hidden) for key in self.quarantined)
            kept = f"; {self.quarantined_count:,} keys are in quarantine and not in current: {first}"
        if self.equal:
            return f"{place}: equal, {self.row_count:,} rows in {len(self.ranges)} key ranges{kept}"
        keys = "; ".join(f"{one.kind} {_pairs(one.key, hidden)}" for one in self.differences)
        return (
            f"{place}: DIFFERS, {self.row_count:,} rows at the source, {self.lake_row_count:,} in the lake, "
            f"{sum(not one.equal for one in self.ranges)} of {len(self.ranges)} key ranges; "
            f"first keys: {keys}{kept}"
        )


def parity(
    plan: CapturePlan,
    target: Target,
    *,
    timeout_seconds: float = 120,
    most_differences: int = 10,
    run_id: str = "",
    drain: Callable[[], None] | None = None,
) -> ParityResult:
    """Compare one table with its source.

    Args:
        timeout_seconds: how long to wait until the lake holds the snapshot's position.
        most_differences: how many differing keys to name.
        run_id: the orchestrator's run that a short shift is part of.
        drain: brings the lake up to the source's head when no shift does; by default a short shift.

    Raises:
        TableMissing: if nothing was captured yet.
        AsOfRefused: if the lake does not reach the position in time.
        SourceError: if the source cannot be read.
    """
    started = time.monotonic()
    if not Table.exists(target.changes_uri):
        raise TableMissing(
            f"{target.name}.{target.table} was not captured yet",
            hint="start the mesh with `mesh up`, or materialize the product in Dagster",
        )
    with Source(plan.source) as source, ExportedSnapshot(source) as snapshot:
        relation = source.describe(target.source_table)
        columns = [*relation.row_schema.names, "_exact"]
        source.heartbeat()
        _await(plan, snapshot.lsn, timeout_seconds, run_id, drain)
        log = ChangeLog.open(target.changes_uri)
        cut = seq_at(log, snapshot.lsn - 1)
        opened = open_rows(log, cut)

        def ours() -> Iterator[pl.DataFrame]:
            rows = source_rows(log, target.current_uri, cut, columns=columns, opened=opened)
            yield from rows.collect_batches(chunk_size=_BATCH_ROWS)

        def theirs() -> Iterator[pl.DataFrame]:
            for chunk in chunks(source, relation, snapshot, row_count=_BATCH_ROWS):
                yield pl.DataFrame(pl.from_arrow(chunk.frame.select(columns)))

        bounds = _bounds(ours(), target.key[0])
        left, right = _sums(theirs(), bounds, target.key, columns), _sums(ours(), bounds, target.key, columns)
        ranges = _ranges(bounds, left, right)
        differing = [number for number, one in enumerate(ranges) if not one.equal]
        differences: tuple[Difference, ...] = ()
        if differing:
            differences = _differences(theirs(), ours(), bounds, differing, target.key, columns)
    quarantined = last_rows(shape_of(log), opened)
    return ParityResult(
        target.name,
        target.table,
        snapshot.lsn,
        ranges,
        differences[:most_differences],
        time.monotonic() - started,
        quarantined.height,
        tuple(_keys(target, quarantined.head(most_differences))),
    )


def seq_at(log: ChangeLog, lsn: int) -> int:
    """The last ``_seq`` of the changes at or before ``lsn``; -1 if there is none.

    What was released from quarantine stands in the log with its first position behind later ones: it
    belongs to the change before it.
    """
    seq, at = pl.col("_seq"), pl.col("_position") <= lsn
    changes = log.scan(columns=["_seq", "_position"])
    replayed = log.transaction(REJECTED) is not None
    if replayed:
        columns = ["_seq", "_position", "_ordinal", *log.key, "_exact", RULES]
        changes = _first_only(shape_of(log), log.scan(columns=columns))
    last: int | None = changes.filter(at).select(seq.max()).collect(engine="streaming").item()
    if last is None or not replayed:
        return -1 if last is None else last
    following: int | None = changes.filter(seq > last).select(seq.min()).collect(engine="streaming").item()
    return log.seq if following is None else following - 1


def _first_only(shape: Shape, changes: pl.LazyFrame) -> pl.LazyFrame:
    """Changes without those that repeat a rejected one."""
    place = [*shape.identity, "_position", "_ordinal"]
    rows = shape.identified(changes)
    rejected = rows.filter(pl.col(RULES).is_not_null()).group_by(place).agg(_first=pl.col("_seq").min())
    both = rows.join(rejected, on=place, how="left", nulls_equal=True)
    return both.filter(pl.col("_first").is_null() | (pl.col("_seq") <= pl.col("_first")))


def _keys(target: Target, rows: pl.DataFrame) -> Iterator[dict[str, object]]:
    for row in rows.iter_rows(named=True):
        # A value that its column cannot hold stands beside it as text.
        yield {name: row.get(f"_exact_{name}") or row[name] for name in target.key}


def _pairs(key: Mapping[str, object], hidden: frozenset[str]) -> str:
    return ", ".join(
        f"{name}={'(not told)' if name in hidden else repr(value)}" for name, value in key.items()
    )


def _await(
    plan: CapturePlan, lsn: int, timeout_seconds: float, run_id: str, drain: Callable[[], None] | None
) -> None:
    """Wait until the ledger passes ``lsn``; drain when no shift runs."""
    deadline = time.monotonic() + timeout_seconds
    uri = plan.part_uri("ledger")
    while True:
        last = Ledger(uri).latest()
        held = last.end_lsn if last else 0
        if held >= lsn:
            return
        if time.monotonic() > deadline:
            raise AsOfRefused(
                f"{plan.source.domain}.{plan.source.name}: the lake is at LSN {position_text(held)} and did "
                f"not reach {position_text(lsn)} in {timeout_seconds:.0f} s",
                hint="look at the shift's log in Dagster, or at `mesh status`",
            )
        try:
            if drain:
                drain()
            else:
                left = max(0.0, deadline - time.monotonic())
                # A busy source is never idle, and a quiet one need not be waited for.
                budget = Budget(max_seconds=left, catching_up=True, fold=None, check_seconds=None)
                Shift(plan, budget=budget, run_id=run_id).run()
        except SlotBusy:
            # A shift is running: it gets there.
            time.sleep(0.2)


def _bounds(batches: Iterator[pl.DataFrame], column: str) -> pl.Series:
    """Boundaries of key ranges of about RANGE_ROWS rows, from the lake's own rows."""
    parts = [batch.get_column(column) for batch in batches]
    keys = pl.concat(parts).sort() if parts else pl.Series(column, [], pl.Int64)
    places = range(RANGE_ROWS, keys.len(), RANGE_ROWS)
    return keys.gather(list(places)).unique().sort()


_Sums = tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]


def _numbers(batch: pl.DataFrame, bounds: pl.Series, column: str) -> npt.NDArray[np.int64]:
    """The number of the key range of each row."""
    if bounds.is_empty():
        return np.zeros(batch.height, np.int64)
    return bounds.search_sorted(batch.get_column(column), side="right").to_numpy().astype(np.int64)


def _sums(
    batches: Iterator[pl.DataFrame], bounds: pl.Series, key: Sequence[str], columns: Sequence[str]
) -> _Sums:
    """Row count and wrapping sum of row hashes per key range."""
    counts = np.zeros(bounds.len() + 1, np.int64)
    sums = np.zeros(bounds.len() + 1, np.uint64)
    for batch in batches:
        numbers = _numbers(batch, bounds, key[0])
        counts += np.bincount(numbers, minlength=len(counts))
        np.add.at(sums, numbers, row_hash(batch, columns).to_numpy())
    return counts, sums


def _ranges(bounds: pl.Series, left: _Sums, right: _Sums) -> tuple[RangeResult, ...]:
    edges = ["", *(str(bound) for bound in bounds), ""]
    return tuple(
        RangeResult(
            edges[number],
            edges[number + 1],
            int(left[0][number]),
            int(right[0][number]),
            f"{int(left[1][number]):016x}",
            f"{int(right[1][number]):016x}",
        )
        for number in range(bounds.len() + 1)
    )


def _differences(
    theirs: Iterator[pl.DataFrame],
    ours: Iterator[pl.DataFrame],
    bounds: pl.Series,
    differing: Sequence[int],
    key: Sequence[str],
    columns: Sequence[str],
) -> tuple[Difference, ...]:
    """Name the keys that differ in the differing ranges, in key order."""

    def hashed(batches: Iterator[pl.DataFrame]) -> pl.DataFrame:
        parts = []
        for batch in batches:
            chosen = batch.filter(pl.Series(np.isin(_numbers(batch, bounds, key[0]), differing)))
            parts.append(
                chosen.select(key)
                .hstack(key_hash(chosen, key))
                .with_columns(row_hash(chosen, columns).alias("_h"))
            )
        return pl.concat(parts) if parts else pl.DataFrame()

    left, right = hashed(theirs), hashed(ours)
    # Without any row there may be no batch either, which would tell the columns.
    left, right = (right.clear() if left.is_empty() else left), (left.clear() if right.is_empty() else right)
    both = left.join(right, on=["_k0", "_k1"], how="full", suffix="_lake")
    differs = both.filter(pl.col("_h").ne_missing(pl.col("_h_lake"))).with_columns(
        pl.when(pl.col("_h_lake").is_null())
        .then(pl.lit("missing"))
        .when(pl.col("_h").is_null())
        .then(pl.lit("extra"))
        .otherwise(pl.lit("different"))
        .alias("_kind"),
        *(pl.coalesce(name, f"{name}_lake").alias(name) for name in key),
    )
    return tuple(
        Difference({name: row[name] for name in key}, row["_kind"])
        for row in differs.sort(key).head(100).iter_rows(named=True)
    )
