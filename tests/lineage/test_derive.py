"""The lineage of derived products, from shift to completeness."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from mesh_assets.derive import DeriveShift
from mesh_assets.derive.lineage import DeriveLineage
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.table import Table
from mesh_assets.lake.version import VersionLog, VersionRow
from mesh_assets.lineage.check import check_run
from mesh_assets.lineage.completeness import explain
from mesh_assets.lineage.facet import Assertion, ColumnMetrics
from mesh_assets.lineage.store import read
from mesh_assets.lineage.transform import transform_columns
from mesh_assets.names import ProductName
from tests.derive.test_exact import MINDING, PASSED_ON, PRICED, TABLES
from tests.derive.world import (
    CUSTOMERS,
    EAGER,
    FOLDING,
    ORDERS,
    SPENDING,
    SPENDING_TABLES,
    SPENDING_TRANSFORM,
    World,
)
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


def columns_of(output: dict[str, Any], column: str, kind: str = "") -> set[tuple[str, str, str]]:
    """Table, column and subtype of what a column is made of; of one kind only, if that is given."""
    fields = output["facets"]["columnLineage"]["fields"][column]["inputFields"]
    return {
        (field["name"].rpartition("/")[2], field["field"], one["subtype"])
        for field in fields
        for one in field["transformations"]
        if not kind or one["type"] == kind
    }


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
    assert columns_of(output, "total", "DIRECT") == {("lines", "amount", "AGGREGATION")}


def test_tags_and_classification_of_the_contract_are_told(world: World) -> None:
    world.derive(quality={"region": "tags: [place]\nclassification: internal"})
    contract = world.products / "shop" / "spending" / "contract.yaml"
    contract.write_text(contract.read_text().replace("team:\n", "tags: [money]\nteam:\n"))
    world.reload()
    assert world.shift(budget=FOLDING).refused == {}
    start, *_, complete = told(world, "spending.derive")
    fold = told(world, "spending.spending.fold")[-1]
    for event, kind in ((start, "changes"), (complete, "changes"), (fold, "current")):
        assert problems(event) == []
        output = next(one for one in event["outputs"] if one["name"].endswith(f"{kind}/spending"))
        tags = output["facets"]["tags"]["tags"]
        assert [(one["key"], one["value"], one.get("field")) for one in tags] == [
            ("money", "true", None),
            ("place", "true", "region"),
            ("classification", "internal", "region"),
        ]
    # A table without such a column has the product's only.
    other = next(one for one in complete["outputs"] if one["name"].endswith("changes/currencies"))
    assert [one["key"] for one in other["facets"]["tags"]["tags"]] == ["money"]


def test_a_column_more_is_told_as_a_change_of_the_table(world: World) -> None:
    def changes(event: dict[str, Any]) -> dict[str, str]:
        return {
            one["name"].rpartition("/")[2]: one["facets"]["lifecycleStateChange"]["lifecycleStateChange"]
            for one in event["outputs"]
            if "lifecycleStateChange" in one["facets"]
        }

    assert world.shift().refused == {}
    _, running, complete = told(world, "spending.derive")
    assert changes(running) == changes(complete)
    assert changes(complete).items() >= {"spending": "CREATE", "currencies": "CREATE"}.items()
    schema, key = SPENDING_TABLES["spending"]
    tables = SPENDING_TABLES | {"spending": (schema.append(pa.field("spends", pa.string())), key)}
    transform = SPENDING_TRANSFORM.replace('"latest",\n', '"latest",\n        spends=pl.lit("yes"),\n')
    world.derive(tables=tables, transform=transform, version="1.1.0")
    assert world.shift().refused == {}
    *_, running, complete = told(world, "spending.derive")
    for event in (running, complete):
        assert problems(event) == []
        assert changes(event) == {"spending": "ALTER"}
        output = next(one for one in event["outputs"] if one["name"].endswith("changes/spending"))
        assert "spends" in [field["name"] for field in output["facets"]["schema"]["fields"]]


def test_a_fold_is_a_batch_inside_of_the_shift(world: World) -> None:
    assert world.shift(budget=FOLDING).refused == {}
    derive = told(world, "spending.derive")[0]
    events = told(world, "spending.spending.fold")
    assert [event["eventType"] for event in events] == ["START", "COMPLETE"]
    for event in events:
        job = event["job"]["facets"]["jobType"]
        assert (job["processingType"], job["jobType"], job["integration"]) == ("BATCH", "FOLD", "MESH")
        assert event["run"]["facets"]["parent"]["run"]["runId"] == derive["run"]["runId"]


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


ENDLESS = """\
from pathlib import Path

Path({mark!r}).touch()


def transform(inputs):
    while True:
        pass
"""


def test_a_run_that_made_nothing_asks_its_function_nothing(world: World, tmp_path: Path) -> None:
    """It may never end, and whoever waits for it could do something else."""
    mark = tmp_path / "asked"
    world.derive(transform=ENDLESS.format(mark=str(mark)))
    [plan] = world.plans()
    heads: dict[ProductName, VersionRow] = {}
    for name in plan.input_products:
        row = VersionLog(plan.layout.versions(name)).latest()
        assert row is not None
        heads[name] = row
    values = {name: getattr(heads[ORDERS], name) for name in VersionRow.__slots__}
    moved = heads | {ORDERS: VersionRow(**values | {"generations": {"lines": 2}})}
    messages: list[str] = []
    with DeriveLineage([plan], "test", messages.append) as lineage:
        with lineage.product(SPENDING, heads):
            ChangeLog.create(plan.targets[0].changes_uri, *SPENDING_TABLES["spending"])
        # An input has come to another generation.
        with lineage.product(SPENDING, moved):
            ChangeLog.create(plan.targets[1].changes_uri, *SPENDING_TABLES["currencies"])
        lineage.failed(SPENDING, OSError("the disk is gone"))
        with lineage.product(SPENDING, heads):
            pass
    events = told(world, "spending.derive")
    assert [event["eventType"] for event in events] == [
        *("START", "COMPLETE"),
        *("START", "FAIL"),
        *("START", "COMPLETE"),
    ]
    # What it committed is told, and to be of everything, which is never wrong.
    [output] = [one for one in events[1]["outputs"] if one["name"].endswith("changes/spending")]
    assert output["facets"]["mesh_deltaVersions"]["versions"] == [[0, 0]]
    assert len(output["facets"]["columnLineage"]["fields"]["total"]["inputFields"]) == 8
    assert not mark.exists()
    assert messages == []


def test_one_that_failed_at_first_tells_its_columns_later(world: World) -> None:
    transform = SPENDING_TRANSFORM.replace(
        "return {", 'spending = pl.concat([spending, spending.filter(region="bad")])\n    return {'
    )
    world.derive(transform=transform)
    customers = world.writer(CUSTOMERS)
    customers.put("customers", (1, "bad"))
    customers.cut()
    mended = False

    def expecting() -> bool:
        nonlocal mended
        if not mended and any("keys more than once" in text for text in world.observer.messages):
            customers.put("customers", (1, "good"))
            customers.cut()
            mended = True
        return VersionLog(world.mesh.layout.versions(SPENDING)).latest() is None

    shift = DeriveShift(world.plans(), budget=EAGER, observer=world.observer, expecting=expecting)
    assert shift.run().refused == {}
    events = told(world, "spending.derive")
    assert {"FAIL", "COMPLETE"} < {event["eventType"] for event in events}
    output = next(one for one in events[-1]["outputs"] if one["name"].endswith("changes/spending"))
    assert columns_of(output, "total", "DIRECT") == {("lines", "amount", "AGGREGATION")}


def test_texts_are_told_as_their_columns(world: World) -> None:
    world.derive(PRICED, TABLES, MINDING, PASSED_ON)
    assert world.shift().refused == {}
    complete = told(world, "priced.derive")[-1]
    output = next(one for one in complete["outputs"] if one["name"].endswith("changes/priced"))
    for name in ("order_id", "line_number", "amount"):
        assert columns_of(output, name) == {("lines", name, "IDENTITY")}


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
