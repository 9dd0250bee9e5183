"""Tables without a key: rows are told apart by their values alone, so a table is a multiset.

Such tables have replica identity FULL: ``d`` and ``u`` bring the whole old row in ``_before``, and
take away one row equal to it. A row that was never accepted cannot be taken away, so a count
never falls below zero. A rejected ``u`` takes its old row away (the source no longer has it).
"""

from __future__ import annotations

import polars as pl

from mesh_assets.lake.exact import before_exact, replaced_exact, row_exact, text_before, text_of
from mesh_assets.lake.shape import META_COLUMNS, Shape

_MOMENTS = META_COLUMNS[:-1]


def combine_counts(
    shape: Shape, tail: pl.LazyFrame, base: pl.LazyFrame | None, *, meta: bool = False
) -> pl.LazyFrame:
    """The rows after ``tail``, given those of ``base``.

    Args:
        shape: of the table, without a key.
        tail: log rows, accepted and rejected, after the last truncate.
        base: rows with meta columns as of the tail's start, or None.
        meta: whether the meta columns are wanted; equal rows share those of the newest.
    """
    names = shape.columns.names()
    steps = count_steps(shape, tail)
    if base is not None:
        steps.insert(0, base.select(*names, *META_COLUMNS, _sign=pl.lit(1), _step=pl.lit(-1, pl.Int64)))
    return counted(shape, pl.concat(steps)).select(shape.names(meta))


def count_steps(shape: Shape, tail: pl.LazyFrame) -> list[pl.LazyFrame]:
    """Rows with ``_sign`` (one more or one less of that row) and ``_step`` (their order), from log rows."""
    masks = tail.filter(pl.col("_unchanged").is_not_null()).select("_unchanged").collect(engine="streaming")
    masked = masks["_unchanged"].explode(empty_as_null=False).unique().to_list()
    before, op = pl.col("_before").struct, pl.col("_op")
    old = {name: pl.col("_unchanged").list.contains(name).fill_null(value=False) for name in masked}
    texts = {
        name: pl.when(kept).then(text_before(name)).otherwise(text_of(name)) for name, kept in old.items()
    }
    values = [
        pl.when(old[name]).then(before.field(name)).otherwise(pl.col(name)).alias(name)
        if name in old
        else pl.col(name)
        for name in shape.columns
    ]
    added = tail.filter(pl.col("_rejected_by").is_null() & op.is_in(["c", "r", "u"])).select(
        *values,
        *_MOMENTS,
        replaced_exact(texts) if texts else row_exact(),
        _sign=pl.lit(1),
        _step=pl.col("_seq") * 2 + 1,
    )
    taken = tail.filter(op.is_in(["d", "u"])).select(
        *(before.field(name) for name in shape.columns),
        *_MOMENTS,
        before_exact(),
        _sign=pl.lit(-1),
        _step=pl.col("_seq") * 2,
    )
    return [added, taken]


def counted(shape: Shape, steps: pl.LazyFrame) -> pl.LazyFrame:
    """Each row as often as its steps leave of it, with the meta columns of its newest addition."""
    lowest = pl.col("_sign").sort_by("_step").cum_sum().min()
    # A walk that may not fall below zero ends as far above the free walk as that one dipped below zero.
    count = pl.col("_sign").sum() - pl.min_horizontal(lowest, pl.lit(0))
    added = pl.col("_sign") > 0
    newest = [pl.col(name).filter(added).sort_by(pl.col("_step").filter(added)).last() for name in _MOMENTS]
    return (
        steps.group_by([*shape.columns.names(), "_exact"])
        .agg(*newest, _count=count)
        .filter(pl.col("_count") > 0)
        .with_columns(_count=pl.int_ranges(0, pl.col("_count")))
        .explode("_count", empty_as_null=False)
        .select(shape.names(meta=True))
    )
