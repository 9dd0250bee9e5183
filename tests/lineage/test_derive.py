"""The lineage of derived products, from shift to completeness."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from mesh_assets.lake.table import Table
from mesh_assets.lineage.check import check_run
from mesh_assets.lineage.completeness import explain
from mesh_assets.lineage.facet import Assertion, ColumnMetrics
from mesh_assets.lineage.store import read
from mesh_assets.lineage.transform import transform_columns
from tests.derive.world import CUSTOMERS, FOLDING, ORDERS, SPENDING, SPENDING_TABLES, World
from tests.lineage.specification import problems


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Customers with orders, and the spending that is derived of them."""
    world = World(tmp_path)
    world.derive()
    customers, orders = world.writer(CUSTOMERS), world.writer(ORDERS)
    customers.put("customers", *((number, "north") for number in range(8)))
    orders.put("orders", *((number, number % 4, "EUR") for number in range(10)))
    orders.put("lines", *((number, 0, Decimal("1.50")) for number in range(10)))
    customers.cut()
    orders.cut()
    return world


def told(world: World, job: str) -> list[dict[str, Any]]:
    events = read(world.mesh.layout.lineage()).filter(pl.col("job_name") == job).collect()
    return [json.loads(text) for text in events.sort("event_time")["event"]]


def test_a_derived_product_tells_what_it_is_made_of(world: World) -> None:
    assert world.shift(budget=FOLDING).refused == {}
    events = told(world, "spending.derive")
    assert [event["eventType"] for event in events] == ["START", "RUNNING", "COMPLETE"]
    for event in events:
        assert problems(event) == []
    start, running, complete = events
    job = start["job"]["facets"]
    assert job["sourceCodeLocation"]["url"].endswith("transform.py")
    assert (job["jobType"]["processingType"], job["jobType"]["jobType"]) == ("STREAMING", "DERIVE")
    inputs = {one["name"].rpartition("/")[2]: one for one in running["inputs"]}
    assert set(inputs) == {"customers", "orders", "lines"}
    assert inputs["lines"]["facets"]["mesh_product"] == inputs["orders"]["facets"]["mesh_product"]
    assert (
        inputs["lines"]["facets"]["mesh_product"]["product"],
        inputs["lines"]["facets"]["mesh_product"]["version"],
    ) == (
        "shop.orders",
        1,
    )
    output = next(one for one in complete["outputs"] if one["name"].endswith("changes/spending"))
    assert output["facets"]["ownership"]["owners"][0]["name"]
    columns = output["facets"]["columnLineage"]["fields"]
    assert set(columns) == set(SPENDING_TABLES["spending"][0].names)
    direct = {
        (field["name"].rpartition("/")[2], field["field"], one["subtype"])
        for field in columns["total"]["inputFields"]
        for one in field["transformations"]
        if one["type"] == "DIRECT"
    }
    assert direct == {("lines", "amount", "AGGREGATION")}


def test_every_commit_is_explained(world: World) -> None:
    customers = world.writer(CUSTOMERS)
    for number in range(3):
        assert world.shift(budget=FOLDING).refused == {}
        customers.put("customers", (number, "south"))
        customers.cut()
    found = explain(world.mesh.layout, SPENDING, SPENDING_TABLES)
    assert found.commit_count > 6
    assert found.complete, [one.sentence() for one in (*found.unexplained, *found.ambiguous)]
    assert found.pending == ()
    # Those of the inputs were written by hand, in nobody's name.
    assert not explain(world.mesh.layout, CUSTOMERS, ["customers"]).complete


def test_a_transform_that_fails_ends_its_run_with_the_error(world: World) -> None:
    transform = next(iter(world.plans())).transform
    transform.write_text("def transform(inputs):\n    raise ValueError('no money')\n")
    assert world.shift(budget=FOLDING).refused
    last = told(world, "spending.derive")[-1]
    assert last["eventType"] == "FAIL"
    assert "no money" in last["run"]["facets"]["errorMessage"]["message"]
    assert problems(last) == []


def test_checks_tell_what_they_looked_at_and_how_it_came_out(world: World) -> None:
    assert world.shift(budget=FOLDING).refused == {}
    layout, contract = world.mesh.layout, world.plans()[0].product.contract
    checks = layout.catalog(SPENDING, "checks")
    with check_run(layout, contract, 1, ["spending"], checks) as recording:
        recording.outcomes(
            "spending",
            [
                Assertion("spending.total", "not_null", success=True, column="total", severity="error"),
                Assertion("spending.rows", "row_count", success=False, severity="warn", actual="8"),
            ],
            row_count=8,
            columns={"total": ColumnMetrics(null_count=0, distinct_count=2, count=8, total=24.0)},
        )
        Table.create(checks, pa.schema([("a", pa.int64())]))
    start, complete = told(world, "spending.checks")
    assert (start["eventType"], complete["eventType"]) == ("START", "COMPLETE")
    assert problems(start) == problems(complete) == []
    assert complete["job"]["facets"]["jobType"]["jobType"] == "CHECKS"
    current = next(one for one in complete["inputs"] if one["name"].endswith("current/spending"))
    found = current["inputFacets"]["dataQualityAssertions"]["assertions"]
    assert [(one["name"], one["success"]) for one in found] == [
        ("spending.total", True),
        ("spending.rows", False),
    ]
    metrics = current["inputFacets"]["dataQualityMetrics"]
    assert (metrics["rowCount"], metrics["columnMetrics"]["total"]["sum"]) == (8, 24.0)
    [kept] = complete["outputs"]
    assert kept["facets"]["symlinks"]["identifiers"][0]["name"] == "shop.spending:checks"
    assert kept["facets"]["lifecycleStateChange"]["lifecycleStateChange"] == "CREATE"


def test_columns_of_a_file_are_kept_until_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "transform.py"
    path.write_text("print('noise')\ndef transform(inputs):\n    return inputs['a'].select('x')\n")
    inputs = {"a": pl.Schema({"x": pl.Int64})}
    kept = str(tmp_path / "kept")
    found = transform_columns(path, inputs, "t", kept=kept)
    assert found is not None
    assert [source.column for source in found["t"]["x"]] == ["x"]
    assert transform_columns(path, inputs, "t", kept=kept, seconds=0.0) == found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def transform(inputs):\n    raise ValueError('postgresql://a:hunter2@b/c')\n", "ValueError"),
        ("def transform(inputs)\n", "SyntaxError"),
        ("import os\nos._exit(3)\n", "code 3"),
        ("while True: pass\n", "timed out"),
    ],
)
def test_a_file_that_cannot_be_planned_is_told(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "transform.py"
    path.write_text(text)
    messages: list[str] = []
    seconds = 3.0 if reason == "timed out" else 60.0
    inputs = {"a": pl.Schema({"x": pl.Int64})}
    assert transform_columns(path, inputs, "t", log=messages.append, seconds=seconds) is None
    [message] = messages
    assert reason in message or reason == "SyntaxError"
    assert "hunter2" not in message
