"""What a fold has to know of its tail before it begins: one pass over a few columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from mesh_assets.lake.exact import EXACT
from mesh_assets.lake.shape import Shape
from mesh_assets.lake.tail import Tail

SAMPLE_ROWS = 50_000
"""About so many identities tell how changes are spread over the key space."""
_BATCH_ROWS = 131_072


@dataclass(frozen=True)
class Survey:
    """Facts about the log rows of a tail after its last truncate.

    Attributes:
        cut: the ``_seq`` of the last truncate; None if there is none.
        rejected: whether a row was rejected.
        masked: whether a row has masked columns.
        sample: identities of one row in :attr:`step`.
        step: one row in about so many is in the sample.
    """

    cut: int | None
    rejected: bool
    masked: bool
    sample: pl.DataFrame
    step: int


def survey(tail: Tail) -> Survey:
    """Look at a tail's narrow columns once (twice if it holds a truncate)."""
    found = _survey(tail.shape, tail, tail.after)
    if found.cut is None:
        return found
    after = _survey(tail.shape, tail, found.cut)
    return Survey(found.cut, after.rejected, after.masked, after.sample, after.step)


def _survey(shape: Shape, tail: Tail, after: int) -> Survey:
    step = max(1, (tail.upto - after) // SAMPLE_ROWS)
    cut: int | None = None
    rejected = masked = False
    parts = [shape.identified(pl.DataFrame(schema=_schema(shape)).lazy()).select(shape.identity).collect()]
    for batch in tail.log.batches(after, tail.upto, _columns(shape), row_count=_BATCH_ROWS):
        truncates = batch.filter(pl.col("_op") == "t")["_seq"]
        if len(truncates):
            cut = max(-1 if cut is None else cut, *truncates)
        rejected = rejected or batch["_rejected_by"].null_count() < batch.height
        masked = masked or batch["_unchanged"].null_count() < batch.height
        # By hash: changes often come in a rhythm, of which every n-th row would show one beat only.
        sampled = batch.filter((pl.col("_seq").hash(seed=0) % step == 0) & (pl.col("_op") != "t"))
        parts.append(shape.identified(sampled.lazy()).select(shape.identity).collect())
    return Survey(cut, rejected, masked, pl.concat(parts), step)


def _columns(shape: Shape) -> Sequence[str]:
    exact = ["_exact"] if shape.inexact else []
    return [*shape.key, *exact, "_seq", "_op", "_rejected_by", "_unchanged"]


def _schema(shape: Shape) -> dict[str, pl.DataType]:
    schema = {name: shape.columns[name] for name in shape.key}
    return schema | ({"_exact": EXACT} if shape.inexact else {})
