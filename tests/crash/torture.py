"""Kills ingesting processes by the hundred and counts what is lost: ``make torture KILLS=300 SEED=1``.

An application writes all the time. Shifts are started and killed by SIGKILL, at failpoints and at
moments drawn by lot; now and then PostgreSQL is killed too, or the replication connection is cut,
or two shifts run at once. Every so often the last shift may catch up, and the lake is held against
an independent reading of the source's log and against the source itself; then a fresh database
and an empty lake begin the next round.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psycopg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mesh_assets import failpoint
from mesh_assets.local.postgres import Cluster
from tests.crash.pool import KILLED, Pool, Process
from tests.crash.world import World

_ROUND_KILLS = 50
_SNAPSHOT_KILLS = 4
_TRANSACTIONS_PER_SECOND = 40.0
_RUN_SECONDS = (0.1, 4.0)
_REACH_SECONDS = 6.0
"""A shift that has not met its failpoint by then is killed all the same."""

_CATCH_UP_SECONDS = 180.0
_SNAPSHOT_POINTS = ("snapshot.chunk", "decode.before", "file.written", "ledger.after", "snapshot.done")
_MOST_COUNT = {"file.written": 30, "decode.before": 12, "decode.after": 12, "snapshot.chunk": 9}
_EXPECTED = frozenset({"SlotBusy", "Fenced", "SourceDisconnected", "SourceUnreachable"})
"""How a shift may end when its server dies, its connection is cut, or another one runs."""


@dataclass
class Record:
    """What a torture found; ``parity`` is whether every table of every round was equal."""

    kills: int = 0
    changes: int = 0
    lost: int = 0
    doubled: int = 0
    parity: bool = True
    seed: int = 0
    seconds: float = 0.0
    rounds: int = 0
    transactions: int = 0
    ways: dict[str, int] = field(default_factory=dict)
    endings: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Nothing lost, nothing doubled, nothing different, nothing odd."""
        return self.parity and not (self.lost or self.doubled or self.problems)


class Writer:
    """The application, writing in a thread of its own, through crashes of its server."""

    def __init__(self, world: World) -> None:
        self._application = world.application
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="application")

    def _run(self) -> None:
        try:
            while not self._stopping.wait(1 / _TRANSACTIONS_PER_SECOND):
                try:
                    self._application.transact(1)
                except psycopg.OperationalError:
                    self._reconnect()
        except psycopg.Error as error:
            self._failure = error

    def _reconnect(self) -> None:
        while not self._stopping.wait(0.05):
            try:
                self._application.reconnect()
            except psycopg.OperationalError:
                continue
            return

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        self._application.reconnect()


class Torture:
    """One run.

    Args:
        cluster: a PostgreSQL that may be killed.
        folder: where the lakes go.
        progress: called after each kill with what is done.
    """

    def __init__(self, cluster: Cluster, folder: Path, seed: int, progress: Progress) -> None:
        self.record = Record(seed=seed)
        self._cluster = cluster
        self._folder = folder
        self._random = random.Random(seed)
        self._progress = progress
        self._ways: Counter[str] = Counter()
        self._endings: Counter[str] = Counter()

    def run(self, kill_count: int, pool: Pool) -> Record:
        """Kill so often, in rounds, and verify each round; stops at the first round that fails."""
        started, record = time.monotonic(), self.record
        self._task = self._progress.add_task("killing", total=kill_count)
        while record.kills < kill_count and record.passed:
            self._round(min(_ROUND_KILLS, kill_count - record.kills), pool)
            record.seconds = time.monotonic() - started
        record.ways, record.endings = dict(self._ways.most_common()), dict(self._endings.most_common())
        return record

    # -- one round ----------------------------------------------------------------------------

    def _round(self, kill_count: int, pool: Pool) -> None:
        record = self.record
        record.rounds += 1
        name = f"torture_{record.rounds}"
        lake = self._folder / name
        world = World(self._cluster.create_database(name), lake, seed=self._random.randrange(2**32))
        begun = record.kills
        world.application.transact(120)
        with Writer(world):
            while not self._snapshot(
                world, pool, last=record.kills - begun >= min(_SNAPSHOT_KILLS, kill_count)
            ):
                pass
            world.witness()
            while record.kills - begun < kill_count:
                self._strike(world, pool)
        self._catch_up(world, pool)
        verdict = world.verify()
        record.changes += verdict.changes
        record.lost += verdict.lost
        record.doubled += verdict.doubled
        record.transactions += world.application.transaction_count
        record.parity = record.parity and not verdict.differing
        if not verdict.passed:
            record.problems.append(f"round {record.rounds}, lake kept in {lake}: {verdict.sentence()}")
            return
        world.close()
        self._cluster.drop_database(name)
        shutil.rmtree(lake)

    def _snapshot(self, world: World, pool: Pool, *, last: bool) -> bool:
        """Kill a shift while it reads its snapshot, at last when it is done; whether it is."""
        if last:
            process = pool.go(world.order("snapshot.done"))
            return self._await(process, "snapshot.done", _CATCH_UP_SECONDS)
        point = self._random.choice(_SNAPSHOT_POINTS)
        armed = f"{point}:{self._random.randint(1, _MOST_COUNT.get(point, 1))}"
        self._await(pool.go(world.order(armed)), point, _REACH_SECONDS)
        return False

    def _strike(self, world: World, pool: Pool) -> None:
        lot = self._random.random()
        if lot < 0.06:
            self._kill_server(world, pool)
        elif lot < 0.14:
            self._cut_connection(world, pool)
        elif lot < 0.22:
            self._run_two(world, pool)
        elif lot < 0.40:
            self._await(pool.go(world.order()), "timer", self._patience())
        else:
            point = self._random.choice([name for name in failpoint.POINTS if "snapshot" not in name])
            count = self._random.randint(1, _MOST_COUNT.get(point, 4))
            self._await(pool.go(world.order(f"{point}:{count}")), point, _REACH_SECONDS)

    def _kill_server(self, world: World, pool: Pool) -> None:
        process = pool.go(world.order())
        process.wait(self._patience())
        self._cluster.kill()
        self._ways["server"] += 1
        if self._random.random() < 0.5:
            self._end(process, "timer")
            self._cluster.start()
        else:
            self._cluster.start()
            self._await(process, "timer", self._patience())

    def _cut_connection(self, world: World, pool: Pool) -> None:
        process = pool.go(world.order())
        process.wait(self._patience())
        with psycopg.connect(world.url, autocommit=True) as connection:
            connection.execute(
                "select pg_terminate_backend(active_pid) from pg_replication_slots "
                "where slot_name = %s and active",
                (world.plan.source.slot,),
            )
        self._ways["cut"] += 1
        self._await(process, "timer", self._patience())

    def _run_two(self, world: World, pool: Pool) -> None:
        first = pool.go(world.order())
        second = pool.go(world.order())
        self._ways["two at once"] += 1
        first.wait(self._patience())
        self._end(self._random.choice((first, second)), "timer")
        for process in (first, second):
            self._await(process, "timer", self._patience())

    def _patience(self) -> float:
        return self._random.uniform(*_RUN_SECONDS)

    # -- endings ------------------------------------------------------------------------------

    def _await(self, process: Process, way: str, seconds: float) -> bool:
        """Wait until a shift dies at its failpoint, and kill it if it does not; whether it did."""
        code = process.wait(seconds)
        if code == KILLED:
            self._count(way)
            process.close()
            return True
        self._end(process, "timer")
        return False

    def _end(self, process: Process, way: str) -> None:
        """Kill a shift that still runs; note how another one ended."""
        if process.closed:
            return
        code = process.kill()
        if code == KILLED:
            self._count(way)
        else:
            ending = process.ending()
            name = (ending.error or ending.reason) if ending else f"exit code {code}"
            self._endings[name] += 1
            if ending is None or (ending.error and ending.error not in _EXPECTED):
                self.record.problems.append(f"a shift ended with {name}:\n{process.output()}")
        process.close()

    def _count(self, way: str) -> None:
        self._ways[way] += 1
        self.record.kills += 1
        self._progress.update(self._task, completed=self.record.kills)

    def _catch_up(self, world: World, pool: Pool) -> None:
        process = pool.go(world.order())
        code = process.wait(_CATCH_UP_SECONDS)
        if code != 0:
            self.record.problems.append(f"the last shift did not catch up:\n{process.output()}")
        process.close()


# -- the command ------------------------------------------------------------------------------


@contextmanager
def _cluster() -> Iterator[tuple[Cluster, Path]]:
    # Not a private temporary folder: PostgreSQL does not run as root and must reach its own.
    folder = Path(tempfile.mkdtemp(prefix="mesh-torture-"))
    folder.chmod(0o711)
    # A killed server loses nothing by these: only a crash of the machine would.
    options = {"fsync": "off", "full_page_writes": "off"}
    cluster = Cluster(folder / "cluster", shared_buffers_mb=32, options=options)
    try:
        yield cluster.start(), folder
    finally:
        cluster.remove()


def _shown(record: Record) -> Table:
    table = Table(title="torture", show_header=False)
    for name, value in asdict(record).items():
        if name in ("ways", "endings"):
            table.add_row(name, ", ".join(f"{way} {count}" for way, count in value.items()))
        elif name == "seconds":
            table.add_row(name, f"{value:,.0f} ({value / max(1, record.kills):.2f} per kill)")
        elif name != "problems":
            table.add_row(name, f"{value:,}" if type(value) is int and name != "seed" else str(value))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 1 if anything was lost, doubled or odd."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=300, help="how many processes to kill (300)")
    parser.add_argument("--seed", type=int, default=1, help="what the lots are drawn from (1)")
    parser.add_argument(
        "--json", type=Path, default=Path("torture.json"), help="where to write what was found (torture.json)"
    )
    options = parser.parse_args(arguments)
    console = Console()
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with _cluster() as (cluster, folder), Pool() as pool, Progress(*columns, console=console) as progress:
        torture = Torture(cluster, folder, options.seed, progress)
        record = torture.run(options.kills, pool)
    console.print(_shown(record))
    for problem in record.problems:
        console.print(problem, markup=False, style="red")
    options.json.write_text(json.dumps(asdict(record), indent=2) + "\n")
    console.print(f"the same as JSON: {options.json}")
    if record.passed:
        shutil.rmtree(folder)
    return 0 if record.passed else 1


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # A process that has written Delta may abort in its exit handlers.
    os._exit(code)
