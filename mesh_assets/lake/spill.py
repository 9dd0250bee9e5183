"""Rows put aside on local disk by span of the key space, so that what is too large is read once only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pyarrow as pa

from mesh_assets.lake.scratch import Scratch
from mesh_assets.lake.shape import Shape
from mesh_assets.lake.span import route


class Spill:
    """Rows by the number of their span."""

    def __init__(self, like: pl.DataFrame, folder: Path) -> None:
        self._like = like
        self._folder = folder

    def part(self, number: int) -> pl.DataFrame:
        """The rows of one span, in the order in which they were put aside; to be asked for once."""
        file = _file(self._folder, number)
        if not file.exists():
            return self._like
        parts = [self._like]
        with pa.OSFile(str(file)) as stored:
            size = stored.size()
            while stored.tell() < size:
                part = pl.from_arrow(pa.ipc.open_stream(stored).read_all())
                assert isinstance(part, pl.DataFrame)
                parts.append(part)
        file.unlink()
        return pl.concat(parts)


@contextmanager
def spilled(shape: Shape, batches: Iterable[pl.DataFrame], lows: pl.DataFrame) -> Iterator[Spill]:
    """Put batches of identified rows aside by their span among those that start at ``lows``.

    The files lie in the system's folder for temporary files and go with the block.
    """
    like = pl.DataFrame()
    with Scratch("fold") as folder:
        for batch in batches:
            like = batch.clear()
            numbered = batch.with_columns(_span=route(shape, batch, lows))
            for number, part in numbered.partition_by("_span", as_dict=True, include_key=False).items():
                # Opened anew each time: there may be more spans than files that a process may hold open.
                with _file(folder, int(number[0])).open("ab") as file:
                    part.write_ipc_stream(file, compression="lz4")
        yield Spill(like, folder)


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number}.arrow"
