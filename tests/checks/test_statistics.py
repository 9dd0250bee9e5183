"""Statistics of a product's columns follow its folds, and read each data file once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from mesh_assets.catalog import local
from mesh_assets.checks import statistics
from mesh_assets.lake.current import FoldPolicy
from mesh_assets.lake.table import Table
from mesh_assets.lake.version import VersionLog
from mesh_assets.names import Layout
from mesh_assets.quality import profile
from mesh_assets.shift.plan import statistics_uri
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
