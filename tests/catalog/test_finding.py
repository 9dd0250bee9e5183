"""What the catalog's checks find."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from mesh_assets.catalog import enterprise
from mesh_assets.catalog.finding import Catalog, Finding, findings
from mesh_assets.names import Layout, ProductName
from tests.catalog.world import World

ORDERS = ProductName("sales", "orders")
OVERVIEW = ProductName("sales", "customer_360")


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A lake in which all is well."""
    world = World(Layout(str(tmp_path / "lake")))
    for name in world.discovery.products:
        world.version(name)
        world.publish(name)
    return world


def _found(world: World, after: timedelta = timedelta()) -> list[Finding]:
    enterprise.fold(world.layout)
    defined = {str(name) for name in world.discovery.products}
    return findings(Catalog.load(world.layout), now=world.now + after, defined=defined)


def test_nothing_is_wrong(world: World) -> None:
    assert _found(world) == []


def test_orphans(world: World) -> None:
    source = Path(world.layout.catalog(ORDERS))
    stray = Path(world.layout.catalog(ProductName("sales", "returns")))
    shutil.copytree(source, stray)
    record = stray / "record.json"
    record.write_text(record.read_text().replace('"product": "sales.orders"', '"product": "sales.returns"'))
    shutil.copytree(world.layout.versions(ORDERS), world.layout.versions(ProductName("sales", "returns")))
    shutil.rmtree(world.layout.catalog(ProductName("sales", "customers")))
    found = [one for one in _found(world) if one.kind == "orphan"]
    assert {one.subject for one in found} >= {"sales.returns", "sales.customer_360.customer_360"}
    assert any("sales.customers.customers, which no product publishes" in one.message for one in found)


def test_unowned(world: World) -> None:
    record = Path(world.layout.catalog(ORDERS)) / "record.json"
    record.write_text(record.read_text().replace('"owner": "team:sales-engineering"', '"owner": ""'))
    for name in world.discovery.products:
        if name.domain == "sales" and name != ORDERS:
            shutil.rmtree(world.layout.product(name))
    found = [one for one in _found(world) if one.kind == "unowned"]
    assert [one.subject for one in found] == ["sales"]


def test_stale(world: World) -> None:
    assert {one.kind for one in _found(world, timedelta(days=2))} == {"stale"}
    world.version(OVERVIEW, {str(ORDERS): 1})
    world.publish(OVERVIEW)
    assert _found(world, timedelta(hours=1)) == []
    world.version(ORDERS)
    world.publish(ORDERS)
    assert _found(world) == []
    (late,) = _found(world, timedelta(minutes=30))
    assert (late.kind, late.subject, late.severity) == ("stale", str(OVERVIEW), "error")
    assert "holds version 1 of sales.orders, which is at version 2" in late.message
    world.version(OVERVIEW, {str(ORDERS): 2})
    world.publish(OVERVIEW)
    assert _found(world, timedelta(minutes=30)) == []


def test_failing(world: World) -> None:
    world.check(ORDERS, "failed")
    world.publish(ORDERS)
    run, events = world.capture(ORDERS, 1)
    world.emit(*events, run.fail(ValueError("the disk is full\nand more"), world.tick()))
    job, rule = _found(world)
    assert (rule.kind, rule.severity) == ("failing", "error")
    assert "rule orders.first of sales.orders is not met at version 1: 3 of 10 rows break it" in rule.message
    assert rule.owners[0] == "team:sales-engineering"
    assert job.message.endswith("failed: the disk is full")
    world.check(ORDERS, "passed")
    world.publish(ORDERS)
    again, events = world.capture(ORDERS, 2)
    world.emit(*events, again.complete(world.tick()))
    assert _found(world) == []
