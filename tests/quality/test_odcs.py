"""ODCS rules: every metric and operator, sql, custom, and what columns promise by themselves."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from mesh_assets.contract import standard
from mesh_assets.errors import ContractError
from mesh_assets.quality import Gate, evaluate
from mesh_assets.quality.result import Outcome
from mesh_assets.quality.rule import (
    Expectation,
    Metric,
    Origin,
    Query,
    Rule,
    Scope,
    Severity,
    Skipped,
    Status,
)
from mesh_assets.quality.ruleset import compile_rules

from .product import contract

ROWS = pl.DataFrame(
    {
        "id": [1, 2, 3, 4, 5, 6, 7, 8],
        "name": ["ann", "ann", "bob", "N/A", "", None, None, "annabel"],
        "amount": [Decimal(n) for n in (1, 2, 3, 4, 5, 6, 7, -8)],
        "at": [datetime(2024, 1, 1, tzinfo=UTC)] * 8,
        "tags": [["a"], ["a", "b"], [], None, ["a", "a"], ["a", None, None], ["c"], ["d"]],
    },
    schema_overrides={"amount": pl.Decimal(10, 2), "at": pl.Datetime("us", "UTC")},
)
# What each metric counts in these rows.
METRICS: dict[str, tuple[str, int]] = {
    "nullValues": ("", 2),
    "missingValues": ("arguments: {missingValues: [null, '', N/A]}", 4),
    "invalidValues": ("arguments: {validValues: [ann, bob], pattern: '^[a-z]+$'}", 3),
    "duplicateValues": ("", 1),
    "rowCount": ("", 8),
}


def cases(name: str) -> list[dict[str, Any]]:
    path = Path(__file__).with_name("fixtures") / f"{name}.yaml"
    found: list[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def expected(count: float, operator: str, threshold: Any) -> bool:
    low, high = threshold if isinstance(threshold, list) else (threshold, threshold)
    return {
        "mustBe": count == low,
        "mustNotBe": count != low,
        "mustBeGreaterThan": count > low,
        "mustBeGreaterOrEqualTo": count >= low,
        "mustBeLessThan": count < low,
        "mustBeLessOrEqualTo": count <= low,
        "mustBeBetween": low <= count <= high,
        "mustNotBeBetween": not low <= count <= high,
    }[operator]


def outcome(path: Path, **written: str) -> tuple[Rule, Outcome]:
    rules = [
        rule for rule in compile_rules(contract(path, **written)).rules if rule.origin is not Origin.SCHEMA
    ]
    (rule,) = rules
    (found,) = evaluate([rule], ROWS.lazy())
    return rule, found


def test_every_metric_and_operator_of_the_standard_is_covered() -> None:
    assert set(METRICS) == set(standard.quality_metrics())


@pytest.mark.parametrize(("metric", "operator"), list(itertools.product(METRICS, standard.OPERATORS)))
def test_each_metric_with_each_operator(metric: str, operator: str, tmp_path: Path) -> None:
    arguments, count = METRICS[metric]
    for offset in (-1, 0, 1):
        threshold: Any = count + offset
        if operator.endswith("Between"):
            threshold = [count + offset, count + offset + 1]
        written = (
            f"quality:\n- {{metric: {metric}, {operator}: {threshold}{', ' if arguments else ''}{arguments}}}"
        )
        place = "table" if metric == "rowCount" else "name"
        rule, found = outcome(tmp_path, **{place: written})
        assert found.success == expected(count, operator, threshold), (written, found)
        assert rule.scope is Scope.TABLE or threshold == 0 or operator == "mustBeLessThan"
        told = found.observed if found.unexpected_count is None else found.unexpected_count
        assert told == (2 if isinstance(rule.check, Expectation) and metric == "duplicateValues" else count)


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric != "rowCount"])
def test_percent_is_of_all_rows(metric: str, tmp_path: Path) -> None:
    arguments, count = METRICS[metric]
    rest = f", {arguments}" if arguments else ""
    _, found = outcome(
        tmp_path,
        name=f"quality:\n- {{metric: {metric}, unit: percent, mustBeLessThan: {count * 12.5}{rest}}}",
    )
    assert found.status is Status.FAILED
    assert found.observed == count * 12.5
    _, found = outcome(
        tmp_path,
        name=f"quality:\n- {{metric: {metric}, unit: percent, mustBeLessOrEqualTo: {count * 12.5}{rest}}}",
    )
    assert found.status is Status.PASSED


@pytest.mark.parametrize(
    ("written", "type", "scope", "count"),
    [
        ("{metric: nullValues, mustBe: 0}", "expect_column_values_to_not_be_null", "row", 2),
        ("{metric: nullValues, mustBeLessThan: 1}", "expect_column_values_to_not_be_null", "row", 2),
        ("{metric: nullValues, unit: percent, mustBe: 0}", "expect_column_values_to_not_be_null", "row", 2),
        (
            "{metric: invalidValues, mustBe: 0, arguments: {validValues: [ann]}}",
            "expect_column_values_to_be_in_set", "row", 4,
        ),
        (
            "{metric: invalidValues, mustBeLessOrEqualTo: 0, arguments: {pattern: ^a}}",
            "expect_column_values_to_match_regex", "row", 3,
        ),
        ("{metric: duplicateValues, mustBe: 0}", "expect_column_values_to_be_unique", "table", 2),
        ("{rule: nullCheck, mustBe: 0}", "expect_column_values_to_not_be_null", "row", 2),
    ],
)  # fmt: skip
def test_none_at_all_is_an_expectation_of_its_own(
    written: str, type: str, scope: str, count: int, tmp_path: Path
) -> None:
    rule, found = outcome(tmp_path, name=f"quality:\n- {written}")
    assert isinstance(rule.check, Expectation)
    assert rule.check.type == type
    assert rule.scope.value == scope
    assert found.unexpected_count == count


@pytest.mark.parametrize(
    "written",
    [
        "{metric: missingValues, mustBe: 0, arguments: {missingValues: [null, '', N/A]}}",
        "{metric: invalidValues, mustBe: 0, arguments: {validValues: [ann, bob, N/A], pattern: '^[a-z]+$'}}",
    ],
)
def test_other_metrics_that_must_be_none_gate_rows_too(written: str, tmp_path: Path) -> None:
    rule, found = outcome(tmp_path, name=f"quality:\n- {written}")
    assert isinstance(rule.check, Metric)
    assert rule.scope is Scope.ROW
    marks = Gate([rule], ["id"]).mark(ROWS.with_columns(_op=pl.lit("c")).to_arrow())
    assert marks.failed == {rule.id: found.unexpected_count}


def test_less_than_one_percent_is_not_none(tmp_path: Path) -> None:
    rule, _ = outcome(tmp_path, name="quality:\n- {metric: nullValues, unit: percent, mustBeLessThan: 1}")
    assert rule.scope is Scope.TABLE


def test_duplicates_of_several_columns(tmp_path: Path) -> None:
    rule, found = outcome(
        tmp_path,
        table="quality:\n- {metric: duplicateValues, mustBe: 0, arguments: {properties: [name, at]}}",
    )
    assert isinstance(rule.check, Expectation)
    assert rule.check.type == "expect_compound_columns_to_be_unique"
    assert found.unexpected_count == 4
    rule, found = outcome(
        tmp_path,
        table="quality:\n- {metric: duplicateValues, mustBeLessThan: 2, arguments: {properties: [name, at]}}",
    )
    assert found.unexpected_count == 2


# -- sql ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases("queries"), ids=lambda case: case["query"])
def test_sql(case: dict[str, Any], tmp_path: Path) -> None:
    written = f'quality:\n- {{type: sql, query: "{case["query"]}", {case["operator"]}}}'
    rule, found = outcome(tmp_path, amount=written)
    assert isinstance(rule.check, Query)
    assert rule.scope.value == case["scope"]
    if case["success"] is None:
        assert found.status is Status.ERROR
        assert "one value" in found.message
    else:
        assert (found.observed, found.success) == (case["observed"], case["success"])


def test_sql_cannot_reach_beyond_its_tables(tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    _, found = outcome(
        tmp_path,
        table=f"quality:\n- {{type: sql, query: \"select count(*) from read_csv('{secret}')\", mustBe: 1}}",
    )
    assert found.status is Status.ERROR


def test_sql_may_read_another_table_of_the_product(tmp_path: Path) -> None:
    query = "select count(*) from things where id not in (select thing from parts)"
    (rule,) = compile_rules(
        contract(tmp_path, table=f'quality:\n- {{type: sql, query: "{query}", mustBe: 0}}')
    ).rules
    (missing,) = evaluate([rule], ROWS.lazy())
    assert missing.status is Status.ERROR
    assert "parts" in missing.message
    parts = pl.LazyFrame({"thing": list(range(1, 7))})
    (found,) = evaluate([rule], ROWS.lazy(), others={"parts": parts})
    assert found.observed == 2


# -- custom and text ----------------------------------------------------------------------------------


def test_custom_rules_of_great_expectations_may_be_text_and_know_their_column(tmp_path: Path) -> None:
    rule, found = outcome(
        tmp_path,
        name="""
        quality:
        - type: custom
          engine: greatExpectations
          name: short names
          severity: warning
          implementation: |
            expectation_type: expect_column_value_lengths_to_be_between
            kwargs: {max_value: 3}
        """,
    )
    assert rule.id == "things.short_names"
    assert (rule.severity, rule.blocking, rule.scope) == (Severity.WARNING, False, Scope.ROW)
    assert found.status is Status.WARNING
    assert found.unexpected_count == 1


def test_rules_for_another_engine_are_skipped_and_text_is_none(tmp_path: Path) -> None:
    rule, found = outcome(
        tmp_path,
        table="""
        quality:
        - {type: text, description: Be good.}
        - {type: custom, engine: soda, implementation: "checks for things: []"}
        """,
    )
    assert isinstance(rule.check, Skipped)
    assert found.status is Status.SKIPPED
    assert "soda" in found.message


# -- what columns promise -----------------------------------------------------------------------------


def test_columns_promise_by_themselves(tmp_path: Path) -> None:
    rules = compile_rules(
        contract(
            tmp_path,
            name="""
            required: true
            unique: true
            logicalTypeOptions: {minLength: 1, maxLength: 3, pattern: '^[a-z]'}
            """,
            amount="logicalTypeOptions: {minimum: 0.1, exclusiveMaximum: 7, multipleOf: 2}",
            tags="logicalTypeOptions: {minItems: 1, maxItems: 2, uniqueItems: true}",
        )
    )
    assert {rule.id: (rule.scope.value, rule.blocking, rule.line) for rule in rules.rules} == {
        "things.name.required": ("row", True, 19),
        "things.name.unique": ("table", False, 19),
        "things.name.length": ("row", True, 19),
        "things.name.pattern": ("row", True, 19),
        "things.amount.range": ("row", True, 25),
        "things.amount.multiple": ("row", True, 25),
        "things.tags.min_items": ("row", True, 32),
        "things.tags.max_items": ("row", True, 32),
        "things.tags.unique_items": ("row", True, 32),
    }
    marks = Gate(rules.rules, ["id"]).mark(ROWS.with_columns(_op=pl.lit("c")).to_arrow())
    assert marks.rejected_by is not None
    assert not marks.broken
    assert dict(zip(range(1, 9), marks.rejected_by.to_pylist(), strict=True)) == {
        1: ["things.amount.multiple"],
        2: None,
        3: ["things.amount.multiple", "things.tags.min_items"],
        4: ["things.name.pattern"],
        5: [
            "things.amount.multiple",
            "things.name.length",
            "things.name.pattern",
            "things.tags.unique_items",
        ],
        6: ["things.name.required", "things.tags.max_items"],
        7: ["things.amount.multiple", "things.amount.range", "things.name.required"],
        8: ["things.amount.range", "things.name.length"],
    }
    counted = {found.rule.id: found.unexpected_count for found in evaluate(rules, ROWS.lazy())}
    assert {id: count for id, count in counted.items() if id in marks.failed} == dict(marks.failed)


def test_a_tenth_in_a_contract_is_a_tenth(tmp_path: Path) -> None:
    rules = compile_rules(contract(tmp_path, amount="logicalTypeOptions: {minimum: 0.1, maximum: 0.3}"))
    rows = pl.DataFrame({"amount": [Decimal("0.10"), Decimal("0.30")]}, schema={"amount": pl.Decimal(10, 2)})
    (found,) = evaluate(rules, rows.lazy())
    assert found.success


def test_a_rule_says_whether_it_blocks(tmp_path: Path) -> None:
    rules = compile_rules(
        contract(
            tmp_path,
            name="""
            quality:
            - {name: a, metric: nullValues, mustBe: 0}
            - name: b
              metric: nullValues
              mustBe: 0
              customProperties: [{property: blocking, value: false}]
            - name: c
              metric: duplicateValues
              mustBe: 0
              customProperties: [{property: blocking, value: true}]
            - {name: d, metric: nullValues, mustBe: 0, severity: info}
            """,
        )
    )
    assert {rule.id: rule.blocking for rule in rules.rules} == {
        "things.a": True, "things.b": False, "things.c": True, "things.d": False,
    }  # fmt: skip
    assert [rule.id for rule in rules.blocking] == ["things.a", "things.c"]
    assert [rule.id for rule in rules.table_rules] == ["things.c"]


@pytest.mark.parametrize("case", cases("mistakes"), ids=lambda case: case["message"])
def test_mistakes_name_file_and_line(case: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ContractError) as caught:
        compile_rules(contract(tmp_path, **{case["place"]: f"quality:\n- {case['written']}"}))
    assert f"contract.yaml:{case['line']}: " in str(caught.value)
    assert case["message"] in str(caught.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ContractError) as caught:
        compile_rules(
            contract(
                tmp_path,
                table="quality:\n- {metric: nullValues, mustBe: 0}",
                amount="quality:\n- {metric: rowCount, mustBe: 0}",
            )
        )
    assert len(caught.value.mistakes) == 2


def test_a_missing_column_in_the_data_is_an_error_of_that_rule_alone(tmp_path: Path) -> None:
    rules = compile_rules(
        contract(
            tmp_path,
            table="quality:\n- {metric: rowCount, mustBe: 8}",
            name="""
            quality:
            - {metric: nullValues, mustBe: 2}
            - {metric: duplicateValues, mustBe: 0}
            - {type: sql, query: "select count(*) from things where upper(name) = 'X'", mustBe: 0}
            - {type: sql, query: "select max(name) from things", mustBe: x}
            """,
        )
    )
    found = evaluate(rules, ROWS.lazy().drop("name"))
    assert [one.status.value for one in found] == ["passed", "error", "error", "error", "error"]
    assert "there is no column 'name'; available: id" in found[1].message


def test_values_that_do_not_fit_their_column_are_judged_as_at_the_gate(tmp_path: Path) -> None:
    rules = compile_rules(
        contract(
            tmp_path,
            amount="required: true\nlogicalTypeOptions: {maximum: 100}",
            name="quality:\n- {type: sql, query: 'select count(*) from things where amount < 0', mustBe: 0}",
        )
    )
    texts = [("amount", "NaN"), ("amount", "-Infinity"), ("amount", "1e40"), None, ("_before.amount", "NaN")]
    entries = [None if text is None else [{"key": text[0], "value": text[1]}] for text in texts]
    rows = ROWS.head(5).with_columns(
        amount=pl.lit(None, pl.Decimal(10, 2)),
        _exact=pl.Series(entries).cast(pl.Map(pl.String, pl.String)),
        _op=pl.lit("c"),
    )
    marks = Gate(rules.rules, ["id"]).mark(rows.to_arrow())
    assert marks.rejected_by is not None
    assert marks.rejected_by.to_pylist() == [
        None,
        ["things.name_query"],
        ["things.amount.range"],
        ["things.amount.required"],
        ["things.amount.required"],
    ]
    counted = {found.rule.id: found.unexpected_count for found in evaluate(rules, rows.lazy())}
    assert counted == {"things.amount.required": 2, "things.amount.range": 1, "things.name_query": 1}


def test_a_required_number_may_be_nan(tmp_path: Path) -> None:
    (rule,) = compile_rules(contract(tmp_path, amount="required: true")).rules
    rows = pl.LazyFrame({"amount": [1.0, float("nan"), None]})
    (found,) = evaluate([rule], rows)
    assert (found.unexpected_count, found.row_count) == (1, 3)
