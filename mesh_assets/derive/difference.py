"""What a recomputation changes: its rows held against those that stand, as a minimal change frame."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime

import polars as pl
import pyarrow as pa

from mesh_assets.contract.definition import EXACT_SUFFIX
from mesh_assets.lake.exact import made_exact
from mesh_assets.lake.file import conform
from mesh_assets.lake.log import BEFORE
from mesh_assets.lake.shape import Shape

_PART_ROWS = 1_000_000
"""About so many whole rows are held against each other at one time."""
_NOISE = 1e-11
"""Floats that differ by less, relatively, are the same sum taken in another order."""
_ASSIGNED = ("_seq", "_captured_at", "_schema_version", "_rejected_by")
_OPS = {"d": 0, "u": 1, "c": 2}


@dataclass(frozen=True)
class Stamp:
    """What the rows of one version have in common.

    Attributes:
        version: the product's version that they belong to.
        committed_at: the latest commit among the inputs' versions.
    """

    version: int
    committed_at: datetime


def differences(
    shape: Shape, result: pl.LazyFrame, standing: pl.LazyFrame, *, row_count: int
) -> Iterator[pl.DataFrame]:
    """The rows that differ, in parts of bounded size; nothing for equal ones.

    Args:
        result: the rows as they shall be: the shape's columns, keys unique.
        standing: the rows as they are.
        row_count: about how many rows these are, both together.

    Yields:
        The key, ``_op`` (``d u c``), ``_new_<column>`` and ``_old_<column>``, in order of key.
    """
    if row_count <= _PART_ROWS:
        found = _held_against(shape, result, standing)
        if found.height:
            yield found
        return
    # First the keys whose rows have other hashes, from narrow columns; then only those rows.
    unlike = _unlike_keys(shape, result, standing)
    for first in range(0, unlike.height, _PART_ROWS // 2):
        keys = unlike[first : first + _PART_ROWS // 2].lazy()
        sides = [side.join(keys, on=list(shape.key), how="semi") for side in (result, standing)]
        found = _held_against(shape, *sides)
        if found.height:
            yield found


def _unlike_keys(shape: Shape, result: pl.LazyFrame, standing: pl.LazyFrame) -> pl.DataFrame:
    """The keys, in order, that only one side has or whose rows have different hashes."""
    key = list(shape.key)
    others = [name for name in shape.columns if name not in shape.key]
    row = pl.struct(others).hash(seed=1) if others else pl.lit(0, pl.UInt64)
    new, old = result.select(*key, _new=row), standing.select(*key, _old=row)
    both = new.join(old, on=key, how="full", coalesce=True)
    unlike = both.filter(pl.col("_new").ne_missing(pl.col("_old"))).select(key)
    return unlike.collect(engine="streaming").sort(key)


def _held_against(shape: Shape, result: pl.LazyFrame, standing: pl.LazyFrame) -> pl.DataFrame:
    key, names = list(shape.key), shape.columns.names()
    new = result.select(*key, *(pl.col(name).alias(f"_new_{name}") for name in names), _is=pl.lit(value=True))
    old = standing.select(
        *key, *(pl.col(name).alias(f"_old_{name}") for name in names), _was=pl.lit(value=True)
    )
    both = new.join(old, on=key, how="full", coalesce=True)
    unlike = pl.any_horizontal(
        _unlike(f"_new_{name}", f"_old_{name}", shape.columns[name]) for name in names if name not in key
    )
    gone, came = pl.col("_is").is_null(), pl.col("_was").is_null()
    different = gone | came | unlike if len(names) > len(key) else gone | came
    op = pl.when(gone).then(pl.lit("d")).when(came).then(pl.lit("c")).otherwise(pl.lit("u"))
    found = both.filter(different).with_columns(_op=op).drop("_is", "_was").collect(engine="streaming")
    rank = pl.col("_op").replace_strict(_OPS, return_dtype=pl.Int8)
    return found.sort([rank, *key])


def _unlike(one: str, other: str, kind: pl.DataType) -> pl.Expr:
    left, right = pl.col(one), pl.col(other)
    if not kind.is_float():
        return left.ne_missing(right)
    scale = pl.max_horizontal(left.abs(), right.abs())
    near = (left - right).abs() <= scale * _NOISE
    noise = (scale.is_finite() & near).fill_null(value=False)
    return left.ne_missing(right) & ~noise


def change_frame(
    shape: Shape,
    schema: pa.Schema,
    found: pl.DataFrame,
    stamp: Stamp,
    ordinal: int,
    texts: Collection[str] = (),
) -> pa.Table:
    """Rows of :func:`differences` as a change log takes them.

    Args:
        schema: of the log.
        ordinal: of the first row within its version.
        texts: the columns that come with texts of values outside of their type.
    """
    names = shape.columns.names()
    gone = pl.col("_op") == "d"
    key = set(shape.key)
    rows = found.select(
        *(
            pl.col(name)
            if name in key
            else pl.when(gone).then(None).otherwise(pl.col(f"_new_{name}")).alias(name)
            for name in names
        ),
        "_op",
        pl.lit(stamp.version, pl.Int64).alias("_position"),
        pl.int_range(ordinal, ordinal + pl.len(), dtype=pl.Int64).alias("_ordinal"),
        pl.lit(0, pl.Int64).alias("_xid"),
        pl.lit(stamp.committed_at, pl.Datetime("us", "UTC")).alias("_committed_at"),
        pl.when(pl.col("_op") != "c")
        .then(pl.struct(pl.col(f"_old_{name}").alias(name) for name in names))
        .alias(BEFORE),
        *_exact(texts),
    )
    return conform(rows.to_arrow(), no_change(schema).schema)


def _exact(texts: Collection[str]) -> list[pl.Expr]:
    if not texts:
        return []

    def text(side: str, name: str, without: str) -> pl.Expr:
        return pl.when(pl.col("_op") != without).then(pl.col(f"_{side}_{name}{EXACT_SUFFIX}"))

    return [
        made_exact(
            {name: text("new", name, "d") for name in sorted(texts)},
            {name: text("old", name, "c") for name in sorted(texts)},
        )
    ]


def no_change(schema: pa.Schema) -> pa.Table:
    """A change frame without rows for a log of this schema."""
    return pa.schema([one for one in schema if one.name not in _ASSIGNED]).empty_table()


def same_rows(shape: Shape, one: pl.LazyFrame, other: pl.LazyFrame) -> pl.DataFrame:
    """Where two results differ: like :func:`differences`, at once; empty if they are the same."""
    return _held_against(shape, one, other)
