"""The crash matrix: a shift killed by SIGKILL at each commit point loses nothing and doubles nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.crash.world import World

# A kill during the snapshot, then at every commit point of a drain, in the order of a shift.
KILLS = (
    "snapshot.chunk:1",
    "snapshot.chunk:3",
    "snapshot.done:1",
    "decode.before:1",
    "decode.after:1",
    "file.written:4",
    "append.first:1",
    "append.middle:1",
    "version.after:1",
    "ledger.before:1",
    "ledger.after:1",
    "acknowledge.after:1",
    "fold.before:1",
    "fold.written:1",
    "fold.after:1",
)


@pytest.fixture
def world(database_url: str, tmp_path: Path) -> Iterator[World]:
    """A source with enough rows for several snapshot chunks."""
    world = World(database_url, tmp_path / "lake", seed=11)
    world.application.transact(120)
    yield world
    world.close()


@pytest.mark.slow
def test_a_kill_at_each_commit_point_loses_and_doubles_nothing(world: World) -> None:
    for point in KILLS:
        world.application.transact(25)
        if world.shift(failpoint=point) != -9:
            pytest.fail(f"the shift never reached {point}")
        if point == "snapshot.done:1":
            world.witness()
    world.application.transact(25)
    assert world.shift() == 0
    verdict = world.verify()
    assert world.kills == len(KILLS)
    assert (verdict.lost, verdict.doubled) == (0, 0)
    assert verdict.changes > 0
    for result in verdict.parity.values():
        assert result.equal, result.sentence()
