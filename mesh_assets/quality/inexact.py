"""Values that do not fit their column's type and stand as text in ``_exact``: what rules take them for.

Numbers become floats (an infinity, a number of a hundred digits), moments beyond the calendar become
the first or the last that there is.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from mesh_assets.lake.exact import text_of
from mesh_assets.quality.kind import Kind, kind_of

EXACT = "_exact"
_FAR = 2**62
"""Microseconds of a moment beyond every other."""


def approached(frame: pl.LazyFrame, schema: Mapping[str, pl.DataType]) -> pl.LazyFrame:
    """The frame, which holds ``_exact``, with such values in their columns."""
    entries = pl.col(EXACT).cast(pl.List(pl.Struct({"key": pl.String, "value": pl.String})))
    keys = (
        frame.filter(pl.col(EXACT).is_not_null())
        .select(entries.list.eval(pl.element().struct.field("key")).explode().unique().alias("key"))
        .collect(engine="streaming")["key"]
    )
    held = [name for name in keys if name in schema]
    return frame.with_columns(approximation(name, schema[name], text_of(name)).alias(name) for name in held)


def approximation(name: str, dtype: pl.DataType, text: pl.Expr) -> pl.Expr:
    """A column in a type that orders what the texts say, and their approximation where there is a text."""
    column = pl.col(name)
    match kind_of(dtype):
        case Kind.DECIMAL:
            return pl.coalesce(text.cast(pl.Float64, strict=False), column.cast(pl.Float64))
        case Kind.DATE | Kind.DATETIME:
            first = text.str.starts_with("-") | text.str.to_uppercase().str.ends_with("BC")
            far = pl.when(first).then(-_FAR).when(text.is_not_null()).then(_FAR)
            moments = pl.coalesce(far, column.cast(pl.Datetime("us")).to_physical()).cast(pl.Datetime("us"))
            zone = dtype.time_zone if isinstance(dtype, pl.Datetime) else None
            return moments.dt.replace_time_zone(zone) if zone else moments
        case Kind.TEXT:
            return pl.coalesce(text, column)
        case _:
            return column
