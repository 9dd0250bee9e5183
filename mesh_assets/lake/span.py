"""Spans of the key space: half-open ranges of identities, in the order in which files are sorted.

The order is lexicographic over :attr:`~mesh_assets.lake.shape.Shape.identity`, nulls first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from mesh_assets.lake.shape import Shape


def ordered(shape: Shape, frame: pl.DataFrame) -> pl.DataFrame:
    """Rows sorted by their identity (which may need ``_exact``); columns stay as they are."""
    identified = shape.identified(frame.lazy()).sort(shape.identity, nulls_last=False)
    return identified.select(frame.columns).collect()


@dataclass(frozen=True)
class Span:
    """Identities from ``low`` (inclusive) to ``high`` (exclusive); None leaves a side open."""

    low: tuple[Any, ...] | None
    high: tuple[Any, ...] | None

    def holds(self, shape: Shape) -> pl.Expr:
        """Whether an identified row lies within; written so that Parquet statistics can prune."""
        inside = pl.lit(value=True)
        if self.low is not None:
            inside &= _from(shape, self.low)
        if self.high is not None:
            inside &= ~_from(shape, self.high)
            inside &= _prunes(shape, self.high[0], upper=True)
        if self.low is not None:
            inside &= _prunes(shape, self.low[0], upper=False)
        return inside


def _from(shape: Shape, bound: tuple[Any, ...]) -> pl.Expr:
    """Whether the identity is at or above ``bound``."""
    expression = pl.lit(value=True)
    for name, value in reversed(list(zip(shape.identity, bound, strict=True))):
        column = pl.col(name)
        above = column.is_not_null() if value is None else (column > _literal(shape, name, value))
        equal = column.is_null() if value is None else (column == _literal(shape, name, value))
        expression = above.fill_null(value=False) | (equal.fill_null(value=False) & expression)
    return expression


def _prunes(shape: Shape, value: Any, *, upper: bool) -> pl.Expr:  # noqa: ANN401 - any key value
    """A plain comparison of the first column that no row of the span fails, for skipping row groups."""
    name = shape.identity[0]
    if value is None or name in shape.inexact:
        return pl.lit(value=True)
    bound = _literal(shape, name, value)
    return pl.col(name) <= bound if upper else pl.col(name) >= bound


def _literal(shape: Shape, name: str, value: Any) -> pl.Expr:  # noqa: ANN401 - any key value
    return pl.lit(value, dtype=shape.columns.get(name, pl.String()))


def spans(lows: pl.DataFrame) -> list[Span]:
    """The spans that start at these identities (sorted); the first is open below, the last above."""
    bounds = lows.rows()
    if not bounds:
        return [Span(None, None)]
    starts: list[tuple[Any, ...] | None] = [None, *bounds[1:]]
    return [Span(low, high) for low, high in zip(starts, [*bounds[1:], None], strict=True)]


def starts_of(neighbours: Sequence[Span], like: pl.DataFrame) -> pl.DataFrame:
    """The inverse of :func:`spans`, with the types of ``like``; an open start stands for the one after it."""
    bounds = [span.low if span.low is not None else span.high for span in neighbours]
    return pl.DataFrame([bound for bound in bounds if bound is not None], schema=like.schema, orient="row")


def route(shape: Shape, keys: pl.DataFrame, lows: pl.DataFrame) -> pl.Series:
    """For each identity the number of its span among :func:`spans` of ``lows``."""
    identity = shape.identity
    number = pl.lit(None, dtype=pl.Int64)
    marked = pl.concat(
        [
            lows.select(*identity, _start=pl.lit(1), _row=number),
            keys.select(*identity, _start=pl.lit(0), _row=pl.int_range(pl.len(), dtype=pl.Int64)),
        ]
    )
    # A start sorts before the equal identity, which belongs to its span.
    marked = marked.sort(
        [*identity, "_start"], descending=[*(False for _ in identity), True], nulls_last=False
    )
    spanned = marked.with_columns(_span=(pl.col("_start").cum_sum() - 1).clip(lower_bound=0))
    return spanned.filter(pl.col("_start") == 0).sort("_row")["_span"].cast(pl.Int64)


def split(shape: Shape, sample: pl.DataFrame, pieces: int) -> pl.DataFrame:
    """Starts of about ``pieces`` equally filled spans (the first start is the smallest identity)."""
    keys = sample.select(shape.identity).sort(shape.identity, nulls_last=False)
    if keys.is_empty():
        return keys
    pieces = max(1, min(pieces, keys.height))
    picked = [number * keys.height // pieces for number in range(pieces)]
    return keys[picked].unique(maintain_order=True)
