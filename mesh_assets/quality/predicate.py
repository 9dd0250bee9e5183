"""Expectations that each row decides alone, as expressions: true where a row is unexpected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from operator import and_, or_
from typing import Any, Literal

import polars as pl

from mesh_assets.quality.expectation import SIGNATURES, columns_of
from mesh_assets.quality.kind import NUMERIC, Incomparable, Kind, bound, kind_of, plain, present, scalar
from mesh_assets.quality.regex import translated
from mesh_assets.quality.rule import Expectation

_MOST_PAIRS = 200
_SHADOWED = ("row_condition", "condition_parser")


class Uncompilable(Exception):
    """An expectation that no expression says exactly: it runs in Great Expectations itself."""


@dataclass(frozen=True)
class Predicate:
    """A row-wise expectation.

    Attributes:
        columns: the columns that examples of unexpected rows show.
        form: how Great Expectations reports it: about the values of a column, its nulls, a pair of
            columns, or several.
        considered: rows that count; ``None`` if all do.
        unexpected: rows that break it, among those that count; never null.
        local: one row alone decides it, without knowing the others.
        mostly: the share of the considered rows that has to fulfil it.
    """

    columns: tuple[str, ...]
    form: Literal["column", "null", "pair", "columns"]
    considered: pl.Expr | None
    unexpected: pl.Expr
    local: bool = True
    mostly: float = 1.0


Schema = Mapping[str, pl.DataType]
_Kwargs = Mapping[str, Any]


def plain_domain(expectation: Expectation) -> bool:
    """Whether it is about all rows: one with a row condition is not compiled."""
    return not any(expectation.kwargs.get(name) for name in _SHADOWED)


def predicate(expectation: Expectation, schema: Schema) -> Predicate | None:
    """The expectation as a predicate; ``None`` if it is not decided row by row.

    Raises:
        Uncompilable: if no expression says it exactly over columns of these types.
        Incomparable: if its arguments can never be compared with the column.
        KeyError: if a column is missing.
    """
    kind, kwargs = expectation.type, expectation.kwargs
    names = columns_of(kind, kwargs)
    for name in names:
        if name not in schema:
            raise KeyError(name)
    if not plain_domain(expectation):
        raise Uncompilable
    if kind in _COLUMN:
        (name,) = names
        unexpected = _COLUMN[kind](name, schema[name], kwargs)
        considered = present(name, schema[name])
        local = kind not in _ORDERED
        held = unexpected if local else unexpected & considered
        return Predicate(names, "column", considered, held.fill_null(False), local, _mostly(kwargs))
    if kind == "expect_column_values_to_not_be_null":
        return Predicate(names, "null", None, ~present(names[0], schema[names[0]]), mostly=_mostly(kwargs))
    if kind == "expect_column_values_to_be_null":
        return Predicate(names, "null", None, present(names[0], schema[names[0]]), mostly=_mostly(kwargs))
    if kind in _PAIR:
        considered_pair = _ignoring(names, schema, kwargs, "both_values_are_missing")
        return _row(names, "pair", considered_pair, _PAIR[kind](names, schema, kwargs), kwargs)
    if kind in _COLUMNS:
        considered_pair = _ignoring(names, schema, kwargs, "all_values_are_missing")
        return _row(names, "columns", considered_pair, _COLUMNS[kind](names, schema, kwargs), kwargs)
    return None


def _row(
    names: tuple[str, ...],
    form: Literal["pair", "columns"],
    considered: pl.Expr | None,
    unexpected: pl.Expr,
    kwargs: _Kwargs,
) -> Predicate:
    judged = unexpected if considered is None else unexpected & considered
    return Predicate(names, form, considered, judged, mostly=_mostly(kwargs))


def _mostly(kwargs: _Kwargs) -> float:
    mostly = kwargs.get("mostly", 1.0)
    return 1.0 if mostly is None else float(mostly)


def ignoring(names: Sequence[str], schema: Schema, kwargs: _Kwargs) -> pl.Expr | None:
    """Rows of several columns that count, as ``ignore_row_if`` says; ``None`` if all do."""
    return _ignoring(names, schema, kwargs, "all_values_are_missing")


def _ignoring(names: Sequence[str], schema: Schema, kwargs: _Kwargs, default: str) -> pl.Expr | None:
    held = [present(name, schema[name]) for name in names]
    match kwargs.get("ignore_row_if") or default:
        case "both_values_are_missing" | "all_values_are_missing":
            return reduce(or_, held)
        case "either_value_is_missing" | "any_value_is_missing":
            return reduce(and_, held)
        case "neither" | "never":
            return None
        case _:
            raise Incomparable


# -- one column: unexpected where the column holds a value that breaks it; null elsewhere ------------


def _between(name: str, dtype: pl.DataType, kwargs: _Kwargs) -> pl.Expr:
    low, high = kwargs.get("min_value"), kwargs.get("max_value")
    if low is None and high is None:
        raise Incomparable
    if kind_of(dtype) in (Kind.OTHER, Kind.BOOLEAN):
        raise Uncompilable
    broken = []
    if low is not None:
        broken.append(bound(name, dtype, "<=" if kwargs.get("strict_min") else "<", low))
    if high is not None:
        broken.append(bound(name, dtype, ">=" if kwargs.get("strict_max") else ">", high))
    return reduce(or_, broken)


def _values(dtype: pl.DataType, given: object) -> list[Any]:
    """The members of a value set that a column of this type can hold."""
    if not isinstance(given, list | tuple):
        raise Incomparable
    if kind_of(dtype) not in (*NUMERIC, Kind.TEXT, Kind.BOOLEAN):
        raise Uncompilable
    found = [scalar(value, dtype) for value in given if value is not None]
    return [value for value in found if value is not None]


def _in_set(name: str, dtype: pl.DataType, kwargs: _Kwargs) -> pl.Expr:
    return ~_member(name, dtype, kwargs)


def _not_in_set(name: str, dtype: pl.DataType, kwargs: _Kwargs) -> pl.Expr:
    return _member(name, dtype, kwargs)


def _member(name: str, dtype: pl.DataType, kwargs: _Kwargs) -> pl.Expr:
    values = _values(dtype, kwargs.get("value_set"))
    if not values:
        # Null where the column is, as a comparison would be.
        return plain(name, dtype) != plain(name, dtype)
    if len(values) == 1:
        return plain(name, dtype) == pl.lit(values[0], dtype=dtype)
    return plain(name, dtype).is_in(pl.Series(values, dtype=dtype).implode())


def _text(name: str, dtype: pl.DataType) -> pl.Expr:
    if kind_of(dtype) is not Kind.TEXT:
        # Great Expectations looks at what pandas makes of such values as text.
        raise Uncompilable
    return pl.col(name)


def _found(name: str, dtype: pl.DataType, pattern: object) -> pl.Expr:
    if not isinstance(pattern, str):
        raise Incomparable
    text = translated(pattern)
    if text is None:
        raise Uncompilable
    return _text(name, dtype).str.contains(text)


def _regex(name: str, dtype: pl.DataType, kwargs: _Kwargs) -> pl.Expr:
    return ~_found(name, dtype, kwargs.get("regex"))


def _not_regex(name: str, dtype: pl.DataType, kwargs: _Kwargs) -> pl.Expr:
    return _found(name, dtype, kwargs.get("regex"))


def _patterns(kwargs: _Kwargs) -> list[Any]:
    given = kwargs.get("regex_list")
    if not isinstance(given, list | tuple) or not given:
        raise Incomparable
    return list(given)


def _regex_list(name: str, dtype: pl.DataType, kwargs: _Kwargs) -> pl.Expr:
    found = [_found(name, dtype, pattern) for pattern in _patterns(kwargs)]
    match kwargs.get("match_on") or "any":
        case "any":
            return ~reduce(or_, found)
        case "all":
            return ~reduce(and_, found)
        case _:
            raise Incomparable


def _not_regex_list(name: str, dtype: pl.DataType, kwargs: _Kwargs) -> pl.Expr:
    return reduce(or_, [_found(name, dtype, pattern) for pattern in _patterns(kwargs)])


def _length(name: str, dtype: pl.DataType, kwargs: _Kwargs) -> pl.Expr:
    value = kwargs.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Incomparable
    return _text(name, dtype).str.len_chars().cast(pl.Int64) != value


def _length_between(name: str, dtype: pl.DataType, kwargs: _Kwargs) -> pl.Expr:
    length = _text(name, dtype).str.len_chars().cast(pl.Int64)
    broken = []
    for argument, strict, more in (("min_value", "strict_min", False), ("max_value", "strict_max", True)):
        value = kwargs.get(argument)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Incomparable
        if kwargs.get(strict):
            broken.append(length >= value if more else length <= value)
        else:
            broken.append(length > value if more else length < value)
    if not broken:
        raise Incomparable
    return reduce(or_, broken)


def _z_score(name: str, dtype: pl.DataType, kwargs: _Kwargs) -> pl.Expr:
    if kind_of(dtype) not in (Kind.INTEGER, Kind.FLOAT):
        raise Uncompilable
    threshold = kwargs.get("threshold")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise Incomparable
    values = plain(name, dtype).cast(pl.Float64)
    deviation = values.std()
    score = (values - values.mean()) / pl.when(deviation != 0).then(deviation)
    return score.abs() >= abs(threshold) if kwargs.get("double_sided") else score >= threshold


def _increasing(name: str, dtype: pl.DataType, kwargs: _Kwargs) -> pl.Expr:
    return _step(name, dtype, kwargs, 1)


def _decreasing(name: str, dtype: pl.DataType, kwargs: _Kwargs) -> pl.Expr:
    return _step(name, dtype, kwargs, -1)


def _step(name: str, dtype: pl.DataType, kwargs: _Kwargs, direction: int) -> pl.Expr:
    if kind_of(dtype) not in (Kind.INTEGER, Kind.FLOAT):
        raise Uncompilable
    values = plain(name, dtype)
    before = values.shift(1).forward_fill()
    if direction < 0:
        values, before = before, values
    return values <= before if kwargs.get("strictly") else values < before


_COLUMN: dict[str, Callable[[str, pl.DataType, _Kwargs], pl.Expr]] = {
    "expect_column_values_to_be_between": _between,
    "expect_column_values_to_be_in_set": _in_set,
    "expect_column_values_to_not_be_in_set": _not_in_set,
    "expect_column_values_to_match_regex": _regex,
    "expect_column_values_to_not_match_regex": _not_regex,
    "expect_column_values_to_match_regex_list": _regex_list,
    "expect_column_values_to_not_match_regex_list": _not_regex_list,
    "expect_column_value_lengths_to_equal": _length,
    "expect_column_value_lengths_to_be_between": _length_between,
    "expect_column_value_z_scores_to_be_less_than": _z_score,
    "expect_column_values_to_be_increasing": _increasing,
    "expect_column_values_to_be_decreasing": _decreasing,
}
_ORDERED = frozenset(
    {
        "expect_column_value_z_scores_to_be_less_than",
        "expect_column_values_to_be_increasing",
        "expect_column_values_to_be_decreasing",
    }
)
"""Decided with a look at other rows."""


# -- two columns and more: unexpected, never null ----------------------------------------------------


def _comparable(names: Sequence[str], schema: Schema) -> list[pl.Expr]:
    kinds = {kind_of(schema[name]) for name in names}
    if Kind.OTHER in kinds or not (len(kinds) == 1 or kinds <= NUMERIC):
        raise Uncompilable
    zones = {dtype.time_zone for name in names if isinstance(dtype := schema[name], pl.Datetime)}
    if len(zones) > 1:
        raise Uncompilable
    return [plain(name, schema[name]) for name in names]


def _greater(names: Sequence[str], schema: Schema, kwargs: _Kwargs) -> pl.Expr:
    first, second = _comparable(names, schema)
    if kind_of(schema[names[0]]) is Kind.BOOLEAN:
        raise Uncompilable
    held = first >= second if kwargs.get("or_equal") else first > second
    return ~held.fill_null(False)


def _equal(names: Sequence[str], schema: Schema, kwargs: _Kwargs) -> pl.Expr:
    first, second = _comparable(names, schema)
    return ~(first == second).fill_null(False)


def _pair_in_set(names: Sequence[str], schema: Schema, kwargs: _Kwargs) -> pl.Expr:
    pairs = kwargs.get("value_pairs_set")
    if not isinstance(pairs, list | tuple):
        raise Incomparable
    if len(pairs) > _MOST_PAIRS:
        raise Uncompilable
    held: list[pl.Expr] = []
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Incomparable
        members = [_is(name, schema[name], value) for name, value in zip(names, pair, strict=True)]
        if all(member is not None for member in members):
            held.append(reduce(and_, [member for member in members if member is not None]))
    return ~reduce(or_, held) if held else pl.col(names[0]).is_null() | pl.col(names[0]).is_not_null()


def _is(name: str, dtype: pl.DataType, value: object) -> pl.Expr | None:
    if value is None:
        return ~present(name, dtype)
    if kind_of(dtype) not in (*NUMERIC, Kind.TEXT, Kind.BOOLEAN):
        raise Uncompilable
    same = scalar(value, dtype)
    return None if same is None else plain(name, dtype).eq_missing(pl.lit(same, dtype=dtype))


def _sum(names: Sequence[str], schema: Schema, kwargs: _Kwargs) -> pl.Expr:
    total = kwargs.get("sum_total")
    if isinstance(total, bool) or not isinstance(total, int | float):
        raise Incomparable
    if any(kind_of(schema[name]) not in (Kind.INTEGER, Kind.FLOAT) for name in names):
        raise Uncompilable
    whole = all(kind_of(schema[name]) is Kind.INTEGER for name in names)
    dtype = pl.Int64 if whole else pl.Float64
    added: pl.Expr = reduce(lambda left, right: left + right, (pl.col(name).cast(dtype) for name in names))
    return ~(added == total).fill_null(False)


def _all_equal(names: Sequence[str], schema: Schema, kwargs: _Kwargs) -> pl.Expr:
    first, *others = _comparable(names, schema)
    return ~reduce(and_, [other.eq_missing(first) for other in others])


def _all_distinct(names: Sequence[str], schema: Schema, kwargs: _Kwargs) -> pl.Expr:
    columns = _comparable(names, schema)
    return reduce(or_, [one.eq_missing(other) for one, other in combinations(columns, 2)])


_PAIR: dict[str, Callable[[Sequence[str], Schema, _Kwargs], pl.Expr]] = {
    "expect_column_pair_values_a_to_be_greater_than_b": _greater,
    "expect_column_pair_values_to_be_equal": _equal,
    "expect_column_pair_values_to_be_in_set": _pair_in_set,
}
_COLUMNS: dict[str, Callable[[Sequence[str], Schema, _Kwargs], pl.Expr]] = {
    "expect_multicolumn_sum_to_equal": _sum,
    "expect_multicolumn_values_to_be_equal": _all_equal,
    "expect_select_column_values_to_be_unique_within_record": _all_distinct,
}

ROW_TYPES = frozenset(
    {*_COLUMN, *_PAIR, *_COLUMNS, "expect_column_values_to_be_null", "expect_column_values_to_not_be_null"}
) & frozenset(SIGNATURES)
"""Types that predicates exist for."""
