"""Great Expectations suites in a product's folder."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from mesh_assets.contract import discover
from mesh_assets.errors import ContractError
from mesh_assets.quality import Origin, Ruleset, Scope, Severity, load
from mesh_assets.quality.ruleset import compile_rules

from .product import contract


def rules(folder: Path, text: str, name: str = "things") -> Ruleset:
    (folder / "expectations").mkdir(exist_ok=True)
    (folder / "expectations" / f"{name}.json").write_text(dedent(text), encoding="utf-8")
    return compile_rules(contract(folder), folder)


def suite(*expectations: dict[str, Any], **more: Any) -> str:
    return json.dumps({"name": "s", "expectations": list(expectations), "meta": {}, **more}, indent=2)


def test_a_suite_as_great_expectations_writes_it(tmp_path: Path) -> None:
    text = suite(
        {
            "type": "expect_column_values_to_not_be_null",
            "kwargs": {"column": "name"},
            "severity": "warning",
            "id": "5e0a6d0a-0f3c-4a3b-8a0c-6f1f0e1f8a52",
            "meta": {},
        },
        {"type": "expect_column_values_to_match_regex", "kwargs": {"column": "name", "regex": "a(?=b)"}},
        {
            "type": "expect_column_values_to_be_between",
            "kwargs": {"column": "amount", "min_value": 0},
            "meta": {"name": "not_negative", "dimension": "accuracy"},
            "description": "Never below zero.",
        },
        {
            "type": "expect_column_values_to_be_between",
            "kwargs": {"column": "amount", "min_value": 1, "mostly": 0.9},
        },
        {
            "type": "expect_column_values_to_be_between",
            "kwargs": {"column": "amount", "max_value": 1000000},
        },
        {
            "type": "expect_table_row_count_to_be_between",
            "kwargs": {"min_value": 1},
            "meta": {"blocking": True},
        },
    )
    found = rules(tmp_path, text)
    told = [
        (rule.id, rule.scope.value, rule.severity.value, rule.blocking, rule.slow) for rule in found.rules
    ]
    assert told == [
        ("things.name_not_be_null", "row", "warning", False, False),
        ("things.name_match_regex", "table", "error", False, True),
        ("things.not_negative", "row", "error", True, False),
        ("things.amount_between", "table", "error", False, False),
        ("things.amount_between_2", "row", "error", True, False),
        ("things.row_count_to_be_between", "table", "error", True, False),
    ]
    assert {rule.origin for rule in found.rules} == {Origin.SUITE}
    openings = [number for number, line in enumerate(text.splitlines(), 1) if line == "    {"]
    assert [rule.line for rule in found.rules] == openings
    assert found.rule("things.not_negative").dimension == "accuracy"
    assert found.rule("things.not_negative").description == "Never below zero."


def test_a_suite_of_an_earlier_version_and_a_table_by_its_meta(tmp_path: Path) -> None:
    text = """
    {"expectation_suite_name": "old",
     "meta": {"table": "things", "great_expectations_version": "0.18.8"},
     "expectations": [
       {"expectation_type": "expect_column_values_to_be_unique", "kwargs": {"column": "name", "mostly": 1.0}}
     ]}
    """
    (rule,) = rules(tmp_path, text, "anything").rules
    assert (rule.id, rule.scope, rule.severity) == ("things.name_unique", Scope.TABLE, Severity.ERROR)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("{\n'a': 1}", 2, "not JSON"),
        ("[]", 1, "no suite"),
        ('{"expectations": [\n3]}', 2, "must be a mapping"),
        ('{"expectations": [\n{"kwargs": {}}]}', 2, "needs a 'type'"),
        ('{"expectations": [\n{"type": "expect_x"}]}', 2, "there is no expectation 'expect_x'"),
        (
            '{"expectations": [\n\n{"type": "expect_column_to_exist", "kwargs": []}]}',
            3,
            "mapping of arguments",
        ),
        (
            '{"expectations": [\n{"type": "expect_column_values_to_be_null", "kwargs": {"column": "nam"}}]}',
            2,
            "no column 'nam'",
        ),
        ('{"expectations": [],\n "meta": {\n"table": "thing"}}', 3, "has no table 'thing'"),
        (
            '{"expectations": [{"type": "expect_table_row_count_to_equal", "kwargs": {"value": 1}, '
            '"severity": "big"}]}',
            1,
            "severity 'big'",
        ),
        ('{"expectations": [{"type": "unexpected_rows_expectation", "kwargs": {}}]}', 1, "write an sql rule"),
    ],
)
def test_mistakes_name_file_and_line(text: str, line: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(ContractError) as caught:
        rules(tmp_path, text)
    assert f"expectations/things.json:{line}: " in str(caught.value)
    assert message in str(caught.value)


def test_a_file_for_no_table_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="name the file after the table"):
        rules(tmp_path, suite(), "other")


def test_every_product_of_the_sample_organisation_has_rules_that_compile() -> None:
    found = discover(Path(__file__).parents[2] / "products")
    assert found.products
    assert not found.broken
    for product in found.products.values():
        ruleset = load(product)
        assert ruleset.rules, product.name
        assert not [rule.id for rule in ruleset.rules if rule.slow]
        assert len(set(ruleset.ids)) == len(ruleset.rules)
