"""Expressions over ``_exact``: the texts of values that do not fit their column's type.

``_exact`` maps a column to such a text, and ``_before.<column>`` to that of the old row. An entry
belongs to its value: it goes where the value goes. Null and no entries at all are the same; what
is built here is null then, and its entries are sorted.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

EXACT = pl.Map(pl.String, pl.String)
_ENTRIES = pl.List(pl.Struct({"key": pl.String, "value": pl.String}))
_PREFIX = "_before."


def text_of(column: str) -> pl.Expr:
    """The exact text of a column; null where the column itself holds the value."""
    return pl.col("_exact").map.get(column)


def text_before(column: str) -> pl.Expr:
    """The exact text of a column of the old row."""
    return pl.col("_exact").map.get(_PREFIX + column)


def row_exact() -> pl.Expr:
    """``_exact`` of the row alone, without the old row's entries."""
    own = ~_key().str.starts_with(_PREFIX)
    return _map(_entries().list.eval(pl.element().filter(own)))


def before_exact() -> pl.Expr:
    """``_exact`` of the old row, as if it were a row of its own."""
    entry = pl.struct(key=_key().str.strip_prefix(_PREFIX), value=pl.element().struct.field("value"))
    return _map(_entries().list.eval(entry.filter(_key().str.starts_with(_PREFIX))))


def replaced_exact(texts: Mapping[str, pl.Expr]) -> pl.Expr:
    """``_exact`` of the row with the texts of some columns replaced (a null text: no entry)."""
    other = ~_key().str.starts_with(_PREFIX) & ~_key().is_in(list(texts))
    kept = _entries().list.eval(pl.element().filter(other))
    given = [pl.concat_list(pl.struct(key=pl.lit(name), value=text)) for name, text in texts.items()]
    return _map(pl.concat_list([pl.coalesce(kept, pl.lit([], dtype=_ENTRIES)), *given]))


def made_exact(texts: Mapping[str, pl.Expr], before: Mapping[str, pl.Expr]) -> pl.Expr:
    """``_exact`` of the texts of some columns, of the row and of the old row (a null text: no entry)."""
    named = {**texts, **{_PREFIX + name: text for name, text in before.items()}}
    return _map(pl.concat_list([pl.struct(key=pl.lit(name), value=text) for name, text in named.items()]))


def columns_in(rows: pl.LazyFrame) -> frozenset[str]:
    """The columns of which some of these rows, old ones left out, have a text; reads ``_exact`` alone."""
    keys = (
        rows.filter(pl.col("_exact").is_not_null())
        .select(_entries().list.eval(_key()).explode().unique().alias("key"))
        .collect(engine="streaming")["key"]
    )
    return frozenset(name for name in keys if name is not None and not name.startswith(_PREFIX))


def _key() -> pl.Expr:
    return pl.element().struct.field("key")


def _entries() -> pl.Expr:
    return pl.col("_exact").cast(_ENTRIES)


def _map(entries: pl.Expr) -> pl.Expr:
    held = pl.element().struct.field("value").is_not_null()
    entries = entries.list.eval(pl.element().filter(held).sort())
    return pl.when(entries.list.len() > 0).then(entries).cast(EXACT).alias("_exact")
