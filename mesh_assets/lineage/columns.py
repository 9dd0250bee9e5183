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
from typing import Any, Literal, NamedTuple

import polars as pl
from polars.io.plugins import register_io_source

Kind = Literal["DIRECT", "INDIRECT"]

Transform = Callable[[Mapping[str, pl.LazyFrame]], pl.LazyFrame | Mapping[str, pl.LazyFrame]]


class ColumnSource(NamedTuple):
    """One way in which an input column takes part in an output column.

    Attributes:
        input: the input's name.
        column: the input's column.
        kind: whether its values become values (``DIRECT``) or decide over them (``INDIRECT``).
        subtype: of DIRECT: IDENTITY, TRANSFORMATION, AGGREGATION; of INDIRECT: JOIN, GROUP_BY,
            FILTER, SORT, WINDOW, CONDITIONAL.
        masking: whether its values cannot be told from the result (a hash, a count).
    """

    input: str
    column: str
    kind: Kind
    subtype: str
    masking: bool = False


Sources = frozenset[ColumnSource]
ColumnLineage = dict[str, dict[str, tuple[ColumnSource, ...]]]
"""By output table and column."""

_NONE: Sources = frozenset()
_RANK = {"IDENTITY": 0, "TRANSFORMATION": 1, "AGGREGATION": 2}
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
    known = _Known(every, every if computed else _NONE)
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


@dataclass(frozen=True)
class _Known:
    """What is known of the transform as a whole.

    Attributes:
        every: all columns of all inputs.
        computed: of what a constant in the plan may have been computed.
    """

    every: Sources
    computed: Sources


def _frame_lineage(
    frame: pl.LazyFrame, readers: Mapping[str, _Reader], known: _Known
) -> dict[str, tuple[ColumnSource, ...]]:
    names = frame.collect_schema().names()
    try:
        scans = {_scan_of(reader.frame): reader for reader in readers.values()}
        flow = _Plan(frame, scans, known).flow()
    except _UNREADABLE:
        flow = _Flow(dict.fromkeys(names, known.every), _NONE)
    rows = flow.rows | _deciding(known.computed, "CONDITIONAL")
    return {name: tuple(sorted(flow.columns.get(name, known.every) | rows)) for name in names}


def _traverser(frame: pl.LazyFrame) -> Any:  # noqa: ANN401 - polars has no public type for it
    flags = pl.QueryOptFlags.none()._pyoptflags
    return frame._ldf.with_optimizations(flags).visit()


def _scan_of(frame: pl.LazyFrame) -> int:
    """What tells the scan of one input from all others."""
    traverser = _traverser(frame)
    return id(traverser.view_current_node().options[0])


# -- what flows through the plan -------------------------------------------------------------------


@dataclass(frozen=True)
class _Flow:
    """What one node gives on.

    Attributes:
        columns: the sources of each of its columns.
        rows: what decides which rows there are, and their order.
    """

    columns: Mapping[str, Sources]
    rows: Sources

    def of(self, names: Iterable[str]) -> Sources:
        """The sources of some columns."""
        return frozenset().union(*(self.columns[name] for name in names))

    @property
    def all(self) -> Sources:
        """The sources of all columns."""
        return self.of(self.columns)


def _made_of(sources: Sources, subtype: str, *, masking: bool = False) -> Sources:
    """What a value computed from these has as its sources."""
    return frozenset(
        source
        if source.kind == "INDIRECT"
        else source._replace(
            subtype=max(source.subtype, subtype, key=_RANK.__getitem__), masking=source.masking or masking
        )
        for source in sources
    )


def _deciding(sources: Sources, subtype: str) -> Sources:
    """What something that these decide over has as its sources."""
    return frozenset(
        source
        if source.kind == "INDIRECT"
        else ColumnSource(source.input, source.column, "INDIRECT", subtype)
        for source in sources
    )


# -- expressions -----------------------------------------------------------------------------------

Shape = Literal["scalar", "column", "other"]
"""How many values: one; one per row of the node's input; or any number."""


class _Value(NamedTuple):
    sources: Sources
    shape: Shape


_ELEMENTWISE = {
    "abs", "arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctanh", "as_struct", "atan2",
    "cbrt", "ceil", "clip", "coalesce", "cos", "cosh", "cot", "cum_count", "cum_max", "cum_min",
    "cum_prod", "cum_sum", "cut", "degrees", "diff", "exp", "expm1", "fill_nan", "fill_null",
    "fill_null_with_strategy", "floor", "hash", "interpolate", "interpolate_by", "log", "log1p",
    "max_horizontal", "mean_horizontal", "min_horizontal", "negate", "pct_change", "peak_max",
    "peak_min", "pow", "qcut", "radians", "rank", "repeat_by", "replace", "replace_strict",
    "reverse", "rle_id", "round", "round_sig_figs", "set_sorted", "shift", "shuffle", "sign", "sin",
    "sinh", "sqrt", "sum_horizontal", "tan", "tanh", "to_physical",
}  # fmt: skip
"""Functions with one result per row (whichever rows it is computed from)."""
_ELEMENTWISE_FAMILIES = {
    "BooleanFunction", "EwmFunction", "ListFunction", "RollingFunction", "RollingFunctionBy",
    "StringFunction", "StructFunction", "TemporalFunction",
}  # fmt: skip
_SCALAR = {
    "approx_n_unique", "arg_max", "arg_min", "corr", "cov", "entropy", "kurtosis", "max_by", "min_by",
    "null_count", "product", "quantile", "skew", "BooleanFunction.Any", "BooleanFunction.All",
    "StringFunction.ConcatVertical", "BitwiseFunction.And", "BitwiseFunction.Or", "BitwiseFunction.Xor",
}  # fmt: skip
_MASKING = {"approx_n_unique", "count", "hash", "len", "n_unique", "null_count"}
_OPAQUE_TO_COLUMNS_ONLY = ("list.eval", "array.eval")
"""Expressions that cannot be looked into, but hold no Python code that might know other frames."""


class _Expressions:
    """The expressions of one node, over what flows into it."""

    def __init__(self, traverser: Any, flow: _Flow, known: _Known) -> None:  # noqa: ANN401
        self._traverser = traverser
        self._flow = flow
        self._known = known

    def value(self, number: int) -> _Value:
        """One expression by its number in the plan."""
        try:
            expression = self._traverser.view_expression(number)
        except NotImplementedError as reason:
            opaque = self._flow.all
            if not str(reason).startswith(_OPAQUE_TO_COLUMNS_ONLY):
                opaque |= _deciding(self._known.every, "CONDITIONAL")
            return _Value(_made_of(opaque, "TRANSFORMATION"), "other")
        name = type(expression).__name__
        handler = getattr(self, f"_{name.lower()}", None)
        if handler is None:
            return _Value(_made_of(self._flow.all, "TRANSFORMATION"), "other")
        value: _Value = handler(expression)
        return value

    def values(self, numbers: Iterable[int]) -> list[_Value]:
        """Several expressions."""
        return [self.value(number) for number in numbers]

    def sources(self, numbers: Iterable[int]) -> Sources:
        """The sources of several expressions together."""
        return frozenset().union(*(value.sources for value in self.values(numbers)))

    def _column(self, expression: Any) -> _Value:  # noqa: ANN401
        return _Value(self._flow.columns.get(expression.name, self._flow.all), "column")

    def _literal(self, expression: Any) -> _Value:  # noqa: ANN401
        return _Value(self._known.computed, "scalar")

    def _len(self, expression: Any) -> _Value:  # noqa: ANN401
        return _Value(_NONE, "scalar")

    def _binaryexpr(self, expression: Any) -> _Value:  # noqa: ANN401
        return self._elementwise([expression.left, expression.right])

    def _cast(self, expression: Any) -> _Value:  # noqa: ANN401
        return self._elementwise([expression.expr])

    def _ternary(self, expression: Any) -> _Value:  # noqa: ANN401
        predicate = self.value(expression.predicate)
        branches = self.values([expression.truthy, expression.falsy])
        sources = _union(branches) | _deciding(predicate.sources, "CONDITIONAL")
        return _Value(sources, _common([predicate, *branches]))

    def _function(self, expression: Any) -> _Value:  # noqa: ANN401
        function = expression.function_data[0]
        family, _, _ = str(function).partition(".")
        name = str(function)
        inputs = self.values(expression.input)
        if name in _SCALAR:
            return _Value(_made_of(_union(inputs), "AGGREGATION", masking=name in _MASKING), "scalar")
        same = name in _ELEMENTWISE or (family in _ELEMENTWISE_FAMILIES and not isinstance(function, str))
        sources = _made_of(_union(inputs), "TRANSFORMATION", masking=name in _MASKING)
        return _Value(sources, _common(inputs) if same else "other")

    def _agg(self, expression: Any) -> _Value:  # noqa: ANN401
        inputs = self.values(expression.arguments)
        masking = expression.name in _MASKING
        return _Value(_made_of(_union(inputs), "AGGREGATION", masking=masking), "scalar")

    def _window(self, expression: Any) -> _Value:  # noqa: ANN401
        function = self.value(expression.function)
        deciding = list(expression.partition_by)
        if expression.order_by is not None:
            deciding.append(expression.order_by)
        sources = function.sources | _deciding(self.sources(deciding), "WINDOW")
        per_row = expression.options.kind in ("groups_to_rows", "group_to_rows", "join")
        return _Value(sources, "column" if per_row else "other")

    def _rolling(self, expression: Any) -> _Value:  # noqa: ANN401
        function = self.value(expression.function)
        index = self.value(expression.index_column)
        return _Value(function.sources | _deciding(index.sources, "WINDOW"), "column")

    def _sort(self, expression: Any) -> _Value:  # noqa: ANN401
        value = self.value(expression.expr)
        return _Value(value.sources | _deciding(value.sources, "SORT"), value.shape)

    def _sortby(self, expression: Any) -> _Value:  # noqa: ANN401
        value = self.value(expression.expr)
        return _Value(value.sources | _deciding(self.sources(expression.by), "SORT"), value.shape)

    def _filter(self, expression: Any) -> _Value:  # noqa: ANN401
        value, by = self.value(expression.input), self.value(expression.by)
        return _Value(value.sources | _deciding(by.sources, "FILTER"), "other")

    def _gather(self, expression: Any) -> _Value:  # noqa: ANN401
        value, index = self.value(expression.expr), self.value(expression.idx)
        return _Value(value.sources | _deciding(index.sources, "FILTER"), "other")

    def _slice(self, expression: Any) -> _Value:  # noqa: ANN401
        bounds = self.sources([expression.offset, expression.length])
        value = self.value(expression.input)
        return _Value(value.sources | _deciding(bounds, "FILTER"), "other")

    def _explode(self, expression: Any) -> _Value:  # noqa: ANN401
        return _Value(_made_of(self.value(expression.expr).sources, "TRANSFORMATION"), "other")

    def _elementwise(self, numbers: Iterable[int]) -> _Value:
        values = self.values(numbers)
        return _Value(_made_of(_union(values), "TRANSFORMATION"), _common(values))


def _union(values: Iterable[_Value]) -> Sources:
    return frozenset().union(*(value.sources for value in values))


def _common(values: Iterable[_Value]) -> Shape:
    """The shape of something computed value by value."""
    shapes = {value.shape for value in values}
    if "column" in shapes:
        return "column"
    return "other" if "other" in shapes else "scalar"


# -- nodes -----------------------------------------------------------------------------------------


@dataclass
class _Node:
    """One node of the plan while it is looked at."""

    view: Any
    schema: list[str]
    inputs: list[_Flow]
    expressions: list[tuple[int, str]]
    """Number and output name of each expression, in the plan's order."""
    input_numbers: list[int] = field(default_factory=list)


class _Plan:
    """One plan, node by node from its inputs up."""

    def __init__(self, frame: pl.LazyFrame, scans: Mapping[int, _Reader], known: _Known) -> None:
        self._traverser = _traverser(frame)
        self._scans = scans
        self._known = known
        self._flows: dict[int, _Flow] = {}

    def flow(self) -> _Flow:
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

    def _node_flow(self, number: int, inputs: list[int]) -> _Flow:
        traverser = self._traverser
        schema = list(traverser.get_schema())
        flows = [self._flows[one] for one in inputs]
        try:
            view = traverser.view_current_node()
            handler = getattr(self, f"_{type(view).__name__.lower()}", None)
            if handler is None:
                return self._opaque(schema, flows)
            expressions = [(one.node, one.output_name) for one in traverser.get_exprs()]
            found: _Flow = handler(_Node(view, schema, flows, expressions, inputs))
        except _UNREADABLE:
            return self._opaque(schema, flows)
        finally:
            traverser.set_node(number)
        if any(name not in found.columns for name in schema):
            return self._opaque(schema, flows)
        return _Flow({name: found.columns[name] for name in schema}, found.rows)

    def _opaque(self, schema: list[str], flows: list[_Flow]) -> _Flow:
        """A node that cannot be looked into; it may be Python code that knows other inputs."""
        every = frozenset().union(*(flow.all for flow in flows))
        rows = frozenset().union(*(flow.rows for flow in flows))
        rows |= _deciding(every, "FILTER") | _deciding(self._known.every, "CONDITIONAL")
        return _Flow(dict.fromkeys(schema, _made_of(every, "TRANSFORMATION")), rows)

    def _expressions(self, flow: _Flow, number: int) -> _Expressions:
        self._traverser.set_node(number)
        return _Expressions(self._traverser, flow, self._known)

    # Sources.

    def _pythonscan(self, node: _Node) -> _Flow:
        reader = self._scans.get(id(node.view.options[0]))
        if reader is None:
            return self._opaque(node.schema, [])
        return _Flow(
            {
                name: frozenset({ColumnSource(reader.name, name, "DIRECT", "IDENTITY")})
                for name in reader.schema
            },
            _NONE,
        )

    def _dataframescan(self, node: _Node) -> _Flow:
        return _Flow(dict.fromkeys(node.schema, self._known.computed), _NONE)

    def _scan(self, node: _Node) -> _Flow:
        return _Flow(dict.fromkeys(node.schema, _NONE), _NONE)

    # One input.

    def _cache(self, node: _Node) -> _Flow:
        return node.inputs[0]

    _simpleprojection = _slice = _cache

    def _filter(self, node: _Node) -> _Flow:
        flow = node.inputs[0]
        predicate = self._expressions(flow, node.input_numbers[0]).sources(
            number for number, _ in node.expressions
        )
        return _Flow(flow.columns, flow.rows | _deciding(predicate, "FILTER"))

    def _sort(self, node: _Node) -> _Flow:
        flow = node.inputs[0]
        by = self._expressions(flow, node.input_numbers[0]).sources(number for number, _ in node.expressions)
        return _Flow(flow.columns, flow.rows | _deciding(by, "SORT"))

    def _distinct(self, node: _Node) -> _Flow:
        flow = node.inputs[0]
        subset = node.view.options[1]
        by = flow.all if subset is None else flow.of(subset)
        return _Flow(flow.columns, flow.rows | _deciding(by, "GROUP_BY"))

    def _select(self, node: _Node) -> _Flow:
        flow = node.inputs[0]
        values = self._named(node, flow)
        rows = flow.rows
        if not any(value.shape == "column" for value in values.values()):
            # Nothing ties the number of rows to that of the input.
            for value in values.values():
                if value.shape == "other":
                    rows |= _deciding(value.sources, "FILTER")
        return _Flow({name: value.sources for name, value in values.items()}, rows)

    def _hstack(self, node: _Node) -> _Flow:
        flow = node.inputs[0]
        values = self._named(node, flow)
        return _Flow({**flow.columns, **{name: value.sources for name, value in values.items()}}, flow.rows)

    def _named(self, node: _Node, flow: _Flow) -> dict[str, _Value]:
        expressions = self._expressions(flow, node.input_numbers[0])
        return {name: expressions.value(number) for number, name in node.expressions}

    def _groupby(self, node: _Node) -> _Flow:
        flow = node.inputs[0]
        if node.view.apply:
            return self._opaque(node.schema, node.inputs)
        expressions = self._expressions(flow, node.input_numbers[0])
        columns = {name: expressions.value(number).sources for number, name in node.expressions}
        keys = expressions.sources(one.node for one in node.view.keys)
        rows = flow.rows | _deciding(keys, "GROUP_BY")
        for window in (node.view.options.dynamic, node.view.options.rolling):
            if window is not None:
                index = flow.columns[window.index_column]
                rows |= _deciding(index, "WINDOW")
                for name in (window.index_column, "_lower_boundary", "_upper_boundary"):
                    columns.setdefault(name, _made_of(index, "TRANSFORMATION"))
        return _Flow(columns, rows)

    def _mapfunction(self, node: _Node) -> _Flow:
        flow = node.inputs[0]
        name, *arguments = node.view.function
        columns = dict(flow.columns)
        if name == "explode":
            exploded = flow.of(arguments[0])
            for column in arguments[0]:
                columns[column] = _made_of(columns[column], "TRANSFORMATION")
            return _Flow(columns, flow.rows | _deciding(exploded, "FILTER"))
        if name == "unpivot":
            index, on, variable, value = arguments
            molten = {column: flow.columns[column] for column in index or []}
            taken = [one for one in flow.columns if one not in molten] if on is None else on
            molten[variable] = _NONE
            molten[value] = _made_of(flow.of(taken), "TRANSFORMATION")
            return _Flow(molten, flow.rows)
        if name == "row_index":
            return _Flow({**columns, arguments[0]: _NONE}, flow.rows)
        if name == "unnest":
            inner = _made_of(flow.of(arguments[0]), "TRANSFORMATION")
            kept = {column: made for column, made in columns.items() if column not in arguments[0]}
            return _Flow({column: kept.get(column, inner) for column in node.schema}, flow.rows)
        return self._opaque(node.schema, node.inputs)

    # Several inputs.

    def _union(self, node: _Node) -> _Flow:
        columns: dict[str, Sources] = {}
        for name in node.schema:
            columns[name] = frozenset().union(*(flow.columns[name] for flow in node.inputs))
        return _Flow(columns, self._rows(node))

    def _hconcat(self, node: _Node) -> _Flow:
        columns: dict[str, Sources] = {}
        for flow in node.inputs:
            columns |= flow.columns
        return _Flow(columns, self._rows(node))

    def _mergesorted(self, node: _Node) -> _Flow:
        merged = self._union(node)
        key = node.view.key
        by = merged.of(key if isinstance(key, list) else [key])
        return _Flow(merged.columns, merged.rows | _deciding(by, "SORT"))

    def _join(self, node: _Node) -> _Flow:
        left, right = node.inputs
        how, _, _, suffix, coalesce, *_ = node.view.options
        kind = how if isinstance(how, str) else str(how[0])
        rows = self._rows(node)
        on_left = self._expressions(left, node.input_numbers[0])
        rows |= _deciding(on_left.sources(one.node for one in node.view.left_on), "JOIN")
        on_right = self._expressions(right, node.input_numbers[1])
        rows |= _deciding(on_right.sources(one.node for one in node.view.right_on), "JOIN")
        if node.view.predicate is not None:
            rows |= _deciding(left.all | right.all, "JOIN")
        for name in _texts(how):
            rows |= _deciding(left.columns.get(name, _NONE) | right.columns.get(name, _NONE), "JOIN")
        columns = {name: _joined(name, left.columns, right.columns, suffix) for name in node.schema}
        if coalesce and kind in ("Full", "Right"):
            # A key is that of one of both sides, whichever has a row.
            for one, other in zip(node.view.left_on, node.view.right_on, strict=True):
                both = left.columns.get(one.output_name, _NONE) | right.columns.get(other.output_name, _NONE)
                for name in {one.output_name, other.output_name} & columns.keys():
                    columns[name] |= both
        return _Flow(columns, rows)

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
