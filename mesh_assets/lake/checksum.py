"""Content hashes of rows: equal rows hash equally wherever they come from.

Used to find differences between a source and the lake without holding both in memory. A hash is
64 bits and order-free sums of them compare ranges; identity of keys uses 128 bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from mesh_assets.lake.exact import text_of

_ENTRIES = pl.List(pl.Struct({"key": pl.String, "value": pl.String}))
_CONTENT_SEED = 0
_KEY_SEEDS = (1, 2)


def canonical(rows: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """The named columns in one canonical representation per type.

    Nested values become their JSON text, since their hash is not defined; an ``_exact`` map is
    sorted by column and an empty one equals none.
    """
    expressions: list[pl.Expr] = []
    for name in columns:
        kind = rows.schema[name]
        if isinstance(kind, pl.Map):
            entries = pl.col(name).cast(_ENTRIES).list.sort()
            pairs = entries.list.eval(
                pl.concat_str(
                    pl.element().struct.field("key"), pl.lit("="), pl.element().struct.field("value")
                )
            )
            text = pairs.list.join("\x1f")
            expressions.append(pl.when(text != "").then(text).alias(name))
        elif isinstance(kind, pl.List):
            items = pl.col(name).list.eval(pl.element().cast(pl.String).fill_null("\x00"))
            expressions.append(
                pl.concat_str(pl.col(name).list.len().cast(pl.String), items.list.join("\x1f")).alias(name)
            )
        else:
            expressions.append(pl.col(name))
    return rows.select(expressions)


def row_hash(rows: pl.DataFrame, columns: Sequence[str]) -> pl.Series:
    """One UInt64 per row over the named columns, in order."""
    return canonical(rows, columns).hash_rows(seed=_CONTENT_SEED)


def key_hash(rows: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
    """Two UInt64 columns (``_k0``, ``_k1``) that identify a key, by its exact texts where it has any."""
    part = canonical(rows, key)
    if "_exact" in rows.columns:
        part = part.hstack(rows.select(text_of(name).alias(f"_exact.{name}") for name in key))
    return pl.DataFrame({f"_k{i}": part.hash_rows(seed=seed) for i, seed in enumerate(_KEY_SEEDS)})


class Held:
    """What the lake holds of one table, as hashes (24 bytes a row), to be compared with a source.

    Args:
        rows: the lake's rows in batches.
        key: key columns.
        columns: columns whose content counts (key included).
    """

    def __init__(self, rows: Iterable[pl.DataFrame], key: Sequence[str], columns: Sequence[str]) -> None:
        self.key = list(key)
        self.columns = list(columns)
        parts = [key_hash(batch, self.key).with_columns(_h=row_hash(batch, self.columns)) for batch in rows]
        empty = pl.DataFrame(schema={"_k0": pl.UInt64, "_k1": pl.UInt64, "_h": pl.UInt64})
        self._held = pl.concat([empty, *parts])
        self._seen: list[pl.DataFrame] = []

    def changed(self, rows: pa.Table) -> pa.Table:
        """The rows of ``rows`` that the lake lacks or holds with other content; remembers their keys."""
        frame = pl.DataFrame(pl.from_arrow(rows.select(self.columns)))
        hashes = key_hash(frame, self.key).with_columns(row_hash(frame, self.columns).alias("_h"))
        self._seen.append(hashes.select("_k0", "_k1"))
        equal = hashes.with_row_index("_i").join(self._held, on=["_k0", "_k1", "_h"], how="semi")["_i"]
        keep = np.ones(rows.num_rows, bool)
        keep[equal.to_numpy()] = False
        return rows.filter(pa.array(keep))

    def missing(self, rows: Iterable[pl.DataFrame]) -> pl.DataFrame | None:
        """Keys (with ``_exact``) that the lake holds and no :meth:`changed` call has shown; None if none."""
        seen = pl.concat([self._held.select("_k0", "_k1").clear(), *self._seen])
        gone = self._held.join(seen, on=["_k0", "_k1"], how="anti").select("_k0", "_k1")
        if gone.is_empty():
            return None
        parts: list[pl.DataFrame] = []
        for batch in rows:
            hashes = key_hash(batch, self.key).with_row_index("_i").join(gone, on=["_k0", "_k1"], how="semi")
            parts.append(batch.select(*self.key, "_exact")[hashes["_i"]])
        return pl.concat(parts)
