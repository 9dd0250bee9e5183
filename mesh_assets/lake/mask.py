"""Where the value of a masked column stands: following images back through the log, all rows at once.

Every image (a row that sets a key) points to the image before it: of its own key or, for the row of a
key move, of the old key. A masked column follows the pointers to the first image that has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from mesh_assets.lake.exact import text_before
from mesh_assets.lake.shape import Shape

IN_BASE = -1
"""A source: the base's row of the root key."""
NOWHERE = -2
"""A source: no image holds the value."""


def mask_sources(
    shape: Shape, rows: pl.LazyFrame, final: pl.DataFrame, *, has_base: bool
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Where each masked column of the ``final`` rows gets its value: :attr:`Index.masked` and its columns.

    Every image points to the image before it; a masked column follows the pointers to the first
    image that has it. Pointers are followed for all rows at once, doubling the stride each time.
    """
    keys = _involved(shape, rows, final)
    images = shape.join(_links(shape, rows), keys.lazy(), "semi").collect(engine="streaming")
    names = set(images["_unchanged"].drop_nulls().explode(empty_as_null=False).to_list())
    columns = tuple(name for name in shape.columns if name in names)
    groups = keys.with_row_index("_group").with_columns(pl.col("_group").cast(pl.Int64))
    old_groups = groups.rename({name: f"_old_{name}" for name in shape.identity} | {"_group": "_old_group"})
    nulls_equal = bool(shape.inexact)
    old = [f"_old_{name}" for name in shape.identity]
    images = (
        images.join(groups, on=shape.identity, how="left", nulls_equal=nulls_equal)
        .join(old_groups, on=old, how="left", nulls_equal=nulls_equal)
        .sort("_group", "_seq")
    )
    up = _pointers(images, keys.height, has_base=has_base)
    count, nowhere = images.height, len(up)
    rows_of_final = images.with_row_index("_row").join(final, on="_seq", how="semi")["_row"]
    at = rows_of_final.to_numpy().astype(np.int64)
    seqs = np.concatenate(
        [images["_seq"].to_numpy(), np.full(nowhere - count, IN_BASE), np.array([NOWHERE])]
    ).astype(np.int64)
    out: dict[str, npt.NDArray[np.int64]] = {"_seq": seqs[at]}
    root = np.full(len(at), -1, dtype=np.int64)
    for name in columns:
        masked = images["_unchanged"].list.contains(name).fill_null(value=False)
        reached = _follow(up, masked.to_numpy(), nowhere)[at]
        out[f"_from_{name}"] = seqs[reached]
        from_base = (reached >= count) & (reached < nowhere)
        root[from_base] = reached[from_base] - count
    roots = groups.rename({name: f"_root_{name}" for name in shape.identity})
    masked_rows = pl.DataFrame(out).with_columns(_group=pl.Series(root))
    return masked_rows.join(roots, on="_group", how="left").drop("_group"), columns


def _links(shape: Shape, rows: pl.LazyFrame) -> pl.LazyFrame:
    """Narrow rows to follow masks by: identity, ``_seq``, ``_unchanged``, ``removed``, ``moved``, old key."""
    before = pl.col("_before").struct
    moved = (pl.col("_op") == "c") & pl.col("_before").is_not_null() & pl.col("_unchanged").is_not_null()
    old = [pl.when(moved).then(before.field(name)).alias(f"_old_{name}") for name in shape.key]
    old += [pl.when(moved).then(text_before(name)).alias(f"_old__exact_{name}") for name in shape.inexact]
    return (
        shape.identified(rows)
        .filter(pl.col("_op") != "t")
        .select(*shape.identity, "_seq", "_unchanged", *old, removed=pl.col("_op") == "d", moved=moved)
    )


def _involved(shape: Shape, rows: pl.LazyFrame, final: pl.DataFrame) -> pl.DataFrame:
    """Identities whose images matter to ``final``: their own and, through key moves, the old keys'."""
    moves = _links(shape, rows.filter(pl.col("_unchanged").is_not_null() & (pl.col("_op") == "c")))
    moved = moves.filter("moved").collect(engine="streaming")
    keys = final.select(shape.identity).unique()
    on, nulls_equal = shape.identity, bool(shape.inexact)
    fresh = keys
    while fresh.height:
        old = moved.join(fresh, on=on, how="semi", nulls_equal=nulls_equal)
        fresh = (
            old.select(prefixed("_old_", on)).unique().join(keys, on=on, how="anti", nulls_equal=nulls_equal)
        )
        keys = pl.concat([keys, fresh])
    return keys


def _pointers(images: pl.DataFrame, group_count: int, *, has_base: bool) -> npt.NDArray[np.int64]:
    """For each image (sorted by group and ``_seq``) the node of the image before it.

    Nodes: ``0..n-1`` the images, ``n..n+groups-1`` the groups' base rows, ``n+groups`` nowhere. The
    result has ``n+groups`` entries; base rows point nowhere, and nothing points to a removal.
    """
    count = images.height
    nowhere = count + group_count
    group = images["_group"].to_numpy()
    removed = images["removed"].to_numpy()
    seq = images["_seq"].to_numpy()
    base = count + group if has_base else np.full(count, nowhere)
    previous = np.arange(-1, count - 1)
    first = np.ones(count, dtype=bool)
    first[1:] = group[1:] != group[:-1]
    previous = np.where(first, base, previous)
    moves = images["moved"].to_numpy().nonzero()[0]
    if len(moves):
        old = images["_old_group"].to_numpy()[moves].astype(np.int64)
        low = int(seq.min())
        span = int(seq.max()) - low + 1
        place = np.searchsorted(group * span + (seq - low), old * span + (seq[moves] - low)) - 1
        known = (place >= 0) & (group[place] == old)
        # The old key's last row is the removal that belongs to this move: the image stands before it.
        step = np.where(removed[place], previous[place], place)
        previous[moves] = np.where(known, step, count + old if has_base else nowhere)
    ends = np.concatenate([removed, np.zeros(group_count + 1, dtype=bool)])
    previous = np.where(ends[previous], nowhere, previous)
    return np.concatenate([previous, np.full(group_count, nowhere)]).astype(np.int64)


def _follow(up: npt.NDArray[np.int64], masked: npt.NDArray[np.bool_], nowhere: int) -> npt.NDArray[np.int64]:
    """For each node the first node at or before it that is not masked."""
    reached = np.arange(nowhere + 1)
    at = masked.nonzero()[0]
    reached[at] = up[at]
    while True:
        further = reached[reached]
        if np.array_equal(further, reached):
            return reached
        reached = further


def prefixed(prefix: str, names: Sequence[str]) -> list[pl.Expr]:
    """The columns ``prefix + name`` under their plain names."""
    return [pl.col(prefix + name).alias(name) for name in names]
