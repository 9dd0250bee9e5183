"""``mesh check``: outcomes on the newest version, exit codes, and Great Expectations' pages."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from mesh_assets.cli.app import app
from mesh_assets.lake.table import Table
from tests.quarantine.shop import Shop


def test_rules_are_checked_on_demand_and_shown_as_data_docs(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(database_url, tmp_path / "home")
    monkeypatch.setenv("MESH_HOME", str(shop.settings.home))
    monkeypatch.setenv("MESH_PRODUCTS", str(shop.settings.products))
    invoke = CliRunner().invoke
    early = invoke(app, ["check"])
    assert early.exit_code == 1
    assert "shop.things" in early.stderr
    shop.execute("insert into shop.things values (1, 1, 'one'), (2, 2, 'two')")
    shop.drain()
    done = invoke(app, ["check", "shop.things", "--docs", "--json"])
    assert done.exit_code == 0, done.output
    (told,) = json.loads(done.stdout)
    statuses = {one["rule"]: one["status"] for one in told["checks"]}
    assert statuses["things.number_is_not_below"] == "passed"
    assert statuses["things.there_are_few"] == "passed"
    page = Path(told["data_docs"])
    assert "shop.things" in page.read_text()
    assert len(list(page.parent.rglob("*.html"))) > 1
    shop.execute("insert into shop.things select n, n, '' from generate_series(100, 1200) n")
    shop.drain()
    failed = invoke(app, ["check", "shop.things"])
    assert failed.exit_code == 1
    assert "there_are_few" in failed.stdout


def test_values_of_restricted_columns_are_not_told(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(database_url, tmp_path / "home")
    shop.edit(
        "{name: body, logicalType: string, physicalType: text}",
        "{name: body, logicalType: string, physicalType: text, classification: restricted}",
    )
    suite = shop.contract.parent / "expectations" / "things.json"
    suite.parent.mkdir()
    kinds = {
        "expect_column_most_common_value_to_be_in_set": {"column": "body", "value_set": ["other"]},
        "expect_column_values_to_be_in_set": {"column": "body", "value_set": ["other"]},
    }
    rules = [
        {"type": kind, "kwargs": kwargs, "severity": "warning", "meta": {"blocking": False}}
        for kind, kwargs in kinds.items()
    ]
    suite.write_text(json.dumps({"name": "things", "expectations": rules}))
    shop.execute("insert into shop.things select n, n, 'hush-hush' from generate_series(1, 3) n")
    shop.drain()
    monkeypatch.setenv("MESH_HOME", str(shop.settings.home))
    monkeypatch.setenv("MESH_PRODUCTS", str(shop.settings.products))
    done = CliRunner().invoke(app, ["check", "shop.things", "--json"])
    (told,) = json.loads(done.stdout)
    found = {one["result"]["expectation_config"]["type"]: one for one in told["checks"] if one["result"]}
    assert all(found[kind]["status"] == "warning" for kind in kinds), found
    assert found["expect_column_values_to_be_in_set"]["unexpected_count"] == 3
    assert "hush-hush" not in done.stdout
    events = pl.DataFrame(pl.from_arrow(Table.open(shop.plan.layout.lineage()).read()))
    assert "hush-hush" not in "".join(events["event"])
