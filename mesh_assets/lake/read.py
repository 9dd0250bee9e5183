"""Reading a table: fresh (base and tail), as of any cut, and all changes of one key.

A fresh read opens the current table first and takes the ``_seq`` F up to which it is folded, then
the log at one cut C: base rows of keys that the tail names are hidden, the tail's last rows
added. So base and tail never overlap and never miss, whatever is appended or folded meanwhile.

:func:`fresh`, :func:`as_of` and :func:`changes_of` are for users: they ask :func:`authorise`.
:func:`pin` and :func:`rows_at` are what machinery is built of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa

from mesh_assets.errors import AsOfRefused, TableMissing, UnknownName
from mesh_assets.lake.access import Access, Principal, authorise
from mesh_assets.lake.current import Current
from mesh_assets.lake.exact import text_before, text_of
from mesh_assets.lake.file import FileRef, overlapping
from mesh_assets.lake.image import Index, combine, index
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.multiset import combine_counts
from mesh_assets.lake.shape import META_COLUMNS, Shape
from mesh_assets.lake.table import Table
from mesh_assets.lake.tail import Tail, shape_of, truncated_at
from mesh_assets.names import CHANGES, CURRENT, Layout, ProductName


@dataclass(frozen=True)
class Pinned:
    """A table at one cut: the files and the narrow index are settled, rows are read when collected.

    Files may be compacted away later; they stay readable for the lake's grace time.

    Attributes:
        tail: the log rows beyond the base.
        current: the base's handle; None if there is no base (nothing folded, or a cut before it).
        files: the base's data files.
        found: which log rows count; None for a table without a key.
        history: log rows that masked columns take values from, if those reach back before the tail.
        access: what the principal may see.
    """

    tail: Tail
    current: Current | None
    files: tuple[FileRef, ...]
    found: Index | None
    history: pl.LazyFrame | None
    access: Access

    @property
    def shape(self) -> Shape:
        """The row's columns and key."""
        return self.tail.shape

    @property
    def cut(self) -> int:
        """The last ``_seq`` that counts."""
        return self.tail.upto

    def base(self) -> pl.LazyFrame | None:
        """The base's rows with meta columns."""
        return None if self.current is None else self.current.scan(self.shape, self.files)

    def frame(self, *, meta: bool = False) -> pl.LazyFrame:
        """The rows, as the principal may see them; ``meta`` adds ``_seq``, ``_exact`` and the like."""
        return self.access.apply(self.stored(meta=meta))

    def stored(self, *, meta: bool = False) -> pl.LazyFrame:
        """The rows as they are stored."""
        if self.found is None:
            rows, base = self.tail.rows(), self.base()
            if (cut := truncated_at(rows)) is not None:
                rows, base = rows.filter(pl.col("_seq") > cut), None
            return combine_counts(self.shape, rows, base, meta=meta)
        return combine(self.shape, self.found, self.tail.rows(), self.base(), meta=meta, sources=self.history)


def pin(log: ChangeLog, current: Current | None, cut: int, access: Access | None = None) -> Pinned:
    """Settle what a read at ``cut`` consists of.

    Args:
        log: a handle that has seen ``cut``; for a fresh read opened after ``current``.
        current: where it is folded up to ``cut`` or less it is the base, else the log alone answers.
        cut: the last ``_seq`` that counts; -1 for nothing at all.
        access: what may be seen; everything by default.

    Raises:
        AsOfRefused: if the log does not reach ``cut``.
    """
    if not log.after <= cut <= log.seq:
        raise AsOfRefused(f"{log.table.uri} holds changes {log.after + 1} to {log.seq}, not {cut}")
    shape = shape_of(log)
    base = current if current is not None and -1 < current.folded <= cut else None
    files = () if base is None else tuple(base.table.files())
    after, held = (log.after, 0) if base is None else (base.folded, base.held)
    tail = Tail(log, shape, after, cut, held)
    access = access or Access()
    if not shape.key:
        return Pinned(tail, base, files, None, None, access)
    found = index(shape, tail.rows(), row_count=tail.row_count, after=after, has_base=base is not None)
    found, history = tail.settle(found)
    return Pinned(tail, base, files, found, history, access)


def open_pinned(
    changes_uri: str, current_uri: str, cut: int | None = None, access: Access | None = None
) -> Pinned:
    """Open a table's current table and then its log, and :func:`pin` them at a cut (None: the newest change).

    Raises:
        TableMissing: if there is no log.
        AsOfRefused: if the log does not reach ``cut``.
    """
    current = _current(current_uri)
    log = ChangeLog.open(changes_uri)
    return pin(log, current, log.seq if cut is None else cut, access)


def rows_at(
    log: ChangeLog, current_uri: str, cut: int, *, columns: Sequence[str] | None = None
) -> pl.LazyFrame:
    """The rows at a cut, for machinery that acts for no one (parity, derived products).

    Args:
        log: refreshed if it has not seen ``cut``.
        columns: row and meta columns; the row's own by default.
    """
    current = _current(current_uri)
    if (current is not None and current.folded > log.seq) or cut > log.seq:
        log.refresh()
    pinned = pin(log, current, cut)
    if columns is None:
        return pinned.stored()
    return pinned.stored(meta=any(name in META_COLUMNS for name in columns)).select(columns)


def fresh(
    layout: Layout,
    name: ProductName,
    table: str,
    cut: int | None = None,
    *,
    principal: Principal,
    generation: int = 1,
    meta: bool = False,
) -> pl.LazyFrame:
    """The rows of a product's table at a cut (by default: with every change in the log).

    Args:
        cut: the ``_seq`` of a product version; None is not transaction-consistent over several tables.
        principal: who asks.
        generation: in which the table lies at that version.
        meta: with ``_seq``, ``_position``, ``_ordinal``, ``_committed_at``, ``_exact`` of each row.

    Returns:
        A lazy frame; filters and column choices on it reach the Parquet files.

    Raises:
        TableMissing: if nothing was captured yet.
        AsOfRefused: if the log does not reach ``cut``.
    """
    access = authorise(principal, name, table)
    changes_uri = layout.table(name, CHANGES, table, generation)
    pinned = open_pinned(changes_uri, layout.table(name, CURRENT, table, generation), cut, access)
    return pinned.frame(meta=meta)


def as_of(
    layout: Layout,
    name: ProductName,
    table: str,
    cut: int,
    *,
    principal: Principal,
    generation: int = 1,
    meta: bool = False,
) -> pl.LazyFrame:
    """The rows at any past cut; one older than the last fold is answered by the log alone.

    Arguments, result and errors as for :func:`fresh`.
    """
    return fresh(layout, name, table, cut, principal=principal, generation=generation, meta=meta)


def changes_of(
    layout: Layout,
    name: ProductName,
    table: str,
    key: Mapping[str, Any],
    *,
    principal: Principal,
    generation: int = 1,
    cut: int | None = None,
) -> pl.DataFrame:
    """Every change of one key in ``_seq`` order, rejected ones included.

    A key move is in the history of both keys: the removal in the old one's, the row with the new
    key (and the old in ``_before``) in both.

    Args:
        key: a value for each key column, or a text that stands for one (such as ``"42"``, ``"infinity"``).
        principal: who asks.
        generation: of the log that is asked.
        cut: leave out changes beyond this ``_seq``.

    Raises:
        TableMissing: if nothing was captured yet.
        UnknownName: if the names are not those of the key, a value is not of its column's type, or the
            table has no key.
    """
    access = authorise(principal, name, table)
    log = ChangeLog.open(layout.table(name, CHANGES, table, generation))
    shape = shape_of(log)
    if not shape.key or set(key) != set(shape.key):
        raise UnknownName(
            f"{name}.{table}: the key is not {', '.join(key) or 'empty'}",
            available=shape.key,
            hint="" if shape.key else "the table has no key: filter its changes",
        )
    values = {
        column: _value(value, log.row_schema.field(column), exact=column in shape.inexact)
        for column, value in key.items()
    }
    cut = log.seq if cut is None else cut
    files = overlapping(log.table.files(), "_seq", 0, cut)
    for column, value in values.items():
        if column not in shape.inexact:
            files = overlapping(files, column, value, value)
    own = pl.all_horizontal(_is(shape, column, value, before=False) for column, value in values.items())
    rows = log.table.scan(files).filter((pl.col("_seq") <= cut) & own).collect(engine="streaming")
    # The row that moved a key away follows right after its removal.
    next_seqs = rows.filter(pl.col("_op") == "d")["_seq"] + 1
    if len(next_seqs):
        old = pl.all_horizontal(_is(shape, column, value, before=True) for column, value in values.items())
        near = [
            file
            for file in log.table.files()
            if next_seqs.is_between(file.low.get("_seq", 0), file.high.get("_seq", cut)).any()
        ]
        moved = log.table.scan(near).filter(
            pl.col("_seq").is_in(next_seqs.implode()) & (pl.col("_seq") <= cut) & (pl.col("_op") == "c")
        )
        away = moved.filter(pl.col("_before").is_not_null() & old & ~own).collect(engine="streaming")
        rows = pl.concat([rows, away])
    return access.apply(rows.sort("_seq").lazy()).collect()


@dataclass(frozen=True)
class _ExactText:
    """A key value that its column's type cannot hold."""

    text: str


def _value(value: Any, field: pa.Field[Any], *, exact: bool) -> Any:  # noqa: ANN401 - any key value
    """A key value in its column's type; a text that does not fit may be an exact one where those occur."""
    kind = field.type
    try:
        given = pa.scalar(value)
        return value if given.type.equals(kind) else given.cast(kind).as_py()
    except (pa.ArrowException, ValueError, TypeError):
        if exact and isinstance(value, str):
            return _ExactText(value)
        raise UnknownName(f"{value!r} is not a value of key column {field.name} ({kind})") from None


def _is(shape: Shape, column: str, value: Any, *, before: bool) -> pl.Expr:  # noqa: ANN401 - any key value
    """Whether the row (or the old row) has this key value, which may be an exact text."""
    stored = pl.col("_before").struct.field(column) if before else pl.col(column)
    if isinstance(value, _ExactText):
        text = text_before(column) if before else text_of(column)
        return (text == value.text).fill_null(value=False)
    return (stored == pl.lit(value, dtype=shape.columns[column])).fill_null(value=False)


def _current(uri: str) -> Current | None:
    if not Table.exists(uri):
        return None
    try:
        return Current.open(uri)
    except TableMissing:
        return None
