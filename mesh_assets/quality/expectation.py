"""The expectation types of Great Expectations: which columns they read and what they need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Domain = Literal["column", "pair", "columns", "table"]

COMMON = ("mostly", "row_condition", "condition_parser", "result_format", "catch_exceptions")
"""Arguments that any type may have."""

_BOUNDS = ("min_value", "max_value", "strict_min", "strict_max")


@dataclass(frozen=True)
class Signature:
    """What one type is about and which arguments it takes.

    Attributes:
        domain: one column, two (column_A, column_B), several (column_list), or the table.
        required: arguments without which it means nothing.
        optional: further arguments of its own.
        map: it is decided row by row and knows ``mostly``.
    """

    domain: Domain
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    map: bool = False


def _column(*required: str, optional: tuple[str, ...] = ()) -> Signature:
    return Signature("column", required, optional)


def _each(*required: str, optional: tuple[str, ...] = ()) -> Signature:
    return Signature("column", required, optional, map=True)


SIGNATURES: Mapping[str, Signature] = {
    "expect_column_distinct_values_to_be_in_set": _column("value_set"),
    "expect_column_distinct_values_to_contain_set": _column("value_set"),
    "expect_column_distinct_values_to_equal_set": _column("value_set"),
    "expect_column_kl_divergence_to_be_less_than": _column(
        optional=(
            "partition_object",
            "threshold",
            "internal_weight_holdout",
            "tail_weight_holdout",
            "bucketize_data",
            "min_value",
            "max_value",
        )
    ),
    "expect_column_max_to_be_between": _column(optional=_BOUNDS),
    "expect_column_mean_to_be_between": _column(optional=_BOUNDS),
    "expect_column_median_to_be_between": _column(optional=_BOUNDS),
    "expect_column_min_to_be_between": _column(optional=_BOUNDS),
    "expect_column_most_common_value_to_be_in_set": _column("value_set", optional=("ties_okay",)),
    "expect_column_pair_values_a_to_be_greater_than_b": Signature(
        "pair", (), ("or_equal", "ignore_row_if"), map=True
    ),
    "expect_column_pair_values_to_be_equal": Signature("pair", (), ("ignore_row_if",), map=True),
    "expect_column_pair_values_to_be_in_set": Signature(
        "pair", ("value_pairs_set",), ("ignore_row_if",), map=True
    ),
    "expect_column_proportion_of_non_null_values_to_be_between": _column(optional=_BOUNDS),
    "expect_column_proportion_of_unique_values_to_be_between": _column(optional=_BOUNDS),
    "expect_column_quantile_values_to_be_between": _column(
        "quantile_ranges", optional=("allow_relative_error",)
    ),
    "expect_column_stdev_to_be_between": _column(optional=_BOUNDS),
    "expect_column_sum_to_be_between": _column(optional=_BOUNDS),
    "expect_column_to_exist": Signature("table", ("column",), ("column_index",)),
    "expect_column_type_to_be": _column("type_"),
    "expect_column_unique_value_count_to_be_between": _column(optional=_BOUNDS),
    "expect_column_value_lengths_to_be_between": _each(optional=_BOUNDS),
    "expect_column_value_lengths_to_equal": _each("value"),
    "expect_column_value_z_scores_to_be_less_than": _each("threshold", "double_sided"),
    "expect_column_values_to_be_between": _each(optional=_BOUNDS),
    "expect_column_values_to_be_dateutil_parseable": _each(),
    "expect_column_values_to_be_decreasing": _each(optional=("strictly",)),
    "expect_column_values_to_be_in_set": _each("value_set"),
    "expect_column_values_to_be_in_type_list": _each("type_list"),
    "expect_column_values_to_be_increasing": _each(optional=("strictly",)),
    "expect_column_values_to_be_json_parseable": _each(),
    "expect_column_values_to_be_null": _each(),
    "expect_column_values_to_be_of_type": _each("type_"),
    "expect_column_values_to_be_unique": _each(),
    "expect_column_values_to_match_json_schema": _each("json_schema"),
    "expect_column_values_to_match_regex": _each("regex"),
    "expect_column_values_to_match_regex_list": _each("regex_list", optional=("match_on",)),
    "expect_column_values_to_match_strftime_format": _each("strftime_format"),
    "expect_column_values_to_not_be_in_set": _each("value_set"),
    "expect_column_values_to_not_be_null": _each(),
    "expect_column_values_to_not_be_outliers": _each(optional=("method", "multiplier")),
    "expect_column_values_to_not_match_regex": _each("regex"),
    "expect_column_values_to_not_match_regex_list": _each("regex_list"),
    "expect_compound_columns_to_be_unique": Signature("columns", (), ("ignore_row_if",), map=True),
    "expect_multicolumn_sum_to_equal": Signature("columns", ("sum_total",), ("ignore_row_if",), map=True),
    "expect_multicolumn_values_to_be_equal": Signature("columns", (), ("ignore_row_if",), map=True),
    "expect_select_column_values_to_be_unique_within_record": Signature(
        "columns", (), ("ignore_row_if",), map=True
    ),
    "expect_table_column_count_to_be_between": Signature("table", (), ("min_value", "max_value")),
    "expect_table_column_count_to_equal": Signature("table", ("value",)),
    "expect_table_columns_to_match_ordered_list": Signature("table", ("column_list",)),
    "expect_table_columns_to_match_set": Signature("table", ("column_set",), ("exact_match",)),
    "expect_table_row_count_to_be_between": Signature(
        "table", (), ("min_value", "max_value", "strict_min", "strict_max")
    ),
    "expect_table_row_count_to_equal": Signature("table", ("value",)),
}
"""The types that run here: compiled, or in Great Expectations' own engine for data frames."""

FOREIGN: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "expect_column_values_to_match_like_pattern",
            "expect_column_values_to_match_like_pattern_list",
            "expect_column_values_to_not_match_like_pattern",
            "expect_column_values_to_not_match_like_pattern_list",
        ),
        "only SQL databases know LIKE patterns: write a regular expression, or an sql rule in the contract",
    ),
    **dict.fromkeys(
        ("unexpected_rows_expectation", "expect_query_results_to_match_comparison"),
        "write an sql rule in the contract instead",
    ),
    "expect_multicolumn_values_to_be_unique": (
        "write expect_select_column_values_to_be_unique_within_record, as Great Expectations calls it now"
    ),
    "expect_table_row_count_to_equal_other_table": "write an sql rule in the contract instead",
    **dict.fromkeys(
        (
            "expect_column_bootstrapped_ks_test_p_value_to_be_greater_than",
            "expect_column_chisquare_test_p_value_to_be_greater_than",
            "expect_column_pair_cramers_phi_value_to_be_less_than",
            "expect_column_parameterized_distribution_ks_test_p_value_to_be_greater_than",
        ),
        "Great Expectations names it but does not implement it",
    ),
}
"""Types that Great Expectations has, or had, but does not run over data frames; what to do instead."""


def columns_of(type: str, kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns that an expectation reads; empty if it is about the table."""
    match SIGNATURES[type].domain:
        case "column":
            found: tuple[Any, ...] = (kwargs.get("column"),)
        case "pair":
            found = (kwargs.get("column_A"), kwargs.get("column_B"))
        case "columns":
            listed = kwargs.get("column_list")
            found = tuple(listed) if isinstance(listed, list | tuple) else ()
        case _:
            return ()
    return tuple(name for name in found if isinstance(name, str))
