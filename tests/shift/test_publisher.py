"""A shift publishes its products' records at most so often, and at its end."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from mesh_assets.catalog import local
from mesh_assets.contract.discovery import Discovery
from mesh_assets.lake.version import VersionLog
from mesh_assets.names import Layout, ProductName
from mesh_assets.shift.publisher import Publisher
from mesh_assets.shift.report import Silent, VersionReport
from tests.catalog.world import World
from tests.quarantine.shop import NAME, QUICK, Shop
from tests.waiting import until

ORDERS = ProductName("sales", "orders")


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The newest version in each record that was put in place, in order."""
    found: list[int] = []
    original = local.publish

    def publish(layout: Layout, discovery: Discovery, name: ProductName) -> local.LocalRecord:
        record = original(layout, discovery, name)
        found.append(record.versions[-1].version if record.versions else 0)
        return record

    monkeypatch.setattr(local, "publish", publish)
    return found


def test_records_are_published_every_ten_seconds_at_most(tmp_path: Path, published: list[int]) -> None:
    world, clock = World(Layout(str(tmp_path / "lake"))), Clock()
    product = world.discovery.product(ORDERS)
    with Publisher(world.layout, [product], clock=clock) as publisher:

        def look() -> None:
            """As the shift's loop does; what was begun is done."""
            publisher.write_if_due()
            publisher._settle()

        look()
        assert published == []
        for seconds, expected in ((0, [1]), (9.5, [1]), (0.4, [1]), (0.1, [1, 4]), (9.9, [1, 4])):
            clock.seconds += seconds
            world.version(ORDERS)
            publisher.changed()
            look()
            assert published == expected, clock.seconds
        clock.seconds += 0.1
        look()
        assert published == [1, 4, 5]
        # Nothing has changed since: nothing is written, however long that lasts.
        clock.seconds += 60
        look()
        assert published == [1, 4, 5]
        world.version(ORDERS)
        publisher.finish()
        assert published == [1, 4, 5, 6]
    record = local.read(world.layout, ORDERS)
    assert record is not None
    assert record.versions[-1].version == 6
    assert publisher.messages == []


def test_what_cannot_be_written_is_written_later_though_nothing_more_happens(tmp_path: Path) -> None:
    world, clock = World(Layout(str(tmp_path / "lake"))), Clock()
    product = world.discovery.product(ORDERS)
    in_the_way = Path(world.layout.catalog(ORDERS), local.RECORD_FILE)
    with Publisher(world.layout, [product], clock=clock) as publisher:

        def look(seconds: float) -> None:
            clock.seconds += seconds
            publisher.write_if_due()
            publisher._settle()

        in_the_way.mkdir(parents=True)
        world.version(ORDERS)
        publisher.changed()
        look(0)
        assert "could not be written" in publisher.messages[0]
        in_the_way.rmdir()
        look(9.9)
        assert local.read(world.layout, ORDERS) is None
        look(0.1)
        record = local.read(world.layout, ORDERS)
        assert record is not None
        assert record.versions[-1].version == 1
        assert "is written again" in publisher.messages[1]
        look(10)
        assert publisher.messages[2:] == []


class Watching(Silent):
    """Keeps what it is told of; ends the shift when that is asked for."""

    def __init__(self) -> None:
        self.versions: list[int] = []
        self.done = threading.Event()

    def message(self, text: str) -> None:
        print(text)

    def version(self, report: VersionReport) -> None:
        self.versions.append(report.row.version)

    def cancelled(self) -> bool:
        return self.done.is_set()


@pytest.mark.parametrize("seconds", [0.0, local.PUBLISH_SECONDS])
def test_a_shift_publishes_when_it_is_due_and_at_its_end(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: list[int], seconds: float
) -> None:
    """With no time between its versions twice; with ten seconds between them each of them, and at the end."""
    shop, clock, observer = Shop(database_url, tmp_path / "home"), Clock(), Watching()
    shop.execute("insert into shop.things values (1, 1, 'one')")
    monkeypatch.setattr("mesh_assets.ingest.shift.Publisher", partial(Publisher, clock=clock))
    budget = replace(QUICK, idle_seconds=600)
    with ThreadPoolExecutor(1) as pool:
        shift = pool.submit(shop.drain, observer, budget)
        try:
            # While time stands still only the first version is published before the end.
            told = published if seconds else observer.versions
            for number in range(1, 4):
                until(lambda count=number: shift.done() or len(told) >= count, "the version before")
                clock.seconds += seconds
                shop.execute(f"update shop.things set number = {number + 1} where thing_id = 1")
            until(lambda: shift.done() or len(told) >= 4, "the last version")
        finally:
            observer.done.set()
        shift.result()
    made = observer.versions
    assert len(made) >= 4
    assert len(published) == (5 if seconds else 2)
    assert published[-1] == made[-1]
    newest = VersionLog(shop.plan.layout.versions(NAME)).latest()
    record = local.read(shop.plan.layout, NAME)
    assert newest is not None
    assert record is not None
    assert record.versions[-1].version == newest.version == made[-1]


def test_the_interval_is_ten_seconds() -> None:
    assert local.PUBLISH_SECONDS == 10.0
