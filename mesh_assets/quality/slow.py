"""The slow lane: expectations that do not compile run in Great Expectations itself, in a child process.

Importing Great Expectations costs seconds of CPU and a quarter of a gigabyte, so this process never does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from mesh_assets.quality.expectation import columns_of
from mesh_assets.quality.result import configuration
from mesh_assets.quality.rule import Expectation, Rule

MAX_SECONDS = 900.0
_ERROR_LINES = 3


def validate(
    rules: Sequence[Rule], frame: pl.LazyFrame, *, max_seconds: float = MAX_SECONDS
) -> list[dict[str, Any]]:
    """Great Expectations' own results, as JSON, of rules that are expectations, in their order.

    A child that fails, or takes too long, makes every result one with an exception.
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
    with tempfile.TemporaryDirectory(prefix="mesh-quality-") as folder:
        rows = Path(folder) / "rows.parquet"
        frame.select(columns).sink_parquet(rows)
        asked = {"rows": str(rows), "expectations": [_plain(rule) for rule in rules]}
        try:
            answer = run_child("mesh_assets.quality.slow", asked, max_seconds=max_seconds)
        except ChildFailed as error:
            raised = {"raised_exception": True, "exception_message": str(error), "exception_traceback": None}
            return [{"success": False, "result": {}, "exception_info": raised} for _ in rules]
    results: list[dict[str, Any]] = answer["results"]
    return results


class ChildFailed(Exception):
    """The child with Great Expectations ended without an answer."""


def run_child(module: str, asked: Mapping[str, Any], *, max_seconds: float) -> dict[str, Any]:
    """Run a module's ``main`` in a fresh interpreter: JSON in by its input, JSON out by a file.

    Raises:
        ChildFailed: if it ends otherwise than with an answer, or not in time.
    """
    with tempfile.TemporaryDirectory(prefix="mesh-quality-") as folder:
        answer = Path(folder) / "answer.json"
        try:
            done = subprocess.run(
                [sys.executable, "-c", f"from {module} import main; main()", str(answer)],
                input=json.dumps(asked),
                capture_output=True,
                text=True,
                check=False,
                timeout=max_seconds,
                env=os.environ | {"GX_ANALYTICS_ENABLED": "false"},
            )
        except subprocess.TimeoutExpired:
            raise ChildFailed(f"Great Expectations took longer than {max_seconds:.0f} s") from None
        if done.returncode or not answer.exists():
            last = " | ".join(done.stderr.strip().splitlines()[-_ERROR_LINES:])
            raise ChildFailed(f"Great Expectations ended with code {done.returncode}: {last}")
        content: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return content


def _plain(rule: Rule) -> dict[str, Any]:
    written = configuration(rule)
    return {"type": written["type"], "kwargs": written["kwargs"], "severity": written["severity"]}


# -- the child ----------------------------------------------------------------------------------------


class Validator:
    """Great Expectations in this process: making one imports it."""

    def __init__(self) -> None:
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig

        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        asset = context.data_sources.add_pandas("rows").add_dataframe_asset("rows")
        self._definition = asset.add_batch_definition_whole_dataframe("all")

    def validate(self, rows: pl.DataFrame, expectations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Results of expectations, each given by ``type``, ``kwargs`` and ``severity``, in their order.

        Great Expectations gets the rows as Arrow gives them to pandas.
        """
        from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

        batch = self._definition.get_batch({"dataframe": rows.to_arrow().to_pandas()})
        results: list[dict[str, Any]] = []
        for written in expectations:
            try:
                # One at a time: a suite's results come in an order of their own.
                expectation = ExpectationConfiguration(**written).to_domain_obj()
                found: dict[str, Any] = dict(
                    batch.validate(expectation, result_format="SUMMARY").to_json_dict()
                )
            except Exception as error:  # noqa: BLE001 - whatever it raises is the answer to this one expectation
                message = f"{type(error).__name__}: {error}"
                info = {"raised_exception": True, "exception_message": message, "exception_traceback": None}
                found = {"success": False, "result": {}, "exception_info": info}
            results.append(found)
        return results


def encoded(content: object) -> str:
    """As JSON; Great Expectations leaves scalars of numpy in its results."""
    return json.dumps(content, default=lambda value: value.item())


def main() -> None:
    """Answer what the parent asks on standard input."""
    asked = json.load(sys.stdin)
    results = Validator().validate(pl.read_parquet(asked["rows"]), asked["expectations"])
    Path(sys.argv[1]).write_text(encoded({"results": results}), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
