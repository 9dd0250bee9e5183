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

from mesh_assets.lake.version import VersionLog
from tests.derive.test_property import minimal
from tests.derive.world import CUSTOMERS, ORDERS, SPENDING, SPENDING_TABLES, World

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
        timeout=120,
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


@pytest.mark.slow
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
    try:
        deadline = psutil.time.time() + 60
        while not (mark.exists() and mark.read_text()) and psutil.time.time() < deadline:
            assert process.poll() is None
        child = psutil.Process(int(mark.read_text()))
    finally:
        process.kill()
        process.wait()
    child.wait(timeout=20)
