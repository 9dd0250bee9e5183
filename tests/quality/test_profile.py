"""Profiles: of a file, and of many by merging."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_assets.quality.profile import SKETCH_SIZE, TableProfile, incremental, merged, profile

SCHEMA: dict[str, pl.DataType] = {
    "i": pl.Int64(), "x": pl.Float64(), "d": pl.Decimal(10, 2), "s": pl.String(), "b": pl.Boolean(),
    "t": pl.Datetime("us", "UTC"), "day": pl.Date(), "tags": pl.List(pl.String),
}  # fmt: skip
VALUES = {
    "i": st.integers(-5, 5), "x": st.sampled_from([float("nan"), -1.5, 0.0, 2.5]),
    "d": st.sampled_from([Decimal("0.10"), Decimal("2.00")]), "s": st.sampled_from(["", "a", "bé", "日本語"]),
    "b": st.booleans(), "t": st.datetimes(datetime(2024, 1, 1), datetime(2024, 1, 3), timezones=st.just(UTC)),
    "day": st.dates(date(2024, 1, 1), date(2024, 1, 3)), "tags": st.lists(st.sampled_from("ab"), max_size=3),
}  # fmt: skip
ROWS = st.lists(
    st.fixed_dictionaries({name: st.one_of(st.none(), one) for name, one in VALUES.items()}), max_size=12
)


def near(one: TableProfile, other: TableProfile) -> bool:
    """Equal, but for the rounding of means and deviations."""
    assert one.row_count == other.row_count
    for name in {*one.columns, *other.columns}:
        left, right = one.columns[name].to_json(), other.columns[name].to_json()
        for part in ("mean", "squares"):
            first, second = left.pop(part), right.pop(part)
            assert (first is None) == (second is None)
            assert first is None or math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-9)
        assert left == right, name
    return True


@settings(max_examples=60, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=3))
def test_merged_profiles_are_that_of_all_rows(parts: list[list[dict[str, object]]]) -> None:
    frames = [pl.DataFrame(rows, schema=SCHEMA) for rows in parts]
    whole = profile(pl.concat(frames).lazy())
    profiles = [profile(frame.lazy()) for frame in frames]
    assert near(merged(profiles), whole)
    assert near(merged(reversed(profiles)), whole)
    assert near(
        merged([TableProfile.from_json(json.loads(json.dumps(one.to_json()))) for one in profiles]), whole
    )


def test_a_column_is_told_what_a_reader_wants_to_know() -> None:
    frame = pl.DataFrame({"x": [1.0, 2.0, float("nan"), None, 5.0], "s": ["a", "bb", "bb", None, ""]})
    found = profile(frame.with_columns(_seq=pl.lit(1)).lazy()).summary()
    assert found["row_count"] == 5
    assert set(found["columns"]) == {"x", "s"}
    x, s = found["columns"]["x"], found["columns"]["s"]
    assert (x["count"], x["null_count"], x["distinct_count"], x["minimum"], x["maximum"]) == (
        5,
        2,
        3,
        1.0,
        5.0,
    )
    assert x["mean"] == pytest.approx(8 / 3)
    assert x["deviation"] == pytest.approx(pl.Series([1.0, 2.0, 5.0]).std())
    assert (s["least_length"], s["greatest_length"], s["mean_length"]) == (0, 2, 1.25)
    assert s["top"] == [{"value": "bb", "count": 2}, {"value": "", "count": 1}, {"value": "a", "count": 1}]
    assert s["top_exact"]


def test_many_distinct_values_are_estimated() -> None:
    count = 200_000
    parts = [pl.DataFrame({"i": range(start, start + count // 2)}) for start in (0, count // 2, count // 4)]
    found = merged(profile(part.lazy()) for part in parts).columns["i"]
    assert len(found.sketch) == SKETCH_SIZE
    assert found.distinct_count == pytest.approx(count, rel=0.1)
    assert (found.minimum, found.maximum, found.mean) == (0, count - 1, pytest.approx((count - 1) / 2))
    assert not found.top_exact


def test_only_new_files_are_read() -> None:
    read: list[str] = []

    def open_file(path: str, start: int) -> pl.LazyFrame:
        read.append(path)
        return pl.LazyFrame({"i": range(start, start + 10)})

    first = incremental({name: partial(open_file, name, at) for at, name in enumerate("ab")}, {})
    second = incremental({name: partial(open_file, name, at) for at, name in enumerate("xbc")}, first)
    assert read == ["a", "b", "x", "c"]
    assert set(second) == {"x", "b", "c"}
    assert merged(second.values()).row_count == 30
    stale = {"b": TableProfile(10, {}, "0.1")}
    incremental({"b": partial(open_file, "b", 1)}, stale)
    assert read[-1] == "b"


def test_a_column_that_came_later_is_null_before() -> None:
    old, new = pl.LazyFrame({"i": [1, 2]}), pl.LazyFrame({"i": [3], "s": ["a"]})
    found = merged([profile(old), profile(new)])
    assert (found.columns["s"].count, found.columns["s"].null_count) == (3, 2)
    assert found.columns["i"].distinct_count == 3


def test_a_column_whose_kind_changed_counts_from_then_on() -> None:
    found = merged([profile(pl.LazyFrame({"i": [1, 2]})), profile(pl.LazyFrame({"i": ["a"]}))])
    assert (found.columns["i"].count, found.columns["i"].value_count, found.columns["i"].minimum) == (
        3,
        1,
        "a",
    )
