"""What a shift reports to Dagster: bounded, complete, and with what the UI needs."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg

from mesh_assets.cdc.source import SourceConfig
from mesh_assets.contract.loader import load
from mesh_assets.names import CHANGES, CURRENT, Layout, ProductName
from mesh_assets.orchestration.report import REPORT_SECONDS, RunObserver
from mesh_assets.orchestration.shift import deferred_interrupts
from mesh_assets.shift.plan import CapturePlan, Target
from mesh_assets.shift.report import BatchReport, ShiftResult, TableReport

PRODUCTS = Path(__file__).resolve().parents[2] / "products"
NAME = ProductName("sales", "orders")
KEYS = {kind: dg.AssetKey(NAME.asset_key(kind, "orders")) for kind in (CHANGES, CURRENT)}


def plan(root: str) -> CapturePlan:
    layout = Layout(root)
    target = Target(
        NAME,
        "orders",
        "shop.orders",
        ("order_id",),
        layout.table(NAME, CHANGES, "orders"),
        layout.table(NAME, CURRENT, "orders"),
        load(PRODUCTS / "sales" / "orders" / "contract.yaml", name=NAME).table("orders"),
    )
    source = SourceConfig("sales", "app", "postgresql://nowhere", ("shop.orders",), "slot", "publication")
    return CapturePlan(source, layout, (target,), {NAME: "hash"}, {})


def batch(number: int, *columns: str) -> BatchReport:
    counts = {"c": 7 * number, "d": 3 * number}
    types = dict.fromkeys(columns, "text")
    table = TableReport(NAME, "orders", 10, counts, 10 * number - 1, number, types)
    return BatchReport(
        (table,), 0x1_0000_0000 + number, 0x1_0000_0001 + number, datetime.now(UTC), 10, 2, 0, 0.01
    )


def run(
    root: str, batches: int, seconds_per_batch: float, added_at: int = 1000
) -> tuple[dg.DagsterInstance, str]:
    """A run whose shift lands batches, on a clock of its own; from ``added_at`` on with a column more."""

    @dg.multi_asset(
        specs=[
            dg.AssetSpec(KEYS[CHANGES], code_version="1"),
            dg.AssetSpec(KEYS[CURRENT], deps=[KEYS[CHANGES]], code_version="1"),
        ],
        can_subset=True,
    )
    def drain(context) -> Iterator[Any]:  # type: ignore[no-untyped-def]
        now = [0.0]
        observer = RunObserver(context, plan(root), lambda: False, lambda: True, clock=lambda: now[0])
        for number in range(1, batches + 1):
            observer.batch(batch(number, "order_id", *["channel"] * (number >= added_at)))
            now[0] += seconds_per_batch
        observer.ended(ShiftResult(row_count=10 * batches, batch_count=batches))
        yield from observer.results()

    instance = dg.DagsterInstance.ephemeral(tempdir=root)
    result = dg.materialize([drain], instance=instance)
    assert result.success
    return instance, result.run_id


def reports(instance: dg.DagsterInstance, kind: str) -> list[dg.AssetMaterialization]:
    records = instance.fetch_materializations(KEYS[kind], limit=1000).records
    return [record.asset_materialization for record in reversed(records) if record.asset_materialization]


def test_reports_are_bounded_by_time_not_by_batches(tmp_path: Any) -> None:
    instance, run_id = run(str(tmp_path), batches=600, seconds_per_batch=0.1)
    found = reports(instance, CHANGES)
    assert len(found) <= 60 / REPORT_SECONDS + 2
    lines = [entry for entry in instance.all_logs(run_id) if "landed in" in entry.user_message]
    assert len(lines) <= 60 / REPORT_SECONDS + 2


def test_counts_of_all_reports_add_up(tmp_path: Any) -> None:
    instance, _ = run(str(tmp_path), batches=50, seconds_per_batch=1.0)
    found = reports(instance, CHANGES)
    assert (
        sum(int(str(one.metadata["cdc/inserts"].value)) for one in found if "cdc/inserts" in one.metadata)
        == 350
    )
    assert (
        sum(int(str(one.metadata["cdc/deletes"].value)) for one in found if "cdc/deletes" in one.metadata)
        == 150
    )
    last = found[-1].metadata
    assert last["dagster/row_count"].value == 500
    assert last["delta/version"].value == 50
    assert last["cdc/position"].value == "1/00000032"


def test_reports_carry_what_staleness_is_judged_by(tmp_path: Any) -> None:
    instance, _ = run(str(tmp_path), batches=30, seconds_per_batch=1.0)
    first = reports(instance, CURRENT)[0]
    tags = first.tags or {}
    assert tags["dagster/code_version"] == "1"
    assert tags["dagster/data_version"] == tags["dagster/input_data_version/sales/orders/changes/orders"]


def test_columns_beyond_the_contract_are_shown_once_they_land(tmp_path: Any) -> None:
    instance, _ = run(str(tmp_path), batches=30, seconds_per_batch=1.0, added_at=15)
    for kind in (CHANGES, CURRENT):
        schemas = [one.metadata.get("dagster/column_schema") for one in reports(instance, kind)]
        assert schemas[0] is None
        assert isinstance(schemas[-1], dg.TableSchemaMetadataValue)
        columns = {column.name: column for column in schemas[-1].schema.columns}
        assert (columns["order_id"].type, columns["order_id"].constraints.other) == (
            "bigint",
            ["primary key"],
        )
        assert columns["channel"].type == "text"
        assert ("_seq" in columns) == (kind == CHANGES)


def test_a_signal_is_noted_and_the_handler_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with deferred_interrupts() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGTERM)
        assert interrupted()
    assert signal.getsignal(signal.SIGTERM) == before
