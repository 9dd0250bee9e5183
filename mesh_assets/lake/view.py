"""One table at one cut, to be read in parts: the rows with certain values, from the files that may hold them.

A :class:`View` stays what it was when the table is folded meanwhile: it keeps the files that it began
with, so that what was before a change can be read as cheaply as what came after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from mesh_assets.errors import AsOfRefused, TableMissing
from mesh_assets.lake.current import Current
from mesh_assets.lake.file import FileRef, overlapping
from mesh_assets.lake.image import combine, index
from mesh_assets.lake.log import SEQ, ChangeLog
from mesh_assets.lake.read import Pinned, pin
from mesh_assets.lake.shape import META_COLUMNS, Shape
from mesh_assets.lake.tail import shape_of

_CHANGE_COLUMNS = ("_op", "_unchanged", "_rejected_by")


@dataclass(frozen=True)
class View:
    """A table at one cut.

    Attributes:
        log: the change log; its handle may move on.
        base: the current table, if it stands at or before the cut; its handle stays where it is.
        files: the base's data files.
        after: the ``_seq`` at which the base stands; without one that at which the log begins.
        cut: the last ``_seq`` that counts.
        shape: of the rows.
    """

    log: ChangeLog
    base: Current | None
    files: tuple[FileRef, ...]
    after: int
    cut: int
    shape: Shape

    @classmethod
    def of(cls, log: ChangeLog, current: Current | None, cut: int) -> View:
        """A view with the base as it is now; ``current`` must not be refreshed afterwards.

        Raises:
            AsOfRefused: if the log does not reach the cut.
        """
        if not log.after <= cut <= log.seq:
            raise AsOfRefused(f"{log.table.uri} holds changes {log.after + 1} to {log.seq}, not {cut}")
        base = current if current is not None and -1 < current.folded <= cut else None
        if base is None:
            return cls(log, None, (), log.after, cut, shape_of(log))
        return cls(log, base, tuple(base.table.files()), base.folded, cut, shape_of(log))

    @cached_property
    def pinned(self) -> Pinned:
        """The whole of it, settled; reads the keys of everything that is not folded yet."""
        return pin(self.log, self.base, self.cut)

    @property
    def row_count(self) -> int:
        """About how many rows it has, from metadata alone."""
        return sum(file.row_count for file in self.files) + self.cut - self.after

    def rows(self, *, meta: bool = False) -> pl.LazyFrame:
        """All rows."""
        return self.pinned.stored(meta=meta)

    def holding(self, values: pl.DataFrame, *, meta: bool = False) -> pl.LazyFrame:
        """The rows whose columns have one of these combinations of values (nulls match nothing).

        By columns of the key this reads only the files, and only the part of the tail, that may hold
        them; by others the columns asked for are read wholly.
        """
        wanted = self._typed(values)
        if set(wanted.columns) <= set(self.shape.key):
            found = self._by_key(wanted, meta=meta)
            if found is not None:
                return found
        return chosen(self.rows(meta=meta), wanted)

    def _typed(self, values: pl.DataFrame) -> pl.DataFrame:
        kinds = {name: self.shape.columns[name] for name in values.columns}
        return values.cast(kinds, strict=False).drop_nulls().unique()  # type: ignore[arg-type]

    def _by_key(self, values: pl.DataFrame, *, meta: bool) -> pl.LazyFrame | None:
        """The rows by columns of the key; None where a masked column may take its value from another key."""
        if self.base is not None and self.cut == self.after:
            return self._base(values, meta=meta)
        tail = self._tail(values)
        if tail["_unchanged"].null_count() < tail.height:
            return None
        base = self._base(values, meta=True)
        found = index(
            self.shape, tail.lazy(), row_count=tail.height, after=self.after, has_base=base is not None
        )
        return combine(self.shape, found, tail.lazy(), base, meta=meta)

    def _base(self, values: pl.DataFrame, *, meta: bool) -> pl.LazyFrame | None:
        if self.base is None:
            return None
        rows = self.base.scan(self.shape, near(self.files, values, with_nulls=False))
        return chosen(rows, values).select(self.shape.names(meta))

    def _tail(self, values: pl.DataFrame) -> pl.DataFrame:
        """The tail's rows with these values, and its truncates."""
        files = overlapping(self.log.table.files(), SEQ, self.after + 1, self.cut)
        # A truncate has no key.
        rows = self.log.table.scan(near(files, values, with_nulls=True)).filter(
            pl.col(SEQ).is_between(self.after + 1, self.cut)
        )
        names = [*self.shape.columns.names(), *META_COLUMNS, *_CHANGE_COLUMNS]
        mine = rows.filter(_any_of(values) | (pl.col("_op") == "t")).select(names)
        part = mine.collect(engine="streaming")
        if len(values.columns) > 1:
            kept = chosen(part.lazy(), values).collect()
            part = pl.concat([kept, part.filter(pl.col("_op") == "t")])
        return part


class Reader:
    """Gives views of one table, one after the other.

    Args:
        changes_uri: its change log.
        current_uri: its current table; None: what is folded counts for nothing, the log alone answers.
    """

    def __init__(self, changes_uri: str, current_uri: str | None) -> None:
        self._changes_uri = changes_uri
        self._current_uri = current_uri
        self._log: ChangeLog | None = None
        self._current: Current | None = None
        self._newest: Current | None = None

    def view(self, cut: int) -> View:
        """The table at a cut.

        Raises:
            TableMissing: if there is no log.
            AsOfRefused: if the log does not reach the cut.
        """
        if self._log is None:
            self._log = ChangeLog.open(self._changes_uri)
        elif self._log.seq < cut:
            self._log.refresh()
        return View.of(self._log, self._standing(cut), cut)

    def _standing(self, cut: int) -> Current | None:
        """The current table; a new handle whenever it was folded, so that older views keep theirs.

        If it was folded beyond the cut already, the one before, which is still readable for a while.
        """
        if self._current_uri is None:
            return None
        try:
            if self._newest is None:
                self._newest = Current.open(self._current_uri)
            else:
                self._newest.refresh()
            held, newest = self._current, self._newest
            if held is None or (newest.folded <= cut and newest.table.version != held.table.version):
                # The handle that is refreshed is nobody's view.
                opened = Current.open(self._current_uri)
                if held is None or opened.folded <= cut:
                    self._current = opened
        except TableMissing:
            self._newest = None
            return None
        return self._current


def chosen(rows: pl.LazyFrame, values: pl.DataFrame) -> pl.LazyFrame:
    """The rows whose columns have one of these combinations of values."""
    found = rows.filter(_any_of(values))
    if len(values.columns) == 1 or values.is_empty():
        return found
    return found.join(values.lazy(), on=values.columns, how="semi")


def _any_of(values: pl.DataFrame) -> pl.Expr:
    """Whether each column, for itself, has one of the values; written so that Parquet statistics prune."""
    if values.is_empty():
        return pl.lit(value=False)
    inside = pl.lit(value=True)
    for column in values.iter_columns():
        given = column.unique().sort()
        name = pl.col(column.name)
        inside &= name.is_between(pl.lit(given[0]), pl.lit(given[-1])) & name.is_in(given.implode())
    return inside


def near(files: Sequence[FileRef], values: pl.DataFrame, *, with_nulls: bool) -> list[FileRef]:
    """The files that may hold one of the values of each column, by their bounds.

    ``with_nulls`` keeps those that hold nulls in a column.
    """
    if values.is_empty() and not with_nulls:
        return []
    kept = list(files)
    for column in values.iter_columns():
        given = _sorted(column)
        if given is not None:
            kept = [file for file in kept if _meets(file, column.name, given, with_nulls=with_nulls)]
    return kept


def _sorted(column: pl.Series) -> Any | None:  # noqa: ANN401 - an array of any kind
    """The values in order, for searching; None for types that numpy does not order as Parquet does."""
    if column.dtype.is_integer():
        return np.sort(column.to_numpy())
    if column.dtype in (pl.String, pl.Date):
        return np.sort(np.array(column.to_list(), dtype=object))
    return None


def _meets(file: FileRef, name: str, given: Any, *, with_nulls: bool) -> bool:  # noqa: ANN401 - an array
    if name not in file.low or name not in file.high:
        return True
    if with_nulls and file.null_count.get(name, 1):
        return True
    at = int(np.searchsorted(given, file.low[name]))
    return at < len(given) and bool(given[at] <= file.high[name])
