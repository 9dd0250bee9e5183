"""What the sample organisation's applications have in common: seeding, pace, failures, a clean end.

An application is an ordinary program with an ordinary database: it knows nothing of who captures it.
Its decisions depend on its seed and on what its database holds; only the clock is the real one.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, ClassVar

import psycopg
from psycopg.rows import TupleRow

Connection = psycopg.Connection[TupleRow]
Row = Sequence[Any]
Action = Callable[[], None]

URL_VARIABLE = "DATABASE_URL"

_ROLLBACK_SHARE = 0.05
_SAVEPOINT_SHARE = 0.03
_REPORT_SECONDS = 60.0
_RECONNECT_SECONDS = 1.0
_LOOK_SECONDS = 0.1

_logger = logging.getLogger(__name__)


class Application(ABC):
    """One application on one database.

    Args:
        connection: to its database, in autocommit mode.
        seed: decides, with the contents of the database, everything that the application does.
        now: its clock.
    """

    name: ClassVar[str]

    def __init__(
        self, connection: Connection, seed: int, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.connection = connection
        self.now = now
        self.random = Random(f"{self.name}:{seed}")
        self.counters: dict[str, int] = {}
        """Next numbers to give out; a rollback takes them back."""
        self.committed = 0
        self.rolled_back = 0

    @abstractmethod
    def seed(self) -> None:
        """Fill the empty tables with what the organisation has before anyone looks."""

    @abstractmethod
    def load(self) -> None:
        """Read from the database where to go on."""

    @abstractmethod
    def actions(self) -> Iterable[tuple[float, Action]]:
        """What the application does, each with its weight; each runs inside a transaction."""

    def begin(self, seed: int) -> None:
        """Continue with the present contents of the database."""
        self.load()
        self.random = Random(f"{self.name}:{seed}:{sorted(self.counters.items())}")

    def step(self) -> None:
        """One transaction: mostly committed, sometimes rolled back in part or as a whole."""
        weights, actions = zip(*self.actions(), strict=True)
        action = self.random.choices(actions, weights)[0]
        fate = self.random.random()
        rolls_back = fate > 1 - _ROLLBACK_SHARE
        before = dict(self.counters)
        with self.connection.transaction(force_rollback=rolls_back):
            if fate < _SAVEPOINT_SHARE:
                with self.connection.transaction(force_rollback=True):
                    action()
                self.counters = dict(before)
                action = self.random.choices(actions, weights)[0]
            action()
        if rolls_back:
            self.counters = before
            self.rolled_back += 1
        else:
            self.committed += 1

    # -- for the applications' own code

    def run(self, query: str, *values: Any) -> int:  # noqa: ANN401 - any value that psycopg adapts
        """Run one statement and return how many rows it touched."""
        return self.connection.execute(query.encode(), values or None).rowcount

    def row(self, query: str, *values: Any) -> TupleRow | None:  # noqa: ANN401
        """The first row of a query."""
        return self.connection.execute(query.encode(), values or None).fetchone()

    def rows(self, query: str, *values: Any) -> list[TupleRow]:  # noqa: ANN401
        """All rows of a query."""
        return self.connection.execute(query.encode(), values or None).fetchall()

    def insert(self, query: str, rows: Sequence[Row]) -> None:
        """Run one statement for many rows."""
        with self.connection.cursor() as cursor:
            cursor.executemany(query.encode(), rows)

    def copy(self, table: str, rows: Iterable[Row]) -> None:
        """Load many rows into a table, all columns in order."""
        with self.connection.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN".encode()) as copy:
            for row in rows:
                copy.write_row(row)

    def next(self, counter: str) -> int:
        """Give out the next number."""
        number = self.counters[counter]
        self.counters[counter] = number + 1
        return number

    def earlier(self, counter: str) -> int:
        """A number given out before, recent ones more often; what it named may be gone."""
        count = self.counters[counter] - 1
        return max(1, count - int(self.random.expovariate(6 / max(count, 1))))

    def before(self, days: float) -> datetime:
        """A moment within the last ``days``, to the microsecond."""
        return self.now() - timedelta(microseconds=self.random.randrange(int(days * 86_400_000_000)))

    def money(self, low: float, high: float) -> Decimal:
        """An amount with two decimals."""
        return Decimal(self.random.randint(round(low * 100), round(high * 100))).scaleb(-2)

    def maybe(self, share: float) -> bool:
        """Whether something happens that happens in a share of cases."""
        return self.random.random() < share


class Runner:
    """Run an application at a rate until it is told to stop, over restarts of its database."""

    def __init__(self, kind: type[Application], url: str, *, rate: float, seed: int) -> None:
        self._kind = kind
        self._url = url
        self._rate = rate
        self._seed = seed
        self._stopping = False
        self.committed = 0
        self.rolled_back = 0

    def stop(self) -> None:
        """End after the transaction at hand; a signal handler may ask for it, too.

        It does no more than note it: an event that a handler sets while what it interrupts waits for
        it waits for its own lock, for good.
        """
        self._stopping = True

    def run(self, *, count: int | None = None, stopped: Callable[[], bool] = lambda: False) -> None:
        """Run ``count`` transactions, or until :meth:`stop` or ``stopped``.

        Raises:
            psycopg.Error: if the database refuses the application's work (a lost connection is
                waited out, since databases restart).
        """
        report_at = time.monotonic() + _REPORT_SECONDS
        while not self._finished(count, stopped):
            try:
                with psycopg.connect(self._url, autocommit=True, connect_timeout=10) as connection:
                    application = self._kind(connection, self._seed)
                    application.begin(self._seed)
                    due = time.monotonic()
                    while not self._finished(count, stopped):
                        if self._rate <= 0:
                            self._pause(1.0)
                            continue
                        self._step(application)
                        now = time.monotonic()
                        # An application that fell behind by a second has lost it: no burst follows.
                        due = max(due + 1 / self._rate, now - 1)
                        if now >= report_at:
                            self._report()
                            report_at = now + _REPORT_SECONDS
                        if due > now:
                            self._pause(due - now)
            except psycopg.OperationalError as error:
                _logger.warning("%s: %s; trying again", self._kind.name, str(error).strip())
                self._pause(_RECONNECT_SECONDS)
        self._report()

    def _step(self, application: Application) -> None:
        before = application.committed, application.rolled_back
        application.step()
        self.committed += application.committed - before[0]
        self.rolled_back += application.rolled_back - before[1]

    def _finished(self, count: int | None, stopped: Callable[[], bool]) -> bool:
        done = count is not None and self.committed + self.rolled_back >= count
        return done or self._stopping or stopped()

    def _pause(self, seconds: float) -> None:
        due = time.monotonic() + seconds
        while not self._stopping and (left := due - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK_SECONDS))

    def _report(self) -> None:
        _logger.info(
            "%s: %d transactions committed, %d rolled back", self._kind.name, self.committed, self.rolled_back
        )


def schema(name: str) -> str:
    """The SQL text that makes an application's empty tables."""
    return Path(__file__).with_name(f"{name}.sql").read_text()


def main(kind: type[Application], arguments: Sequence[str] | None = None) -> int:
    """The command line of an application; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {Application.__module__.rpartition('.')[0]}.{kind.name}",
        description=f"The sample organisation's {kind.name} application. "
        f"Its database is named by the environment variable {URL_VARIABLE}.",
    )
    parser.add_argument("--rate", type=float, default=20, help="transactions per second; 0 is idle")
    parser.add_argument("--seed", type=int, default=1, help="decides what the application does")
    parser.add_argument("--count", type=int, help="stop after so many transactions")
    parser.add_argument("--stop-with-parent", action="store_true", help="stop when the parent process ends")
    options = parser.parse_args(arguments)
    url = os.environ.get(URL_VARIABLE, "")
    if not url:
        parser.error(f"{URL_VARIABLE} is not set")
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    runner = Runner(kind, url, rate=options.rate, seed=options.seed)

    def end(signal_number: int, frame: FrameType | None) -> None:
        runner.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    parent = os.getppid()
    try:
        runner.run(count=options.count, stopped=lambda: options.stop_with_parent and os.getppid() != parent)
    except psycopg.Error as error:
        _logger.error("%s: %s", kind.name, str(error).strip())
        return 1
    return 0
