"""A product's newest version, read from its log's files alone."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from mesh_assets.lake.version import VersionLog
from mesh_assets.names import local_folder
from mesh_assets.orchestration.version import local_version


def append(log: VersionLog, count: int) -> None:
    for _ in range(count):
        log.append(
            tables={"orders": log.records.number},
            positions={},
            row_count={"c": 1},
            contract_hash="",
            code_version="",
            run_id="",
            actor="",
            committed_at=datetime.now(UTC),
        )


def test_the_newest_version_is_that_of_the_newest_commit(tmp_path: Path) -> None:
    folder = tmp_path / "versions"
    assert local_version(folder) == 0
    log = VersionLog.ensure(str(folder))
    assert local_version(folder) == 0
    append(log, 12)
    assert local_version(folder) == 12 == log.records.number


def test_a_commit_without_a_version_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "versions"
    log = VersionLog.ensure(str(folder))
    append(log, 3)
    newest = max((folder / "_delta_log").glob("*.json"))
    later = newest.with_name(f"{int(newest.stem) + 1:020}.json")
    later.write_text('{"commitInfo":{"operation":"txn"}}\n')
    assert local_version(folder) == 3


def test_only_a_local_lake_has_a_folder() -> None:
    assert local_folder("/lake/a b") == Path("/lake/a b")
    assert local_folder("file:///lake/a%20b") == Path("/lake/a b")
    assert local_folder("s3://bucket/lake") is None
