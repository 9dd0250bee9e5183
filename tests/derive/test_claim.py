"""One derive shift of a domain at a time: real processes that wait, are killed, or wake up too late."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mesh_assets.derive import DeriveShift
from mesh_assets.errors import ShiftBusy
from mesh_assets.lake.version import VersionLog
from tests.derive.test_property import minimal
from tests.derive.test_shift import same
from tests.derive.world import CUSTOMERS, EAGER, ORDERS, SPENDING, SPENDING_TRANSFORM, World
from tests.waiting import until

SECONDS = 120
WAITING = """\
def transform(inputs):
    import pathlib, time

    pathlib.Path({mark!r}).touch()
    while pathlib.Path({hold!r}).exists():
        time.sleep(0.02)
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A product whose transform waits as long as there is a file ``hold``."""
    world = World(tmp_path)
    customers, orders = world.writer(CUSTOMERS), world.writer(ORDERS)
    customers.put("customers", *((number, "north") for number in range(9)))
    orders.put("orders", *((number, number, "EUR") for number in range(9)))
    customers.cut()
    orders.cut()
    (tmp_path / "hold").touch()
    waiting = WAITING.format(mark=str(tmp_path / "mark"), hold=str(tmp_path / "hold"))
    world.derive(transform=SPENDING_TRANSFORM.replace("def transform(inputs):\n", waiting))
    return world


@contextmanager
def process(world: World, claim_seconds: float) -> Iterator[subprocess.Popen[str]]:
    """A derive shift as a process."""
    command = [sys.executable, "-m", "tests.derive.process", str(world.folder), str(claim_seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def told(process: subprocess.Popen[str], text: str) -> str:
    """Wait until a process says something; all that it said until then."""
    said = ""
    assert process.stdout is not None
    for line in process.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(said)


def scratch(world: World) -> list[Path]:
    """The folders of transforms that run, or ran."""
    return [path for path in (world.mesh.settings.home / "derive" / "scratch").iterdir() if path.is_dir()]


def test_a_second_shift_waits_for_its_turn_or_says_who_is_there(world: World) -> None:
    with process(world, 0) as first:
        until((world.folder / "mark").exists)
        with process(world, 0) as hasty:
            said = told(hasty, "ShiftBusy: another")
            assert f"another shift derives the products of shop: process {first.pid}, run" in said
            assert hasty.wait(SECONDS) == 2
        with process(world, SECONDS) as patient:
            told(patient, "this shift waits for the one")
            (world.folder / "hold").unlink()
            assert first.wait(SECONDS) == 0
            assert patient.wait(SECONDS) == 0
    same(world)
    latest = VersionLog(world.mesh.layout.versions(SPENDING)).latest()
    assert latest is not None
    assert latest.version == 1


def test_what_a_killed_shift_held_is_free_and_swept(world: World) -> None:
    with process(world, 0) as killed:
        until((world.folder / "mark").exists)
        (left,) = scratch(world)
        assert left.stat().st_mode & 0o777 == 0o700
        assert (world.mesh.settings.home / "derive").stat().st_mode & 0o777 == 0o700
        busy = DeriveShift(world.plans(), budget=replace(EAGER, claim_seconds=0.0))
        with pytest.raises(ShiftBusy, match=f"process {killed.pid}"):
            busy.run()
        killed.send_signal(signal.SIGKILL)
        killed.wait(SECONDS)
    assert scratch(world) == [left]
    (world.folder / "hold").unlink()
    assert world.shift().refused == {}
    assert scratch(world) == []
    same(world)


def test_one_that_wakes_up_too_late_is_fenced_all_the_same(world: World) -> None:
    with process(world, 0) as zombie:
        until((world.folder / "mark").exists)
        zombie.send_signal(signal.SIGSTOP)
        (world.folder / "hold").unlink()
        # Another machine, for which the claim does not count.
        elsewhere = [replace(plan, home=world.folder / "elsewhere") for plan in world.plans()]
        assert DeriveShift(elsewhere, budget=EAGER).run().refused == {}
        world.writer(CUSTOMERS).put("customers", (3, "south"))
        world.writer(CUSTOMERS).cut()
        assert DeriveShift(elsewhere, budget=EAGER).run().refused == {}
        height = world.changes(SPENDING, "spending").height
        os.kill(zombie.pid, signal.SIGCONT)
        told(zombie, "it is read anew")
        assert zombie.wait(SECONDS) == 0
    same(world)
    minimal(world, SPENDING, "spending")
    assert world.changes(SPENDING, "spending").height == height
