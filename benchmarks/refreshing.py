"""A contender: two inputs of many rows, and a product derived from both; its refreshes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.changes import KEY, ROW_SCHEMA, change_frame
from benchmarks.child import Report, serve
from benchmarks.measure import tree_seconds
from mesh_assets.derive.derivation import Derivation, Heads
from mesh_assets.derive.plan import DerivePlan, derive_plan
from mesh_assets.derive.transform import Transformer
from mesh_assets.lake.current import Current
from mesh_assets.lake.fold import fold
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.version import InputPosition, VersionLog
from mesh_assets.names import CHANGES, CURRENT, Layout, ProductName
from mesh_assets.product import Mesh
from mesh_assets.settings import Settings

_ORDERS, _PAYMENTS = ProductName("sales", "orders"), ProductName("sales", "payments")
_BALANCES = ProductName("sales", "balances")
_PAYMENT_SCHEMA = pa.schema(
    [("order_id", pa.int64()), ("number", pa.int32()), ("method", pa.string()), ("cents", pa.int64())]
)
_PAYMENT_KEY = ("order_id", "number")
_CHANGE_COUNT = 10_000
_BATCH_ROWS = 500_000
_REPEATS = 5
_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)

_DOMAIN = """\
type: mesh_assets.orchestration.Domain
attributes:
  description: Orders and what was paid for them.
  owner: team:benchmark
  sources:
    app: {kind: postgres, description: Not there.}
"""
_CAPTURED = "type: mesh_assets.orchestration.DataProduct\nattributes:\n  source: app\n"
_DERIVED = """\
type: mesh_assets.orchestration.DataProduct
attributes:
  inputs:
    orders: {product: sales.orders, key: {order_id: order_id}}
    payments: {product: sales.payments, key: {order_id: order_id}}
  limits: {max_seconds: 900, max_memory_mb: 16000}
"""
_TRANSFORM = '''\
"""What is still to be paid for each order."""

import polars as pl


def transform(inputs):
    paid = inputs["payments"].group_by("order_id").agg(
        payment_count=pl.len().cast(pl.Int64), paid=pl.col("cents").sum()
    )
    return inputs["orders"].join(paid, on="order_id", how="left").select(
        "order_id",
        "customer_id",
        "currency",
        pl.col("payment_count").fill_null(0),
        balance=(pl.col("amount") * 100).cast(pl.Int64) - pl.col("paid").fill_null(0),
    )
'''
_TYPES = {
    pa.int64(): ("integer", "bigint"),
    pa.int32(): ("integer", "integer"),
    pa.string(): ("string", "text"),
    pa.decimal128(14, 2): ("number", "numeric(14,2)"),
    pa.timestamp("us", "UTC"): ("timestamp", "timestamptz"),
}
_BALANCE_SCHEMA = pa.schema(
    [
        ("order_id", pa.int64()),
        ("customer_id", pa.int64()),
        ("currency", pa.string()),
        ("payment_count", pa.int64()),
        ("balance", pa.int64()),
    ]
)


class _Cost(NamedTuple):
    """What one refresh took."""

    seconds: float
    transform_seconds: float
    cpu_seconds: float


def work(parameters: dict[str, Any], report: Report) -> dict[str, Any]:
    """Build inputs and product, or refresh a product that was built."""
    folder = Path(parameters["folder"])
    if parameters["task"] == "build":
        return _build(folder, parameters["row_count"], report)
    return _measure(folder, parameters["row_count"], report)


def _contract(name: ProductName, schema: pa.Schema, key: tuple[str, ...], *, captured: bool) -> str:
    lines = [
        "apiVersion: v3.1.0",
        "kind: DataContract",
        f"id: {name}",
        f"name: {name.product}",
        "version: 1.0.0",
        "status: active",
        f"domain: {name.domain}",
        "team: {name: benchmark}",
        "schema:",
        f"  - name: {name.product}",
    ]
    if captured:
        lines.append(f"    physicalName: shop.{name.product}")
    lines.append("    properties:")
    for column in schema:
        logical, physical = _TYPES[column.type]
        said = f'name: {column.name}, logicalType: {logical}, physicalType: "{physical}"'
        if column.name in key:
            said += f", primaryKey: true, primaryKeyPosition: {key.index(column.name) + 1}"
        lines.append(f"      - {{{said}}}")
    return "\n".join(lines) + "\n"


def _products(folder: Path) -> Settings:
    root = folder / "products" / "sales"
    for name in (_ORDERS, _PAYMENTS, _BALANCES):
        (root / name.product).mkdir(parents=True, exist_ok=True)
    (root / "defs.yaml").write_text(_DOMAIN)
    for name, schema, key in ((_ORDERS, ROW_SCHEMA, KEY), (_PAYMENTS, _PAYMENT_SCHEMA, _PAYMENT_KEY)):
        (root / name.product / "contract.yaml").write_text(_contract(name, schema, key, captured=True))
        (root / name.product / "defs.yaml").write_text(_CAPTURED)
    (root / "balances" / "contract.yaml").write_text(
        _contract(_BALANCES, _BALANCE_SCHEMA, KEY, captured=False)
    )
    (root / "balances" / "defs.yaml").write_text(_DERIVED)
    (root / "balances" / "transform.py").write_text(_TRANSFORM)
    return Settings(home=folder / "home", products=folder / "products", lake=str(folder / "lake"))


def _payment_frame(order_ids: np.ndarray, position: int) -> pa.Table:
    """One payment of each of these orders."""
    count = len(order_ids)
    ids = pa.array(order_ids.astype(np.int64))
    moment = _BEGAN + timedelta(seconds=position)
    return pa.table(
        {
            "order_id": ids,
            "number": pa.repeat(pa.scalar(1, pa.int32()), count),
            "method": pa.repeat("card", count),
            "cents": pc.add(pc.multiply(ids, 37), position),
            "_op": pa.repeat("r" if position == 0 else "u", count),
            "_position": pa.repeat(pa.scalar(position, pa.int64()), count),
            "_ordinal": pa.array(np.arange(count)),
            "_xid": pa.repeat(pa.scalar(1, pa.int64()), count),
            "_committed_at": pa.repeat(pa.scalar(moment, pa.timestamp("us", "UTC")), count),
        }
    )


class _Input:
    """One of the inputs."""

    def __init__(self, layout: Layout, name: ProductName, schema: pa.Schema, key: tuple[str, ...]) -> None:
        self.name, self._layout = name, layout
        uri = layout.table(name, CHANGES, name.product)
        self.log = ChangeLog.open(uri) if ChangeLog.exists(uri) else ChangeLog.create(uri, schema, key)
        self.versions = VersionLog(layout.versions(name))
        self.position = (self.log.position("app") or (0, 0))[0]

    def append(self, frame: pa.Table, position: int) -> None:
        self.position = max(position, self.position)
        self.log.append(
            frame,
            source="app",
            position=(self.position, self.log.seq + frame.num_rows),
            captured_at=datetime.now(UTC),
            schema_version=1,
        )

    def cut(self) -> None:
        self.versions.append(
            tables={self.name.product: self.log.seq},
            positions={"app": InputPosition(self.position)},
            row_count={},
            contract_hash="0" * 64,
            code_version="benchmark",
            run_id="benchmark",
            actor="benchmark",
            committed_at=_BEGAN + timedelta(seconds=self.position),
        )

    def fold(self) -> None:
        uri = self._layout.table(self.name, CURRENT, self.name.product)
        fold(self.log, Current.open_or_create(uri, self.log.row_schema, self.log.key), self.log.seq)


def _inputs(layout: Layout) -> tuple[_Input, _Input]:
    return (
        _Input(layout, _ORDERS, ROW_SCHEMA, KEY),
        _Input(layout, _PAYMENTS, _PAYMENT_SCHEMA, _PAYMENT_KEY),
    )


def _plan(folder: Path) -> DerivePlan:
    settings = _products(folder)
    return derive_plan(settings, Mesh(settings).discovery, _BALANCES)


def _heads(inputs: tuple[_Input, ...]) -> Heads:
    return {one.name: row for one in inputs if (row := one.versions.latest()) is not None}


def _build(folder: Path, row_count: int, report: Report) -> dict[str, Any]:
    plan = _plan(folder)
    orders, payments = inputs = _inputs(plan.layout)
    for first in range(0, row_count, _BATCH_ROWS):
        ids = np.arange(first, min(row_count, first + _BATCH_ROWS))
        orders.append(change_frame(ids, "r", 1), 1)
        payments.append(_payment_frame(ids, 0), 0)
        report(progress=first + len(ids))
    for one in inputs:
        one.cut()
        one.fold()
    with Transformer(plan.home) as transformer:
        derivation = Derivation(plan, "benchmark", transformer)
        derivation.open()
        step = derivation.step(_heads(inputs))
    target = plan.targets[0]
    log = ChangeLog.open(target.changes_uri)
    fold(log, Current.open_or_create(target.current_uri, log.row_schema, log.key), log.seq)
    return {"seconds": step.seconds, "row_count": step.batch.row_count}


def _measure(folder: Path, row_count: int, report: Report) -> dict[str, Any]:
    plan = _plan(folder)
    orders, payments = inputs = _inputs(plan.layout)
    random = np.random.default_rng(1)
    position, steps = 10, 0
    count = min(_CHANGE_COUNT, row_count // 20)

    def change(ids: np.ndarray) -> None:
        """Half of the changes go to each input."""
        nonlocal position
        position += 1
        half = len(ids) // 2
        orders.append(change_frame(ids[:half], "u", position), position)
        payments.append(_payment_frame(ids[half:], position), position)
        for one in inputs:
            one.cut()

    def scattered() -> np.ndarray:
        return np.sort(random.choice(row_count, count, replace=False))

    def clustered() -> np.ndarray:
        first = int(random.integers(0, row_count - count))
        return np.arange(first, first + count)

    found: dict[str, Any] = {"change_count": count}
    with Transformer(plan.home) as transformer:
        derivation = Derivation(plan, "benchmark", transformer, proof_seconds=1e9)
        derivation.open()

        def refresh(ids: np.ndarray, whole: str | None = None) -> _Cost:
            nonlocal steps
            change(ids)
            began, began_cpu = time.perf_counter(), tree_seconds()
            step = derivation.step(_heads(inputs), whole_because=whole)
            seconds, cpu_seconds = time.perf_counter() - began, tree_seconds() - began_cpu
            assert step.batch.row_count == count, step
            assert (step.whole is None) == (whole is None), step.whole
            steps += 1
            report(progress=steps)
            return _Cost(seconds, step.transform_seconds, cpu_seconds)

        def keep(name: str, taken: list[_Cost], of: Callable[[list[float]], float]) -> None:
            for what, values in zip(_Cost._fields, zip(*taken, strict=True), strict=True):
                found[f"{name}_{what}"] = of(list(values))
            report(part=name)

        # The first one starts the process that runs the transform.
        refresh(scattered())
        report(part="start")
        for name, ids in (("random", scattered), ("clustered", clustered)):
            keep(name, [refresh(ids()) for _ in range(_REPEATS)], statistics.median)
        keep("whole", [refresh(scattered(), "the benchmark asks for it") for _ in range(2)], min)
    return found


if __name__ == "__main__":
    serve(work)
