"""What changed in a table between two cuts: net, accepted, with the whole rows before and after.

A log's raw rows are none of that: some were rejected, some leave columns out, a delete brings the old
key only, and a key that changed ten times and back did not change at all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import polars as pl

from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.view import Reader, View


@dataclass(frozen=True)
class Between:
    """The changes of one table with ``earlier.cut`` < ``_seq`` <= ``later.cut``.

    Attributes:
        earlier, later: the table at both cuts.
        keys: the key of every accepted change, each once (its own; a key move names both).
        truncated: the table was emptied in between: every key may have changed.
        inexact: a key's value is outside of its column's type, so its column does not say which it is.
    """

    earlier: View
    later: View
    keys: pl.DataFrame
    truncated: bool
    inexact: bool = False

    @property
    def whole(self) -> bool:
        """Whether the keys do not tell which rows may have changed."""
        return self.truncated or self.inexact

    @property
    def empty(self) -> bool:
        """Whether nothing was accepted in between."""
        return self.keys.is_empty() and not self.truncated

    @cached_property
    def before(self) -> pl.LazyFrame:
        """The rows that were there before and are gone or different."""
        return self._only(self.earlier, self.later)

    @cached_property
    def after(self) -> pl.LazyFrame:
        """The rows that are there now and were not, or were different."""
        return self._only(self.later, self.earlier)

    def images(self, columns: list[str]) -> pl.DataFrame:
        """Values of some columns in the rows before and after, each combination once; nulls left out.

        Rows that did not change in the end are among them.
        """
        if set(columns) <= set(self.keys.columns) and not self.whole:
            return self.keys.select(columns).unique().drop_nulls()
        sides = [self._touched(view).select(columns).unique() for view in (self.earlier, self.later)]
        return pl.concat(pl.collect_all(sides, engine="streaming")).unique().drop_nulls()

    def _touched(self, view: View, *, meta: bool = False) -> pl.LazyFrame:
        return view.rows(meta=meta) if self.whole else view.holding(self.keys, meta=meta)

    def _only(self, one: View, other: View) -> pl.LazyFrame:
        names = one.shape.columns.names()
        mine, theirs = self._touched(one, meta=True), self._touched(other, meta=True)
        # A value outside of its column's type stands in _exact: such rows count as different.
        plain = theirs.filter(pl.col("_exact").is_null()).select(names)
        unlike = mine.filter(pl.col("_exact").is_not_null()).select(names)
        like = mine.filter(pl.col("_exact").is_null()).select(names)
        return pl.concat([like.join(plain, on=names, how="anti", nulls_equal=True), unlike])


def between(earlier: View, later: View) -> Between:
    """What changed between two views of one table."""
    if earlier.shape != later.shape:
        earlier = replace(earlier, shape=later.shape)
    if later.cut <= earlier.cut:
        none = pl.DataFrame(schema={name: later.shape.columns[name] for name in later.shape.key})
        return Between(earlier, later, none, truncated=False)
    rows = later.log.scan(earlier.cut, later.cut).filter(pl.col("_rejected_by").is_null())
    narrow = rows.select(*later.shape.key, _truncate=pl.col("_op") == "t").unique()
    found = narrow.collect(engine="streaming")
    keys = found.filter(~pl.col("_truncate")).select(later.shape.key)
    inexact = any(keys[name].null_count() for name in later.shape.inexact)
    return Between(earlier, later, keys, truncated=bool(found["_truncate"].any()), inexact=inexact)


def changes_between(log: ChangeLog, current_uri: str, low: int, high: int) -> Between:
    """What changed in a table after the cut ``low`` up to the cut ``high``.

    Raises:
        AsOfRefused: if the log does not reach a cut.
    """
    if log.seq < high:
        log.refresh()
    reader = Reader(log.table.uri, current_uri)
    later = reader.view(high)
    return between(reader.view(low), later)
