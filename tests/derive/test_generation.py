"""A table whose columns come to other types, or whose rows to another key, goes on in a new log."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal

from mesh_assets.catalog.enterprise import fold
from mesh_assets.catalog.graph import Graph, Node
from mesh_assets.catalog.local import make, publish
from mesh_assets.checks.statistics import refresh
from mesh_assets.derive import DeriveShift
from mesh_assets.derive.derivation import Derivation
from mesh_assets.derive.rebuild import derived_parity, rebuild
from mesh_assets.derive.table import OwnTable
from mesh_assets.derive.transform import Transformer
from mesh_assets.errors import AsOfRefused, ContractError, Fenced, LakeError, TableMissing, UnknownName
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.table import Table
from mesh_assets.lake.upkeep import Upkeep
from mesh_assets.lake.version import InputPosition, VersionLog, VersionRow
from mesh_assets.lineage.completeness import explain
from mesh_assets.names import CHANGES, Layout, ProductName
from mesh_assets.orchestration.report import Subject
from mesh_assets.status import product_status
from tests.derive.test_crash import change, shift, tear
from tests.derive.test_shift import RULE
from tests.derive.world import (
    CUSTOMERS,
    EAGER,
    FOLDING,
    ORDERS,
    SPENDING,
    SPENDING_TABLES,
    SPENDING_TRANSFORM,
    Listening,
    World,
)

REGIONS = ProductName("shop", "regions")
# Counts become decimals, and what was by customer and currency is by customer.
TABLES_2 = {
    "spending": (
        pa.schema(
            [
                ("customer_id", pa.int64()),
                ("region", pa.string()),
                ("line_count", pa.decimal128(12, 2)),
                ("total", pa.decimal128(18, 2)),
                ("latest", pa.string()),
            ]
        ),
        ("customer_id",),
    ),
    "currencies": (
        pa.schema([("customer_id", pa.int64()), ("currency", pa.string()), ("total", pa.decimal128(18, 2))]),
        ("customer_id",),
    ),
}
LINES_2 = SPENDING_TRANSFORM.replace("cast(pl.Int64)", "cast(pl.Decimal(12, 2))")
TRANSFORM_2 = LINES_2.replace(
    """group_by("customer_id", "currency").agg(
        total""",
    """group_by("customer_id").agg(
        pl.col("currency").min(),
        total""",
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Spending, what is derived of it by region, and some orders."""
    world = World(tmp_path)
    world.derive()
    world.derive(
        REGIONS,
        {"regions": (pa.schema([("region", pa.string()), ("total", pa.decimal128(18, 2))]), ("region",))},
        "    spending: {product: shop.spending, key: {region: region}}\n",
        "import polars as pl\n\ndef transform(inputs):\n"
        "    spent = inputs['spending'].group_by('region').agg(pl.col('total').sum())\n"
        "    return spent.with_columns(pl.col('total').cast(pl.Decimal(18, 2)))\n",
    )
    change(world, random.Random(1))
    return world


def raised(world: World, version: str = "2.0.0") -> None:
    """Give the spending its other types and key."""
    world.derive(tables=TABLES_2, transform=TRANSFORM_2, version=version)


def same(world: World, tables: Mapping[str, tuple[pa.Schema, tuple[str, ...]]], transform: str) -> None:
    """The spending is what a transform makes of the books, in the contract's types."""
    for table, wanted in world.expected(transform, tables).items():
        assert_frame_equal(world.rows(SPENDING, table), wanted, check_column_order=False)
    regions = world.rows(SPENDING, "spending").group_by("region").agg(pl.col("total").sum()).sort("region")
    assert world.rows(REGIONS, "regions").rows() == regions.rows()


def versions(world: World) -> VersionLog:
    return VersionLog(world.mesh.layout.versions(SPENDING))


def latest(world: World) -> VersionRow:
    row = versions(world).latest()
    assert row is not None
    return row


def test_other_types_and_another_key_with_a_raised_major_version(world: World) -> None:
    assert world.shift(FOLDING).refused == {}
    same(world, SPENDING_TABLES, SPENDING_TRANSFORM)
    before = latest(world)
    old = world.mesh.open("shop.spending").polars().sort("customer_id")
    raised(world)
    with pytest.raises(TableMissing, match="not derived yet under its contract as it is now"):
        derived_parity(world.mesh.derive_plan(str(SPENDING)), "spending")
    world.observer = Listening()
    assert world.shift(FOLDING).refused == {}
    same(world, TABLES_2, TRANSFORM_2)
    after = latest(world)
    assert dict(after.generations) == {"spending": 2, "currencies": 2}
    # A log goes on counting where the one before it ended, and the seal covers where it lies.
    assert after.tables["spending"] == before.tables["spending"] + world.changes(SPENDING, "spending").height
    assert (
        after.hash
        == after.digest()
        != VersionRow(
            **{name: getattr(after, name) for name in VersionRow.__slots__} | {"generations": {}}
        ).digest()
    )
    assert any("input 'spending' has columns of other types" in one for one in world.observer.messages)

    # What was is still there, in its own types, by version and by moment.
    assert_frame_equal(
        world.mesh.open("shop.spending", as_of=before.version).polars().sort("customer_id"), old
    )
    found = world.mesh.sql("select sum(line_count) as lines from shop.spending", as_of=before.version)
    assert found.table.schema.field("lines").type != pa.decimal128(38, 2)
    assert world.mesh.open("shop.spending.currencies", as_of=before.version).lazy.collect_schema()[
        "total"
    ] == pl.Decimal(18, 2)

    # A change after it is derived in parts again, by both.
    world.observer = Listening()
    world.writer(ORDERS).put("lines", (1, 1, Decimal("99.00")))
    world.writer(ORDERS).cut()
    assert world.shift(FOLDING).refused == {}
    same(world, TABLES_2, TRANSFORM_2)
    assert not any("shop.spending: recomputed as a whole" in one for one in world.observer.messages)
    for table in TABLES_2:
        assert derived_parity(world.mesh.derive_plan(str(SPENDING)), table).equal


def test_as_of_a_moment_on_either_side(world: World) -> None:
    world.shift()
    before = latest(world)
    raised(world)
    change(world, random.Random(2))
    world.shift()
    after = latest(world)
    assert after.committed_at > before.committed_at
    for moment, row in (
        (before.committed_at, before),
        (after.committed_at - timedelta(microseconds=1), before),
        (after.committed_at, after),
    ):
        cut = world.mesh.cut(SPENDING, moment)
        assert (cut.version, dict(cut.generations)) == (row.version, dict(row.generations))
        kind = world.mesh.open("shop.spending", as_of=moment).lazy.collect_schema()["line_count"]
        assert kind == (pl.Int64 if row is before else pl.Decimal(12, 2))
    with pytest.raises(AsOfRefused):
        world.mesh.cut(SPENDING, after.committed_at + timedelta(days=1))


def test_the_history_of_a_key_goes_back_as_far_as_it_has_the_same_columns(world: World) -> None:
    world.shift()
    before = latest(world)
    key = world.mesh.open("shop.spending").polars()["customer_id"][0]
    assert len(world.mesh.history("shop.spending", str(key))) == 1
    raised(world)
    world.shift()
    found = world.mesh.history("shop.spending", str(key))
    assert [one.op for one in found] == ["c", "c"]
    assert [one.seq for one in found] == sorted(one.seq for one in found)
    assert isinstance(found[0].after["line_count"], int)  # type: ignore[index]
    assert isinstance(found[1].after["line_count"], Decimal)  # type: ignore[index]
    assert len(world.mesh.history("shop.spending", str(key), as_of=before.version)) == 1
    # By another key: each generation by its own.
    now = world.mesh.open("shop.spending.currencies").polars()["customer_id"][0]
    assert len(world.mesh.history("shop.spending.currencies", str(now))) == 1
    both = world.mesh.open("shop.spending.currencies", as_of=before.version).polars().row(0, named=True)
    text = f"customer_id={both['customer_id']},currency={both['currency']}"
    assert len(world.mesh.history("shop.spending.currencies", text, as_of=before.version)) == 1
    with pytest.raises(UnknownName, match="key"):
        world.mesh.history("shop.spending.currencies", {"customer_id": 1, "currency": "EUR"})


def test_everything_beside_it_follows(world: World) -> None:
    world.shift(FOLDING)
    raised(world)
    world.shift(FOLDING)
    layout, product = world.mesh.layout, world.mesh.product(str(SPENDING))
    status = {one.table: one for one in product_status(layout, product).tables}
    assert status["spending"].row_count == world.rows(SPENDING, "spending").height
    assert status["spending"].tail_count == 0
    record = make(layout, world.mesh.discovery, SPENDING)
    tables = {one.name: one for one in record.tables}
    assert tables["spending"].folded_row_count == status["spending"].row_count
    assert tables["spending"].columns["line_count"] == "decimal128(12, 2)"
    assert record.versions[-1].generations == {"spending": 2, "currencies": 2}
    refresh(layout, product, latest(world))
    publish(layout, world.mesh.discovery, SPENDING)
    publish(layout, world.mesh.discovery, REGIONS)
    assert fold(layout).problems == ()
    graph = Graph.load(layout)
    up = graph.tree(Node("shop.spending.spending", "latest"), "upstream", 1)
    assert {str(one.node) for one in up.children} >= {"shop.orders.orders.currency"}
    # What the first contract's transform was made of does not stay beside what the second's is.
    links = [one for one in graph.links if one.target == Node("shop.spending.currencies", "currency")]
    direct = {(str(one.source), one.subtype) for one in links if one.type == "DIRECT"}
    assert direct == {("shop.orders.orders.currency", "AGGREGATION")}
    down = graph.tree(Node("shop.spending.spending", "total"), "downstream", 1)
    assert {str(one.node) for one in down.children} >= {"shop.regions.regions.total"}
    assert world.mesh.open("shop.spending").cut.version == latest(world).version
    explained = explain(layout, SPENDING, ["spending", "currencies"])
    assert explained.unexplained == explained.ambiguous == ()
    assert rebuild(layout, product, world.mesh.derive_plan(str(SPENDING)), dry_run=True).equal


def test_without_a_raised_major_version_it_is_refused_and_what_stands_stays(world: World) -> None:
    world.shift()
    before = latest(world)
    rows = world.rows(SPENDING, "spending")
    raised(world, "1.1.0")
    refused = world.shift().refused
    assert "line_count" in refused[str(SPENDING)]
    assert "2.0.0" in refused[str(SPENDING)] or "major" in refused[str(SPENDING)]
    assert latest(world).version == before.version
    assert_frame_equal(world.mesh.open("shop.spending").polars().sort("customer_id"), rows)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_on_the_way_it_is_there_as_a_whole_or_not_at_all(world: World) -> None:
    chance = random.Random(11)
    assert shift(world) == 0
    for number, point in enumerate(
        ("append.before:1", "append.first:1", "append.middle:1", "version.before:1", "version.after:1"), 2
    ):
        tables, transform = (
            (TABLES_2, TRANSFORM_2) if number % 2 == 0 else (SPENDING_TABLES, SPENDING_TRANSFORM)
        )
        before = latest(world)
        world.derive(tables=tables, transform=transform, version=f"{number}.0.0")
        assert shift(world, point) < 0
        now = latest(world)
        if point != "version.after:1":
            assert now.version == before.version
            world.mesh.open("shop.spending").polars()
        change(world, chance)
        assert shift(world) == 0
        same(world, tables, transform)
        assert latest(world).generation("spending") == number
    # Every version is still what it was.
    rows = versions(world).between(1, latest(world).version)
    for row, before in zip(rows[1:], rows, strict=False):
        assert row.hash == row.digest()
        assert row.previous_hash == before.hash
    for row in rows:
        kind = world.mesh.open("shop.spending", as_of=row.version).polars().schema["line_count"]
        assert kind == (pl.Int64 if row.generation("spending") % 2 else pl.Decimal(12, 2))


def test_what_a_killed_attempt_left_is_no_log_of_a_later_one(world: World) -> None:
    """Begun, given up for the old contract, which goes on, and begun again."""
    world.shift()
    raised(world)
    assert shift(world, "version.before:1") < 0
    world.derive()
    change(world, random.Random(5))
    assert world.shift().refused == {}
    same(world, SPENDING_TABLES, SPENDING_TRANSFORM)
    assert latest(world).generations == {}
    raised(world)
    assert world.shift().refused == {}
    same(world, TABLES_2, TRANSFORM_2)
    generation = latest(world).generation("spending")
    log = ChangeLog.open(world.mesh.layout.table(SPENDING, CHANGES, "spending", generation))
    assert log.after == latest(world).tables["spending"] - log.scan().collect().height
    assert generation == 3


def test_what_a_power_cut_tore_of_a_new_generation_is_derived_again(world: World) -> None:
    world.shift()
    raised(world)
    world.shift()
    tear(world, "versions", "changes/*.g2")
    assert world.shift().refused == {}
    same(world, TABLES_2, TRANSFORM_2)
    assert (latest(world).version, latest(world).generation("spending")) == (2, 2)


def test_where_to_go_on_is_looked_up_when_it_is_this_shifts_turn(world: World) -> None:
    """A shift that waits for another goes on from where that one ends."""
    world.shift()
    raised(world)
    assert shift(world, "version.before:1") < 0
    waiting = world.plans()
    Subject.derived("shop", waiting)
    world.derive()
    change(world, random.Random(5))
    assert world.shift().refused == {}
    before = latest(world)
    raised(world)
    assert DeriveShift(waiting, budget=EAGER, observer=world.observer).run().refused == {}
    same(world, TABLES_2, TRANSFORM_2)
    for table in TABLES_2:
        log = ChangeLog.open(
            world.mesh.layout.table(SPENDING, CHANGES, table, latest(world).generation(table))
        )
        assert log.after == before.tables[table]
    log = ChangeLog.open(world.mesh.layout.table(SPENDING, CHANGES, "spending", 2))
    assert log.after < before.tables["spending"]
    target = world.plans()[0].targets[0].at(world.mesh.layout, 2)
    with pytest.raises(Fenced, match="goes on from _seq"):
        OwnTable.open(world.plans()[0], target, None, before)


def test_a_moment_before_a_swap_at_which_a_row_was_released(world: World) -> None:
    """The row keeps its moment, at which the other table lay in its earlier generation."""
    customers, orders = world.writer(CUSTOMERS), world.writer(ORDERS)
    orders.put("orders", (1000, 1000, "OLD"))
    orders.put("lines", (1000, 1, Decimal("99.00")))
    orders.cut()
    world.derive(quality={"currency": RULE.replace("> %d", "= 'OLD'")})
    world.shift()
    while customers.position <= orders.position:
        customers.put("customers", (1000, f"region {customers.position}"))
    customers.cut()
    world.derive(
        tables={**SPENDING_TABLES, "spending": TABLES_2["spending"]}, transform=LINES_2, version="2.0.0"
    )
    assert world.shift().refused == {}
    before, after = versions(world).between(1, 2)
    assert (after.generation("spending"), after.generation("currencies")) == (2, 1)
    assert after.tables["currencies"] > before.tables["currencies"]
    moment = after.committed_at - timedelta(microseconds=1)
    cut = world.mesh.cut(SPENDING, moment)
    assert cut.tables["currencies"] == after.tables["currencies"]
    assert_frame_equal(
        world.mesh.open("shop.spending", as_of=moment).polars().sort("customer_id"),
        world.mesh.open("shop.spending", as_of=before.version).polars().sort("customer_id"),
    )


def test_what_lies_in_an_earlier_generation_is_tended_once_more(world: World) -> None:
    chance = random.Random(4)
    for _ in range(6):
        change(world, chance)
        world.shift()
    before = latest(world)
    rows = world.mesh.open("shop.spending").polars().sort("customer_id")
    old = world.mesh.layout.table(SPENDING, CHANGES, "spending")
    count = len(Table.open(old).files())
    raised(world)
    world.shift(replace(FOLDING, upkeep=Upkeep(run_length=3, commit_count=4)))
    assert latest(world).generation("spending") == 2
    assert len(Table.open(old).files()) < count
    assert_frame_equal(
        world.mesh.open("shop.spending", as_of=before.version).polars().sort("customer_id"), rows
    )
    explained = explain(world.mesh.layout, SPENDING, ["spending", "currencies"])
    assert explained.unexplained == explained.ambiguous == ()


def test_who_knows_the_earlier_contract_writes_no_more(world: World, tmp_path: Path) -> None:
    world.shift()
    plan = world.mesh.derive_plan(str(SPENDING))
    assert {target.generation for target in plan.targets} == {1}
    raised(world)
    world.shift()
    count = ChangeLog.open(plan.targets[0].changes_uri).seq
    with (
        Transformer(tmp_path / "other") as transformer,
        pytest.raises(ContractError, match=r"shop\.spending\.spending has come to other columns"),
    ):
        Derivation(plan, "late", transformer).open()
    assert ChangeLog.open(plan.targets[0].changes_uri).seq == count


def test_versions_never_go_back_to_an_earlier_generation(tmp_path: Path) -> None:
    log = VersionLog(Layout(str(tmp_path)).versions(SPENDING))

    def append(seq: int, generation: int) -> VersionRow:
        return log.append(
            tables={"spending": seq},
            positions={"shop.orders": InputPosition(1)},
            row_count={},
            contract_hash="c",
            code_version="test",
            run_id="test",
            actor="test",
            committed_at=None,
            generations={"spending": generation},
        )

    append(4, 1)
    append(9, 2)
    append(9, 3)
    with pytest.raises(LakeError, match="earlier generation"):
        append(10, 2)
    last = log.latest()
    assert last is not None
    assert log.generations("spending", last) == [(1, 4), (2, 9), (3, 9)]
    second = log.at(2)
    assert second is not None
    assert log.generations("spending", second) == [(1, 4), (2, 9)]
