"""Quarantine: the changes of a log that a blocking rule keeps out of current, as a view over the log.

A rejected row stays in the log, marked in ``_rejected_by``. It belongs to an **open entry** of its
key until a later row of the key is accepted (a removal is), or a truncate comes. Nothing is ever
unmarked: a release appends the row once more, whole and with its original position. It only
happens while the entry is open, so it comes after everything that was accepted, in the log's order
as in the source's.

App transactions of the log say where to look: ``rejected`` is the last rejected ``_seq``, ``quarantine``
a ``_seq`` before which no entry is open. A log in which nothing was ever rejected is not read at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from mesh_assets.lake.image import Index, combine
from mesh_assets.lake.log import BEFORE, REJECTED, SEQ, ChangeLog
from mesh_assets.lake.mask import mask_sources
from mesh_assets.lake.read import rows_at
from mesh_assets.lake.shape import Shape
from mesh_assets.lake.tail import shape_of, truncated_at

QUARANTINE = "quarantine"
"""App transaction: no entry whose rows begin before this ``_seq`` is open at the log's end."""

RULES = "_rejected_by"
IMAGE_OPS = ["c", "u", "r"]
"""The ops that set an image; only these can be rejected."""
_RELEASE_ROWS = 200_000
_ASSIGNED = (SEQ, "_captured_at", "_schema_version", RULES)

Judge = Callable[[pa.Table], "pa.Array[Any] | None"]
"""Says for whole rows of a change frame which blocking rules each fails; None: none fails any."""


def open_rows(log: ChangeLog, upto: int | None = None) -> pl.DataFrame:
    """The rows of all open entries at a cut (by default the log's end), in ``_seq`` order.

    Returns:
        The identity's columns, ``_seq``, ``_rejected_by`` and ``_masked`` (the row leaves columns out).
    """
    shape = shape_of(log)
    last = log.transaction(REJECTED)
    low = 0
    if upto is None or upto >= log.seq:
        upto, low = log.seq, log.transaction(QUARANTINE) or 0
    if last is None or low > last:
        return _none(shape)
    rows = shape.identified(log.scan(low - 1, upto)).select(
        *shape.identity, SEQ, "_op", RULES, _masked=_masked()
    )
    cut = truncated_at(rows)
    rows = rows.drop("_op") if cut is None else rows.filter(pl.col(SEQ) > cut).drop("_op")
    rejected = rows.filter(pl.col(RULES).is_not_null()).collect(engine="streaming")
    if rejected.is_empty():
        return _none(shape)
    accepted = (
        shape.join(rows.filter(pl.col(RULES).is_null()), rejected.lazy(), "semi")
        .group_by(shape.identity)
        .agg(_accepted=pl.col(SEQ).max())
        .collect(engine="streaming")
    )
    return (
        rejected.join(accepted, on=shape.identity, how="left", nulls_equal=bool(shape.inexact))
        .filter(pl.col("_accepted").is_null() | (pl.col(SEQ) > pl.col("_accepted")))
        .drop("_accepted")
        .sort(SEQ)
    )


def last_rows(shape: Shape, rows: pl.DataFrame) -> pl.DataFrame:
    """Of the rows of :func:`open_rows` the last one of each entry: the image that the source has."""
    return rows.sort(SEQ).unique(shape.identity, keep="last", maintain_order=True)


def images(log: ChangeLog, rows: pl.DataFrame) -> pl.LazyFrame:
    """The whole images that some of :func:`open_rows` stand for: row and meta columns, ``_seq`` among them.

    Columns that a row left out come from the image before it in the log, accepted or not.
    """
    shape = shape_of(log)
    masked = rows.filter("_masked").select(*shape.identity, SEQ)
    plain = rows.filter(~pl.col("_masked")).select(SEQ)
    none = plain.clear()
    if rows.is_empty():
        return combine(shape, Index(False, -1, masked, none), log.scan(log.seq), None, meta=True)
    low, high = int(rows[SEQ].min()), int(rows[SEQ].max())  # type: ignore[arg-type]  # polars' any
    tail = log.scan(low - 1, high)
    if masked.is_empty():
        return combine(shape, Index(False, -1, masked, plain), tail, None, meta=True)
    history = log.scan(truncated_at(log.scan(None, high)), high)
    found, columns = mask_sources(shape, history, masked, has_base=False)
    index = Index(False, -1, masked.clear(), plain, found, columns)
    return combine(shape, index, tail, None, meta=True, sources=history)


def source_rows(
    log: ChangeLog, current_uri: str, cut: int, *, columns: Sequence[str], opened: pl.DataFrame | None = None
) -> pl.LazyFrame:
    """The rows at a cut as the source has them: of a key with an open entry the entry's last image.

    Arguments as for :func:`~mesh_assets.lake.read.rows_at`; ``opened`` are the :func:`open_rows` at the cut.
    """
    shape = shape_of(log)
    if opened is None:
        opened = open_rows(log, cut)
    if opened.is_empty():
        return rows_at(log, current_uri, cut, columns=columns)
    wanted = list(dict.fromkeys([*columns, *shape.key, "_exact"]))
    accepted = shape.identified(rows_at(log, current_uri, cut, columns=wanted))
    kept = shape.join(accepted, opened.select(shape.identity).unique().lazy(), "anti")
    return pl.concat([kept.select(columns), images(log, last_rows(shape, opened)).select(columns)])


# -- releasing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Release:
    """What to append to release entries.

    Attributes:
        frame: the rows, in order, as a change frame with their original positions; may be empty.
        rejected_by: for :meth:`ChangeLog.append`.
        released: entries whose last image passes.
        kept: entries that stay open.
    """

    frame: pa.Table
    rejected_by: pa.Array[Any] | None
    released: int
    kept: int


def releases(log: ChangeLog, judge: Judge, *, row_count: int = _RELEASE_ROWS) -> Iterator[Release]:
    """Judge the open entries again, about so many rows at a time.

    Of an entry the rows from the first one on that passes are appended, in their order: passing ones
    accepted, failing ones marked with what they fail now. So the log's last image of a key stays the
    source's, and what is current is what it would be had today's rules stood from the start.

    Args:
        log: the writer's own handle; every release has to be appended before the next is asked for.
        judge: today's rules.
    """
    shape = shape_of(log)
    rows = open_rows(log)
    if rows.is_empty() or not shape.key:
        return
    numbered = rows.with_columns(_entry=pl.struct(shape.identity).rank("dense"))
    starts = numbered.group_by("_entry").agg(pl.col(SEQ).min(), pl.len().alias("_count")).sort(SEQ)
    starts = starts.with_columns(_part=(pl.col("_count").cum_sum() - pl.col("_count")) // row_count)
    numbered = numbered.join(starts.select("_entry", "_part"), on="_entry").sort(SEQ)
    for (_,), part in numbered.group_by("_part", maintain_order=True):
        yield _release(log, judge, part)


def _release(log: ChangeLog, judge: Judge, rows: pl.DataFrame) -> Release:
    """The rows come in ``_seq`` order, with the number of their ``_entry``."""
    frame = _frame(log, rows)
    verdicts = judge(frame)
    passes = pl.Series([True] * rows.height if verdicts is None else verdicts.is_null())
    judged = rows.select("_entry", SEQ).with_columns(_passes=passes)
    first = judged.filter("_passes").group_by("_entry").agg(_from=pl.col(SEQ).min())
    taken = judged.join(first, on="_entry", how="left")[["_from"]].to_series()
    chosen = pa.array((judged[SEQ] >= taken).fill_null(value=False).to_list(), pa.bool_())
    last = judged.unique("_entry", keep="last", maintain_order=True)["_passes"]
    released = int(last.sum())
    return Release(
        frame.filter(chosen),
        None if verdicts is None else verdicts.filter(chosen),
        released,
        last.len() - released,
    )


def _frame(log: ChangeLog, rows: pl.DataFrame) -> pa.Table:
    """The rows as a change frame without masks, in their order."""
    low, high = int(rows[SEQ].min()), int(rows[SEQ].max())  # type: ignore[arg-type]  # polars' any
    schema = pa.schema([one for one in log.table.schema if one.name not in _ASSIGNED])
    wanted = rows.select(SEQ, "_masked").lazy()
    stored = log.scan(low - 1, high).join(wanted, on=SEQ, how="inner").sort(SEQ)
    frame = stored.collect(engine="streaming")
    if rows["_masked"].any():
        shape = shape_of(log)
        own = [*shape.columns.names(), "_exact"]
        whole = images(log, rows.filter("_masked")).select(SEQ, *own).collect(engine="streaming").rechunk()
        # The row it stands for keeps the old key; what is whole refers to nothing.
        change = (
            frame.filter("_masked")
            .drop(own)
            .with_columns(
                pl.lit(None, frame.schema["_unchanged"]).alias("_unchanged"),
                pl.lit(None, frame.schema[BEFORE]).alias(BEFORE),
            )
        )
        # Polars 2.1 cannot gather a map column of several chunks.
        completed = change.rechunk().join(whole, on=SEQ, how="inner").select(frame.columns)
        frame = pl.concat([frame.filter(~pl.col("_masked")), completed], rechunk=True).sort(SEQ)
    return frame.select(schema.names).to_arrow().cast(schema)


# -- while a log is written ---------------------------------------------------------------------------


class Entries:
    """The open entries of a log that this process writes: kept up with every append.

    Args:
        log: the writer's handle, before the first append.
    """

    def __init__(self, log: ChangeLog) -> None:
        self.shape = shape_of(log)
        self._known = log.transaction(QUARANTINE)
        rows = open_rows(log)
        self._held = _none(self.shape).drop("_masked").rename({SEQ: "_first"})
        if not rows.is_empty():
            self._held = (
                rows.group_by(self.shape.identity)
                .agg(pl.col(SEQ).min().alias("_first"), pl.col(RULES).last())
                .select(self._held.columns)
            )

    @property
    def frame(self) -> pl.DataFrame:
        """Identity, ``_first`` (the first row's ``_seq``) and ``_rejected_by`` of each open entry."""
        return self._held

    def __len__(self) -> int:
        return self._held.height

    def joined(self, frame: pa.Table, rejected_by: pa.Array[Any] | None) -> pa.Array[Any] | None:
        """``rejected_by``, with the changes that join an open entry because they are not whole.

        A change that leaves columns out continues the image before it; after a key move, the old key's.
        """
        unchanged = frame["_unchanged"]
        if unchanged.null_count == len(unchanged) or (rejected_by is None and not len(self)):
            return rejected_by
        shape = self.shape
        narrow = self._narrow(frame, rejected_by)
        old = [f"_old_{name}" for name in shape.identity]
        nulls_equal = bool(shape.inexact)
        moves = narrow.filter("_moved")
        keys = pl.concat(
            [self._held.select(shape.identity), narrow.filter("_failed").select(shape.identity)]
        ).unique()
        while True:
            # A key that a concerned one moves to is concerned too.
            reached = moves.join(
                keys, left_on=old, right_on=shape.identity, how="semi", nulls_equal=nulls_equal
            )
            more = reached.select(shape.identity).join(
                keys, on=shape.identity, how="anti", nulls_equal=nulls_equal
            )
            if more.is_empty():
                break
            keys = pl.concat([keys, more.unique()])
        mine = narrow.join(keys, on=shape.identity, how="semi", nulls_equal=nulls_equal)
        rows = pl.concat([mine, narrow.filter(pl.col("_op") == "t")]).unique("_row").sort("_row")
        held = self._held.join(
            rows.select(shape.identity).unique(), on=shape.identity, how="semi", nulls_equal=nulls_equal
        )
        state = {row[:-2]: list(row[-1]) for row in held.iter_rows()}
        changed = _walk(rows, state, len(shape.identity))
        if not changed:
            return rejected_by
        verdicts = [None] * frame.num_rows if rejected_by is None else rejected_by.to_pylist()
        for row, rules in changed.items():
            verdicts[row] = rules
        return pa.array(verdicts, pa.list_(pa.string()))

    def taken(self, frame: pa.Table, rejected_by: pa.Array[Any] | None, first_seq: int) -> dict[str, int]:
        """Follow a frame that is about to be appended; the app transactions that belong into its commit.

        Call it once per append, right before it: a writer whose append fails ends.
        """
        if rejected_by is None and not len(self):
            return {}
        shape, nulls_equal = self.shape, bool(self.shape.inexact)
        rows = self._narrow(frame, rejected_by, first_seq, self._concerned(frame, rejected_by))
        cut = rows.filter(pl.col("_op") == "t")[SEQ].max()
        held = self._held
        if cut is not None:
            rows, held = rows.filter(pl.col(SEQ) > cut), held.clear()
        own = (
            rows.group_by(shape.identity)
            .agg(
                _accepted=pl.col(SEQ).filter(~pl.col("_failed")).max(),
                _rows=pl.struct(SEQ, RULES).filter("_failed"),
            )
            .join(held, on=shape.identity, how="left", nulls_equal=nulls_equal)
        )
        last = pl.col("_accepted").fill_null(-1)
        failed = (
            own.select(*shape.identity, "_accepted", "_first", "_rows").explode("_rows").drop_nulls("_rows")
        )
        failed = failed.with_columns(pl.col("_rows").struct.unnest()).filter(pl.col(SEQ) > last)
        opened = failed.group_by(shape.identity).agg(
            _first=pl.when(pl.col("_accepted").is_null())
            .then(pl.coalesce("_first", pl.col(SEQ)))
            .otherwise(pl.col(SEQ))
            .min(),
            **{RULES: pl.col(RULES).sort_by(SEQ).last()},
        )
        kept = held.join(rows.select(shape.identity), on=shape.identity, how="anti", nulls_equal=nulls_equal)
        self._held = pl.concat([kept, opened.select(held.columns)])
        low = self._held["_first"].min()
        bound = first_seq + frame.num_rows if low is None else int(low)  # type: ignore[arg-type]  # polars' any
        if bound == self._known:
            return {}
        self._known = bound
        return {QUARANTINE: bound}

    def _concerned(self, frame: pa.Table, rejected_by: pa.Array[Any] | None) -> npt.NDArray[np.int64]:
        """The rows of keys with an open entry or a rejected row, and truncates."""
        key = list(self.shape.key)
        keys = pl.DataFrame(pl.from_arrow(frame.select(key))).with_row_index("_row")
        sought = self._held.select(key)
        if rejected_by is not None:
            failed = np.flatnonzero(rejected_by.is_valid().to_numpy(zero_copy_only=False))
            sought = pl.concat([sought, keys[failed].select(key)])
        found = keys.join(sought.unique(), on=key, how="semi", nulls_equal=True)["_row"].to_numpy()
        truncates = np.flatnonzero(pc.equal(frame["_op"], "t").to_numpy())
        return np.union1d(found, truncates).astype(np.int64)

    def _narrow(
        self,
        frame: pa.Table,
        rejected_by: pa.Array[Any] | None,
        first_seq: int = 0,
        chosen: npt.NDArray[np.int64] | None = None,
    ) -> pl.DataFrame:
        """Identity, op, verdict and key move of each row, or of the chosen ones."""
        shape = self.shape
        part = frame.select([*shape.key, "_op", "_unchanged", BEFORE, "_exact"])
        numbers = np.arange(frame.num_rows) if chosen is None else chosen
        if chosen is not None:
            part = part.take(pa.array(chosen))
            rejected_by = None if rejected_by is None else rejected_by.take(pa.array(chosen))
        rows = pl.DataFrame(pl.from_arrow(part)).with_columns(pl.Series("_row", numbers, pl.Int64))
        verdicts = pa.nulls(part.num_rows, pa.list_(pa.string())) if rejected_by is None else rejected_by
        rows = rows.with_columns(pl.Series(RULES, pl.from_arrow(verdicts), dtype=pl.List(pl.String)))
        before = pl.col(BEFORE).struct
        moved = (pl.col("_op") == "c") & pl.col(BEFORE).is_not_null() & _masked()
        return (
            shape.identified(rows.lazy())
            .select(
                *shape.identity,
                *(before.field(name).alias(f"_old_{name}") for name in shape.key),
                *(
                    pl.col("_exact").map.get(f"_before.{name}").alias(f"_old__exact_{name}")
                    for name in shape.inexact
                ),
                "_op",
                RULES,
                "_row",
                (pl.col("_row") + first_seq).alias(SEQ),
                _moved=moved,
                _masked=_masked(),
                _failed=pl.col(RULES).is_not_null(),
            )
            .collect()
        )


def _walk(rows: pl.DataFrame, state: dict[tuple[Any, ...], list[str]], width: int) -> Mapping[int, list[str]]:
    """Follow concerned rows one by one; the verdicts (by row number) of those that join an entry."""
    changed: dict[int, list[str]] = {}
    removed: tuple[tuple[Any, ...], list[str] | None] = ((), None)
    for values in rows.iter_rows():
        key, old = values[:width], values[width : 2 * width]
        op, rules, row, _, moved, masked, _ = values[2 * width :]
        if op == "t":
            state.clear()
        elif op == "d":
            removed = (key, state.pop(key, None))
        else:
            before = None
            if moved:
                before = removed[1] if removed[0] == old else state.get(old)
            elif masked:
                before = state.get(key)
            if before:
                rules = changed[row] = sorted({*before, *(rules or ())})
            if rules:
                state[key] = rules
            else:
                state.pop(key, None)
    return changed


def _masked() -> pl.Expr:
    return pl.col("_op").is_in(IMAGE_OPS) & (pl.col("_unchanged").list.len() > 0).fill_null(value=False)


def _none(shape: Shape) -> pl.DataFrame:
    texts = dict.fromkeys((name for name in shape.identity if name not in shape.columns), pl.String())
    identity = {name: texts.get(name) or shape.columns[name] for name in shape.identity}
    return pl.DataFrame(schema={**identity, SEQ: pl.Int64, RULES: pl.List(pl.String), "_masked": pl.Boolean})
