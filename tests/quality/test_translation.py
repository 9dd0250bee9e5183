"""Predicates of sql rules as polars expressions, held against DuckDB."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_assets.quality import sql
from mesh_assets.quality.translation import translated

SCHEMA: dict[str, pl.DataType] = {
    "i": pl.Int32(),
    "j": pl.Int32(),
    "x": pl.Float64(),
    "d": pl.Decimal(8, 2),
    "s": pl.String(),
    "u": pl.String(),
    "t": pl.Datetime("us", "UTC"),
    "v": pl.Datetime("us", "UTC"),
    "day": pl.Date(),
    "b": pl.Boolean(),
}
VALUES = {
    "i": st.sampled_from([-1, 0, 1, 2]),
    "j": st.sampled_from([-1, 0, 1, 2]),
    "x": st.sampled_from([float("nan"), -0.0, 0.5, 2.0, float("inf")]),
    "d": st.sampled_from([Decimal("0.10"), Decimal("2.00"), Decimal("-1.25")]),
    "s": st.sampled_from(["", "a", "é", "it's", "Z"]),
    "u": st.sampled_from(["", "a", "é"]),
    "t": st.datetimes(datetime(2024, 1, 1), datetime(2024, 1, 3), timezones=st.just(UTC)),
    "v": st.datetimes(datetime(2024, 1, 1), datetime(2024, 1, 3), timezones=st.just(UTC)),
    "day": st.dates(date(2024, 1, 1), date(2024, 1, 3)),
    "b": st.booleans(),
}
ROWS = st.lists(
    st.fixed_dictionaries({name: st.one_of(st.none(), values) for name, values in VALUES.items()}), max_size=8
)
SIGNS = st.sampled_from(["=", "<>", "!=", "<", "<=", ">", ">="])
OPERANDS = st.sampled_from(
    [
        ("i", "j"),
        ("i", "1"),
        ("0", "i"),
        ("x", "0.5"),
        ("x", "2"),
        ("d", "0.1"),
        ("d", "0.105"),
        ("d", "2"),
        ("d", "999999999999"),
        ("s", "u"),
        ("s", "'a'"),
        ("s", "'it''s'"),
        ("t", "v"),
        ("day", "cast(t as date)"),
        ("v::date", "day"),
        ('"i"', "j"),
        ("x", "x"),
    ]
)
COMPARISONS = st.one_of(
    st.tuples(OPERANDS, SIGNS).map(lambda found: f"{found[0][0]} {found[1]} {found[0][1]}"),
    st.sampled_from(
        [
            "b",
            "not b",
            "s is null",
            '"s" is null',
            "x is not null",
            "i between 0 and 1",
            "i not between 0 and 1",
            "i in (1, 2)",
            "s in ('a', 'é')",
            "s not in ('a', 'b')",
            "d between -1.25 and 0.1",
        ]
    ),
)
PREDICATES = st.recursive(
    COMPARISONS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda found: f"({' '.join(found)})"),
        inner.map(lambda text: f"not ({text})"),
    ),
    max_leaves=4,
)


@settings(max_examples=120, deadline=None)
@given(PREDICATES, ROWS)
def test_a_translated_predicate_is_true_where_duckdb_says_so(
    predicate: str, rows: list[dict[str, object]]
) -> None:
    frame = pl.DataFrame(rows, schema=SCHEMA)
    expression = translated(predicate, SCHEMA)
    assert expression is not None, predicate
    ours = frame.select(held=expression)["held"].to_list()
    asked = sql.RowFilter([predicate], list(SCHEMA))
    assert ours == asked.true(frame.to_arrow(), 0).to_list(), predicate
    assert asked.counts(frame.to_arrow()) == [sum(ours)]


_WITHOUT_DUCKDB = """
import sys, polars as pl
from mesh_assets.quality.translation import translated

failing = translated('"a ""b" is null', {'a "b': pl.Int64()})
print(pl.DataFrame({'a "b': [1, None]}).select(failing).to_series().to_list(), "duckdb" in sys.modules)
"""


def test_a_required_column_is_judged_without_duckdb() -> None:
    command = [sys.executable, "-c", _WITHOUT_DUCKDB]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[False, True] False"


@pytest.mark.parametrize(
    "predicate",
    [
        "i % 2 = 0",
        "lower(s) = 'a'",
        "i = 0.5",
        "s > 1",
        "i > x",
        "t > '2024-01-01'",
        "t::varchar = 'a'",
        "I = 1",
        "case when b then true end",
        "s like 'a%'",
        "i = 99999999999999999999",
        "i is distinct from j",
        "q = 1",
    ],
)
def test_what_is_not_sure_stays_with_duckdb(predicate: str) -> None:
    assert translated(predicate, SCHEMA) is None
