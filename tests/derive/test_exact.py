"""Values outside of their column's type: a transform is told of them, or nothing is derived of them."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

from mesh_assets.derive.proof import disprove
from mesh_assets.derive.rebuild import derived_parity, rebuild
from mesh_assets.derive.transform import Transformer
from mesh_assets.inspection import inspect
from mesh_assets.lake.access import Principal
from mesh_assets.lake.exact import text_before, text_of
from mesh_assets.lake.read import fresh
from mesh_assets.names import ProductName
from mesh_assets.product import Mesh
from mesh_assets.readers import input_tables
from tests.derive.test_shift import same
from tests.derive.world import CUSTOMERS, FOLDING, ORDERS, SPENDING, World

PRICED = ProductName("shop", "priced")
TABLES = {
    "priced": (
        pa.schema([("order_id", pa.int64()), ("line_number", pa.int32()), ("amount", pa.decimal128(12, 2))]),
        ("order_id", "line_number"),
    )
}
INPUTS = """\
    lines:
      product: shop.orders
      table: lines
      key: {order_id: order_id, line_number: line_number}
"""
MINDING = INPUTS + "      exact: [amount]\n"
SUMMED = ProductName("shop", "summed")
SUMMED_TABLES = {
    "summed": (pa.schema([("order_id", pa.int64()), ("total", pa.decimal128(18, 2))]), ("order_id",))
}
SUMMED_INPUTS = "    priced: {product: shop.priced, key: {order_id: order_id}}\n"
SUMMED_TRANSFORM = """\
import polars as pl


def transform(inputs):
    total = pl.col("amount").sum().cast(pl.Decimal(18, 2))
    return inputs["priced"].group_by("order_id").agg(total=total)
"""
PASSED_ON = 'def transform(inputs):\n    return inputs["lines"]\n'
COUNTED = """\
import polars as pl


def transform(inputs):
    amount = pl.lit(1).cast(pl.Decimal(12, 2))
    return inputs["lines"].select("order_id", "line_number", amount=amount)
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Twenty orders of ten customers with two lines each."""
    world = World(tmp_path)
    customers, orders = world.writer(CUSTOMERS), world.writer(ORDERS)
    customers.put("customers", *((number, "north") for number in range(10)))
    orders.put("orders", *((number, number % 10, "EUR") for number in range(20)))
    orders.put("lines", *((number, line, Decimal("1.50")) for number in range(20) for line in range(2)))
    customers.cut()
    orders.cut()
    return world


def spoil(world: World, *keys: tuple[int, int], text: str = "NaN") -> None:
    """Lines whose amount is no number that the column can hold."""
    orders = world.writer(ORDERS)
    orders.put("lines", *((*key, None) for key in keys), exact={"amount": text})
    orders.cut()


@pytest.mark.parametrize("folded", [False, True])
def test_no_sum_is_made_of_what_is_not_a_number(world: World, folded: bool) -> None:
    world.derive()
    world.shift()
    before = world.rows(SPENDING, "spending")
    spoil(world, (3, 1))
    if folded:
        world.writer(ORDERS).fold("lines")
    refused = world.shift().refused["shop.spending"]
    assert "1 rows of input 'lines' have a value outside of its column's type in amount" in refused
    assert "(order_id=3, line_number=1)" in refused
    assert "defs.yaml:" in refused
    assert "exact: [amount]" in refused
    assert world.rows(SPENDING, "spending").equals(before)
    # Nothing else is due until an input is another.
    assert world.plans()[0].pending() is None
    world.writer(ORDERS).put("lines", (3, 1, Decimal("2.50")))
    world.writer(ORDERS).cut()
    assert world.shift().refused == {}
    same(world)


def test_it_is_refused_from_the_beginning(world: World) -> None:
    spoil(world, (3, 1), (4, 1))
    world.derive()
    assert "2 rows of input 'lines'" in world.shift().refused["shop.spending"]


def test_a_column_that_does_not_count_may_hold_anything(world: World) -> None:
    spoil(world, (3, 1))
    world.derive(PRICED, TABLES, INPUTS, COUNTED)
    assert world.shift().refused == {}
    assert world.rows(PRICED, "priced")["amount"].unique().to_list() == [Decimal("1.00")]


def texts(world: World) -> dict[tuple[int, int], str]:
    """The texts of amounts that a reader of the product gets."""
    rows = fresh(world.mesh.layout, PRICED, "priced", principal=Principal.local(), meta=True)
    told = rows.select("order_id", "line_number", text=text_of("amount")).drop_nulls().collect()
    return {(order, line): text for order, line, text in told.iter_rows()}


def test_what_is_passed_on_keeps_its_text(world: World) -> None:
    spoil(world, (3, 1))
    world.derive(PRICED, TABLES, MINDING, PASSED_ON)
    assert world.shift().refused == {}
    assert texts(world) == {(3, 1): "NaN"}
    # Another text is another value, and no text is none.
    spoil(world, (3, 1), text="Infinity")
    spoil(world, (4, 0))
    assert world.shift(FOLDING).refused == {}
    assert texts(world) == {(3, 1): "Infinity", (4, 0): "NaN"}
    changes = world.changes(PRICED, "priced")[-2:]
    assert changes["_op"].to_list() == ["u", "u"]
    assert changes.select(text_before("amount")).to_series().to_list() == ["NaN", None]
    plan = next(one for one in world.plans() if one.name == PRICED)
    assert derived_parity(plan, "priced").equal
    assert rebuild(world.mesh.layout, plan.product, plan, dry_run=True).equal
    # A product of it that does not mind is not made of it.
    world.derive(SUMMED, SUMMED_TABLES, SUMMED_INPUTS, SUMMED_TRANSFORM)
    assert "2 rows of input 'priced'" in world.shift().refused["shop.summed"]
    height = world.changes(PRICED, "priced").height
    world.writer(ORDERS).put("lines", (3, 1, Decimal("2.50")))
    world.writer(ORDERS).remove("lines", (4, 0))
    world.writer(ORDERS).cut()
    world.shift()
    assert texts(world) == {}
    assert world.changes(PRICED, "priced").height == height + 2
    assert world.shift().refused == {}
    assert world.rows(SUMMED, "summed")["total"].sum() == Decimal("59.50")


def test_a_transform_may_say_what_such_a_value_is_to_be(world: World) -> None:
    world.derive(
        PRICED,
        TABLES,
        MINDING,
        "import polars as pl\n\ndef transform(inputs):\n"
        '    amount = pl.when(pl.col("amount_exact") == "NaN").then(0).otherwise("amount")\n'
        "    amount = amount.cast(pl.Decimal(12, 2))\n"
        '    return inputs["lines"].select("order_id", "line_number", amount=amount)\n',
    )
    spoil(world, (3, 1))
    assert world.shift().refused == {}
    assert world.rows(PRICED, "priced").filter(order_id=3)["amount"].to_list() == [
        Decimal("1.50"),
        Decimal("0.00"),
    ]
    plan = next(one for one in world.plans() if one.name == PRICED)
    # Whoever reads the text reads the column.
    looked = inspect(plan.product, input_tables(world.mesh.discovery, plan.product))
    assert looked.error == ""
    assert looked.reads == {"lines": ("amount", "line_number", "order_id")}
    contract = world.mesh.discovery.products[ORDERS].contract
    with Transformer(plan.home) as transformer:
        for seed in range(5):
            assert disprove(plan, {"lines": contract.table("lines")}, transformer, seed=seed) is None


def test_texts_are_texts_of_columns_there_are(world: World) -> None:
    world.derive(
        PRICED,
        TABLES,
        MINDING,
        "import polars as pl\n\ndef transform(inputs):\n"
        '    return inputs["lines"].with_columns(amount_exact=pl.lit(1))\n',
    )
    assert "'amount_exact' of 'priced' is Int32, not the text" in world.shift().refused["shop.priced"]
    folder = world.products / "shop" / "priced"
    (folder / "defs.yaml").write_text((folder / "defs.yaml").read_text().replace("[amount]", "[amuont]"))
    broken = Mesh(world.mesh.settings).discovery.broken
    assert len(broken) == 1
    assert "has no column 'amuont'" in str(broken[0][1])


BY_AMOUNT = ProductName("shop", "by_amount")
BY_AMOUNT_TABLES = {
    "by_amount": (pa.schema([("amount", pa.decimal128(12, 2)), ("line_count", pa.int64())]), ("amount",))
}
BY_AMOUNT_TRANSFORM = """\
import polars as pl


def transform(inputs):
    lines = inputs["lines"].drop_nulls("amount")
    return lines.group_by("amount").agg(line_count=pl.len().cast(pl.Int64))
"""


def test_rows_that_no_key_path_leads_from_are_not_lost(world: World) -> None:
    # What is null in the path's column is in no part of the input.
    inputs = "    lines: {product: shop.orders, table: lines, key: {amount: amount}}\n"
    world.derive(BY_AMOUNT, BY_AMOUNT_TABLES, inputs, BY_AMOUNT_TRANSFORM)
    assert world.shift().refused == {}
    world.writer(ORDERS).put("lines", (3, 1, Decimal("2.50")))
    spoil(world, (4, 1))
    assert "1 rows of input 'lines'" in world.shift().refused["shop.by_amount"]
