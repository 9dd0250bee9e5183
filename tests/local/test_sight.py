"""Sights: lines through a pipe, which outlive whoever writes them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
from rich.console import Console

from mesh_assets.local.live import lines, render
from mesh_assets.local.sight import ProductSight, Sight, Sights, SourceSight

FIRST = Sight(
    1.0,
    (SourceSight("sales.app", 0.4, 1 << 21, 120.0, captured=True),),
    (ProductSight("sales.orders", 12_345, 7, "2026-01-02T03:04:05+00:00"),),
    {"sales": "loaded"},
    web=True,
)
SECOND = replace(FIRST, at=2.0)
THIRD = replace(FIRST, at=3.0)


class Pipe:
    """Sights, what was said of them, and the end that the watch writes to."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.said: list[str] = []
        self.sights = Sights(self.reading, self.said.append)

    def write(self, *pieces: str) -> None:
        os.write(self.writing, "".join(pieces).encode())


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    try:
        yield made
    finally:
        os.close(made.reading)
        os.close(made.writing)


def line(sight: Sight) -> str:
    return sight.dump() + "\n"


def test_a_sight_survives_its_line_and_can_be_shown() -> None:
    assert Sight.load(FIRST.dump()) == FIRST
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render(FIRST, {"Dagster": "http://127.0.0.1:3000"}))
    shown = console.export_text()
    for told in ("lag", "0.4 s", "WAL kept", "2.0 MiB", "changes/s", "120"):
        assert told in shown
    for told in ("rows", "12,345", "version", "7", "freshness", "http://127.0.0.1:3000"):
        assert told in shown
    text = "\n".join(lines(FIRST))
    assert "sales.app: lag 0.4 s, WAL kept 2.0 MiB, 120 changes/s" in text
    assert "sales.orders v7 12,345 rows" in text


def test_sights_come_in_whatever_pieces(pipe: Pipe) -> None:
    assert not pipe.sights.read(0)
    assert pipe.sights.latest == Sight()
    pipe.write(line(FIRST), line(SECOND)[:-20])
    assert pipe.sights.read(5)
    assert pipe.sights.latest == FIRST
    pipe.write(line(SECOND)[-20:], line(THIRD))
    assert pipe.sights.read(5)
    assert pipe.sights.latest == THIRD
    assert pipe.said == []


@pytest.mark.parametrize("taken_in", [True, False])
def test_half_a_line_ends_with_who_wrote_it(pipe: Pipe, taken_in: bool) -> None:
    pipe.write(line(FIRST), line(SECOND)[:40])
    if taken_in:
        assert pipe.sights.read(5)
    pipe.sights.writer_ended()
    assert pipe.sights.latest == FIRST
    pipe.write(line(THIRD))
    assert pipe.sights.read(5)
    assert pipe.sights.latest == THIRD
    assert pipe.said == []


@pytest.mark.parametrize("damaged", [line(SECOND)[:40] + line(SECOND), "\n", "\0\n", "[]\n", "{}\n"])
def test_a_line_that_is_no_sight_is_told_and_left_out(pipe: Pipe, damaged: str) -> None:
    pipe.write(line(FIRST), damaged)
    assert pipe.sights.read(5)
    assert pipe.sights.latest == FIRST
    came_at = pipe.sights.came_at
    pipe.write(damaged)
    assert not pipe.sights.read(5)
    assert pipe.sights.came_at == came_at
    first, second = pipe.said
    assert first == second
    assert repr(damaged[:20].strip("\n"))[:-1] in first
    pipe.write(line(THIRD))
    assert pipe.sights.read(5)
    assert pipe.sights.latest == THIRD
