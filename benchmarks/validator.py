"""A contender: ten expectations over a table of orders, ours or Great Expectations' own."""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.child import Report, serve

_CHUNK_ROWS = 1_000_000
_STATUS = ("placed", "paid", "packed", "shipped", "delivered")
# One in this many orders has no currency, and one an amount that is too high.
_BAD_EVERY = 100_003

EXPECTATIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("expect_column_values_to_not_be_null", {"column": "order_id"}),
    ("expect_column_values_to_be_unique", {"column": "order_id"}),
    ("expect_column_values_to_be_between", {"column": "amount", "min_value": 0, "max_value": 1000}),
    ("expect_column_values_to_be_in_set", {"column": "status", "value_set": list(_STATUS)}),
    ("expect_column_values_to_match_regex", {"column": "email", "regex": r"^[a-z0-9.]+@[a-z]+\.example$"}),
    ("expect_column_value_lengths_to_equal", {"column": "currency", "value": 3}),
    ("expect_column_mean_to_be_between", {"column": "amount", "min_value": 400, "max_value": 600}),
    ("expect_column_max_to_be_between", {"column": "quantity", "min_value": 1, "max_value": 99}),
    (
        "expect_column_pair_values_a_to_be_greater_than_b",
        {"column_A": "shipped_at", "column_B": "placed_at", "or_equal": True},
    ),
    ("expect_column_proportion_of_non_null_values_to_be_between", {"column": "currency", "min_value": 0.9}),
)


def work(parameters: dict[str, Any], report: Report) -> dict[str, Any]:
    """Make the table, or validate it."""
    file = Path(parameters["file"])
    match parameters["task"]:
        case "make":
            return _make(file, parameters["row_count"], report)
        case "ours":
            return _ours(file, parameters["repeats"])
        case _:
            return _theirs(file)


def _make(file: Path, row_count: int, report: Report) -> dict[str, Any]:
    """Write the orders, their numbers in no order."""
    numbers = np.random.default_rng(7)
    order_ids = numbers.permutation(row_count)
    folder = file.parent / "parts"
    folder.mkdir()
    for start in range(0, row_count, _CHUNK_ROWS):
        ids = order_ids[start : start + _CHUNK_ROWS]
        count = len(ids)
        placed = numbers.integers(0, 10**9, count)
        customers = pl.Series(numbers.integers(0, 100_000, count)).cast(pl.String)
        bad = ids % _BAD_EVERY == 0
        pl.DataFrame(
            {
                "order_id": ids,
                "status": pl.Series(numbers.integers(0, len(_STATUS), count)).replace_strict(
                    list(range(len(_STATUS))), list(_STATUS)
                ),
                "email": "customer." + customers + "@mail.example",
                "currency": pl.select(pl.when(pl.Series(~bad)).then(pl.lit("EUR"))).to_series(),
                "amount": np.where(bad, 5000.0, numbers.random(count) * 1000),
                "quantity": numbers.integers(1, 99, count),
                "placed_at": placed,
                "shipped_at": placed + numbers.integers(0, 10**5, count),
            }
        ).write_parquet(folder / f"{start:012}.parquet")
        report(progress=start + count)
    pl.scan_parquet(folder).sink_parquet(file)
    return {}


def _ours(file: Path, repeats: int) -> dict[str, Any]:
    from mesh_assets.quality.evaluate import evaluate
    from mesh_assets.quality.rule import Expectation, Rule

    rules = [
        Rule(f"orders.{number}", "orders", (), Expectation(type, kwargs))
        for number, (type, kwargs) in enumerate(EXPECTATIONS)
    ]
    seconds, cpu_seconds = [], []
    for _ in range(repeats):
        began, began_cpu = time.perf_counter(), time.process_time()
        outcomes = evaluate(rules, pl.scan_parquet(file), slow_lane=False)
        seconds.append(time.perf_counter() - began)
        cpu_seconds.append(time.process_time() - began_cpu)
    results = [{"success": one.success, "result": one.result["result"]} for one in outcomes]
    return {
        "seconds": statistics.median(seconds),
        "cpu_seconds": statistics.median(cpu_seconds),
        "results": results,
    }


def _theirs(file: Path) -> dict[str, Any]:
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx
    import pandas as pd
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("orders").add_dataframe_asset("orders")
    definition = asset.add_batch_definition_whole_dataframe("all")
    suite = gx.ExpectationSuite(
        name="orders",
        expectations=[
            ExpectationConfiguration(type=type, kwargs=kwargs).to_domain_obj()
            for type, kwargs in EXPECTATIONS
        ],
    )
    began = time.perf_counter()
    frame = pd.read_parquet(file)
    loaded, loaded_cpu = time.perf_counter(), time.process_time()
    batch = definition.get_batch({"dataframe": frame})
    validated = batch.validate(suite, result_format="SUMMARY")
    ended, ended_cpu = time.perf_counter(), time.process_time()
    # The results of a suite come in an order of their own.
    told: list[dict[str, Any]] = [dict(one.to_json_dict()) for one in validated.results]
    by_kind = {str(one["expectation_config"]["type"]): one for one in told}
    results = [{name: by_kind[type][name] for name in ("success", "result")} for type, _ in EXPECTATIONS]
    plain = json.loads(json.dumps(results, default=lambda value: value.item()))
    return {
        "load_seconds": loaded - began,
        "seconds": ended - loaded,
        "cpu_seconds": ended_cpu - loaded_cpu,
        "results": plain,
    }


if __name__ == "__main__":
    serve(work)
