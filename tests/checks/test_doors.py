"""No value of a restricted column leaves a product's tables with an outcome; of a confidential one, the lake.

Each test looks behind one door by which outcomes of rules leave, for values that break them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from typer.testing import CliRunner

from mesh_assets.catalog import enterprise, local
from mesh_assets.checks.evaluation import check_product
from mesh_assets.checks.log import Checked, CheckLog, blocked
from mesh_assets.checks.rule_list import rule_list
from mesh_assets.checks.statistics import refresh
from mesh_assets.cli.app import app
from mesh_assets.errors import MeshError
from mesh_assets.lake.table import Table
from mesh_assets.lake.version import VersionLog
from mesh_assets.names import ProductName
from mesh_assets.orchestration.check import quality_checks
from mesh_assets.orchestration.rule import ListedRule
from mesh_assets.quality import evaluate
from mesh_assets.quality.concealment import secret, told_outcome
from mesh_assets.status import product_status
from tests.derive.test_transform import HEAD, INPUTS, TABLES, WRONG
from tests.derive.world import CUSTOMERS, KEYS, ORDERS, SCHEMAS, World, contract_text

RESTRICTED, CONFIDENTIAL = "hush-hush", "sotto-voce"
OWN = ("changes", "current", "history", "quarantine")
"""Folders with a product's own tables."""


def suite(column: str) -> str:
    """Rules that the values of a column break, in each way of telling them."""
    kinds = {
        "expect_column_values_to_be_in_set": {"column": column, "value_set": ["other"]},
        "expect_column_most_common_value_to_be_in_set": {"column": column, "value_set": ["other"]},
        "expect_column_distinct_values_to_be_in_set": {"column": column, "value_set": ["other"]},
        "expect_column_max_to_be_between": {"column": column, "max_value": "a"},
    }
    rules = [
        {"type": kind, "kwargs": kwargs, "severity": "critical", "meta": {"blocking": "max" in kind}}
        for kind, kwargs in kinds.items()
    ]
    return json.dumps({"name": column, "expectations": rules})


def query(text: str) -> str:
    """A column's YAML for a rule in SQL."""
    return f"quality:\n  - {{type: sql, name: asked, query: '{text}', mustBe: 0}}"


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Customers whose region is restricted, and orders whose currency is confidential, folded."""
    world = World(tmp_path)
    about = {
        CUSTOMERS: {
            "region": "classification: restricted\n"
            + query("select max(cast(region as integer)) from customers")
        },
        ORDERS: {
            "currency": "classification: confidential",
            "amount": query("select max(currency) from orders"),
        },
    }
    for name, quality in about.items():
        tables = {table: (schema, KEYS[table]) for (owner, table), schema in SCHEMAS.items() if owner == name}
        text = contract_text(name, tables, captured=True, quality=quality)
        folder = world.products / name.domain / name.product
        (folder / "contract.yaml").write_text(text)
        (folder / "expectations").mkdir()
        column = "region" if name == CUSTOMERS else "currency"
        (folder / "expectations" / f"{name.product}.json").write_text(suite(column))
    customers, orders = world.writer(CUSTOMERS), world.writer(ORDERS)
    customers.put("customers", *((number, RESTRICTED) for number in range(3)))
    orders.put("orders", *((number, number, CONFIDENTIAL) for number in range(3)))
    orders.put("lines", (1, 1, None))
    for writer in (customers, orders):
        writer.cut()
        for table in writer.tables:
            writer.fold(table)
    world.reload()
    return world


@pytest.fixture
def checked(world: World) -> dict[ProductName, list[Checked]]:
    """What came of the rules of both."""
    found = {}
    for name in (CUSTOMERS, ORDERS):
        product = world.mesh.product(str(name))
        found[name] = check_product(world.mesh.layout, product)
        version = VersionLog(world.mesh.layout.versions(name)).latest()
        assert version is not None
        assert refresh(world.mesh.layout, product, version)
    return found


def kept(world: World) -> Iterator[tuple[str, str]]:
    """All that lies in the lake beside the products' own tables, and in the installation's folder."""
    for root in (world.folder / "lake", world.folder / "home"):
        for path in root.rglob("*"):
            place = str(path.relative_to(world.folder))
            if any(f"/{own}/" in place for own in OWN) or "_delta_log/" in place:
                continue
            if path.name == "_delta_log":
                yield place, str(Table.open(str(path.parent)).read().to_pylist())
                yield place, "".join(one.read_text() for one in path.glob("*.json"))
            elif path.is_file() and path.suffix != ".parquet":
                yield place, path.read_text(errors="replace")


def test_outcomes_are_told_in_numbers(checked: dict[ProductName, list[Checked]]) -> None:
    found = {one.rule: one for one in checked[CUSTOMERS]}
    assert {one.status for one in found.values()} == {"failed", "error"}, found
    in_set = found["customers.region_in_set"]
    assert (in_set.unexpected_count, in_set.row_count) == (3, 3)
    assert RESTRICTED not in str(checked)
    # In the lake, confidential values are told.
    assert CONFIDENTIAL in str(checked[ORDERS])


def test_the_lake_keeps_no_value_beside_the_tables(
    world: World, checked: dict[ProductName, list[Checked]]
) -> None:
    for name in checked:
        local.publish(world.mesh.layout, world.mesh.discovery, name)
    enterprise.fold(world.mesh.layout)
    places = list(kept(world))
    assert {"checks", "statistics", "lineage", "enterprise"} <= {
        part for place, _ in places for part in place.split("/")
    }
    assert [place for place, told in places if RESTRICTED in told] == []
    telling = {place for place, told in places if CONFIDENTIAL in told}
    assert any("checks" in place for place in telling)
    assert [place for place in telling if place.startswith("lake/lineage")] == []


def test_lineage_has_outcomes_and_counts_without_values(
    world: World, checked: dict[ProductName, list[Checked]]
) -> None:
    events = pl.DataFrame(pl.from_arrow(Table.open(world.mesh.layout.lineage()).read()))
    told = "".join(events["event"])
    assert "dataQualityAssertions" in told
    assert "3 unexpected" in told
    assert RESTRICTED not in told
    assert CONFIDENTIAL not in told


@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
def test_dagster_has_outcomes_and_counts_without_values(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = world.mesh.settings
    monkeypatch.setenv("MESH_HOME", str(settings.home))
    monkeypatch.setenv("MESH_PRODUCTS", str(settings.products))
    monkeypatch.setenv("MESH_LAKE", str(settings.lake))
    products = [world.mesh.product(str(name)) for name in (CUSTOMERS, ORDERS)]
    listed = rule_list(settings.products)
    rules = {one.name: [ListedRule(**rule) for rule in listed[str(one.name)]["rules"]] for one in products}
    job = dg.Definitions(asset_checks=quality_checks(products, rules)).resolve_implicit_global_asset_job_def()
    with dg.instance_for_test() as instance:
        # The run fails by a blocking rule, after all were told.
        job.execute_in_process(instance=instance, raise_on_error=False)
        entries = [entry for one in instance.get_runs() for entry in instance.all_logs(one.run_id)]
    rows = [entry.to_json() for entry in entries]  # type: ignore[no-untyped-call]  # Dagster's own
    told = "".join(rows)
    assert "customers.region_in_set: 3 of 3 rows break it" in told
    assert "orders.currency_in_set: 3 of 3 rows break it" in told
    assert "quality/unexpected_count" in told
    assert RESTRICTED not in told
    assert CONFIDENTIAL not in told


def test_check_and_status_tell_no_restricted_value(
    world: World, checked: dict[ProductName, list[Checked]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = world.mesh.settings
    monkeypatch.setenv("MESH_HOME", str(settings.home))
    monkeypatch.setenv("MESH_PRODUCTS", str(settings.products))
    monkeypatch.setenv("MESH_LAKE", str(settings.lake))
    for options in ([], ["--json"]):
        done = CliRunner().invoke(app, ["check", "shop.customers", "shop.orders", *options])
        assert "customers" in done.stdout
        assert RESTRICTED not in done.stdout
    status = product_status(world.mesh.layout, world.mesh.product(str(CUSTOMERS)))
    assert status.failing
    assert RESTRICTED not in str(status)


def test_who_waits_for_a_failing_product_is_told_no_value(world: World) -> None:
    world.derive(WRONG, TABLES, INPUTS, HEAD + "    return inputs['customers']\n")
    world.shift()
    (why,) = (text for text in world.observer.messages if "waits" in text)
    assert "max_to_be_between" in why
    assert [place for place, told in kept(world) if RESTRICTED in told] == []
    assert RESTRICTED not in "".join(world.observer.messages)


def test_what_was_kept_before_a_column_was_restricted_is_not_told(world: World) -> None:
    contract = world.products / "shop" / "customers" / "contract.yaml"
    text = contract.read_text()
    contract.write_text(text.replace("        classification: restricted\n", ""))
    world.reload()
    layout = world.mesh.layout
    check_product(layout, world.mesh.product(str(CUSTOMERS)))
    contract.write_text(text)
    world.reload()
    assert RESTRICTED in str(CheckLog(layout, CUSTOMERS).latest())
    why = blocked(layout, CUSTOMERS)
    assert why is not None
    assert RESTRICTED not in why
    assert RESTRICTED not in str(product_status(layout, world.mesh.product(str(CUSTOMERS))))
    record = local.publish(layout, world.mesh.discovery, CUSTOMERS)
    assert RESTRICTED not in record.to_json().decode()

    # As the auditor's page says it is removed from what is kept; of lineage it says that it is not.
    for part in ("checks", "statistics"):
        shutil.rmtree(layout.catalog(CUSTOMERS, part), ignore_errors=True)
    product = world.mesh.product(str(CUSTOMERS))
    assert [one.evaluation for one in check_product(layout, product)] == [1] * 5
    version = VersionLog(layout.versions(CUSTOMERS)).latest()
    assert version is not None
    assert refresh(layout, product, version)
    local.publish(layout, world.mesh.discovery, CUSTOMERS)
    enterprise.fold(layout)
    assert {place for place, told in kept(world) if RESTRICTED in told} == {"lake/lineage/_delta_log"}


def test_a_query_counts_or_tells_nothing(world: World) -> None:
    """What a query on another table finds there; the number of rows is told."""
    contract = world.products / "shop" / "orders" / "contract.yaml"
    text = contract.read_text().replace("confidential", "restricted")
    contract.write_text(text)
    world.reload()

    def observed() -> str:
        rows = check_product(world.mesh.layout, world.mesh.product(str(ORDERS)))
        return next(
            one.observed + one.message for one in rows if one.table == "lines" and "asked" in one.rule
        )

    assert CONFIDENTIAL not in observed()
    for asked, found in (
        ("select count(*) from orders where currency is not null", "3"),
        ("select max(length(currency)) from orders", ""),
        ("select max(line_number) from lines", "1"),
    ):
        contract.write_text(text.replace("select max(currency) from orders", asked))
        world.reload()
        assert observed() == found, asked


def test_an_evaluation_that_fails_tells_no_value(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = evaluate.__globals__["_fast"]

    def fails(*given: object) -> None:
        pl.DataFrame({"region": [RESTRICTED]}).cast(pl.Int64)
        real(*given)

    monkeypatch.setitem(evaluate.__globals__, "_fast", fails)
    with pytest.raises(MeshError) as caught:
        check_product(world.mesh.layout, world.mesh.product(str(CUSTOMERS)))
    assert "InvalidOperationError at mesh_assets/" in str(caught.value)
    assert RESTRICTED not in str(caught.value)
    assert "errorMessage" in str(list(kept(world)))
    assert [place for place, told in kept(world) if RESTRICTED in told] == []


@pytest.mark.parametrize(
    ("kind", "summaries", "told"),
    [
        ("expect_column_mean_to_be_between", True, True),
        ("expect_column_sum_to_be_between", True, True),
        ("expect_column_mean_to_be_between", False, False),
        ("expect_column_max_to_be_between", True, False),
        ("expect_column_most_common_value_to_be_in_set", True, False),
    ],
)
def test_summaries_of_confidential_values_show_no_row(
    world: World, kind: str, summaries: bool, told: bool
) -> None:
    result = {
        "expectation_config": {"type": kind, "kwargs": {"column": "currency"}},
        "result": {"observed_value": 7.25, "partial_unexpected_list": [CONFIDENTIAL]},
    }
    row = {
        "table": "orders",
        "columns": ["currency"],
        "result": json.dumps(result),
        "observed": "7.25",
        "message": "",
        "status": "failed",
    }
    contract = world.mesh.product(str(ORDERS)).contract
    found = told_outcome(row, contract, secret, summaries=summaries)
    assert (found["observed"] == "7.25", "7.25" in found["result"]) == (told, told)
    assert CONFIDENTIAL not in str(found)
