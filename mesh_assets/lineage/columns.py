"""Which input columns a polars transform makes each output column of, read from its query plan.

The transform is called with lazy frames that hold no rows. Each node of the plan it returns says
what its columns are made of (``DIRECT``), and what decides which rows there are, and in which
order (``INDIRECT``, of every column above it). Where a node or an expression cannot be looked into,
it is taken to use everything it might: what is not named here has no influence, but what is named
need not have any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl
from polars.io.plugins import register_io_source

from mesh_assets.lineage.expression import Expressions, Value
from mesh_assets.lineage.flow import NONE, ColumnSource, Flow, Known, Sources, deciding, made_of

__all__ = ["ColumnLineage", "ColumnSource", "Transform", "column_lineage", "everything"]

Transform = Callable[[Mapping[str, pl.LazyFrame]], pl.LazyFrame | Mapping[str, pl.LazyFrame]]

ColumnLineage = dict[str, dict[str, tuple[ColumnSource, ...]]]
"""By output table and column."""

_UNREADABLE = (
    NotImplementedError,
    AttributeError,
    TypeError,
    ValueError,
    LookupError,
    RecursionError,
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
)


def column_lineage(
    transform: Transform, inputs: Mapping[str, pl.Schema], table: str = "result"
) -> ColumnLineage:
    """What a transform makes each of its output columns of.

    Args:
        transform: a pure function of lazy frames; whatever it raises is passed on.
        inputs: the columns of each input.
        table: what to call its result if it returns a single frame.
    """
    readers = {name: _Reader(name, schema) for name, schema in inputs.items()}
    made = transform({name: reader.frame for name, reader in readers.items()})
    frames = dict(made) if isinstance(made, Mapping) else {table: made}
    every = frozenset(
        ColumnSource(name, column, "DIRECT", "TRANSFORMATION")
        for name, schema in inputs.items()
        for column in schema
    )
    # What was computed while the plan was built is a constant in it, and may be anywhere. Without
    # rows polars need not read all that it would read of real ones.
    computed = any(reader.was_read for reader in readers.values())
    known = Known(every, every if computed else NONE)
    return {name: _frame_lineage(frame.lazy(), readers, known) for name, frame in frames.items()}


def everything(
    inputs: Mapping[str, pl.Schema], columns: Iterable[str]
) -> dict[str, tuple[ColumnSource, ...]]:
    """The answer that is never wrong: each column of any column."""
    every = tuple(
        sorted(
            ColumnSource(name, column, "DIRECT", "TRANSFORMATION")
            for name, schema in inputs.items()
            for column in schema
        )
    )
    return dict.fromkeys(columns, every)


class _Reader:
    """An input without rows that notices when it is read while the plan is built."""

    def __init__(self, name: str, schema: pl.Schema) -> None:
        self.name = name
        self.schema = schema
        self.was_read = False

        def read(
            with_columns: list[str] | None,
            predicate: pl.Expr | None,
            n_rows: int | None,
            batch_size: int | None,
        ) -> Iterator[pl.DataFrame]:
            self.was_read = True
            rows = pl.DataFrame(schema=schema)
            yield rows if with_columns is None else rows.select(with_columns)

        self.frame = register_io_source(read, schema=schema)


def _frame_lineage(
    frame: pl.LazyFrame, readers: Mapping[str, _Reader], known: Known
) -> dict[str, tuple[ColumnSource, ...]]:
    names = frame.collect_schema().names()
    try:
        scans = {_scan_of(reader.frame): reader for reader in readers.values()}
        flow = _Plan(frame, scans, known).flow()
    except _UNREADABLE:
        flow = Flow(dict.fromkeys(names, known.every), NONE)
    rows = flow.rows | deciding(known.computed, "CONDITIONAL")
    return {name: tuple(sorted(flow.columns.get(name, known.every) | rows)) for name in names}


def _traverser(frame: pl.LazyFrame) -> Any:  # noqa: ANN401 - polars has no public type for it
    flags = pl.QueryOptFlags.none()._pyoptflags
    return frame._ldf.with_optimizations(flags).visit()


def _scan_of(frame: pl.LazyFrame) -> int:
    """What tells the scan of one input from all others."""
    traverser = _traverser(frame)
    return id(traverser.view_current_node().options[0])


@dataclass
class _Node:
    """One node of the plan while it is looked at."""

    view: Any
    schema: list[str]
    inputs: list[Flow]
    expressions: list[tuple[int, str]]
    """Number and output name of each expression, in the plan's order."""
    input_numbers: list[int] = field(default_factory=list)


class _Plan:
    """One plan, node by node from its inputs up."""

    def __init__(self, frame: pl.LazyFrame, scans: Mapping[int, _Reader], known: Known) -> None:
        self._traverser = _traverser(frame)
        self._scans = scans
        self._known = known
        self._flows: dict[int, Flow] = {}

    def flow(self) -> Flow:
        """What the whole plan gives."""
        top = self._traverser.get_node()
        # Without recursion: a concat of many frames is a deep plan.
        waiting = [(top, False)]
        while waiting:
            number, ready = waiting.pop()
            if number in self._flows:
                continue
            self._traverser.set_node(number)
            inputs = self._traverser.get_inputs()
            if ready:
                self._flows[number] = self._node_flow(number, inputs)
            else:
                waiting.append((number, True))
                waiting.extend((one, False) for one in inputs)
        return self._flows[top]

    def _node_flow(self, number: int, inputs: list[int]) -> Flow:
        traverser = self._traverser
        schema = list(traverser.get_schema())
        flows = [self._flows[one] for one in inputs]
        try:
            view = traverser.view_current_node()
            handler = getattr(self, f"_{type(view).__name__.lower()}", None)
            if handler is None:
                return self._opaque(schema, flows)
            expressions = [(one.node, one.output_name) for one in traverser.get_exprs()]
            found: Flow = handler(_Node(view, schema, flows, expressions, inputs))
        except _UNREADABLE:
            return self._opaque(schema, flows)
        finally:
            traverser.set_node(number)
        if any(name not in found.columns for name in schema):
            return self._opaque(schema, flows)
        return Flow({name: found.columns[name] for name in schema}, found.rows)

    def _opaque(self, schema: list[str], flows: list[Flow]) -> Flow:
        """A node that cannot be looked into; it may be Python code that knows other inputs."""
        every = frozenset().union(*(flow.all for flow in flows))
        rows = frozenset().union(*(flow.rows for flow in flows))
        rows |= deciding(every, "FILTER") | deciding(self._known.every, "CONDITIONAL")
        return Flow(dict.fromkeys(schema, made_of(every, "TRANSFORMATION")), rows)

    def _expressions(self, flow: Flow, number: int) -> Expressions:
        self._traverser.set_node(number)
        return Expressions(self._traverser, flow, self._known)

    # Sources.

    def _pythonscan(self, node: _Node) -> Flow:
        reader = self._scans.get(id(node.view.options[0]))
        if reader is None:
            return self._opaque(node.schema, [])
        return Flow(
            {
                name: frozenset({ColumnSource(reader.name, name, "DIRECT", "IDENTITY")})
                for name in reader.schema
            },
            NONE,
        )

    def _dataframescan(self, node: _Node) -> Flow:
        return Flow(dict.fromkeys(node.schema, self._known.computed), NONE)

    def _scan(self, node: _Node) -> Flow:
        return Flow(dict.fromkeys(node.schema, NONE), NONE)

    # One input.

    def _cache(self, node: _Node) -> Flow:
        return node.inputs[0]

    _simpleprojection = _slice = _cache

    def _filter(self, node: _Node) -> Flow:
        flow = node.inputs[0]
        predicate = self._expressions(flow, node.input_numbers[0]).sources(
            number for number, _ in node.expressions
        )
        return Flow(flow.columns, flow.rows | deciding(predicate, "FILTER"))

    def _sort(self, node: _Node) -> Flow:
        flow = node.inputs[0]
        by = self._expressions(flow, node.input_numbers[0]).sources(number for number, _ in node.expressions)
        return Flow(flow.columns, flow.rows | deciding(by, "SORT"))

    def _distinct(self, node: _Node) -> Flow:
        flow = node.inputs[0]
        subset = node.view.options[1]
        by = flow.all if subset is None else flow.of(subset)
        return Flow(flow.columns, flow.rows | deciding(by, "GROUP_BY"))

    def _select(self, node: _Node) -> Flow:
        flow = node.inputs[0]
        values = self._named(node, flow)
        rows = flow.rows
        if not any(value.shape == "column" for value in values.values()):
            # Nothing ties the number of rows to that of the input.
            for value in values.values():
                if value.shape == "other":
                    rows |= deciding(value.sources, "FILTER")
        return Flow({name: value.sources for name, value in values.items()}, rows)

    def _hstack(self, node: _Node) -> Flow:
        flow = node.inputs[0]
        values = self._named(node, flow)
        return Flow({**flow.columns, **{name: value.sources for name, value in values.items()}}, flow.rows)

    def _named(self, node: _Node, flow: Flow) -> dict[str, Value]:
        expressions = self._expressions(flow, node.input_numbers[0])
        return {name: expressions.value(number) for number, name in node.expressions}

    def _groupby(self, node: _Node) -> Flow:
        flow = node.inputs[0]
        if node.view.apply:
            return self._opaque(node.schema, node.inputs)
        expressions = self._expressions(flow, node.input_numbers[0])
        columns = {name: expressions.value(number).sources for number, name in node.expressions}
        keys = expressions.sources(one.node for one in node.view.keys)
        rows = flow.rows | deciding(keys, "GROUP_BY")
        for window in (node.view.options.dynamic, node.view.options.rolling):
            if window is not None:
                index = flow.columns[window.index_column]
                rows |= deciding(index, "WINDOW")
                for name in (window.index_column, "_lower_boundary", "_upper_boundary"):
                    columns.setdefault(name, made_of(index, "TRANSFORMATION"))
        return Flow(columns, rows)

    def _mapfunction(self, node: _Node) -> Flow:
        flow = node.inputs[0]
        name, *arguments = node.view.function
        columns = dict(flow.columns)
        if name == "explode":
            exploded = flow.of(arguments[0])
            for column in arguments[0]:
                columns[column] = made_of(columns[column], "TRANSFORMATION")
            return Flow(columns, flow.rows | deciding(exploded, "FILTER"))
        if name == "unpivot":
            index, on, variable, value = arguments
            molten = {column: flow.columns[column] for column in index or []}
            taken = [one for one in flow.columns if one not in molten] if on is None else on
            molten[variable] = NONE
            molten[value] = made_of(flow.of(taken), "TRANSFORMATION")
            return Flow(molten, flow.rows)
        if name == "row_index":
            return Flow({**columns, arguments[0]: NONE}, flow.rows)
        if name == "unnest":
            inner = made_of(flow.of(arguments[0]), "TRANSFORMATION")
            kept = {column: made for column, made in columns.items() if column not in arguments[0]}
            return Flow({column: kept.get(column, inner) for column in node.schema}, flow.rows)
        return self._opaque(node.schema, node.inputs)

    # Several inputs.

    def _union(self, node: _Node) -> Flow:
        columns: dict[str, Sources] = {}
        for name in node.schema:
            columns[name] = frozenset().union(*(flow.columns[name] for flow in node.inputs))
        return Flow(columns, self._rows(node))

    def _hconcat(self, node: _Node) -> Flow:
        columns: dict[str, Sources] = {}
        for flow in node.inputs:
            columns |= flow.columns
        return Flow(columns, self._rows(node))

    def _mergesorted(self, node: _Node) -> Flow:
        merged = self._union(node)
        key = node.view.key
        by = merged.of(key if isinstance(key, list) else [key])
        return Flow(merged.columns, merged.rows | deciding(by, "SORT"))

    def _join(self, node: _Node) -> Flow:
        left, right = node.inputs
        how, _, _, suffix, coalesce, *_ = node.view.options
        kind = how if isinstance(how, str) else str(how[0])
        rows = self._rows(node)
        on_left = self._expressions(left, node.input_numbers[0])
        rows |= deciding(on_left.sources(one.node for one in node.view.left_on), "JOIN")
        on_right = self._expressions(right, node.input_numbers[1])
        rows |= deciding(on_right.sources(one.node for one in node.view.right_on), "JOIN")
        if node.view.predicate is not None:
            rows |= deciding(left.all | right.all, "JOIN")
        for name in _texts(how):
            rows |= deciding(left.columns.get(name, NONE) | right.columns.get(name, NONE), "JOIN")
        columns = {name: _joined(name, left.columns, right.columns, suffix) for name in node.schema}
        if coalesce and kind in ("Full", "Right"):
            # A key is that of one of both sides, whichever has a row.
            for one, other in zip(node.view.left_on, node.view.right_on, strict=True):
                both = left.columns.get(one.output_name, NONE) | right.columns.get(other.output_name, NONE)
                for name in {one.output_name, other.output_name} & columns.keys():
                    columns[name] |= both
        return Flow(columns, rows)

    @staticmethod
    def _rows(node: _Node) -> Sources:
        return frozenset().union(*(flow.rows for flow in node.inputs))


def _joined(name: str, left: Mapping[str, Sources], right: Mapping[str, Sources], suffix: str) -> Sources:
    """Where one column of a join comes from."""
    if name in left:
        return left[name]
    return right[name] if name in right else right[name.removesuffix(suffix)]


def _texts(value: object) -> Iterator[str]:
    """The texts somewhere in a nested value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)
