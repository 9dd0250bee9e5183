"""Figures say of which code they are."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks.record import Record, revision


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@mesh.example")
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def not_seen_before() -> None:
    revision.cache_clear()


def test_the_revision_and_whether_the_tree_is_changed(tmp_path: Path) -> None:
    assert revision(tmp_path) == ""
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".gitignore").write_text("results\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "fold.json").write_text("{}")
    # The first answer holds for a process, so that a tree that changes meanwhile does not tell for it.
    assert revision(tmp_path) == ""
    revision.cache_clear()
    head = git(tmp_path, "rev-parse", "HEAD")
    assert revision(tmp_path) == head
    # What lies in somebody else's checkout is not of its revision.
    assert revision(tmp_path / "results") == ""
    revision.cache_clear()
    (tmp_path / "new.py").write_text("")
    assert revision(tmp_path) == f"{head}+"


def test_a_record_says_when_it_was_taken(tmp_path: Path) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    record = Record("lineage_live", "lineage", 2.0, 1.0, "without lineage", 0.97, "CPU s", True, spread=0.1)
    content = json.loads(record.write(tmp_path).read_text())
    taken_at = datetime.fromisoformat(content["taken_at"])
    assert before <= taken_at <= datetime.now(UTC)
    assert content["commit"] == revision()
    assert content["spread"] == 0.1
