"""Rows put aside on local disk by span of the key space, so that a large tail is read once only."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from mesh_assets.lake.shape import Shape
from mesh_assets.lake.span import route


class Spill:
    """Rows by the number of their span."""

    def __init__(self, like: pl.DataFrame, files: dict[int, list[Path]]) -> None:
        self._like = like
        self._files = files

    def part(self, number: int) -> pl.DataFrame:
        """The rows of one span."""
        return pl.concat([self._like, *(pl.read_ipc(file) for file in self._files[number])])


@contextmanager
def spilled(shape: Shape, batches: Iterable[pl.DataFrame], lows: pl.DataFrame) -> Iterator[Spill]:
    """Put batches of identified rows aside by their span among those that start at ``lows``.

    The files lie in the system's folder for temporary files and go with the block.
    """
    like = pl.DataFrame()
    with tempfile.TemporaryDirectory(prefix="mesh-fold-") as folder:
        files: dict[int, list[Path]] = defaultdict(list)
        for count, batch in enumerate(batches):
            like = batch.clear()
            numbered = batch.with_columns(_span=route(shape, batch, lows))
            for number, part in numbered.partition_by("_span", as_dict=True, include_key=False).items():
                place = int(number[0])
                file = Path(folder) / f"{place}-{count}.arrow"
                part.write_ipc(file, compression="lz4")
                files[place].append(file)
        yield Spill(like, files)
