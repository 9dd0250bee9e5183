"""What happens at a source without a message, and what a long parked table costs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mesh_assets.cdc import parking
from mesh_assets.cdc.decode import Decoder
from mesh_assets.cdc.gap import GapLog
from mesh_assets.cdc.refusal import RefusalLog
from mesh_assets.lake.table import Table
from mesh_assets.local.postgres import Cluster
from mesh_assets.shift.plan import CapturePlan, Target
from mesh_assets.shift.report import BatchReport, Silent
from mesh_assets.status import source_status
from tests.crash import workload
from tests.crash.world import PRODUCT, World, plan_for
from tests.ingest.capture import QUICK, assert_equal, drain, execute, log_of
from tests.ingest.test_bad_input import own_cluster

# -- partitions ---------------------------------------------------------------------------------

MONTHS = """
create schema shop;
create table shop.sale (id int, month int, note text, primary key (id, month)) partition by list (month);
create table shop.sale_1 partition of shop.sale for values in (1);
create table shop.sale_2 partition of shop.sale for values in (2);
insert into shop.sale select n, 1 + n % 2, 'first' from generate_series(1, 100) n;
"""


@pytest.fixture
def sales(database_url: str, tmp_path: Path) -> CapturePlan:
    """A plan over one partitioned table, captured once."""
    execute(database_url, MONTHS)
    plan = plan_for(database_url, tmp_path / "lake")
    changes, current = (plan.layout.table(PRODUCT, kind, "sale") for kind in ("changes", "current"))
    target = Target(PRODUCT, "sale", "shop.sale", ("id", "month"), changes, current)
    plan = replace(plan, source=replace(plan.source, tables=("shop.sale",)), targets=(target,))
    drain(plan)
    assert_equal(plan)
    return plan


@pytest.mark.parametrize(
    "statement", ["drop table shop.sale_1", "alter table shop.sale detach partition shop.sale_1"]
)
def test_a_partition_that_goes_takes_its_rows_with_it(sales: CapturePlan, statement: str) -> None:
    execute(sales.source.url, statement)
    drain(sales)
    assert_equal(sales)
    assert log_of(sales, "sale").scan().filter(_op="d").collect().height == 50


def test_a_partition_that_goes_under_a_running_shift(sales: CapturePlan) -> None:
    execute(sales.source.url, "update shop.sale set note = 'more'")

    class Dropping(Silent):
        done = False

        def batch(self, report: BatchReport) -> None:
            if not self.done:
                self.done = True
                execute(
                    sales.source.url,
                    "drop table shop.sale_1",
                    "alter table shop.sale add column price int",
                    "insert into shop.sale values (1000, 2, 'after', 5)",
                )

    drain(sales, Dropping())
    assert_equal(sales)


def test_a_partition_that_comes_with_rows_brings_them(sales: CapturePlan) -> None:
    execute(
        sales.source.url,
        "create table shop.sale_3 (like shop.sale including all)",
        "insert into shop.sale_3 select n, 3, 'elsewhere' from generate_series(1, 30) n",
        "alter table shop.sale attach partition shop.sale_3 for values in (3)",
    )
    drain(sales)
    assert_equal(sales)


def test_a_partition_that_is_made_empty_costs_nothing(sales: CapturePlan) -> None:
    before = log_of(sales, "sale").table.version
    execute(sales.source.url, "create table shop.sale_4 partition of shop.sale for values in (4)")
    assert drain(sales).snapshot_row_count == 0
    assert log_of(sales, "sale").table.version == before
    execute(sales.source.url, "insert into shop.sale values (1, 4, 'in its month')")
    result = drain(sales)
    assert (result.snapshot_row_count, result.row_count) == (0, 1)
    assert_equal(sales)


# -- a server that was put back -----------------------------------------------------------------


@contextmanager
def kept(cluster: Cluster, folder: Path) -> Iterator[None]:
    """Put the stopped cluster's files back at the end of the block."""
    subprocess.run(["cp", "-a", str(cluster.data), str(folder)], check=True)
    yield
    subprocess.run(["rm", "-rf", str(cluster.data)], check=True)
    subprocess.run(["cp", "-a", str(folder), str(cluster.data)], check=True)


def test_a_source_restored_from_a_copy_is_a_gap(tmp_path: Path) -> None:
    with own_cluster() as cluster:
        url = cluster.create_database("app")
        world = World(url, tmp_path / "lake", seed=3)
        world.application.transact(30)
        drain(world.plan)
        world.application.close()
        cluster.stop()
        with kept(cluster, tmp_path / "copy"):
            cluster.start()
            world.application.reconnect()
            world.application.transact(60)
            execute(url, "select pg_switch_wal()")
            world.application.transact(10)
            drain(world.plan)
            assert_equal(world.plan)
            world.application.close()
            cluster.stop()
        cluster.start()
        world.application.reconnect()
        world.application.transact(5)
        drain(world.plan)
        reasons = Table.open(world.plan.part_uri("gaps")).read()["reason"].to_pylist()
        assert len(reasons) == 1
        assert "put back to an older state" in reasons[0]
        assert_equal(world.plan)
        world.application.transact(20)
        drain(world.plan)
        assert_equal(world.plan)
        assert GapLog(world.plan.part_uri("gaps")).count == 1
        world.close()


# -- parked tables ------------------------------------------------------------------------------


def test_parked_changes_are_read_page_by_page_in_order(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "_PAGE_ROWS", 5)
    monkeypatch.setattr(parking, "_READ_ROWS", 3)
    pages: list[int] = []
    replay = Decoder.replay

    def counting(self: Decoder, oid: int, messages: object) -> None:
        pages.append(messages.num_rows)  # type: ignore[attr-defined]
        replay(self, oid, messages)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "replay", counting)
    drain(world.plan)
    without_items = replace(
        world.plan, targets=tuple(one for one in world.plan.targets if one.table != "item")
    )
    for _ in range(3):
        world.application.transact(30)
        assert drain(without_items, budget=replace(QUICK, batch_rows=40)).parked_count > 0
    assert not pages
    drain(world.plan)
    assert len(pages) > 10
    assert max(pages) <= 5 + 3
    assert_equal(world.plan)


def test_parked_changes_that_fit_no_more_stop_their_table_only(world: World) -> None:
    drain(world.plan)
    execute(
        world.url,
        "alter table shop.line alter column quantity type bigint",
        "insert into shop.line values (900, 900, 5000000000, 'too large for an integer')",
    )
    assert drain(world.plan).parked_count > 0
    execute(
        world.url,
        "delete from shop.line where item_id = 900",
        "alter table shop.line alter column quantity type integer",
        "insert into shop.item (id, name) values (9000, 'goes on')",
    )
    result = drain(world.plan)
    assert list(result.refused) == ["shop.line"]
    assert "another shape" in result.refused["shop.line"]
    assert_equal(world.plan, "item", "badge")


def test_why_a_table_is_parked_is_kept_until_it_is_not(world: World) -> None:
    changes = {one.source_table: one.changes_uri for one in world.plan.targets}

    def parked() -> dict[str, tuple[int, str]]:
        status = source_status(world.plan.layout, "shop", "app", changes, world.plan)
        return {one.source_table: (one.change_count, one.reason) for one in status.parked}

    drain(world.plan)
    assert parked() == {}
    execute(world.url, "alter table shop.line alter column quantity type bigint")
    drain(world.plan)
    assert list(parked()) == ["shop.line"]
    assert parked()["shop.line"][0] == 0
    execute(world.url, "insert into shop.line values (900, 900, 1, 'parked')")
    drain(world.plan)
    count, reason = parked()["shop.line"]
    assert count == 1
    assert "changed from integer to bigint" in reason
    assert list(RefusalLog(world.plan.part_uri("refusals")).standing) == ["shop.line"]
    assert Table.open(world.plan.part_uri("refusals")).read().num_rows == 1, "told once"
    execute(world.url, "alter table shop.line alter column quantity type integer")
    drain(world.plan)
    assert parked() == {}
    assert_equal(world.plan)
    assert workload.TABLES.keys() == changes.keys()
