"""The commands on a captured organisation: what people see, and what programs read."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import polars as pl
import pytest
from typer.testing import Result

import mesh_assets
from mesh_assets.lake.log import ChangeLog
from mesh_assets.names import ProductName
from mesh_assets.product import Mesh
from tests.cli.conftest import Organisation

Run = Callable[..., Result]
Answer = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("home")


# -- status, products, show


def test_status_without_a_running_mesh(answer: Answer, mesh: Run) -> None:
    found = answer("status")
    assert found["running"] is False
    sources = {one["name"]: one for one in found["sources"]}
    assert set(sources) == {"sales.app", "distribution.app", "finance.app"}
    sales = sources["sales.app"]
    assert sales["state"] == "idle"
    assert sales["slot_active"] is False
    assert sales["lag_seconds"] == 0
    assert sales["wal_status"] == "reserved"
    assert sales["wal_retained_bytes"] >= 0
    assert sales["parked"] == sales["gaps"] == []
    products = {one["name"]: one for one in found["products"]}
    assert len(products) == 10
    orders = products["sales.orders"]
    assert orders["version"] >= 2
    assert datetime.fromisoformat(orders["newest_change_at"]).tzinfo is not None
    assert [one["name"] for one in orders["tables"]] == ["orders", "order_lines"]
    counts = "select (select count(*) from sales.orders) a, (select count(*) from sales.orders.order_lines) b"
    assert [one["rows"] for one in orders["tables"]] == list(answer("sql", counts)[0].values())
    assert all(one["changes"] >= one["rows"] > 0 for one in orders["tables"])
    shown = mesh("status").stdout
    assert "the mesh is not up" in shown
    assert "sales.app" in shown
    assert "order_lines" in shown


def test_status_tells_how_long_changes_wait(captured: Organisation, answer: Answer) -> None:
    def finance() -> Any:
        return next(one for one in answer("status")["sources"] if one["name"] == "finance.app")

    assert finance()["lag_seconds"] == 0
    captured.execute("finance", "update ledger.accounts set balance = balance where account_id = 1")
    assert 0 < finance()["lag_seconds"] < 60
    captured.capture("finance")
    assert finance()["lag_seconds"] == 0


def test_status_names_a_source_that_does_not_answer(
    answer: Answer, mesh: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESH_SOURCE_FINANCE_APP_URL", "postgresql://u:hidden@127.0.0.1:1/finance")
    finance = next(one for one in answer("status")["sources"] if one["name"] == "finance.app")
    assert finance["state"] == "unreachable"
    assert finance["held_lsn"]
    result = mesh("status")
    assert result.exit_code == 0
    assert "unreachable" in result.stdout
    assert "hidden" not in result.stdout


def test_status_and_parity_tell_of_a_parked_table(captured: Organisation, answer: Answer, mesh: Run) -> None:
    captured.execute(
        "finance",
        "alter table ledger.accounts alter column kind type varchar(200)",
        "update ledger.accounts set kind = 'wide' where account_id = 2",
    )
    shift = mesh("shift", "finance", "--idle-seconds", "0.4")
    assert shift.exit_code == 1
    assert "ledger.accounts is parked" in shift.stdout
    finance = next(one for one in answer("status")["sources"] if one["name"] == "finance.app")
    assert [(one["table"], one["changes"]) for one in finance["parked"]] == [("ledger.accounts", 1)]
    assert "ledger.accounts is parked: 1 change since" in mesh("status").stdout
    (found,) = answer("parity", "finance.accounts")
    assert found["outcome"] == "different"
    assert found["parked"] is True
    assert answer("parity", "finance.transactions")[0]["outcome"] == "equal"
    captured.execute("finance", "alter table ledger.accounts alter column kind type text")
    assert mesh("shift", "finance", "--idle-seconds", "0.4").exit_code == 0
    assert answer("parity", "finance.accounts")[0]["outcome"] == "equal"


def test_status_tells_of_a_gap(captured: Organisation, answer: Answer, mesh: Run) -> None:
    captured.execute("distribution", "select pg_drop_replication_slot('mesh_distribution_app')")

    def distribution() -> Any:
        return next(one for one in answer("status")["sources"] if one["name"] == "distribution.app")

    assert distribution()["state"] == "slot lost"
    captured.capture("distribution")
    assert [one["reason"] for one in distribution()["gaps"]] == ["the replication slot is gone"]
    assert "a gap was found" in mesh("status").stdout


def test_products_and_show(answer: Answer, mesh: Run) -> None:
    listed = answer("products")
    assert [one["name"] for one in listed] == sorted(one["name"] for one in listed)
    assert "Every order placed" in mesh("products").stdout
    shown = answer("show", "sales.orders")
    assert [one["name"] for one in shown["tables"]] == ["orders", "order_lines"]
    assert shown["tables"][1]["key"] == ["order_id", "line_number"]
    assert shown["version"]["number"] == next(
        one["version"] for one in listed if one["name"] == "sales.orders"
    )
    assert len(answer("show", "sales.orders.order_lines")["tables"]) == 1
    text = mesh("show", "sales.orders").stdout
    assert "numeric(14,2)" in text
    assert "team:sales-engineering" in text
    assert shown["version"]["hash"][:12] in text


# -- sql


def test_sql_as_table_json_csv_and_parquet(answer: Answer, mesh: Run, tmp_path: Path) -> None:
    statement = (
        "select customer_id, full_name, credit_limit, email from sales.customers where customer_id = 1"
    )
    expected = {
        "customer_id": 1,
        "full_name": "Ada [bold] Lovelace",
        "credit_limit": "1234.50",
        "email": None,
    }
    assert answer("sql", statement) == [expected]
    assert "Ada [bold] Lovelace" in mesh("sql", statement).stdout
    assert "1 row; sales.customers version" in mesh("sql", statement).stderr
    rows = list(csv.DictReader(io.StringIO(mesh("sql", statement, "--format", "csv").stdout)))
    assert rows == [{**expected, "customer_id": "1", "email": ""}]
    moment = "select timestamptz '2026-03-01 12:00:00+02' as at"
    assert mesh("sql", moment, "--format", "csv").stdout == "at\n2026-03-01T10:00:00.000000+00:00\n"
    for suffix in ("csv", "json", "parquet"):
        file = tmp_path / f"customers.{suffix}"
        assert mesh("sql", "from sales.customers", "--output", str(file)).exit_code == 0
        assert file.stat().st_size > 0
    read = pl.read_parquet(tmp_path / "customers.parquet")
    assert read.height == len(json.loads((tmp_path / "customers.json").read_text()))
    wrong = mesh("sql", "from sales.customers", "--output", str(tmp_path / "customers.xls"))
    assert wrong.exit_code == 1
    assert ".parquet" in wrong.stderr


def test_sql_with_nested_values_and_bytes(mesh: Run, tmp_path: Path) -> None:
    for name in ("sales.orders", "distribution.shipments"):
        assert mesh("sql", f"from {name}", "--output", str(tmp_path / "rows.csv")).exit_code == 0
        assert json.loads(mesh("sql", f"from {name} limit 20", "--json").stdout)


def test_sql_joins_tables_and_products_of_domains(answer: Answer) -> None:
    statement = (
        "select count(*) as n, count(distinct o.order_id) as orders from sales.orders o "
        "join sales.orders.order_lines l using (order_id) left join finance.transactions t using (order_id)"
    )
    (row,) = answer("sql", statement)
    assert row["n"] >= row["orders"] > 0


def test_sql_as_of(answer: Answer, mesh: Run) -> None:
    statement = "select full_name from sales.customers where customer_id = 1"
    (first,) = answer("sql", statement, "--version", "1")
    assert first["full_name"] != "Ada [bold] Lovelace"
    version = answer("show", "sales.customers")["version"]
    for as_of in (str(version["number"]), version["lsn"], version["committed_at"]):
        assert answer("sql", statement, "--as-of", as_of) == [{"full_name": "Ada [bold] Lovelace"}]
    refused = mesh("sql", statement, "--as-of", "1999-01-01")
    assert refused.exit_code == 1
    assert "before the first version" in refused.stderr
    assert mesh("sql", statement, "--as-of", "1", "--version", "1").exit_code == 2
    several = mesh("sql", "select 1 from sales.customers, sales.orders", "--version", "1")
    assert several.exit_code == 1
    assert "does not mean the same" in several.stderr


def test_sql_says_what_is_wrong(mesh: Run) -> None:
    for statement, said in (
        ("selec 1", "selec"),
        ("drop table sales.orders", "only statements that read"),
        ("from sales.ordrs", "did you mean 'sales.orders'?"),
        ("from sales.orders.order_line", "did you mean 'order_lines'?"),
        ("select nothing from sales.orders", "nothing"),
        ("from read_csv('/etc/passwd')", "not available"),
    ):
        result = mesh("sql", statement)
        assert result.exit_code == 1, statement
        assert said in result.stderr, statement
        assert "Traceback" not in result.stderr


# -- changes


def event(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a change log as the event that it is."""
    columns = {name: plain(value) for name, value in row.items() if not name.startswith("_")}
    before = row["_before"]
    return {
        "op": row["_op"],
        "before": before and {name: plain(value) for name, value in before.items()},
        "after": None if row["_op"] in "dt" else columns,
        "seq": row["_seq"],
        "position": row["_position"],
        "ordinal": row["_ordinal"],
        "transaction": row["_xid"] or None,
        "committed_at": plain(row["_committed_at"]),
        "schema_version": row["_schema_version"],
        "unchanged": row["_unchanged"],
        "exact": row["_exact"] and {one["key"]: one["value"] for one in row["_exact"]},
    }


def plain(value: Any) -> Any:
    """A value as the event's JSON has it."""
    match value:
        case datetime():
            text = value.isoformat(timespec="microseconds")
            return text.replace("+00:00", "Z")
        case date():
            return value.isoformat()
        case Decimal():
            return f"{value:f}"
        case bytes():
            return base64.b64encode(value).decode()
        case list():
            return [plain(one) for one in value]
        case _:
            return value


@pytest.mark.parametrize("product", ["sales.orders", "sales.customers", "distribution.shipments"])
def test_every_change_is_as_its_event_schema_says(answer: Answer, product: str) -> None:
    schemas = answer("show", product, "--event-schema")
    for table, schema in schemas.items():
        assert schema == answer("show", f"{product}.{table}", "--event-schema")
        rows = ChangeLog.open(Mesh().changes_uri(ProductName.parse(product), table)).scan().collect()
        check = jsonschema.Draft202012Validator(schema)
        assert rows.height > 0
        accepted = rows.filter(pl.col("_rejected_by").is_null())
        for row in accepted.iter_rows(named=True):
            check.validate(event(row))


def test_changes_of_a_key(answer: Answer, mesh: Run) -> None:
    history = answer("changes", "sales.customers", "--key", "1")
    assert [one["op"] for one in history] == ["r", "u", "u"]
    assert history[0]["before"] is None
    first, second = history[1:]
    assert first["changed"] == ["full_name", "credit_limit"]
    assert first["before"]["full_name"] == history[0]["after"]["full_name"]
    assert first["after"]["full_name"] == "Ada [bold] Lovelace"
    assert first["after"]["credit_limit"] == "1234.50"
    assert first["xid"] > 0
    assert "/" in first["lsn"]
    assert second["changed"] == ["email"]
    assert second["before"]["email"] is not None
    assert second["after"]["email"] is None
    shown = mesh("changes", "sales.customers", "--key", "1").stdout
    assert "Ada [bold] Lovelace" in shown
    assert f"{first['xid']} at {first['lsn']}" in shown
    assert shown.count("marketing_consent") == 1
    assert mesh("changes", "sales.customers", "--key", "1", "--all").stdout.count("marketing_consent") == 3


def test_changes_of_a_key_of_several_columns(answer: Answer, mesh: Run) -> None:
    together = answer("changes", "sales.orders.order_lines", "--key", "order_id=1,line_number=1")
    apart = answer("changes", "sales.orders.order_lines", "--key", "order_id=1", "--key", "line_number=1")
    assert together == apart
    assert together[0]["after"]["line_number"] == 1
    wrong = mesh("changes", "sales.orders.order_lines", "--key", "1")
    assert wrong.exit_code == 1
    assert "order_id=…,line_number=…" in wrong.stderr


def test_changes_of_a_key_that_never_was(mesh: Run) -> None:
    result = mesh("changes", "sales.customers", "--key", "999999999")
    assert result.exit_code == 1
    assert "never had the key" in result.stderr
    result = mesh("changes", "sales.customers", "--key", "forty-two")
    assert result.exit_code == 1
    assert "not a value of key column customer_id" in result.stderr


# -- parity and shift


def test_parity_finds_equality_and_differences(captured: Organisation, answer: Answer, mesh: Run) -> None:
    result = mesh("parity", "sales.customers", "distribution.stock")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("equal") == 2
    insert = (
        "insert into supply.warehouses (warehouse_id, code, name, country, active, updated_at) "
        "values ({}, 'spare', 'spare', 'CH', true, now())"
    )
    captured.execute("distribution", insert.format(900))
    captured.capture("distribution")
    # Behind the stream's back: what triggers and replication roles cannot do, a lost slot can.
    captured.execute(
        "distribution",
        "alter publication mesh_distribution_app drop table supply.warehouses",
        "update supply.warehouses set name = 'moved' where warehouse_id = 1",
        "delete from supply.warehouses where warehouse_id = 900",
        insert.format(901),
        "alter publication mesh_distribution_app add table supply.warehouses",
    )
    differing = mesh("parity", "distribution.warehouses", "--json")
    assert differing.exit_code == 1
    (found,) = json.loads(differing.stdout)
    assert found["outcome"] == "different"
    assert found["differences"] == [
        {"key": {"warehouse_id": 1}, "kind": "different"},
        {"key": {"warehouse_id": 900}, "kind": "extra"},
        {"key": {"warehouse_id": 901}, "kind": "missing"},
    ]
    shown = mesh("parity", "distribution.warehouses")
    assert shown.exit_code == 1
    assert "warehouse_id=1 is not the same in both" in shown.stdout
    assert "warehouse_id=900 is in the lake but not at the source" in shown.stdout
    assert "warehouse_id=901 is at the source but not in the lake" in shown.stdout


def test_parity_of_what_does_not_exist(mesh: Run) -> None:
    result = mesh("parity", "sale")
    assert result.exit_code == 1
    assert "did you mean 'sales'?" in result.stderr


def test_shift_captures_without_dagster(captured: Organisation, answer: Answer, mesh: Run) -> None:
    before = answer("show", "sales.orders")["version"]["number"]
    captured.trade(5)
    captured.execute("sales", "update shop.orders set note = 'by hand' where order_id = 1")
    result = mesh("shift", "sales", "--idle-seconds", "0.4", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["reason"] == "idle"
    assert found["changes"] > 0
    assert "batch of" in result.stderr
    assert answer("show", "sales.orders")["version"]["number"] > before
    assert mesh("shift", "sale").exit_code == 1


# -- validate


def test_validate_holds_contracts_against_the_sources(
    captured: Organisation, answer: Answer, mesh: Run
) -> None:
    result = mesh("validate")
    assert result.exit_code == 0, result.output
    assert "not compared" not in result.stdout
    captured.execute("finance", "alter table ledger.accounts rename column holder to owner")
    try:
        broken = mesh("validate", "products/finance/accounts")
        assert broken.exit_code == 1
        assert "contract.yaml:" in broken.stdout
        assert "column 'holder' of the contract is not in ledger.accounts" in broken.stdout
        findings = answer("validate", "products/finance/accounts")["findings"]
        assert {one["severity"] for one in findings} == {"mistake", "note"}
        assert mesh("validate", "products/finance/accounts", "--offline").exit_code == 0
        assert mesh("validate", "products/sales").exit_code == 0
    finally:
        captured.execute("finance", "alter table ledger.accounts rename column owner to holder")


# -- as a process, and from Python


def test_as_a_process_it_ends_cleanly(home: Path) -> None:
    command = [str(Path(sys.executable).parent / "mesh"), "sql", "select count(*) as n from sales.orders"]
    environment = {**os.environ, "MESH_HOME": str(home)}
    done = subprocess.run(
        [*command, "--json"], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["n"] > 0
    failed = subprocess.run(
        [command[0], "show", "nowhere.nothing"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert failed.stderr.startswith("error: there is no product 'nowhere.nothing'")


def test_python_opens_the_same_rows(captured: Organisation) -> None:
    customers = mesh_assets.open("sales.customers", settings=captured.settings)
    assert customers.polars().height == customers.arrow().num_rows
    assert customers.duckdb().aggregate("count(*)").fetchall() == [(customers.polars().height,)]
    earlier = mesh_assets.open("sales.customers", as_of=1, settings=captured.settings)
    assert earlier.cut.version == 1
    answer = Mesh(captured.settings).sql("select max(customer_id) as last from sales.customers")
    assert answer.table.num_rows == 1
