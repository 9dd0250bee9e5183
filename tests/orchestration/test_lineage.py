"""Column lineage of derived products as Dagster shows it."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from mesh_assets.derive.reading import columns_read
from mesh_assets.orchestration.lineage import derived_lineage
from tests.derive.test_exact import MINDING, PRICED, TABLES
from tests.derive.world import CUSTOMERS, ORDERS, World

_NAMED = 'def transform(inputs):\n    return {"priced": inputs["lines"].select(\n        '
KEPT = _NAMED + '"order_id", "line_number", "amount", "amount_exact"\n    )}\n'
"""As the mesh writes it for an old version that it keeps."""
MENDED = """\
import polars as pl


def transform(inputs):
    amount = pl.when(pl.col("amount_exact") == "NaN").then(0).otherwise("amount")
    return inputs["lines"].select("order_id", "line_number", amount=amount.cast(pl.Decimal(12, 2)))
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Orders with lines, not captured by anybody: written by hand."""
    world = World(tmp_path)
    orders = world.writer(ORDERS)
    orders.put("orders", (1, 1, "EUR"))
    orders.put("lines", (1, 1, Decimal("1.50")))
    orders.cut()
    return world


def shown(world: World, table: str, messages: list[str]) -> dict[str, list[tuple[str, str]]]:
    [plan] = world.plans()
    lineage = derived_lineage(plan, messages.append)[table]
    return {
        column: [(dep.asset_key.to_user_string(), dep.column_name) for dep in deps]
        for column, deps in lineage.deps_by_column.items()
    }


@pytest.mark.parametrize("transform", [KEPT, MENDED])
def test_texts_belong_to_their_columns(world: World, transform: str) -> None:
    world.derive(PRICED, TABLES, MINDING, transform)
    messages: list[str] = []
    names = ("order_id", "line_number", "amount")
    lines = "shop/orders/current/lines"
    assert shown(world, "priced", messages) == {name: [(lines, name)] for name in names}
    assert messages == []
    # The shift asks the same and gets the same.
    [plan] = world.plans()
    schema = pl.Schema(
        {
            "order_id": pl.Int64(),
            "line_number": pl.Int32(),
            "amount": pl.Decimal(12, 2),
            "amount_exact": pl.String(),
        }
    )
    assert columns_read(plan, {"lines": schema}) == {"lines": frozenset(names)}


def test_what_cannot_be_planned_may_be_made_of_everything(world: World) -> None:
    world.derive(PRICED, TABLES, MINDING, "def transform(inputs):\n    raise ValueError('no')\n")
    [plan] = world.plans()
    messages: list[str] = []
    assert derived_lineage(plan, messages.append) == {}
    assert "are not known" in messages[0]
    schema = pl.Schema({"order_id": pl.Int64(), "amount": pl.Int64(), "amount_exact": pl.String()})
    assert columns_read(plan, {"lines": schema}) == {"lines": frozenset({"order_id", "amount"})}


def test_without_an_input_nothing_is_known_yet(world: World) -> None:
    world.derive()
    [plan] = world.plans()
    messages: list[str] = []
    assert derived_lineage(plan, messages.append) == {}
    assert messages == []
    customers = world.writer(CUSTOMERS)
    customers.put("customers", (1, "north"))
    customers.cut()
    found = shown(world, "spending", messages)
    assert found["total"] == [("shop/orders/current/lines", "amount")]
    assert found["region"] == [("shop/customers/current/customers", "region")]
    assert messages == []
