"""A captured application per test, and what the lake then tells of its lineage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.world import World


@pytest.fixture
def world(database_url: str, tmp_path: Path) -> Iterator[World]:
    """A source with some rows, not captured yet."""
    world = World(database_url, tmp_path / "lake", seed=5)
    world.application.transact(40)
    yield world
    world.close()
