"""A derived product is what a recomputation of all of it makes, after any mix of changes and crashes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
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
from tests.derive.world import CUSTOMERS, ORDERS, SPENDING, SPENDING_TABLES, SPENDING_TRANSFORM, World

POINTS = ("append.before", "append.first", "append.middle", "version.before", "version.after")

customer_ids = st.integers(0, 5)
order_ids = st.integers(0, 8)
amounts = st.decimals(0, 99, places=2)
regions = st.sampled_from(["north", "south", None])
currencies = st.sampled_from(["EUR", "CHF"])
line_numbers = st.integers(1, 2)

operations = st.one_of(
    st.tuples(st.just("customer"), st.lists(st.tuples(customer_ids, regions), min_size=1, max_size=4)),
    st.tuples(
        st.just("order"),
        st.lists(
            st.tuples(order_ids, st.one_of(customer_ids, st.none()), currencies), min_size=1, max_size=5
        ),
    ),
    st.tuples(st.just("line"), st.lists(st.tuples(order_ids, line_numbers, amounts), min_size=1, max_size=5)),
    st.tuples(st.just("rejected line"), st.tuples(order_ids, line_numbers, amounts)),
    st.tuples(st.just("remove customer"), customer_ids),
    st.tuples(st.just("remove order"), order_ids),
    st.tuples(st.just("remove line"), st.tuples(order_ids, line_numbers)),
    st.tuples(st.just("move order"), st.tuples(order_ids, order_ids)),
    st.tuples(st.just("truncate"), st.sampled_from(["customers", "orders", "lines"])),
    st.tuples(st.just("fold"), st.sampled_from(["customers", "orders", "lines"])),
    st.tuples(st.just("cut"), st.sampled_from([CUSTOMERS, ORDERS])),
    st.tuples(st.just("step"), st.none()),
    st.tuples(st.just("crash"), st.sampled_from(POINTS)),
    st.tuples(st.just("fold own"), st.sampled_from(sorted(SPENDING_TABLES))),
    st.tuples(st.just("contract"), st.sampled_from(["counts are integers", "counts are decimals"])),
)

_COUNTED = pa.decimal128(12, 2)
_SCHEMA, _KEY = SPENDING_TABLES["spending"]
_PLACE = _SCHEMA.get_field_index("line_count")
DECIMAL_TABLES = SPENDING_TABLES | {"spending": (_SCHEMA.set(_PLACE, pa.field("line_count", _COUNTED)), _KEY)}
DECIMAL_TRANSFORM = SPENDING_TRANSFORM.replace("cast(pl.Int64)", "cast(pl.Decimal(12, 2))")


class Crash(BaseException):
    """The process ended here."""


class Driver:
    """Takes the operations."""

    def __init__(self, world: World, transformer: Transformer) -> None:
        self.world = world
        self.transformer = transformer
        self.customers, self.orders = world.writer(CUSTOMERS), world.writer(ORDERS)
        self.derivation: Derivation | None = None
        self.decimal = False
        self.made: dict[int, dict[str, pl.DataFrame]] = {}

    def take(self, kind: str, what: Any) -> None:
        if kind == "customer":
            self.customers.put("customers", *{row[0]: row for row in what}.values())
        elif kind == "order":
            self.orders.put("orders", *{row[0]: row for row in what}.values())
        elif kind == "line":
            self.orders.put("lines", *{row[:2]: row for row in what}.values())
        elif kind == "rejected line":
            self.orders.put("lines", what, rejected=True)
        elif kind == "remove customer":
            self.customers.remove("customers", (what,))
        elif kind == "remove order":
            self.orders.remove("orders", (what,))
        elif kind == "remove line":
            self.orders.remove("lines", what)
        elif kind == "move order":
            self._move(*what)
        elif kind == "truncate":
            (self.customers if what == "customers" else self.orders).truncate(what)
        elif kind == "fold":
            (self.customers if what == "customers" else self.orders).fold(what)
        elif kind == "cut":
            self.world.writer(what).cut()
        elif kind == "step":
            self.step()
        elif kind == "crash":
            self.crash(what)
        elif kind == "contract":
            self.contract(decimal=what == "counts are decimals")
        else:
            self._fold_own(what)

    def contract(self, *, decimal: bool) -> None:
        """Give a column another type, and the log with it another generation."""
        self.decimal = decimal
        if decimal:
            self.world.derive(tables=DECIMAL_TABLES, transform=DECIMAL_TRANSFORM)
        else:
            self.world.derive()
        self.derivation = None

    def expected(self) -> dict[str, pl.DataFrame]:
        """What the contract as it is now makes of the books."""
        found = self.world.expected()
        if self.decimal:
            found["spending"] = found["spending"].with_columns(pl.col("line_count").cast(pl.Decimal(12, 2)))
        return found

    def _move(self, old: int, new: int) -> None:
        rows = self.orders.rows["orders"]
        if (old,) in rows and (new,) not in rows:
            self.orders.move("orders", (old,), (new, *rows[old,][1:]), unchanged=["currency"])

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
        for name in (CUSTOMERS, ORDERS):
            row = self.world.writer(name).versions.latest()
            if row is None:
                return False
            heads[name] = row
        if derivation.due(heads) is None:
            return False
        done = derivation.step(heads)
        assert done.messages == ()
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
            pass
        finally:
            failpoint.reach = reach
            self.derivation = None


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transformer]:
    """One for all examples: its process is kept."""
    with Transformer(tmp_path_factory.mktemp("home")) as transformer:
        yield transformer


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(operations, min_size=1, max_size=30))
def test_it_equals_a_recomputation(transformer: Transformer, taken: list[tuple[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        world.derive()
        driver = Driver(world, transformer)
        for kind, what in taken:
            driver.take(kind, what)
        for name in (CUSTOMERS, ORDERS):
            world.writer(name).cut()
        driver.step()
        while driver.step():
            pass
        for table, rows in driver.expected().items():
            assert_frame_equal(world.rows(SPENDING, table), rows, check_column_order=False)
            minimal(world, SPENDING, table)
        # Whatever came after it, every version is what it was.
        for version, tables in driver.made.items():
            for table, rows in tables.items():
                then = world.mesh.open(f"{SPENDING}.{table}", as_of=version).polars()
                assert_frame_equal(then.sort(SPENDING_TABLES[table][1]), rows)


def minimal(world: World, name: ProductName, table: str) -> None:
    """Every row of the log changes something, and a key changes once in a version."""
    rows = world.changes(name, table)
    key = list(SPENDING_TABLES[table][1])
    names = [column for column in SPENDING_TABLES[table][0].names if column not in key]
    first = ChangeLog.open(world.mesh.changes_uri(name, table)).after + 1
    assert rows["_seq"].to_list() == list(range(first, first + rows.height))
    assert rows.select(*key, "_position").is_duplicated().sum() == 0
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
    for name in (CUSTOMERS, ORDERS):
        driver.take("cut", name)
    assert driver.step()
    assert world.rows(SPENDING, "spending").to_dicts() == [
        {"customer_id": 1, "region": None, "line_count": 0, "total": Decimal("0.00"), "latest": None}
    ]
    assert isinstance(world.rows(SPENDING, "currencies"), pl.DataFrame)
