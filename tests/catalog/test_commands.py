"""``mesh lineage``, ``mesh impact``, ``mesh search`` and ``mesh show`` over a lake that was folded or not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mesh_assets.catalog import enterprise
from mesh_assets.cli import completion
from mesh_assets.cli.app import app
from mesh_assets.names import CURRENT, Layout, ProductName
from tests.catalog.world import PRODUCTS, World

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


def _checkout_without(monkeypatch: pytest.MonkeyPatch, folder: Path, *names: ProductName) -> None:
    """From now on the commands run in a checkout that lacks the folders of some products."""
    shutil.copytree(PRODUCTS, folder)
    for name in names:
        shutil.rmtree(folder / name.domain / name.product)
    monkeypatch.setenv("MESH_PRODUCTS", str(folder))


def test_show_of_another_teams_product(
    world: World, mesh: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.release(CUSTOMERS)
    for _ in range(3):
        world.version(CUSTOMERS)
    world.check(CUSTOMERS, "failed")
    world.publish(CUSTOMERS)
    _lineage(world)
    world.version(OVERVIEW, {str(CUSTOMERS): 3})
    world.publish(OVERVIEW)
    here = _json(mesh("show", "sales.customers", "--json"))
    assert here["known_from"] == "folder"
    # What is derived of it has to go, too: a checkout whose products are made of nothing is broken.
    readers = [ProductName.parse(one) for one in here["consumers"]]
    assert OVERVIEW in readers
    _checkout_without(monkeypatch, tmp_path / "mine", CUSTOMERS, *readers)
    text = mesh("show", "sales.customers").stdout
    assert "from the enterprise catalog" in text
    for part in (
        here["description"][:40],
        here["owners"][0],
        "sales.customer_360",
        "sales.app/shop.customers",
    ):
        assert part in text, part
    assert "customers.first: 3 of 10 rows break it" in text
    assert "1 failed, 1 passed" in text
    found = _json(mesh("show", "sales.customers", "--json"))
    assert found["known_from"] == "catalog"
    for name in ("name", "contract_version", "description", "owners", "derived", "checks", "contract_hash"):
        assert found[name] == here[name], name
    assert [one["number"] for one in found["versions"]] == [3, 2, 1]
    assert {name: found["version"][name] for name in ("hash", "run_id", "actor", "last_seq")} == {
        name: here["version"][name] for name in ("hash", "run_id", "actor", "last_seq")
    }
    assert found["made_of"] == ["sales.app/shop.customers"]
    assert "sales.customer_360" in found["consumers"]
    for told, known in zip(found["tables"], here["tables"], strict=True):
        assert {name: told[name] for name in ("name", "columns", "key", "current_uri")} == {
            name: known[name] for name in ("name", "columns", "key", "current_uri")
        }
    derived = _json(mesh("show", "sales.customer_360", "--json"))
    assert (derived["derived"], derived["version"]["parents"]) == (True, {"sales.customers": 3})
    assert {"sales.orders.orders", "sales.customers.customers"} <= set(derived["made_of"])
    one = _json(mesh("show", "sales.customers.customers", "--json"))
    assert [table["name"] for table in one["tables"]] == ["customers"]
    missing = mesh("show", "sales.customers.custmers")
    assert missing.exit_code == 1
    assert "did you mean 'customers'" in missing.stderr


def test_show_names_readers_that_only_the_catalog_knows(
    world: World, mesh: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _json(mesh("show", "sales.orders", "--json"))["consumers"]
    assert str(OVERVIEW) in whole
    # Without products elsewhere nothing is read or folded for it.
    assert not enterprise.exists(world.layout)
    world.publish(OVERVIEW)
    _checkout_without(monkeypatch, tmp_path / "mine", OVERVIEW)
    found = _json(mesh("show", "sales.orders", "--json"))
    assert found["consumers"] == whole
    assert "sales.customer_360" in mesh("show", "sales.orders").stdout
    # A catalog that cannot be read is told, and keeps nobody from what is here.
    Path(world.layout.enterprise("edges"), "_delta_log", "00000000000000000000.json").write_text("no commit")
    result = mesh("show", "sales.orders", "--json")
    assert str(OVERVIEW) not in _json(result)["consumers"]
    assert "is not known" in result.stderr


def test_show_of_a_name_that_nobody_knows(
    world: World, mesh: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish(OVERVIEW)
    _checkout_without(monkeypatch, tmp_path / "mine", OVERVIEW)
    for name in ("sales.customer_36", "nowhere.nothing"):
        result = mesh("show", name)
        assert result.exit_code == 1
        assert "sales.customer_360" in result.stderr
        assert "sales.orders" in result.stderr
    assert "did you mean 'sales.customer_360'" in mesh("show", "sales.customer_36").stderr
    assert "order_lines" in mesh("show", "sales.orders.order_line").stderr


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
