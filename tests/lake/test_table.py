"""Delta tables: durable appends, fencing, rewrites that exclude each other, statistics."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from mesh_assets.errors import CommitConflict, Fenced, LakeError, StorageFull, TableMissing
from mesh_assets.lake import storage
from mesh_assets.lake.commit import commit_path, last_checkpoint
from mesh_assets.lake.file import FileRef, describe, slices
from mesh_assets.lake.storage import LocalStorage, ObjectStorage
from mesh_assets.lake.table import CHECKPOINT_INTERVAL, Table

SCHEMA = pa.schema([("n", pa.int64()), ("text", pa.string())])


def rows(*numbers: int) -> pa.Table:
    return pa.table({"n": list(numbers), "text": [f"t{n}" for n in numbers]}, schema=SCHEMA)


def numbers(table: Table) -> list[int]:
    return sorted(table.read(columns=["n"])["n"].to_pylist())


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table.create(str(tmp_path / "some table é"), SCHEMA, statistics=["n", "text"], order="n")


def test_appended_rows_are_read_by_any_delta_reader(table: Table) -> None:
    assert table.append(rows(1, 2), transactions={"a": 1}) == 1
    assert table.append(rows(3), transactions={"a": 2}, metadata={"why": "test"}) == 2
    assert table.transaction("a") == 2
    assert numbers(table) == [1, 2, 3]
    plain = DeltaTable(table.uri)
    assert plain.transaction_version("a") == 2
    assert sorted(pa.table(plain.scan().read_all())["n"].to_pylist()) == [1, 2, 3]
    assert plain.history(1)[0]["why"] == "test"


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableMissing, match="no table at"):
        Table.open(str(tmp_path / "nothing"))
    assert not Table.exists(str(tmp_path / "nothing"))


def test_a_table_is_created_once(table: Table) -> None:
    with pytest.raises(LakeError, match="already a table"):
        Table.create(table.uri, SCHEMA)


def test_a_folder_with_an_escape_character_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="escape"):
        Table.create(str(tmp_path / "a%20b"), SCHEMA)


def test_every_file_is_forced_to_disk_before_the_append_returns(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced: list[str] = []
    really = storage._force

    def force(path: Path) -> None:
        forced.append(str(path))
        really(path)

    monkeypatch.setattr(storage, "_force", force)
    table.append(rows(1), transactions={})
    data = f"{table.uri}/{table.files()[0].path}"
    log = f"{table.uri}/{commit_path(1)}"
    assert [name for name in forced if name != table.uri] == [data, log, f"{table.uri}/_delta_log"]
    assert forced.index(table.uri) == 1, "the data file's folder comes before the commit"


def test_two_handles_of_one_writer_id_fence_each_other(table: Table) -> None:
    other = Table.open(table.uri)
    other.append(rows(1), transactions={"seq": 0})
    with pytest.raises(Fenced):
        table.append(rows(1), transactions={"seq": 0})
    table.refresh()
    with pytest.raises(Fenced):  # Still, after it has seen the other's commit.
        table.append(rows(1), transactions={"seq": 0}, expect={"seq": None})
    assert numbers(Table.open(table.uri)) == [1]
    assert len(list(Path(table.uri).glob("*.parquet"))) == 1, "the fenced files are gone"


def test_writers_of_different_ids_do_not_disturb_each_other(table: Table) -> None:
    other = Table.open(table.uri)
    other.append(rows(1), transactions={"other": 1})
    assert table.append(rows(2), transactions={"mine": 1}) == 2
    assert other.append(rows(3), transactions={"other": 2}) == 3
    assert table.append(rows(4), transactions={"mine": 2}, expect={"mine": 1}) == 4
    assert numbers(table) == [1, 2, 3, 4]


def test_a_commit_without_rows_carries_transactions(table: Table) -> None:
    table.append([], transactions={"a": 2**62})
    table.append(rows().slice(0, 0), transactions={"b": -5})
    assert (table.transaction("a"), table.transaction("b"), numbers(table)) == (2**62, -5, [])


def test_rewrite_replaces_just_the_named_files(table: Table) -> None:
    for n in (1, 2, 3):
        table.append(rows(n), transactions={})
    first, second, _ = table.files()
    table.rewrite(remove=[first, second], add=rows(10, 20), transactions={"folded": 7})
    assert numbers(table) == [3, 10, 20]
    assert numbers(Table.open(table.uri)) == [3, 10, 20]
    assert table.transaction("folded") == 7


@pytest.mark.parametrize("data_change", [True, False])
def test_two_rewrites_of_the_same_files_do_not_double_rows(table: Table, data_change: bool) -> None:
    for n in (1, 2):
        table.append(rows(n), transactions={})
    other = Table.open(table.uri)
    theirs, mine = other.files(), table.files()
    other.rewrite(remove=theirs, add=rows(1, 2), data_change=data_change)
    with pytest.raises(CommitConflict):
        table.rewrite(remove=mine, add=rows(1, 2), data_change=data_change)
    table.refresh()
    with pytest.raises(CommitConflict):
        table.rewrite(remove=mine, add=rows(1, 2), data_change=data_change)
    assert numbers(table) == [1, 2]


def test_a_rewrite_does_not_fence_an_append_nor_the_other_way_round(table: Table) -> None:
    for n in (1, 2):
        table.append(rows(n), transactions={"seq": n})
    other = Table.open(table.uri)
    files = other.files()
    table.append(rows(3), transactions={"seq": 3}, expect={"seq": 2})
    other.rewrite(remove=files, add=rows(1, 2), data_change=False)
    table.append(rows(4), transactions={"seq": 4}, expect={"seq": 3})
    assert numbers(table) == numbers(Table.open(table.uri)) == [1, 2, 3, 4]


def test_an_append_only_table_accepts_only_rewrites_without_data_change(tmp_path: Path) -> None:
    table = Table.create(str(tmp_path / "log"), SCHEMA, append_only=True, statistics=["n"])
    table.append(rows(1), transactions={})
    table.append(rows(2), transactions={})
    table.rewrite(remove=table.files(), add=rows(1, 2), data_change=False)
    with pytest.raises(CommitConflict):
        table.rewrite(remove=table.files(), add=rows(1))
    assert numbers(Table.open(table.uri)) == [1, 2]


def test_files_follow_commits_like_a_full_listing(table: Table) -> None:
    reader = Table.open(table.uri)
    for n in range(6):
        table.append(rows(n, n + 100), transactions={})
        if n == 3:
            table.rewrite(remove=table.files()[:2], add=rows(0, 100, 1, 101), data_change=False)
        if n % 2:
            reader.refresh()
            assert reader.files() == table.files() == Table.open(table.uri).files()


def test_columns_can_be_added_and_older_files_read_as_null(table: Table) -> None:
    table.append(rows(1), transactions={})
    reader = Table.open(table.uri)
    nested = pa.struct([("a", pa.int32())])
    table.add_columns([pa.field("extra", pa.list_(pa.int32())), pa.field("s", nested)])
    table.append(
        pa.table(
            {"n": [2], "extra": pa.array([[1]], pa.list_(pa.int32())), "s": pa.array([{"a": 1}], nested)}
        ),
        transactions={},
    )
    wider = pa.struct([("a", pa.int32()), ("b", pa.string())])
    table.add_columns([pa.field("s", wider), pa.field("extra", pa.list_(pa.int32()))])
    table.append(pa.table({"n": [3], "s": pa.array([{"a": 2, "b": "x"}], wider)}), transactions={})
    expected: list[dict[str, Any]] = [
        {"n": 1, "text": "t1", "extra": None, "s": None},
        {"n": 2, "text": None, "extra": [1], "s": {"a": 1, "b": None}},
        {"n": 3, "text": None, "extra": None, "s": {"a": 2, "b": "x"}},
    ]
    assert table.read().to_pylist() == expected
    lazily = table.scan(table.files()).sort("n").collect()
    assert lazily.drop("s").rows(named=True) == [
        {k: v for k, v in row.items() if k != "s"} for row in expected
    ]
    assert lazily["s"].to_list()[1:] == [row["s"] for row in expected][1:]
    reader.refresh()
    assert reader.read().to_pylist() == expected
    version = table.version
    table.add_columns([pa.field("s", nested), pa.field("n", pa.int64())])
    assert table.version == version, "nothing to add, no commit"


def test_a_column_keeps_its_type(table: Table) -> None:
    with pytest.raises(LakeError, match="has type int64, not string"):
        table.add_columns([pa.field("n", pa.string())])
    with pytest.raises(LakeError, match="column n has type string"):
        table.append(pa.table({"n": ["1"]}), transactions={})
    with pytest.raises(LakeError, match="'unknown'"):
        table.append(pa.table({"unknown": [1]}), transactions={})


def test_one_commit_takes_several_files_when_rows_are_many(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh_assets.lake.table.FILE_ROWS", 10)
    table.append(rows(*range(35)), transactions={})
    assert table.version == 1
    assert [(file.low["n"], file.high["n"]) for file in table.files()] == [
        (0, 9),
        (10, 19),
        (20, 29),
        (30, 34),
    ]
    assert [part.num_rows for part in slices(rows(*range(9)), max_rows=4, max_bytes=10**9)] == [4, 4, 1]
    assert len(slices(rows(*range(100)), max_rows=10**6, max_bytes=100)) > 10


def test_checkpoints_come_by_themselves_and_keep_everything(table: Table) -> None:
    for n in range(CHECKPOINT_INTERVAL + 3):
        table.append(rows(n), transactions={"seq": n}, expect={"seq": n - 1 if n else None})
    assert 0 < last_checkpoint(table.storage) <= CHECKPOINT_INTERVAL
    again = Table.open(table.uri)
    assert again.files() == table.files()
    assert again.transaction("seq") == CHECKPOINT_INTERVAL + 2


def test_the_checkpoint_pointer_never_moves_back(table: Table) -> None:
    stale = Table.open(table.uri)
    table.append(rows(1), transactions={})
    table.checkpoint()
    stale.checkpoint()
    assert last_checkpoint(table.storage) == 1
    assert stale.version == 1


# -- a full disk ------------------------------------------------------------------------------


def _full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_full_while_writing_leaves_nothing(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh_assets.lake.table.FILE_ROWS", 1)
    monkeypatch.setattr(storage, "_force", _full)
    with pytest.raises(StorageFull, match="no space"):
        table.append(rows(1, 2), transactions={})
    assert list(Path(table.uri).glob("*.parquet")) == []


def test_a_disk_full_at_the_commit_leaves_nothing(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        """The handle, with a disk that is full whenever it commits."""

        def __init__(self, delta: DeltaTable) -> None:
            self._delta = delta

        def create_write_transaction(self, *_: object, **__: object) -> None:
            _full()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._delta, name)

    table.append(rows(1), transactions={"seq": 1})
    monkeypatch.setattr(table, "_delta", Full(table.delta()))
    with pytest.raises(StorageFull):
        table.append(rows(2), transactions={"seq": 2})
    assert len(list(Path(table.uri).glob("*.parquet"))) == 1
    table.append(rows(2), transactions={"seq": 2}, expect={"seq": 1})
    assert numbers(table) == [1, 2]


# -- statistics -------------------------------------------------------------------------------

MIXED = pa.schema(
    [
        ("big", pa.int64()),
        ("small", pa.int16()),
        ("text", pa.string()),
        ("day", pa.date32()),
        ("at", pa.timestamp("us", "UTC")),
        ("local", pa.timestamp("us")),
        ("price", pa.decimal128(10, 2)),
        ("wide", pa.decimal128(38, 6)),
        ("odd name, `x`", pa.int32()),
        ("empty", pa.int64()),
        ("flag", pa.bool_()),
        ("real", pa.float64()),
    ]
)


def test_statistics_survive_commit_checkpoint_and_reading_back(tmp_path: Path) -> None:
    table = Table.create(str(tmp_path / "mixed"), MIXED, statistics=MIXED.names)
    kept = {"big", "small", "text", "day", "at", "local", "price", "odd name, `x`", "empty"}
    assert set(table.statistics) == kept
    last = {
        "big": 2**62 + 1,
        "small": 3,
        "text": "é" * 100,
        "day": date(9999, 12, 31),
        "at": datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        "local": datetime(2026, 1, 1, 1, 1, 1, 1),
        "price": Decimal("99999999.99"),
        "wide": Decimal(1),
        "odd name, `x`": 5,
        "empty": None,
        "flag": True,
        "real": float("nan"),
    }
    first = dict.fromkeys(MIXED.names) | {
        "big": -(2**62) - 1,
        "text": "a",
        "day": date(1, 1, 1),
        "at": datetime(1, 1, 1, tzinfo=UTC),
        "price": Decimal("-0.01"),
    }
    table.append(pa.Table.from_pylist([first, last], schema=MIXED), transactions={})
    written = table.files()[0]
    assert written.high["text"] >= last["text"]
    assert len(written.high["text"]) < 100
    assert written.low["at"] == first["at"]
    assert written.high["price"] == last["price"]
    assert "empty" not in written.high
    assert written.null_count["empty"] == 2
    assert table.refresh() == 1
    commit = (Path(table.uri) / commit_path(1)).read_text().splitlines()
    add = next(json.loads(line)["add"] for line in commit if "add" in json.loads(line))
    assert FileRef.from_statistics(add["path"], add["size"], add["stats"], MIXED) == written
    assert Table.open(table.uri).files() == [written]
    table.checkpoint()
    Path(table.uri, commit_path(0)).unlink()
    Path(table.uri, commit_path(1)).unlink()
    assert Table.open(table.uri).files() == [written]
    # And delta-rs itself prunes by them without losing the row.
    found = pa.table(DeltaTable(table.uri).scan(predicate=f"big = {2**62 + 1}").read_all())
    assert found.num_rows == 1


def test_statistics_are_kept_beyond_the_first_columns(tmp_path: Path) -> None:
    schema = pa.schema([(f"c{i}", pa.int64()) for i in range(60)] + [("_seq", pa.int64())])
    table = Table.create(str(tmp_path / "wide"), schema, statistics=["_seq"])
    table.append(pa.table({"_seq": [4, 9]}), transactions={})
    assert Table.open(table.uri).files()[0].high == {"_seq": 9}


def test_a_text_bound_is_never_below_the_text() -> None:
    text = "x" * 64 + "\U0010ffff" * 2
    file = describe("p", 1, pa.table({"t": [text]}), ["t"])
    assert "t" not in file.high
    assert file.low["t"] <= text


# -- storage ----------------------------------------------------------------------------------


def test_an_object_store_takes_the_same_path(tmp_path: Path) -> None:
    Table.create(str(tmp_path / "t"), SCHEMA, statistics=["n"], order="n")
    store = ObjectStorage(f"file://{tmp_path}/t")
    table = Table(store, DeltaTable(store.uri))
    table.append(rows(1, 2), transactions={"seq": 1})
    table.append(rows(3), transactions={"seq": 2}, expect={"seq": 1})
    assert numbers(table) == [1, 2, 3]
    assert table.scan(table.files()).select(pl.col("n").sum()).collect().item() == 6
    for _ in range(2):
        table.checkpoint()
    assert last_checkpoint(store) == 2


@pytest.mark.parametrize("kind", ["local", "object"])
def test_both_storages_do_the_same(tmp_path: Path, kind: str) -> None:
    place: LocalStorage | ObjectStorage
    place = LocalStorage(str(tmp_path)) if kind == "local" else ObjectStorage(f"file://{tmp_path}")
    place.prepare()
    place.write("a/b.bin", b"12345678")
    place.write("a/b.bin", b"123456789")
    assert place.read("a/b.bin") == b"123456789"
    assert place.tail("a/b.bin", 3) == (9, b"789")
    assert place.tail("a/b.bin", 300) == (9, b"123456789")
    assert [(entry.path, entry.size) for entry in place.entries("a")] == [("a/b.bin", 9)]
    assert place.entries("none") == []
    place.move("a/b.bin", "c/d.bin")
    place.force(["c/d.bin"])
    place.remove(["c/d.bin", "c/d.bin"])
    assert place.entries("c") == []
    for path in ("a/b.bin", "c/d.bin"):
        with pytest.raises(FileNotFoundError):
            place.read(path)
    size = place.write_parquet("r.parquet", rows(1, 2))
    assert place.tail("r.parquet", 4) == (size, b"PAR1")
    assert place.read_parquet("r.parquet", ["n"])["n"].to_pylist() == [1, 2]


# -- several processes ------------------------------------------------------------------------


def _race(uri: str, worker: int, target: int, report: str) -> None:
    """Append the next number until ``target``, as long as not fenced; open again when fenced."""
    done = []
    table = Table.open(uri)
    while (seen := table.transaction("seq") or 0) < target:
        try:
            table.append(rows(seen + 1), transactions={"seq": seen + 1}, expect={"seq": seen or None})
            done.append(seen + 1)
        except Fenced:
            table = Table.open(uri)
    Path(report, str(worker)).write_text(json.dumps(done))
    os._exit(0)


def test_racing_processes_append_each_number_once(table: Table, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    target = 2 * CHECKPOINT_INTERVAL + 10
    workers = [
        spawn.Process(target=_race, args=(table.uri, worker, target, str(tmp_path))) for worker in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    done = [json.loads((tmp_path / str(worker)).read_text()) for worker in range(2)]
    assert sorted(done[0] + done[1]) == list(range(1, target + 1))
    assert numbers(Table.open(table.uri)) == list(range(1, target + 1))
