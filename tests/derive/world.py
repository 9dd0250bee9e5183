"""A small organisation: two products that are written by hand, and products derived from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from mesh_assets.derive import DerivePlan, DeriveShift
from mesh_assets.lake.current import Current, FoldPolicy
from mesh_assets.lake.fold import fold
from mesh_assets.lake.log import ChangeLog, log_schema
from mesh_assets.lake.quarantine import Judge, open_rows, releases
from mesh_assets.lake.read import rows_at
from mesh_assets.lake.table import Table
from mesh_assets.lake.version import InputPosition, VersionLog
from mesh_assets.names import CHANGES, CURRENT, ProductName
from mesh_assets.product import Mesh
from mesh_assets.settings import Settings
from mesh_assets.shift.report import Budget, ShiftResult, Silent

CUSTOMERS, ORDERS = ProductName("shop", "customers"), ProductName("shop", "orders")
RATES, SPENDING = ProductName("shop", "rates"), ProductName("shop", "spending")
SCHEMAS = {
    (CUSTOMERS, "customers"): pa.schema([("customer_id", pa.int64()), ("region", pa.string())]),
    (ORDERS, "orders"): pa.schema(
        [("order_id", pa.int64()), ("customer_id", pa.int64()), ("currency", pa.string())]
    ),
    (ORDERS, "lines"): pa.schema(
        [("order_id", pa.int64()), ("line_number", pa.int32()), ("amount", pa.decimal128(12, 2))]
    ),
    (RATES, "rates"): pa.schema([("currency", pa.string()), ("rate", pa.int64())]),
}
KEYS = {
    "customers": ("customer_id",),
    "orders": ("order_id",),
    "lines": ("order_id", "line_number"),
    "rates": ("currency",),
}
_PHYSICAL = {
    pa.int64(): ("integer", "bigint"),
    pa.int32(): ("integer", "integer"),
    pa.string(): ("string", "text"),
    pa.float64(): ("number", "double precision"),
    pa.date32(): ("date", "date"),
    pa.decimal128(12, 2): ("number", "numeric(12,2)"),
    pa.decimal128(18, 2): ("number", "numeric(18,2)"),
}
_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
EAGER = Budget(
    idle_seconds=0.0,
    batch_seconds=0.0,
    fold=None,
    check_seconds=None,
)
FOLDING = Budget(
    idle_seconds=0.0, batch_seconds=0.0, fold=FoldPolicy(share=0.0, min_count=1, min_age_seconds=0.0)
)

SPENDING_TRANSFORM = '''\
"""What each customer spent."""

import polars as pl


def transform(inputs):
    lines = inputs["lines"].join(inputs["orders"], on="order_id").filter(pl.col("customer_id").is_not_null())
    spent = lines.group_by("customer_id").agg(
        line_count=pl.len(),
        total=pl.col("amount").sum().cast(pl.Decimal(18, 2)),
        latest=pl.col("currency").sort_by("order_id", "line_number").last(),
    )
    spending = inputs["customers"].join(spent, on="customer_id", how="left").select(
        "customer_id",
        "region",
        pl.col("line_count").fill_null(0).cast(pl.Int64),
        pl.col("total").fill_null(0).cast(pl.Decimal(18, 2)),
        "latest",
    )
    currencies = lines.group_by("customer_id", "currency").agg(
        total=pl.col("amount").sum().cast(pl.Decimal(18, 2))
    )
    return {"spending": spending, "currencies": currencies}
'''
RATED_TRANSFORM = SPENDING_TRANSFORM.replace(
    """.filter(pl.col("customer_id").is_not_null())
""",
    """.filter(pl.col("customer_id").is_not_null())
    amount = pl.col("amount") * pl.col("rate").fill_null(1)
    lines = lines.join(inputs["rates"], on="currency", how="left").with_columns(amount=amount)
""",
)
"""In another currency, whose rates lead to no customer: all of it is recomputed, always."""
SPENDING_TABLES = {
    "spending": (
        pa.schema(
            [
                ("customer_id", pa.int64()),
                ("region", pa.string()),
                ("line_count", pa.int64()),
                ("total", pa.decimal128(18, 2)),
                ("latest", pa.string()),
            ]
        ),
        ("customer_id",),
    ),
    "currencies": (
        pa.schema([("customer_id", pa.int64()), ("currency", pa.string()), ("total", pa.decimal128(18, 2))]),
        ("customer_id", "currency"),
    ),
}
SPENDING_INPUTS = """\
    customers:
      product: shop.customers
      key: {customer_id: customer_id}
    orders:
      product: shop.orders
      key: {customer_id: customer_id}
    lines:
      product: shop.orders
      table: lines
      through: {input: orders, by: {order_id: order_id}}
"""
RATED_INPUTS = f"""\
{SPENDING_INPUTS}
    rates:
      product: shop.rates
"""


def contract_text(
    name: ProductName,
    tables: Mapping[str, tuple[pa.Schema, Sequence[str]]],
    *,
    captured: bool,
    quality: Mapping[str, str] | None = None,
    version: str = "1.0.0",
) -> str:
    """A contract over these tables; ``quality`` is YAML by column."""
    lines = [
        "apiVersion: v3.1.0",
        "kind: DataContract",
        f"id: {name}",
        f"name: {name.product}",
        f"version: {version}",
        "status: active",
        f"domain: {name.domain}",
        "team:",
        "  name: shop",
        "schema:",
    ]
    for table, (schema, key) in tables.items():
        lines += [f"  - name: {table}", "    logicalType: object"]
        lines += [f"    physicalName: shop.{table}"] if captured else []
        lines += ["    properties:"]
        for column in schema:
            logical, physical = _PHYSICAL[column.type]
            lines += [f"      - name: {column.name}", f"        logicalType: {logical}"]
            lines += [f"        physicalType: {physical}"]
            if column.name in key:
                lines += [
                    "        primaryKey: true",
                    f"        primaryKeyPosition: {key.index(column.name) + 1}",
                ]
            if quality and column.name in quality:
                lines += [" " * 8 + one for one in quality[column.name].splitlines()]
    return "\n".join(lines) + "\n"


@dataclass
class Writer:
    """One product that a test writes by hand, its rows kept beside."""

    mesh: Mesh
    name: ProductName
    tables: dict[str, pa.Schema]
    rows: dict[str, dict[tuple[Any, ...], tuple[Any, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.position = 0
        self.logs = {}
        for table, schema in self.tables.items():
            uri = self.mesh.layout.table(self.name, CHANGES, table)
            self.logs[table] = (
                ChangeLog.open(uri) if Table.exists(uri) else ChangeLog.create(uri, schema, KEYS[table])
            )
            self.rows.setdefault(table, {})
        self.versions = VersionLog(self.mesh.layout.versions(self.name))

    def key(self, table: str, row: Sequence[Any]) -> tuple[Any, ...]:
        """The key's values in a row."""
        return tuple(row[self.tables[table].get_field_index(name)] for name in KEYS[table])

    def put(
        self,
        table: str,
        *rows: Sequence[Any],
        rejected: bool = False,
        exact: Mapping[str, str] | None = None,
    ) -> None:
        """Insert or update rows; rejected ones stay out of what counts; ``exact`` is of all of them."""
        ops = ["u" if self.key(table, row) in self.rows[table] else "c" for row in rows]
        self._append(table, ops, rows, rejected=rejected, exact=exact)
        if not rejected:
            self.rows[table] |= {self.key(table, row): tuple(row) for row in rows}

    def held(self, table: str) -> set[tuple[Any, ...]]:
        """The keys of which rejected rows wait."""
        return set(open_rows(self.logs[table]).select(KEYS[table]).iter_rows())

    def release(self, table: str, judge: Judge) -> None:
        """Append rejected rows that pass by now once more, late and with their first positions."""
        log, names = self.logs[table], self.tables[table].names
        for one in releases(log, judge):
            if not one.frame.num_rows:
                continue
            position = log.position("app")
            assert position is not None
            log.append(
                one.frame,
                source="app",
                position=position,
                captured_at=_BEGAN + timedelta(seconds=self.position),
                schema_version=1,
                rejected_by=one.rejected_by,
            )
            verdicts = [None] * one.frame.num_rows if one.rejected_by is None else one.rejected_by.to_pylist()
            for values, rules in zip(one.frame.select(names).to_pylist(), verdicts, strict=True):
                if rules is None:
                    row = tuple(values[name] for name in names)
                    self.rows[table][self.key(table, row)] = row

    def remove(self, table: str, *keys: Sequence[Any]) -> None:
        """Delete rows."""
        schema = self.tables[table]
        wholes = []
        for key in keys:
            values = dict(zip(KEYS[table], key, strict=True))
            wholes.append([values.get(name) for name in schema.names])
            self.rows[table].pop(tuple(key), None)
        self._append(table, ["d"] * len(keys), wholes)

    def move(self, table: str, key: Sequence[Any], row: Sequence[Any], unchanged: Sequence[str] = ()) -> None:
        """Give a row another key: a removal and a creation that names the old row; some columns left out."""
        schema = self.tables[table]
        old = self.rows[table].pop(tuple(key))
        values = dict(zip(KEYS[table], key, strict=True))
        gone = [values.get(name) for name in schema.names]
        given = [None if name in unchanged else value for name, value in zip(schema.names, row, strict=True)]
        self._append(
            table,
            ["d", "c"],
            [gone, given],
            before=[None, dict(zip(schema.names, old, strict=True))],
            unchanged=[None, list(unchanged) or None],
        )
        whole = tuple(
            old[place] if name in unchanged else row[place] for place, name in enumerate(schema.names)
        )
        self.rows[table][self.key(table, whole)] = whole

    def truncate(self, table: str) -> None:
        """Empty a table."""
        self._append(table, ["t"], [[None] * len(self.tables[table])])
        self.rows[table].clear()

    def _append(
        self,
        table: str,
        ops: Sequence[str],
        rows: Sequence[Sequence[Any]],
        *,
        rejected: bool = False,
        before: Sequence[Any] | None = None,
        unchanged: Sequence[Any] | None = None,
        exact: Mapping[str, str] | None = None,
    ) -> None:
        if not rows:
            return
        schema = self.tables[table]
        self.position += 1
        count = len(rows)
        at = _BEGAN + timedelta(seconds=self.position)
        whole = log_schema(schema)
        columns: dict[str, Any] = {
            column.name: pa.array([row[place] for row in rows], column.type)
            for place, column in enumerate(schema)
        }
        columns |= {
            "_op": pa.array(ops),
            "_position": pa.array([self.position] * count, pa.int64()),
            "_ordinal": pa.array(range(count), pa.int64()),
            "_xid": pa.array([1] * count, pa.int64()),
            "_committed_at": pa.array([at] * count, pa.timestamp("us", tz="UTC")),
        }
        if exact is not None:
            columns["_exact"] = pa.array([list(exact.items())] * count, whole.field("_exact").type)
        if before is not None:
            columns["_before"] = pa.array(before, whole.field("_before").type)
        if unchanged is not None:
            columns["_unchanged"] = pa.array(unchanged, pa.list_(pa.string()))
        self.logs[table].append(
            pa.table(columns),
            source="app",
            position=(self.position, count - 1),
            captured_at=at,
            schema_version=1,
            rejected_by=pa.array([["rule"]] * count, pa.list_(pa.string())) if rejected else None,
        )

    def cut(self, contract_hash: str = "0" * 64) -> int:
        """Write a version of everything so far; returns its number."""
        return self.versions.append(
            tables={table: log.seq for table, log in self.logs.items()},
            positions={"app": InputPosition(self.position)},
            row_count={},
            contract_hash=contract_hash,
            code_version="test",
            run_id="test",
            actor="test",
            committed_at=_BEGAN + timedelta(seconds=self.position),
        ).version

    def fold(self, table: str) -> None:
        """Fold the table up to its newest version."""
        last = self.versions.latest()
        if last is None or last.tables[table] < 0:
            return
        log = self.logs[table]
        uri = self.mesh.layout.table(self.name, CURRENT, table)
        fold(log, Current.open_or_create(uri, log.row_schema, log.key), last.tables[table])

    def frame(self, table: str) -> pl.DataFrame:
        """What the table holds, by the book that is kept beside."""
        schema = self.tables[table]
        rows = list(self.rows[table].values())
        columns = {
            column.name: pa.array([row[place] for row in rows], column.type)
            for place, column in enumerate(schema)
        }
        return pl.DataFrame(pl.from_arrow(pa.table(columns, schema=schema)))


class Listening(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        """Keep it."""
        self.messages.append(text)


class World:
    """Products' folders and a lake."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.products = folder / "products"
        shop = self.products / "shop"
        shop.mkdir(parents=True, exist_ok=True)
        (shop / "defs.yaml").write_text(
            "type: mesh_assets.orchestration.Domain\nattributes:\n  description: A shop.\n"
            "  owner: team:shop\n  sources:\n    app: {kind: postgres, description: The shop.}\n"
        )
        for name in (CUSTOMERS, ORDERS, RATES):
            tables = {
                table: (schema, KEYS[table]) for (owner, table), schema in SCHEMAS.items() if owner == name
            }
            self._product(
                name,
                contract_text(name, tables, captured=True),
                "type: mesh_assets.orchestration.DataProduct\nattributes:\n  source: app\n",
            )
        self.writers: dict[ProductName, Writer] = {}
        self.observer = Listening()
        self.reload()

    def _product(self, name: ProductName, contract: str, definition: str) -> Path:
        folder = self.products / name.domain / name.product
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "contract.yaml").write_text(contract)
        (folder / "defs.yaml").write_text(definition)
        return folder

    def derive(
        self,
        name: ProductName = SPENDING,
        tables: Mapping[str, tuple[pa.Schema, Sequence[str]]] = SPENDING_TABLES,
        inputs: str = SPENDING_INPUTS,
        transform: str = SPENDING_TRANSFORM,
        *,
        limits: str = "",
        quality: Mapping[str, str] | None = None,
        version: str = "1.0.0",
    ) -> None:
        """Add a derived product, or change it."""
        definition = f"type: mesh_assets.orchestration.DataProduct\nattributes:\n  inputs:\n{inputs}"
        if limits:
            definition += f"  limits: {limits}\n"
        folder = self.products / name.domain / name.product
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "transform.py").write_text(transform)
        self._product(
            name, contract_text(name, tables, captured=False, quality=quality, version=version), definition
        )
        self.reload()

    def reload(self) -> None:
        """Read the folders again."""
        self.mesh = Mesh(
            Settings(home=self.folder / "home", products=self.products, lake=str(self.folder / "lake"))
        )
        broken = self.mesh.discovery.broken
        assert not broken, broken

    def writer(self, name: ProductName) -> Writer:
        """The hand that writes a product."""
        if name not in self.writers:
            tables = {table: schema for (owner, table), schema in SCHEMAS.items() if owner == name}
            self.writers[name] = Writer(self.mesh, name, tables)
        return self.writers[name]

    def plans(self, domain: str = "shop") -> Sequence[DerivePlan]:
        """The derived products' plans."""
        return self.mesh.derive_plans(domain)

    def shift(self, budget: Budget = EAGER) -> ShiftResult:
        """Run one derive shift until nothing is due."""
        return DeriveShift(self.plans(), budget=budget, observer=self.observer).run()

    def rows(self, name: ProductName, table: str) -> pl.DataFrame:
        """What a product's table holds at its newest version."""
        last = VersionLog(self.mesh.layout.versions(name)).latest()
        assert last is not None
        generation = last.generation(table)
        log = ChangeLog.open(self.mesh.layout.table(name, CHANGES, table, generation))
        current_uri = self.mesh.layout.table(name, CURRENT, table, generation)
        return rows_at(log, current_uri, last.tables[table]).collect().sort(log.key)

    def changes(self, name: ProductName, table: str) -> pl.DataFrame:
        """A product's change log, in its newest generation."""
        return ChangeLog.open(self.mesh.changes_uri(name, table)).scan().collect().sort("_seq")

    def expected(
        self,
        transform: str = SPENDING_TRANSFORM,
        tables: Mapping[str, tuple[pa.Schema, Sequence[str]]] = SPENDING_TABLES,
    ) -> dict[str, pl.DataFrame]:
        """What the spending's transform makes of the books."""
        customers, orders = self.writer(CUSTOMERS), self.writer(ORDERS)
        inputs = {
            "customers": customers.frame("customers").lazy(),
            "orders": orders.frame("orders").lazy(),
            "lines": orders.frame("lines").lazy(),
        }
        if RATES in self.writers:
            inputs["rates"] = self.writer(RATES).frame("rates").lazy()
        module: dict[str, Any] = {}
        exec(transform, module)
        return {
            table: rows.collect().sort(tables[table][1])
            for table, rows in module["transform"](inputs).items()
        }
