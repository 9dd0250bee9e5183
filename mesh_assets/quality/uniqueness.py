"""Expectations that values, or combinations of values, occur once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import polars as pl

from mesh_assets.quality.expectation import columns_of
from mesh_assets.quality.kind import Kind, kind_of, plain, present
from mesh_assets.quality.predicate import Schema, Uncompilable, ignoring, plain_domain
from mesh_assets.quality.rule import Expectation

_COUNT = "_count"
_ROW = "_row"


@dataclass(frozen=True)
class Uniqueness:
    """That no two rows agree in these columns.

    Attributes:
        columns: the columns.
        form: how Great Expectations reports it.
        considered: rows that count; ``None`` if all do.
        mostly: the share of these rows that must be alone.
    """

    columns: tuple[str, ...]
    form: Literal["column", "columns"]
    considered: pl.Expr | None
    mostly: float
    schema: Schema

    def repeated(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        """The combinations that occur more than once, with their ``_count``."""
        rows = frame if self.considered is None else frame.filter(self.considered)
        keys = [plain(name, self.schema[name]).alias(name) for name in self.columns]
        return rows.group_by(keys).agg(pl.len().alias(_COUNT)).filter(pl.col(_COUNT) > 1)

    def count(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        """How many rows are not alone, as the one value of ``unexpected``."""
        return self.repeated(frame).select(unexpected=pl.col(_COUNT).sum().cast(pl.Int64))

    def examples(self, frame: pl.LazyFrame, count: int) -> pl.LazyFrame:
        """The first rows that are not alone, with their row number in ``_row``."""
        columns = [plain(name, self.schema[name]).alias(name) for name in self.columns]
        rows = frame.with_row_index(_ROW)
        if self.considered is not None:
            rows = rows.filter(self.considered)
        return (
            rows.select(_ROW, *columns)
            .join(self.repeated(frame), on=list(self.columns), how="semi", nulls_equal=True)
            .bottom_k(count, by=_ROW)
            .sort(_ROW)
        )


def uniqueness(expectation: Expectation, schema: Schema) -> Uniqueness | None:
    """The expectation as a uniqueness; ``None`` if it is none.

    Raises:
        Uncompilable: if values of these types cannot be grouped.
        KeyError: if a column is missing.
    """
    single = expectation.type == "expect_column_values_to_be_unique"
    if not single and expectation.type != "expect_compound_columns_to_be_unique":
        return None
    kwargs = expectation.kwargs
    names = columns_of(expectation.type, kwargs)
    for name in names:
        if name not in schema:
            raise KeyError(name)
    if not plain_domain(expectation) or any(kind_of(schema[name]) is Kind.OTHER for name in names):
        raise Uncompilable
    mostly = kwargs.get("mostly")
    considered = present(names[0], schema[names[0]]) if single else ignoring(names, schema, kwargs)
    share = 1.0 if mostly is None else float(mostly)
    return Uniqueness(names, "column" if single else "columns", considered, share, schema)
