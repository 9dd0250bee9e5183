"""A derived product's quarantine is replayed on demand, and what may pass is not refused for good."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from mesh_assets.derive import DeriveShift
from mesh_assets.derive.derivation import Derivation
from mesh_assets.errors import Fenced
from mesh_assets.lake.version import VersionLog
from mesh_assets.names import ProductName
from mesh_assets.orchestration.derive import _left_behind
from mesh_assets.quarantine import replay
from mesh_assets.shift.readiness import Promises
from mesh_assets.shift.replay import Desk, Replayed
from tests.derive.test_shift import RATED, RATED_TABLES, RULE
from tests.derive.world import CUSTOMERS, EAGER, ORDERS, SPENDING, SPENDING_TRANSFORM, Listening, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Three customers with an order each."""
    world = World(tmp_path)
    world.derive(quality={"total": RULE % 20})
    customers, orders = world.writer(CUSTOMERS), world.writer(ORDERS)
    customers.put("customers", *((number, "north") for number in range(3)))
    orders.put("orders", *((number, number, "EUR") for number in range(3)))
    orders.put("lines", *((number, 0, Decimal("1.50")) for number in range(3)))
    customers.cut()
    orders.cut()
    return world


def held_back(world: World) -> int:
    """Puts a row in quarantine; returns the version without it."""
    world.shift()
    world.writer(ORDERS).put("lines", (1, 0, Decimal("99.00")))
    world.writer(ORDERS).cut()
    world.shift()
    assert total(world) == Decimal("1.50")
    return version(world)


def total(world: World) -> Decimal:
    found: Decimal = world.rows(SPENDING, "spending").filter(customer_id=1)["total"].item()
    return found


def version(world: World) -> int:
    row = VersionLog(world.mesh.layout.versions(SPENDING)).latest()
    assert row is not None
    return row.version


def test_what_a_replay_without_a_shift_releases_is_readable_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = held_back(world)
    monkeypatch.setattr(Promises, "gate", lambda *_: None)
    answer = replay(world.mesh, "shop.spending")
    assert answer.tables["spending"] == Replayed(released=1, kept=0, row_count=1)
    assert total(world) == Decimal("99.00")
    assert version(world) == before + 1
    # With nothing to release there is nothing to write.
    assert replay(world.mesh, "shop.spending").tables["spending"] == Replayed()
    assert version(world) == before + 1


def test_a_replay_that_another_writer_overtook_is_done_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_back(world)
    monkeypatch.setattr(Promises, "gate", lambda *_: None)
    original: Callable[[Derivation, str], Replayed] = Derivation.replay
    calls: list[str] = []

    def overtaken(self: Derivation, name: str) -> Replayed:
        calls.append(name)
        if len(calls) == 1:
            raise Fenced("another writer has appended")
        return original(self, name)

    monkeypatch.setattr(Derivation, "replay", overtaken)
    answer = replay(world.mesh, "shop.spending.spending")
    assert answer.tables["spending"].released == 1
    assert calls == ["spending", "spending"]
    assert total(world) == Decimal("99.00")


class Watching(Listening):
    """Ends the shift once a replay was answered."""

    def cancelled(self) -> bool:
        return any("replay of quarantine" in text for text in self.messages)


def test_a_replay_waits_for_no_other_product(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = held_back(world)
    world.derive(
        RATED,
        RATED_TABLES,
        "    orders: {product: shop.orders, key: {order_id: order_id}}\n",
        "def transform(inputs):\n    while True:\n        pass\n",
        limits="{max_seconds: 600}",
    )
    monkeypatch.setattr(Promises, "gate", lambda *_: None)
    desk, watching = Desk(world.mesh.layout, SPENDING), Watching()
    request = desk.ask()
    assert DeriveShift(world.plans(), budget=EAGER, observer=watching).run().reason == "cancelled"
    answer = desk.fetch(request)
    assert answer is not None
    assert answer.tables["spending"].released == 1
    assert version(world) == before + 1
    assert total(world) == Decimal("99.00")


DYING = SPENDING_TRANSFORM.replace(
    "def transform(inputs):\n", "def transform(inputs):\n    import os\n\n    os.kill(os.getpid(), 9)\n"
)
FAILING = SPENDING_TRANSFORM.replace(
    "def transform(inputs):\n", "def transform(inputs):\n    raise ValueError('never')\n"
)


def behind(world: World) -> list[ProductName]:
    """What the shift's run would say that it left behind."""
    return _left_behind(world.plans(), world.shift().refused)


@pytest.mark.parametrize(("transform", "expected"), [(DYING, [SPENDING]), (FAILING, [])])
def test_only_what_may_pass_is_left_behind(world: World, transform: str, expected: list[ProductName]) -> None:
    world.derive(transform=transform)
    assert behind(world) == expected


def test_a_lost_file_is_no_refusal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise OSError("stale file handle")

    with monkeypatch.context() as broken:
        broken.setattr(Derivation, "step", lost)
        assert behind(world) == [SPENDING]
    assert behind(world) == []
