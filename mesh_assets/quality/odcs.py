"""A contract's quality rules and its columns' own promises, compiled to rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import polars as pl
import yaml

from mesh_assets.contract import standard
from mesh_assets.contract.model import ColumnContract, QualityRule, TableContract
from mesh_assets.quality import sql
from mesh_assets.quality.kind import Kind, kind_of
from mesh_assets.quality.regex import valid
from mesh_assets.quality.rule import Check, Expectation, Metric, Origin, Query, Severity, Skipped
from mesh_assets.quality.threshold import only_zero

_GREAT_EXPECTATIONS = "greatexpectations"
_SEVERITIES = {
    "error": Severity.ERROR,
    "critical": Severity.ERROR,
    "warning": Severity.WARNING,
    "info": Severity.WARNING,
}


class Wrong(Exception):
    """A rule that cannot be; the message says why, ``allowed`` what could."""

    def __init__(self, message: str, *, allowed: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(message)
        self.message, self.allowed, self.hint = message, allowed, hint


@dataclass(frozen=True)
class Draft:
    """A rule as written, before it is known how it runs.

    Attributes:
        name: its name within the table.
        check: what is expected.
        columns: the columns it reads, as far as they are known.
        blocking: what the writer said; ``None`` if nothing.
        line: where it stands.
        named: the writer gave the name; else one like it may take its place.
    """

    name: str
    check: Check
    columns: tuple[str, ...]
    severity: Severity = Severity.ERROR
    blocking: bool | None = None
    origin: Origin = Origin.CONTRACT
    dimension: str = ""
    description: str = ""
    line: int = 1
    named: bool = True


def severity(text: object) -> Severity:
    """A severity as ODCS or Great Expectations write it.

    Raises:
        Wrong: if it is none.
    """
    if text is None:
        return Severity.ERROR
    if not isinstance(text, str) or text.casefold() not in _SEVERITIES:
        raise Wrong(f"severity {text!r} is unknown", allowed=tuple(_SEVERITIES))
    return _SEVERITIES[text.casefold()]


def flag(value: object) -> bool | None:
    """``blocking`` as written.

    Raises:
        Wrong: if it is neither true nor false.
    """
    if value is None or isinstance(value, bool):
        return value
    raise Wrong(f"blocking must be true or false, not {value!r}")


# -- rules as written ---------------------------------------------------------------------------------


def draft(rule: QualityRule, table: TableContract, schema: Mapping[str, pl.DataType]) -> Draft | None:
    """One quality rule of a contract; ``None`` for one of type text, which is for people.

    Raises:
        Wrong: if the rule cannot be.
    """
    written = rule.definition
    kind = written.get("type") or "library"
    if kind == "text":
        return None
    properties = {
        item.get("property"): item.get("value")
        for item in written.get("customProperties", ())
        if isinstance(item, Mapping)
    }
    check, columns = _check(kind, rule, table, schema)
    given = written.get("name") or written.get("id") or ""
    return Draft(
        name=str(given).replace(" ", "_") or _name(check, rule.column),
        check=check,
        columns=columns,
        severity=severity(written.get("severity")),
        blocking=flag(properties.get("blocking")),
        dimension=written.get("dimension", ""),
        description=" ".join(str(written.get("description", "")).split()),
        line=rule.line,
        named=bool(given),
    )


def _name(check: Check, column: str | None) -> str:
    match check:
        case Expectation(type):
            label = short(type)
        case Metric(metric):
            label = "".join("_" + c.lower() if c.isupper() else c for c in metric)
        case _:
            label = "query" if isinstance(check, Query) else "custom"
    return f"{column}_{label}" if column else label


def short(type: str) -> str:
    """An expectation's type without the words that all have in common."""
    label = type
    for prefix in ("expect_column_values_to_", "expect_column_", "expect_table_", "expect_"):
        if label.startswith(prefix):
            return label.removeprefix(prefix).removeprefix("to_").removeprefix("be_")
    return label


def _check(
    kind: str, rule: QualityRule, table: TableContract, schema: Mapping[str, pl.DataType]
) -> tuple[Check, tuple[str, ...]]:
    written = rule.definition
    if kind == "custom":
        return _custom(written, rule.column)
    operator = next(name for name in standard.OPERATORS if name in written)
    if kind == "sql":
        return _query(written["query"], operator, written[operator], rule.table, rule.column, table)
    metric = written["metric"]
    if metric not in standard.quality_metrics():
        raise Wrong(f"metric {metric!r} is unknown", allowed=standard.quality_metrics())
    return _library(metric, rule, operator, table, schema)


def _custom(written: Mapping[str, Any], column: str | None) -> tuple[Check, tuple[str, ...]]:
    engine = str(written["engine"])
    if engine.casefold().replace("-", "").replace("_", "").replace(" ", "") != _GREAT_EXPECTATIONS:
        return Skipped(f"rules for {engine} are not run here, only great-expectations"), ()
    implementation = written["implementation"]
    if isinstance(implementation, str):
        try:
            implementation = yaml.safe_load(implementation)
        except yaml.YAMLError:
            implementation = None
    if not isinstance(implementation, Mapping):
        raise Wrong(
            "the implementation is no expectation",
            hint="write type: expect_… and kwargs: with its arguments",
        )
    type = implementation.get("type") or implementation.get("expectation_type")
    kwargs = implementation.get("kwargs") or {}
    if not isinstance(type, str) or not isinstance(kwargs, Mapping):
        raise Wrong(
            "the implementation is no expectation",
            hint="write type: expect_… and kwargs: with its arguments",
        )
    return expectation(type, kwargs, column)


def expectation(
    type: str, kwargs: Mapping[str, Any], column: str | None = None
) -> tuple[Expectation, tuple[str, ...]]:
    """An expectation of Great Expectations, its arguments checked; and the columns it reads.

    Raises:
        Wrong: if there is no such type, it does not run here, or its arguments do not fit it.
    """
    from mesh_assets.quality.expectation import COMMON, FOREIGN, SIGNATURES, columns_of

    if type in FOREIGN:
        raise Wrong(f"{type} does not run over data frames", hint=FOREIGN[type])
    signature = SIGNATURES.get(type)
    if signature is None:
        raise Wrong(f"there is no expectation {type!r}", allowed=tuple(SIGNATURES))
    given = dict(kwargs)
    if column is not None and signature.domain == "column":
        given.setdefault("column", column)
    given.pop("batch_id", None)
    own = {"column": ("column",), "pair": ("column_A", "column_B"), "columns": ("column_list",), "table": ()}
    needed = (*own[signature.domain], *signature.required)
    known = (*needed, *signature.optional, *COMMON)
    for argument in needed:
        if given.get(argument) is None:
            raise Wrong(f"{type} needs {argument!r}")
    for argument in given:
        if argument not in known:
            raise Wrong(f"{type} has no argument {argument!r}", allowed=known)
    listed = given.get("column_list")
    if signature.domain == "columns" and (not isinstance(listed, list | tuple) or len(listed) < 2):
        raise Wrong(f"{type} needs two columns or more in 'column_list'")
    mostly = given.get("mostly", 1)
    if isinstance(mostly, bool) or not isinstance(mostly, int | float) or not 0 <= mostly <= 1:
        raise Wrong(f"mostly must be a number from 0 to 1, not {mostly!r}")
    patterns = [given["regex"]] if "regex" in given else given.get("regex_list", [])
    for pattern in patterns if isinstance(patterns, list | tuple) else [patterns]:
        if not isinstance(pattern, str):
            raise Wrong(f"{pattern!r} is not a regular expression")
        if problem := valid(pattern):
            raise Wrong(f"{pattern!r} is not a regular expression: {problem}")
    low, high = given.get("min_value"), given.get("max_value")
    if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
        raise Wrong(f"min_value {low} is more than max_value {high}")
    if {"min_value", "max_value"} <= set(known) and low is None and high is None:
        raise Wrong(f"{type} needs 'min_value' or 'max_value'")
    return Expectation(type, given), columns_of(type, given)


def _query(
    text: str, operator: str, threshold: object, table: str, column: str | None, contract: TableContract
) -> tuple[Query, tuple[str, ...]]:
    try:
        parsed = sql.parse(text, table, column)
    except sql.BadQuery as error:
        raise Wrong(f"the query is not one SELECT: {error}") from None
    own = {promised.name for promised in contract.columns}
    # SQL does not tell small letters from capitals.
    folded = {name.casefold(): name for name in own}
    if parsed.predicate is not None and parsed.columns is not None and only_zero(operator, threshold):
        unknown = sorted(name for name in parsed.columns if name.casefold() not in folded)
        if unknown:
            raise Wrong(
                f"the query reads column {unknown[0]!r}, which {table} does not have",
                allowed=tuple(sorted(own)),
            )
        columns = {folded[name.casefold()] for name in parsed.columns}
        return Query(parsed.sql, operator, threshold, parsed.predicate), tuple(sorted(columns))
    if parsed.columns is None:
        columns = own
    else:
        columns = {folded[name.casefold()] for name in parsed.columns if name.casefold() in folded}
    if column is not None:
        columns = columns | {column}
    return Query(parsed.sql, operator, threshold), tuple(sorted(columns))


# -- the library of metrics ---------------------------------------------------------------------------


def _library(
    metric: str, rule: QualityRule, operator: str, table: TableContract, schema: Mapping[str, pl.DataType]
) -> tuple[Check, tuple[str, ...]]:
    written = rule.definition
    threshold = written[operator]
    arguments: Mapping[str, Any] = written.get("arguments") or {}
    unit = written.get("unit") or "rows"
    if unit not in ("rows", "percent"):
        raise Wrong(f"unit {unit!r} is unknown", allowed=("rows", "percent"))
    bounds = threshold if isinstance(threshold, list) else [threshold]
    if any(isinstance(bound, bool) or not isinstance(bound, int | float) for bound in bounds):
        raise Wrong(f"{metric} is a number and cannot be compared with {threshold!r}")
    columns = _measured(metric, rule.column, arguments, table)
    percent = unit == "percent"
    built = Metric(metric, columns, operator, threshold, percent, arguments)
    _check_arguments(built)
    none_allowed = only_zero(operator, threshold) and not (percent and threshold != 0)
    if metric == "rowCount":
        if percent:
            raise Wrong("rowCount is a number of rows: it has no unit percent")
        return _row_count(built) or built, ()
    if none_allowed:
        return _absolute(built) or built, columns
    return built, columns


def _measured(
    metric: str, column: str | None, arguments: Mapping[str, Any], table: TableContract
) -> tuple[str, ...]:
    if metric == "rowCount":
        if column is not None:
            raise Wrong("rowCount is about the whole table", hint="put the rule into the table's quality")
        return ()
    listed = arguments.get("properties")
    if column is not None:
        return (column,)
    if metric == "duplicateValues" and isinstance(listed, list) and listed:
        names = {promised.name for promised in table.columns}
        for name in listed:
            if name not in names:
                raise Wrong(f"table {table.name} has no column {name!r}", allowed=tuple(sorted(names)))
        return tuple(dict.fromkeys(listed))
    if metric == "duplicateValues":
        raise Wrong(
            "duplicateValues of a table needs arguments: properties",
            hint="list the columns that are distinct",
        )
    raise Wrong(f"{metric} is about one column", hint="put the rule into that column's quality")


def _check_arguments(metric: Metric) -> None:
    arguments = metric.arguments
    known = {
        "missingValues": ("missingValues",),
        "invalidValues": ("validValues", "pattern"),
        "duplicateValues": ("properties",),
    }.get(metric.metric, ())
    for argument in arguments:
        if argument not in known:
            raise Wrong(f"{metric.metric} has no argument {argument!r}", allowed=known)
    if metric.metric == "invalidValues":
        if not arguments:
            raise Wrong("invalidValues needs arguments: what is valid", allowed=known)
        pattern = arguments.get("pattern")
        if pattern is not None and (not isinstance(pattern, str) or valid(pattern)):
            problem = valid(pattern) if isinstance(pattern, str) else "it is no text"
            raise Wrong(f"{pattern!r} is not a regular expression: {problem}")
        values = arguments.get("validValues")
        if values is not None and not isinstance(values, list):
            raise Wrong("validValues must be a list")
    values = arguments.get("missingValues")
    if values is not None and not isinstance(values, list):
        raise Wrong("missingValues must be a list")


def _absolute(metric: Metric) -> Expectation | None:
    """The expectation that says the same as "there must be none", if there is one."""
    columns = metric.columns
    match metric.metric:
        case "nullValues":
            return Expectation("expect_column_values_to_not_be_null", {"column": columns[0]})
        case "invalidValues" if set(metric.arguments) == {"validValues"}:
            return Expectation(
                "expect_column_values_to_be_in_set",
                {"column": columns[0], "value_set": metric.arguments["validValues"]},
            )
        case "invalidValues" if set(metric.arguments) == {"pattern"}:
            return Expectation(
                "expect_column_values_to_match_regex",
                {"column": columns[0], "regex": metric.arguments["pattern"]},
            )
        case "duplicateValues" if len(columns) == 1:
            return Expectation("expect_column_values_to_be_unique", {"column": columns[0]})
        case "duplicateValues":
            return Expectation("expect_compound_columns_to_be_unique", {"column_list": list(columns)})
    return None


def _row_count(metric: Metric) -> Expectation | None:
    value = metric.threshold
    between = "expect_table_row_count_to_be_between"
    match metric.operator:
        case "mustBe":
            return Expectation("expect_table_row_count_to_equal", {"value": value})
        case "mustBeGreaterThan":
            return Expectation(between, {"min_value": value, "strict_min": True})
        case "mustBeGreaterOrEqualTo":
            return Expectation(between, {"min_value": value})
        case "mustBeLessThan":
            return Expectation(between, {"max_value": value, "strict_max": True})
        case "mustBeLessOrEqualTo":
            return Expectation(between, {"max_value": value})
        case "mustBeBetween":
            return Expectation(between, {"min_value": value[0], "max_value": value[1]})
    return None


# -- what the columns promise by themselves -----------------------------------------------------------


def promised(
    table: TableContract, schema: Mapping[str, pl.DataType]
) -> Iterator[tuple[Draft, ColumnContract]]:
    """Rules that follow from a table's columns: required, unique, enum and logicalTypeOptions.

    Raises:
        Wrong: if an option cannot be.
    """
    for column in table.columns:
        for name, check in _promises(column, schema[column.name], table.name):
            columns = (column.name,)
            yield (
                Draft(f"{column.name}.{name}", check, columns, origin=Origin.SCHEMA, line=column.line),
                column,
            )


def _promises(column: ColumnContract, dtype: pl.DataType, table: str) -> Iterator[tuple[str, Check]]:
    name, options = column.name, column.options
    if column.required and not column.key:
        if kind_of(dtype) in (Kind.FLOAT, Kind.DECIMAL):
            # NaN is a value: Great Expectations would take it for null.
            yield "required", _broken_by(table, f"{sql.quoted(name)} is null")
        else:
            yield "required", Expectation("expect_column_values_to_not_be_null", {"column": name})
    if column.unique:
        yield "unique", Expectation("expect_column_values_to_be_unique", {"column": name})
    if column.values:
        yield (
            "enum",
            Expectation(
                "expect_column_values_to_be_in_set", {"column": name, "value_set": list(column.values)}
            ),
        )
    lengths = {"min_value": options.get("minLength"), "max_value": options.get("maxLength")}
    if any(value is not None for value in lengths.values()):
        given = {key: value for key, value in lengths.items() if value is not None}
        yield "length", Expectation("expect_column_value_lengths_to_be_between", {"column": name} | given)
    if isinstance(options.get("pattern"), str):
        kwargs = {"column": name, "regex": options["pattern"]}
        yield "pattern", Expectation("expect_column_values_to_match_regex", kwargs)
    if bounds := _bounds(options, dtype):
        yield "range", Expectation("expect_column_values_to_be_between", {"column": name} | bounds)
    if options.get("multipleOf"):
        yield "multiple", _broken_by(table, f"{sql.quoted(name)} % {options['multipleOf']} <> 0")
    if not isinstance(dtype, pl.List):
        return
    for option, operator in (("minItems", "<"), ("maxItems", ">")):
        if options.get(option) is not None:
            label = "min_items" if option == "minItems" else "max_items"
            yield label, _broken_by(table, f"len({sql.quoted(name)}) {operator} {options[option]}")
    if options.get("uniqueItems") is True:
        listed = sql.quoted(name)
        yield "unique_items", _broken_by(table, f"len(list_distinct({listed})) < list_count({listed})")


def _broken_by(table: str, predicate: str) -> Query:
    return Query(f"select count(*) from {sql.quoted(table)} where {predicate}", "mustBe", 0, predicate)


def _bounds(options: Mapping[str, Any], dtype: pl.DataType) -> dict[str, Any]:
    """``minimum`` and ``maximum``; exclusive ones are numbers of their own, or (3.0) a yes or no."""
    bounds: dict[str, Any] = {}
    for side, option, exclusive in (
        ("min", "minimum", "exclusiveMinimum"),
        ("max", "maximum", "exclusiveMaximum"),
    ):
        value, strict = options.get(option), options.get(exclusive)
        if isinstance(strict, bool):
            bounds |= {f"strict_{side}": True} if strict and value is not None else {}
        elif strict is not None and (value is None or (strict >= value) == (side == "min")):
            value = strict
            bounds[f"strict_{side}"] = True
        if value is None:
            continue
        if isinstance(value, float) and kind_of(dtype) is Kind.DECIMAL:
            # As written: 0.1 is a tenth, not the binary number next to it.
            value = Decimal(repr(value))
        bounds[f"{side}_value"] = value
    return bounds
