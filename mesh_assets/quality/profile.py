"""Statistics of a table's columns, mergeable: of each data file once, of a version by merging its files.

Counts, extremes, mean and deviation are exact; distinct values are estimated from a sketch of the
smallest hashes, and the most frequent ones are exact while a column has few.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from decimal import Decimal
from functools import reduce
from typing import Any

import polars as pl

from mesh_assets.quality.kind import NUMERIC, Kind, kind_of, plain

SKETCH_SIZE = 1024
"""Hashes kept per column: the estimate of distinct values is off by about 1 in √1024, 3 %."""
TOP_COUNT = 20
"""Most frequent values that are shown."""
_TOP_KEPT = 200
_MOST_COUNTED = 50_000
_LONGEST_TEXT = 256
_HASH_SPACE = 2**64


@dataclass(frozen=True)
class ColumnProfile:
    """Statistics of one column.

    Attributes:
        kind: what it holds.
        count: rows.
        null_count: rows without a value.
        nan_count: rows with NaN, which are no values either.
        minimum, maximum: the extremes of what has an order.
        mean: of numbers.
        squares: the sum of the squared distances from the mean.
        least_length, greatest_length, length_sum: of texts in characters, of lists in items.
        sketch: the smallest hashes of its values.
        top: frequent values and how often they occur.
        top_exact: no value was left out of ``top``.
    """

    kind: Kind
    count: int = 0
    null_count: int = 0
    nan_count: int = 0
    minimum: Any = None
    maximum: Any = None
    mean: float | None = None
    squares: float = 0.0
    least_length: int | None = None
    greatest_length: int | None = None
    length_sum: int = 0
    sketch: tuple[int, ...] = ()
    top: Mapping[Any, int] = field(default_factory=dict, hash=False)
    top_exact: bool = True

    @property
    def value_count(self) -> int:
        """Rows with a value."""
        return self.count - self.null_count - self.nan_count

    @property
    def deviation(self) -> float | None:
        """The standard deviation of a sample; ``None`` for fewer than two numbers."""
        if self.mean is None or self.value_count < 2:
            return None
        return math.sqrt(max(self.squares, 0.0) / (self.value_count - 1))

    @property
    def distinct_count(self) -> int:
        """Different values: exact below the sketch's size, estimated beyond."""
        if len(self.sketch) < SKETCH_SIZE:
            return len(self.sketch)
        return round((SKETCH_SIZE - 1) / (self.sketch[-1] / _HASH_SPACE))

    @property
    def mean_length(self) -> float | None:
        """The mean length of texts or lists."""
        return self.length_sum / self.value_count if self.least_length is not None else None

    def merge(self, other: ColumnProfile) -> ColumnProfile:
        """The profile of both columns' rows together; of different kinds, the newer's kind counts alone."""
        if self.kind is not other.kind:
            blank = ColumnProfile(other.kind, self.count, self.count)
            return (
                blank.merge(other)
                if self.value_count
                else replace(other, count=self.count + other.count, null_count=self.count + other.null_count)
            )
        mean, squares = self._moments(other)
        top, exact = self._top(other)
        return ColumnProfile(
            kind=self.kind,
            count=self.count + other.count,
            null_count=self.null_count + other.null_count,
            nan_count=self.nan_count + other.nan_count,
            minimum=_extreme(min, self.minimum, other.minimum),
            maximum=_extreme(max, self.maximum, other.maximum),
            mean=mean,
            squares=squares,
            least_length=_extreme(min, self.least_length, other.least_length),
            greatest_length=_extreme(max, self.greatest_length, other.greatest_length),
            length_sum=self.length_sum + other.length_sum,
            sketch=tuple(sorted({*self.sketch, *other.sketch})[:SKETCH_SIZE]),
            top=top,
            top_exact=exact,
        )

    def _moments(self, other: ColumnProfile) -> tuple[float | None, float]:
        if self.mean is None or other.mean is None:
            return (other.mean, other.squares) if self.mean is None else (self.mean, self.squares)
        own, its = self.value_count, other.value_count
        apart = other.mean - self.mean
        mean = self.mean + apart * its / (own + its)
        return mean, self.squares + other.squares + apart * apart * own * its / (own + its)

    def _top(self, other: ColumnProfile) -> tuple[dict[Any, int], bool]:
        counts = Counter(dict(self.top))
        counts.update(other.top)
        exact = self.top_exact and other.top_exact
        kept = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        return dict(kept[:_TOP_KEPT]), exact and len(kept) <= _TOP_KEPT

    def to_json(self) -> dict[str, Any]:
        """As JSON, from which :meth:`from_json` builds the same again."""
        return {
            "kind": self.kind.value,
            "count": self.count,
            "null_count": self.null_count,
            "nan_count": self.nan_count,
            "minimum": _written(self.minimum),
            "maximum": _written(self.maximum),
            "mean": self.mean,
            "squares": self.squares,
            "least_length": self.least_length,
            "greatest_length": self.greatest_length,
            "length_sum": self.length_sum,
            "sketch": list(self.sketch),
            "top": [[_written(value), count] for value, count in self.top.items()],
            "top_exact": self.top_exact,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ColumnProfile:
        """Back from :meth:`to_json`."""
        kind = Kind(content["kind"])
        given = dict(content)
        given |= {"kind": kind, "sketch": tuple(content["sketch"])}
        given |= {name: _read(content[name], kind) for name in ("minimum", "maximum")}
        given["top"] = {_read(value, kind): count for value, count in content["top"]}
        return cls(**given)

    def summary(self) -> dict[str, Any]:
        """What a catalog shows, as JSON."""
        shown = list(self.top.items())[:TOP_COUNT]
        return {
            "kind": self.kind.value,
            "count": self.count,
            "null_count": self.null_count + self.nan_count,
            "distinct_count": self.distinct_count,
            "distinct_exact": len(self.sketch) < SKETCH_SIZE,
            "minimum": _written(self.minimum),
            "maximum": _written(self.maximum),
            "mean": self.mean,
            "deviation": self.deviation,
            "least_length": self.least_length,
            "greatest_length": self.greatest_length,
            "mean_length": self.mean_length,
            "top": [{"value": _written(value), "count": count} for value, count in shown],
            "top_exact": self.top_exact,
        }


@dataclass(frozen=True)
class TableProfile:
    """Statistics of a table, or of one of its data files.

    Attributes:
        row_count: its rows.
        columns: by name.
        hashing: what made the sketches' hashes; profiles of different hashing do not merge.
    """

    row_count: int = 0
    columns: Mapping[str, ColumnProfile] = field(default_factory=dict, hash=False)
    hashing: str = pl.__version__

    @property
    def current(self) -> bool:
        """Whether this program's hashes are those of the sketches; if not, profile anew."""
        return self.hashing == pl.__version__

    def merge(self, other: TableProfile) -> TableProfile:
        """The profile of both tables' rows; a column that one of them lacks is null there."""
        names = dict.fromkeys((*self.columns, *other.columns))
        merged = {name: self._column(name, other).merge(other._column(name, self)) for name in names}
        return TableProfile(self.row_count + other.row_count, merged, self.hashing)

    def _column(self, name: str, other: TableProfile) -> ColumnProfile:
        if name in self.columns:
            return self.columns[name]
        return ColumnProfile(other.columns[name].kind, self.row_count, self.row_count)

    def to_json(self) -> dict[str, Any]:
        """As JSON, from which :meth:`from_json` builds the same again."""
        return {
            "row_count": self.row_count,
            "hashing": self.hashing,
            "columns": {name: column.to_json() for name, column in self.columns.items()},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TableProfile:
        """Back from :meth:`to_json`."""
        columns = {name: ColumnProfile.from_json(column) for name, column in content["columns"].items()}
        return cls(content["row_count"], columns, content["hashing"])

    def summary(self) -> dict[str, Any]:
        """What a catalog shows, as JSON."""
        columns = {name: column.summary() for name, column in self.columns.items()}
        return {"row_count": self.row_count, "columns": columns}


def merged(profiles: Iterable[TableProfile]) -> TableProfile:
    """The profile of all rows together."""
    return reduce(TableProfile.merge, profiles, TableProfile())


def incremental(
    files: Mapping[str, Callable[[], pl.LazyFrame]], held: Mapping[str, TableProfile]
) -> dict[str, TableProfile]:
    """A profile per data file: those held are kept, new files are read, gone ones are dropped.

    Args:
        files: how to read each file of a version.
        held: profiles of an earlier version's files.
    """
    return {
        path: held[path] if path in held and held[path].current else profile(read())
        for path, read in files.items()
    }


def profile(frame: pl.LazyFrame) -> TableProfile:
    """Statistics of a frame's columns; those that start with ``_`` are the lake's own and left out."""
    schema = {name: dtype for name, dtype in frame.collect_schema().items() if not name.startswith("_")}
    needs = [pl.len().alias("rows")]
    for number, (name, dtype) in enumerate(schema.items()):
        needs += [expression.alias(f"{number}:{key}") for key, expression in _needs(name, dtype).items()]
    row = frame.select(needs).collect(engine="streaming").row(0, named=True)
    found = {}
    for number, (name, dtype) in enumerate(schema.items()):
        mine = {key.partition(":")[2]: value for key, value in row.items() if key.startswith(f"{number}:")}
        found[name] = _built(kind_of(dtype), row["rows"], mine)
    tops = [name for name, column in found.items() if _countable(column)]
    counts = pl.collect_all([_top(frame, name, schema[name]) for name in tops], engine="streaming")
    for name, top in zip(tops, counts, strict=True):
        values = dict(top.rows())
        exact = len(values) == found[name].distinct_count or len(values) < _TOP_KEPT
        found[name] = replace(found[name], top=values, top_exact=exact)
    return TableProfile(row["rows"], found)


def _needs(name: str, dtype: pl.DataType) -> dict[str, pl.Expr]:
    kind = kind_of(dtype)
    values = plain(name, dtype)
    needs = {"nulls": pl.col(name).null_count(), "nans": pl.lit(0)}
    if kind is Kind.FLOAT:
        needs["nans"] = pl.col(name).is_nan().sum()
    if kind in (*NUMERIC, Kind.DATE, Kind.DATETIME):
        needs |= {"min": values.min(), "max": values.max()}
    if kind in NUMERIC:
        wide = values.cast(pl.Float64)
        needs |= {"mean": wide.mean(), "var": wide.var()}
    if kind is Kind.TEXT:
        short = values.str.head(_LONGEST_TEXT)
        lengths = values.str.len_chars()
        needs |= {"min": short.min(), "max": short.max()}
    elif isinstance(dtype, pl.List):
        lengths = values.list.len()
    else:
        lengths = None
    if lengths is not None:
        needs |= {"least": lengths.min(), "greatest": lengths.max(), "sum": lengths.cast(pl.Int64).sum()}
    if kind is not Kind.OTHER:
        hashes = values.drop_nulls().hash()
        needs["sketch"] = hashes.unique().bottom_k(SKETCH_SIZE).sort().implode()
    return needs


def _built(kind: Kind, count: int, row: Mapping[str, Any]) -> ColumnProfile:
    values = count - row["nulls"] - row["nans"]
    return ColumnProfile(
        kind=kind,
        count=count,
        null_count=row["nulls"],
        nan_count=row["nans"],
        minimum=row.get("min"),
        maximum=row.get("max"),
        mean=row.get("mean"),
        squares=(row.get("var") or 0.0) * max(values - 1, 0),
        least_length=row.get("least"),
        greatest_length=row.get("greatest"),
        length_sum=row.get("sum") or 0,
        sketch=tuple(row.get("sketch") or ()),
        top_exact=kind is not Kind.OTHER and not values,
    )


def _countable(column: ColumnProfile) -> bool:
    """Whether its frequent values are worth counting: not where nearly all are different."""
    few = column.distinct_count <= max(_TOP_KEPT, column.value_count // 4)
    return (
        bool(column.value_count)
        and column.kind is not Kind.OTHER
        and few
        and (column.distinct_count <= _MOST_COUNTED)
    )


def _top(frame: pl.LazyFrame, name: str, dtype: pl.DataType) -> pl.LazyFrame:
    values = plain(name, dtype)
    if kind_of(dtype) is Kind.TEXT:
        values = values.str.head(_LONGEST_TEXT)
    counted = frame.select(value=values).drop_nulls().group_by("value").agg(count=pl.len())
    # Equally frequent values are kept in their own order, so that a profile is the same each time.
    return counted.sort("count", "value", descending=[True, False]).head(_TOP_KEPT)


def _extreme(which: Callable[[Any, Any], Any], one: Any, other: Any) -> Any:  # noqa: ANN401
    if one is None or other is None:
        return other if one is None else one
    return which(one, other)


def _written(value: Any) -> Any:  # noqa: ANN401 - a column's value as JSON
    if isinstance(value, Decimal):
        return str(value)
    return value.isoformat() if isinstance(value, date) else value


def _read(value: Any, kind: Kind) -> Any:  # noqa: ANN401
    if value is None:
        return None
    match kind:
        case Kind.DECIMAL:
            return Decimal(value)
        case Kind.DATE:
            return date.fromisoformat(value)
        case Kind.DATETIME:
            return datetime.fromisoformat(value)
        case _:
            return value
