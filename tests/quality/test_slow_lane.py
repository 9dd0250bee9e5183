"""The slow lane and the Data Docs: Great Expectations in children of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import polars as pl
import pytest

from mesh_assets.names import ProductName
from mesh_assets.quality import docs, evaluate, suite_result
from mesh_assets.quality.rule import Expectation, Metric, Query, Rule, Severity, Skipped, Status
from mesh_assets.quality.slow import validate

ROWS = pl.DataFrame(
    {"id": [1, 2, 3, 4], "name": ["ab", "ac", None, "é"], "doc": ['{"a": 1}', "{", "[]", None]}
)
LOOKAHEAD = Rule(
    "t.ahead",
    "t",
    ("name",),
    Expectation("expect_column_values_to_match_regex", {"column": "name", "regex": "a(?=b)"}),
)
JSON = Rule(
    "t.json", "t", ("doc",), Expectation("expect_column_values_to_be_json_parseable", {"column": "doc"})
)
CONDITION = Rule(
    "t.condition",
    "t",
    ("name",),
    Expectation(
        "expect_column_values_to_not_be_null",
        {"column": "name", "row_condition": "id < 3", "condition_parser": "pandas"},
    ),
)
BAD = Rule(
    "t.bad",
    "t",
    ("id",),
    Expectation("expect_column_values_to_match_strftime_format", {"column": "id", "strftime_format": "%Y"}),
)
FAST = Rule("t.fast", "t", ("id",), Expectation("expect_column_values_to_be_unique", {"column": "id"}))


@pytest.mark.slow
def test_what_does_not_compile_runs_in_great_expectations_itself() -> None:
    found = evaluate([FAST, LOOKAHEAD, JSON, CONDITION, BAD], ROWS.lazy())
    assert [one.status.value for one in found] == ["passed", "failed", "failed", "passed", "error"]
    assert found[1].result["result"]["partial_unexpected_list"] == ["ac", "é"]
    assert found[2].unexpected_count == 1
    assert found[3].row_count == 2
    assert "format" in found[4].message or "type" in found[4].message
    assert "great_expectations" not in sys.modules


def test_without_the_slow_lane_such_rules_are_skipped() -> None:
    (found,) = evaluate([LOOKAHEAD], ROWS.lazy(), slow_lane=False)
    assert found.status is Status.SKIPPED
    assert "Great Expectations" in found.message


def test_a_child_that_takes_too_long_is_an_error_of_its_rules() -> None:
    (found,) = validate([LOOKAHEAD], ROWS.lazy(), max_seconds=0.01)
    assert "longer than" in found["exception_info"]["exception_message"]


@pytest.mark.slow
def test_data_docs_show_every_rule_of_a_product(tmp_path: Path) -> None:
    rules = [
        FAST,
        Rule(
            "t.full",
            "t",
            ("name",),
            Expectation("expect_column_values_to_not_be_null", {"column": "name"}),
            severity=Severity.WARNING,
        ),
        Rule("t.few", "t", ("name",), Metric("nullValues", ("name",), "mustBeLessThan", 5, percent=True)),
        Rule(
            "t.sum",
            "t",
            ("id",),
            Query("select sum(id) from t", "mustBe", 10),
            description="All ids together.",
        ),
        Rule("t.soda", "t", (), Skipped("rules for soda are not run here")),
    ]
    found = evaluate(rules, ROWS.lazy())
    told = json.loads(json.dumps(suite_result("sales.things.t", found)))
    assert (told["success"], told["statistics"]["evaluated_expectations"]) == (False, 4)
    assert told["statistics"]["success_percent"] == 50.0
    pages = tmp_path / "docs"
    (pages / "old").mkdir(parents=True)
    index = docs.build(
        ProductName("sales", "things"), {"t": [one.result for one in found], "u": [found[0].result]}, pages
    )
    assert index.exists()
    assert not (pages / "old").exists()
    validations = sorted((pages / "validations").rglob("*.html"))
    assert len(validations) == 2
    text = validations[0].read_text(encoding="utf-8")
    assert "All ids together." in text
    assert "null_values" in text
    assert "1 unexpected value" in text
    assert [path.name for path in tmp_path.iterdir()] == ["docs"]
