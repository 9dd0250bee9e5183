"""A tail: the change-log rows between a current table (or nothing) and a cut."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from mesh_assets.lake.image import Index, look_back
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.shape import Shape, polars_schema


def shape_of(log: ChangeLog) -> Shape:
    """The shape of a change log's rows as of the handle's version."""
    return Shape(polars_schema(log.row_schema), log.key)


@dataclass(frozen=True)
class Tail:
    """Log rows with ``after`` < ``_seq`` <= ``upto``.

    Attributes:
        log: the change log.
        shape: of its rows.
        after: the ``_seq`` at which the base stands; -1 for none.
        upto: the cut.
        held: no rejected row before this ``_seq`` is the last image of its key at ``after``; a value
            above ``after`` says that there is none at all.
    """

    log: ChangeLog
    shape: Shape
    after: int
    upto: int
    held: int

    @property
    def row_count(self) -> int:
        """Rows of the tail, accepted and rejected."""
        return self.upto - self.after

    def rows(self) -> pl.LazyFrame:
        """The log rows, in no promised order."""
        return self.log.scan(self.after, self.upto)

    def settle(self, found: Index) -> tuple[Index, pl.LazyFrame | None]:
        """Answer masked columns from the log where the base does not hold the log's last image.

        That is so only where a rejected row came last for a key before the tail. Returns the index
        and, if it was changed, the log rows in which its sources lie.
        """
        if self.held > self.after:
            return found, None
        roots = found.roots(self.shape)
        if roots.is_empty():
            return found, None
        rejected = self.log.scan(self.held - 1, self.after).filter(pl.col("_rejected_by").is_not_null())
        doubtful = (
            self.shape.join(self.shape.identified(rejected), roots.lazy(), "semi")
            .select(self.shape.identity)
            .unique()
            .collect(engine="streaming")
        )
        if doubtful.is_empty():
            return found, None
        history = self.log.scan(truncated_at(self.log.scan(None, self.upto)), self.upto)
        return look_back(self.shape, found, doubtful, history), history

    def still_held(self, truncated: int | None) -> int:
        """:attr:`held` for a base that stands at ``upto``."""
        if not self.shape.key:
            # Without a key an unchanged value stands in the old row of its own change.
            return self.upto + 1
        lowest = min(self.held - 1, self.after) if truncated is None else truncated
        rows = self.shape.identified(self.log.scan(lowest, self.upto).filter(pl.col("_op") != "t"))
        narrow = rows.select(*self.shape.identity, "_seq", rejected=pl.col("_rejected_by").is_not_null())
        rejected = narrow.filter("rejected").collect(engine="streaming")
        if rejected.is_empty():
            return self.upto + 1
        identity, nulls_equal = self.shape.identity, bool(self.shape.inexact)
        accepted = (
            self.shape.join(narrow.filter(~pl.col("rejected")), rejected.lazy(), "semi")
            .group_by(identity)
            .agg(_accepted=pl.col("_seq").max())
            .collect(engine="streaming")
        )
        last = (
            rejected.join(accepted, on=identity, how="left", nulls_equal=nulls_equal)
            .filter(pl.col("_accepted").is_null() | (pl.col("_seq") > pl.col("_accepted")))
            .select(pl.col("_seq").min())
            .item()
        )
        return self.upto + 1 if last is None else int(last)


def truncated_at(rows: pl.LazyFrame) -> int | None:
    """The ``_seq`` of the last truncate among log rows."""
    last: int | None = (
        rows.filter(pl.col("_op") == "t").select(pl.col("_seq").max()).collect(engine="streaming").item()
    )
    return last
