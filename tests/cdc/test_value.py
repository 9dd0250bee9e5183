"""Texts to Arrow values, against Python's own reading of them."""

from __future__ import annotations

import math
import struct
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Context, Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mesh_assets.cdc import kernel, value
from mesh_assets.cdc.column import Cells, column
from mesh_assets.cdc.frame import text_columns
from mesh_assets.cdc.relation import Column, Relation
from mesh_assets.cdc.type import PostgresType, builtin

EXACT = object()
"""Stands for a value that its Arrow type cannot hold."""

unhurried = settings(deadline=None)  # The first example compiles the kernel, or loads it.

TIMESTAMP = pa.timestamp("us", tz="UTC")


def read(arrow: pa.DataType, texts: list[str | None], delimiter: str = ",") -> list[Any]:
    # A slice of something longer, so that offsets that do not start at 0 are seen too.
    array, odd = column(arrow, Cells.of(pa.array(["12", None, *texts], pa.string())[2:]), delimiter)
    array.validate(full=True)
    values = array.to_pylist()
    assert all(values[row] is None and texts[row] is not None for row in odd)
    return [EXACT if row in set(odd) else one for row, one in enumerate(values)]


@unhurried
@given(
    st.lists(
        st.none() | st.integers(-(2**65), 2**65) | st.integers(-(2**63), 2**63) | st.integers(-40000, 40000)
    )
)
def test_integers(numbers: list[int | None]) -> None:
    for bits, arrow in ((16, pa.int16()), (32, pa.int32()), (64, pa.int64())):
        half = 1 << (bits - 1)
        expected = [one if one is None or -half <= one < half else EXACT for one in numbers]
        assert read(arrow, [None if one is None else str(one) for one in numbers]) == expected


@pytest.mark.parametrize("text", ["", "-", "+1", " 1", "1 ", "1.0", "0x1", "1e3", "--1", "NaN", "9" * 40])
def test_what_is_no_integer_stays_exact(text: str) -> None:
    assert read(pa.int64(), [text, "5", None]) == [EXACT, 5, None]


@st.composite
def decimals(draw: st.DrawFn) -> tuple[int, int, list[Decimal | None]]:
    precision = draw(st.integers(1, 38))
    scale = draw(st.integers(0, precision))
    top = 10**precision - 1
    unscaled = draw(st.lists(st.none() | st.integers(-top, top), max_size=8))
    context = Context(prec=76)
    values = [None if one is None else context.scaleb(Decimal(one), -scale) for one in unscaled]
    return precision, scale, values


@unhurried
@given(decimals())
def test_decimals(sample: tuple[int, int, list[Decimal | None]]) -> None:
    precision, scale, numbers = sample
    texts = [None if one is None else f"{one:f}" for one in numbers]
    assert read(pa.decimal128(precision, scale), texts) == numbers


def test_decimals_beyond_their_type_stay_exact() -> None:
    texts = [
        "NaN",
        "Infinity",
        "-Infinity",
        "1000.00",
        "1.005",
        "",
        "-",
        ".",
        "1..0",
        "1e2",
        "-999.99",
        "7",
        "7.",
        "-.5",
    ]
    found = read(pa.decimal128(5, 2), list(texts))
    assert found[:10] == [EXACT] * 10
    assert found[10:] == [Decimal("-999.99"), Decimal("7.00"), Decimal("7.00"), Decimal("-0.50")]


@unhurried
@given(st.lists(st.none() | st.floats(allow_nan=True) | st.floats(allow_nan=True, width=32)))
def test_floats(numbers: list[float | None]) -> None:
    def text(one: float | None) -> str | None:
        if one is None or math.isfinite(one):
            return None if one is None else repr(one)
        return "NaN" if math.isnan(one) else "Infinity" if one > 0 else "-Infinity"

    found = read(pa.float64(), [text(one) for one in numbers])
    assert [None if one is None else struct.pack("d", one) for one in found if one == one] == [
        None if one is None else struct.pack("d", one) for one in numbers if one == one
    ]


@unhurried
@given(st.lists(st.floats(width=32, allow_nan=False)))
def test_single_floats(numbers: list[float]) -> None:
    texts: list[str | None] = [str(np.float32(one)).replace("inf", "Infinity") for one in numbers]
    assert read(pa.float32(), texts) == numbers


def test_what_is_no_float_stays_exact() -> None:
    assert read(pa.float64(), ["1.5", "one", None, "-2"]) == [1.5, EXACT, None, -2.0]


def test_booleans() -> None:
    assert read(pa.bool_(), ["t", "f", None, "true", "", "x"]) == [True, False, None, EXACT, EXACT, EXACT]


@unhurried
@given(st.lists(st.none() | st.dates()))
def test_dates(days: list[date | None]) -> None:
    assert read(pa.date32(), [None if one is None else one.isoformat() for one in days]) == days


@unhurried
@given(
    st.lists(st.none() | st.datetimes()),
    st.integers(-15 * 60, 15 * 60).filter(lambda minutes: minutes % 15 == 0),
)
def test_instants(moments: list[datetime | None], offset_minutes: int) -> None:
    naive = [None if one is None else one.isoformat(" ") for one in moments]
    assert read(pa.timestamp("us"), list(naive)) == moments
    zone = timezone(timedelta(minutes=offset_minutes))
    assume(all(one is None or 2 <= one.year <= 9998 for one in moments))
    aware = [None if one is None else one.replace(tzinfo=zone) for one in moments]
    texts = [None if one is None else one.isoformat(" ") for one in aware]
    # PostgreSQL leaves out the minutes of a whole hour.
    short = [
        None if one is None else one.removesuffix(":00") if offset_minutes % 60 == 0 else one for one in texts
    ]
    expected = [None if one is None else one.astimezone(UTC) for one in aware]
    assert read(TIMESTAMP, list(texts)) == expected
    assert read(TIMESTAMP, list(short)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "infinity", "-infinity", "0001-01-01 00:00:00 BC", "10000-01-01 00:00:00", "0000-01-01 00:00:00",
        "2023-02-29 00:00:00", "2024-13-01 00:00:00", "2024-04-31 00:00:00", "2024-01-01 24:00:00",
        "2024-01-01 00:60:00", "2024-01-01T00:00:00", "2024-01-01 00:00", "2024-01-01 00:00:00.",
        "2024-01-01 00:00:00.1234567", "2024-01-01 00:00:00+", "2024-01-01 00:00:00+0",
        "2024-01-01 00:00:00Z", "0001-01-01 00:00:00+01", "9999-12-31 23:59:59-01", "", "2024-01-01",
    ],
)  # fmt: skip
def test_instants_beyond_their_type_stay_exact(text: str) -> None:
    assert read(TIMESTAMP, [text, "2024-01-01 00:00:00+00"]) == [EXACT, datetime(2024, 1, 1, tzinfo=UTC)]
    if len(text) != 10:
        assert read(pa.date32(), [text]) == [EXACT]


@unhurried
@given(st.lists(st.none() | st.binary()))
def test_binaries(values: list[bytes | None]) -> None:
    assert read(pa.binary(), [None if one is None else "\\x" + one.hex() for one in values]) == values


def test_what_is_no_hexadecimal_stays_exact() -> None:
    assert read(pa.binary(), ["\\x0", "00", "\\xzz", "\\xAB", "", "\\x00ff"]) == [EXACT] * 5 + [b"\x00\xff"]


def literal(values: list[str | None] | None, delimiter: str = ",") -> str | None:
    """An array's text by the rules of ``array_out``."""
    if values is None:
        return None
    parts = []
    for one in values:
        if one is None:
            parts.append("NULL")
        elif one == "" or one.upper() == "NULL" or any(c in '{}"\\ \t\n\r\v\f' + delimiter for c in one):
            parts.append('"' + one.replace("\\", "\\\\").replace('"', '\\"') + '"')
        else:
            parts.append(one)
    return "{" + delimiter.join(parts) + "}"


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
tricky = st.sampled_from(["NULL", "null", "", ",", "{", "}", '"', "\\", 'a"b', " ", ";"])


@unhurried
@given(
    st.lists(st.none() | st.lists(st.none() | words | tricky, max_size=5), max_size=6), st.sampled_from(",;:")
)
def test_text_arrays(arrays: list[list[str | None] | None], delimiter: str) -> None:
    assert read(pa.list_(pa.string()), [literal(one, delimiter) for one in arrays], delimiter) == arrays


@unhurried
@given(st.lists(st.none() | st.lists(st.none() | st.integers(-(2**33), 2**33), max_size=5), max_size=6))
def test_integer_arrays(arrays: list[list[int | None] | None]) -> None:
    texts = [
        None if one is None else literal([None if item is None else str(item) for item in one])
        for one in arrays
    ]
    expected = [
        EXACT if one and any(item is not None and not -(2**31) <= item < 2**31 for item in one) else one
        for one in arrays
    ]
    assert read(pa.list_(pa.int32()), texts) == expected


@pytest.mark.parametrize(
    "text",
    [
        "{{1,2},{3,4}}", "[0:1]={1,2}", "", "{", "}", "{1", "1}", "{1,}", "{,1}", "{,}", '{"1}', '{"1"2}',
        '{"1\\"}', "{1}2}", '{1"2}', "{1\\2}", "{{}}", "{}}", "1,2",
        '{"', '{"}', "{x}", '{"1" }', "{NULLs}", "{null}",
    ],
)  # fmt: skip
def test_arrays_beyond_their_type_stay_exact(text: str) -> None:
    assert read(pa.list_(pa.int64()), ["{1,NULL,3}", text, "{}", None]) == [[1, None, 3], EXACT, [], None]


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"])) | st.text('{}",\\NUL1-.:e +x')),
    st.sampled_from(
        [
            pa.bool_(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.decimal128(5, 2),
            pa.decimal128(38, 10), pa.date32(), pa.timestamp("us"), TIMESTAMP, pa.binary(),
            pa.list_(pa.int16()), pa.list_(pa.string()), pa.list_(pa.binary()), pa.list_(pa.float64()),
            pa.list_(pa.bool_()),
        ]
    ),
)  # fmt: skip
def test_any_text_is_read_or_kept(texts: list[str | None], arrow: pa.DataType) -> None:
    found = read(arrow, list(texts))
    assert [one is None for one in texts] == [one is None for one in found]


def test_text_columns_keep_what_does_not_fit() -> None:
    def described(name: str, oid: int, typmod: int = -1) -> Column:
        from mesh_assets.cdc.type import arrow_type

        known = builtin(oid, typmod) or PostgresType(oid)
        return Column(name, known, arrow_type(known))

    relation = Relation(
        1, "s", "t", "d", (described("id", 20), described("amount", 1700, 786438), described("note", 25))
    )
    table = pa.table({"note": ["a", None, "c"], "amount": ["1.5", "NaN", None], "id": ["1", "2", "x"]})
    found = text_columns(relation, pa.concat_tables([table, table.slice(1)]))
    found.validate(full=True)
    assert found.schema.names == ["id", "amount", "note", "_exact"]
    assert found["id"].to_pylist() == [1, 2, None, 2, None]
    assert found["amount"].to_pylist() == [Decimal("1.50"), None, None, None, None]
    assert found["note"].to_pylist() == ["a", None, "c", None, "c"]
    assert found["_exact"].to_pylist() == [
        None, [("amount", "NaN")], [("id", "x")], [("amount", "NaN")], [("id", "x")],
    ]  # fmt: skip
    assert text_columns(relation, table.slice(0, 0)).num_rows == 0
    large = table.cast(pa.schema([(name, pa.large_string()) for name in table.schema.names]))
    assert text_columns(relation, large).equals(found.slice(0, 3))


def test_kernels_have_one_specialisation() -> None:
    from mesh_assets.cdc.warm import warm

    warm()
    for module in (kernel, value):
        for name, function in vars(module).items():
            # _number is compiled for two and for four digits, which unrolls its loop.
            if hasattr(function, "signatures") and name != "_number":
                assert len(function.signatures) <= 1, (name, function.signatures)
