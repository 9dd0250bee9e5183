"""Looking into transforms without data: what they read and make, and what is wrong with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mesh_assets.contract import Discovery, Product, discover
from mesh_assets.inspection import inspect
from mesh_assets.names import ProductName
from mesh_assets.readers import column_readers, input_tables, table_readers
from tests.contract.folder import Folder
from tests.waiting import PATIENCE_SECONDS

SAMPLE = discover(Path(__file__).parents[2] / "products")
OVERVIEW = ProductName("sales", "overview")
ORDERS = ProductName("sales", "orders")


def product(discovery: Discovery, name: ProductName = OVERVIEW) -> Product:
    return discovery.product(name)


def derived(folder: Path, transform: str) -> tuple[Discovery, Product]:
    products = Folder(folder / "products")
    products.domain("sales")
    products.product("sales", "orders")
    products.derived("sales.overview", "a: {product: sales.orders, key: {id: id}}", transform=transform)
    discovery = products.discover()
    return discovery, product(discovery)


def test_what_the_samples_read() -> None:
    readers = column_readers(SAMPLE, SAMPLE.product(ORDERS).contract)
    said = {place: sorted(map(str, names)) for place, names in readers.items()}
    assert said["orders", "amount"] == ["finance.revenue", "sales.customer_360"]
    assert said["orders", "promised_on"] == ["distribution.late_shipments"]
    assert said["order_lines", "quantity"] == ["sales.customer_360"]
    assert ("orders", "note") not in said
    assert ("orders", None) not in said
    assert table_readers(SAMPLE, ORDERS) == {
        (table, None): names for table, names in SAMPLE.reads(ORDERS).items()
    }


def test_what_the_samples_make_is_what_they_promise() -> None:
    for one in SAMPLE.derived():
        looked = inspect(one, input_tables(SAMPLE, one))
        assert looked.error == ""
        assert {table: set(columns) for table, columns in looked.makes.items()} == {
            table.name: {column.name for column in table.columns} for table in one.contract.tables
        }
        assert not any(looked.differs.values())


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise RuntimeError('no rates today')", "transform.py:2: RuntimeError: no rates today"),
        ("return inputs['b']", "transform.py:2: KeyError: 'b'"),
        ("return inputs['a'].select('amuont')", "ColumnNotFoundError: "),
        ("return None", "it returned NoneType, not a LazyFrame"),
        ("import os; os._exit(3)", "its process failed: "),
        ("while True: pass", "it did not return its query plan within 3 s"),
    ],
)
def test_what_is_wrong_with_a_transform(tmp_path: Path, body: str, said: str) -> None:
    discovery, one = derived(tmp_path, f"def transform(inputs):\n    {body}\n")
    seconds = 3 if "while" in body else PATIENCE_SECONDS
    looked = inspect(one, input_tables(discovery, one), max_seconds=seconds)
    assert said in looked.error


def test_a_column_beside_the_exact_text_of_the_same_name_is_an_error(tmp_path: Path) -> None:
    """As where an input's old contract had a column that its consumer names as an exact text now."""
    discovery, one = derived(tmp_path, "def transform(inputs):\n    return inputs['a']\n")
    tables = input_tables(discovery, one)
    (first, *_), table = tables["a"].columns, tables["a"]
    beside = replace(first, name=f"{first.name}_exact")
    tables["a"] = replace(table, columns=(*table.columns, beside))
    inputs = tuple(replace(each, exact=(first.name,)) for each in one.definition.inputs)
    asked = replace(one, definition=replace(one.definition, inputs=inputs))
    assert "have no schema" in inspect(asked, tables).error


def test_whoever_cannot_be_asked_is_taken_to_read_everything(tmp_path: Path) -> None:
    discovery, _ = derived(tmp_path, "def transform(inputs):\n    raise RuntimeError\n")
    assert column_readers(discovery, product(discovery, ORDERS).contract) == {("orders", None): {OVERVIEW}}


def test_a_transform_may_print(tmp_path: Path) -> None:
    discovery, one = derived(
        tmp_path, "print('loaded')\ndef transform(inputs):\n    print(inputs)\n    return inputs['a']\n"
    )
    looked = inspect(one, input_tables(discovery, one))
    assert (looked.error, looked.reads, looked.makes) == (
        "",
        {"a": ("id",)},
        {"overview": {"id": "Int64"}},
    )
    assert looked.differs == {"overview": {}}


def test_types_that_differ_are_told(tmp_path: Path) -> None:
    transform = (
        "import polars as pl\n\n"
        "def transform(inputs):\n    return inputs['a'].select(pl.col('id').cast(pl.Int32), note=pl.lit(1))\n"
    )
    discovery, one = derived(tmp_path, transform)
    assert inspect(one, input_tables(discovery, one)).differs == {
        "overview": {"id": "Int64", "note": "String"}
    }


def test_a_consumer_that_a_new_contract_breaks_still_reads_the_old_one(tmp_path: Path) -> None:
    products = Folder(tmp_path / "products")
    products.domain("sales")
    orders = products.product("sales", "orders") / "contract.yaml"
    products.derived("sales.overview", "a: {product: sales.orders, key: {id: id}}")
    old = product(products.discover(), ORDERS).contract
    orders.write_text(orders.read_text().replace("- name: id", "- name: number"))
    after = products.discover()
    assert OVERVIEW not in after.products
    assert column_readers(after, old) == {("orders", "id"): {OVERVIEW}}
