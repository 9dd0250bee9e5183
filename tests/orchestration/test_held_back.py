"""An input that its rules hold back, and no shift runs: once it is mended, what is made of it moves on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import dagster as dg
import pytest

from mesh_assets.contract.discovery import discover
from mesh_assets.lake.version import VersionLog
from mesh_assets.orchestration.sensor import Scope, Tick
from tests.derive.test_shift import ENOUGH, same
from tests.derive.world import CUSTOMERS, KEYS, ORDERS, SCHEMAS, SPENDING, World, contract_text

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Held:
    """The sensor of the shop's derived products, whose decisions are carried out by real processes."""

    def __init__(self, instance: dg.DagsterInstance, world: World) -> None:
        found = discover(world.products)
        self.instance = instance
        self.scope = Scope.of("shop", [found.products[SPENDING]], found)

    def decision(self) -> tuple[list[dg.RunRequest], str]:
        """What one tick starts, and why it starts nothing."""
        with dg.build_sensor_context(instance=self.instance) as context:
            result = Tick(context, self.scope, {}).result()
        skip = result.skip_reason.skip_message if isinstance(result.skip_reason, dg.SkipReason) else ""
        return list(result.run_requests or []), skip or ""

    def carried_out(self, because: str) -> None:
        """One tick starts one shift for this reason; it is run to its end."""
        (request,), _ = self.decision()
        assert request.tags["mesh/reason"] == because
        done = subprocess.run(
            [sys.executable, "-m", "tests.orchestration.deriving", "shop", json.dumps(dict(request.tags))],
            env=os.environ | {"DAGSTER_HOME": self.instance.root_directory},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Orders that consumers take only while there are more than seventy lines."""
    world = World(tmp_path)
    monkeypatch.setenv("MESH_HOME", str(world.folder / "home"))
    monkeypatch.setenv("MESH_LAKE", str(world.folder / "lake"))
    monkeypatch.setenv("MESH_PRODUCTS", str(world.products))
    tables = {table: (schema, KEYS[table]) for (owner, table), schema in SCHEMAS.items() if owner == ORDERS}
    contract = contract_text(ORDERS, tables, captured=True, quality={"amount": ENOUGH})
    (world.products / "shop" / "orders" / "contract.yaml").write_text(contract)
    world.derive()
    customers, orders = world.writer(CUSTOMERS), world.writer(ORDERS)
    customers.put("customers", *((number, "north") for number in range(20)))
    orders.put("orders", *((number, number % 10, "EUR") for number in range(40)))
    orders.put("lines", *((number, line, Decimal("1.50")) for number in range(40) for line in range(2)))
    customers.cut()
    orders.cut()
    return world


def made_of(world: World) -> int:
    """The version of the orders that the spending is made of."""
    last = VersionLog(world.mesh.layout.versions(SPENDING)).latest()
    assert last is not None
    return last.parents[str(ORDERS)]


def test_what_was_held_back_moves_on_once_it_is_mended(world: World, instance: dg.DagsterInstance) -> None:
    held = Held(instance, world)
    held.carried_out("they were not derived by this code yet")
    same(world)
    assert held.decision() == ([], "derived products: nothing new")
    orders = world.writer(ORDERS)
    few = [(number, 0) for number in range(20)]
    orders.remove("lines", *few)
    orders.cut()
    held.carried_out("shop.orders has version 2")
    assert made_of(world) == 1
    # No shift runs, and none is started at every tick because of it.
    requests, why = held.decision()
    assert requests == []
    assert "shop.spending was left behind; tried again in" in why
    orders.put("lines", *((*key, Decimal("2.50")) for key in few))
    orders.cut()
    held.carried_out("shop.orders has version 3")
    assert made_of(world) == 3
    same(world)
    assert held.decision() == ([], "derived products: nothing new")
