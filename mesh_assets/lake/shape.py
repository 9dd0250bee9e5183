"""What the rows of a table look like, and which of their columns tell keys apart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import polars as pl
import pyarrow as pa

META_COLUMNS = ("_seq", "_position", "_ordinal", "_committed_at", "_exact")
"""Columns of a current table besides the row's own, in order."""


def polars_schema(schema: pa.Schema) -> pl.Schema:
    """The polars types of Arrow columns."""
    frame = pl.from_arrow(schema.empty_table())
    assert isinstance(frame, pl.DataFrame)
    return frame.schema


@dataclass(frozen=True)
class Shape:
    """What the rows of one table look like.

    Attributes:
        columns: the row's own columns with their polars types.
        key: names of the key columns; empty for a table without a key (a multiset).
    """

    columns: pl.Schema
    key: tuple[str, ...]

    @cached_property
    def inexact(self) -> tuple[str, ...]:
        """Key columns whose value may stand in ``_exact`` instead of in the column (infinity, NaN)."""
        return tuple(name for name in self.key if _may_be_inexact(self.columns[name]))

    @property
    def identity(self) -> list[str]:
        """Names of the columns that tell keys apart: the key and the exact texts of its inexact columns."""
        return [*self.key, *(f"_exact_{name}" for name in self.inexact)]

    def identified(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        """``frame`` (which holds the key and ``_exact``) with all :attr:`identity` columns."""
        if not self.inexact:
            return frame
        return frame.with_columns(
            pl.col("_exact").map.get(name).alias(f"_exact_{name}") for name in self.inexact
        )

    def names(self, meta: bool) -> list[str]:
        """Output columns of a read."""
        return [*self.columns.names(), *(META_COLUMNS if meta else ())]

    def join(self, left: pl.LazyFrame, right: pl.LazyFrame, how: str) -> pl.LazyFrame:
        """Semi or anti join of identified frames on the identity."""
        return left.join(right, on=self.identity, how=how, nulls_equal=bool(self.inexact))  # type: ignore[arg-type]


def _may_be_inexact(dtype: pl.DataType) -> bool:
    return not (dtype.is_integer() or dtype.is_float() or dtype in (pl.String, pl.Boolean, pl.Binary))
