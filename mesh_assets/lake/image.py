"""Images of rows out of change-log rows: pure functions on polars frames, no storage.

A **tail** is a slice of a change log in ``_seq`` order; a **base** is a current table that stands
just before it. :func:`index` finds, from narrow columns only, which log row is the last
word on each key; :func:`combine` then builds the rows lazily, so that a reader's projection
and predicates reach the files.

Rules (sequential meaning; everything here is their vectorised form):

* ``t`` forgets the base and all earlier rows; ``d`` removes a key; ``r``, ``c``, ``u`` set it.
* A rejected row does not change the result, but is an image in the log: a masked column (named
  in ``_unchanged``) takes the previous image of its key, accepted or rejected, and after a key move
  (``c`` with ``_before``) the image that the old key had.
* ``_exact`` entries belong to values: they travel with a masked column and go with an overwritten one.
* Without a key the table is a multiset: ``d`` and ``u`` take away one row equal to ``_before``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import polars as pl

from mesh_assets.lake.exact import replaced_exact, row_exact, text_of
from mesh_assets.lake.mask import IN_BASE, mask_sources, prefixed
from mesh_assets.lake.shape import META_COLUMNS, Shape

_EAGER_ROWS = 1_000_000
"""Up to this many log rows the narrow columns are read once and kept in memory."""


@dataclass(frozen=True)
class Index:
    """Which log rows make up the result; holds narrow columns only.

    Attributes:
        truncated: a ``t`` row: the base does not count.
        after: log rows up to this ``_seq`` do not count (the last ``t``, else before the tail).
        touched: identity of every key that an accepted row names: hides base rows.
        plain: ``_seq`` of the rows that are the result as they stand; None means every accepted row.
        masked: rows with masked columns: ``_seq``, per column ``_from_<column>`` (the ``_seq`` that holds
            the value, -1 the base, -2 nowhere), and ``_root_<identity>`` (the key to ask in the base).
        columns: the columns masked in any of those.
    """

    truncated: bool
    after: int
    touched: pl.DataFrame
    plain: pl.DataFrame | None
    masked: pl.DataFrame = field(default_factory=pl.DataFrame)
    columns: tuple[str, ...] = ()

    def roots(self, shape: Shape) -> pl.DataFrame:
        """Identity of the base rows that masked columns take values from, without repetition."""
        if not self.columns:
            return self.touched.clear()
        asks = pl.any_horizontal(pl.col(f"_from_{name}") == IN_BASE for name in self.columns)
        return self.masked.filter(asks).select(prefixed("_root_", shape.identity)).unique()


def index(
    shape: Shape,
    tail: pl.LazyFrame,
    *,
    row_count: int,
    after: int = -1,
    has_base: bool = True,
    reach: pl.LazyFrame | None = None,
) -> Index:
    """Find the last accepted row of every key.

    Args:
        shape: of the table; must have a key.
        tail: log rows, accepted and rejected, all with ``_seq`` > ``after``.
        row_count: about how many rows those are (decides whether narrow columns are kept in memory).
        after: the ``_seq`` at which the base stands; -1 for none.
        has_base: whether masked columns without a source in the tail may look into a base.
        reach: if ``tail`` holds some keys only: the rows of all keys, for values that come with a key move.
    """
    op = pl.col("_op")
    narrow = shape.identified(tail).select(
        *shape.identity,
        "_seq",
        _accepted=pl.col("_rejected_by").is_null(),
        _truncate=op == "t",
        _removed=op == "d",
        _masked=pl.col("_unchanged").is_not_null() & op.is_in(["c", "u", "r"]),
    )
    if row_count <= _EAGER_ROWS:
        narrow = narrow.collect(engine="streaming").lazy()
    facts = (
        narrow.select(
            cut=pl.col("_seq").filter(pl.col("_truncate")).max(),
            masked=pl.col("_masked").any(),
        )
        .collect(engine="streaming")
        .row(0, named=True)
    )
    truncated = facts["cut"] is not None
    if truncated:
        after = facts["cut"]
        narrow = narrow.filter(pl.col("_seq") > after)
    accepted = narrow.filter("_accepted")
    # One integer says which row is last and what it is: no sorting, and it streams.
    code = pl.col("_seq") * 4 + pl.col("_masked").cast(pl.Int64) * 2 + pl.col("_removed").cast(pl.Int64)
    latest = (
        accepted.select(*shape.identity, _code=code)
        .group_by(shape.identity)
        .agg(pl.col("_code").max(), pl.len().alias("_count"))
        .collect(engine="streaming")
    )
    kept = latest.filter(pl.col("_code") & 1 == 0)
    touched = latest.select(shape.identity)
    single = latest["_count"].max() in (None, 1) and kept.height == latest.height and not facts["masked"]
    if single:
        return Index(truncated, after, touched, None)
    plain = kept.filter(pl.col("_code") & 2 == 0).select(_seq=pl.col("_code") // 4)
    final = kept.filter(pl.col("_code") & 2 == 2).select(*shape.identity, _seq=pl.col("_code") // 4)
    if final.is_empty():
        return Index(truncated, after, touched, plain)
    images = tail if reach is None else reach
    if truncated:
        images = images.filter(pl.col("_seq") > after)
    masked, columns = mask_sources(shape, images, final, has_base=has_base and not truncated)
    return Index(truncated, after, touched, plain, masked, columns)


def look_back(shape: Shape, found: Index, doubtful: pl.DataFrame, history: pl.LazyFrame) -> Index:
    """``found``, with the masked columns that ask ``doubtful`` keys of the base answered from the log.

    A base holds accepted images only; where the log's previous image was a rejected one, the whole
    log answers instead.

    Args:
        shape: of the table.
        found: an index with masked rows.
        doubtful: identities among ``found.roots(shape)``.
        history: all log rows up to the end of the tail, after the last truncate.
    """
    roots = [f"_root_{name}" for name in shape.identity]
    final = found.masked.join(
        doubtful, left_on=roots, right_on=shape.identity, how="semi", nulls_equal=bool(shape.inexact)
    ).select("_seq")
    keys = shape.identified(history.join(final.lazy(), on="_seq", how="semi")).select(*shape.identity, "_seq")
    masked, columns = mask_sources(shape, history, keys.collect(engine="streaming"), has_base=False)
    kept = found.masked.join(final, on="_seq", how="anti")
    return replace(
        found,
        masked=pl.concat([kept, masked], how="diagonal"),
        columns=tuple(name for name in shape.columns if name in {*found.columns, *columns}),
    )


def combine(
    shape: Shape,
    found: Index,
    tail: pl.LazyFrame,
    base: pl.LazyFrame | None,
    *,
    meta: bool = False,
    sources: pl.LazyFrame | None = None,
    roots: pl.LazyFrame | None = None,
) -> pl.LazyFrame:
    """The rows as of the end of ``tail``: untouched base rows, last log rows, masked columns filled.

    Args:
        shape: of the table.
        found: the :func:`index` of this tail.
        tail: the log rows that were indexed, with all columns.
        base: the current table with row and meta columns, or None.
        meta: whether :data:`META_COLUMNS` are wanted besides the row's columns.
        sources: log rows in which the masks' sources lie, if those reach further than ``tail``.
        roots: base rows in which :meth:`Index.roots` lie, if those reach further than ``base``.
    """
    names = shape.names(meta)
    parts: list[pl.LazyFrame] = []
    if base is not None and not found.truncated:
        kept = shape.join(shape.identified(base), found.touched.lazy(), "anti")
        parts.append(kept.select(names))
    rows = tail.filter(pl.col("_seq") > found.after) if found.truncated else tail
    if found.plain is None:
        live = rows.filter(pl.col("_rejected_by").is_null() & (pl.col("_op") != "t"))
        parts.append(live.select(_row(shape, meta)))
    elif found.plain.height:
        parts.append(rows.join(found.plain.lazy(), on="_seq", how="semi").select(_row(shape, meta)))
    if found.masked.height:
        sources = tail if sources is None else sources
        roots = base if roots is None else roots
        parts.append(_filled(shape, found, tail, sources, roots, meta=meta).select(names))
    return pl.concat(parts) if parts else tail.clear().select(_row(shape, meta))


def _row(shape: Shape, meta: bool) -> list[str | pl.Expr]:
    return [*shape.columns, *META_COLUMNS[:-1], row_exact()] if meta else list(shape.columns)


def _filled(
    shape: Shape,
    found: Index,
    tail: pl.LazyFrame,
    sources: pl.LazyFrame,
    base: pl.LazyFrame | None,
    *,
    meta: bool,
) -> pl.LazyFrame:
    """The log rows of ``found.masked`` with every masked column taken from its source."""
    frame = tail.join(found.masked.lazy(), on="_seq", how="inner")
    for name in found.columns:
        source = f"_from_{name}"
        wanted = found.masked.select(source).filter(pl.col(source) >= 0).unique().lazy()
        values = sources.join(wanted, left_on="_seq", right_on=source, how="semi").select(
            pl.col("_seq").alias(source),
            pl.col(name).alias(f"_log_{name}"),
            text_of(name).alias(f"_log_exact_{name}"),
        )
        frame = frame.join(values, on=source, how="left")
    roots = found.roots(shape)
    asks_base = base is not None and roots.height > 0
    if base is not None and asks_base:
        values = shape.join(shape.identified(base), roots.lazy(), "semi").select(
            *(pl.col(name).alias(f"_root_{name}") for name in shape.identity),
            *(pl.col(name).alias(f"_base_{name}") for name in found.columns),
            *(text_of(name).alias(f"_base_exact_{name}") for name in found.columns),
        )
        on = [f"_root_{name}" for name in shape.identity]
        frame = frame.join(values, on=on, how="left", nulls_equal=bool(shape.inexact))

    def taken(name: str, own: pl.Expr, kind: str, dtype: pl.DataType) -> pl.Expr:
        source = pl.col(f"_from_{name}")
        stored = pl.col(f"_base_{kind}{name}") if asks_base else pl.lit(None, dtype=dtype)
        logged = pl.when(source >= 0).then(pl.col(f"_log_{kind}{name}"))
        return pl.when(source.is_null()).then(own).when(source == IN_BASE).then(stored).otherwise(logged)

    columns = [taken(name, pl.col(name), "", shape.columns[name]).alias(name) for name in found.columns]
    if meta:
        texts = {name: taken(name, text_of(name), "exact_", pl.String()) for name in found.columns}
        columns.append(replaced_exact(texts))
    return frame.with_columns(columns)
