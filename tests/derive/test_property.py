"""A derived product is what a recomputation of all of it makes, after any mix of changes and crashes.

``MESH_TEST_EXAMPLES=500`` tries more of them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from mesh_assets import failpoint
from mesh_assets.derive.derivation import Derivation
from mesh_assets.derive.transform import Transformer
from mesh_assets.lake.current import Current
from mesh_assets.lake.fold import fold
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.version import VersionLog
from mesh_assets.names import ProductName
from tests.derive.world import (
    CUSTOMERS,
    ORDERS,
    RATED_INPUTS,
    RATED_TRANSFORM,
    RATES,
    SPENDING,
    SPENDING_INPUTS,
    SPENDING_TABLES,
    SPENDING_TRANSFORM,
    World,
    Writer,
)

EXAMPLES = int(os.environ.get("MESH_TEST_EXAMPLES", "20"))
POINTS = ("append.before", "append.first", "append.middle", "version.before", "version.after")

customer_ids = st.integers(0, 5)
order_ids = st.integers(0, 8)
amounts = st.decimals(0, 99, places=2)
regions = st.sampled_from(["north", "south", None])
currencies = st.sampled_from(["EUR", "CHF"])
line_numbers = st.integers(1, 2)
lines = st.tuples(order_ids, line_numbers, amounts)
orders = st.tuples(order_ids, st.one_of(customer_ids, st.none()), currencies)
customers = st.tuples(customer_ids, regions)

tables = st.sampled_from(["customers", "orders", "lines"])
rare = [
    st.tuples(st.just("truncate"), tables),
    st.tuples(st.just("contract"), st.sampled_from(["counts are integers", "counts are decimals"])),
    st.tuples(st.just("rates"), st.booleans()),
]
changes = st.one_of(
    st.tuples(st.just("customer"), st.lists(customers, min_size=1, max_size=4)),
    st.tuples(st.just("order"), st.lists(orders, min_size=1, max_size=5)),
    st.tuples(st.just("line"), st.lists(lines, min_size=1, max_size=5)),
    st.tuples(st.just("rejected"), st.tuples(st.just("customers"), customers)),
    st.tuples(st.just("rejected"), st.tuples(st.just("orders"), orders)),
    st.tuples(st.just("rejected"), st.tuples(st.just("lines"), lines)),
    st.just(("release", True)),
    st.just(("release", False)),
    st.tuples(st.just("rate"), st.tuples(currencies, st.integers(1, 3))),
    st.tuples(st.just("remove customer"), customer_ids),
    st.tuples(st.just("remove order"), order_ids),
    st.tuples(st.just("remove line"), st.tuples(order_ids, line_numbers)),
    st.tuples(st.just("move order"), st.tuples(order_ids, order_ids)),
    st.tuples(st.just("fold"), tables),
    st.tuples(st.just("fold own"), st.sampled_from(sorted(SPENDING_TABLES))),
    # Not one branch each, or most steps would recompute everything.
    st.sampled_from(rare).flatmap(lambda one: one),
)
ends = st.sampled_from(
    [("step", "all"), ("step", CUSTOMERS), ("step", ORDERS), *(("crash", point) for point in POINTS)]
)
histories = st.lists(st.tuples(st.lists(changes, min_size=1, max_size=6), ends), min_size=2, max_size=6)

_COUNTED = pa.decimal128(12, 2)
_SCHEMA, _KEY = SPENDING_TABLES["spending"]
_PLACE = _SCHEMA.get_field_index("line_count")
DECIMAL_TABLES = SPENDING_TABLES | {"spending": (_SCHEMA.set(_PLACE, pa.field("line_count", _COUNTED)), _KEY)}

Round = tuple[list[tuple[str, Any]], tuple[str, Any]]
"""Changes, and the attempt to derive that follows them."""

RELEASES: list[Round] = [
    (
        [
            ("customer", [(1, "north"), (2, "south")]),
            ("order", [(1, 1, "EUR"), (2, 2, "EUR")]),
            ("line", [(1, 1, Decimal(5)), (2, 1, Decimal(7))]),
            ("rejected", ("lines", (1, 1, Decimal(50)))),
            ("rejected", ("orders", (2, 1, "CHF"))),
            ("rejected", ("lines", (1, 1, Decimal(60)))),
        ],
        ("step", "all"),
    ),
    ([("line", [(2, 2, Decimal(9))]), ("fold", "lines"), ("release", False)], ("step", ORDERS)),
    ([("fold", "lines"), ("release", True)], ("crash", "version.before")),
]
"""Rows that come after what was committed, captured and derived later than they."""

CHANGED_RATES: list[Round] = [
    ([*RELEASES[0][0][:3], ("rates", True), ("rate", ("EUR", 2))], ("step", "all")),
    ([("rate", ("EUR", 3)), ("rate", ("CHF", 2))], ("crash", "append.first")),
    ([("line", [(1, 2, Decimal(1))])], ("step", ORDERS)),
    ([("rates", False)], ("step", "all")),
]
"""Changes of an input that leads to no customer."""

TORN: list[Round] = [
    ([("customer", [(0, "north")])], ("crash", "append.first")),
    ([("rates", True), ("customer", [(0, "south")])], ("step", "all")),
]
"""A row that was appended without its version, and is another by then."""


class Crash(BaseException):
    """The process ended here."""


class Driver:
    """Takes the operations."""

    def __init__(self, world: World, transformer: Transformer) -> None:
        self.world = world
        self.transformer = transformer
        self.customers, self.orders = world.writer(CUSTOMERS), world.writer(ORDERS)
        self.derivation: Derivation | None = None
        self.decimal = self.rated = False
        self.torn: set[int] = set()
        self.made: dict[int, dict[str, pl.DataFrame]] = {}

    def take(self, kind: str, what: Any) -> None:
        if kind == "customer":
            self.customers.put("customers", *{row[0]: row for row in what}.values())
        elif kind == "order":
            self.orders.put("orders", *{row[0]: row for row in what}.values())
        elif kind == "line":
            self.orders.put("lines", *{row[:2]: row for row in what}.values())
        elif kind == "rejected":
            self._owner(what[0]).put(*what, rejected=True)
        elif kind == "release":
            self._release(everything=what)
        elif kind == "rate":
            self.world.writer(RATES).put("rates", what)
        elif kind == "remove customer":
            self.customers.remove("customers", (what,))
        elif kind == "remove order":
            self.orders.remove("orders", (what,))
        elif kind == "remove line":
            self.orders.remove("lines", what)
        elif kind == "move order":
            self._move(*what)
        elif kind == "truncate":
            self._owner(what).truncate(what)
        elif kind == "fold":
            self._owner(what).fold(what)
        elif kind == "step":
            self.cut(*(self.inputs if what == "all" else [what]))
            self.step()
        elif kind == "crash":
            self.cut(*self.inputs)
            self.crash(what)
        elif kind == "contract":
            # A column gets another type, and the log with it another generation.
            self.decimal = what == "counts are decimals"
            self._derive()
        elif kind == "rates":
            self.rated = what
            self._derive()
        else:
            self._fold_own(what)

    def cut(self, *names: ProductName) -> None:
        """Write a version of some inputs."""
        for name in names:
            self.world.writer(name).cut()

    def _owner(self, table: str) -> Writer:
        return self.customers if table == "customers" else self.orders

    def _derive(self) -> None:
        """Change the product's contract and definition."""
        transform = RATED_TRANSFORM if self.rated else SPENDING_TRANSFORM
        if self.decimal:
            transform = transform.replace("cast(pl.Int64)", "cast(pl.Decimal(12, 2))")
        self.world.derive(
            tables=DECIMAL_TABLES if self.decimal else SPENDING_TABLES,
            inputs=RATED_INPUTS if self.rated else SPENDING_INPUTS,
            transform=transform,
        )
        self.derivation = None

    @property
    def inputs(self) -> tuple[ProductName, ...]:
        """The products that it is made of now."""
        return (CUSTOMERS, ORDERS, RATES) if self.rated else (CUSTOMERS, ORDERS)

    def expected(self) -> dict[str, pl.DataFrame]:
        """What the contract as it is now makes of the books."""
        found = self.world.expected(RATED_TRANSFORM if self.rated else SPENDING_TRANSFORM)
        if self.decimal:
            found["spending"] = found["spending"].with_columns(pl.col("line_count").cast(pl.Decimal(12, 2)))
        return found

    def _release(self, *, everything: bool) -> None:
        """Judge what was rejected again: all of it passes, or only what has an even position."""

        def judge(frame: pa.Table) -> pa.Array:
            odd = pc.equal(pc.bit_wise_and(frame["_position"], 1), 1).to_pylist()
            return pa.array([["rule"] if one else None for one in odd], pa.list_(pa.string()))

        for table in ("customers", "orders", "lines"):
            self._owner(table).release(table, (lambda frame: None) if everything else judge)

    def _move(self, old: int, new: int) -> None:
        rows = self.orders.rows["orders"]
        if (old,) in rows and (new,) not in rows:
            # What is left out would join the entry of a key that waits, at a gate.
            unchanged = [] if {(old,), (new,)} & self.orders.held("orders") else ["currency"]
            self.orders.move("orders", (old,), (new, *rows[old,][1:]), unchanged=unchanged)

    def _fold_own(self, table: str) -> None:
        last = VersionLog(self.world.mesh.layout.versions(SPENDING)).latest()
        if last is not None and last.tables[table] >= 0:
            generation = last.generation(table)
            log = ChangeLog.open(self.world.mesh.layout.table(SPENDING, "changes", table, generation))
            uri = self.world.mesh.layout.table(SPENDING, "current", table, generation)
            fold(log, Current.open_or_create(uri, log.row_schema, log.key), last.tables[table])

    def opened(self) -> Derivation:
        if self.derivation is None:
            plan = self.world.plans()[0]
            self.derivation = Derivation(plan, "test", self.transformer, proof_seconds=0.0)
            self.derivation.open()
        return self.derivation

    def step(self) -> bool:
        derivation = self.opened()
        heads = {}
        for name in self.inputs:
            row = self.world.writer(name).versions.latest()
            if row is None:
                return False
            heads[name] = row
        if derivation.due(heads) is None:
            return False
        done = derivation.step(heads)
        assert done.messages == ()
        assert done.whole or not (self.rated and done.batch.row_count)
        self.made[done.version.row.version] = {
            table: self.world.rows(SPENDING, table) for table in SPENDING_TABLES
        }
        return True

    def crash(self, point: str) -> None:
        reach = failpoint.reach

        def die(reached: str) -> None:
            if reached == point:
                raise Crash

        failpoint.reach = die
        try:
            self.step()
        except Crash:
            last = VersionLog(self.world.mesh.layout.versions(SPENDING)).latest()
            self.torn.add(1 + (last.version if last else 0))
        finally:
            failpoint.reach = reach
            self.derivation = None


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transformer]:
    """One for all examples: its process is kept."""
    with Transformer(tmp_path_factory.mktemp("home")) as transformer:
        yield transformer


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(histories)
@example(RELEASES)
@example(TORN)
@example(CHANGED_RATES)
def test_it_equals_a_recomputation(transformer: Transformer, history: list[Round]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        world.derive()
        driver = Driver(world, transformer)
        for taken, end in history:
            for kind, what in (*taken, end):
                driver.take(kind, what)
        driver.cut(*driver.inputs)
        while driver.step():
            pass
        for table, rows in driver.expected().items():
            assert_frame_equal(world.rows(SPENDING, table), rows, check_column_order=False)
            minimal(world, SPENDING, table, torn=driver.torn)
        # Whatever came after it, every version is what it was.
        for version, tables in driver.made.items():
            for table, rows in tables.items():
                then = world.mesh.open(f"{SPENDING}.{table}", as_of=version).polars()
                assert_frame_equal(then.sort(SPENDING_TABLES[table][1]), rows)


def minimal(world: World, name: ProductName, table: str, *, torn: Collection[int] = ()) -> None:
    """Every row of the log changes something, and a key changes once in a version.

    ``torn`` are versions that an attempt died before, having appended to them: that stays, and where the
    inputs have moved on since, the next attempt changes it in the same version.
    """
    rows = world.changes(name, table)
    key = list(SPENDING_TABLES[table][1])
    names = [column for column in SPENDING_TABLES[table][0].names if column not in key]
    first = ChangeLog.open(world.mesh.changes_uri(name, table)).after + 1
    assert rows["_seq"].to_list() == list(range(first, first + rows.height))
    whole = rows.filter(~pl.col("_position").is_in(list(torn)))
    assert not whole.select(*key, "_position").is_duplicated().any()
    assert not rows.select(*key, "_position", "_ordinal").is_duplicated().any()
    held: dict[Any, Any] = {}
    for row in rows.iter_rows(named=True):
        own = tuple(row[column] for column in key)
        if row["_op"] == "c":
            assert own not in held
        else:
            assert {column: row["_before"][column] for column in names} == held.pop(own)
        if row["_op"] != "d":
            image = {column: row[column] for column in names}
            assert row["_op"] == "c" or any(row["_before"][column] != image[column] for column in names)
            held[own] = image


def test_decimal_and_null_survive(transformer: Transformer, tmp_path: Path) -> None:
    world = World(tmp_path)
    world.derive()
    driver = Driver(world, transformer)
    driver.take("customer", [(1, None)])
    driver.take("line", [(1, 1, Decimal("0.10"))])
    driver.take("order", [(1, None, "EUR")])
    driver.cut(CUSTOMERS, ORDERS)
    assert driver.step()
    assert world.rows(SPENDING, "spending").to_dicts() == [
        {"customer_id": 1, "region": None, "line_count": 0, "total": Decimal("0.00"), "latest": None}
    ]
    assert isinstance(world.rows(SPENDING, "currencies"), pl.DataFrame)
