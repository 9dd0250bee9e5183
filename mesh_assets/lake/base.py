"""The base rows of a fold, taken once in key order, a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl

from mesh_assets.lake.current import Current
from mesh_assets.lake.file import FileRef
from mesh_assets.lake.shape import Shape
from mesh_assets.lake.span import Span

Identity = tuple[Any, ...]


@dataclass(frozen=True)
class Piece:
    """Neighbouring rows of a base.

    Attributes:
        rows: row and meta columns in key order; None where there is no base.
        bound: the identity before which everything is that belongs to this piece (None: no limit).
        left: rows of the same file that follow.
    """

    rows: pl.DataFrame | None
    bound: Identity | None
    left: int


NOTHING = Piece(None, None, 0)
"""All there is where there is no base."""


class Base:
    """Reads sorted files, one after the other.

    Args:
        current: whose files.
        shape: of the rows.
        row_count: about how many rows a piece has.
    """

    def __init__(self, current: Current, shape: Shape, row_count: int) -> None:
        self._current, self._shape, self._row_count = current, shape, row_count
        self._file: FileRef | None = None
        self._batches: Iterator[pl.DataFrame] = iter(())
        self._next: pl.DataFrame | None = None
        self._left = 0

    def pieces(self, file: FileRef, high: Identity | None) -> Iterator[Piece]:
        """What was not taken yet of a file's rows below ``high``: one piece at least, maybe without rows."""
        if self._file is not file:
            self._file, self._left = file, file.row_count
            self._batches = self._current.batches(self._shape, [file], row_count=self._row_count)
            self._next = next(self._batches, None)
        while (rows := self._next) is not None:
            count = rows.height if high is None else self._count_below(rows, high)
            self._left -= count
            if count < rows.height:
                self._next = rows[count:]
                yield Piece(rows[:count], high, self._left)
                return
            self._next = next(self._batches, None)
            if self._next is None:
                yield Piece(rows, high, self._left)
                return
            yield Piece(rows, self._first(self._next), self._left)
        yield Piece(None, high, 0)

    def _count_below(self, rows: pl.DataFrame, high: Identity) -> int:
        """How many of the first rows are below an identity."""
        shape = self._shape
        below = shape.identified(rows.lazy()).select(Span(None, high).holds(shape).sum())
        return int(below.collect().item())

    def _first(self, rows: pl.DataFrame) -> Identity:
        shape = self._shape
        return shape.identified(rows.head(1).lazy()).select(shape.identity).collect().row(0)
