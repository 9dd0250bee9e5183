"""Predicates of sql rules as polars expressions, as far as both are sure to say the same.

Comparisons of columns with constants and with each other, between, in, null tests, and, or, not and
a moment's date: most rules are no more than that. Everything else stays with DuckDB.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import lru_cache, reduce
from operator import and_, eq, ge, gt, le, lt, ne, or_
from typing import Any

import polars as pl

from mesh_assets.quality.kind import Incomparable, Kind, bound, kind_of, scalar
from mesh_assets.quality.sql import connected

_COMPARISONS: Mapping[str, tuple[str, Callable[[pl.Expr, pl.Expr], Any]]] = {
    "COMPARE_EQUAL": ("=", eq),
    "COMPARE_NOTEQUAL": ("<>", ne),
    "COMPARE_LESSTHAN": ("<", lt),
    "COMPARE_LESSTHANOREQUALTO": ("<=", le),
    "COMPARE_GREATERTHAN": (">", gt),
    "COMPARE_GREATERTHANOREQUALTO": (">=", ge),
}
_NULL_TEST = re.compile(r'"((?:[^"]|"")+)" is null')
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "=", "<>": "<>"}
_Node = Mapping[str, Any]


class _Untranslated(Exception):
    pass


def translated(predicate: str, schema: Mapping[str, pl.DataType]) -> pl.Expr | None:
    """True where DuckDB finds ``predicate`` true, else false; ``None`` if that is not sure."""
    try:
        return _boolean(_tree(predicate), schema).fill_null(False)
    except (_Untranslated, Incomparable):
        return None


@lru_cache(maxsize=1024)
def _tree(predicate: str) -> _Node:
    if test := _NULL_TEST.fullmatch(predicate):
        # What ``required`` says in a contract: 35 MB of DuckDB need not be loaded to read it.
        name = test.group(1).replace('""', '"')
        return {
            "type": "OPERATOR_IS_NULL",
            "children": [{"type": "COLUMN_REF", "column_names": [name]}],
        }
    with connected() as connection:
        row = connection.execute(
            "select json_serialize_sql(?)", [f"select count(*) from t where {predicate}"]
        ).fetchone()
    assert row is not None
    tree: dict[str, Any] = json.loads(row[0])
    if tree["error"]:
        raise _Untranslated
    where: _Node = tree["statements"][0]["node"]["where_clause"]
    return where


def _boolean(node: _Node, schema: Mapping[str, pl.DataType]) -> pl.Expr:
    kind = node["type"]
    if kind in ("CONJUNCTION_AND", "CONJUNCTION_OR"):
        parts = [_boolean(child, schema) for child in node["children"]]
        return reduce(and_ if kind == "CONJUNCTION_AND" else or_, parts)
    if kind == "OPERATOR_NOT":
        (child,) = node["children"]
        return ~_boolean(child, schema)
    if kind in ("OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL"):
        name = _column(node["children"][0], schema)
        column = pl.col(name)
        return column.is_null() if kind == "OPERATOR_IS_NULL" else column.is_not_null()
    if kind in _COMPARISONS:
        return _comparison(kind, node["left"], node["right"], schema)
    if kind == "COMPARE_BETWEEN":
        low = _comparison("COMPARE_GREATERTHANOREQUALTO", node["input"], node["lower"], schema)
        return low & _comparison("COMPARE_LESSTHANOREQUALTO", node["input"], node["upper"], schema)
    if kind in ("COMPARE_IN", "COMPARE_NOT_IN"):
        first, *others = node["children"]
        parts = [_comparison("COMPARE_EQUAL", first, other, schema) for other in others]
        found = reduce(or_, parts)
        return found if kind == "COMPARE_IN" else ~found
    if kind == "COLUMN_REF":
        name = _column(node, schema)
        if kind_of(schema[name]) is Kind.BOOLEAN:
            return pl.col(name)
    raise _Untranslated


def _comparison(kind: str, left: _Node, right: _Node, schema: Mapping[str, pl.DataType]) -> pl.Expr:
    sign, compare = _COMPARISONS[kind]
    if right["type"] == "VALUE_CONSTANT" and left["type"] == "COLUMN_REF":
        return _with_constant(_column(left, schema), sign, _constant(right), schema)
    if left["type"] == "VALUE_CONSTANT" and right["type"] == "COLUMN_REF":
        return _with_constant(_column(right, schema), _MIRRORED[sign], _constant(left), schema)
    (one, one_type), (other, other_type) = _value(left, schema), _value(right, schema)
    if one_type != other_type or kind_of(one_type) in (Kind.OTHER, Kind.BOOLEAN):
        raise _Untranslated
    result: pl.Expr = compare(one, other)
    return result


def _with_constant(
    name: str, sign: str, value: int | Decimal | str, schema: Mapping[str, pl.DataType]
) -> pl.Expr:
    dtype = schema[name]
    kind = kind_of(dtype)
    column = pl.col(name)
    if kind is Kind.TEXT and isinstance(value, str):
        compare = next(compare for text, compare in _COMPARISONS.values() if text == sign)
        result: pl.Expr = compare(column, pl.lit(value))
        return result
    if isinstance(value, str) or kind not in (Kind.INTEGER, Kind.DECIMAL, Kind.FLOAT):
        raise _Untranslated
    if kind is Kind.FLOAT:
        if not isinstance(dtype, pl.Float64):
            raise _Untranslated
        # NaN is more than any number and equal to itself, there as here.
        compare = next(compare for text, compare in _COMPARISONS.values() if text == sign)
        number: pl.Expr = compare(column, pl.lit(float(value), dtype=pl.Float64))
        return number
    if kind is Kind.INTEGER and value != int(value):
        raise _Untranslated
    if sign in ("=", "<>"):
        same = scalar(int(value) if kind is Kind.INTEGER else value, dtype)
        if isinstance(same, int) and not -(2**63) <= same < 2**63:
            raise _Untranslated
        if same is None:
            # No value of the column's scale equals it.
            return pl.when(column.is_not_null()).then(sign == "<>")
        literal = pl.lit(same, dtype=pl.Int64 if kind is Kind.INTEGER else dtype)
        return column == literal if sign == "=" else column != literal
    return bound(name, dtype, sign, value)


def _value(node: _Node, schema: Mapping[str, pl.DataType]) -> tuple[pl.Expr, pl.DataType]:
    if node["type"] == "COLUMN_REF":
        name = _column(node, schema)
        return pl.col(name), schema[name]
    if node["type"] == "OPERATOR_CAST" and not node["try_cast"]:
        target = node["type_expr"]["type_name"].lower()
        name = _column(node["child"], schema)
        dtype = schema[name]
        if target == "date" and isinstance(dtype, pl.Datetime) and dtype.time_zone in (None, "UTC"):
            return pl.col(name).dt.date(), pl.Date()
    raise _Untranslated


def _column(node: _Node, schema: Mapping[str, pl.DataType]) -> str:
    if node["type"] != "COLUMN_REF" or len(node["column_names"]) != 1:
        raise _Untranslated
    name: str = node["column_names"][0]
    if name not in schema:
        raise _Untranslated
    return name


def _constant(node: _Node) -> int | Decimal | str:
    literal = node.get("literal") or {}
    kind, text = literal.get("kind"), literal.get("text", "")
    if kind == "INTEGER":
        return int(text)
    if kind == "NUMERIC" and "e" not in text.lower():
        return Decimal(text)
    if kind == "STRING":
        return str(text)
    raise _Untranslated
