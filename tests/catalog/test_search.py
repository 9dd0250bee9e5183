"""Search: what is found, in which order, and an index that always follows the tables."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mesh_assets.catalog import enterprise
from mesh_assets.catalog.search import Found, SearchIndex
from mesh_assets.errors import UnknownName
from mesh_assets.names import Layout, ProductName
from tests.catalog.world import World

CUSTOMERS = ProductName("sales", "customers")


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A lake in which every product has a record and one version."""
    world = World(Layout(str(tmp_path / "lake")))
    for name in world.discovery.products:
        world.version(name)
        world.publish(name)
    enterprise.fold(world.layout)
    return world


def _names(found: Found) -> list[str]:
    return [one.name for one in found.hits]


def test_products_come_first_and_columns_and_changes_too(world: World, tmp_path: Path) -> None:
    with SearchIndex(tmp_path / "search.sqlite") as index:
        assert index.refresh(world.layout) > 0
        assert index.refresh(world.layout) == 0
        found = index.search("customer", limit=200)
        assert "sales.customers" in _names(found)[:2]
        assert set(found.facets["kind"]) == {"product", "table", "column", "change"}
        assert sum(found.facets["kind"].values()) == found.total == len(found.hits)
        kinds = [one.kind for one in found.hits]
        assert kinds[0] == "product"
        named = [one for one in found.hits if one.product == "sales.customers"]
        assert [one.kind for one in named][-1] == "change"
        assert "sales.customers@1" in _names(found)
        assert [one.score for one in found.hits] == sorted((one.score for one in found.hits), reverse=True)
        assert _names(index.search("sales.customers"))[0] == "sales.customers"
        assert _names(index.search("email", filters={"kind": "column"}))[0].endswith(".email")


def test_words_match_by_stem_beginning_accent_and_in_any_order(world: World) -> None:
    with SearchIndex() as index:
        index.refresh(world.layout)
        wanted = "sales.customers"
        for text in (
            "Customers",
            "custom",
            "customer sales",
            "CÜSTOMERS".replace("Ü", "u"),
            "sales customers",
        ):
            assert wanted in _names(index.search(text, filters={"kind": "product"})), text
        assert index.search("customer zebra").loose
        assert index.search("zebra").total == 0
        assert index.search('"; DROP TABLE words; --').total == 0
        assert index.search("NOT AND OR * ( :").total >= 0


def test_facets_narrow_down(world: World) -> None:
    with SearchIndex() as index:
        index.refresh(world.layout)
        whole = index.search("")
        for facet in ("kind", "domain", "product", "owner", "classification", "tag"):
            for value, number in whole.facets[facet].items():
                narrowed = index.search("", filters={facet: value}, limit=1000)
                assert narrowed.total == number == len(narrowed.hits), (facet, value)
        restricted = index.search("customer", filters={"classification": "restricted"})
        assert {one.classification for one in restricted.hits} == {"restricted"}
        assert index.search("", limit=3, offset=3).hits == whole.hits[3:6]
        with pytest.raises(UnknownName, match="domain"):
            index.search("", filters={"domian": "sales"})


def test_changes_are_found_by_run_actor_and_hash(world: World) -> None:
    world.version(CUSTOMERS)
    row = world.version(CUSTOMERS)
    world.publish(CUSTOMERS)
    enterprise.fold(world.layout)
    with SearchIndex() as index:
        index.refresh(world.layout)
        assert _names(index.search(row.hash[:16]))[0] == "sales.customers@3"
        changes = index.search("customers tester", filters={"kind": "change", "product": "sales.customers"})
        assert _names(changes) == ["sales.customers@3", "sales.customers@2", "sales.customers@1"]
        assert changes.hits[0].at == row.created_at
        assert "3 created, 2 updated" in changes.hits[0].summary


def test_an_index_that_follows_equals_one_made_anew(world: World, tmp_path: Path) -> None:
    chance = random.Random(3)
    path = tmp_path / "search.sqlite"
    for _ in range(5):
        for _ in range(4):
            world.step(chance)
        enterprise.fold(world.layout)
        with SearchIndex(path) as index, SearchIndex() as new:
            index.refresh(world.layout)
            new.refresh(world.layout)
            for text in ("", "sales", "customer", "tester"):
                one, other = index.search(text, limit=500), new.search(text, limit=500)
                assert one.facets == other.facets
                assert {hit.name for hit in one.hits} == {hit.name for hit in other.hits}


def test_an_index_that_cannot_be_trusted_is_made_anew(world: World, tmp_path: Path) -> None:
    path = tmp_path / "search.sqlite"
    path.write_bytes(b"not an index" * 1000)
    with SearchIndex(path) as index:
        index.refresh(world.layout)
        assert index.search("customer").total > 0
    with SearchIndex(path) as index:
        assert index.refresh(world.layout) == 0
        other = World(Layout(str(tmp_path / "other")))
        enterprise.fold(other.layout)
        index.refresh(other.layout)
        assert index.search("").total == 0
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x").touch()
    with SearchIndex(folder) as index:  # Kept in memory.
        assert index.refresh(world.layout) > 0
