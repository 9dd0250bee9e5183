"""SQL over products: names, joins, what is refused, and that it reads what polars reads."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from mesh_assets.errors import QueryRefused, UnknownName
from mesh_assets.lake.access import Access
from mesh_assets.lake.current import Current
from mesh_assets.lake.fold import fold
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.query import sql, table_names
from mesh_assets.lake.read import Pinned, open_pinned

MOMENT = datetime(2026, 3, 1, 12, tzinfo=UTC)
ORDERS = pa.schema(
    [
        ("order_id", pa.int64()),
        ("amount", pa.decimal128(14, 2)),
        ("tags", pa.list_(pa.string())),
        ("placed_at", pa.timestamp("us", "UTC")),
        ("promised_on", pa.date32()),
        ("label", pa.binary()),
        ("note", pa.string()),
    ]
)
LINES = pa.schema([("order_id", pa.int64()), ("line_number", pa.int32()), ("quantity", pa.int32())])


def append(log: ChangeLog, op: str, rows: list[dict[str, Any]], **change: list[Any]) -> None:
    """Append changes of one op."""
    first = log.seq + 1
    frame = pa.Table.from_pylist(rows, schema=log.row_schema)
    schema = log.table.schema
    columns = {
        "_op": [op] * len(rows),
        "_position": [100 + first] * len(rows),
        "_ordinal": list(range(len(rows))),
    }
    for name, values in {**columns, "_committed_at": [MOMENT] * len(rows), **change}.items():
        frame = frame.append_column(schema.field(name), pa.array(values, schema.field(name).type))
    log.append(frame, source="app", position=(100 + first, len(rows)), captured_at=MOMENT, schema_version=1)


def order(order_id: int, amount: str, note: str = "n") -> dict[str, Any]:
    """One order."""
    return {
        "order_id": order_id,
        "amount": Decimal(amount),
        "tags": ["a", None],
        "placed_at": MOMENT,
        "promised_on": MOMENT.date(),
        "label": b"\x00\xff",
        "note": note,
    }


class Store:
    """Two tables of a product, and how names find them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.access = Access()
        self.orders = self._create("orders", ORDERS, ("order_id",))
        self.lines = self._create("order_lines", LINES, ("order_id", "line_number"))
        self.names = {
            "sales.orders": "orders",
            "sales.orders.orders": "orders",
            "sales.orders.order_lines": "order_lines",
            "system.orders": "orders",
        }
        append(self.orders, "r", [order(n, f"{n}.25") for n in range(4)])
        append(
            self.lines,
            "r",
            [{"order_id": n, "line_number": m, "quantity": n * m} for n in range(4) for m in (1, 2)],
        )

    def _create(self, table: str, row: pa.Schema, key: tuple[str, ...]) -> ChangeLog:
        return ChangeLog.create(str(self.root / "changes" / table), row, key)

    def fold(self, log: ChangeLog) -> None:
        """Fold everything."""
        uri = log.table.uri.replace("changes", "current")
        fold(log, Current.open_or_create(uri, log.row_schema, log.key), log.seq)

    def resolve(self, name: str) -> Pinned:
        """The newest rows of a table."""
        if name not in self.names:
            raise UnknownName.of("product or table", name, self.names)
        place = self.root / "changes" / self.names[name]
        return open_pinned(str(place), str(place).replace("changes", "current"), access=self.access)

    def sql(self, text: str) -> list[tuple[Any, ...]]:
        """Rows of a statement."""
        return [tuple(row.values()) for row in sql(text, self.resolve).to_pylist()]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.mark.parametrize("folded", [False, True], ids=["log alone", "base and tail"])
@pytest.mark.parametrize("direct", [True, False], ids=["DuckDB reads files", "polars reads files"])
def test_rows_and_types_equal_those_of_polars(store: Store, folded: bool, direct: bool) -> None:
    if folded:
        store.fold(store.orders)
    if not direct:
        store.access = Access(columns=frozenset(ORDERS.names))
    append(store.orders, "u", [order(1, "100.00", ""), order(9, "9")], _unchanged=[["note"], None])
    append(store.orders, "d", [order(2, "0")])
    found = sql("select * from sales.orders order by order_id", store.resolve)
    expected = store.resolve("sales.orders").frame().sort("order_id").collect()
    assert found.column_names == ORDERS.names
    types = "int64 decimal128(14,2) list<l:string> timestamp[us,tz=UTC] date32[day] binary string"
    assert [str(kind).replace(" ", "") for kind in found.schema.types] == types.split()
    frame = pl.from_arrow(found)
    assert isinstance(frame, pl.DataFrame)
    assert frame.rows() == expected.rows()
    assert [row[0] for row in frame.rows()] == [0, 1, 3, 9]
    assert frame.rows()[1][-1] == "n", "the unchanged value"


def test_names_of_two_and_three_parts_aliases_and_qualified_columns(store: Store) -> None:
    store.fold(store.lines)
    joined = """
        select sales.orders.order_id, sum(order_lines.quantity) as total
        from sales.orders join sales.orders.order_lines on order_lines.order_id = orders.order_id
        where orders.amount > 1 group by all order by 1
    """
    assert store.sql(joined) == [(1, 3), (2, 6), (3, 9)]
    assert store.sql("select count(*) from sales.orders.orders o where o.order_id > 1") == [(2,)]
    cte = 'with orders as (select 7 as x) select x, (select count(*) from "sales"."orders") from orders'
    assert store.sql(cte) == [(7, 4)]
    assert store.sql("from sales.orders select max(amount)") == [(Decimal("3.25"),)]
    assert store.sql("describe sales.orders.order_lines")[1][:2] == ("line_number", "INTEGER")
    assert store.sql("select sum(range) from range(4)") == [(6,)]


def test_only_named_tables_are_resolved() -> None:
    text = (
        "with a as (from x.y) select * from a, b.c.d where 1 in (select 1 from e.f union select 2 from x.y)"
    )
    assert table_names(text) == [("b", "c", "d"), ("e", "f"), ("x", "y")]


def test_columns_added_after_the_fold(store: Store) -> None:
    store.fold(store.lines)
    store.lines.add_columns([pa.field("bonus", pa.float64())])
    assert store.sql("select count(*), count(bonus) from sales.orders.order_lines") == [(8, 0)]
    append(store.lines, "c", [{"order_id": 9, "line_number": 1, "quantity": 1, "bonus": 0.5}])
    assert store.sql("select count(*), sum(bonus) from sales.orders.order_lines") == [(9, 0.5)]


def test_a_restricted_reader_sees_the_mask(store: Store) -> None:
    store.fold(store.orders)
    store.access = Access(columns=frozenset({"order_id", "note"}), masks={"note": pl.lit("***")})
    assert store.sql("select * from sales.orders order by 1 limit 1") == [(0, "***")]
    with pytest.raises(QueryRefused, match="amount"):
        store.sql("select amount from sales.orders")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("selec 1", "syntax error"),
        ("insert into sales.orders values (1)", "Only SELECT"),
        ("attach '/tmp/other.db' as other", "Only SELECT"),
        ("copy (select 1) to '/tmp/out.csv'", "Only SELECT"),
        ("install httpfs", "Only SELECT"),
        ("set threads = 1", "Only SELECT"),
        ("select 1; select 2", "one statement"),
        ("", "one statement"),
        ("with gone as (delete from sales.orders returning *) select * from gone", "not written by SQL"),
        ("select * from read_parquet('/etc/passwd')", "read_parquet is not available"),
        ("select * from read_text('/etc/passwd')", "read_text is not available"),
        ("select * from glob('/*')", "glob is not available"),
        ("select * from sales.orders at (version => 1)", "pass as_of"),
        ("select nothing from sales.orders", "nothing"),
        ("select * from system.orders", "a domain named system"),
    ],
)
def test_what_does_not_just_read_products_is_refused(store: Store, text: str, message: str) -> None:
    with pytest.raises(QueryRefused, match=message):
        store.sql(text)


def test_files_are_out_of_reach(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "private.parquet"
    pl.DataFrame({"x": [1]}).write_parquet(file)
    with pytest.raises((QueryRefused, UnknownName)):
        store.sql(f"select * from '{file}'")


def test_unknown_names_come_with_a_suggestion(store: Store) -> None:
    with pytest.raises(UnknownName, match=r"did you mean 'sales\.orders'"):
        store.sql("select * from sales.order")
    with pytest.raises(UnknownName, match="orders"):
        store.sql("select * from orders")
