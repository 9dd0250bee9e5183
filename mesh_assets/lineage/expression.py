"""What the expressions of one node of a query plan are made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from mesh_assets.lineage.flow import NONE, Flow, Known, Sources, deciding, made_of

Shape = Literal["scalar", "column", "other"]
"""How many values: one; one per row of the node's input; or any number."""


class Value(NamedTuple):
    """What an expression gives.

    Attributes:
        sources: what its values are made of, and what decides over them.
        shape: how many values there are.
    """

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


class Expressions:
    """The expressions of one node, over what flows into it.

    The traverser has to stand at the node that gives the flow. What it cannot show is taken to use
    everything; what it shows in another form than is known here raises AttributeError, TypeError,
    ValueError or LookupError, what is nested too deeply RecursionError.

    Args:
        traverser: of the plan; polars has no public type for it.
        flow: what the expressions are over.
        known: what is known of the transform.
    """

    def __init__(self, traverser: Any, flow: Flow, known: Known) -> None:  # noqa: ANN401
        self._traverser = traverser
        self._flow = flow
        self._known = known

    def value(self, number: int) -> Value:
        """One expression by its number in the plan."""
        try:
            expression = self._traverser.view_expression(number)
        except NotImplementedError as reason:
            opaque = self._flow.all
            if not str(reason).startswith(_OPAQUE_TO_COLUMNS_ONLY):
                opaque |= deciding(self._known.every, "CONDITIONAL")
            return Value(made_of(opaque, "TRANSFORMATION"), "other")
        name = type(expression).__name__
        handler = getattr(self, f"_{name.lower()}", None)
        if handler is None:
            return Value(made_of(self._flow.all, "TRANSFORMATION"), "other")
        value: Value = handler(expression)
        return value

    def values(self, numbers: Iterable[int]) -> list[Value]:
        """Several expressions."""
        return [self.value(number) for number in numbers]

    def sources(self, numbers: Iterable[int]) -> Sources:
        """The sources of several expressions together."""
        return frozenset().union(*(value.sources for value in self.values(numbers)))

    def _column(self, expression: Any) -> Value:  # noqa: ANN401
        return Value(self._flow.columns.get(expression.name, self._flow.all), "column")

    def _literal(self, expression: Any) -> Value:  # noqa: ANN401
        return Value(self._known.computed, "scalar")

    def _len(self, expression: Any) -> Value:  # noqa: ANN401
        return Value(NONE, "scalar")

    def _binaryexpr(self, expression: Any) -> Value:  # noqa: ANN401
        return self._elementwise([expression.left, expression.right])

    def _cast(self, expression: Any) -> Value:  # noqa: ANN401
        return self._elementwise([expression.expr])

    def _ternary(self, expression: Any) -> Value:  # noqa: ANN401
        predicate = self.value(expression.predicate)
        branches = self.values([expression.truthy, expression.falsy])
        sources = _union(branches) | deciding(predicate.sources, "CONDITIONAL")
        return Value(sources, _common([predicate, *branches]))

    def _function(self, expression: Any) -> Value:  # noqa: ANN401
        function = expression.function_data[0]
        family, _, _ = str(function).partition(".")
        name = str(function)
        inputs = self.values(expression.input)
        if name in _SCALAR:
            return Value(made_of(_union(inputs), "AGGREGATION", masking=name in _MASKING), "scalar")
        same = name in _ELEMENTWISE or (family in _ELEMENTWISE_FAMILIES and not isinstance(function, str))
        sources = made_of(_union(inputs), "TRANSFORMATION", masking=name in _MASKING)
        return Value(sources, _common(inputs) if same else "other")

    def _agg(self, expression: Any) -> Value:  # noqa: ANN401
        inputs = self.values(expression.arguments)
        masking = expression.name in _MASKING
        return Value(made_of(_union(inputs), "AGGREGATION", masking=masking), "scalar")

    def _window(self, expression: Any) -> Value:  # noqa: ANN401
        function = self.value(expression.function)
        by = list(expression.partition_by)
        if expression.order_by is not None:
            by.append(expression.order_by)
        sources = function.sources | deciding(self.sources(by), "WINDOW")
        per_row = expression.options.kind in ("groups_to_rows", "group_to_rows", "join")
        return Value(sources, "column" if per_row else "other")

    def _rolling(self, expression: Any) -> Value:  # noqa: ANN401
        function = self.value(expression.function)
        index = self.value(expression.index_column)
        return Value(function.sources | deciding(index.sources, "WINDOW"), "column")

    def _sort(self, expression: Any) -> Value:  # noqa: ANN401
        value = self.value(expression.expr)
        return Value(value.sources | deciding(value.sources, "SORT"), value.shape)

    def _sortby(self, expression: Any) -> Value:  # noqa: ANN401
        value = self.value(expression.expr)
        return Value(value.sources | deciding(self.sources(expression.by), "SORT"), value.shape)

    def _filter(self, expression: Any) -> Value:  # noqa: ANN401
        value, by = self.value(expression.input), self.value(expression.by)
        return Value(value.sources | deciding(by.sources, "FILTER"), "other")

    def _gather(self, expression: Any) -> Value:  # noqa: ANN401
        value, index = self.value(expression.expr), self.value(expression.idx)
        return Value(value.sources | deciding(index.sources, "FILTER"), "other")

    def _slice(self, expression: Any) -> Value:  # noqa: ANN401
        bounds = self.sources([expression.offset, expression.length])
        value = self.value(expression.input)
        return Value(value.sources | deciding(bounds, "FILTER"), "other")

    def _explode(self, expression: Any) -> Value:  # noqa: ANN401
        return Value(made_of(self.value(expression.expr).sources, "TRANSFORMATION"), "other")

    def _elementwise(self, numbers: Iterable[int]) -> Value:
        values = self.values(numbers)
        return Value(made_of(_union(values), "TRANSFORMATION"), _common(values))


def _union(values: Iterable[Value]) -> Sources:
    return frozenset().union(*(value.sources for value in values))


def _common(values: Iterable[Value]) -> Shape:
    """The shape of something computed value by value."""
    shapes = {value.shape for value in values}
    if "column" in shapes:
        return "column"
    return "other" if "other" in shapes else "scalar"
