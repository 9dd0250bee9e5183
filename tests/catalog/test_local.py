"""The local record: what it says, when it is written, and that it never stops the work."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mesh_assets.catalog import local
from mesh_assets.catalog.local import LocalCatalog
from mesh_assets.contract.discovery import discover
from mesh_assets.errors import LakeError
from mesh_assets.names import Layout, ProductName
from tests.catalog.world import PRODUCTS, World

ORDERS = ProductName("sales", "orders")
OVERVIEW = ProductName("sales", "customer_360")


@pytest.fixture
def world(tmp_path: Path) -> World:
    """An empty lake."""
    return World(Layout(str(tmp_path / "lake")))


def test_a_record_says_everything_of_its_product(world: World) -> None:
    world.release(ORDERS)
    world.log(ORDERS)
    for _ in range(local.VERSION_COUNT + 3):
        row = world.version(ORDERS)
    world.check(ORDERS, "passed", 1)
    world.check(ORDERS, "failed", 2)
    made = local.publish(world.layout, world.discovery, ORDERS)
    record = local.read(world.layout, ORDERS)
    assert record == made
    assert record is not None
    contract = world.discovery.product(ORDERS).contract
    assert record.promised == contract
    assert [one.version for one in record.releases] == ["1.0.0"]
    assert record.releases[0].columns["orders"][0] == "order_id"
    assert len(record.versions) == local.VERSION_COUNT
    assert (record.versions[-1].hash, record.versions[-1].version) == (row.hash, row.version)
    assert {one.rule: one.outcome for one in record.checks} == {
        "orders.first": "failed",
        "orders.second": "passed",
    }
    assert record.tables[0].change_count == 0
    assert record.tables[0].changes_delta_version == 0
    assert record.tables[0].columns == {"id": "int64"}
    assert {(one.kind, one.name, one.table) for one in record.inputs} == {
        ("source", "sales.app", "shop.orders"),
        ("source", "sales.app", "shop.order_lines"),
    }
    assert "sales.customer_360" in record.consumers
    assert record.domain.owner.startswith("team:")
    derived = local.publish(world.layout, world.discovery, OVERVIEW)
    assert derived.derived
    assert {one.name for one in derived.inputs} >= {"sales.customers", "sales.orders", "finance.transactions"}


def test_a_record_is_written_at_most_so_often(world: World) -> None:
    messages: list[str] = []
    catalog = LocalCatalog(world.layout, world.discovery, [ORDERS], log=messages.append)
    assert catalog.due
    assert catalog.write()
    first = local.read(world.layout, ORDERS)
    assert not catalog.due
    assert catalog.write()
    second = local.read(world.layout, ORDERS)
    assert first is not None
    assert second is not None
    assert second.published_at > first.published_at
    eager = LocalCatalog(world.layout, world.discovery, [ORDERS], publish_seconds=0)
    assert eager.write()
    assert eager.due
    assert messages == []
    assert [path.name for path in Path(world.layout.catalog(ORDERS)).iterdir()] == ["record.json"]


def test_a_shift_that_knows_only_its_products_finds_domains_and_consumers(
    world: World, tmp_path: Path
) -> None:
    folder = tmp_path / "products"
    shutil.copytree(PRODUCTS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    product = discover(folder).product(ORDERS)
    assert LocalCatalog.of(world.layout, [product]).write()
    record = local.read(world.layout, ORDERS)
    assert record is not None
    assert record.consumers
    assert record.domain.description


def test_a_record_that_cannot_be_written_is_told_once(world: World) -> None:
    messages: list[str] = []
    lake = Path(world.layout.root)
    lake.parent.mkdir(exist_ok=True)
    lake.write_text("a file where the lake should be")
    catalog = LocalCatalog(world.layout, world.discovery, [ORDERS], log=messages.append, publish_seconds=0)
    assert not catalog.write()
    assert not catalog.write()
    lake.unlink()
    assert catalog.write()
    assert len(messages) == 2
    assert "could not be written" in messages[0]
    assert "again" in messages[1]


def test_a_damaged_record_is_named(world: World) -> None:
    assert local.read(world.layout, ORDERS) is None
    local.publish(world.layout, world.discovery, ORDERS)
    file = Path(world.layout.catalog(ORDERS), local.RECORD_FILE)
    file.write_text(file.read_text()[:100])
    with pytest.raises(LakeError, match=r"record\.json is damaged"):
        local.read(world.layout, ORDERS)
