"""The crash matrix: a shift killed by SIGKILL at each commit point loses nothing and doubles nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh_assets import failpoint
from tests.crash.pool import KILLED, Pool
from tests.crash.world import World

# Kills during the snapshot, then at every commit point of a drain, of a replay and of the upkeep beside.
KILLS = (
    "snapshot.chunk:1",
    "snapshot.chunk:3",
    "snapshot.done:1",
    "decode.before:1",
    "decode.after:1",
    "file.written:4",
    "append.before:1",
    "append.first:1",
    "append.middle:1",
    "version.before:1",
    "version.after:1",
    "ledger.before:1",
    "ledger.after:1",
    "acknowledge.after:1",
    "replay.before:1",
    "replay.after:1",
    "fold.before:1",
    "fold.written:1",
    "fold.after:1",
    "checkpoint.after:1",
    "compact.before:1",
    "compact.after:1",
    "archive.written:1",
)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Processes that are loaded already."""
    with Pool() as pool:
        yield pool


@pytest.fixture
def world(database_url: str, tmp_path: Path) -> Iterator[World]:
    """A source with enough rows for several snapshot chunks."""
    world = World(database_url, tmp_path / "lake", seed=11, gated=True)
    world.application.transact(120)
    yield world
    world.close()


def test_the_matrix_kills_at_every_point_there_is() -> None:
    assert {kill.partition(":")[0] for kill in KILLS} == set(failpoint.POINTS)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_kill_at_each_commit_point_loses_and_doubles_nothing(world: World, pool: Pool) -> None:
    for point in KILLS:
        # The rules are gone for a while, so that something is released; a truncate would empty quarantine.
        world.gated = world.application.truncates = not point.startswith("replay.")
        world.application.transact(25)
        if not world.gated:
            assert world.rejected_count() > 0
            world.ask_replay()
        if world.shift(pool, point) != KILLED:
            pytest.fail(f"the shift never reached {point}")
        if point == "snapshot.done:1":
            world.witness()
    world.application.transact(25)
    world.application.truncates = False
    world.application.transact(25)
    assert world.shift(pool) == 0
    verdict = world.verify()
    assert world.kills == len(KILLS)
    assert verdict.passed, verdict.sentence()
    assert verdict.changes > 0
    assert sum(result.quarantined_count for result in verdict.parity.values()) > 0
    world.gated = False
    world.ask_replay()
    assert world.shift(pool) == 0
    verdict = world.verify()
    assert verdict.passed, verdict.sentence()
    assert sum(result.quarantined_count for result in verdict.parity.values()) == 0
