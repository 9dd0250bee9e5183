"""The type mapping, and the names of PostgreSQL's own types against a real server."""

from __future__ import annotations

import psycopg
import pyarrow as pa
import pytest

from mesh_assets.cdc.type import PostgresType, array_delimiter, arrow_type, builtin

MODIFIED = (
    *("numeric(12,2)", "numeric(3,-2)", "numeric(5,7)", "numeric(12,2)[]", "varchar", "varchar(20)"),
    *("char(3)", "bpchar", "varchar(5)[]", "timestamp(3)", "timestamptz(0)", "time(2)", "timetz(6)"),
    *("bit(4)", "varbit(5)", "varbit", "interval", "interval(3)", "interval year"),
    *("interval day to second(2)", "interval hour to minute", "interval second(0)"),
)
INT4_ARRAY, NUMERIC_ARRAY, BOX_ARRAY = 1007, 1231, 1020


def known(oid: int, typmod: int = -1) -> PostgresType:
    found = builtin(oid, typmod)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("precision", "scale", "expected"),
    [
        (12, 2, pa.decimal128(12, 2)),
        (38, 38, pa.decimal128(38, 38)),
        (39, 0, pa.string()),
        (3, -2, pa.string()),
        (5, 7, pa.string()),
    ],
)
def test_numeric(precision: int, scale: int, expected: pa.DataType) -> None:
    typmod = ((precision << 16) | (scale & 0x7FF)) + 4
    assert arrow_type(known(1700, typmod)) == expected
    assert known(1700, typmod).name == f"numeric({precision},{scale})"
    assert arrow_type(known(NUMERIC_ARRAY, typmod)) == pa.list_(expected)


def test_unconstrained_numeric_is_text() -> None:
    assert arrow_type(known(1700)) == pa.string()


def test_domains_are_their_base() -> None:
    inner = PostgresType(60_000, -1, "email", base=known(25))
    assert arrow_type(PostgresType(60_001, -1, "work_email", base=inner)) == pa.string()
    amount = PostgresType(60_002, -1, "amount", base=known(1700, 786438))
    assert arrow_type(amount) == pa.decimal128(12, 2)
    assert arrow_type(PostgresType(60_003, -1, "amount[]", element=amount)) == pa.list_(pa.decimal128(12, 2))
    tags = PostgresType(60_004, -1, "tags", base=known(INT4_ARRAY))
    assert arrow_type(tags) == pa.list_(pa.int32())
    assert arrow_type(PostgresType(60_005, -1, "tags[]", element=tags)) == pa.list_(pa.string())


def test_user_types_are_text() -> None:
    assert builtin(50_000) is None
    assert arrow_type(PostgresType(50_000, -1, "mood")) == pa.string()
    assert arrow_type(PostgresType(50_001, -1, "mood[]", element=PostgresType(50_000))) == pa.list_(
        pa.string()
    )


def test_delimiter() -> None:
    assert array_delimiter(known(BOX_ARRAY)) == ";"
    assert array_delimiter(known(INT4_ARRAY)) == ","


def test_names_and_arrays_are_the_servers(postgres_url: str) -> None:
    columns = ", ".join(f"c{number} {type_}" for number, type_ in enumerate(MODIFIED))
    with psycopg.connect(postgres_url) as connection:
        everything = connection.execute(
            "SELECT oid::int8, format_type(oid, -1), typelem::int8, typdelim::text, typcategory = 'A' "
            "FROM pg_type WHERE oid < 10000 AND typtype IN ('b', 'r', 'm')"
        ).fetchall()
        connection.execute(f"CREATE TEMPORARY TABLE modified ({columns})")
        described = connection.execute(
            "SELECT atttypid::int8, atttypmod, format_type(atttypid, atttypmod) FROM pg_attribute "
            "WHERE attrelid = 'modified'::regclass AND attnum > 0"
        ).fetchall()
    assert len(described) == len(MODIFIED)
    for oid, typmod, name in described:
        assert known(oid, typmod).name == name
    count = 0
    for oid, name, element, delimiter, is_array in everything:
        found = builtin(oid)
        if found is None:
            continue
        count += 1
        assert (found.name, found.delimiter) == (name, delimiter if not found.element else ",")
        if found.element is not None:
            assert (is_array, found.element.oid) == (True, element)
    assert count > 130
