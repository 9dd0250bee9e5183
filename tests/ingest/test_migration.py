"""Migrations that do not apply by themselves: one table is parked, and its changes are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from mesh_assets.cdc.parking import ParkingLog
from mesh_assets.cdc.source import Source
from mesh_assets.shift.report import BatchReport, Silent
from tests.crash.world import World
from tests.ingest.capture import assert_equal, drain, execute


@dataclass(frozen=True)
class Migration:
    """A migration that is refused.

    Attributes:
        table: the table of the product.
        statements: what is done.
        seen: what is said of it by a shift that meets it in the stream.
        found: what the next one says, which finds it in the catalog.
        changes: made after it.
        back: takes it back, where the same table can be had again.
        unfit: why what was parked cannot land even then, so that the table has to be read again; "": it can.
    """

    table: str
    statements: Sequence[str]
    seen: str
    found: str
    changes: Sequence[str]
    back: Sequence[str] = ()
    unfit: str = ""


LINES = (
    "delete from shop.line where item_id >= 800",
    "insert into shop.line (item_id, number) values (800, 1), (801, 1)",
    "update shop.line set item_id = 900 where item_id = 800",
    "delete from shop.line where item_id = 801",
)
ITEMS = (
    "delete from shop.item where id >= 800",
    "insert into shop.item (id, name) values (800, 'a'), (801, 'b')",
    "update shop.item set id = 900 where id = 800",
    "update shop.item set name = 'other' where id < 10",
    "delete from shop.item where id = 801",
)
SWAP = (
    "alter table shop.item rename column name to aside",
    "alter table shop.item rename column note to name",
    "alter table shop.item rename column aside to note",
)
MIGRATIONS = {
    "type": Migration(
        "line",
        ["alter table shop.line alter column quantity type bigint"],
        "column 'quantity' changed from integer to bigint",
        "column 'quantity' changed from integer to bigint",
        [*LINES, "update shop.line set quantity = 7"],
        ["alter table shop.line alter column quantity type integer"],
    ),
    "dropped": Migration(
        "line",
        ["alter table shop.line drop column remark"],
        "column 'remark' was dropped",
        "column 'remark' was dropped",
        LINES,
    ),
    "renamed": Migration(
        "line",
        ["alter table shop.line rename column remark to comment"],
        "column 'remark' was renamed to 'comment'",
        "column 'remark' was renamed to 'comment'",
        [*LINES, "update shop.line set comment = 'renamed' where item_id < 20"],
        ["alter table shop.line rename column comment to remark"],
        "column 'remark' was dropped",
    ),
    "dropped and added": Migration(
        "item",
        ["alter table shop.item drop column details, add column details jsonb"],
        "columns ['details'] were dropped and added again",
        "column 'details' was dropped",
        ITEMS,
    ),
    "another primary key": Migration(
        "item",
        [
            "update shop.item set name = coalesce(name, '')",
            "alter table shop.item drop constraint item_pkey, add primary key (id, name)",
        ],
        "the replica identity is now ['id', 'name'], the contract's key is ['id']",
        "column 'name' joined the key",
        ITEMS,
        ["alter table shop.item drop constraint item_pkey, add primary key (id)"],
    ),
    "another identity": Migration(
        "line",
        ["alter table shop.line replica identity default"],
        "the replica identity is now ['line_id'], the contract's key is ['item_id', 'number']",
        "they name rows by ['line_id'], the key is ['item_id', 'number']",
        LINES,
        ["alter table shop.line replica identity using index line_place"],
        "they name rows by ['line_id'], the key is ['item_id', 'number']",
    ),
    "names swapped": Migration(
        "item",
        SWAP,
        "column 'name' was renamed to 'note'; column 'note' was renamed to 'name'",
        "column 'name' was renamed to 'note'; column 'note' was renamed to 'name'",
        ITEMS,
        SWAP,
        "were ['id', 'note', ",
    ),
}


class During(Silent):
    """Runs statements at the source when the shift has landed its first changes of a table."""

    def __init__(self, world: World, table: str, statements: Sequence[str]) -> None:
        self.world = world
        self.table = table
        self.statements = [*statements]

    def batch(self, report: BatchReport) -> None:
        if any(one.table == self.table for one in report.tables):
            statements, self.statements = self.statements, []
            execute(self.world.url, *statements)


@pytest.mark.parametrize("migration", MIGRATIONS.values(), ids=MIGRATIONS.keys())
def test_a_refused_migration_parks_one_table_and_keeps_its_changes(
    world: World, migration: Migration
) -> None:
    drain(world.plan)
    name = f"shop.{migration.table}"
    others = [target.table for target in world.plan.targets if target.table != migration.table]
    elsewhere = [f"delete from shop.{table}" for table in others]
    execute(world.url, "update shop.line set quantity = 1", "update shop.item set price = 1")
    changes = [*migration.statements, *migration.changes, *elsewhere]
    result = drain(world.plan, During(world, migration.table, changes))
    assert list(result.refused) == [name]
    assert migration.seen in result.refused[name]
    assert result.parked_count >= 4
    parking = ParkingLog(world.plan.part_uri("parking"))
    assert parking.position(name) > (0, -1)
    assert_equal(world.plan, *others)
    # The next shift finds it refused at once, and keeps on parking.
    execute(world.url, *migration.changes)
    again = drain(world.plan)
    assert list(again.refused) == [name]
    assert migration.found in again.refused[name]
    assert again.parked_count >= 4
    assert ParkingLog(world.plan.part_uri("parking")).position(name) > parking.position(name)
    if not migration.back:
        return
    execute(world.url, *migration.back, *elsewhere)
    last = drain(world.plan)
    if migration.unfit:
        assert migration.unfit in last.refused[name]
        assert "stay in the parking log; to go on without them, drop" in last.refused[name]
        assert_equal(world.plan, *others)
        with Source(world.plan.source) as source:
            source.drop_slot()
        last = drain(world.plan)
    assert not last.refused
    assert_equal(world.plan)
    execute(world.url, *migration.changes[:1])
    assert not drain(world.plan).refused
    assert_equal(world.plan)


def test_changes_made_while_names_were_swapped_do_not_land_in_each_others_columns(world: World) -> None:
    drain(world.plan)
    execute(world.url, *SWAP, "update shop.item set name = 'was a note'", *SWAP)
    result = drain(world.plan)
    assert list(result.refused) == ["shop.item"]
    assert "were ['id', 'note', " in result.refused["shop.item"]
    assert result.parked_count > 0
    assert_equal(world.plan, "line", "badge")
