"""Statistics of a product's columns follow its folds, and read each data file once."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from mesh_assets.catalog import event as catalog_event
from mesh_assets.catalog import local
from mesh_assets.checks import statistics
from mesh_assets.lake.current import FoldPolicy
from mesh_assets.lake.table import Table
from mesh_assets.lake.version import VersionLog
from mesh_assets.lineage.store import read
from mesh_assets.names import CURRENT, Layout
from mesh_assets.quality import profile
from mesh_assets.shift.plan import statistics_uri
from tests.lineage.specification import problems
from tests.quarantine.shop import NAME, QUICK, Shop

EAGER = replace(QUICK, fold=FoldPolicy(share=0.0, min_count=1, min_age_seconds=0.0))


def newest(shop: Shop) -> dict[tuple[str, str], dict[str, object]]:
    """The newest rows by table and column."""
    layout = Layout(shop.settings.lake_root)
    rows = pl.DataFrame(pl.from_arrow(Table.open(statistics_uri(layout, NAME)).read()))
    last = rows.filter(pl.col("number") == pl.col("number").max())
    return {(row["table"], row["column"]): row for row in last.to_dicts()}


def test_statistics_follow_the_folds(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(database_url, tmp_path / "home")
    shop.edit(
        "{name: body, logicalType: string, physicalType: text}",
        "{name: body, logicalType: string, physicalType: text, classification: restricted}",
    )
    shop.execute(
        "insert into shop.things values (1, 10, 'secret'), (2, null, 'x'), (3, 30, null), (4, 10, 'x')",
        "insert into shop.notes values (7, 'seven')",
    )
    layout = Layout(shop.settings.lake_root)
    shop.drain(budget=EAGER)
    version = VersionLog(layout.versions(NAME)).latest()
    assert version is not None
    # What the shift did not do yet is done now; a second time there is nothing to do.
    statistics.refresh(layout, shop.mesh.product(str(NAME)), version)
    assert statistics.refresh(layout, shop.mesh.product(str(NAME)), version) == 0
    found = newest(shop)
    number = found["things", "number"]
    assert (number["row_count"], number["null_count"], number["distinct_count"]) == (4, 1, 2)
    assert (number["minimum"], number["maximum"], number["mean"]) == ("10", "30", pytest.approx(50 / 3))
    body = found["things", "body"]
    assert (body["row_count"], body["null_count"], body["distinct_count"]) == (4, 1, 2)
    assert body["minimum"] is None
    assert "secret" not in str(found)
    kept = Path(layout.catalog(NAME), "profiles", "things.json").read_text()
    assert "secret" not in kept

    shop.execute(
        "delete from shop.things where thing_id = 3", "update shop.things set number = 40 where thing_id = 1"
    )
    shop.drain(budget=EAGER)
    latest = VersionLog(layout.versions(NAME)).latest()
    assert latest is not None
    read: list[int] = []
    original = profile.profile

    def counting(frame: pl.LazyFrame) -> profile.TableProfile:
        read.append(1)
        return original(frame)

    monkeypatch.setattr(profile, "profile", counting)
    statistics.refresh(layout, shop.mesh.product(str(NAME)), latest)
    number = newest(shop)["things", "number"]
    assert (number["row_count"], number["null_count"], number["distinct_count"]) == (3, 1, 2)
    assert (number["minimum"], number["maximum"]) == ("10", "40")
    assert len(read) <= 1, "only the rewritten file of one table is read"
    record = local.publish(layout, shop.mesh.discovery, NAME)
    assert record is not None
    told = {(row["table"], row["column"]): row for row in record.statistics}
    assert told["things", "number"]["maximum"] == "40"


def test_lineage_tells_the_columns_in_numbers(database_url: str, tmp_path: Path) -> None:
    shop = Shop(database_url, tmp_path / "home")
    shop.edit(
        "- {name: number, logicalType: integer, physicalType: integer}",
        "- {name: number, logicalType: integer, physicalType: integer}\n"
        "      - {name: price, logicalType: number, physicalType: 'numeric(12,2)'}\n"
        "      - {name: size, logicalType: number, physicalType: double precision}\n"
        "      - {name: wage, logicalType: integer, physicalType: bigint, classification: confidential}\n"
        "      - {name: code, logicalType: integer, physicalType: bigint, classification: restricted}",
    )
    shop.execute(
        "alter table shop.things add price numeric(12,2), add size float8, add wage bigint, add code bigint",
        "insert into shop.things values "
        "(1, 10, 'a', 1.25, 0.5, 77001, 88001), (2, null, 'b', 2.50, 'Infinity', 77002, 88002), "
        "(3, 30, null, null, null, 77002, null)",
    )
    layout = Layout(shop.settings.lake_root)
    shop.drain(budget=EAGER)
    version = VersionLog(layout.versions(NAME)).latest()
    assert version is not None
    product = shop.mesh.product(str(NAME))
    statistics.refresh(layout, product, version)
    events = [json.loads(text) for text in read(layout.lineage()).collect().sort("event_time")["event"]]
    ended = [one for one in events if one["job"]["name"] == "things.statistics" and one["inputs"]]
    told = ended[-1]
    assert told["eventType"] == "COMPLETE"
    assert problems(told) == []
    assert told["outputs"][0]["name"] == statistics_uri(layout, NAME)
    uri = layout.table(NAME, CURRENT, "things")
    [things] = [one["facets"] for one in told["inputs"] if one["name"] == uri]
    assert things["version"]["datasetVersion"] == str(Table.open(uri).version)
    assert (things["mesh_product"]["product"], things["mesh_product"]["version"]) == (str(NAME), 1)
    metrics = things["dataQualityMetrics"]
    files = Table.open(uri).files()
    assert (metrics["rowCount"], metrics["fileCount"]) == (3, len(files))
    assert metrics["bytes"] == sum(file.size for file in files)
    columns = metrics["columnMetrics"]
    number = {"nullCount": 1, "distinctCount": 2, "count": 2, "min": 10, "max": 30, "sum": 40.0}
    assert columns["number"] == number
    price = {"nullCount": 1, "distinctCount": 2, "count": 2, "min": 1.25, "max": 2.5, "sum": 3.75}
    assert columns["price"] == price
    # JSON has no infinity, and no extremes of texts are numbers.
    assert columns["size"] == {"nullCount": 1, "distinctCount": 2, "count": 2, "min": 0.5}
    assert columns["body"] == {"nullCount": 1, "distinctCount": 2, "count": 2}
    # Events are for everybody whom they are forwarded to.
    assert columns["wage"] == {"nullCount": 0, "distinctCount": 2, "count": 3}
    assert columns["code"] == {"nullCount": 1, "distinctCount": 2, "count": 2}
    assert not [secret for secret in ("7700", "8800") if secret in json.dumps(metrics)]

    # Statistics of an older fold name the version that was folded.
    shop.execute("insert into shop.things (thing_id, number) values (4, 50)")
    shop.drain(budget=replace(QUICK, fold=None, check_seconds=None))
    newest_version = VersionLog(layout.versions(NAME)).latest()
    assert newest_version is not None
    assert newest_version.version > version.version
    shutil.rmtree(statistics_uri(layout, NAME))
    assert statistics.refresh(layout, product, newest_version)
    assert {row["version"] for row in newest(shop).values()} == {version.version}
    events = [json.loads(text) for text in read(layout.lineage()).collect().sort("event_time")["event"]]
    told = [one for one in events if one["job"]["name"] == "things.statistics" and one["inputs"]][-1]
    [things] = [one["facets"] for one in told["inputs"] if one["name"] == uri]
    assert things["mesh_product"]["version"] == version.version
    assert catalog_event.Reader(layout).fold([json.dumps(told)]).edges == []


def test_each_table_names_the_version_that_it_holds(database_url: str, tmp_path: Path) -> None:
    shop = Shop(database_url, tmp_path / "home")
    shop.execute("insert into shop.things values (1, 10, 'a')", "insert into shop.notes values (7, 'seven')")
    layout = Layout(shop.settings.lake_root)
    shop.drain(budget=EAGER)
    first = VersionLog(layout.versions(NAME)).latest()
    shop.execute("update shop.notes set words = 'eight'")
    shop.drain(budget=replace(EAGER, check_seconds=None))
    second = VersionLog(layout.versions(NAME)).latest()
    shop.execute("insert into shop.things (thing_id, number) values (4, 50)")
    shop.drain(budget=replace(QUICK, fold=None, check_seconds=None))
    third = VersionLog(layout.versions(NAME)).latest()
    assert first is not None
    assert second is not None
    assert third is not None
    assert first.version < second.version < third.version
    assert statistics.refresh(layout, shop.mesh.product(str(NAME)), third)
    # The things were folded last at the second version, the notes have not changed since it.
    told = {(table, row["version"]) for (table, _), row in newest(shop).items()}
    assert told == {("things", second.version), ("notes", third.version)}
    assert newest(shop)["things", "number"]["row_count"] == 1
    record = local.publish(layout, shop.mesh.discovery, NAME)
    assert {(row["table"], row["version"]) for row in record.statistics} == told


def test_a_column_that_becomes_restricted_keeps_no_values(database_url: str, tmp_path: Path) -> None:
    shop = Shop(database_url, tmp_path / "home")
    shop.execute("insert into shop.things values (1, 10, 'secret'), (2, 20, 'x'), (3, 30, 'secret')")
    layout = Layout(shop.settings.lake_root)
    shop.drain(budget=EAGER)
    version = VersionLog(layout.versions(NAME)).latest()
    assert version is not None
    statistics.refresh(layout, shop.mesh.product(str(NAME)), version)
    profiles = Path(layout.catalog(NAME), "profiles", "things.json")
    assert "secret" in profiles.read_text()
    assert newest(shop)["things", "body"]["minimum"] == "secret"

    shop.edit(
        "{name: body, logicalType: string, physicalType: text}",
        "{name: body, logicalType: string, physicalType: text, classification: restricted}",
    )
    # Readers go by the contract in force, whatever is kept.
    record = local.publish(layout, shop.mesh.discovery, NAME)
    assert "secret" not in str(record.statistics)
    told = {(row["table"], row["column"]): row for row in record.statistics}
    assert told["things", "body"]["distinct_count"] == 2
    assert told["things", "number"]["maximum"] == "30"

    # No file was rewritten since: only what is kept of it is.
    assert statistics.refresh(layout, shop.mesh.product(str(NAME)), version) > 0
    assert "secret" not in profiles.read_text()
    assert "secret" not in str(newest(shop))
    assert newest(shop)["things", "body"]["row_count"] == 3
    assert newest(shop)["things", "number"]["maximum"] == "30"
    assert statistics.refresh(layout, shop.mesh.product(str(NAME)), version) == 0
