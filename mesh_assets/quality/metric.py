"""ODCS library metrics as expressions."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Any

import polars as pl

from mesh_assets.quality.kind import Incomparable, plain, present, scalar
from mesh_assets.quality.measure import (
    ROWS,
    Measure,
    Schema,
    Values,
    Verdict,
    distinct_count,
    distinct_of,
    present_count,
    row_count,
)
from mesh_assets.quality.predicate import Uncompilable
from mesh_assets.quality.regex import translated
from mesh_assets.quality.rule import Metric
from mesh_assets.quality.threshold import holds, only_zero


def is_row_wise(metric: Metric) -> bool:
    """Whether the metric must be 0 and each row decides by itself whether it adds to it."""
    counted = metric.metric in ("nullValues", "missingValues", "invalidValues")
    exact = not metric.percent or metric.threshold == 0 or metric.threshold == [0, 0]
    return counted and exact and only_zero(metric.operator, metric.threshold)


def broken(metric: Metric, schema: Schema) -> pl.Expr:
    """True for rows that a row-wise metric counts; never null.

    Raises:
        Uncompilable: if no expression says it exactly.
        Incomparable: if an argument can never be compared with the column.
        KeyError: if the column is missing.
    """
    (name,) = metric.columns
    if name not in schema:
        raise KeyError(name)
    dtype = schema[name]
    values = plain(name, dtype)
    match metric.metric:
        case "nullValues":
            return ~present(name, dtype)
        case "missingValues":
            listed = metric.arguments.get("missingValues", [None])
            held = [
                found for value in listed if value is not None and (found := scalar(value, dtype)) is not None
            ]
            found = _among(values, held, dtype)
            return (found | ~present(name, dtype)) if None in listed else found
        case _:
            return _invalid(metric, name, schema)


def _invalid(metric: Metric, name: str, schema: Schema) -> pl.Expr:
    dtype = schema[name]
    wrong: list[pl.Expr] = []
    if (valid := metric.arguments.get("validValues")) is not None:
        held = [found for value in valid if value is not None and (found := scalar(value, dtype)) is not None]
        wrong.append(~_among(plain(name, dtype), held, dtype))
    if (pattern := metric.arguments.get("pattern")) is not None:
        text = translated(pattern)
        if text is None:
            raise Uncompilable
        if not isinstance(dtype, pl.String):
            raise Incomparable
        wrong.append(~pl.col(name).str.contains(text))
    return (reduce(or_, wrong) & present(name, dtype)).fill_null(False)


def _among(values: pl.Expr, held: list[Any], dtype: pl.DataType) -> pl.Expr:
    if not held:
        return values.is_null() & values.is_not_null()
    return values.is_in(pl.Series(held, dtype=dtype).implode()).fill_null(False)


def measure_metric(metric: Metric, schema: Schema) -> Measure:
    """A metric as aggregations.

    Raises:
        Uncompilable, Incomparable, KeyError: as :func:`broken`.
    """
    if metric.metric == "rowCount":
        return Measure(row_count(), lambda found: _verdict(metric, found[ROWS], found[ROWS]))
    for name in metric.columns:
        if name not in schema:
            raise KeyError(name)
    if metric.metric == "duplicateValues":
        return _duplicates(metric, schema)
    key = f"metric:{metric.metric}:{metric.columns[0]}:{sorted(metric.arguments.items())!r}"
    needs = row_count() | {key: broken(metric, schema).sum()}
    return Measure(needs, lambda found: _verdict(metric, found[key], found[ROWS]))


def _duplicates(metric: Metric, schema: Schema) -> Measure:
    """Rows whose value stands in an earlier row too; nulls are no values."""
    if len(metric.columns) == 1:
        (name,) = metric.columns
        needs = row_count() | present_count(name, schema[name]) | distinct_count(name, schema[name])

        def count(found: Values) -> int:
            return int(found[f"present:{name}"]) - distinct_of(name, found)
    else:
        key = f"repeated:{metric.columns!r}"
        held = reduce(or_, [present(name, schema[name]) for name in metric.columns])
        combined = pl.struct(plain(name, schema[name]) for name in metric.columns).filter(held)
        needs = row_count() | {key: combined.len() - combined.n_unique()}

        def count(found: Values) -> int:
            return int(found[key])

    return Measure(needs, lambda found: _verdict(metric, count(found), found[ROWS]))


def _verdict(metric: Metric, count: int, rows: int) -> Verdict:
    percent = count / rows * 100 if rows else 0.0
    observed = percent if metric.percent else count
    result: dict[str, Any] = {"observed_value": observed, "element_count": rows}
    if metric.metric != "rowCount":
        result |= {"unexpected_count": count, "unexpected_percent": percent if rows else None}
    return Verdict(holds(observed, metric.operator, metric.threshold), result)
