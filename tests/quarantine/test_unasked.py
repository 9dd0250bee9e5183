"""What a shift releases by itself, as a contract's rule is mended, is told to who asks for it later."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from mesh_assets.cli import quarantine as command
from mesh_assets.cli.status import product_record, show
from mesh_assets.lake.version import VersionLog
from mesh_assets.quarantine import replay
from mesh_assets.shift.replay import Replayed
from tests.derive.test_shift import RULE, outcome
from tests.derive.world import CUSTOMERS, ORDERS, SPENDING, World


def test_a_replay_says_what_the_new_contract_released_already(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.derive(quality={"total": RULE % 20})
    customers, orders = world.writer(CUSTOMERS), world.writer(ORDERS)
    customers.put("customers", *((number, "north") for number in range(3)))
    orders.put("orders", *((number, number, "EUR") for number in range(3)))
    orders.put("lines", (0, 0, Decimal("1.50")), (1, 0, Decimal("99.00")), (2, 0, Decimal("999.00")))
    customers.cut()
    orders.cut()
    world.shift()
    assert world.rows(SPENDING, "spending")["customer_id"].to_list() == [0]
    # The rule was too strict; the next shift sees that, and nobody had to ask.
    world.derive(quality={"total": RULE % 100}, version="2.0.0")
    world.shift()
    row = VersionLog(world.mesh.layout.versions(SPENDING)).latest()
    assert row is not None
    assert sorted(world.rows(SPENDING, "spending")["customer_id"].to_list()) == [0, 1]
    answer = replay(world.mesh, "shop.spending")
    # The rule is about a column of both tables.
    released = Replayed(0, 1, 0, before=1, released_by=row.run_id)
    assert answer.tables == {"spending": released, "currencies": released}
    assert answer.tables["spending"].sentence() == (
        f"0 released, 1 still failing (1 released before by run {row.run_id})"
    )
    assert command.release(world.mesh, "shop.spending", timeout_seconds=120, as_json=False) == 1
    # Under another contract that is past.
    world.derive(quality={"total": RULE % 100}, version="2.1.0")
    world.shift()
    assert replay(world.mesh, "shop.spending").tables["spending"] == Replayed(0, 1, 0)


@pytest.mark.parametrize("width", [100, 140])
def test_status_shows_what_is_in_quarantine_and_what_fails(
    tmp_path: Path, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    world = World(tmp_path)
    world.derive(quality={"total": RULE % 20})
    world.writer(CUSTOMERS).put("customers", *((number, "north") for number in range(3)))
    orders = world.writer(ORDERS)
    orders.put("orders", *((number, number, "EUR") for number in range(3)))
    orders.put("lines", (0, 0, Decimal("1.50")), (1, 0, Decimal("99.00")), (2, 0, Decimal("999.00")))
    world.writer(CUSTOMERS).cut()
    orders.cut()
    world.shift()
    outcome(world, "failed")
    found = {one.name: one for one in map(world.mesh.product_status, world.mesh.discovery.products.values())}
    assert [table.quarantined_count for table in found[SPENDING].tables] == [2, 2]
    assert product_record(found[SPENDING])["quarantined_keys"] == 4
    assert found[ORDERS].quarantined_count == 0
    (failing,) = product_record(found[ORDERS])["failing_checks"]
    show(world.mesh, as_json=False)
    shown = capsys.readouterr().out
    assert max(map(len, shown.partition("products")[2].splitlines()[:12])) <= width
    # Every number is whole: the table fits.
    rows = [line.split() for line in shown.splitlines() if "currencies" in line]
    assert rows[0][-1] == "2"
    assert f"{ORDERS} fails a blocking rule: {failing}" in shown
    assert "what is in quarantine, and why: mesh quarantine" in shown
