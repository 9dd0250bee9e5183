"""The enterprise catalog: many small folds, crashes among them, end as one fold of everything."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from mesh_assets.catalog import enterprise, local
from mesh_assets.catalog.canonical import Canonical, Content, Shape
from mesh_assets.catalog.graph import Graph
from mesh_assets.catalog.history import SEGMENT
from mesh_assets.catalog.shape import SHAPES
from mesh_assets.errors import LakeError, LayoutUnknown
from mesh_assets.lake.table import Table
from mesh_assets.lake.upkeep import compact
from mesh_assets.lake.version import InputPosition, VersionLog
from mesh_assets.names import Layout, ProductName
from tests.catalog.world import World, sources

ORDERS = ProductName("sales", "orders")
CUSTOMERS = ProductName("sales", "customers")


@pytest.fixture
def world(tmp_path: Path) -> World:
    """An empty lake."""
    return World(Layout(str(tmp_path / "lake")))


def _bytes(layout: Layout) -> dict[str, Counter[str]]:
    """Hashes of the live data files of every table, with what their names say."""
    found = {}
    for name, shape in SHAPES.items():
        table = Canonical(layout.enterprise(name), shape)
        found[name] = Counter(
            f"{bucket} {one.fingerprint} "
            + hashlib.sha256(Path(layout.enterprise(name), one.file.path).read_bytes()).hexdigest()
            for bucket, one in table.buckets().items()
        )
    return found


def _rebuilt(layout: Layout) -> dict[str, Counter[str]]:
    shutil.rmtree(layout.enterprise("")[:-1])
    enterprise.fold(layout)
    return _bytes(layout)


def _rows(layout: Layout, name: str) -> pa.Table:
    return Canonical(layout.enterprise(name), SHAPES[name]).read()


@pytest.mark.parametrize("seed", range(3))
def test_many_folds_are_one_fold(world: World, seed: int) -> None:
    chance = random.Random(seed)
    for name in world.discovery.products:
        world.publish(name)
    for _ in range(15):
        for _ in range(chance.randrange(1, 5)):
            world.step(chance)
        enterprise.fold(world.layout)
    small, digest = _bytes(world.layout), enterprise.digest(world.layout)
    assert _rebuilt(world.layout) == small
    assert enterprise.digest(world.layout) == digest
    assert not enterprise.fold(world.layout).changed


def _killed(world: World, failpoint: str) -> int:
    """Fold in a process that dies there; its exit code."""
    program = (
        "import sys, os\n"
        "from mesh_assets.catalog import enterprise\n"
        "from mesh_assets.names import Layout\n"
        "enterprise.fold(Layout(sys.argv[1]))\n"
        "os._exit(0)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program, world.layout.root],
        env={**os.environ, "MESH_FAILPOINT": failpoint},
        check=False,
    ).returncode


def test_a_fold_that_is_killed_is_done_again(world: World) -> None:
    chance = random.Random(7)
    for name in world.discovery.products:
        world.publish(name)
    for count in range(1, 7):
        for _ in range(6):
            world.step(chance)
        world.version(ORDERS)
        world.publish(ORDERS)
        world.emit(*world.derivation(ORDERS, count % 3))
        assert _killed(world, f"file.written:{count}") == -signal.SIGKILL, count
        if count % 3 == 0:
            enterprise.fold(world.layout)
    enterprise.fold(world.layout)
    small = _bytes(world.layout)
    assert _rebuilt(world.layout) == small


def test_every_version_is_there_once(world: World) -> None:
    names = sources(world.discovery)[:3]
    for number, name in enumerate(names):
        for _ in range(local.VERSION_COUNT + 5 + number):
            world.version(name)
        world.publish(name)
    enterprise.fold(world.layout)
    world.version(names[0])
    enterprise.fold(world.layout)  # Not published yet.
    for name in names:
        world.version(name)
        world.publish(name)
    enterprise.fold(world.layout)
    rows = _rows(world.layout, "changes").to_pylist()
    for name in names:
        log = VersionLog.open(world.layout.versions(name))
        mine = [row for row in rows if row["product"] == str(name)]
        held = log.between(1, log.records.number)
        assert [row["version"] for row in mine] == [row.version for row in held]
        assert [row["hash"] for row in mine] == [row.hash for row in held]
        for row, version in zip(mine, held, strict=True):
            assert dict(row["tables"]) == dict(version.tables)
            assert dict(row["row_count"]) == dict(version.row_count)
            assert row["change_count"] == sum(version.row_count.values())
            assert (row["run_id"], row["actor"]) == (version.run_id, version.actor)
            assert row["committed_at"] == version.committed_at
            positions = {
                one["input"]: InputPosition(one["lsn"], one["ordinal"], one["end_lsn"])
                for one in row["positions"]
            }
            assert positions == dict(version.positions)
        # The first is from the log, as a record carries the newest versions only, the last from the record.
        assert [row["positions"][0]["lsn"] for row in (mine[0], mine[-1])] == [1000, 1000 * len(mine)]


def test_segments_are_sealed_and_never_written_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh_assets.catalog.history.SEGMENT", 8)
    assert SEGMENT > 8
    for _ in range(3):
        for _ in range(7):
            world.version(ORDERS)
        world.publish(ORDERS)
        enterprise.fold(world.layout)
    live = Canonical(world.layout.enterprise("changes"), SHAPES["changes"]).buckets()
    assert [one.file.row_count for name, one in live.items() if "-" in name] == [8, 8]
    before = {name: one.file.path for name, one in live.items() if "-" in name}
    world.version(ORDERS)
    world.publish(ORDERS)
    enterprise.fold(world.layout)
    live = Canonical(world.layout.enterprise("changes"), SHAPES["changes"]).buckets()
    assert {name: one.file.path for name, one in live.items() if "-" in name} == before
    small = _bytes(world.layout)
    assert _rebuilt(world.layout) == small
    assert _rows(world.layout, "changes").num_rows == 22


def test_a_product_that_was_begun_anew_is_read_again(world: World) -> None:
    for _ in range(5):
        world.version(ORDERS)
    world.publish(ORDERS)
    world.version(CUSTOMERS)
    world.publish(CUSTOMERS)
    enterprise.fold(world.layout)
    for count in (3, 5, 8):
        shutil.rmtree(world.layout.versions(ORDERS))
        for _ in range(count):
            row = world.version(ORDERS)
        world.publish(ORDERS)
        enterprise.fold(world.layout)
        mine = [one for one in _rows(world.layout, "changes").to_pylist() if one["product"] == "sales.orders"]
        assert (len(mine), mine[-1]["hash"]) == (count, row.hash)
    shutil.rmtree(world.layout.product(CUSTOMERS))
    enterprise.fold(world.layout)
    assert set(_rows(world.layout, "changes")["product"].to_pylist()) == {"sales.orders"}
    assert set(_rows(world.layout, "datasets")["product"].to_pylist()) == {"sales.orders"}
    small = _bytes(world.layout)
    assert _rebuilt(world.layout) == small


def test_lineage_that_upkeep_moved_is_not_counted_twice(world: World) -> None:
    for number in range(6):
        _, events = world.capture(ORDERS, number)
        world.emit(*events)
        enterprise.fold(world.layout)
    uses = _rows(world.layout, "edges").num_rows
    assert uses == 6
    assert _rows(world.layout, "runs").num_rows == 6
    compact(Table.open(world.layout.lineage()), small_bytes=2**20, run_length=2)
    enterprise.fold(world.layout)
    assert _rows(world.layout, "edges").num_rows == uses
    small = _bytes(world.layout)
    assert _rebuilt(world.layout) == small


def test_a_run_is_as_its_events_say_in_any_order(world: World, tmp_path: Path) -> None:
    run, events = world.capture(ORDERS, 3)
    events += [run.complete(world.tick()), run.fail(ValueError("too late"), world.tick())]
    found = []
    for number in range(4):
        layout = Layout(str(tmp_path / f"lake{number}"))
        other = World(layout, world.discovery)
        random.Random(number).shuffle(events)
        for one in events:
            other.emit(one)
            enterprise.fold(layout)
        found.append(_rows(layout, "runs").to_pylist())
    assert all(one == found[0] for one in found)
    (row,) = found[0]
    assert (row["state"], row["error"], row["kind"]) == ("FAIL", "too late", "CAPTURE")
    assert row["started_at"] < row["ended_at"] == row["seen_at"]


def test_what_is_broken_is_told_and_stops_nothing_else(world: World) -> None:
    for name in (ORDERS, CUSTOMERS):
        for _ in range(local.VERSION_COUNT + 2):
            world.version(name)
        world.publish(name)
    (finance,) = [name for name in world.discovery.products if str(name) == "finance.accounts"]
    world.publish(finance)
    file = Path(world.layout.catalog(finance), local.RECORD_FILE)
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"format": 99}))
    shutil.rmtree(world.layout.versions(CUSTOMERS))
    summary = enterprise.fold(world.layout)
    assert summary.product_count == 2
    newer, gone = summary.problems
    assert "format 99" in newer
    assert "sales.customers" in gone
    assert _rows(world.layout, "changes").num_rows == local.VERSION_COUNT + 2
    file.write_text("{}")
    with pytest.raises(LakeError, match="damaged"):
        local.read(world.layout, finance)
    world.version(CUSTOMERS)
    world.publish(CUSTOMERS)
    world.publish(finance)
    assert enterprise.fold(world.layout).problems == ()
    assert enterprise.fold(world.layout).problems == ()


def _earlier(world: World) -> None:
    """Every table as an earlier program might have left it, up to the newest lineage."""
    newest = Table.open(world.layout.lineage()).version + 1
    for name, shape in SHAPES.items():
        uri = world.layout.enterprise(name)
        shutil.rmtree(uri, ignore_errors=True)
        first = shape.schema.field(0)
        fields = [(first.name, first.type), ("before", pa.string())]
        earlier = Shape(name, pa.schema(fields), (first.name,), ("before",))
        rows = pa.table({first.name: ["x"], "before": ["y"]})
        held = Canonical(uri, earlier)
        held.replace({"00": Content(rows), "all": Content(rows)}, transactions={"lineage": newest})


def _eventful(world: World) -> None:
    chance = random.Random(11)
    for name in world.discovery.products:
        world.version(name)
        world.publish(name)
        world.check(name, "passed")
        world.publish(name)
    for _ in range(20):
        world.step(chance)
    world.emit(*world.derivation(ORDERS, 1))


def test_tables_of_an_earlier_program_are_made_anew(world: World) -> None:
    _eventful(world)
    _earlier(world)
    # Not an empty catalog, nor half a one: whoever reads is told.
    with pytest.raises(LayoutUnknown, match=r"earlier version of this program: columns .*before"):
        Graph.load(world.layout)
    assert enterprise.fold(world.layout).changed
    small = _bytes(world.layout)
    assert not enterprise.fold(world.layout).changed
    assert Graph.load(world.layout).datasets
    for name, shape in SHAPES.items():
        assert Table.open(world.layout.enterprise(name)).statistics == shape.statistics
    assert _rebuilt(world.layout) == small


def test_rows_of_an_earlier_layout_are_made_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the columns are the same: what they mean may have changed."""
    _eventful(world)
    enterprise.fold(world.layout)
    small = _bytes(world.layout)
    for name, shape in SHAPES.items():
        monkeypatch.setitem(SHAPES, name, replace(shape, layout=2))
        monkeypatch.setattr(f"mesh_assets.catalog.enterprise.{name.upper()}", SHAPES[name])
    with pytest.raises(LayoutUnknown, match="layout 1, not 2"):
        enterprise.digest(world.layout)
    assert enterprise.fold(world.layout).changed
    assert _bytes(world.layout) == small
    assert not enterprise.fold(world.layout).changed


def test_a_table_of_a_newer_program_is_left_alone(world: World) -> None:
    world.publish(ORDERS)
    enterprise.fold(world.layout)
    shape = SHAPES["checks"]
    uri = world.layout.enterprise("checks")
    newer = replace(shape, schema=shape.schema.append(pa.field("more", pa.string())), layout=2)
    rows = newer.schema.empty_table()
    Canonical(uri, newer, folding=True).replace({"00": Content(rows)})
    before = Table.open(uri).version
    for read in (enterprise.fold, enterprise.digest):
        with pytest.raises(
            LayoutUnknown, match=r"has layout 2; this program knows layouts up to 1\n.*update"
        ):
            read(world.layout)
    assert Table.open(uri).version == before


def test_two_programs_make_earlier_tables_anew_at_once(world: World) -> None:
    _eventful(world)
    _earlier(world)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: enterprise.fold(world.layout), range(4)))
    small = _bytes(world.layout)
    assert not enterprise.fold(world.layout).changed
    assert _rebuilt(world.layout) == small


def test_a_table_that_is_made_anew_is_not_read_before_it_is_whole(world: World) -> None:
    _eventful(world)
    _earlier(world)
    assert _killed(world, "file.written") == -signal.SIGKILL
    with pytest.raises(LayoutUnknown, match="is being made anew"):
        Graph.load(world.layout)
    enterprise.fold(world.layout)
    small = _bytes(world.layout)
    assert _rebuilt(world.layout) == small


def test_two_folds_at_once(world: World) -> None:
    for name in world.discovery.products:
        world.version(name)
        world.publish(name)
        _, events = world.capture(name, 1)
        world.emit(*events)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: enterprise.fold(world.layout), range(4)))
    small = _bytes(world.layout)
    assert _rebuilt(world.layout) == small


def test_an_empty_lake(world: World) -> None:
    summary = enterprise.fold(world.layout)
    assert summary.product_count == 0
    assert summary.problems == ()
    assert enterprise.exists(world.layout)
    assert not enterprise.fold(world.layout).changed
