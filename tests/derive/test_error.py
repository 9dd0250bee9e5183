"""What a failing transform says may quote values: of restricted columns nobody is told but the owner."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mesh_assets.lake.table import Table
from tests.derive.test_transform import HEAD, INPUTS, TABLES, WRONG
from tests.derive.world import CUSTOMERS, KEYS, SCHEMAS, World, contract_text

CAST = HEAD + (
    "    number = pl.col('region').cast(pl.Int64)\n"
    "    return inputs['customers'].with_columns(region=number.cast(pl.String))\n"
)
RAISED = HEAD + (
    "    first = inputs['customers'].collect().row(0)\n    raise ValueError(f'what is {first[1]}?')\n"
)
UNREAD = HEAD + (
    "    number = pl.col('customer_id').cast(pl.String) + pl.lit('secret-ly')\n"
    "    rows = inputs['customers'].select('customer_id')\n"
    "    return rows.with_columns(region=number.cast(pl.Int64).cast(pl.String))\n"
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Customers whose region is restricted."""
    world = World(tmp_path)
    tables = {"customers": (SCHEMAS[CUSTOMERS, "customers"], KEYS["customers"])}
    contract = contract_text(
        CUSTOMERS, tables, captured=True, quality={"region": "classification: restricted"}
    )
    (world.products / "shop" / "customers" / "contract.yaml").write_text(contract)
    customers = world.writer(CUSTOMERS)
    customers.put("customers", *((number, f"secret-{number}") for number in range(20)))
    customers.cut()
    return world


def known(world: World) -> str:
    """All that is told of the product: what it is refused for, its messages, its lineage."""
    plan = next(one for one in world.plans() if one.name == WRONG)
    events = Table.open(world.mesh.layout.lineage())
    rows = events.read(events.files()).to_pylist()
    return json.dumps([plan.refusal(), world.observer.messages, rows], default=str)


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (CAST, 'transform.py:4: shop.wrong: InvalidOperationError in col("region").strict_cast(Int64)'),
        (RAISED, "transform.py:6: shop.wrong: ValueError"),
    ],
)
def test_values_of_restricted_columns_are_not_told(world: World, transform: str, said: str) -> None:
    world.derive(WRONG, TABLES, INPUTS, transform)
    refused = world.shift().refused["shop.wrong"]
    assert said in refused
    assert "which only" in refused
    assert "errorMessage" in known(world)
    assert "secret" not in known(world)
    file = world.mesh.settings.home / "derive" / "errors" / "shop.wrong.txt"
    assert "secret-" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    world.derive(WRONG, TABLES, INPUTS, HEAD + "    return inputs['customers']\n")
    assert world.shift().refused == {}
    assert not file.exists()


def test_one_that_does_not_read_them_tells_all(world: World) -> None:
    world.derive(WRONG, TABLES, INPUTS, UNREAD)
    assert "secret-ly" in world.shift().refused["shop.wrong"]
