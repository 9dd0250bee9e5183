"""Shifts in this process: what they capture, what they refuse, and what they survive."""

from __future__ import annotations

import json
import shutil
import threading
import time
from dataclasses import replace

import polars as pl
import psycopg
import pytest

from mesh_assets.cdc.gap import GapLog
from mesh_assets.cdc.source import Source
from mesh_assets.errors import Fenced, SlotBusy, SourceDisconnected, SourceNotReady, SourceUnreachable
from mesh_assets.lake.current import Current
from mesh_assets.lake.ledger import Ledger
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.version import VersionLog
from mesh_assets.lineage import store
from mesh_assets.local.postgres import Cluster
from mesh_assets.names import ProductName, lake_dataset, lineage_job
from mesh_assets.shift.plan import CapturePlan
from mesh_assets.shift.report import BatchReport, ShiftResult, Silent, VersionReport
from tests.crash import workload
from tests.crash.world import PRODUCT, World, plan_for
from tests.ingest import capture
from tests.ingest.capture import QUICK, assert_equal, drain, log_of


def execute(world: World, *statements: str) -> None:
    """Run statements at the source, each in its own transaction."""
    capture.execute(world.url, *statements)


def test_snapshot_then_changes_equal_the_source(world: World) -> None:
    first = drain(world.plan)
    assert first.snapshot_row_count > 0
    assert first.reason == "idle"
    assert_equal(world.plan)
    world.application.truncates = False
    world.application.transact(200)
    second = drain(world.plan)
    assert second.row_count > 0
    assert second.snapshot_row_count == 0
    assert_equal(world.plan)


def test_versions_cover_every_change_and_chain(world: World) -> None:
    drain(world.plan)
    world.application.transact(50)
    drain(world.plan)
    versions = VersionLog.open(world.plan.layout.versions(world.plan.products[0]))
    latest = versions.latest()
    assert latest is not None
    assert latest.tables == {one.table: log_of(world.plan, one.table).seq for one in world.plan.targets}
    rows = versions.between(1, latest.version)
    assert [row.digest() for row in rows] == [row.hash for row in rows]
    assert [row.previous_hash for row in rows] == ["", *(row.hash for row in rows[:-1])]
    assert sum(sum(row.row_count.values()) for row in rows) == sum(seq + 1 for seq in latest.tables.values())


def test_lineage_tells_each_version_and_the_end(world: World) -> None:
    layout = world.plan.layout
    # Followed from its beginning, it has its files in the order of the log, whatever the clock says.
    table = store.open_or_create(layout.lineage())
    assert table.files() == []
    for _ in range(3):
        drain(world.plan)
        world.application.transact(30)
        table.refresh()
        table.files()
    events = pl.DataFrame(table.read()).filter(pl.col("job_name") == "app.capture")
    runs = events.partition_by("run_id", maintain_order=True)
    assert len(runs) == 3
    for run in runs:
        kinds = run["event_type"].to_list()
        assert (kinds[0], {*kinds[1:-1]}, kinds[-1]) == ("START", {"RUNNING"}, "COMPLETE")
    told = []
    for event in events.filter(pl.col("event_type") == "RUNNING")["event"]:
        outputs = json.loads(event)["outputs"]
        assert lake_dataset(layout.versions(PRODUCT))[1] in [one["name"] for one in outputs]
        made = [one["facets"]["mesh_product"] for one in outputs]
        ((product, number),) = {(one["product"], one["version"]) for one in made}
        told.append((product, number))
    latest = VersionLog.open(layout.versions(PRODUCT)).latest()
    assert latest is not None
    assert latest.version >= 3
    assert told == [(str(PRODUCT), number) for number in range(1, latest.version + 1)]


def test_an_empty_table_is_captured_and_takes_its_first_row(world: World) -> None:
    execute(world, "truncate shop.badge")
    drain(world.plan)
    assert log_of(world.plan, "badge").seq == -1
    execute(world, "insert into shop.badge (code) values ('first')")
    drain(world.plan)
    assert log_of(world.plan, "badge").seq == 0
    assert_equal(world.plan)


def test_a_transaction_larger_than_a_batch(world: World) -> None:
    drain(world.plan)
    execute(
        world,
        "insert into shop.line select g, 1, g, 'bulk' from generate_series(1000, 6000) g",
        "update shop.line set quantity = quantity + 1 where item_id >= 1000",
    )
    result = drain(world.plan)
    assert result.batch_count > 2
    assert_equal(world.plan)


def test_changes_committed_during_the_snapshot_land_once(world: World) -> None:
    class Writing(Silent):
        def message(self, text: str) -> None:
            world.application.transact(15)

    drain(world.plan, Writing())
    assert_equal(world.plan)


def test_a_second_shift_leaves_the_first_alone(world: World) -> None:
    errors: list[SlotBusy] = []

    class Second(Silent):
        def message(self, text: str) -> None:
            # During the very first snapshot, when the slot is not even in use.
            if not errors:
                with pytest.raises(SlotBusy) as busy:
                    drain(world.plan, budget=replace(QUICK, claim_seconds=0.1))
                errors.append(busy.value)

    drain(world.plan, Second())
    assert "another shift" in str(errors[0])
    # It has not begun, so nothing of it has failed either.
    events = store.read(world.plan.layout.lineage(), job=lineage_job("shop", "app", "capture")).collect()
    assert events.get_column("run_id").n_unique() == 1
    assert "FAIL" not in events.get_column("event_type")
    assert_equal(world.plan)


def test_a_second_shift_waits_for_the_first_to_end(world: World) -> None:
    drain(world.plan)
    world.application.transact(20)
    results: list[ShiftResult] = []
    second = threading.Thread(
        target=lambda: results.append(drain(world.plan, budget=replace(QUICK, claim_seconds=60)))
    )

    class First(Silent):
        def batch(self, report: BatchReport) -> None:
            if not second.ident:
                second.start()

    assert drain(world.plan, First()).row_count > 0
    second.join()
    assert results[0].row_count == 0
    assert_equal(world.plan)


def test_a_shift_that_takes_long_to_open_gets_somewhere(world: World) -> None:
    """Its time is that on the stream, or a slow machine would never get beyond opening."""
    drain(world.plan)
    world.application.transact(20)
    budget, results = replace(QUICK, max_seconds=2.0, claim_seconds=60), []
    waiting = threading.Thread(target=lambda: results.append(drain(world.plan, budget=budget)))
    with Source(world.plan.source) as other, other.claim(wait_seconds=0):
        waiting.start()
        time.sleep(budget.max_seconds + 0.5)
    waiting.join()
    assert results[0].row_count > 0
    assert_equal(world.plan)


def test_a_shift_that_catches_up_ends_while_more_comes(world: World) -> None:
    """It takes what was there when it began, folds it, and leaves the rest to others."""
    drain(world.plan)
    world.application.transact(20)
    with Source(world.plan.source) as source:
        _, lsn = source.tip()

    class Busy(Silent):
        def batch(self, report: BatchReport) -> None:
            world.application.transact(5)

    budget = replace(QUICK, catching_up=True, idle_seconds=3600)
    assert drain(world.plan, Busy(), budget).reason == "caught up"
    last = Ledger(world.plan.part_uri("ledger")).latest()
    version = VersionLog(world.plan.layout.versions(PRODUCT)).latest()
    assert last is not None
    assert last.end_lsn >= lsn
    assert version is not None
    for target in world.plan.targets:
        log, current = ChangeLog.open(target.changes_uri), Current.open(target.current_uri)
        assert version.tables[target.table] == log.seq
        assert max(current.folded, log.after) == log.seq
    # Nothing is left to take in: it ends all the same, and the source may forget its WAL.
    drain(world.plan)
    with Source(world.plan.source) as source:
        _, lsn = source.tip()
        assert drain(world.plan, budget=budget).reason == "caught up"
        slot = source.slot()
        assert slot is not None
        assert slot.confirmed_lsn >= lsn
    assert_equal(world.plan)


def test_a_zombie_is_fenced(world: World) -> None:
    drain(world.plan)
    world.application.transact(20)
    woken = threading.Event()

    class Zombie(Silent):
        def version(self, report: VersionReport) -> None:
            # In the middle of a batch the server gives up on us, and another shift takes over.
            if woken.is_set():
                return
            woken.set()
            execute(
                world,
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
                "where datname = current_database() and application_name like 'mesh%'",
            )
            world.application.transact(30)
            drain(world.plan)

    with pytest.raises(Fenced):
        drain(world.plan, Zombie())
    assert woken.is_set()
    assert_equal(world.plan)


def test_a_lost_slot_is_a_gap_that_is_recorded_and_healed(world: World) -> None:
    drain(world.plan)
    with Source(world.plan.source) as source:
        source.drop_slot()
    execute(
        world, "delete from shop.item where id % 2 = 0", "insert into shop.line values (900, 1, 1, 'gap')"
    )
    drain(world.plan)
    gaps = GapLog(world.plan.part_uri("gaps"))
    assert gaps.latest_lsn() > 0
    assert_equal(world.plan)
    world.application.transact(30)
    assert_equal(world.plan)


def test_an_added_column_lands_at_once(world: World) -> None:
    drain(world.plan)
    execute(
        world,
        "alter table shop.item add column colour text",
        "insert into shop.item (id, colour) values (5000, 'red')",
    )
    drain(world.plan)
    log = log_of(world.plan, "item")
    assert "colour" in log.row_schema.names
    last = log.scan(log.seq - 1, log.seq, ["colour", "_schema_version"]).collect().row(0)
    assert last == ("red", 2)
    assert_equal(world.plan)


def test_an_added_column_with_a_default_is_read_again(world: World) -> None:
    drain(world.plan)
    execute(world, "alter table shop.item add column stars int not null default 3")
    world.application.transact(30)
    drain(world.plan)
    drain(world.plan)
    assert_equal(world.plan)


def test_a_column_that_cannot_be_read_again_at_once_is_before_the_shift_ends(world: World) -> None:
    """PostgreSQL gives a snapshot once transactions that were open have ended; nobody may come back soon."""
    drain(world.plan)
    said: list[str] = []
    with psycopg.connect(world.url) as other:
        other.execute("SELECT pg_current_xact_id()")

        class Waiting(Silent):
            def message(self, text: str) -> None:
                said.append(text)
                if "a backfill waits" in text and len(said) > 1:
                    other.rollback()

        execute(world, "alter table shop.item add column stars int not null default 3")
        assert drain(world.plan, Waiting()).reason == "idle"
    assert sum("a backfill waits" in text for text in said) == 2
    assert "shop.item: snapshot begins" in said
    assert_equal(world.plan)


class Truncating(Silent):
    """Empties a table when its snapshot is about to be read, the first time."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.said: list[str] = []

    def message(self, text: str) -> None:
        if "item: snapshot begins" in text and text not in self.said:
            execute(self.world, "truncate shop.item cascade", "insert into shop.item (id) values (7000)")
        self.said.append(text)


def test_a_table_that_is_truncated_while_it_is_read_again(world: World) -> None:
    drain(world.plan)
    execute(world, "alter table shop.item add column stars int not null default 3")
    world.application.transact(30)
    observer = Truncating(world)
    assert drain(world.plan, observer).reason == "idle"
    assert [text.split(" at ")[0] for text in observer.said if "read again" in text] == ["shop.item"]
    assert observer.said.count("shop.item: snapshot begins") == 2
    assert_equal(world.plan)


def test_changes_from_before_an_added_column_land_in_their_old_shape(world: World) -> None:
    drain(world.plan)
    execute(
        world,
        "insert into shop.item (id, name) values (6000, 'before')",
        "alter table shop.item add column colour text",
        "insert into shop.item (id, colour) values (6001, 'red')",
    )
    assert not drain(world.plan).refused
    assert_equal(world.plan)


def test_a_column_with_a_volatile_default_is_read_again(world: World) -> None:
    drain(world.plan)
    execute(world, "alter table shop.item add column token uuid default gen_random_uuid()")
    drain(world.plan)
    assert_equal(world.plan)


def test_a_table_put_in_the_place_of_another_is_read_again(world: World) -> None:
    drain(world.plan)
    execute(
        world,
        "create table shop.other (like shop.line including all)",
        "insert into shop.other values (1, 1, 1, 'other')",
        "alter table shop.other replica identity using index other_number_item_id_idx",
        "begin; alter table shop.line rename to line_old; alter table shop.other rename to line; commit",
    )
    drain(world.plan)
    execute(world, "insert into shop.line values (2, 1, 1, 'after')")
    drain(world.plan)
    assert_equal(world.plan)


def test_a_ledger_that_is_missing_beside_its_logs_is_a_gap(world: World) -> None:
    drain(world.plan)
    shutil.rmtree(world.plan.part_uri("ledger"))
    execute(world, "delete from shop.item where id % 2 = 0")
    drain(world.plan)
    assert GapLog(world.plan.part_uri("gaps")).latest_lsn() > 0
    assert_equal(world.plan)


def test_parked_changes_land_first_once_the_table_is_back(world: World) -> None:
    drain(world.plan)
    without_lines = replace(
        world.plan, targets=tuple(one for one in world.plan.targets if one.table != "line")
    )
    world.application.transact(40)
    parked = drain(without_lines)
    assert parked.parked_count > 0
    world.application.transact(40)
    drain(world.plan)
    assert_equal(world.plan)


def test_a_table_that_loses_its_identity_is_refused_and_the_others_go_on(world: World) -> None:
    drain(world.plan)
    execute(world, "alter table shop.badge replica identity nothing")
    world.application.truncates = False
    execute(world, "insert into shop.item (id, name) values (8000, 'goes on')")
    result = drain(world.plan)
    assert list(result.refused) == ["shop.badge"]
    assert "REPLICA IDENTITY" in result.refused["shop.badge"]
    assert_equal(world.plan, "item", "line")


def test_no_table_with_an_identity_is_an_error(world: World) -> None:
    for table in world.plan.source.tables:
        execute(world, f"alter table {table} replica identity nothing")
    with pytest.raises(SourceNotReady, match="REPLICA IDENTITY NOTHING"):
        drain(world.plan)


def branch_of(world: World, url: str) -> CapturePlan:
    """Another source that feeds a product of its own in the same lake."""
    plan, name = plan_for(url, world.lake), ProductName("shop", "branch")
    targets = tuple(
        replace(
            one,
            name=name,
            changes_uri=plan.layout.table(name, "changes", one.table),
            current_uri=plan.layout.table(name, "current", one.table),
        )
        for one in plan.targets
    )
    source = replace(plan.source, name="branch", publication="mesh_shop_branch")
    return replace(plan, source=source, targets=targets, contract_hashes={name: "0" * 64})


def test_an_unreachable_source_says_so_and_another_goes_on(world: World, postgres: Cluster) -> None:
    drain(world.plan)
    world.application.transact(20)
    away = replace(world.plan, source=replace(world.plan.source, url="postgresql://u:secret@127.0.0.1:1/x"))
    errors: list[SourceUnreachable] = []

    class Meanwhile(Silent):
        def batch(self, report: BatchReport) -> None:
            with pytest.raises(SourceUnreachable) as error:
                drain(away)
            errors.append(error.value)

    url = postgres.create_database("branch")
    try:
        branch = branch_of(world, url)
        workload.create(url)
        drain(branch)
        capture.execute(url, "insert into shop.item (id, name) values (1, 'goes on')")
        assert drain(branch, Meanwhile()).row_count == 1
        assert_equal(branch)
    finally:
        postgres.drop_database("branch")
    assert len(errors) == 1
    assert "127.0.0.1:1" in str(errors[0])
    assert "secret" not in str(errors[0])
    # Nothing is lost meanwhile.
    assert drain(world.plan).row_count > 0
    assert_equal(world.plan)


def test_a_cut_connection_loses_nothing(world: World) -> None:
    drain(world.plan)
    world.application.transact(60)
    cut = threading.Event()

    class Cutting(Silent):
        def batch(self, report: BatchReport) -> None:
            if not cut.is_set():
                cut.set()
                execute(
                    world,
                    "select pg_terminate_backend(active_pid) from pg_replication_slots where active "
                    f"and slot_name = '{world.plan.source.slot}'",
                )

    with pytest.raises(SourceDisconnected):
        drain(world.plan, Cutting(), replace(QUICK, batch_rows=5, idle_seconds=10))
    drain(world.plan)
    assert_equal(world.plan)


def test_cancelling_ends_between_two_batches(world: World) -> None:
    class Cancelling(Silent):
        def __init__(self) -> None:
            self.batches = 0

        def batch(self, report: BatchReport) -> None:
            self.batches += 1

        def cancelled(self) -> bool:
            return self.batches >= 1

    drain(world.plan)
    world.application.transact(100)
    result = drain(world.plan, Cancelling(), replace(QUICK, batch_rows=20))
    assert result.reason == "cancelled"
    assert_equal(world.plan)
