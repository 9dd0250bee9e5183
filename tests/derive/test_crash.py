"""Killed at any commit point, the next derive shift goes on as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import psutil
import pytest
from polars.testing import assert_frame_equal

from mesh_assets.derive import DeriveShift
from mesh_assets.lake.version import VersionLog
from mesh_assets.orchestration.report import Subject
from tests.derive.test_property import minimal
from tests.derive.world import CUSTOMERS, FOLDING, ORDERS, SPENDING, SPENDING_TABLES, World
from tests.waiting import PATIENCE_SECONDS, until

KILLS = (
    "file.written:1",
    "append.before:1",
    "append.first:1",
    "append.middle:1",
    "version.before:1",
    "version.after:1",
    "fold.before:1",
    "fold.written:1",
    "fold.after:1",
    "checkpoint.after:1",
)


def shift(world: World, failpoint: str = "") -> int:
    """Run a shift as a process; returns its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.derive.process", str(world.folder)],
        env=os.environ | {"MESH_FAILPOINT": failpoint},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    if done.returncode not in (0, -signal.SIGKILL):
        pytest.fail(f"the shift failed:\n{done.stdout}\n{done.stderr}")
    return done.returncode


def change(world: World, chance: random.Random) -> None:
    """Change some of everything."""
    customers, orders = world.writer(CUSTOMERS), world.writer(ORDERS)
    customers.put("customers", *((n, chance.choice(["north", "south"])) for n in chance.sample(range(30), 5)))
    orders.put("orders", *((n, chance.randrange(30), "EUR") for n in chance.sample(range(60), 8)))
    lines = [(n, 1, Decimal(chance.randrange(1000)) / 100) for n in chance.sample(range(60), 8)]
    orders.put("lines", *lines)
    gone = chance.choice([*orders.rows["lines"]])
    orders.remove("lines", gone)
    customers.cut()
    orders.cut()


def tear(world: World, *patterns: str) -> None:
    """Leave of the newest commit of some of the spending's tables what a power cut may: its length."""
    product = Path(world.mesh.layout.product(SPENDING))
    for pattern in patterns:
        folders = [*product.glob(pattern)]
        assert folders
        for folder in folders:
            max((folder / "_delta_log").glob("*.json")).write_bytes(bytes(100))


@pytest.mark.parametrize(
    "patterns",
    [("versions",), ("versions", "changes/*"), ("versions", "changes/*", "current/*")],
    ids=lambda patterns: patterns[-1],
)
def test_what_a_power_cut_tore_is_derived_again(tmp_path: Path, patterns: tuple[str, ...]) -> None:
    world, chance = World(tmp_path), random.Random(3)
    world.derive()
    for _ in range(2):
        change(world, chance)
        assert world.shift(FOLDING).refused == {}
    tear(world, *patterns)
    plans = world.plans()
    Subject.derived("shop", plans)  # What the orchestrator does first.
    assert DeriveShift(plans, budget=FOLDING, observer=world.observer).run().refused == {}
    aside = [text for text in world.observer.messages if "moved aside" in text]
    assert any("/versions/" in text for text in aside)
    assert len(aside) == 1 + 2 * (len(patterns) - 1)
    for table, rows in world.expected().items():
        assert_frame_equal(world.rows(SPENDING, table), rows, check_column_order=False)
        minimal(world, SPENDING, table)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_kill_at_each_commit_point_loses_and_doubles_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.derive()
    chance = random.Random(7)
    for point in KILLS:
        change(world, chance)
        # What happens beside the drain needs some commits first.
        for _ in range(30):
            if shift(world, point) == -signal.SIGKILL:
                break
            change(world, chance)
        else:
            pytest.fail(f"the shift never reached {point}")
    change(world, chance)
    assert shift(world) == 0
    for table, rows in world.expected().items():
        assert_frame_equal(world.rows(SPENDING, table), rows, check_column_order=False)
        minimal(world, SPENDING, table)
    versions = VersionLog(world.mesh.layout.versions(SPENDING))
    last = versions.latest()
    assert last is not None
    assert last.parents == {
        str(name): world.writer(name).versions.records.number for name in (CUSTOMERS, ORDERS)
    }
    assert last.tables == {table: world.changes(SPENDING, table).height - 1 for table in SPENDING_TABLES}
    hashes = [row.hash for row in versions.between(1, last.version)]
    assert [row.previous_hash for row in versions.between(1, last.version)] == ["", *hashes[:-1]]


def test_a_killed_shift_leaves_no_transform_behind(tmp_path: Path) -> None:
    world = World(tmp_path)
    mark = tmp_path / "running"
    world.derive(
        transform="import pathlib, time\n\ndef transform(inputs):\n"
        f"    pathlib.Path({str(mark)!r}).write_text(str(__import__('os').getpid()))\n"
        "    while True:\n        time.sleep(0.1)\n"
    )
    change(world, random.Random(1))
    process = subprocess.Popen([sys.executable, "-m", "tests.derive.process", str(world.folder)])

    def running() -> str:
        assert process.poll() is None
        return mark.read_text() if mark.exists() else ""

    try:
        child = psutil.Process(int(until(running, "the transform runs")))
    finally:
        process.kill()
        process.wait()
    child.wait(timeout=PATIENCE_SECONDS)
