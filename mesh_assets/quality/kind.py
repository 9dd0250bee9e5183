"""Kinds of columns, as far as rules treat them differently, and literals that compare exactly with them."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from enum import StrEnum
from typing import Any

import polars as pl


class Kind(StrEnum):
    """What a column holds."""

    INTEGER = "integer"
    FLOAT = "float"
    DECIMAL = "decimal"
    TEXT = "text"
    BOOLEAN = "boolean"
    DATE = "date"
    DATETIME = "datetime"
    OTHER = "other"


NUMERIC = frozenset({Kind.INTEGER, Kind.FLOAT, Kind.DECIMAL})


def kind_of(dtype: pl.DataType) -> Kind:
    """The kind of a polars type."""
    if dtype.is_integer():
        return Kind.INTEGER
    if dtype.is_float():
        return Kind.FLOAT
    if dtype.is_decimal():
        return Kind.DECIMAL
    if isinstance(dtype, pl.String):
        return Kind.TEXT
    if isinstance(dtype, pl.Boolean):
        return Kind.BOOLEAN
    if isinstance(dtype, pl.Date):
        return Kind.DATE
    if isinstance(dtype, pl.Datetime):
        return Kind.DATETIME
    return Kind.OTHER


class Incomparable(Exception):
    """A value of one kind cannot be compared with a column of another."""


def present(column: str, dtype: pl.DataType) -> pl.Expr:
    """Whether a column holds a value: NaN is none, as in pandas."""
    held = pl.col(column).is_not_null()
    return held & pl.col(column).is_not_nan() if dtype.is_float() else held


def plain(column: str, dtype: pl.DataType) -> pl.Expr:
    """The column with NaN as null."""
    return pl.col(column).fill_nan(None) if dtype.is_float() else pl.col(column)


def scalar(value: object, dtype: pl.DataType) -> Any:  # noqa: ANN401 - the column's own Python type
    """A JSON value as one of the column's type that equals it; ``None`` if no value of that type does.

    Raises:
        Incomparable: if values of these kinds are never compared.
    """
    kind = kind_of(dtype)
    if kind in NUMERIC:
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
            raise Incomparable
        if kind is Kind.INTEGER:
            return int(value) if value == int(value) else None
        if kind is Kind.FLOAT:
            return float(value)
        return _exact(Decimal(value), dtype)
    if kind is Kind.TEXT and isinstance(value, str):
        return value
    if kind is Kind.BOOLEAN and isinstance(value, bool):
        return value
    if kind in (Kind.DATE, Kind.DATETIME) and isinstance(value, str | date):
        return moment(value, dtype)
    raise Incomparable


def bound(column: str, dtype: pl.DataType, operator: str, value: object) -> pl.Expr:
    """``column operator value`` for a bound from JSON; ``operator`` is one of ``< <= > >=``.

    Null where the column is null; a NaN fulfils none.

    Raises:
        Incomparable: if values of these kinds are never compared.
    """
    kind = kind_of(dtype)
    left = pl.col(column)
    right: Any
    if kind in NUMERIC:
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
            raise Incomparable
        if kind is Kind.DECIMAL:
            return _decimal_bound(left, dtype, operator, Decimal(value))
        if kind is Kind.INTEGER and not -(2**63) <= value < 2**63:
            always = (operator in ("<", "<=")) == (value > 0)
            return pl.when(left.is_not_null()).then(always)
        if kind is Kind.FLOAT:
            # Not a NaN, which polars sorts above all numbers.
            return _compared(left, operator, pl.lit(float(value), dtype=pl.Float64)) & left.is_not_nan()
        right = pl.lit(int(value) if value == int(value) else float(value))
    elif kind is Kind.TEXT and isinstance(value, str):
        right = pl.lit(value)
    elif kind in (Kind.DATE, Kind.DATETIME) and isinstance(value, str | date):
        right = pl.lit(moment(value, dtype))
    else:
        raise Incomparable
    return _compared(left, operator, right)


def moment(value: str | date, dtype: pl.DataType) -> date:
    """An ISO date or time as a value of a temporal column; a day is its midnight, in UTC if the column is.

    Raises:
        Incomparable: if the text is not such a time, or one has a zone and the other has none.
    """
    parsed: date
    try:
        parsed = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        raise Incomparable from None
    day_only = not isinstance(parsed, datetime) or (
        isinstance(value, str) and len(value) <= len("2024-01-01")
    )
    if kind_of(dtype) is Kind.DATE:
        if not day_only:
            raise Incomparable
        return parsed.date() if isinstance(parsed, datetime) else parsed
    zoned = isinstance(dtype, pl.Datetime) and dtype.time_zone is not None
    if day_only or not isinstance(parsed, datetime):
        return datetime.combine(parsed, time(), UTC if zoned else None)
    if (parsed.tzinfo is not None) != zoned:
        raise Incomparable
    return parsed


def _compared(left: pl.Expr, operator: str, right: pl.Expr) -> pl.Expr:
    match operator:
        case "<":
            return left < right
        case "<=":
            return left <= right
        case ">":
            return left > right
        case ">=":
            return left >= right
    raise AssertionError(operator)


def _exact(value: Decimal, dtype: pl.DataType) -> Decimal | None:
    assert isinstance(dtype, pl.Decimal)
    digits = value.as_tuple()
    exponent = digits.exponent
    if not isinstance(exponent, int):
        return None
    scaled = value.scaleb(dtype.scale) if value else value
    fits = value == 0 or (
        scaled == scaled.to_integral_value() and len(digits.digits) + exponent <= _whole(dtype)
    )
    return value if fits else None


def _whole(dtype: pl.Decimal) -> int:
    return (dtype.precision or 38) - dtype.scale


def _decimal_bound(left: pl.Expr, dtype: pl.DataType, operator: str, value: Decimal) -> pl.Expr:
    """Exactly: the bound is moved to the neighbouring value of the column's scale, on the right side."""
    assert isinstance(dtype, pl.Decimal)
    if value.adjusted() >= _whole(dtype):
        always = (operator in ("<", "<=")) == (value > 0)
        return pl.when(left.is_not_null()).then(always)
    step = Decimal(1).scaleb(-dtype.scale)
    rounding = ROUND_CEILING if operator in (">=", "<") else ROUND_FLOOR
    from decimal import Context

    near = value.quantize(step, rounding=rounding, context=Context(prec=100))
    if near.adjusted() >= _whole(dtype) and near:
        always = (operator in ("<", "<=")) == (value > 0)
        return pl.when(left.is_not_null()).then(always)
    return _compared(left, operator, pl.lit(near, dtype=pl.Decimal(dtype.precision, dtype.scale)))
