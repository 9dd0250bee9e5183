"""The sample organisation's derived products: every column's origin is known."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl
import pyarrow as pa
import pytest

from mesh_assets.contract.arrow import arrow_type
from mesh_assets.contract.discovery import Discovery, discover
from mesh_assets.lineage.columns import ColumnSource, everything
from mesh_assets.lineage.transform import transform_columns
from mesh_assets.names import ProductName
from mesh_assets.settings import Settings

DIRECT = {
    "sales.customer_360": {
        "customer_360.customer_id": {"customers.customer_id IDENTITY"},
        "customer_360.piece_count": {"lines.quantity AGGREGATION"},
        "customer_360.total": {"payments.amount AGGREGATION"},
        "spending.ordered": {"orders.amount AGGREGATION"},
    },
    "finance.revenue": {
        "revenue.ordered": {"orders.amount AGGREGATION"},
        "revenue.received": {"transactions.amount AGGREGATION"},
    },
    "distribution.late_shipments": {
        "late_shipments.promised_on": {"orders.promised_on IDENTITY"},
        "late_shipments.days_late": {
            "orders.promised_on TRANSFORMATION",
            "shipments.delivered_at TRANSFORMATION",
        },
    },
}


@pytest.fixture(scope="module")
def discovery() -> Discovery:
    return discover(Settings.model_fields["products"].default)


def schemas(discovery: Discovery, name: ProductName) -> Mapping[str, pl.Schema]:
    found = {}
    for one in discovery.product(name).definition.inputs:
        columns = discovery.product(one.product).contract.table(one.table).columns
        empty = pa.schema([(column.name, arrow_type(column)) for column in columns]).empty_table()
        frame = pl.from_arrow(empty)
        assert isinstance(frame, pl.DataFrame)
        found[one.name] = frame.schema
    return found


@pytest.mark.parametrize("text", DIRECT)
def test_columns_of_the_samples(discovery: Discovery, text: str) -> None:
    name = ProductName.parse(text)
    product, inputs = discovery.product(name), schemas(discovery, name)
    path, default = product.definition.transform, product.contract.default_table
    assert path is not None
    messages: list[str] = []
    found = transform_columns(path, inputs, default.name if default else "", log=messages.append)
    assert found is not None, messages
    every = {(one.input, one.column) for one in everything(inputs, ["x"])["x"]}
    for table in product.contract.tables:
        assert {column.name for column in table.columns} <= set(found[table.name])
        for sources in found[table.name].values():
            assert {(one.input, one.column) for one in sources} < every
    for column, expected in DIRECT[text].items():
        table_name, _, column_name = column.partition(".")
        assert direct(found[table_name][column_name]) == expected


def direct(sources: tuple[ColumnSource, ...]) -> set[str]:
    return {f"{one.input}.{one.column} {one.subtype}" for one in sources if one.kind == "DIRECT"}
