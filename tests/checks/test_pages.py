"""Data Docs in operation: from what checks have kept, when that is newer, by the contract in force."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mesh_assets.checks import pages
from mesh_assets.checks.log import CheckLog
from mesh_assets.names import Layout
from mesh_assets.orchestration.page import behind
from tests.quarantine.shop import NAME, Shop

RULES = [
    {"type": "expect_column_values_to_be_in_set", "kwargs": {"column": "body", "value_set": ["other"]}},
    {"type": "expect_column_values_to_not_match_regex", "kwargs": {"column": "body", "regex": "h(?=ush)"}},
    {"type": "expect_column_values_to_be_dateutil_parseable", "kwargs": {"column": "number"}},
]


def text(page: Path | None) -> str:
    """Everything that a product's pages say."""
    assert page is not None
    return "".join(one.read_text(encoding="utf-8") for one in page.parent.rglob("*.html"))


@pytest.mark.slow
def test_pages_follow_the_checks_and_the_contract(database_url: str, tmp_path: Path) -> None:
    shop = Shop(database_url, tmp_path / "home")
    suite = shop.contract.parent / "expectations" / "things.json"
    suite.parent.mkdir()
    rules = [{**rule, "severity": "warning", "meta": {"blocking": False}} for rule in RULES]
    suite.write_text(json.dumps({"name": "things", "expectations": rules}))
    layout = Layout(shop.settings.lake_root)
    assert not behind(layout, [shop.mesh.product(str(NAME))])
    shop.execute("insert into shop.things values (1, 1, 'hush-hush'), (2, -2, 'other')")
    shop.drain()
    product = shop.mesh.product(str(NAME))
    assert behind(layout, [product]) == [product]
    assert pages.page(layout, NAME) is None

    assert pages.build(layout, [product]) == {}
    assert behind(layout, [product]) == []
    told = text(pages.page(layout, NAME))
    assert "hush-hush" in told
    assert "must be of type string" in told
    # Current meets this rule, because quarantine holds what does not.
    assert "Nothing counts less than nothing. things.number_is_not_below: 1 key is in quarantine" in told

    shop.edit(
        "{name: body, logicalType: string, physicalType: text}",
        "{name: body, logicalType: string, physicalType: text, classification: restricted}",
    )
    product = shop.mesh.product(str(NAME))
    assert behind(layout, [product]) == [product]
    assert "hush-hush" in "".join(one.result for one in CheckLog(layout, NAME).latest())
    assert pages.build(layout, [product]) == {}
    assert "hush-hush" not in text(pages.page(layout, NAME))
    # The next shift keeps outcomes that do not tell either, though neither rows nor rules are others.
    shop.drain()
    assert "hush-hush" not in "".join(one.result for one in CheckLog(layout, NAME).latest())
    assert behind(layout, [product]) == [product]
