"""Values outside of their column's type (an infinite date, a NaN) on their way through a transform.

Such a value is null in its column, and its text stands in ``_exact``. A sum over such nulls would be wrong
without a sign. So a transform gets the text as well, as ``<column>_exact``, where its definition says that
it minds (``exact``); else what it would use of such a row makes the derivation fail. Where it gives
``<column>_exact`` beside a column of its own, that becomes ``_exact`` of the product's row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import polars as pl

from mesh_assets.contract.definition import EXACT_SUFFIX
from mesh_assets.contract.document import display
from mesh_assets.derive.plan import DerivePlan, Subscription
from mesh_assets.derive.reading import columns_read
from mesh_assets.errors import TransformError
from mesh_assets.lake.exact import columns_in, text_of
from mesh_assets.lake.file import overlapping
from mesh_assets.lake.log import SEQ
from mesh_assets.lake.shape import Shape
from mesh_assets.lake.view import View

_MOST_EXAMPLES = 3


class Doubts:
    """Which columns of one table may have values outside of their type; looks into each file once."""

    def __init__(self) -> None:
        self._seen: frozenset[str] = frozenset()
        self._columns: frozenset[str] = frozenset()

    def columns(self, view: View) -> frozenset[str]:
        """Those of a view; possibly more, for as long as this object lives."""
        first = view.after + 1
        if view.base is not None:
            # What a change left out may come from a rejected one that the base does not have.
            first = min(first, view.base.held)
        logged = overlapping(view.log.table.files(), SEQ, first, view.cut)
        paths = frozenset(file.path for file in (*view.files, *logged))
        fresh = [file for file in logged if file.path not in self._seen]
        if fresh:
            self._columns |= columns_in(view.log.table.scan(fresh))
        folded = [file for file in view.files if file.path not in self._seen]
        if folded and view.base is not None:
            self._columns |= columns_in(view.base.scan(view.shape, folded))
        self._seen = paths
        return self._columns & frozenset(view.shape.columns)


@dataclass(frozen=True)
class Given:
    """An input at one cut, as the transform gets it.

    Attributes:
        plan: of the product.
        one: the input.
        view: its rows.
        doubtful: columns that count in the result, in which a value may be outside of the type without
            the transform being told.
    """

    plan: DerivePlan
    one: Subscription
    view: View
    doubtful: tuple[str, ...] = ()

    @property
    def shape(self) -> Shape:
        """What the rows look like, texts left out."""
        return self.view.shape

    @property
    def pathless(self) -> tuple[str, ...]:
        """Doubtful columns of a key path: rows without a value there are in no part of the input."""
        return tuple(name for name in self.doubtful if name in path_columns(self.plan)[self.one.name])

    def rows(self) -> pl.LazyFrame:
        """All rows.

        Raises:
            TransformError: if a value that counts is outside of its column's type.
        """
        return self._read(lambda meta: self.view.rows(meta=meta))

    def holding(self, values: pl.DataFrame) -> pl.LazyFrame:
        """The rows whose columns have one of these combinations of values.

        Raises:
            TransformError: if a value of theirs that counts is outside of its column's type.
        """
        return self._read(lambda meta: self.view.holding(values, meta=meta))

    def _read(self, read: Callable[[bool], pl.LazyFrame]) -> pl.LazyFrame:
        if self.doubtful:
            self._require_held(read(True))
        if not self.one.exact:
            return read(False)
        names = self.shape.columns.names()
        return read(True).select(
            *names, *(text_of(name).alias(name + EXACT_SUFFIX) for name in self.one.exact)
        )

    def _require_held(self, rows: pl.LazyFrame) -> None:
        outside = {name: text_of(name).is_not_null() for name in self.doubtful}
        found = (
            rows.filter(pl.col("_exact").is_not_null())
            .select(*(pl.col(name).alias(f"_key_{name}") for name in self.shape.key), **outside)
            .filter(pl.any_horizontal(*self.doubtful))
            .collect(engine="streaming")
        )
        if found.is_empty():
            return
        columns = [name for name in self.doubtful if found[name].any()]
        examples = "; ".join(map(self._shown, found.head(_MOST_EXAMPLES).iter_rows(named=True)))
        one, definition = self.one, self.plan.product.definition
        place = f"{display(definition.path)}:{definition.line_of('inputs', one.name)}"
        named = ", ".join(columns)
        raise TransformError(
            f"{place}: {self.plan.name}: {found.height:,} rows of input {one.name!r} have a value outside of "
            f"its column's type in {named}, where the transform would take it for null ({examples})",
            hint=f"mend them in {one.product}, or say `exact: [{named}]` for this input: the transform then "
            f"gets their texts too, as {', '.join(name + EXACT_SUFFIX for name in columns)}",
        )

    def _shown(self, row: Mapping[str, object]) -> str:
        """The key of a row, without values that nobody is told of."""
        hidden = self.one.restricted
        return ", ".join(
            f"{name}={'(restricted)' if name in hidden else repr(row[f'_key_{name}'])}"
            for name in self.shape.key
        )


def given(
    plan: DerivePlan, views: Mapping[str, View], doubts: Mapping[str, frozenset[str]]
) -> dict[str, Given]:
    """Every input as the transform gets it.

    Args:
        plan: of the product.
        views: of its inputs.
        doubts: the columns of each in which there may be values outside of their type.
    """
    paths = path_columns(plan)
    doubtful: dict[str, set[str]] = {}
    for one in plan.inputs:
        # By a key path rows are chosen: a text beside it is of no use there.
        minded = set(one.exact) - paths[one.name]
        doubtful[one.name] = set(doubts[one.name]) - minded
    if any(doubtful.values()):
        read = columns_read(
            plan, {one.name: one.schema(views[one.name].shape.columns) for one in plan.inputs}
        )
        for name, columns in doubtful.items():
            columns &= read[name] | paths[name]
    return {
        one.name: Given(plan, one, views[one.name], tuple(sorted(doubtful[one.name]))) for one in plan.inputs
    }


def path_columns(plan: DerivePlan) -> dict[str, set[str]]:
    """By input the columns that key paths go by."""
    found: dict[str, set[str]] = {one.name: set((one.key or {}).values()) for one in plan.inputs}
    for one in plan.inputs:
        if one.through is not None:
            found[one.name] |= set(one.through.on)
            found[one.through.input] |= set(one.through.on.values())
    return found


# -- of the product's own rows ---------------------------------------------------------------------


def texts_given(result: pl.LazyFrame, shape: Shape) -> frozenset[str]:
    """The columns of a result that come with texts."""
    names = result.collect_schema().names()
    return frozenset(name for name in shape.columns if name + EXACT_SUFFIX in names)


def widened(shape: Shape, texts: Iterable[str]) -> Shape:
    """A shape with the texts of some columns as columns."""
    added = {name + EXACT_SUFFIX: pl.String() for name in sorted(texts)}
    return Shape(pl.Schema({**shape.columns, **added}), shape.key) if added else shape


def with_texts(result: pl.LazyFrame, shape: Shape, texts: frozenset[str]) -> pl.LazyFrame:
    """A result in a :func:`widened` shape; a text counts where its column has no value."""
    if not texts:
        return result
    has = texts_given(result, shape)
    columns = [
        (pl.when(pl.col(name).is_null()).then(pl.col(name + EXACT_SUFFIX)) if name in has else pl.lit(None))
        .cast(pl.String)
        .alias(name + EXACT_SUFFIX)
        for name in sorted(texts)
    ]
    return result.select(*shape.columns.names(), *columns)


def stored_texts(rows: pl.LazyFrame, shape: Shape, texts: frozenset[str]) -> pl.LazyFrame:
    """Stored rows, with ``_exact`` where there are ``texts``, in a :func:`widened` shape."""
    columns = [text_of(name).alias(name + EXACT_SUFFIX) for name in sorted(texts)]
    return rows.select(*shape.columns.names(), *columns)
