"""``mesh reset``: nothing of ours stays at databases of others, and nothing of theirs is removed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import psycopg
import pytest
from typer.testing import CliRunner, Result

from mesh_assets.cli.app import app
from mesh_assets.ingest.shift import Shift
from mesh_assets.local.organisation.application import schema
from mesh_assets.product import Mesh
from mesh_assets.settings import Settings
from mesh_assets.shift.report import Budget

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def lake(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One captured source that is not embedded; its lake lies outside of the home folder."""
    shutil.copytree(PROJECT / "products" / "sales", tmp_path / "products" / "sales")
    lake = tmp_path / "elsewhere"
    monkeypatch.setenv("MESH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MESH_LAKE", str(lake))
    monkeypatch.setenv("MESH_PRODUCTS", str(tmp_path / "products"))
    monkeypatch.setenv("MESH_SOURCE_SALES_APP_URL", database_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(schema("sales").encode())
    Shift(Mesh(Settings()).plan("sales", "app"), budget=Budget(idle_seconds=0.1)).run()
    return lake


def traces(url: str) -> tuple[int, int]:
    """How many slots and publications of ours there are."""
    with psycopg.connect(url) as connection:
        count = "SELECT (SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'mesh_sales_app'), "
        row = connection.execute(count.encode() + b"(SELECT count(*) FROM pg_publication)").fetchone()
    assert row is not None
    return row[0], row[1]


def reset(*arguments: str, **options: str) -> Result:
    return CliRunner().invoke(app, ["reset", *arguments], **options)  # type: ignore[arg-type]


def test_slot_publication_and_lake_go_and_are_listed_before(lake: Path, database_url: str) -> None:
    assert traces(database_url) == (1, 1)
    refused = reset(input="n\n")
    assert refused.exit_code == 1
    assert f"the lake in {lake}" in refused.stderr
    assert "replication slot and publication mesh_sales_app at" in refused.stderr
    assert traces(database_url) == (1, 1)
    assert lake.exists()

    done = json.loads(reset("--yes", "--json").stdout)
    assert (done["removed"], done["left"]) == (True, [])
    assert traces(database_url) == (0, 0)
    assert not lake.exists()
    assert json.loads(reset("--yes", "--json").stdout)["removed"] is False


def test_what_cannot_be_dropped_is_named_with_its_statements(
    lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESH_SOURCE_SALES_APP_URL", "postgresql://me:hidden@127.0.0.1:1/shop")
    (left,) = json.loads(reset("--yes", "--json").stdout)["left"]
    assert "SELECT pg_drop_replication_slot('mesh_sales_app'); DROP PUBLICATION" in left
    assert "hidden" not in left
    assert not lake.exists()


def test_a_folder_that_is_no_lake_of_ours_is_kept(lake: Path, database_url: str) -> None:
    (lake / "layout.json").unlink()
    (left,) = json.loads(reset("--yes", "--json").stdout)["left"]
    assert left.startswith(f"{lake} is kept")
    assert lake.exists()


def test_the_slot_of_another_mesh_is_not_ours(
    lake: Path, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESH_LAKE", str(tmp_path / "nothing"))
    assert json.loads(reset("--yes", "--json").stdout)["removed"] is False
    assert traces(database_url) == (1, 1)


def test_a_lake_in_an_object_store_is_named_and_kept(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESH_LAKE", "s3://bucket/lake")
    monkeypatch.delenv("MESH_SOURCE_SALES_APP_URL")
    (tmp_path / "home").mkdir()
    (left,) = json.loads(reset("--yes", "--json").stdout)["left"]
    assert "s3://bucket/lake is kept" in left


def test_an_empty_address_names_no_source(
    lake: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESH_SOURCE_SALES_APP_URL", "")
    assert json.loads(reset("--yes", "--json").stdout)["left"] == []
    assert not lake.exists()
    assert traces(database_url) == (1, 1)
