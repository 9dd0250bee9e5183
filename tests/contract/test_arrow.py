"""A contract's columns as Arrow types, and compared with a source's live table."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from mesh_assets.cdc.relation import Column, Relation
from mesh_assets.cdc.type import PostgresType, builtin
from mesh_assets.cdc.type import arrow_type as source_arrow_type
from mesh_assets.contract.arrow import Mismatch, arrow_type, compare
from mesh_assets.contract.model import ColumnContract, TableContract

TABLE = TableContract(
    name="orders",
    physical_name="shop.orders",
    columns=(
        ColumnContract("order_id", "integer", "bigint", required=True, key=True, line=5),
        ColumnContract("amount", "number", "numeric(12,2)", required=True, line=9),
        ColumnContract("note", "string", "", line=12),
    ),
    key=("order_id",),
    line=3,
)


def column(name: str, oid: int, typmod: int = -1, *, key: bool = False, nullable: bool = True) -> Column:
    kind = builtin(oid, typmod)
    assert kind is not None
    return Column(name, kind, source_arrow_type(kind), key=key, nullable=nullable)


RELATION = Relation(
    oid=1,
    schema="shop",
    name="orders",
    identity="d",
    columns=(
        column("order_id", 20, key=True, nullable=False),
        column("amount", 1700, 786438, nullable=False),
        column("note", 25),
    ),
)


def with_column(changed: Column) -> Relation:
    return replace(
        RELATION, columns=tuple(changed if old.name == changed.name else old for old in RELATION.columns)
    )


def only(mismatches: list[Mismatch]) -> Mismatch:
    (mismatch,) = mismatches
    return mismatch


def test_a_table_as_promised_has_no_mismatch() -> None:
    assert compare(TABLE, RELATION) == []


def test_a_missing_column_blocks() -> None:
    mismatch = only(compare(TABLE, replace(RELATION, columns=RELATION.columns[:2])))
    assert (mismatch.kind, mismatch.blocking, mismatch.line) == ("missing column", True, 12)
    assert str(mismatch) == "column 'note' of the contract is not in shop.orders"


def test_a_further_column_does_not_block() -> None:
    more = replace(RELATION, columns=(*RELATION.columns, column("gift", 16)))
    mismatch = only(compare(TABLE, more))
    assert (mismatch.kind, mismatch.blocking) == ("extra column", False)
    assert str(mismatch) == "column 'gift' (boolean) of shop.orders is not in the contract"


def test_another_type_blocks() -> None:
    mismatch = only(compare(TABLE, with_column(column("amount", 701, nullable=False))))
    assert (mismatch.kind, mismatch.blocking, mismatch.line) == ("type", True, 9)
    assert str(mismatch) == (
        "column 'amount' is numeric(12,2) in the contract and double precision in shop.orders"
    )


def test_without_a_physical_type_the_logical_type_decides() -> None:
    assert compare(TABLE, with_column(column("note", 1043))) == []
    assert only(compare(TABLE, with_column(column("note", 23)))).kind == "type"


def test_a_domain_is_what_it_is_over() -> None:
    base = builtin(1700, 786438)
    assert base is not None
    money = PostgresType(99_999, -1, "shop.money", base=base)
    relation = with_column(Column("amount", money, source_arrow_type(money), nullable=False))
    assert compare(TABLE, relation) == []
    named = replace(
        TABLE, columns=(TABLE.columns[0], replace(TABLE.columns[1], physical_type="money_"), TABLE.columns[2])
    )
    assert only(compare(named, relation)).kind == "type"


def test_null_where_none_was_promised_does_not_block() -> None:
    mismatch = only(compare(TABLE, with_column(column("amount", 1700, 786438))))
    assert (mismatch.kind, mismatch.blocking) == ("nullability", False)
    assert "shop.orders lets it be null" in str(mismatch)


@pytest.mark.parametrize(("identity", "count"), [("d", 1), ("i", 1), ("n", 1), ("f", 0)])
def test_the_key_must_be_the_identity_unless_that_is_full(identity: str, count: int) -> None:
    other = with_column(column("order_id", 20, nullable=False))
    mismatches = compare(TABLE, replace(other, identity=identity))
    assert len(mismatches) == count
    if mismatches:
        assert (mismatches[0].kind, mismatches[0].blocking) == ("key", True)
        assert str(mismatches[0]) == "the contract's key is order_id, but shop.orders has no replica identity"


def test_the_order_of_key_columns_does_not_matter() -> None:
    table = replace(TABLE, key=("amount", "order_id"))
    relation = with_column(column("amount", 1700, 786438, key=True, nullable=False))
    assert compare(table, relation) == []
    assert "is identified by order_id, amount" in str(only(compare(TABLE, relation)))


@pytest.mark.parametrize(
    ("logical", "expected"),
    [
        ("string", pa.string()),
        ("boolean", pa.bool_()),
        ("date", pa.date32()),
        ("object", pa.string()),
        ("integer", None),
        ("timestamp", None),
    ],
)
def test_the_logical_type_alone_decides_where_it_can(logical: str, expected: pa.DataType | None) -> None:
    assert arrow_type(ColumnContract("value", logical)) == expected
