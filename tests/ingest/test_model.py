"""Random changes at a real source, captured through crashes and folds, against a plain model.

Each example runs random transactions (every op, key moves, updates that leave large values alone,
truncates, several tables at once, rollbacks, savepoints), shifts that die at commit points drawn
by lot, and compares as-of reads by LSN, version and time with what a dictionary per table held at
that moment. ``MESH_TEST_EXAMPLES=200`` runs more of them, and ``MESH_TEST_SEED`` the same again.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st
from psycopg import sql

from mesh_assets import failpoint
from mesh_assets.ingest.shift import Shift
from mesh_assets.lake.access import Principal
from mesh_assets.lake.current import FoldPolicy
from mesh_assets.lake.ledger import Ledger
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.position import Lsn
from mesh_assets.lake.read import as_of
from mesh_assets.lake.upkeep import Upkeep
from mesh_assets.lake.version import AsOf, Horizon, VersionLog
from mesh_assets.local.postgres import Cluster
from mesh_assets.shift.plan import CapturePlan
from mesh_assets.shift.report import Budget
from tests.crash import workload
from tests.crash.world import PRODUCT, plan_for

Key = tuple[object, ...]
Rows = dict[Key, tuple[object, object]]
"""Key -> (small value, large value)."""
State = dict[str, Rows]

EXAMPLES = int(os.environ.get("MESH_TEST_EXAMPLES", "4"))
SEED = int(os.environ.get("MESH_TEST_SEED") or random.randrange(2**32))
_database_numbers = count(1)

SMALL = {"item": "name", "line": "quantity", "badge": "owner"}
LARGE = {"item": "note", "line": "remark", "badge": "payload"}
KEYS = dict(workload.TABLES.values())


# -- what happens at the source -----------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """One statement: ``put touch enlarge drop move bulk truncate`` on one table (truncate: or more)."""

    kind: str
    table: str
    key: int = 0
    other: int = 0
    number: int = 0
    size: int = 0

    def keys(self) -> tuple[Key, Key]:
        """The key and the other key, in the table's own types."""
        return _key(self.table, self.key), _key(self.table, self.other)

    @property
    def small(self) -> object:
        """The new small value, in the column's type."""
        return self.number if self.table == "line" else f"n{self.number}"

    @property
    def large(self) -> str | None:
        """The new large value; from about 2,000 characters on it is stored out of line."""
        return chr(97 + self.number % 26) * self.size if self.size else None


def _key(table: str, number: int) -> Key:
    return {"item": (number,), "line": (number // 2, number % 2), "badge": (f"b{number}",)}[table]


@dataclass(frozen=True)
class Transaction:
    """Statements in one transaction; each group but the first is behind a savepoint, kept or undone."""

    groups: tuple[tuple[tuple[Change, ...], bool], ...]
    committed: bool


def applied(state: State, change: Change) -> None:
    """What a statement does to the model."""
    rows = state[change.table]
    key, other = change.keys()
    if change.kind == "put":
        rows[key] = (change.small, rows[key][1] if key in rows else change.large)
    elif change.kind == "touch" and key in rows:
        rows[key] = (change.small, rows[key][1])
    elif change.kind == "enlarge" and key in rows:
        rows[key] = (rows[key][0], change.large)
    elif change.kind == "drop":
        rows.pop(key, None)
    elif change.kind == "move" and key in rows and other not in rows:
        rows[other] = rows.pop(key)
    elif change.kind == "bulk":
        state[change.table] = {held: (change.small, large) for held, (_, large) in rows.items()}
    elif change.kind == "truncate":
        rows.clear()
        if change.number % 2:
            state["badge"].clear()


def statement(change: Change) -> tuple[sql.Composed, Sequence[object]]:
    """The same as SQL with its values."""
    table, (key, other) = change.table, change.keys()
    name = sql.Identifier("shop", table)
    columns = [sql.Identifier(column) for column in KEYS[table]]
    small, large = sql.Identifier(SMALL[table]), sql.Identifier(LARGE[table])
    listed = sql.SQL(", ").join(columns)
    marks = sql.SQL(", ").join([sql.Placeholder()] * len(key))
    here = sql.SQL("({}) = ({})").format(listed, marks)
    if change.kind == "put":
        text = sql.SQL(
            "insert into {name} ({listed}, {small}, {large}) values ({marks}, %s, %s) "
            "on conflict ({listed}) do update set {small} = excluded.{small}"
        )
        values = [*key, change.small, change.large]
    elif change.kind == "touch":
        text, values = sql.SQL("update {name} set {small} = %s where {here}"), [change.small, *key]
    elif change.kind == "enlarge":
        text, values = sql.SQL("update {name} set {large} = %s where {here}"), [change.large, *key]
    elif change.kind == "drop":
        text, values = sql.SQL("delete from {name} where {here}"), [*key]
    elif change.kind == "move":
        text = sql.SQL(
            "update {name} set ({listed}) = row({marks}) where {here} "
            "and not exists (select from {name} where {here})"
        )
        values = [*other, *key, *other]
    elif change.kind == "bulk":
        text, values = sql.SQL("update {name} set {small} = %s"), [change.small]
    else:
        more = ", shop.badge" if change.number % 2 and table != "badge" else ""
        text, values = sql.SQL("truncate {name}" + more), []
    return text.format(name=name, listed=listed, small=small, large=large, marks=marks, here=here), values


_kinds = st.sampled_from(
    ["put"] * 8 + ["touch"] * 4 + ["enlarge"] * 3 + ["drop"] * 3 + ["move"] * 3 + ["bulk", "truncate"]
)
_changes = st.builds(
    Change,
    kind=_kinds,
    table=st.sampled_from(["item", "line", "badge"]),
    key=st.integers(0, 7),
    other=st.integers(0, 7),
    number=st.integers(0, 999),
    size=st.sampled_from([0, 3, 3000, 5000]),
)
_groups = st.tuples(st.lists(_changes, min_size=1, max_size=5).map(tuple), st.booleans())
_transactions = st.builds(
    Transaction,
    groups=st.lists(_groups, min_size=1, max_size=3).map(tuple),
    committed=st.integers(0, 9).map(bool),
)


@dataclass(frozen=True)
class Episode:
    """Some transactions, then a shift that dies at the named point unless it never gets there."""

    transactions: tuple[Transaction, ...]
    dies_at: str
    times: int


_episodes = st.builds(
    Episode,
    transactions=st.lists(_transactions, min_size=1, max_size=8).map(tuple),
    dies_at=st.sampled_from(["", *failpoint.POINTS]),
    times=st.integers(1, 3),
)


# -- one example --------------------------------------------------------------------------------


class Crash(Exception):
    """Ends a shift wherever it is."""


@dataclass(frozen=True)
class Moment:
    """The model after a committed transaction: its commit LSN lies in ``begun`` <= LSN < ``lsn``."""

    begun: int
    lsn: int
    at: datetime
    state: State


@dataclass
class Example:
    """A source, its model and all of the model's past."""

    connection: psycopg.Connection[tuple[object, ...]]
    plan: CapturePlan
    state: State = field(default_factory=lambda: {table: {} for table in KEYS})
    moments: list[Moment] = field(default_factory=list)

    def transact(self, transaction: Transaction) -> None:
        """Run one transaction at the source and in the model."""
        after = deepcopy(self.state)
        for number, (changes, kept) in enumerate(transaction.groups):
            before = deepcopy(after)
            if number:
                self.connection.execute("savepoint s")
            for change in changes:
                self.connection.execute(*statement(change))
                applied(after, change)
            if number and not kept:
                self.connection.execute("rollback to savepoint s")
                after = before
        begun = self._one("select (pg_current_wal_insert_lsn() - '0/0')::int8")
        if not transaction.committed:
            self.connection.rollback()
            return
        self.connection.commit()
        self.state = after
        lsn = self._one("select (pg_current_wal_insert_lsn() - '0/0')::int8")
        at = self._one("select clock_timestamp()")
        self.connection.commit()
        assert isinstance(begun, int)
        assert isinstance(lsn, int)
        assert isinstance(at, datetime)
        self.moments.append(Moment(begun, lsn, at, deepcopy(after)))

    def _one(self, query: str) -> object:
        row = self.connection.execute(sql.SQL(query)).fetchone()
        assert row is not None
        return row[0]

    def source_state(self) -> State:
        """What the source holds now."""
        found: State = {}
        for table, key in KEYS.items():
            columns = sql.SQL(", ").join(map(sql.Identifier, [*key, SMALL[table], LARGE[table]]))
            query = sql.SQL("select {} from {}").format(columns, sql.Identifier("shop", table))
            found[table] = _rows(table, self.connection.execute(query).fetchall())
        self.connection.commit()
        return found

    def capture(self, dies_at: str, times: int) -> bool:
        """Run one shift that may die; whether it lived."""
        with dying(dies_at, times):
            try:
                Shift(self.plan, budget=_BUDGET).run()
            except Crash:
                return False
        return True

    # -- reading ------------------------------------------------------------------------------

    def read(self, asked: AsOf | None) -> State:
        """Every table of the product as of a moment."""
        layout, name = self.plan.layout, PRODUCT
        last = Ledger(self.plan.part_uri("ledger")).latest()
        horizon = None
        if last is not None:
            tables = {target.source_table: target.table for target in self.plan.targets}
            held = {tables[name]: seq for name, seq in last.tables.items()}
            horizon = Horizon(held, last.end_lsn, last.observed_at)
        cut = VersionLog.open(layout.versions(name)).resolve(
            asked,
            log=lambda table, generation: ChangeLog.open(layout.table(name, "changes", table, generation)),
            horizon=horizon,
        )
        found: State = {}
        for table, key in KEYS.items():
            frame = as_of(layout, name, table, cut.tables[table], principal=Principal.local())
            found[table] = _rows(table, frame.select(*key, SMALL[table], LARGE[table]).collect().rows())
        return found

    def modelled(self, lsn: int) -> State:
        """The model with every transaction whose commit LSN is not above ``lsn``."""
        past = [moment for moment in self.moments if moment.begun <= lsn]
        return past[-1].state if past else {table: {} for table in KEYS}

    def check(self, draw: st.DataObject, *, wholly: bool) -> None:
        """Compare some past moments, the last one among them if the lake holds it (``wholly``)."""
        uri = self.plan.layout.versions(PRODUCT)
        if not VersionLog(uri).records.exists:
            assert not wholly
            return
        versions = VersionLog.open(uri)
        first, latest = versions.at(1), versions.latest()
        assert first is not None
        assert latest is not None
        for number in {1, latest.version, draw.draw(st.integers(1, latest.version), "version")}:
            row = versions.at(number)
            assert row is not None
            assert row.lsn is not None
            self._compare(f"version {number}", self.read(number), self.modelled(row.lsn))
        last = Ledger(self.plan.part_uri("ledger")).latest()
        reach = max(latest.lsn or 0, last.end_lsn if last else 0)
        assert first.lsn is not None
        held = [one for one in self.moments if first.lsn <= one.begun and one.lsn <= reach]
        if wholly:
            self._compare("now", self.read(None), self.state)
            assert [one for one in self.moments if one.lsn > reach] == []
        for moment in draw.draw(st.lists(st.sampled_from(held), max_size=3), "moments") if held else ():
            self._compare(f"LSN {Lsn(moment.lsn)}", self.read(Lsn(moment.lsn)), moment.state)
            if first.committed_at <= moment.at and (last is None or moment.at <= last.observed_at):
                self._compare(f"time {moment.at}", self.read(moment.at), moment.state)

    def _compare(self, what: str, found: State, expected: State) -> None:
        for table in KEYS:
            assert found[table] == expected[table], f"shop.{table} as of {what}"


def _rows(table: str, rows: Sequence[tuple[object, ...]]) -> Rows:
    width = len(KEYS[table])
    found = {row[:width]: (row[width], row[width + 1]) for row in rows}
    assert len(found) == len(rows), f"shop.{table} has a key twice"
    return found


_BUDGET = Budget(
    claim_seconds=60,
    idle_seconds=0.1,
    batch_seconds=0.0,
    batch_rows=20,
    snapshot_rows=5,
    fold=FoldPolicy(share=0.0, min_count=1, min_age_seconds=0.0),
    upkeep=Upkeep(archive_seconds=0.0, run_length=2, commit_count=1, look_seconds=0, tend_seconds=0),
)


@contextmanager
def dying(point: str, times: int) -> Iterator[None]:
    """Raise :class:`Crash` when a failpoint is reached for the n-th time."""
    reached: dict[str, int] = {}

    def reach(name: str) -> None:
        reached[name] = reached.get(name, 0) + 1
        if name == point and reached[name] == times:
            raise Crash(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failpoint, "reach", reach)
        yield


@contextmanager
def example(postgres: Cluster) -> Iterator[Example]:
    """A fresh database and an empty lake."""
    name = f"model_{next(_database_numbers)}"
    url = postgres.create_database(name)
    workload.create(url)
    try:
        with tempfile.TemporaryDirectory() as lake, psycopg.connect(url) as connection:
            yield Example(connection, plan_for(url, Path(lake)))
    finally:
        postgres.drop_database(name)


@pytest.fixture
def printed_seed() -> None:
    """Where it fails, the seed stands above the failure."""
    print(f"MESH_TEST_SEED={SEED} MESH_TEST_EXAMPLES={EXAMPLES}")


@pytest.mark.slow
@pytest.mark.usefixtures("printed_seed")
@seed(SEED)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    print_blob=True,
    # To shrink takes longer than a test run should; more examples are asked for by who has time.
    phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if EXAMPLES > 20 else [])],
    suppress_health_check=list(HealthCheck),
)
@given(
    seeded=st.lists(_transactions, max_size=4),
    episodes=st.lists(_episodes, min_size=3, max_size=5),
    draw=st.data(),
)
def test_every_past_moment_reads_as_the_model_was(
    postgres: Cluster, seeded: list[Transaction], episodes: list[Episode], draw: st.DataObject
) -> None:
    with example(postgres) as one:
        for transaction in seeded:
            one.transact(transaction)
        for number, episode in enumerate(episodes):
            for transaction in episode.transactions:
                one.transact(transaction)
            last = number == len(episodes) - 1
            lived = one.capture("" if last else episode.dies_at, episode.times)
            note(f"episode {number}: {'lived' if lived else 'died at ' + episode.dies_at}")
            assert one.source_state() == one.state
            one.check(draw, wholly=lived)
