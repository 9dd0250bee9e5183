"""Expectations about a column or a table as a whole: what to aggregate, and what it means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import zip_longest
from typing import Any, Literal, cast

import polars as pl

from mesh_assets.quality.kind import NUMERIC, Incomparable, Kind, kind_of, moment, plain, present, scalar
from mesh_assets.quality.predicate import Uncompilable, plain_domain
from mesh_assets.quality.rule import Expectation

MOST_DISTINCT = 20
"""How many distinct values Great Expectations lists."""

_Interpolation = Literal["linear", "lower", "higher", "midpoint", "nearest"]
_TOLERANCE = 1e-4
ROWS = "rows"

Schema = Mapping[str, pl.DataType]
Values = Mapping[str, Any]
_Kwargs = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """Whether an expectation is met, and Great Expectations' ``result`` of it."""

    success: bool
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measure:
    """Aggregations, by a name that says what they are: equal names mean equal values, computed once."""

    needs: Mapping[str, pl.Expr]
    judge: Callable[[Values], Verdict]


def measure(expectation: Expectation, schema: Schema) -> Measure | None:
    """The expectation as aggregations; ``None`` if it is not of that sort.

    Raises:
        Uncompilable: if no expression says it exactly over columns of these types.
        Incomparable: if its arguments can never be compared with what is measured.
        KeyError: if a column is missing.
    """
    kind, kwargs = expectation.type, expectation.kwargs
    if kind in _TABLE:
        if not plain_domain(expectation):
            raise Uncompilable
        return _TABLE[kind](list(schema), kwargs)
    if kind not in _COLUMN:
        return None
    if not plain_domain(expectation):
        raise Uncompilable
    name = kwargs["column"]
    if name not in schema:
        raise KeyError(name)
    return _COLUMN[kind](name, schema[name], kwargs)


def row_count() -> dict[str, pl.Expr]:
    """The number of rows."""
    return {ROWS: pl.len()}


def present_count(name: str, dtype: pl.DataType) -> dict[str, pl.Expr]:
    """The number of values in a column, named ``present:<column>``."""
    return {f"present:{name}": present(name, dtype).sum()}


def distinct_count(name: str, dtype: pl.DataType) -> dict[str, pl.Expr]:
    """The number of distinct values in a column, null as one of them if there is any."""
    return {f"distinct:{name}": plain(name, dtype).n_unique()}


def distinct_of(name: str, values: Values) -> int:
    """The number of distinct values without null, from the counts above."""
    return int(values[f"distinct:{name}"] - (values[f"present:{name}"] < values[ROWS]))


# -- what lies between bounds -------------------------------------------------------------------------


def _bounded(observed: Any, kwargs: _Kwargs, bounds: Sequence[Any] | None = None) -> Verdict:  # noqa: ANN401
    low, high = bounds if bounds is not None else (kwargs.get("min_value"), kwargs.get("max_value"))
    if observed is None or (isinstance(observed, float) and math.isnan(observed)):
        return Verdict(False, {"observed_value": None})
    above = low is None or (observed > low if kwargs.get("strict_min") else observed >= low)
    below = high is None or (observed < high if kwargs.get("strict_max") else observed <= high)
    return Verdict(bool(above and below), {"observed_value": observed})


def _numbers(kwargs: _Kwargs) -> None:
    for name in ("min_value", "max_value"):
        value = kwargs.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise Incomparable


def _statistic(of: Callable[[pl.Expr], pl.Expr], label: str) -> Callable[..., Measure]:
    def build(name: str, dtype: pl.DataType, kwargs: _Kwargs) -> Measure:
        if kind_of(dtype) not in NUMERIC:
            raise Uncompilable
        _numbers(kwargs)
        key = f"{label}:{name}"
        values = plain(name, dtype).cast(pl.Float64)
        return Measure({key: of(values)}, lambda found: _bounded(found[key], kwargs))

    return build


def _sum(name: str, dtype: pl.DataType, kwargs: _Kwargs) -> Measure:
    if kind_of(dtype) not in NUMERIC:
        raise Uncompilable
    _numbers(kwargs)
    key = f"sum:{name}"
    wide = pl.Int64 if kind_of(dtype) is Kind.INTEGER else pl.Float64
    return Measure({key: plain(name, dtype).cast(wide).sum()}, lambda found: _bounded(found[key], kwargs))


def _extreme(label: str) -> Callable[..., Measure]:
    def build(name: str, dtype: pl.DataType, kwargs: _Kwargs) -> Measure:
        kind = kind_of(dtype)
        bounds = [kwargs.get("min_value"), kwargs.get("max_value")]
        if kind in NUMERIC:
            _numbers(kwargs)
        elif kind is Kind.TEXT:
            if any(value is not None and not isinstance(value, str) for value in bounds):
                raise Incomparable
        elif kind in (Kind.DATE, Kind.DATETIME):
            if any(value is not None and not isinstance(value, str | date) for value in bounds):
                raise Incomparable
            bounds = [None if value is None else moment(value, dtype) for value in bounds]
        else:
            raise Uncompilable
        key = f"{label}:{name}"
        values = plain(name, dtype)
        expression = values.max() if label == "max" else values.min()

        def judge(found: Values) -> Verdict:
            if found[key] is None and kind is Kind.DATETIME:
                # What pandas calls the largest of no moments, and Great Expectations writes down.
                return Verdict(False, {"observed_value": "NaT"})
            return _bounded(found[key], kwargs, bounds)

        return Measure({key: expression}, judge)

    return build


def _unique_count(name: str, dtype: pl.DataType, kwargs: _Kwargs) -> Measure:
    _countable(dtype)
    _numbers(kwargs)
    needs = row_count() | present_count(name, dtype) | distinct_count(name, dtype)
    return Measure(needs, lambda found: _bounded(distinct_of(name, found), kwargs))


def _unique_share(name: str, dtype: pl.DataType, kwargs: _Kwargs) -> Measure:
    _countable(dtype)
    _numbers(kwargs)
    needs = row_count() | present_count(name, dtype) | distinct_count(name, dtype)

    def judge(found: Values) -> Verdict:
        count = found[f"present:{name}"]
        return _bounded(distinct_of(name, found) / count if count else 0, kwargs)

    return Measure(needs, judge)


def _present_share(name: str, dtype: pl.DataType, kwargs: _Kwargs) -> Measure:
    _numbers(kwargs)
    needs = row_count() | present_count(name, dtype)

    def judge(found: Values) -> Verdict:
        return _bounded(found[f"present:{name}"] / found[ROWS] if found[ROWS] else 0, kwargs)

    return Measure(needs, judge)


def _countable(dtype: pl.DataType) -> None:
    if kind_of(dtype) is Kind.OTHER:
        raise Uncompilable


def _quantiles(name: str, dtype: pl.DataType, kwargs: _Kwargs) -> Measure:
    if kind_of(dtype) not in (Kind.INTEGER, Kind.FLOAT):
        raise Uncompilable
    ranges = kwargs.get("quantile_ranges")
    method = kwargs.get("allow_relative_error") or "nearest"
    if not isinstance(ranges, Mapping) or method not in ("linear", "lower", "higher", "midpoint", "nearest"):
        raise Incomparable
    quantiles, limits = ranges.get("quantiles"), ranges.get("value_ranges")
    if not isinstance(quantiles, list) or not isinstance(limits, list) or len(quantiles) != len(limits):
        raise Incomparable
    for limit in limits:
        if not isinstance(limit, list) or len(limit) != 2 or any(isinstance(end, str) for end in limit):
            raise Incomparable
    if any(not isinstance(quantile, int | float) or not 0 <= quantile <= 1 for quantile in quantiles):
        raise Incomparable
    values = plain(name, dtype)
    # Where two neighbours are equally near, pandas takes the even one: both are asked for.
    asked: tuple[_Interpolation, ...] = ("lower", "higher")
    if method != "nearest":
        asked = (cast("_Interpolation", method),)
    needs = row_count() | present_count(name, dtype)
    for quantile in quantiles:
        for how in asked:
            needs[f"quantile:{how}:{quantile}:{name}"] = values.quantile(quantile, how)

    def value(found: Values, quantile: float) -> float:
        if method != "nearest":
            got = found[f"quantile:{method}:{quantile}:{name}"]
        else:
            place = quantile * (found[f"present:{name}"] - 1)
            up = round(place) > math.floor(place)
            got = found[f"quantile:{'higher' if up else 'lower'}:{quantile}:{name}"]
        return math.nan if got is None else float(got)

    def judge(found: Values) -> Verdict:
        observed = [value(found, quantile) for quantile in quantiles]
        met = [_in_range(got, low, high) for got, (low, high) in zip(observed, limits, strict=True)]
        result = {
            "observed_value": {"quantiles": quantiles, "values": observed},
            "details": {"success_details": met},
        }
        return Verdict(all(met), result)

    return Measure(needs, judge)


def _in_range(value: float, low: float | None, high: float | None) -> bool:
    least = -math.inf if low is None else low
    most = math.inf if high is None else high
    close = any(
        abs(value - end) <= 1e-8 + _TOLERANCE * abs(end) for end in (least, most) if math.isfinite(end)
    )
    return close or least <= value <= most


# -- sets of distinct values --------------------------------------------------------------------------


def _members(dtype: pl.DataType, kwargs: _Kwargs) -> list[Any]:
    given = kwargs.get("value_set")
    if not isinstance(given, list | tuple):
        raise Incomparable
    if kind_of(dtype) not in (Kind.INTEGER, Kind.FLOAT, Kind.TEXT, Kind.BOOLEAN):
        raise Uncompilable
    return list(dict.fromkeys(value for value in given if value is not None))


def _outside(name: str, dtype: pl.DataType, members: Sequence[Any]) -> pl.Expr:
    held = [same for value in members if (same := scalar(value, dtype)) is not None]
    values = plain(name, dtype)
    absent = ~values.is_in(pl.Series(held, dtype=dtype).implode()) if held else values.is_not_null()
    return values.filter(absent.fill_null(False))


def _distinct_set(*, inside: bool, whole: bool) -> Callable[..., Measure]:
    def build(name: str, dtype: pl.DataType, kwargs: _Kwargs) -> Measure:
        members = _members(dtype, kwargs)
        label = repr(members)
        needs: dict[str, pl.Expr] = {}
        if inside:
            outside = _outside(name, dtype, members)
            needs[f"outside count:{label}:{name}"] = outside.n_unique()
            needs[f"outside:{label}:{name}"] = outside.unique().bottom_k(MOST_DISTINCT).implode()
        if whole:
            held = [same for value in members if (same := scalar(value, dtype)) is not None]
            values = plain(name, dtype)
            known = values.filter(values.is_in(pl.Series(held, dtype=dtype).implode()))
            needs[f"inside:{label}:{name}"] = known.unique().implode()

        def judge(found: Values) -> Verdict:
            result: dict[str, Any] = {"observed_value": None}
            success = True
            if inside:
                result["unexpected_count"] = found[f"outside count:{label}:{name}"]
                result["partial_unexpected_list"] = sorted(found[f"outside:{label}:{name}"])
                success = not result["unexpected_count"]
            if whole:
                there = set(found[f"inside:{label}:{name}"])
                missing = [value for value in members if value not in there]
                result["missing_count"] = len(missing)
                result["partial_missing_list"] = missing[:MOST_DISTINCT]
                success = success and not missing
            return Verdict(success, result)

        return Measure(needs, judge)

    return build


def _most_common(name: str, dtype: pl.DataType, kwargs: _Kwargs) -> Measure:
    members = _members(dtype, kwargs)
    key = f"mode:{name}"

    def judge(found: Values) -> Verdict:
        modes = found[key]
        met = len(set(members).intersection(modes))
        success = met > 0 if kwargs.get("ties_okay") else len(modes) == 1 and met == 1
        return Verdict(success, {"observed_value": modes})

    return Measure({key: plain(name, dtype).drop_nulls().mode().sort().implode()}, judge)


_COLUMN: dict[str, Callable[[str, pl.DataType, _Kwargs], Measure]] = {
    "expect_column_max_to_be_between": _extreme("max"),
    "expect_column_min_to_be_between": _extreme("min"),
    "expect_column_mean_to_be_between": _statistic(lambda values: values.mean(), "mean"),
    "expect_column_median_to_be_between": _statistic(lambda values: values.median(), "median"),
    "expect_column_stdev_to_be_between": _statistic(lambda values: values.std(), "std"),
    "expect_column_sum_to_be_between": _sum,
    "expect_column_unique_value_count_to_be_between": _unique_count,
    "expect_column_proportion_of_unique_values_to_be_between": _unique_share,
    "expect_column_proportion_of_non_null_values_to_be_between": _present_share,
    "expect_column_quantile_values_to_be_between": _quantiles,
    "expect_column_distinct_values_to_be_in_set": _distinct_set(inside=True, whole=False),
    "expect_column_distinct_values_to_contain_set": _distinct_set(inside=False, whole=True),
    "expect_column_distinct_values_to_equal_set": _distinct_set(inside=True, whole=True),
    "expect_column_most_common_value_to_be_in_set": _most_common,
}


# -- tables -------------------------------------------------------------------------------------------


def _count(value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Incomparable
    return value


def _rows_equal(columns: list[str], kwargs: _Kwargs) -> Measure:
    expected = _count(kwargs.get("value"))
    return Measure(
        row_count(), lambda found: Verdict(found[ROWS] == expected, {"observed_value": found[ROWS]})
    )


def _rows_between(columns: list[str], kwargs: _Kwargs) -> Measure:
    _numbers(kwargs)
    return Measure(row_count(), lambda found: _bounded(found[ROWS], kwargs))


def _columns_equal(columns: list[str], kwargs: _Kwargs) -> Measure:
    verdict = Verdict(len(columns) == _count(kwargs.get("value")), {"observed_value": len(columns)})
    return Measure({}, lambda found: verdict)


def _columns_between(columns: list[str], kwargs: _Kwargs) -> Measure:
    _numbers(kwargs)
    return Measure({}, lambda found: _bounded(len(columns), kwargs))


def _columns_ordered(columns: list[str], kwargs: _Kwargs) -> Measure:
    expected = kwargs.get("column_list")
    result: dict[str, Any] = {"observed_value": columns}
    success = expected is None or list(expected) == columns
    if not success:
        pairs = enumerate(zip_longest(expected or (), columns))
        result["details"] = {
            "mismatched": [
                {"Expected Column Position": place, "Expected": wanted, "Found": found}
                for place, (wanted, found) in pairs
                if wanted != found
            ]
        }
    return Measure({}, lambda _: Verdict(success, result))


def _columns_set(columns: list[str], kwargs: _Kwargs) -> Measure:
    expected = set(kwargs.get("column_set") or ())
    unexpected, missing = sorted(set(columns) - expected), sorted(expected - set(columns))
    result: dict[str, Any] = {"observed_value": sorted(columns)}
    if unexpected or missing:
        result["details"] = {
            "mismatched": {
                name: found for name, found in (("unexpected", unexpected), ("missing", missing)) if found
            }
        }
    exact = kwargs.get("exact_match", True)
    success = not missing and not (exact and unexpected)
    return Measure({}, lambda _: Verdict(success, result))


def _column_exists(columns: list[str], kwargs: _Kwargs) -> Measure:
    name, index = kwargs.get("column"), kwargs.get("column_index")
    success = name in columns
    if index:
        success = -len(columns) <= index < len(columns) and columns[index] == name
    return Measure({}, lambda _: Verdict(success))


_TABLE: dict[str, Callable[[list[str], _Kwargs], Measure]] = {
    "expect_table_row_count_to_equal": _rows_equal,
    "expect_table_row_count_to_be_between": _rows_between,
    "expect_table_column_count_to_equal": _columns_equal,
    "expect_table_column_count_to_be_between": _columns_between,
    "expect_table_columns_to_match_ordered_list": _columns_ordered,
    "expect_table_columns_to_match_set": _columns_set,
    "expect_column_to_exist": _column_exists,
}

TYPES = frozenset({*_COLUMN, *_TABLE})
"""Types that measures exist for."""
