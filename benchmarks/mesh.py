"""The whole mesh on one machine: how soon it is ready, what it costs while nothing happens, how soon
it wakes up.

Idle means: the sample databases and their applications are there, nobody writes (``--rate 0``), and
everything has been captured. Every process counts: supervisor, code locations, web server, daemon, run
workers, applications, both PostgreSQL clusters.
"""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path

import numpy as np
from rich.table import Table

from benchmarks import child
from benchmarks.follower import Follower
from benchmarks.installation import PRODUCTS, everything, idle_applications, mesh_up
from benchmarks.measure import ProcessSource, Sampler
from benchmarks.organisation import settings_of
from benchmarks.record import Record
from benchmarks.stage import Stage
from benchmarks.writer import LANE_WIDTH
from mesh_assets.local import organisation
from mesh_assets.local.place import Place
from mesh_assets.names import Layout
from mesh_assets.settings import Settings

TITLE = "mesh up: ready time, idle cost, and from idle to a fresh read"

_READY_LIMIT_SECONDS = 45.0
_SETTLE_SECONDS = 240.0
_IDLE_SECONDS = 60
_IDLE_LIMIT_BYTES = 1.2e9
_IDLE_LIMIT_CORES = 0.25
_WAKE_TRIES = 5
_WAKE_LIMIT_SECONDS = 12.0
_UNFINISHED = ["NOT_STARTED", "QUEUED", "STARTING", "STARTED", "CANCELING"]

_CUSTOMER = """
INSERT INTO shop.customers (customer_id, full_name, segment, created_at, updated_at)
VALUES (%s, 'Benchmark', 'public', now(), now()) ON CONFLICT DO NOTHING
"""
_ORDER = """
INSERT INTO shop.orders (order_id, customer_id, status, currency, amount, placed_at, updated_at)
VALUES (%s, %s, 'new', 'EUR', 1.00, now(), now())
"""


def run(stage: Stage) -> None:
    """Start it twice (once from nothing), leave it alone, wake it up, stop it."""
    settings = settings_of(stage.folder, PRODUCTS)
    try:
        with mesh_up(stage, settings, rate=0) as first_seconds:
            pass
        with mesh_up(stage, settings, rate=0) as second_seconds:
            stage.console.print(
                f"ready after {first_seconds:.1f} s from nothing, after {second_seconds:.1f} s again"
            )
            _ready(stage, first_seconds, second_seconds)
            with idle_applications(stage, settings) as applications:
                with stage.progress("waiting until everything is captured"):
                    _settle(settings)
                _idle(stage, settings, applications)
                _wake(stage, settings)
    finally:
        for cluster in Place.of(settings).clusters.values():
            cluster.remove()


def _ready(stage: Stage, first_seconds: float, second_seconds: float) -> None:
    for name, title, seconds in (
        ("mesh_ready_first", "mesh up, the first time: ready", first_seconds),
        ("mesh_ready", "mesh up, again: ready", second_seconds),
    ):
        stage.record(Record(name, title, seconds, _READY_LIMIT_SECONDS, "the limit", 1, "s", True))


def _settle(settings: Settings) -> None:
    """Wait until every source was captured and no run is under way or about to be, twice in a row."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    quiet = 0
    while quiet < 3:
        if time.monotonic() > deadline:
            raise child.ContenderError(f"the mesh was not idle after {_SETTLE_SECONDS:.0f} s")
        time.sleep(5)
        quiet = quiet + 1 if _captured(settings) and not _unfinished_runs(settings) else 0


def _captured(settings: Settings) -> bool:
    """Whether every source has been captured at least once."""
    layout = Layout(settings.lake_root)
    return all(
        Path(layout.source(domain, organisation.SOURCE, "ledger")).exists() for domain in organisation.DOMAINS
    )


def _unfinished_runs(settings: Settings) -> int:
    """How many runs are under way or about to be."""
    address = json.loads((settings.home / "up.json").read_text())["addresses"]["Dagster"]
    query = (
        "query Runs($statuses: [RunStatus!]) { runsOrError(filter: {statuses: $statuses}, limit: 100) "
        "{ ... on Runs { results { runId } } } }"
    )
    body = json.dumps({"query": query, "variables": {"statuses": _UNFINISHED}}).encode()
    request = urllib.request.Request(f"{address}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return len(json.load(answer)["data"]["runsOrError"]["results"])


def _idle(stage: Stage, settings: Settings, applications: ProcessSource) -> None:
    seconds = stage.amount(_IDLE_SECONDS, 15)
    pid = json.loads((settings.home / "up.json").read_text())["pid"]
    groups = {"mesh and its databases": everything(pid, settings), "applications": applications}
    with stage.progress(f"idle for {seconds} s"), Sampler(cpu=groups, seconds=1.0) as sampler:
        began = time.monotonic()
        time.sleep(seconds)
        elapsed = time.monotonic() - began
    with Sampler(memory=groups) as memory:
        time.sleep(3)
    counts = {name: sum(1 for _ in source()) for name, source in groups.items()}
    count = sum(counts.values())
    cores = sum(map(sampler.cpu_seconds, groups)) / elapsed
    table = Table(title="Idle", title_justify="left")
    for heading in ("what", "processes", "share of a core", "peak MB"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for name in groups:
        table.add_row(
            name,
            str(counts[name]),
            f"{sampler.cpu_seconds(name) / elapsed:.1%}",
            f"{memory.peak_bytes(name) / 1e6:,.0f}",
        )
    table.add_row("together", str(count), f"{cores:.1%}", f"{memory.peak_bytes() / 1e6:,.0f}")
    stage.console.print(table)
    stage.record(
        Record(
            "mesh_idle_memory",
            f"idle mesh, {count} processes: memory",
            memory.peak_bytes() / 1e6,
            _IDLE_LIMIT_BYTES / 1e6,
            "the limit",
            1,
            "MB",
            True,
        )
    )
    stage.record(
        Record("mesh_idle_cpu", "idle mesh: CPU", cores, _IDLE_LIMIT_CORES, "the limit", 1, "cores", True)
    )


def _wake(stage: Stage, settings: Settings) -> None:
    """Commit one order into the idle mesh, wait until a read shows it and all is idle again."""
    tries = stage.amount(_WAKE_TRIES)
    source = Place.of(settings).clusters["sources"]
    watching = {"folder": str(stage.folder), "products": str(PRODUCTS), "pause_seconds": 0.25}
    committed = []
    with (
        source.connect("sales") as connection,
        child.start("watcher", watching, folder=stage.folder / "watcher") as contender,
    ):
        watcher = Follower(contender)
        connection.execute(_CUSTOMER, (LANE_WIDTH,))
        for number in range(1, tries + 1):
            with stage.progress(f"from idle, {number} of {tries}"):
                _settle(settings)
                connection.execute(_ORDER, (number * LANE_WIDTH, LANE_WIDTH))
                committed.append(time.monotonic())
                watcher.reach(number, 10 * _WAKE_LIMIT_SECONDS)
        contender.tell("end")
        reads = watcher.result()["reads"]
    delays = []
    for number, moment in enumerate(committed):
        shown = [read[0] for read in reads if str(number) in read[1]]
        if not shown:
            raise child.ContenderError("an order that was committed into the idle mesh never became visible")
        delays.append(shown[0] - moment)
    stage.console.print("from idle to a fresh read: " + ", ".join(f"{delay:.1f} s" for delay in delays))
    stage.record(
        Record(
            "latency_idle",
            f"commit to fresh read from idle, slowest of {tries}",
            float(np.max(delays)),
            _WAKE_LIMIT_SECONDS,
            "the limit",
            1,
            "s",
            True,
        )
    )
