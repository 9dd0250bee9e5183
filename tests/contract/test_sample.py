"""The sample organisation's own contracts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import psycopg
import pytest
import yaml

from mesh_assets.contract import Contract, Discovery, TableContract, discover
from mesh_assets.contract.physical import PhysicalType

ROOT = Path(__file__).parents[2]
ODCS_31 = json.loads((Path(__file__).parent / "odcs-json-schema-v3.1.0.json").read_text())
RESTRICTED = {"email", "full_name", "address", "iban", "holder", "label", "note", "reference"}
DISCOVERY = discover(ROOT / "products")
CONTRACTS = [product.contract for product in DISCOVERY.products.values()]
TABLES = [(contract, table) for contract in CONTRACTS for table in contract.tables]
CAPTURED = [
    table
    for product in DISCOVERY.products.values()
    if not product.derived
    for table in product.contract.tables
]


@pytest.fixture
def discovery() -> Discovery:
    return DISCOVERY


def test_ten_products_of_three_domains(discovery: Discovery) -> None:
    assert discovery.broken == ()
    assert [str(name) for name in discovery.products] == [
        "distribution.late_shipments",
        "distribution.shipments",
        "distribution.stock",
        "distribution.warehouses",
        "finance.accounts",
        "finance.revenue",
        "finance.transactions",
        "sales.customer_360",
        "sales.customers",
        "sales.orders",
    ]
    assert set(discovery.sources()) == {("distribution", "app"), ("finance", "app"), ("sales", "app")}


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: str(contract.name))
def test_a_contract_tells_people_what_they_need(contract: Contract) -> None:
    jsonschema.Draft201909Validator(ODCS_31).validate(yaml.safe_load(contract.path.read_text()))
    assert contract.description
    assert contract.usage
    assert contract.limitations
    assert contract.owners[0].startswith("team:")
    assert {"latency", "frequency", "retention"} <= {promise.name for promise in contract.sla}
    assert contract.support
    assert contract.quality
    assert contract.default_table is not None
    assert contract.default_table.name == contract.product


def test_three_products_cross_domains(discovery: Discovery) -> None:
    derived = discovery.derived()
    assert [str(product.name) for product in derived] == [
        "distribution.late_shipments",
        "finance.revenue",
        "sales.customer_360",
    ]
    for product in derived:
        assert all(one.keyed for one in product.definition.inputs)
        assert {one.product.domain for one in product.definition.inputs} > {product.name.domain}


@pytest.mark.parametrize(("contract", "table"), TABLES, ids=lambda value: getattr(value, "physical_name", ""))
def test_every_column_is_described_typed_and_classified(contract: Contract, table: TableContract) -> None:
    assert table.description
    for column in table.columns:
        assert column.description.endswith("."), column.name
        assert column.physical_type
        assert column.classification
        assert (column.classification == "restricted") == (column.name in RESTRICTED), column.name


def test_the_applications_create_what_the_contracts_promise(discovery: Discovery, database_url: str) -> None:
    """Names, types, nullability and keys of every table, as the source's catalog has them."""
    folder = ROOT / "mesh_assets" / "local" / "organisation"
    with psycopg.connect(database_url, autocommit=True) as connection:
        for domain in discovery.domains:
            connection.execute((folder / f"{domain}.sql").read_bytes())
        for table in CAPTURED:
            rows = connection.execute(
                """
                SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                       array_position(i.indkey::smallint[], a.attnum) AS place
                FROM pg_attribute a
                LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
                WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped
                ORDER BY a.attnum
                """,
                [table.physical_name],
            ).fetchall()
            live: list[tuple[Any, ...]] = [tuple(row[:3]) for row in rows]
            promised = [(column.name, column.physical_type, column.required) for column in table.columns]
            assert [(name, PhysicalType.parse(kind), required) for name, kind, required in promised] == [
                (name, PhysicalType.parse(kind), required) for name, kind, required in live
            ]
            places = sorted((place, name) for name, _, _, place in rows if place is not None)
            assert table.key == tuple(name for _, name in places)
