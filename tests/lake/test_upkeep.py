"""Upkeep: nothing it does changes what a table says, and it may be killed anywhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from deltalake import DeltaTable

from mesh_assets.errors import CommitConflict, Fenced, LakeError, TableMissing
from mesh_assets.lake.commit import CHECKPOINT, COMMIT, checkpoint_path, commit_path, numbered
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.recovery import recover
from mesh_assets.lake.storage import Entry, LocalStorage
from mesh_assets.lake.table import Table
from mesh_assets.lake.upkeep import Upkeep, archive, compact, maintain, vacuum, verify_segment
from tests.lake.sample import ROW, append, frame

AT_ONCE = Upkeep(archive_seconds=0, vacuum_seconds=0, run_length=4)


@pytest.fixture
def log(tmp_path: Path) -> ChangeLog:
    return ChangeLog.create(str(tmp_path / "changes"), ROW, ("id",))


def fill(log: ChangeLog, count: int) -> None:
    for _ in range(count):
        append(log, frame([log.seq + 1, log.seq + 2], lsn=100 + log.seq))


def ids(uri: str) -> list[int]:
    found: list[int] = ChangeLog.open(uri).scan(columns=["_seq", "id"]).sort("_seq").collect()["id"].to_list()
    return found


def expected(commit_count: int) -> list[int]:
    return list(range(2 * commit_count))


def kept(table: Table) -> tuple[list[int], list[int]]:
    """The versions whose checkpoints, and whose commits, are in the log's folder."""
    entries = table.storage.entries("_delta_log")
    return list(numbered(entries, CHECKPOINT)), list(numbered(entries, COMMIT))


# -- compaction -------------------------------------------------------------------------------


def test_small_files_become_one_and_say_the_same(log: ChangeLog) -> None:
    fill(log, 6)
    before = log.table.read()
    reader = ChangeLog.open(log.table.uri)
    table = Table.open(log.table.uri)
    assert compact(table, small_bytes=10**6, run_length=4) == 6
    (file,) = table.files()
    assert (file.low["_seq"], file.high["_seq"], file.row_count) == (0, 11, 12)
    assert table.read().equals(before)
    assert reader.table.read().equals(before), "a reader pinned to the version before still reads"
    fill(log, 1)  # The writer is not fenced.
    assert ids(log.table.uri) == expected(7)
    assert compact(table, small_bytes=10**6, run_length=4) == 0


def test_compaction_gives_added_columns_to_older_rows(log: ChangeLog) -> None:
    fill(log, 3)
    log.add_columns([ROW.field("name").with_name("nickname")])
    fill(log, 3)
    before = log.scan().sort("_seq").collect()
    table = Table.open(log.table.uri)
    assert compact(table, small_bytes=10**6, run_length=2) == 6
    assert ChangeLog(table).scan().sort("_seq").collect().equals(before)


def test_work_per_row_grows_with_the_logarithm(log: ChangeLog) -> None:
    table = Table.open(log.table.uri)
    rewritten = 0
    for _ in range(32):
        fill(log, 2)
        table.refresh()
        before = {file.path for file in table.files()}
        compact(table, small_bytes=10**7, run_length=2)
        rewritten += sum(file.row_count for file in table.files() if file.path not in before)
    assert len(table.files()) <= 8
    assert rewritten <= 128 * 7
    assert ids(log.table.uri) == expected(64)


def test_large_files_and_those_behind_them_stay(log: ChangeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 1, 500, 1, 1, 1):
        append(log, frame(list(range(size)), lsn=100 + log.seq))
    large = max(file.size for file in log.table.files())
    assert compact(log.table, small_bytes=large, run_length=2) == 5
    assert [file.row_count for file in log.table.files()] == [2, 500, 3]
    monkeypatch.setattr("mesh_assets.lake.upkeep.FILE_ROWS", 400)
    assert compact(log.table, small_bytes=10**7, run_length=2) == 0


def test_a_writer_appends_undisturbed_while_another_handle_tends(log: ChangeLog) -> None:
    failures: list[BaseException] = []
    done = threading.Event()

    def tend() -> None:
        try:
            table = Table.open(log.table.uri)
            while not done.is_set():
                maintain(table, Upkeep(archive_seconds=0, run_length=2))
        except BaseException as error:  # noqa: BLE001 - reported below
            failures.append(error)

    tender = threading.Thread(target=tend)
    tender.start()
    try:
        fill(log, 90)
    finally:
        done.set()
        tender.join()
    assert failures == []
    assert ids(log.table.uri) == expected(90)
    assert log.seq == 179


# -- archive ----------------------------------------------------------------------------------


def test_commits_before_the_last_checkpoint_but_one_are_archived(log: ChangeLog) -> None:
    table = log.table
    for _ in range(3):
        fill(log, 4)
        table.checkpoint()
    reader = Table.open(table.uri)
    pointer = (Path(table.uri) / "_delta_log" / "_last_checkpoint").read_bytes()
    assert archive(table, grace_seconds=3600) == 0
    assert archive(table, grace_seconds=0) == 8
    assert kept(table) == ([8, 12], [8, 9, 10, 11, 12])
    segment = "_archive/00000000000000000000-00000000000000000007.tar"
    assert list(verify_segment(table.storage, segment)) == [f"{number:020}.json" for number in range(8)]
    hashed = subprocess.run(
        ["sha256sum", "-c", f"{Path(segment).name}.sha256"],
        cwd=Path(table.uri) / "_archive",
        capture_output=True,
        check=False,
    )
    assert hashed.returncode == 0
    assert archive(table, grace_seconds=0) == 0
    fill(log, 2)
    reader.refresh()
    assert reader.files() == Table.open(table.uri).files()
    # A reader that still holds an older pointer, or none at all.
    older = json.loads(pointer) | {"version": 8}
    (Path(table.uri) / "_delta_log" / "_last_checkpoint").write_text(json.dumps(older))
    assert ids(table.uri) == expected(14)
    (Path(table.uri) / "_delta_log" / "_last_checkpoint").unlink()
    assert ids(table.uri) == expected(14)
    # Older versions open again with their commits put back.
    for name, content in verify_segment(table.storage, segment).items():
        (Path(table.uri) / "_delta_log" / name).write_bytes(content)
    assert DeltaTable(table.uri, version=3).transaction_version("seq") == 5


def test_a_handle_from_before_the_archive_catches_up(log: ChangeLog) -> None:
    reader, writer = ChangeLog.open(log.table.uri), Table.open(log.table.uri)
    sleeper = Table.open(log.table.uri)
    zombie, tender = ChangeLog.open(log.table.uri), Table.open(log.table.uri)
    fill(log, 10)
    small = log.table.files()
    log.table.checkpoint()
    fill(log, 10)
    log.table.checkpoint()
    assert archive(log.table, grace_seconds=0) == 10
    assert reader.refresh() == 39
    assert reader.table.files() == log.table.files()
    writer.append([], transactions={"other": 1})
    assert writer.files() == log.table.files()
    with pytest.raises(Fenced):
        append(zombie, frame([0], lsn=1000))
    assert compact(writer, small_bytes=10**6, run_length=2) == 20
    with pytest.raises(CommitConflict):
        tender.rewrite(remove=small, add=[], data_change=False)
    with pytest.raises(LakeError, match="was archived meanwhile"):
        sleeper.transaction("unread")
    assert ids(log.table.uri) == expected(20)


def test_a_changed_segment_is_found(log: ChangeLog) -> None:
    fill(log, 2)
    log.table.checkpoint()
    fill(log, 2)
    log.table.checkpoint()
    assert archive(log.table, grace_seconds=0) == 2
    (segment,) = Path(log.table.uri, "_archive").glob("*.tar")
    content = bytearray(segment.read_bytes())
    content[600] ^= 1
    segment.write_bytes(content)
    with pytest.raises(LakeError, match="not what was hashed"):
        verify_segment(log.table.storage, f"_archive/{segment.name}")


# -- vacuum -----------------------------------------------------------------------------------


def test_only_files_unreferenced_for_longer_than_the_grace_go(log: ChangeLog) -> None:
    fill(log, 4)
    uri = Path(log.table.uri)
    table = Table.open(log.table.uri)
    compact(table, small_bytes=10**6, run_length=4)
    draft = table.write(frame([], lsn=0).slice(0, 0))
    assert draft == []
    uncommitted = log.table.write(log.table.read())  # A writer between its file and its commit.
    assert vacuum(table, grace_seconds=3600) == 0
    seen = json.loads((uri / "_archive" / "unreferenced.json").read_text())
    assert len(seen) == 5
    log.table.append(uncommitted, transactions={})
    assert vacuum(table, grace_seconds=0) == 4
    assert {file.name for file in uri.glob("*.parquet")} == {file.path for file in table.files()}
    assert vacuum(table, grace_seconds=0) == 0


def test_one_round_does_it_all_and_the_next_nothing(log: ChangeLog) -> None:
    for _ in range(3):
        fill(log, 5)
        log.table.checkpoint()
    table = Table.open(log.table.uri)
    done = maintain(table, AT_ONCE)
    assert (done.compacted_count, done.archived_count, done.removed_count) == (15, 10, 15)
    again = maintain(table, AT_ONCE)
    assert (again.compacted_count, again.archived_count, again.removed_count) == (0, 0, 0)
    assert ids(log.table.uri) == expected(15)


# -- killed -----------------------------------------------------------------------------------

_TEND = """
import os, sys
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.table import Table
from mesh_assets.lake.upkeep import Upkeep, maintain
from tests.lake.sample import append, frame
log = ChangeLog.open(sys.argv[1])
append(log, frame([log.seq + 1, log.seq + 2], lsn=100 + log.seq))
log.table.checkpoint()
maintain(Table.open(sys.argv[1]), Upkeep(archive_seconds=0, vacuum_seconds=0, run_length=4))
os._exit(0)
"""


@pytest.mark.parametrize(
    ("point", "lost"),
    [
        ("file.written:1", 1),
        ("checkpoint.after:1", 0),
        ("compact.before:1", 0),
        ("file.written:2", 0),
        ("compact.after:1", 0),
        ("archive.written:1", 0),
    ],
)
def test_killed_anywhere_a_table_says_the_same(log: ChangeLog, point: str, lost: int) -> None:
    for _ in range(2):
        fill(log, 4)
        log.table.checkpoint()
    uri = log.table.uri
    killed = subprocess.run(
        [sys.executable, "-c", _TEND, uri], env=os.environ | {"MESH_FAILPOINT": point}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert recover(uri) == []
    assert ids(uri) == expected(9 - lost)
    again = ChangeLog.open(uri)
    fill(again, 1 + lost)
    again.table.checkpoint()
    maintain(Table.open(uri), AT_ONCE)
    maintain(Table.open(uri), AT_ONCE)
    assert ids(uri) == expected(10)
    table = Table.open(uri)
    assert {file.name for file in Path(uri).glob("*.parquet")} == {file.path for file in table.files()}
    archived = [
        name
        for segment in Path(uri, "_archive").glob("*.tar")
        for name in verify_segment(table.storage, f"_archive/{segment.name}")
    ]
    present = [file.name for file in Path(uri, "_delta_log").glob("*.json")]
    assert {*archived, *present} == {f"{number:020}.json" for number in range(table.version + 1)}


# -- recovery ---------------------------------------------------------------------------------


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(
            {"empty": b"", "cut": content[: len(content) // 2], "zeros": bytes(len(content))}[how]
        )


@pytest.mark.parametrize("how", ["empty", "cut", "zeros"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_torn_commit_is_moved_aside_and_delivered_again(
    log: ChangeLog, how: str, checkpointed: bool
) -> None:
    fill(log, 3)
    if checkpointed:
        log.table.checkpoint()
    fill(log, 2)
    uri = log.table.uri
    damage(Path(uri, commit_path(5)), how)
    aside = recover(uri, {"seq": 7})
    assert len(aside) == 1
    assert Path(aside[0]).exists()
    assert recover(uri) == []
    again = ChangeLog.open(uri)
    assert (again.seq, ids(uri)) == (7, expected(4))
    fill(again, 1)
    assert ids(uri) == expected(5)


@pytest.mark.parametrize("how", ["gone", "empty", "cut", "zeros"])
def test_a_torn_data_file_takes_its_commit_and_all_later_ones_aside(log: ChangeLog, how: str) -> None:
    fill(log, 4)
    uri = log.table.uri
    damage(Path(uri, log.table.files()[2].path), how)
    assert len(recover(uri)) == 2
    assert ids(uri) == expected(2)


def test_a_missing_commit_takes_the_later_ones_aside(log: ChangeLog) -> None:
    fill(log, 4)
    Path(log.table.uri, commit_path(3)).unlink()
    assert len(recover(log.table.uri)) == 1
    assert ids(log.table.uri) == expected(2)


@pytest.mark.parametrize("missed", [commit_path(4), checkpoint_path(3)])
def test_what_another_adds_while_it_is_listed_is_left_alone(
    log: ChangeLog, missed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing may miss what comes after it was begun, and show what came later still."""
    fill(log, 3)
    log.table.checkpoint()
    fill(log, 2)
    listed, looks = LocalStorage.entries, []

    def entries(storage: LocalStorage, folder: str) -> list[Entry]:
        looks.append(folder)
        return [one for one in listed(storage, folder) if len(looks) > 1 or one.path != missed]

    monkeypatch.setattr(LocalStorage, "entries", entries)
    assert recover(log.table.uri) == []
    monkeypatch.undo()
    assert len(looks) > 1
    assert ids(log.table.uri) == expected(5)


def test_what_was_acknowledged_is_never_moved_aside(log: ChangeLog) -> None:
    fill(log, 4)
    uri = log.table.uri
    damage(Path(uri, commit_path(4)), "cut")
    with pytest.raises(LakeError, match="seq is 5, but 7 was acknowledged"):
        recover(uri, {"seq": 7})
    assert Path(uri, commit_path(4)).exists()
    assert len(recover(uri, {"seq": 5, "never": -1})) == 1


def test_a_table_torn_at_its_creation_is_as_if_never_created(log: ChangeLog) -> None:
    uri = log.table.uri
    damage(Path(uri, commit_path(0)), "empty")
    assert len(recover(uri)) == 1
    with pytest.raises(TableMissing):
        ChangeLog.open(uri)
    ChangeLog.create(uri, ROW, ("id",))
    assert recover(uri) == []
    assert recover(f"{uri}-nothing") == []


@pytest.mark.parametrize("what", ["_last_checkpoint", "checkpoint", "both"])
@pytest.mark.parametrize("how", ["empty", "cut", "zeros"])
def test_a_torn_checkpoint_is_moved_aside(log: ChangeLog, what: str, how: str) -> None:
    for _ in range(3):
        fill(log, 4)
        log.table.checkpoint()
    archive(log.table, grace_seconds=0)
    fill(log, 1)
    folder = Path(log.table.uri, "_delta_log")
    if what != "checkpoint":
        damage(folder / "_last_checkpoint", how)
    if what != "_last_checkpoint":
        damage(folder / f"{12:020}.checkpoint.parquet", how)
    assert len(recover(log.table.uri, {"seq": 25})) == (1 if what == "_last_checkpoint" else 2)
    assert ids(log.table.uri) == expected(13)
    again = ChangeLog.open(log.table.uri)
    fill(again, 1)
    again.table.checkpoint()
    assert ids(log.table.uri) == expected(14)


def test_files_that_compaction_replaced_need_not_be_there(log: ChangeLog) -> None:
    fill(log, 5)
    table = Table.open(log.table.uri)
    compact(table, small_bytes=10**6, run_length=2)
    vacuum(table, grace_seconds=0)
    assert recover(log.table.uri) == []


def test_a_torn_compaction_gives_the_small_files_back(log: ChangeLog) -> None:
    fill(log, 5)
    table = Table.open(log.table.uri)
    compact(table, small_bytes=10**6, run_length=2)
    damage(Path(table.uri, table.files()[0].path), "cut")
    assert len(recover(table.uri, {"seq": 9})) == 1
    assert ids(table.uri) == expected(5)


def test_a_copied_lake_reads_the_same(log: ChangeLog, tmp_path: Path) -> None:
    for _ in range(3):
        fill(log, 3)
        log.table.checkpoint()
    maintain(Table.open(log.table.uri), AT_ONCE)
    shutil.copytree(log.table.uri, tmp_path / "copy")
    assert ids(str(tmp_path / "copy")) == expected(9)
