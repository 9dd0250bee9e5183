"""Values inserted into a real PostgreSQL and read through a slot, against psycopg's own reading."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Iterator
from datetime import time
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from psycopg import sql
from psycopg.types import TypeInfo

from mesh_assets.cdc.decode import Decoder
from mesh_assets.cdc.frame import text_columns
from mesh_assets.cdc.relation import Relation
from mesh_assets.cdc.type import PostgresType, builtin
from tests.cdc import pgoutput

SETTINGS = (
    "SET timezone = 'UTC'; SET datestyle = 'ISO'; SET intervalstyle = 'iso_8601'; "
    "SET extra_float_digits = 1; SET bytea_output = 'hex'"
)

SCHEMA = """
CREATE TYPE mood AS ENUM ('sad', 'ok', 'Grand, "really"');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN price AS numeric(12, 2) CHECK (value >= 0);
CREATE DOMAIN tag_list AS text[];
CREATE TYPE span AS RANGE (subtype = float8);
"""

# Type; literals that fit its Arrow type; literals that do not and stay exact.
SAMPLES: list[tuple[str, list[str], list[str]]] = [
    ("bool", ["true", "false"], []),
    ("int2", ["-32768", "0", "32767"], []),
    ("int4", ["-2147483648", "7", "2147483647"], []),
    ("int8", ["'-9223372036854775808'", "0", "9223372036854775807"], []),
    ("oid", ["0", "4294967295"], []),
    (
        "float4",
        ["0.1", "'3.4028235e38'", "'1e-45'", "'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "1::float4 / 3"],
        [],
    ),
    (
        "float8",
        ["0.1", "pi()", "'1.7976931348623157e308'", "'5e-324'", "'NaN'", "'Infinity'", "1e22", "1e-7"],
        [],
    ),
    ("numeric(12,2)", ["0", "-1234567890.12", "9999999999.99", "0.005"], ["'NaN'"]),
    ("numeric(18,0)", ["999999999999999999", "-1"], ["'NaN'"]),
    ("numeric(38,10)", ["9999999999999999999999999999.9999999999", "-1e-10", "12345678901234567890"], []),
    ("numeric(38,38)", ["0.99999999999999999999999999999999999999", "-1e-38"], []),
    ("numeric", ["1.10", "'NaN'", "'Infinity'", "'-Infinity'", "1e100", "1e-100"], []),
    ("numeric(3,-2)", ["12345", "-99949"], []),
    ("text", ["''", "'grüß 日本 🎉'", "E'tab\\tnew\\nline\\\\'", "repeat('x', 9000)", "'NULL'"], []),
    ("varchar(5)", ["'abc'"], []),
    ("char(5)", ["'ab'"], []),
    ('"char"', ["'x'", "''"], []),
    ("name", ["'orders'"], []),
    ("bytea", ["''", "'\\x00ff10'", "decode(repeat('ab', 5000), 'hex')"], []),
    ("uuid", ["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"], []),
    ("json", ["""'{"b": 1,  "a": [null]}'""", "'null'"], []),
    ("jsonb", ["""'{"b": 1,  "a": [null]}'""", "'\"ü\"'"], []),
    (
        "date",
        ["'2024-02-29'", "'0001-01-01'", "'9999-12-31'"],
        ["'infinity'", "'-infinity'", "'0044-03-15 BC'", "'10000-01-01'"],
    ),
    ("time", ["'23:59:59.999999'", "'24:00'"], []),
    ("timetz", ["'10:00+02:30'"], []),
    (
        "timestamp",
        ["'2024-02-29 12:00:00.000001'", "'0001-01-01'", "'9999-12-31 23:59:59.999999'", "'1969-12-31'"],
        ["'infinity'", "'-infinity'", "'0044-03-15 10:00 BC'", "'294276-12-31 23:59:59.999999'"],
    ),
    (
        "timestamptz",
        ["'2024-02-29 12:00:00.5+02'", "'1900-01-01 00:00+00'", "'9999-12-31 23:59:59.999999+00'"],
        ["'infinity'", "'-infinity'", "'4713-01-01 00:00+00 BC'", "'10000-01-01 00:00+00'"],
    ),
    ("interval", ["'1 year 2 mons 3 days 04:05:06.7'", "'-1 day'", "'0'"], []),
    ("inet", ["'10.0.0.1/8'", "'::1'"], []),
    ("bit(4)", ["B'1010'"], []),
    ("point", ["'(1.5,2)'"], []),
    ("tsvector", ["to_tsvector('simple', 'a b')"], []),
    ("int4range", ["'[1,5)'", "'empty'"], []),
    ("span", ["'[0.5,1.5)'"], []),
    ("pg_lsn", ["'16/B374D848'"], []),
    ("mood", ["'ok'", "'Grand, \"really\"'"], []),
    ("pair", ["ROW(1, 'a \"b\"')"], []),
    ("price", ["12.50"], ["'NaN'"]),
    ("tag_list", ["'{a,NULL}'"], ["'{{a},{b}}'"]),
    ("int4[]", ["'{}'", "'{1,NULL,-3}'"], ["'{{1,2},{3,4}}'", "'[0:1]={1,2}'"]),
    ("int8[]", ["'{9223372036854775807}'"], []),
    (
        "text[]",
        ["'{}'", "ARRAY['a', '', NULL, 'NULL', 'a,b', 'q\"q', E'\\\\', '{x}', ' ', 'ü']"],
        ["'{{a},{b}}'"],
    ),
    ("bool[]", ["'{t,f,NULL}'"], []),
    ("float8[]", ["'{1.5,NaN,-Infinity,NULL}'"], []),
    ("numeric(12,2)[]", ["'{1.5,-2,NULL}'"], ["'{1,NaN}'"]),
    ("numeric[]", ["'{1.50,NaN}'"], []),
    ("timestamptz[]", ["'{2024-01-01 00:00+00,NULL}'"], ["'{infinity}'"]),
    ("date[]", ["'{2024-01-01}'"], ["'{2024-01-01,0044-03-15 BC}'"]),
    ("bytea[]", ["ARRAY['\\x00ff'::bytea, '', NULL]"], []),
    ("uuid[]", ["'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'"], []),
    ("jsonb[]", ["""ARRAY['{"a": "x,y"}'::jsonb, 'null']"""], []),
    ("mood[]", ["""ARRAY['ok', 'Grand, "really"', NULL]::mood[]"""], []),
    ("box[]", ["'{(1,1),(0,0);(2,2),(1,1)}'"], []),
]  # fmt: skip


def resolver(connection: psycopg.Connection[Any]) -> Any:
    def resolve(oid: int, typmod: int) -> PostgresType:
        known = builtin(oid, typmod)
        if known is not None:
            return known
        row = connection.execute(
            "SELECT format_type(oid, %s::int4), typtype = 'd', typbasetype::int8, typtypmod, "
            "CASE WHEN typcategory = 'A' THEN typelem::int8 ELSE 0 END, typdelim::text "
            "FROM pg_type WHERE oid = %s::oid",
            (typmod, oid),
        ).fetchone()
        assert row is not None
        name, domain, base, base_typmod, element, delimiter = row
        return PostgresType(
            oid,
            typmod,
            name,
            base=resolve(base, base_typmod) if domain else None,
            element=resolve(element, typmod) if element and not domain else None,
            delimiter=delimiter,
        )

    return resolve


def captured_frames(connection: psycopg.Connection[Any], slot: str) -> dict[str, tuple[Relation, pa.Table]]:
    """Everything the slot holds, decoded."""
    rows = connection.execute(
        "SELECT data FROM pg_logical_slot_get_binary_changes(%s, NULL, NULL, "
        "'proto_version', '1', 'publication_names', 'everything')",
        (slot,),
        binary=True,
    ).fetchall()
    data = np.frombuffer(pgoutput.stream([row[0] for row in rows]), np.uint8)
    decoder = Decoder(resolver(connection), key_of=lambda *_: ("id",))
    assert decoder.decode(data, 0, len(data)) == len(data)
    frames = {}
    for relation, frame in decoder.take().segments:
        frame.validate(full=True)
        frames[relation.name] = (relation, frame)
    return frames


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True) as connected:
        connected.execute(SETTINGS)
        connected.execute("CREATE PUBLICATION everything FOR ALL TABLES")
        yield connected


def start(connection: psycopg.Connection[Any], slot: str) -> None:
    connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))


def same(found: Any, expected: Any) -> bool:
    """Equal, with NaN equal to itself, and -0 unlike 0."""
    if isinstance(found, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(found, float):
        return (math.isnan(found) and math.isnan(expected)) or (
            found == expected and math.copysign(1, found) == math.copysign(1, expected)
        )
    return type(found) is type(expected) and bool(found == expected)


def as_float4(value: float) -> float:
    """psycopg reads a float4 as the float8 nearest to its shortest text: round it to what it was."""
    return float(np.float32(value))


def elements(connection: psycopg.Connection[Any], table: str) -> dict[int, list[str | None] | None]:
    """The texts of an array column's elements."""
    query = sql.SQL(
        "SELECT id, (SELECT array_agg(CASE WHEN num_nulls(e) = 0 THEN format('%%s', e) END) "
        "FROM unnest(v) e) FROM {}"
    )
    rows = connection.execute(query.format(sql.Identifier(table)), ())
    return dict(rows.fetchall())


def test_every_type(connection: psycopg.Connection[Any]) -> None:
    connection.execute(SCHEMA)
    for number, (type_, _, _) in enumerate(SAMPLES):
        connection.execute(f"CREATE TABLE t{number} (id int PRIMARY KEY, v {type_})")
    start(connection, "every_type")
    for number, (type_, fitting, odd) in enumerate(SAMPLES):
        for row, literal in enumerate([*fitting, *odd, "NULL"]):
            connection.execute(f"INSERT INTO t{number} VALUES ({row}, ({literal})::{type_})")
    frames = captured_frames(connection, "every_type")

    for number, (type_, fitting, odd) in enumerate(SAMPLES):
        table = f"t{number}"
        relation, frame = frames[table]
        arrow = relation.columns[1].arrow
        query = sql.SQL("SELECT id, CASE WHEN num_nulls(v) = 0 THEN format('%s', v) END FROM {}")
        texts = dict(connection.execute(query.format(sql.Identifier(table))).fetchall())
        size = len(fitting) + len(odd)
        assert frame["id"].to_pylist() == list(range(size + 1)), type_
        values = frame["v"].to_pylist()
        exact = [None if one is None else dict(one) for one in frame["_exact"].to_pylist()]
        assert values[size] is None, type_
        assert exact[size] is None, type_
        for row in range(len(fitting), size):
            assert values[row] is None, (type_, odd)
            assert exact[row] == {"v": texts[row]}, (type_, odd)
        assert exact[: len(fitting)] == [None] * len(fitting), type_

        if pa.types.is_string(arrow):
            assert values[: len(fitting)] == [texts[row] for row in range(len(fitting))], type_
        elif pa.types.is_list(arrow) and pa.types.is_string(arrow.value_type):
            expected = elements(connection, table)
            assert values[: len(fitting)] == [expected[row] or [] for row in range(len(fitting))], type_
        else:
            select = sql.SQL("SELECT v FROM {} WHERE id < %s ORDER BY id").format(sql.Identifier(table))
            wanted_values = [one for (one,) in connection.execute(select, (len(fitting),)).fetchall()]
            for found, wanted in zip(values[: len(fitting)], wanted_values, strict=True):
                right = as_float4(wanted) if arrow == pa.float32() else wanted
                assert same(found, right), (type_, found, right)

        everything = pa.table(
            {
                "id": pa.array([str(row) for row in range(size + 1)]),
                "v": pa.array([texts[row] for row in range(size + 1)], pa.string()),
            }
        )
        snapshot = text_columns(relation, everything)
        assert snapshot["_exact"].combine_chunks().equals(frame["_exact"].combine_chunks()), type_
        assert repr(snapshot["v"].to_pylist()) == repr(values), type_


def test_text_arrays_as_psycopg_reads_them(connection: psycopg.Connection[Any]) -> None:
    connection.execute("CREATE TABLE lists (id int PRIMARY KEY, v text[])")
    start(connection, "text_arrays")
    words = [
        "",
        "NULL",
        "null",
        None,
        "a",
        "a b",
        "a,b",
        '"',
        "\\",
        "{",
        "}",
        "\n",
        "\t",
        " ",
        "ü",
        "''",
        '\\"{},',
    ]
    arrays = [[words[(row + step * 5) % len(words)] for step in range(row % 7)] for row in range(200)]
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO lists VALUES (%s, %s)", list(enumerate(arrays)))
    _, frame = captured_frames(connection, "text_arrays")["lists"]
    assert frame["v"].to_pylist() == arrays


# Column, type, and what is drawn for it.
RANDOM = [
    ("i2", "int2", "(random() * 65535 - 32768)::int2"),
    ("i4", "int4", "(random() * 4e9 - 2e9)::int4"),
    ("i8", "int8", "(random() * 1e18 - 5e17)::int8"),
    ("f4", "float4", "(random() * power(10, random() * 60 - 30))::float4"),
    ("f8", "float8", "random() * power(10, random() * 600 - 300)"),
    ("n18", "numeric(18,6)", "(random() * 1e11 - 5e10)::numeric(18,6)"),
    ("n38", "numeric(38,6)", "random()::numeric * 1e31 - 5e30"),
    (
        "n",
        "numeric",
        "CASE WHEN random() < 0.05 THEN 'NaN' WHEN random() < 0.05 THEN '-Infinity' ELSE round("
        "(random() - 0.5)::numeric * power(10::numeric, (random() * 60)::int), (random() * 40)::int) END",
    ),
    ("d", "date", "date '0001-01-01' + (random() * 3652000)::int"),
    ("tm", "time", "time '00:00' + random() * interval '86399 s'"),
    ("ts", "timestamp", "timestamp '0001-01-01' + random() * interval '9998 years'"),
    ("tz", "timestamptz", "timestamptz '0002-01-01 00:00+00' + random() * interval '9990 years'"),
    ("b", "bytea", "decode(repeat(md5(random()::text), (random() * 3)::int), 'hex')"),
    ("u", "uuid", "md5(random()::text)::uuid"),
    ("j", "json", "format('{\"b\": %s,  \"a\": [null, %s]}', random(), to_json({text}))::json"),
    ("jb", "jsonb", "jsonb_build_object('b', random(), 'a', jsonb_build_array(null, {text}))"),
    ("e", "mood", "(enum_range(null::mood))[1 + (random() * 2)::int]"),
    ("t", "text", "{text}"),
    ("flag", "bool", "random() < 0.5"),
    ("af", "float8[]", "ARRAY[random(), NULL, random() * 1e300]"),
    ("ai", "int4[]", "ARRAY[(random() * 1e9)::int4, NULL, -1]"),
    ("an", "numeric(12,2)[]", "ARRAY[(random() * 1e9)::numeric(12,2), NULL]"),
    ("at", "text[]", "ARRAY[{text}, NULL, left({text}, (random() * 3)::int)]"),
    ("au", "uuid[]", "ARRAY[md5(random()::text)::uuid, NULL]"),
    ("ae", "mood[]", "ARRAY[(enum_range(null::mood))[1 + (random() * 2)::int], NULL]"),
    ("az", "timestamptz[]", "ARRAY[timestamptz '0002-01-01 00:00+00' + random() * interval '9990 years']"),
    (
        "od",
        "date",
        "CASE WHEN random() < 0.3 THEN 'infinity' ELSE date '4000-01-01 BC' + (random() * 9e6)::int END",
    ),
    (
        "ots",
        "timestamp",
        "CASE WHEN random() < 0.3 THEN '-infinity' "
        "ELSE timestamp '4000-01-01 BC' + random() * interval '90000 years' END",
    ),
    (
        "otz",
        "timestamptz",
        "CASE WHEN random() < 0.3 THEN 'infinity' "
        "ELSE timestamptz '4000-01-01 00:00+00 BC' + random() * interval '20000 years' END",
    ),
]  # fmt: skip
ODD = {"od", "ots", "otz"}
"""Python's own types cannot hold all of these."""
# 16 characters for the 16 digits of a hash.
AWKWARD = r"""translate(md5(random()::text), '0123456789abcdef', E'\\"{},\t\n ä漢🙂x\'yNz')"""


def as_psycopg(type_: str, value: Any) -> Any:
    """What is kept as exact text, as the Python object that psycopg makes of it."""
    if value is None:
        return None
    if isinstance(value, list):
        return [as_psycopg(type_.removesuffix("[]"), one) for one in value]
    read = {
        "numeric": Decimal,
        "uuid": UUID,
        "json": json.loads,
        "jsonb": json.loads,
        "time": time.fromisoformat,
    }
    return read[type_](value) if type_ in read else value


def test_random_values(connection: psycopg.Connection[Any]) -> None:
    connection.execute(SCHEMA)
    columns = ", ".join(f"{name} {type_}" for name, type_, _ in RANDOM)
    connection.execute(f"CREATE TABLE sample (id int PRIMARY KEY, {columns})")
    start(connection, "random_values")
    seed = int(os.environ.get("MESH_TEST_SEED") or random.randrange(2**32))
    print(f"MESH_TEST_SEED={seed}")
    mood = TypeInfo.fetch(connection, "mood")
    assert mood is not None
    mood.register(connection)
    connection.execute("SELECT setseed(%s)", (seed % 2**32 / 2**31 - 1,))
    drawn = [
        f"CASE WHEN random() < 0.95 THEN {expression.replace('{text}', AWKWARD)} END"
        for *_, expression in RANDOM
    ]
    connection.execute(f"INSERT INTO sample SELECT g, {', '.join(drawn)} FROM generate_series(1, 3000) g")
    relation, frame = captured_frames(connection, "random_values")["sample"]
    within = "CASE WHEN {0} >= '0001-01-01' AND {0} < '10000-01-01' THEN {0} END"
    read = [within.format(name) if name in ODD else name for name, *_ in RANDOM]
    expected = connection.execute(f"SELECT id, {', '.join(read)} FROM sample ORDER BY id").fetchall()
    found = zip(*(frame[name].to_pylist() for name in relation.row_schema.names), strict=True)
    for row, wanted in zip(found, expected, strict=True):
        for (name, type_, _), one, other in zip([("id", "int4", ""), *RANDOM], row, wanted, strict=True):
            if name == "n":
                # Its scale too, and NaN is like itself.
                assert str(as_psycopg(type_, one)) == str(other), (name, one, other)
                continue
            right = as_float4(other) if name == "f4" and other is not None else other
            assert same(as_psycopg(type_, one), right), (name, one, other)

    beyond = ", ".join(
        f"CASE WHEN ({within.format(name)}) IS NULL THEN {name}::text END" for name in sorted(ODD)
    )
    texts = connection.execute(f"SELECT {beyond} FROM sample ORDER BY id").fetchall()
    exact = [{} if one is None else dict(one) for one in frame["_exact"].to_pylist()]
    assert exact == [
        {name: text for name, text in zip(sorted(ODD), row, strict=True) if text is not None} for row in texts
    ]
    assert sum(map(len, exact)) > 3000


def test_changes_of_a_real_server(connection: psycopg.Connection[Any]) -> None:
    connection.execute(
        """
        CREATE TABLE plain (id int PRIMARY KEY, n int, long text);
        ALTER TABLE plain ALTER long SET STORAGE EXTERNAL;
        CREATE TABLE whole (id int PRIMARY KEY, n int, long text);
        ALTER TABLE whole ALTER long SET STORAGE EXTERNAL;
        ALTER TABLE whole REPLICA IDENTITY FULL;
        CREATE TABLE wide (label text PRIMARY KEY, n int);
        ALTER TABLE wide ALTER label SET STORAGE EXTERNAL;
        """
    )
    start(connection, "changes")
    for table in ("plain", "whole"):
        connection.execute(
            f"INSERT INTO {table} VALUES (1, 1, repeat('x', 5000)), (2, 2, 'short');"
            f"UPDATE {table} SET n = 10 WHERE id = 1;"
            f"UPDATE {table} SET id = 3 WHERE id = 1;"
            f"DELETE FROM {table} WHERE id = 2;"
        )
    connection.execute(
        "INSERT INTO wide SELECT string_agg(md5(g::text), '' ORDER BY g), 1 FROM generate_series(1, 80) g;"
        "UPDATE wide SET n = 2;"
        "TRUNCATE plain, whole;"
        "ALTER TABLE plain ADD more int DEFAULT 5;"
        "INSERT INTO plain VALUES (9, 9, NULL, 9)"
    )
    frames = captured_frames(connection, "changes")

    def shape(table: str) -> list[tuple[Any, ...]]:
        frame = frames[table][1]
        columns = ["_op", "id", "n", "_ordinal", "_unchanged"]
        return list(zip(*(frame[name].to_pylist() for name in columns), strict=True))

    assert frames["plain"][0].columns[3].name == "more"
    assert shape("plain") == [("c", 9, 9, frames["plain"][1]["_ordinal"][0].as_py(), None)]
    assert [row[:3] + row[4:] for row in shape("whole")] == [
        ("c", 1, 1, None),
        ("c", 2, 2, None),
        ("u", 1, 10, None),
        ("d", 1, 10, None),
        ("c", 3, 10, None),
        ("d", 2, 2, None),
        ("t", None, None, None),
    ]
    whole = frames["whole"][1]
    assert [None if one is None else len(one) for one in whole["long"].to_pylist()] == [
        5000, 5, 5000, 5000, 5000, 5, None,
    ]  # fmt: skip
    assert [None if one is None else one["n"] for one in whole["_before"].to_pylist()] == [
        None, None, 1, 10, 10, 2, None,
    ]  # fmt: skip
    wide = frames["wide"][1]
    assert wide["_op"].to_pylist() == ["c", "u"]
    assert wide["label"][1].as_py() == wide["label"][0].as_py()
    assert wide["_unchanged"].to_pylist() == [None, None]
