"""Latency of a derived product: from a commit at a source to a fresh read of what is derived from it.

The whole mesh runs, every sample application writes, and all of it shares the machine's cores. An
order counts as visible when the first read of ``sales.customer_360`` that shows it has ended. This is
measured twice: with the settings that everybody has, and with shifts so short that every kind of them
is relieved meanwhile, which loads the machine more than it ever is in operation.

Where the time went is read from the lake afterwards: rows and versions carry when they were made.
"""

from __future__ import annotations

import json
import shutil
import time

import numpy as np

from benchmarks import child
from benchmarks.follower import Follower
from benchmarks.installation import PRODUCTS, everything, mesh_up
from benchmarks.measure import Sampler
from benchmarks.organisation import settings_of
from benchmarks.record import Record
from benchmarks.stage import Stage
from benchmarks.trail import Trail, relieved_count, trail_table, trails
from benchmarks.writer import LANE_WIDTH
from mesh_assets.local.place import Place
from mesh_assets.settings import Settings

TITLE = "From a commit at the source to a derived product, with everything running"

_ORDERS = 60
_EVERY_SECONDS = 2.0
_RELIEVED_SECONDS = 90.0
_LIMIT_SECONDS = 5.0
_FIRST_SECONDS = 240.0
_GIVE_UP_SECONDS = 60.0
# To look at the memory of a whole mesh takes some time of the processor that it needs itself.
_LOOK_SECONDS = 5.0

_CUSTOMER = """
INSERT INTO shop.customers (customer_id, full_name, segment, created_at, updated_at)
VALUES (%s, 'Benchmark', 'public', now(), now()) ON CONFLICT DO NOTHING
"""
_ORDER = """
INSERT INTO shop.orders (order_id, customer_id, status, currency, amount, placed_at, updated_at)
VALUES (%s, %s, 'placed', 'EUR', 1.00, now(), now())
"""


def run(stage: Stage) -> None:
    """Commit orders of one customer into a busy mesh, one at a time, and watch her row."""
    settings = settings_of(stage.folder, PRODUCTS)
    _measure(stage, settings, "derived", "with everything running")
    shutil.rmtree(settings.home, ignore_errors=True)
    relieved = settings.model_copy(update={"shift_seconds": _RELIEVED_SECONDS})
    _measure(stage, relieved, "derived_relieved", "while shifts are relieved")


def _measure(stage: Stage, settings: Settings, name: str, when: str) -> None:
    count = stage.amount(_ORDERS, 5)
    watching = {
        "folder": str(stage.folder),
        "products": str(PRODUCTS),
        "customer_id": LANE_WIDTH,
        "pause_seconds": 0.25,
    }
    committed: list[float] = []
    try:
        with (
            mesh_up(stage, settings),
            Place.of(settings).clusters["sources"].connect("sales") as connection,
            child.start("consumer", watching, folder=stage.folder / "consumer") as contender,
        ):
            consumer = Follower(contender)
            connection.execute(_CUSTOMER, (LANE_WIDTH,))
            with stage.progress("first derivation"):
                # Not measured: snapshots, the first whole computation, the first runs.
                connection.execute(_ORDER, (LANE_WIDTH, LANE_WIDTH))
                consumer.reach(1, _FIRST_SECONDS)
            running = everything(json.loads((settings.home / "up.json").read_text())["pid"], settings)
            with (
                stage.progress("committing orders", count) as advance,
                Sampler(
                    memory={"mesh": running}, cpu={"mesh": running}, seconds=1.0, memory_seconds=_LOOK_SECONDS
                ) as sampler,
            ):
                began = time.monotonic()
                for number in range(1, count + 1):
                    connection.execute(_ORDER, (LANE_WIDTH + number, LANE_WIDTH))
                    committed.append(time.time())
                    advance(1)
                    time.sleep(_EVERY_SECONDS)
                elapsed = time.monotonic() - began
            with stage.progress("waiting for the last"):
                consumer.reach(count + 1, _GIVE_UP_SECONDS)
            contender.tell("end")
            seen: list[tuple[float, int]] = consumer.result()["seen"]
        found = trails(settings, LANE_WIDTH, committed, seen)
    finally:
        for cluster in Place.of(settings).clusters.values():
            cluster.remove()
    _show(stage, name, when, found, len(seen))
    stage.console.print(
        f"the whole mesh meanwhile: {sampler.cpu_seconds('mesh') / elapsed:.2f} cores, "
        f"peak {sampler.peak_bytes() / 1e6:,.0f} MB"
    )


def _show(stage: Stage, name: str, when: str, found: list[Trail], seen_count: int) -> None:
    delays = [trail.seconds for trail in found]
    half, most = np.percentile(delays, [50, 95])
    stage.console.print(trail_table(found))
    stage.console.print(
        f"{len(found)} orders: p50 {half:.1f} s, p95 {most:.1f} s, slowest {max(delays):.1f} s "
        f"({seen_count} changes of the row seen, shifts relieved meanwhile: {relieved_count(found)})"
    )
    for share, value in (("p50", half), ("p95", most)):
        stage.record(
            Record(
                f"{name}_{share}",
                f"commit to derived product {when}, {share}",
                float(value),
                _LIMIT_SECONDS,
                "the limit",
                1,
                "s",
                True,
            )
        )
