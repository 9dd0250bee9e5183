"""Products made anew from the logs, held against what stands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import partial
from itertools import pairwise
from pathlib import Path
from threading import Event

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from mesh_assets import failpoint
from mesh_assets.derive import rebuild as rebuilding
from mesh_assets.derive.plan import DerivePlan
from mesh_assets.derive.rebuild import rebuild
from mesh_assets.derive.table import OwnTable
from mesh_assets.lake.current import Current
from mesh_assets.lake.fold import Fold, fold
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.upkeep import vacuum
from mesh_assets.lake.version import VersionLog, VersionRow
from mesh_assets.lineage.completeness import explain
from mesh_assets.lineage.reconcile import close_dead
from mesh_assets.lineage.recorder import Recorder
from mesh_assets.names import CURRENT, ProductName, lake_dataset
from mesh_assets.quality.gate import Gate
from mesh_assets.shift.plan import Target
from tests.derive.world import (
    CUSTOMERS,
    FOLDING,
    ORDERS,
    SPENDING,
    SPENDING_TABLES,
    SPENDING_TRANSFORM,
    World,
)
from tests.waiting import PATIENCE_SECONDS


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


def damage(
    world: World, name: ProductName, table: str, column: str, value: object, row_count: int = 1
) -> None:
    """Write another value into the first rows of each file of a current table, as a faulty program might."""
    current = Current.open(world.mesh.layout.table(name, CURRENT, table))
    for file in current.table.files():
        path = Path(current.table.storage.address(file.path))
        rows = pq.read_table(path)
        values = rows.column(column).to_pylist()
        values[:row_count] = [value] * len(values[:row_count])
        place = rows.schema.get_field_index(column)
        pq.write_table(rows.set_column(place, column, pa.array(values, rows.schema.field(column).type)), path)


def command(world: World, *arguments: str, dies_at: str = "") -> subprocess.CompletedProcess[str]:
    """Run ``mesh`` as a process."""
    environment = {
        "MESH_PRODUCTS": str(world.products),
        "MESH_LAKE": world.mesh.settings.lake_root,
        "MESH_FAILPOINT": dies_at,
    }
    return subprocess.run(
        [sys.executable, "-c", "from mesh_assets.cli import main; main()", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )


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
    assert explain(world.mesh.layout, SPENDING, SPENDING_TABLES).complete


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
    mesh = partial(command, world)
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


# -- the swap ---------------------------------------------------------------------------------------


def currencies(world: World) -> tuple[int, set[str]]:
    """How many orders a reader sees, and their currencies."""
    rows = world.mesh.open(f"{ORDERS}.orders").polars()
    return rows.height, set(rows["currency"])


OLD, NEW = (40, {"XXX"}), (40, {"EUR"})
"""What :func:`currencies` are while every row is damaged, and once the table was rebuilt."""


def test_a_rebuild_that_is_killed_before_its_commit_changes_nothing(world: World) -> None:
    damage(world, ORDERS, "orders", "currency", "XXX", 40)
    current = Current.open(world.mesh.layout.table(ORDERS, CURRENT, "orders"))
    standing = {file.path for file in current.table.files()}
    killed = command(world, "rebuild", str(ORDERS), dies_at="swap.moved")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # What was to take its place lies there already.
    folder = Path(current.table.uri)
    assert {file.name for file in folder.glob("*.parquet")} > standing
    current.refresh()
    assert {file.path for file in current.table.files()} == standing
    assert currencies(world) == OLD
    product = world.mesh.product(str(ORDERS))
    done = rebuild(world.mesh.layout, product, None)
    assert {one.table: dict(one.op_count) for one in done.tables} == {"orders": {"u": 40}, "lines": {}}
    assert rebuild(world.mesh.layout, product, None).equal
    assert currencies(world) == NEW
    # What the killed one left behind goes with the rest that nothing refers to.
    current.refresh()
    assert vacuum(current.table, grace_seconds=0.0) == 2 * len(standing)
    assert [file.name for file in folder.glob("*.parquet")] == [file.path for file in current.table.files()]
    assert_frame_equal(
        world.rows(ORDERS, "orders"),
        world.writer(ORDERS).frame("orders").sort("order_id"),
        check_column_order=False,
    )


def test_the_swap_of_a_rebuild_that_is_killed_after_it_is_explained(world: World) -> None:
    damage(world, ORDERS, "orders", "currency", "XXX", 40)
    killed = command(world, "rebuild", str(ORDERS), dies_at="swap.committed")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert currencies(world) == NEW
    layout, current = world.mesh.layout, world.mesh.layout.table(ORDERS, CURRENT, "orders")
    swap = Current.open(current).table.version

    def waiting() -> list[tuple[str, int]]:
        # The writer of this product tells no lineage.
        return [(one.uri, one.version) for one in explain(layout, ORDERS, ["orders"]).pending]

    assert waiting() == [(current, swap)]
    # As the enterprise catalog does.
    with Recorder(layout.lineage(), log=print) as recorder:
        [closed] = close_dead(layout.lineage(), recorder)
    assert (closed.job, closed.outputs) == ("orders.orders.fold", (lake_dataset(current),))
    assert waiting() == []
    assert explain(layout, ORDERS, ["orders"]).unlisted == ()
    assert (current, swap) not in [
        (one.uri, one.version) for one in explain(layout, ORDERS, ["orders"]).unexplained
    ]


def test_a_reader_beside_a_rebuild_sees_the_old_rows_or_the_new(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Many files take the place of many.
    monkeypatch.setattr(rebuilding, "fold", partial(fold, file_rows=5))
    product = world.mesh.product(str(ORDERS))

    def read(begun: Event, ended: Event) -> list[tuple[int, set[str]]]:
        seen = [currencies(world)]
        begun.set()
        while not ended.is_set():
            seen.append(currencies(world))
        return [*seen, currencies(world)]

    reach, at_the_swap = failpoint.reach, []

    def beside(point: str) -> None:
        if point == "swap.moved":
            at_the_swap.append(currencies(world))
        reach(point)

    monkeypatch.setattr(failpoint, "reach", beside)
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            damage(world, ORDERS, "orders", "currency", "XXX", 40)
            before = world.mesh.open(f"{ORDERS}.orders").lazy
            begun, ended = Event(), Event()
            reading = pool.submit(read, begun, ended)
            try:
                assert begun.wait(60)
                assert not rebuild(world.mesh.layout, product, None).equal
            finally:
                ended.set()
            seen = reading.result()
            assert [one for one in seen if one not in (OLD, NEW)] == []
            changes = [after for before, after in pairwise(seen) if after != before]
            assert (seen[0], changes) == (OLD, [NEW])
            # What was opened before is still readable, as it was.
            assert set(before.collect()["currency"]) == {"XXX"}
    assert at_the_swap == [OLD] * 3
    assert len(Current.open(world.mesh.layout.table(ORDERS, CURRENT, "orders")).table.files()) == 8


def test_a_column_that_was_not_folded_yet_is_not_lost(world: World) -> None:
    damage(world, ORDERS, "orders", "currency", "XXX")
    orders = world.writer(ORDERS)
    orders.logs["orders"].add_columns([pa.field("note", pa.string())])
    orders.tables["orders"] = orders.tables["orders"].append(pa.field("note", pa.string()))
    orders.put("orders", (1, 1, "EUR", "in a hurry"))
    orders.cut()
    assert not rebuild(world.mesh.layout, world.mesh.product(str(ORDERS)), None).equal
    rows = world.rows(ORDERS, "orders")
    assert rows.filter(pl.col("note").is_not_null())["order_id"].to_list() == [1]


def test_of_two_rebuilds_at_once_each_takes_its_own_cut(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(world, ORDERS, "orders", "currency", "XXX")
    orders = world.writer(ORDERS)

    def beside(log: ChangeLog, current: Current, upto: int) -> Fold:
        if not orders.rows["orders"].get((99,)):
            orders.put("orders", (99, 1, "CHF"))
            orders.cut()
            later = ChangeLog.open(log.table.uri)
            fold(later, Current.open(current.table.uri), later.seq)
        return fold(log, current, upto)

    monkeypatch.setattr(rebuilding, "fold", beside)
    rebuild(world.mesh.layout, world.mesh.product(str(ORDERS)), None)
    assert set(world.mesh.open(f"{ORDERS}.orders", as_of=1).polars()["currency"]) == {"EUR"}
    assert set(world.rows(ORDERS, "orders")["currency"]) == {"EUR", "CHF"}


def clearing(table_uri: str) -> None:
    """What a rebuild that is killed while it clears away leaves: its log without its beginning."""
    aside = Path(table_uri, "_rebuild")
    (first, *_) = sorted((aside / "_delta_log").glob("*.json"))
    first.unlink()


def nothing_at_all(table_uri: str) -> None:
    """What a rebuild that is killed before its first commit leaves."""
    for path in Path(table_uri, "_rebuild", "_delta_log").iterdir():
        path.unlink()


@pytest.mark.parametrize("torn", [clearing, nothing_at_all], ids=lambda one: one.__name__)
def test_whatever_a_killed_rebuild_left_is_no_obstacle(world: World, torn: Callable[[str], None]) -> None:
    damage(world, ORDERS, "orders", "currency", "XXX", 40)
    assert command(world, "rebuild", str(ORDERS), dies_at="swap.moved").returncode == -signal.SIGKILL
    torn(world.mesh.layout.table(ORDERS, CURRENT, "orders"))
    product = world.mesh.product(str(ORDERS))
    assert not rebuild(world.mesh.layout, product, None).equal
    assert rebuild(world.mesh.layout, product, None).equal
    assert currencies(world) == NEW
