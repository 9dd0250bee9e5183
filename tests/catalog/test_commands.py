"""``mesh lineage``, ``mesh impact``, ``mesh search`` and ``mesh show`` over a lake that was folded or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mesh_assets.catalog import enterprise
from mesh_assets.cli import completion
from mesh_assets.cli.app import app
from mesh_assets.names import CURRENT, Layout, ProductName
from tests.catalog.world import World

ORDERS = ProductName("sales", "orders")
CUSTOMERS = ProductName("sales", "customers")
OVERVIEW = ProductName("sales", "customer_360")
Run = Callable[..., Result]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A lake that the commands find; nothing was published or folded."""
    monkeypatch.setenv("MESH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    return World(Layout(str(tmp_path / "home" / "lake")))


@pytest.fixture
def mesh() -> Run:
    """Run a command in this process."""
    runner = CliRunner()

    def run(*arguments: str) -> Result:
        result = runner.invoke(app, list(arguments))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def _json(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def _lineage(world: World) -> None:
    orders, customers = world.uri(ORDERS, CURRENT), world.uri(CUSTOMERS, CURRENT)
    world.emit(
        *world.derive(
            OVERVIEW,
            {"total": [(orders, "amount", "AGGREGATION")], "email": [(customers, "email", "IDENTITY")]},
        )
    )


def test_lineage_as_a_tree_and_as_json(world: World, mesh: Run) -> None:
    _lineage(world)
    text = mesh("lineage", "sales.customer_360").stdout
    for name in ("sales.orders.orders", "sales.app/shop.orders", "sales.customers.customers"):
        assert name in text
    text = mesh("lineage", "sales.customer_360", "--column", "total", "--upstream").stdout
    assert "sales.orders.orders.amount  aggregation" in text
    assert "email" not in text
    found = _json(mesh("lineage", "sales.orders.amount", "--downstream", "--json"))
    assert found["column"] == "amount"
    assert "upstream" not in found
    (child,) = [one for one in found["downstream"] if one["dataset"].startswith("sales.customer_360")]
    assert child["column"] == "total"
    assert child["links"][0]["subtype"] == "AGGREGATION"
    one_step = _json(mesh("lineage", "sales.customer_360", "-u", "--depth", "1", "--json"))
    assert all(child["children"] == [] for child in one_step["upstream"])
    past = _json(mesh("lineage", "sales.orders.amount", "-d", "--as-of", "2026-01-01T00:00:00Z", "--json"))
    assert past["downstream"] == []


def test_lineage_of_versions(world: World, mesh: Run) -> None:
    world.version(ORDERS)
    world.version(OVERVIEW, {str(ORDERS): 1})
    world.publish(ORDERS)
    world.publish(OVERVIEW)
    text = mesh("lineage", "sales.customer_360", "--runs", "--upstream").stdout
    assert "sales.customer_360 version 1" in text
    assert "sales.orders version 1" in text
    found = _json(mesh("lineage", "sales.orders", "--runs", "-d", "--version", "1", "--json"))
    assert found["downstream"]["children"][0]["product"] == "sales.customer_360"
    missing = mesh("lineage", "sales.orders", "--runs", "--version", "9")
    assert missing.exit_code == 1
    assert "no version 9" in missing.stderr


def test_impact(world: World, mesh: Run) -> None:
    _lineage(world)
    found = _json(mesh("impact", "sales.orders.amount", "--json"))
    by_name = {one["dataset"]: one for one in found["affected"]}
    overview = by_name["sales.customer_360.customer_360"]
    assert (overview["columns"], overview["how"]) == (["total"], ["DIRECT/AGGREGATION"])
    assert overview["owners"][0] == "team:sales-engineering"
    text = mesh("impact", "sales.orders.amount").stdout
    assert "direct/aggregation" in text
    assert "nothing that is known depends on" in mesh("impact", "distribution.late_shipments").stdout


def test_search(world: World, mesh: Run) -> None:
    world.version(CUSTOMERS)
    world.publish(CUSTOMERS)
    found = _json(mesh("search", "customer", "--limit", "100", "--json"))
    assert {one["kind"] for one in found["hits"]} == {"product", "table", "column", "change"}
    assert found["hits"][0]["kind"] == "product"
    assert found["facets"]["domain"]["sales"] > 1
    narrow = _json(mesh("search", "customer", "--only", "kind=column", "--only", "domain=sales", "--json"))
    assert {(one["kind"], one["domain"]) for one in narrow["hits"]} == {("column", "sales")}
    text = mesh("search", "customer").stdout
    assert "sales.customers" in text
    assert "classification" in text
    nothing = mesh("search", "zebra")
    assert nothing.exit_code == 1
    assert "nothing was found for 'zebra'" in nothing.stdout


def test_show_tells_what_the_catalog_knows(world: World, mesh: Run) -> None:
    world.release(ORDERS)
    world.version(ORDERS)
    world.check(ORDERS, "failed")
    text = mesh("show", "sales.orders").stdout
    assert "sales.customer_360" in text
    assert "1.0.0 since 2026-03-01" in text
    assert "1 failed, 1 passed" in text
    assert "orders.first: 3 of 10 rows break it" in text
    found = _json(mesh("show", "sales.orders", "--json"))
    assert found["releases"][0]["version"] == "1.0.0"
    assert found["checks"][0]["outcome"] == "failed"
    assert "sales.customer_360" in found["consumers"]
    derived = _json(mesh("show", "sales.customer_360", "--json"))
    assert derived["source"] is None
    assert "sales.orders" in {one["name"] for one in derived["inputs"]}
    assert "made of" in mesh("show", "sales.customer_360").stdout


def test_mistakes_are_sentences(world: World, mesh: Run) -> None:
    for arguments, hint in (
        (["lineage", "sales.order"], "sales.orders"),
        (["lineage", "sales.orders", "--column", "amuont"], "amount"),
        (["lineage", "sales.orders", "--as-of", "12"], "is no moment"),
        (["lineage", "sales.orders", "--as-of", "soon"], "moment"),
        (["impact", "sales.orders.amuont"], "amount"),
        (["search", "x", "--only", "kind"], "facet=value"),
        (["search", "x", "--only", "colour=red"], "kind"),
    ):
        result = mesh(*arguments)
        assert result.exit_code == 1, arguments
        assert hint in result.stderr, arguments
    for arguments in (
        ["lineage", "sales.orders", "--version", "1"],
        ["lineage", "sales.orders", "--runs", "--column", "amount"],
        ["search", "x", "--limit", "0"],
    ):
        assert mesh(*arguments).exit_code == 2, arguments


def test_a_catalog_that_cannot_be_folded_is_shown_as_it_was(world: World, mesh: Run) -> None:
    mesh("lineage", "sales.orders")
    assert enterprise.exists(world.layout)
    broken = Path(world.layout.lineage(), "_delta_log", "00000000000000000000.json")
    broken.parent.mkdir(parents=True)
    broken.write_text("no commit")
    result = mesh("lineage", "sales.orders")
    assert result.exit_code == 0
    assert "as it was folded last" in result.stderr
    assert "sales.app/shop.orders" in result.stdout


def test_columns_complete() -> None:
    assert "sales.orders.amount" in completion.nodes("sales.orders.am")
    assert completion.nodes("sales.orders.order_lines.sk") == ["sales.orders.order_lines.sku"]
    assert completion.nodes("sales.ord")[0] == "sales.orders"
    assert completion.facets("kind=c") == ["kind=column", "kind=change"]
    assert "domain=sales" in completion.facets("domain")
