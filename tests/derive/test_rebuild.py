"""Products made anew from the logs, held against what stands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from mesh_assets.derive.plan import DerivePlan
from mesh_assets.derive.rebuild import rebuild
from mesh_assets.derive.table import OwnTable
from mesh_assets.lake.current import Current
from mesh_assets.lake.version import VersionLog, VersionRow
from mesh_assets.names import CURRENT, ProductName
from mesh_assets.quality.gate import Gate
from mesh_assets.shift.plan import Target
from tests.derive.world import CUSTOMERS, FOLDING, ORDERS, SPENDING, SPENDING_TRANSFORM, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Spending, derived and folded."""
    world = World(tmp_path)
    world.derive()
    customers, orders = world.writer(CUSTOMERS), world.writer(ORDERS)
    customers.put("customers", *((number, "north") for number in range(20)))
    orders.put("orders", *((number, number % 10, "EUR") for number in range(40)))
    orders.put("lines", *((number, line, Decimal("1.50")) for number in range(40) for line in range(2)))
    customers.cut()
    orders.cut()
    orders.fold("orders")
    assert world.shift(FOLDING).refused == {}
    return world


def damage(world: World, name: ProductName, table: str, column: str, value: object) -> None:
    """Write another value into the first row of a current table, as a faulty program might have."""
    current = Current.open(world.mesh.layout.table(name, CURRENT, table))
    (file,) = current.table.files()
    path = Path(current.table.storage.address(file.path))
    rows = pq.read_table(path)
    values = rows.column(column).to_pylist()
    values[0] = value
    place = rows.schema.get_field_index(column)
    import pyarrow as pa

    pq.write_table(rows.set_column(place, column, pa.array(values, rows.schema.field(column).type)), path)


def test_what_is_right_stays(world: World) -> None:
    plan = world.plans()[0]
    done = rebuild(world.mesh.layout, plan.product, plan)
    assert done.equal
    assert done.new_version is None
    assert done.made_of == {"shop.customers": 1, "shop.orders": 1}
    captured = rebuild(world.mesh.layout, world.mesh.product("shop.orders"), None)
    assert captured.equal


def test_a_damaged_current_table_is_found_and_swapped(world: World) -> None:
    damage(world, ORDERS, "orders", "currency", "XXX")
    product = world.mesh.product("shop.orders")
    found = rebuild(world.mesh.layout, product, None, dry_run=True)
    orders = next(one for one in found.tables if one.table == "orders")
    assert (orders.op_count, orders.swapped) == ({"u": 1}, False)
    assert orders.examples[0].before == {"currency": "XXX"}
    assert orders.examples[0].after == {"currency": "EUR"}
    assert not rebuild(world.mesh.layout, product, None).equal
    assert rebuild(world.mesh.layout, product, None).equal
    current = Current.open(world.mesh.layout.table(ORDERS, CURRENT, "orders"))
    assert current.clustered
    assert world.rows(ORDERS, "orders")["currency"].unique().to_list() == ["EUR"]
    # It goes on from there.
    world.writer(ORDERS).put("orders", (1, 1, "CHF"))
    world.writer(ORDERS).cut()
    world.writer(ORDERS).fold("orders")
    assert world.rows(ORDERS, "orders")["currency"].to_list().count("CHF") == 1


def test_a_damaged_derived_table_is_made_right(world: World) -> None:
    damage(world, SPENDING, "spending", "region", "west")
    plan = world.plans()[0]
    assert not world.mesh.parity("shop.spending").equal
    done = rebuild(world.mesh.layout, plan.product, plan)
    assert not done.equal
    assert rebuild(world.mesh.layout, plan.product, plan).equal
    for table, rows in world.expected().items():
        assert_frame_equal(world.rows(SPENDING, table), rows, check_column_order=False)
    result = world.mesh.parity("shop.spending")
    assert result.equal
    assert (result.row_count, result.version) == (20, 2)


def test_parity_holds_beside_a_shift_that_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    original = OwnTable.open

    def overtaken(plan: DerivePlan, target: Target, gate: Gate | None, last: VersionRow | None) -> OwnTable:
        # The newest version is read, the logs are not open yet.
        monkeypatch.setattr(OwnTable, "open", original)
        customers, orders = world.writer(CUSTOMERS), world.writer(ORDERS)
        customers.put("customers", (0, "south"), (77, "west"))
        orders.put("orders", (3, 77, "CHF"))
        customers.cut()
        orders.cut()
        assert world.shift(FOLDING).refused == {}
        return original(plan, target, gate, last)

    monkeypatch.setattr(OwnTable, "open", overtaken)
    early = world.mesh.parity("shop.spending")
    assert early.equal, early.sentence()
    late = world.mesh.parity("shop.spending")
    assert late.equal, late.sentence()
    assert (early.version, late.version) == (1, 2)


def test_another_transform_is_shown_before_it_is_applied(world: World) -> None:
    world.derive(
        transform=SPENDING_TRANSFORM.replace("fill_null(0).cast(pl.Int64)", "fill_null(-1).cast(pl.Int64)")
    )
    plan = world.plans()[0]
    done = rebuild(world.mesh.layout, plan.product, plan, dry_run=True)
    spending = next(one for one in done.tables if one.table == "spending")
    assert spending.op_count == {"u": 10}
    assert spending.examples[0].before == {"line_count": 0}
    assert spending.examples[0].after == {"line_count": -1}
    assert VersionLog(plan.versions_uri).records.number == 1
    done = rebuild(world.mesh.layout, plan.product, plan)
    assert done.new_version == 2
    assert plan.pending() is None


def test_the_command_shows_it(world: World) -> None:
    damage(world, ORDERS, "orders", "currency", "XXX")

    def mesh(*arguments: str) -> subprocess.CompletedProcess[str]:
        settings = {"MESH_PRODUCTS": str(world.products), "MESH_LAKE": world.mesh.settings.lake_root}
        command = [sys.executable, "-c", "from mesh_assets.cli import main; main()", *arguments]
        return subprocess.run(
            command, env=os.environ | settings, capture_output=True, text=True, check=False, timeout=60
        )

    shown = mesh("rebuild", "shop.orders", "--dry-run")
    assert shown.returncode == 1, shown.stderr
    assert "currency XXX -> EUR" in shown.stdout
    done = mesh("rebuild", "shop.orders", "--json")
    assert done.returncode == 0, done.stderr
    tables = {one["table"]: one for one in json.loads(done.stdout)["tables"]}
    assert tables["orders"]["changed"] == 1
    assert tables["orders"]["swapped"]
    again = mesh("rebuild", "shop.spending", "--json")
    assert json.loads(again.stdout)["outcome"] == "equal"
    parity = mesh("parity", "shop.spending", "--json")
    assert parity.returncode == 0, parity.stderr
    assert {one["outcome"] for one in json.loads(parity.stdout)} == {"equal"}
    status = json.loads(mesh("status", "--json").stdout)
    spending = next(one for one in status["products"] if one["name"] == "shop.spending")
    assert spending["inputs"][0] == {"name": "shop.customers", "version": 1, "newest_version": 1}
