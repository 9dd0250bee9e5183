"""The slow lane and the Data Docs: Great Expectations in children of its own."""

from __future__ import annotations

import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Event

import polars as pl
import psutil
import pytest

from mesh_assets.names import ProductName
from mesh_assets.quality import child, docs, evaluate, suite_result
from mesh_assets.quality.rule import Expectation, Metric, Query, Rule, Severity, Skipped, Status
from mesh_assets.quality.slow import validate
from tests.waiting import until

ROWS = pl.DataFrame(
    {"id": [1, 2, 3, 4], "name": ["ab", "ac", None, "é"], "doc": ['{"a": 1}', "{", "[]", None]}
)
PROJECT = Path(__file__).resolve().parents[2]


def expecting(name: str, type: str, **kwargs: object) -> Rule:
    """A rule about the column ``name``."""
    return Rule(f"t.{name}", "t", ("name",), Expectation(type, {"column": "name", **kwargs}))


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


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_expectation_that_never_ends_leaves_the_others() -> None:
    endless = expecting("endless", "expect_column_values_to_match_regex", regex="^(a+)+(?=b)$")
    rows = ROWS.with_columns(name=pl.lit("a" * 64))
    # It is the others' limit, too, and they are behind everything else that the machine does.
    found = validate([JSON, endless, LOOKAHEAD], rows.lazy(), max_seconds=60)
    assert [one["success"] for one in found] == [False, False, False]
    assert found[0]["result"]["unexpected_count"] == 1
    message = found[1]["exception_info"]["exception_message"]
    assert "longer than 60 s" in message
    assert "sql rule" in message
    assert found[2]["result"]["unexpected_count"] == 4


@pytest.mark.slow
def test_an_expectation_that_needs_too_much_memory_is_an_error() -> None:
    (found,) = validate([LOOKAHEAD], ROWS.lazy(), max_bytes=150 << 20)
    assert "more than 150 MiB" in found["exception_info"]["exception_message"]


def test_who_has_to_end_does_not_wait_for_great_expectations() -> None:
    ending = Event()
    with ThreadPoolExecutor(1, initializer=child.given_up.set, initargs=(ending.is_set,)) as pool:
        job = pool.submit(validate, [LOOKAHEAD], ROWS.lazy())
        ending.set()
        with pytest.raises(child.GivenUp):
            job.result()
    assert not child.given_up.get()()


@pytest.mark.slow
def test_great_expectations_ends_with_who_asked_it(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(
        "import time\n\ndef answers(asked):\n    time.sleep(600)\n    yield {}\n"
    )
    asking = "from mesh_assets.quality import child; child.run('endless', {}, max_seconds=600)"
    paths = os.pathsep.join([str(PROJECT), str(tmp_path)])
    parent = psutil.Popen([sys.executable, "-c", asking], env=os.environ | {"PYTHONPATH": paths})
    try:
        until(lambda: [one for one in parent.children() if one.nice() > 0], "the child runs")
        (started,) = parent.children()
    finally:
        parent.kill()
        parent.wait()
    assert psutil.wait_procs([started], timeout=30)[1] == []


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
        BAD,
    ]
    found = evaluate(rules, ROWS.lazy())
    told = json.loads(json.dumps(suite_result("sales.things.t", found)))
    assert (told["success"], told["statistics"]["evaluated_expectations"]) == (False, 5)
    assert told["statistics"]["success_percent"] == 40.0
    pages = tmp_path / "docs"
    (pages / "old").mkdir(parents=True)
    name, other, at = ProductName("sales", "things"), ProductName("sales", "others"), datetime.now(UTC)
    held = tmp_path / "held"
    (held / "old").mkdir(parents=True)
    told_of = {"t": [one.result for one in found], "u": [found[0].result]}
    spoiled = {
        "t": [{**found[0].result, "expectation_config": {"type": "nonsense", "kwargs": {}, "meta": {}}}]
    }
    wrong = docs.build(
        [docs.Site(other, held, spoiled, at), docs.Site(name, pages, told_of, at, ("note.json", "{}"))]
    )
    assert list(wrong) == [other]
    assert "nonsense" in wrong[other]
    assert (held / "old").is_dir()
    index = (pages / docs.INDEX).read_text(encoding="utf-8")
    linked = re.findall(r'href="([^"]+)"', index)
    assert len(linked) == 4
    assert all((pages / one).is_file() for one in linked)
    written = [page.read_text(encoding="utf-8") for page in pages.rglob("*.html")]
    assert not any("://" in text or "<script" in text for text in written), "pages ask no other host"
    assert (pages / "note.json").read_text() == "{}"
    assert not (pages / "old").exists()
    validations = sorted((pages / "validations").rglob("*.html"))
    assert len(validations) == 2
    text = validations[0].read_text(encoding="utf-8")
    assert "All ids together." in text
    assert "null_values" in text
    assert "1 unexpected value" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["docs", "held"]
