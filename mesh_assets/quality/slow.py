"""The slow lane: expectations that do not compile run in Great Expectations itself, in a child process.

The rules of a table share one child and one copy of the columns that they read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from mesh_assets.lake.scratch import Scratch
from mesh_assets.quality import child
from mesh_assets.quality.expectation import columns_of
from mesh_assets.quality.result import configuration, raised
from mesh_assets.quality.rule import Expectation, Rule

if TYPE_CHECKING:
    from great_expectations.datasource.fluent.interfaces import Batch

MAX_SECONDS = 300.0
"""Time of one expectation; the same that a transform has by default."""

_ADVICE = "an sql rule, or an expectation that compiles, is evaluated without it"


def validate(
    rules: Sequence[Rule],
    frame: pl.LazyFrame,
    *,
    max_seconds: float = MAX_SECONDS,
    max_bytes: int = child.MAX_BYTES,
) -> list[dict[str, Any]]:
    """Great Expectations' own results, as JSON, of rules that are expectations, in their order.

    An expectation that fails its child, takes too long or needs too much memory has a result with an
    exception; those after it are asked of another child.
    """
    schema = frame.collect_schema()
    checks = [rule.check for rule in rules]
    names: dict[str, None] = {}
    for check in checks:
        assert isinstance(check, Expectation)
        found = columns_of(check.type, check.kwargs)
        # A row condition may name any column.
        wide = not found or any(check.kwargs.get(name) for name in ("row_condition", "condition_parser"))
        names.update(dict.fromkeys(schema if wide else found))
    columns = [name for name in names if name in schema]
    results: list[dict[str, Any]] = []
    with Scratch("quality") as folder:
        rows = folder / "rows.parquet"
        frame.select(columns).sink_parquet(rows)
        while left := rules[len(results) :]:
            asked = {"rows": str(rows), "expectations": [_plain(rule) for rule in left]}
            try:
                results += child.run(__name__, asked, max_seconds=max_seconds, max_bytes=max_bytes)
            except child.ChildFailed as error:
                results += [*error.answers, _unanswered(f"{error}; {_ADVICE}")][: len(left)]
    return results


def _plain(rule: Rule) -> dict[str, Any]:
    written = configuration(rule)
    return {"type": written["type"], "kwargs": written["kwargs"], "severity": written["severity"]}


def _unanswered(message: str) -> dict[str, Any]:
    return {"success": False, "result": {}, "exception_info": raised(message)}


# -- the child ----------------------------------------------------------------------------------------

_IN_FLOATS = ("expect_column_value_z_scores_to_be_less_than", "expect_column_values_to_not_be_outliers")
"""Types that multiply by floats, which Python's decimals cannot."""


class Validator:
    """Great Expectations in this process: making one imports it."""

    def __init__(self) -> None:
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig

        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        asset = context.data_sources.add_pandas("rows").add_dataframe_asset("rows")
        self._definition = asset.add_batch_definition_whole_dataframe("all")

    def validate(
        self, rows: pl.DataFrame, expectations: Sequence[Mapping[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        """Results of expectations, each given by ``type``, ``kwargs`` and ``severity``, in their order.

        Great Expectations gets the rows as Arrow gives them to pandas; decimals as floats where it can
        do nothing with them.
        """
        from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

        decimals = [name for name, dtype in rows.schema.items() if dtype.is_decimal()]
        exact, floats = self._batch(rows), None
        for written in expectations:
            batch = exact
            if written["type"] in _IN_FLOATS and written["kwargs"].get("column") in decimals:
                batch = floats = floats or self._batch(rows.with_columns(pl.col(decimals).cast(pl.Float64)))
            try:
                # One at a time: a suite's results come in an order of their own.
                expectation = ExpectationConfiguration(**written).to_domain_obj()
                yield dict(batch.validate(expectation, result_format="SUMMARY").to_json_dict())
            except Exception as error:  # noqa: BLE001 - whatever it raises is the answer to this one expectation
                yield _unanswered(f"{type(error).__name__}: {error}")

    def _batch(self, rows: pl.DataFrame) -> Batch:
        return self._definition.get_batch({"dataframe": rows.to_arrow().to_pandas()})


def answers(asked: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What the parent asks: Great Expectations' results of expectations on rows, one by one."""
    return Validator().validate(pl.read_parquet(asked["rows"]), asked["expectations"])
