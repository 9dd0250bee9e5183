"""``mesh check``: outcomes on the newest version, exit codes, and Great Expectations' pages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mesh_assets.cli.app import app
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
