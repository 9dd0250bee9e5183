"""Derived products follow their inputs, change by change."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal

from mesh_assets.checks.log import Checked, CheckLog, released
from mesh_assets.derive import DeriveShift
from mesh_assets.errors import AsOfRefused
from mesh_assets.lake.version import VersionLog
from mesh_assets.names import ProductName
from mesh_assets.quality.rule import Scope
from mesh_assets.shift.report import Silent, VersionReport
from tests.derive.world import (
    CUSTOMERS,
    EAGER,
    KEYS,
    ORDERS,
    RATES,
    SCHEMAS,
    SPENDING,
    SPENDING_TRANSFORM,
    Listening,
    World,
    contract_text,
)

REGIONS_TRANSFORM = """\
import polars as pl


def transform(inputs):
    spent = inputs["spending"].group_by("region").agg(pl.col("total").sum())
    return spent.with_columns(pl.col("total").cast(pl.Decimal(18, 2)))
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Some customers with orders, and the spending that is derived of them."""
    world = World(tmp_path)
    world.derive()
    customers, orders = world.writer(CUSTOMERS), world.writer(ORDERS)
    customers.put("customers", *((number, "north") for number in range(20)))
    orders.put("orders", *((number, number % 10, "EUR") for number in range(40)))
    orders.put("lines", *((number, line, Decimal("1.50")) for number in range(40) for line in range(2)))
    customers.cut()
    orders.cut()
    return world


def same(world: World) -> None:
    for table, rows in world.expected().items():
        assert_frame_equal(world.rows(SPENDING, table), rows, check_dtypes=True, check_column_order=False)


def test_it_is_made_once_and_then_kept_up(world: World) -> None:
    assert world.shift().refused == {}
    same(world)
    assert world.plans()[0].pending() is None
    customers, orders = world.writer(CUSTOMERS), world.writer(ORDERS)
    customers.put("customers", (3, "south"))
    orders.put("lines", (0, 0, Decimal("7.00")))
    orders.put("orders", (1, 5, "CHF"))
    orders.remove("lines", (2, 0))
    customers.cut()
    orders.cut()
    before = world.changes(SPENDING, "spending").height
    assert world.plans()[0].pending() is not None
    assert world.shift().refused == {}
    same(world)
    changes = world.changes(SPENDING, "spending")[before:]
    assert sorted(changes["customer_id"]) == [0, 1, 2, 3, 5]
    assert set(changes["_op"]) == {"u"}
    assert changes["_before"].struct.field("region").to_list() == ["north"] * 5
    row = VersionLog(world.mesh.layout.versions(SPENDING)).latest()
    assert row is not None
    assert row.parents == {"shop.customers": 2, "shop.orders": 2}
    assert set(changes["_position"]) == {row.version}
    assert not any("whole" in text for text in world.observer.messages[1:])


RATED = ProductName("shop", "rated")
RATED_TABLES = {
    "rated": (
        pa.schema([("order_id", pa.int64()), ("currency", pa.string()), ("rate", pa.int64())]),
        ("order_id",),
    )
}
RATED_INPUTS = """\
    orders: {product: shop.orders, key: {order_id: order_id}}
    rates: {product: shop.rates}
"""
RATED_TRANSFORM = """\
def transform(inputs):
    rated = inputs["orders"].join(inputs["rates"], on="currency", how="left")
    return rated.select("order_id", "currency", "rate")
"""


def test_an_input_without_a_key_path_means_all_of_it(world: World) -> None:
    world.derive(RATED, RATED_TABLES, RATED_INPUTS, RATED_TRANSFORM)
    assert world.shift().refused == {}
    plan = next(one for one in world.plans() if one.name == RATED)
    # One of its inputs has no version yet: it waits, and is not wrong.
    assert plan.pending() is None
    rates = world.writer(RATES)
    rates.put("rates", ("EUR", 1), ("CHF", 2))
    rates.cut()
    assert plan.pending() == "it was never made"
    assert world.shift().refused == {}
    rates.put("rates", ("CHF", 3), ("EUR", 1))
    rates.cut()
    world.writer(ORDERS).put("orders", (0, 0, "CHF"))
    world.writer(ORDERS).cut()
    assert world.shift().refused == {}
    changes = world.changes(RATED, "rated")[40:]
    assert changes.select("order_id", "_op", "rate").rows() == [(0, "u", 3)]
    assert any("inputs without a key path: rates" in text for text in world.observer.messages)


def test_what_is_derived_of_derived_products_follows(world: World) -> None:
    world.derive(
        ProductName("shop", "regions"),
        {"regions": (pa.schema([("region", pa.string()), ("total", pa.decimal128(18, 2))]), ("region",))},
        "    spending: {product: shop.spending, key: {region: region}}\n",
        REGIONS_TRANSFORM,
    )
    assert world.shift().refused == {}
    world.writer(CUSTOMERS).put("customers", (3, "south"))
    world.writer(CUSTOMERS).cut()
    assert world.shift().refused == {}
    rows = world.rows(ProductName("shop", "regions"), "regions").rows()
    assert rows == [("north", Decimal("108.00")), ("south", Decimal("12.00"))]
    assert not any("because 3 of" in text for text in world.observer.messages)


def test_a_shift_that_catches_up_ends_while_more_comes(world: World) -> None:
    """It makes of its inputs what they were when it began, through all products, and leaves the rest."""
    regions = ProductName("shop", "regions")
    world.derive(
        regions,
        {"regions": (pa.schema([("region", pa.string()), ("total", pa.decimal128(18, 2))]), ("region",))},
        "    spending: {product: shop.spending, key: {region: region}}\n",
        REGIONS_TRANSFORM,
    )
    customers = world.writer(CUSTOMERS)
    began = customers.cut()

    class Busy(Silent):
        def version(self, report: VersionReport) -> None:
            customers.put("customers", (3, f"region {customers.position}"))
            customers.cut()

    budget = replace(EAGER, catching_up=True, idle_seconds=3600)
    shift = DeriveShift(world.plans(), budget=budget, observer=Busy(), expecting=lambda: True)
    assert shift.run().reason == "caught up"
    spending, made = (VersionLog(world.mesh.layout.versions(name)).latest() for name in (SPENDING, regions))
    assert spending is not None
    assert made is not None
    assert spending.parents[str(CUSTOMERS)] == began
    assert made.parents == {str(SPENDING): spending.version}


def test_a_truncate_and_another_transform_are_recomputed_as_a_whole(world: World) -> None:
    world.shift()
    world.writer(ORDERS).truncate("lines")
    world.writer(ORDERS).cut()
    world.shift()
    same(world)
    assert any("input 'lines' was truncated" in text for text in world.observer.messages)
    before = world.changes(SPENDING, "spending").height
    world.derive(transform=SPENDING_TRANSFORM + "\n# the same rows\n")
    assert world.plans()[0].pending() == "its transform changed"
    world.shift()
    assert world.changes(SPENDING, "spending").height == before
    assert world.plans()[0].pending() is None


SHARE_TRANSFORM = """\
import polars as pl


def transform(inputs):
    lines = inputs["lines"].join(inputs["orders"], on="order_id")
    spent = lines.group_by("customer_id").agg(line_count=pl.len().cast(pl.Int64))
    ranked = inputs["customers"].join(spent, on="customer_id", how="left").select(
        "customer_id",
        "region",
        line_count=pl.len().cast(pl.Int64),
        total=pl.lit(0).cast(pl.Decimal(18, 2)),
        latest=pl.lit(None, pl.String),
    )
    none = lines.select("customer_id", "currency", total=pl.lit(0).cast(pl.Decimal(18, 2))).head(0)
    return {"spending": ranked, "currencies": none}
"""


def test_what_does_not_compute_in_parts_is_found_out(world: World) -> None:
    # Every row holds the count of all rows: a part of the inputs gives another one.
    world.derive(transform=SHARE_TRANSFORM)
    world.writer(CUSTOMERS).put("customers", *((number, "north") for number in range(20, 500)))
    world.writer(CUSTOMERS).cut()
    assert world.shift().refused == {}
    assert any("WRONG WHEN COMPUTED IN PARTS" in text for text in world.observer.messages)
    world.writer(CUSTOMERS).put("customers", (3, "south"), (1000, "south"))
    world.writer(CUSTOMERS).cut()
    assert world.shift().refused == {}
    assert world.rows(SPENDING, "spending")["line_count"].unique().to_list() == [501]
    # Another transform gets another chance.
    world.derive()
    world.observer.messages.clear()
    assert world.shift().refused == {}
    world.writer(CUSTOMERS).put("customers", (3, "west"))
    world.writer(CUSTOMERS).cut()
    world.shift()
    same(world)
    assert not any("PARTS" in text for text in world.observer.messages)


RULE = """\
quality:
  - name: little
    type: sql
    query: SELECT count(*) FROM ${table} WHERE ${column} > %d
    mustBe: 0
    severity: error
    customProperties:
      - property: blocking
        value: true
"""


def test_a_bad_row_stays_out_until_it_is_right(world: World) -> None:
    world.derive(quality={"total": RULE % 20})
    world.shift()
    orders = world.writer(ORDERS)
    orders.put("lines", (3, 0, Decimal("99.00")))
    orders.cut()
    world.shift()
    log = world.changes(SPENDING, "spending")
    assert log.filter(log["_rejected_by"].is_not_null())["customer_id"].to_list() == [3]
    assert world.rows(SPENDING, "spending").filter(customer_id=3)["total"].item() == Decimal("12.00")
    # It is held against what the log has: nothing is logged twice.
    height = log.height
    orders.put("orders", (3, 3, "EUR"))
    orders.cut()
    world.shift()
    assert world.changes(SPENDING, "spending").height == height
    result = world.mesh.parity("shop.spending")
    assert (result.equal, result.quarantined_count) == (True, 1)
    # Another limit releases it.
    world.derive(quality={"total": RULE % 200}, version="2.0.0")
    assert world.shift().refused == {}
    same(world)
    # And one that comes right by itself is accepted.
    orders.put("lines", (4, 0, Decimal("999.00")))
    orders.cut()
    world.shift()
    orders.put("lines", (4, 0, Decimal("9.00")))
    orders.cut()
    world.shift()
    same(world)


def test_one_that_never_ends_keeps_nobody_waiting(world: World) -> None:
    world.derive(
        RATED,
        RATED_TABLES,
        "    orders: {product: shop.orders, key: {order_id: order_id}}\n",
        "def transform(inputs):\n    while True:\n        pass\n",
        limits="{max_seconds: 600}",
    )

    class Watching(Listening):
        """Ends the shift once the other product has its second version."""

        def __init__(self) -> None:
            super().__init__()
            self.versions: list[int] = []

        def version(self, report: VersionReport) -> None:
            assert report.name == SPENDING
            self.versions.append(report.row.version)
            if len(self.versions) == 1:
                world.writer(CUSTOMERS).put("customers", (3, "south"))
                world.writer(CUSTOMERS).cut()

        def cancelled(self) -> bool:
            return len(self.versions) > 1

    watching = Watching()
    result = DeriveShift(world.plans(), budget=EAGER, observer=watching).run()
    assert (result.reason, watching.versions) == ("cancelled", [1, 2])
    same(world)


def test_a_moment_means_the_version_of_then(world: World) -> None:
    world.shift()
    for region in ("west", "east", "south"):
        world.writer(CUSTOMERS).put("customers", (3, region))
    world.writer(CUSTOMERS).cut()
    world.shift()
    first, second = VersionLog(world.mesh.layout.versions(SPENDING)).between(1, 2)
    assert world.mesh.open("shop.spending", as_of=first.committed_at).cut.version == 1
    assert world.mesh.open("shop.spending", as_of=second.committed_at).cut.version == 2
    answer = world.mesh.sql("select count(*) as n from shop.spending where region = 'south'")
    assert answer.table.to_pylist() == [{"n": 1}]
    changes = world.mesh.changes("shop.spending", "3")
    assert changes["_op"].to_list() == ["c", "u"]
    with pytest.raises(AsOfRefused, match=r"shop\.spending is derived"):
        world.mesh.open("shop.spending", as_of="0/1")


def outcome(world: World, status: str) -> None:
    """Let a blocking rule about the whole of the orders come out so."""
    log = CheckLog(world.mesh.layout, ORDERS)
    last = world.writer(ORDERS).versions.latest()
    assert last is not None
    checked = Checked(
        evaluation=0,
        version=last.version,
        rule="orders.enough",
        table="orders",
        columns=(),
        status=status,
        severity="error",
        scope=str(Scope.TABLE),
        blocking=True,
        dimension="completeness",
        description="There are enough of them.",
        message="",
        observed="1",
        unexpected_count=None,
        row_count=1,
        quarantined_count=0,
        result="{}",
        contract_hash="",
        rules_hash="",
        run_id="test",
        at=datetime.now(UTC),
    )
    log.append([checked])


def test_an_input_that_fails_a_blocking_check_is_not_taken_further(world: World) -> None:
    world.shift()
    world.writer(ORDERS).remove("lines", (3, 0))
    world.writer(ORDERS).cut()
    world.writer(CUSTOMERS).put("customers", (5, "south"))
    world.writer(CUSTOMERS).cut()
    outcome(world, "failed")
    world.shift()
    versions = VersionLog(world.mesh.layout.versions(SPENDING))
    last = versions.latest()
    assert last is not None
    assert last.parents == {"shop.customers": 2, "shop.orders": 1}
    rows = {row["customer_id"]: row for row in world.rows(SPENDING, "spending").to_dicts()}
    assert (rows[3]["line_count"], rows[5]["region"]) == (8, "south")
    assert any("shop.spending waits" in text for text in world.observer.messages)
    outcome(world, "passed")
    world.shift()
    same(world)


ENOUGH = """\
quality:
  - name: enough
    type: sql
    query: SELECT count(*) FROM ${table}
    mustBeGreaterThan: 70
    severity: error
    customProperties:
      - property: blocking
        value: true
"""


def demand_enough(world: World) -> None:
    """Give the orders a blocking rule about a whole table."""
    tables = {table: (schema, KEYS[table]) for (owner, table), schema in SCHEMAS.items() if owner == ORDERS}
    contract = contract_text(ORDERS, tables, captured=True, quality={"amount": ENOUGH})
    (world.products / "shop" / "orders" / "contract.yaml").write_text(contract)
    world.reload()


def test_a_rule_that_another_domain_gains_counts_at_once(world: World) -> None:
    name = ProductName("desk", "counted")
    (world.products / "desk").mkdir()
    (world.products / "desk" / "defs.yaml").write_text(
        "type: mesh_assets.orchestration.Domain\nattributes: {description: A desk., owner: team:desk}\n"
    )
    world.derive(
        name,
        {"counted": (pa.schema([("order_id", pa.int64()), ("line_count", pa.int64())]), ("order_id",))},
        "    lines: {product: shop.orders, table: lines, key: {order_id: order_id}}\n",
        "import polars as pl\n\ndef transform(inputs):\n"
        "    return inputs['lines'].group_by('order_id').agg(line_count=pl.len().cast(pl.Int64))\n",
    )
    orders = world.writer(ORDERS)

    class Watching(Listening):
        """Lets the orders gain a rule beside the shift, and then a version that fails it."""

        def version(self, report: VersionReport) -> None:
            assert report.row.version == 1
            demand_enough(world)
            orders.remove("lines", *((number, 0) for number in range(20)))
            orders.cut(world.mesh.product(str(ORDERS)).contract.hash)

    def derived(observer: Listening) -> tuple[str, int]:
        result = DeriveShift(world.plans("desk"), budget=EAGER, observer=observer).run()
        last = VersionLog(world.mesh.layout.versions(name)).latest()
        assert last is not None
        return result.reason, last.parents[str(ORDERS)]

    assert derived(Watching()) == ("contract changed", 1)
    following = Listening()
    assert derived(following) == ("idle", 1)
    assert any("desk.counted waits: shop.orders version 2 fails" in text for text in following.messages)
    orders.put("lines", *((number, 0, Decimal("2.50")) for number in range(20)))
    orders.cut(world.mesh.product(str(ORDERS)).contract.hash)
    assert derived(Listening()) == ("idle", 3)


def test_a_version_that_fails_a_blocking_check_is_never_taken(world: World) -> None:
    demand_enough(world)
    customers, orders = world.writer(CUSTOMERS), world.writer(ORDERS)
    few = [(number, 0) for number in range(20)]

    class Watching(Listening):
        """Writes a version that fails after the first, and one that passes when that is waited for."""

        def version(self, report: VersionReport) -> None:
            if report.row.version == 1:
                orders.remove("lines", *few)
                orders.cut()
                customers.put("customers", (5, "south"))
                customers.cut()

        def message(self, text: str) -> None:
            super().message(text)
            if "shop.spending waits" in text:
                orders.put("lines", *((*key, Decimal("2.50")) for key in few))
                orders.cut()

    watching = Watching()
    result = DeriveShift(world.plans(), budget=EAGER, observer=watching).run()
    assert (result.reason, result.refused) == ("idle", {})
    last = VersionLog(world.mesh.layout.versions(SPENDING)).latest()
    assert last is not None
    rows = VersionLog(world.mesh.layout.versions(SPENDING)).between(1, last.version)
    assert list(dict.fromkeys(row.parents["shop.orders"] for row in rows)) == [1, 3]
    assert last.parents == {"shop.customers": 2, "shop.orders": 3}
    found = CheckLog(world.mesh.layout, ORDERS).history()
    enough = [(one.version, one.status) for one in found if one.scope == Scope.TABLE and one.blocking]
    # What passes at once is not kept each time: what held consumers back is, and its end.
    assert enough == [(2, "failed"), (3, "passed")]
    assert released(world.mesh.layout, ORDERS) == 3
    same(world)
    # A later shift that begins with a version that fails knows which one passed.
    orders.remove("lines", *few)
    orders.cut()
    customers.put("customers", (6, "south"))
    customers.cut()
    world.shift()
    last = VersionLog(world.mesh.layout.versions(SPENDING)).latest()
    assert last is not None
    assert last.parents == {"shop.customers": 3, "shop.orders": 3}
    assert released(world.mesh.layout, ORDERS) == 3
