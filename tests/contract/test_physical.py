"""Names of PostgreSQL types: spelling, and agreement with what the capture makes of them."""

from __future__ import annotations

import psycopg
import pytest

from mesh_assets.cdc import type as cdc_type
from mesh_assets.contract.arrow import arrow_type
from mesh_assets.contract.model import ColumnContract
from mesh_assets.contract.physical import PhysicalType

# What people write, and what PostgreSQL calls it.
SPELLINGS = {
    "int": "integer",
    "INT4": "integer",
    "int8": "bigint",
    "bigserial": "bigint",
    "int2": "smallint",
    "float8": "double precision",
    "float4": "real",
    "Double   Precision": "double precision",
    "decimal(12, 2)": "numeric(12,2)",
    "numeric( 12 ,2 )": "numeric(12,2)",
    "numeric(12)": "numeric(12,0)",
    "numeric(3,-2)": "numeric(3,-2)",
    "numeric": "numeric",
    "bool": "boolean",
    "varchar": "character varying",
    "varchar(20)": "character varying(20)",
    "char": "character(1)",
    "char(3)": "character(3)",
    "timestamptz": "timestamp with time zone",
    "timestamptz(3)": "timestamp(3) with time zone",
    "timestamp": "timestamp without time zone",
    "timestamp(0) with time zone": "timestamp(0) with time zone",
    "timetz": "time with time zone",
    "time": "time without time zone",
    "int[]": "integer[]",
    "varchar(5)[][]": "character varying(5)[]",
    "text [ 3 ]": "text[]",
    "varbit(4)": "bit varying(4)",
    "bytea": "bytea",
    "jsonb": "jsonb",
    "uuid": "uuid",
    "date": "date",
    "interval": "interval",
    "inet": "inet",
    "oid": "oid",
    "name": "name",
    "xml": "xml",
    "hstore": "hstore",
}


@pytest.mark.parametrize(("written", "name"), SPELLINGS.items())
def test_a_spelling_is_what_postgresql_calls_it(written: str, name: str) -> None:
    assert str(PhysicalType.parse(written)) == name
    assert PhysicalType.parse(written).same(PhysicalType.parse(name))


def test_postgresql_agrees_on_spellings_and_the_capture_on_arrow_types(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        for written in SPELLINGS.keys() - {"hstore", "bigserial"}:
            connection.execute(f"CREATE TEMP TABLE probe (value {written})")
            row = connection.execute(
                "SELECT format_type(atttypid, atttypmod), atttypid::int, atttypmod FROM pg_attribute "
                "WHERE attrelid = 'probe'::regclass AND attname = 'value'"
            ).fetchone()
            connection.execute("DROP TABLE probe")
            assert row is not None
            name, oid, typmod = row
            assert str(PhysicalType.parse(written)) == name
            live = cdc_type.builtin(oid, typmod)
            assert live is not None
            assert arrow_type(ColumnContract("value", "string", written)) == cdc_type.arrow_type(live), (
                written
            )


def test_a_users_type_goes_with_or_without_its_schema() -> None:
    segment = PhysicalType.parse("shop.segment")
    assert segment.same(PhysicalType.parse("segment"))
    assert segment.same(PhysicalType.parse("SHOP.Segment"))
    assert not segment.same(PhysicalType.parse("other.segment"))
    assert not segment.same(PhysicalType.parse("segment[]"))
    assert not PhysicalType.parse("shop.text").same(PhysicalType.parse("text"))
    assert PhysicalType.parse('"Shop"."Segment"').name == '"Shop"."Segment"'


def test_logical_types_are_those_that_fit() -> None:
    assert PhysicalType.parse("int8").logical_types == ("integer", "number")
    assert PhysicalType.parse("text[]").logical_types == ("array", "vector")
    assert PhysicalType.parse("shop.segment").logical_types == ()


@pytest.mark.parametrize("odd", ["", "()", "numeric(", "a b c", "[]", "numeric(a,b)", "numeric(99,1)", "(3)"])
def test_odd_names_are_types_of_the_user_or_text(odd: str) -> None:
    assert not PhysicalType.parse(odd).same(PhysicalType.parse("integer"))
    if odd:
        assert str(arrow_type(ColumnContract("value", "string", odd))) in ("string", "list<item: string>")
