"""Outcomes of rules, in the shape of Great Expectations' own result objects."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from mesh_assets.quality.kind import Kind
from mesh_assets.quality.measure import Verdict
from mesh_assets.quality.predicate import Predicate
from mesh_assets.quality.rule import Expectation, Metric, Query, Rule, Severity, Skipped, Status

EXAMPLE_COUNT = 20
"""How many unexpected values Great Expectations shows."""

SKIPPED = "skipped"
"""In the ``meta`` of a result: why the rule was not run."""

_SEVERITY = {Severity.ERROR: "critical", Severity.WARNING: "warning"}
_SHARED_NAN = float("nan")


class _NoTime:
    """What pandas' NaT does when compared: it is neither less nor more than anything."""

    def __lt__(self, other: object) -> bool:
        return False

    def __gt__(self, other: object) -> bool:
        return False


_NO_TIME = _NoTime()


@dataclass(frozen=True)
class Outcome:
    """How one rule came out.

    Attributes:
        rule: the rule.
        status: passed, warning, failed, error or skipped.
        result: Great Expectations' ``ExpectationValidationResult`` as JSON.
        message: what went wrong, or why it was skipped; "" otherwise.
    """

    rule: Rule
    status: Status
    result: Mapping[str, Any] = field(hash=False)
    message: str = ""

    @property
    def success(self) -> bool:
        """Whether the rule is met; a skipped one has no say."""
        return self.status in (Status.PASSED, Status.SKIPPED)

    @property
    def observed(self) -> Any:  # noqa: ANN401 - any JSON value
        """The value that was compared; ``None`` for rules about each row."""
        return self.result["result"].get("observed_value")

    @property
    def unexpected_count(self) -> int | None:
        """How many rows break the rule, if it is about rows."""
        count: int | None = self.result["result"].get("unexpected_count")
        return count

    @property
    def row_count(self) -> int | None:
        """How many rows were looked at, if it is about rows."""
        count: int | None = self.result["result"].get("element_count")
        return count


def outcome(rule: Rule, verdict: Verdict) -> Outcome:
    """A rule that was evaluated."""
    if verdict.success:
        status = Status.PASSED
    else:
        status = Status.WARNING if rule.severity is Severity.WARNING else Status.FAILED
    return Outcome(rule, status, _validation(rule, verdict.success, json_value(verdict.result)))


def errored(rule: Rule, message: str) -> Outcome:
    """A rule that could not be evaluated."""
    return Outcome(rule, Status.ERROR, _validation(rule, False, {}, raised(message)), message)


def raised(message: str) -> dict[str, Any]:
    """The ``exception_info`` of a rule that could not be evaluated."""
    return {"raised_exception": True, "exception_message": message, "exception_traceback": None}


def skipped(rule: Rule, reason: str) -> Outcome:
    """A rule that this mesh does not run."""
    told = _validation(rule, True, {}) | {"meta": {SKIPPED: reason}}
    return Outcome(rule, Status.SKIPPED, told, reason)


def reported(rule: Rule, validation: Mapping[str, Any]) -> Outcome:
    """A rule that Great Expectations itself evaluated."""
    info = validation.get("exception_info") or {}
    messages = [info] if "raised_exception" in info else list(info.values())
    said = [str(entry["exception_message"]) for entry in messages if entry.get("raised_exception")]
    if said:
        return errored(rule, "; ".join(dict.fromkeys(said)))
    verdict = Verdict(bool(validation["success"]), dict(validation.get("result") or {}))
    return outcome(rule, verdict)


def suite_result(
    name: str, outcomes: Sequence[Outcome], meta: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Great Expectations' ``ExpectationSuiteValidationResult`` of these outcomes, as JSON."""
    return suite_validation(name, [found.result for found in outcomes], meta)


def suite_validation(
    name: str, validations: Sequence[Mapping[str, Any]], meta: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """As :func:`suite_result`, of results as JSON; those of skipped rules are left out."""
    told = [dict(found) for found in validations if SKIPPED not in found["meta"]]
    met = sum(found["success"] for found in told)
    return {
        "success": met == len(told),
        "results": told,
        "suite_name": name,
        "suite_parameters": {},
        "statistics": {
            "evaluated_expectations": len(told),
            "successful_expectations": met,
            "unsuccessful_expectations": len(told) - met,
            "success_percent": met / len(told) * 100 if told else None,
        },
        "meta": dict(meta or {}),
        "id": None,
    }


def configuration(rule: Rule) -> dict[str, Any]:
    """Great Expectations' ``ExpectationConfiguration`` of a rule, as JSON.

    ODCS metrics and queries that have no expectation of their own are named ``odcs_…``.
    """
    match rule.check:
        case Expectation(type, kwargs):
            given = dict(kwargs)
        case Metric() as metric:
            type = "odcs_" + "".join("_" + c.lower() if c.isupper() else c for c in metric.metric)
            given = {
                "columns": list(metric.columns),
                metric.operator: metric.threshold,
                "unit": "percent" if metric.percent else "rows",
            }
            if metric.arguments:
                given["arguments"] = dict(metric.arguments)
        case Query() as query:
            type, given = "odcs_sql", {"query": query.sql, query.operator: query.threshold}
        case Skipped(reason):
            type, given = "odcs_custom", {"reason": reason}
    meta = {"mesh": {"rule": rule.id, "blocking": rule.blocking, "origin": rule.origin.value}}
    if rule.dimension:
        meta["mesh"]["dimension"] = rule.dimension
    built = {"type": type, "kwargs": json_value(given), "meta": meta, "severity": _SEVERITY[rule.severity]}
    if rule.description:
        built["description"] = rule.description
    return built


def _validation(
    rule: Rule, success: bool, result: Mapping[str, Any], info: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "success": success,
        "expectation_config": configuration(rule),
        "result": dict(result),
        "meta": {},
        "exception_info": dict(info)
        if info
        else {"raised_exception": False, "exception_traceback": None, "exception_message": None},
    }


# -- rows ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Examples:
    """The first unexpected rows: their row numbers and values, column by column of the predicate."""

    indexes: Sequence[int] = ()
    rows: Sequence[tuple[Any, ...]] = ()


def rows_verdict(
    form: str, mostly: float, row_count: int, considered: int, unexpected: int, examples: Examples,
    columns: Sequence[str], kinds: Sequence[Kind],
) -> Verdict:  # fmt: skip
    """The verdict on a row-wise expectation, from its counts and first examples."""
    judged = row_count if form == "null" else considered
    success = not judged or (float(judged) - float(unexpected)) / float(judged) >= mostly
    percent_total = unexpected / row_count * 100 if row_count else None
    percent = unexpected / judged * 100 if judged else None
    values = _pandas_like(form, examples.rows, columns, kinds)
    result: dict[str, Any] = {
        "element_count": row_count,
        "unexpected_count": unexpected,
        "unexpected_percent": percent if row_count else None,
        "partial_unexpected_list": values,
    }
    if form != "null":
        missing = row_count - considered
        result["missing_count"] = missing
        result["missing_percent"] = missing / row_count * 100 if row_count else None
        result["unexpected_percent_total"] = percent_total
        result["unexpected_percent_nonmissing"] = percent if row_count else None
    counted = _counted(values)
    if counted is not None:
        result["partial_unexpected_counts"] = counted
    result["partial_unexpected_index_list"] = list(examples.indexes)
    return Verdict(success, result)


def predicate_verdict(
    predicate: Predicate, row_count: int, considered: int, unexpected: int, examples: Examples,
    kinds: Sequence[Kind],
) -> Verdict:  # fmt: skip
    """The verdict on a compiled predicate."""
    return rows_verdict(
        predicate.form,
        predicate.mostly,
        row_count,
        considered,
        unexpected,
        examples,
        predicate.columns,
        kinds,
    )


def _pandas_like(
    form: str, rows: Iterable[tuple[Any, ...]], columns: Sequence[str], kinds: Sequence[Kind]
) -> list[Any]:
    shown = [tuple(_shown(value, kind, form) for value, kind in zip(row, kinds, strict=True)) for row in rows]
    if form in ("column", "null"):
        return [row[0] for row in shown]
    if form == "pair":
        return shown
    return [dict(zip(columns, row, strict=True)) for row in shown]


def _shown(value: Any, kind: Kind, form: str) -> Any:  # noqa: ANN401 - any value
    """A value as pandas holds it; each null of a numeric column is a NaN of its own, unlike every other."""
    if form == "pair" and kind is Kind.DATETIME:
        # Pairs are read from numpy's arrays: UTC without a zone.
        return _NoTime() if value is None else _numpy_text(value)
    if value is not None:
        return value
    match kind:
        case Kind.INTEGER | Kind.FLOAT:
            return float("nan")
        case Kind.TEXT:
            return _SHARED_NAN
        case Kind.DATETIME:
            return _NO_TIME
        case _:
            return None


def _numpy_text(moment: datetime) -> str:
    plain = moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    return plain.isoformat(timespec="microseconds")


def _counted(values: Sequence[Any]) -> list[dict[str, Any]] | None:
    """How often each example occurs, the most frequent first; ``None`` if they have no order."""
    plain = [tuple(value.values()) if isinstance(value, dict) else value for value in values]
    try:
        common = Counter(plain).most_common(EXAMPLE_COUNT)
        ordered = sorted(common, key=lambda pair: (-pair[1], pair[0]))
    except TypeError:
        return None
    return [{"value": value, "count": count} for value, count in ordered]


def json_value(value: Any) -> Any:  # noqa: ANN401 - any value in, any JSON value out
    """A value as Great Expectations writes it to JSON."""
    match value:
        case None | bool() | str() | int():
            return value
        case float():
            return None if math.isnan(value) else value
        case Decimal():
            return None if value.is_nan() else float(value)
        case Mapping():
            return {str(key): json_value(item) for key, item in value.items()}
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return str(value)
        case bytes():
            return value.hex()
        case _NoTime():
            return "NaT"
        case Iterable():
            return [json_value(item) for item in value]
    return str(value)
