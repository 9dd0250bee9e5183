"""Tables whose bytes follow from their content."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest

from mesh_assets.catalog.canonical import Canonical, Content, Shape
from mesh_assets.errors import CommitConflict, LakeError
from mesh_assets.lake.storage import LocalStorage, ObjectStorage
from mesh_assets.lake.upkeep import Upkeep

SHAPE = Shape("letters", pa.schema([("key", pa.int64()), ("text", pa.string())]), ("key",), ("key",))


def _rows(*keys: int) -> pa.Table:
    return pa.table({"key": keys, "text": [f"text {key}" for key in keys]}, schema=SHAPE.schema)


def test_the_order_of_rows_and_steps_does_not_matter(tmp_path: Path) -> None:
    one = Canonical(str(tmp_path / "one"), SHAPE)
    assert one.replace({"a": Content(_rows(3, 1, 2)), "b": Content(_rows(7))}) == 2
    other = Canonical(str(tmp_path / "other"), SHAPE)
    other.replace({"b": Content(_rows(7, 8)), "c": Content(_rows(9))})
    other.replace({"a": Content(_rows(2, 3, 1)), "b": Content(_rows(7)), "c": Content(_rows())})
    assert one.digest() == other.digest()
    assert other.read().to_pydict() == one.read().to_pydict()
    assert one.read(["a"], ["key"])["key"].to_pylist() == [1, 2, 3]
    assert other.replace({"a": Content(_rows(1, 2, 3))}) == 0
    assert one.scan().collect().height == 4
    with pytest.raises(LakeError, match="do not fit"):
        one.replace({"a": Content(pa.table({"key": [1]}))})


def test_what_was_decided_on_an_older_version_is_not_written(tmp_path: Path) -> None:
    Canonical(str(tmp_path), SHAPE).replace({"a": Content(_rows(1))})
    one, other = Canonical(str(tmp_path), SHAPE), Canonical(str(tmp_path), SHAPE)
    one.replace({"a": Content(_rows(1, 2))})
    with pytest.raises(CommitConflict):
        other.replace({"b": Content(_rows(5))})
    assert Canonical(str(tmp_path), SHAPE).read()["key"].to_pylist() == [1, 2]
    live = {one.file.path for one in Canonical(str(tmp_path), SHAPE).buckets().values()}
    assert live <= {path.name for path in tmp_path.glob("*.parquet")}


def test_upkeep_keeps_it_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh_assets.catalog.canonical._UPKEEP", Upkeep(archive_seconds=0, vacuum_seconds=0))
    chance = random.Random(1)
    keys: list[int] = []
    for number in range(130):
        keys.append(number)
        chance.shuffle(keys)
        Canonical(str(tmp_path), SHAPE).replace({"a": Content(_rows(*keys))}, transactions={"seen": number})
    last = Canonical(str(tmp_path), SHAPE)
    assert last.read()["key"].to_pylist() == sorted(keys)
    assert last.transaction("seen") == 129
    assert len(list(tmp_path.glob("*.parquet"))) < 60
    assert len(list((tmp_path / "_delta_log").glob("*.json"))) < 80


def test_folders_are_listed_wherever_they_lie(tmp_path: Path) -> None:
    for name in ("b/inner", "a"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").touch()
    (tmp_path / "file").touch()
    for storage in (LocalStorage(str(tmp_path)), ObjectStorage(f"file://{tmp_path}")):
        assert storage.folders("") == ["a", "b"]
        assert storage.folders("b") == ["inner"]
        assert storage.folders("nowhere") == []
