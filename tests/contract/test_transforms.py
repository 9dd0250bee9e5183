"""The sample organisation's transforms: right on small frames, and right by parts.

By parts means: with the inputs filtered to some keys, a transform makes exactly those keys' rows.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_assets.contract import InputDefinition, Product, TableContract, discover
from mesh_assets.contract.arrow import arrow_type
from mesh_assets.names import ProductName

DISCOVERY = discover(Path(__file__).parents[2] / "products")
DERIVED = {str(product.name): product for product in DISCOVERY.derived()}
Frames = dict[str, pl.LazyFrame]


def transform_of(product: Product) -> Callable[[Mapping[str, pl.LazyFrame]], Frames]:
    """A product's transform, its result by table."""
    function = runpy.run_path(str(product.definition.transform))["transform"]
    table = product.contract.default_table
    assert table is not None

    def transform(inputs: Mapping[str, pl.LazyFrame]) -> Frames:
        made = function(inputs)
        return dict(made) if isinstance(made, dict) else {table.name: made}

    return transform


def schema(table: TableContract) -> pl.Schema:
    fields = [(column.name, arrow_type(column) or pa.string()) for column in table.columns]
    frame = pl.from_arrow(pa.schema(fields).empty_table())
    assert isinstance(frame, pl.DataFrame)
    return frame.schema


def table_of(one: InputDefinition) -> TableContract:
    return DISCOVERY.product(one.product).contract.table(one.table)


def frames(product: Product, rows: Mapping[str, list[dict[str, Any]]]) -> Frames:
    """Inputs with the given rows; columns left out are null."""
    assert rows.keys() <= {one.name for one in product.definition.inputs}
    made: Frames = {}
    for one in product.definition.inputs:
        kinds = schema(table_of(one))
        made[one.name] = pl.LazyFrame(
            [{**dict.fromkeys(kinds), **row} for row in rows.get(one.name, [])], schema=kinds
        )
    return made


def collected(product: Product, inputs: Frames) -> dict[str, pl.DataFrame]:
    """The transform's tables, sorted by key and held against the contract's types and keys."""
    made = transform_of(product)(inputs)
    assert made.keys() == {table.name for table in product.contract.tables}
    result = {}
    for table in product.contract.tables:
        frame = made[table.name].collect()
        assert dict(frame.schema) == dict(schema(table))
        assert frame.select(table.key).is_duplicated().sum() == 0
        for column in table.columns:
            assert not (column.required and frame[column.name].null_count()), column.name
        result[table.name] = frame.sort(table.key)
    return result


def moment(day: int, hour: int = 12) -> datetime:
    return datetime(2026, 3, day, hour, tzinfo=UTC)


def order(number: int, customer: int, **more: Any) -> dict[str, Any]:
    return {
        "order_id": number,
        "customer_id": customer,
        "status": "placed",
        "currency": "EUR",
        "amount": Decimal("10.00"),
        "placed_at": moment(number),
        "promised_on": date(2026, 3, 10),
        **more,
    }


def payment(number: int, order_id: int | None, amount: str = "10.00", **more: Any) -> dict[str, Any]:
    return {
        "transaction_id": number,
        "order_id": order_id,
        "amount": Decimal(amount),
        "kind": "payment",
        "value_date": date(2026, 3, 1),
        **more,
    }


def customer(number: int) -> dict[str, Any]:
    return {"customer_id": number, "segment": "consumer", "created_at": moment(1)}


@pytest.mark.parametrize("name", DERIVED)
def test_nothing_makes_nothing(name: str) -> None:
    product = DERIVED[name]
    assert all(frame.is_empty() for frame in collected(product, frames(product, {})).values())


def test_customer_360() -> None:
    product = DERIVED["sales.customer_360"]
    inputs = frames(
        product,
        {
            "customers": [customer(1), customer(2)],
            "orders": [
                order(1, 1, status="delivered"),
                order(2, 1, currency="CHF"),
                order(3, 1, status="cancelled"),
            ],
            "lines": [
                {"order_id": 1, "line_number": 1, "quantity": 2},
                {"order_id": 1, "line_number": 2, "quantity": 3},
                {"order_id": 2, "line_number": 1, "quantity": 4},
                {"order_id": 3, "line_number": 1, "quantity": 100},
            ],
            "shipments": [
                {"shipment_id": "a", "order_id": 1, "status": "delivered"},
                {"shipment_id": "b", "order_id": 2, "status": "lost"},
                {"shipment_id": "c", "order_id": 99, "status": "lost"},
            ],
            "payments": [
                payment(1, 1, "10.00"),
                payment(2, 1, "-10.00"),
                payment(3, 2, "5.50"),
                payment(4, 2, "7.00", reversed_by=5),
                payment(5, 2, "7.00", kind="reversal"),
                payment(6, None),
            ],
        },
    )
    made = collected(product, inputs)
    first, second = made["customer_360"].to_dicts()
    assert first == {
        "customer_id": 1,
        "segment": "consumer",
        "marketing_consent": None,
        "registered_at": moment(1),
        "order_count": 2,
        "open_order_count": 1,
        "piece_count": 9,
        "shipment_count": 2,
        "lost_shipment_count": 1,
        "total": Decimal("15.50"),
        "first_order_at": moment(1),
        "last_order_at": moment(3),
    }
    assert (second["customer_id"], second["order_count"], second["total"]) == (2, 0, Decimal("0.00"))
    assert second["first_order_at"] is None
    assert made["spending"].rows() == [(1, "CHF", 1, Decimal("10.00")), (1, "EUR", 1, Decimal("10.00"))]


def test_revenue() -> None:
    product = DERIVED["finance.revenue"]
    later = date(2026, 3, 2)
    inputs = frames(
        product,
        {
            "orders": [order(1, 1, amount=Decimal("20.00")), order(2, 1, currency="CHF")],
            "transactions": [
                payment(1, 1, "12.00"),
                payment(2, 1, "8.00"),
                payment(3, 1, "-8.00"),
                payment(4, 2, "3.00", value_date=later),
                payment(5, 2, "3.00", value_date=later, reversed_by=6),
                payment(6, 2, "3.00", value_date=later, kind="reversal"),
                payment(7, 99, "1.00", value_date=later),
            ],
        },
    )
    assert collected(product, inputs)["revenue"].rows() == [
        (date(2026, 3, 1), "EUR", 2, Decimal("20.00"), Decimal("40.00")),
        (later, "CHF", 1, Decimal("3.00"), Decimal("10.00")),
        (later, "XXX", 1, Decimal("1.00"), Decimal("0.00")),
    ]


def test_late_shipments() -> None:
    product = DERIVED["distribution.late_shipments"]
    shipment = {"order_id": 1, "warehouse_id": 4, "status": "delivered", "carrier": "Rapid"}
    inputs = frames(
        product,
        {
            "orders": [order(1, 1), order(2, 1, promised_on=None)],
            "shipments": [
                {**shipment, "shipment_id": "late", "delivered_at": moment(12, 1)},
                {**shipment, "shipment_id": "in time", "delivered_at": moment(10, 23)},
                {**shipment, "shipment_id": "on its way", "status": "shipped"},
                {**shipment, "shipment_id": "no promise", "order_id": 2, "delivered_at": moment(20)},
                {**shipment, "shipment_id": "no order", "order_id": 9, "delivered_at": moment(20)},
            ],
        },
    )
    assert collected(product, inputs)["late_shipments"].rows() == [
        ("late", 1, 4, "Rapid", date(2026, 3, 10), moment(12, 1), 2)
    ]


# -- by parts

SMALL = st.integers(1, 4)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "customer_id": SMALL,
    "order_id": SMALL,
    "line_number": SMALL,
    "quantity": SMALL,
    "warehouse_id": SMALL,
    "reversed_by": st.none() | SMALL,
    "shipment_id": st.sampled_from("abcdef"),
    "currency": st.sampled_from(["EUR", "CHF"]),
    "kind": st.sampled_from(["payment", "reversal"]),
    "segment": st.just("consumer"),
    "amount": st.integers(-500, 500).map(lambda cents: Decimal(cents).scaleb(-2)),
    "value_date": st.integers(1, 3).map(lambda day: date(2026, 3, day)),
    "promised_on": st.none() | st.integers(1, 9).map(lambda day: date(2026, 3, day)),
    "delivered_at": st.integers(1, 9).map(moment),
    "placed_at": st.integers(1, 9).map(moment),
    "created_at": st.integers(1, 9).map(moment),
}
STATUSES = {
    "orders": st.sampled_from(["placed", "delivered", "cancelled"]),
    "shipments": st.sampled_from(["delivered", "lost"]),
}


@st.composite
def rows(draw: st.DrawFn, one: InputDefinition) -> list[dict[str, Any]]:
    """Rows of an input with distinct keys."""
    table = table_of(one)
    values = {**VALUES, **({"status": STATUSES[table.name]} if table.name in STATUSES else {})}
    if one.product == ProductName("finance", "transactions"):
        values["transaction_id"] = st.integers(1, 9)
        values["order_id"] = st.none() | SMALL
    columns = {column.name: values[column.name] for column in table.columns if column.name in values}
    found = draw(st.lists(st.fixed_dictionaries(columns), max_size=8))
    return list({tuple(row[name] for name in table.key): row for row in found}.values())


def by_keys(product: Product, inputs: Frames, keys: pl.LazyFrame) -> Frames:
    """The inputs filtered to keys of the output, by the declared key paths."""
    kept: Frames = {}
    waiting = list(product.definition.inputs)
    while waiting:
        one = waiting.pop(0)
        if one.key is not None:
            kept[one.name] = inputs[one.name].join(
                keys, left_on=list(one.key.values()), right_on=list(one.key), how="semi"
            )
            continue
        assert one.through is not None
        if one.through.input not in kept:
            waiting.append(one)
            continue
        kept[one.name] = inputs[one.name].join(
            kept[one.through.input],
            left_on=list(one.through.on),
            right_on=list(one.through.on.values()),
            how="semi",
        )
    return kept


@pytest.mark.parametrize("name", DERIVED)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_part_is_made_of_its_part_of_the_inputs(name: str, data: st.DataObject) -> None:
    product = DERIVED[name]
    inputs = frames(product, {one.name: data.draw(rows(one)) for one in product.definition.inputs})
    path = next(one.key for one in product.definition.inputs if one.key is not None)
    kinds = schema(product.contract.tables[0])
    keys = pl.LazyFrame(
        {column: data.draw(st.lists(VALUES[read], max_size=2)) for column, read in path.items()},
        schema={column: kinds[column] for column in path},
    )
    whole = collected(product, inputs)
    part = collected(product, by_keys(product, inputs, keys))
    for table, frame in whole.items():
        expected = frame.join(keys.collect(), on=list(path), how="semi").sort(
            product.contract.table(table).key
        )
        assert part[table].equals(expected)
