"""What a recomputation changes, held against a comparison row by row."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh_assets.derive import difference
from mesh_assets.derive.difference import Stamp, change_frame, differences
from mesh_assets.lake.log import log_schema
from mesh_assets.lake.shape import Shape, polars_schema

SCHEMA = pa.schema(
    [
        ("a", pa.int64()),
        ("b", pa.string()),
        ("text", pa.string()),
        ("amount", pa.decimal128(10, 2)),
        ("share", pa.float64()),
        ("tags", pa.list_(pa.string())),
    ]
)
SHAPE = Shape(polars_schema(SCHEMA), ("a", "b"))
_FLOATS = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True, width=16))
_TAGS = st.one_of(st.none(), st.lists(st.sampled_from(["x", "y"]), max_size=2))
_ROWS = st.dictionaries(
    st.tuples(st.integers(0, 4), st.sampled_from(["p", "q"])),
    st.tuples(
        st.sampled_from([None, "", "z"]),
        st.one_of(st.none(), st.decimals(-5, 5, places=2)),
        _FLOATS,
        _TAGS,
    ),
)


def frame(rows: dict[tuple[int, str], tuple[Any, ...]]) -> pl.LazyFrame:
    columns = zip(*((*key, *values) for key, values in rows.items()), strict=True) if rows else [[]] * 6
    arrays = [pa.array(list(values), one.type) for values, one in zip(columns, SCHEMA, strict=True)]
    return pl.DataFrame(pl.from_arrow(pa.Table.from_arrays(arrays, schema=SCHEMA))).lazy()


def same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    # NaN is equal to itself here.
    return all(x == y or (x != x and y != y) for x, y in zip(one, other, strict=True))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(new=_ROWS, old=_ROWS, narrow=st.booleans())
def test_only_what_differs_is_found(
    monkeypatch: pytest.MonkeyPatch,
    new: dict[tuple[int, str], tuple[Any, ...]],
    old: dict[tuple[int, str], tuple[Any, ...]],
    narrow: bool,
) -> None:
    monkeypatch.setattr(difference, "_PART_ROWS", 4)
    parts = list(differences(SHAPE, frame(new), frame(old), row_count=100 if narrow else 0))
    found = {(row["a"], row["b"]): row["_op"] for part in parts for row in part.iter_rows(named=True)}
    wanted = dict.fromkeys(old.keys() - new.keys(), "d") | dict.fromkeys(new.keys() - old.keys(), "c")
    wanted |= {key: "u" for key in new.keys() & old.keys() if not same(new[key], old[key])}
    assert found == wanted
    at = datetime(2026, 1, 1, tzinfo=UTC)
    for part in parts:
        rows = change_frame(SHAPE, log_schema(SCHEMA), part, Stamp(3, at), 5).to_pylist()
        assert [row["_ordinal"] for row in rows] == list(range(5, 5 + len(rows)))
        for row in rows:
            key = (row["a"], row["b"])
            before = row["_before"] and tuple(row["_before"][name] for name in SCHEMA.names[2:])
            after = tuple(row[name] for name in SCHEMA.names[2:])
            assert (row["_position"], row["_committed_at"]) == (3, at)
            assert before is None if row["_op"] == "c" else same(before, old[key])
            assert same(after, (None,) * 4 if row["_op"] == "d" else new[key])


def test_the_order_of_a_sum_is_no_change() -> None:
    old = {(1, "p"): ("z", Decimal("1.00"), 0.1 + 0.2 + 0.3, None)}
    new = {(1, "p"): ("z", Decimal("1.00"), 0.3 + 0.2 + 0.1, None)}
    assert old[1, "p"][2] != new[1, "p"][2]
    assert list(differences(SHAPE, frame(new), frame(old), row_count=0)) == []
    assert list(differences(SHAPE, frame(new), frame(old), row_count=10**9)) == []


@pytest.mark.parametrize(
    ("new", "old"), [(1.0, float("inf")), (float("-inf"), 2.0), (float("inf"), float("-inf"))]
)
def test_infinity_is_never_noise(new: float, old: float) -> None:
    made = frame({(1, "p"): (None, None, new, None), (2, "p"): (None, None, old, None)})
    stands = frame({(1, "p"): (None, None, old, None), (2, "p"): (None, None, old, None)})
    (found,) = differences(SHAPE, made, stands, row_count=4)
    assert found.select("a", "_op", "_new_share", "_old_share").rows() == [(1, "u", new, old)]
