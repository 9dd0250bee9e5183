"""The JSON Schema of change events: valid by itself, and right about events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mesh_assets.contract import Contract, discover, load

ROOT = Path(__file__).parents[2]
CONTRACTS = [product.contract for product in discover(ROOT / "products").products.values()]
TABLES = [(contract, table.name) for contract in CONTRACTS for table in contract.tables]
ORDERS = next(contract for contract in CONTRACTS if contract.product == "orders")
SCHEMA = ORDERS.json_schema("orders")
ROW: dict[str, Any] = {
    "order_id": 2**60,
    "customer_id": 7,
    "status": "placed",
    "currency": "EUR",
    "amount": "12.50",
    "placed_at": "2026-01-31T12:00:00.000000Z",
    "promised_on": None,
    "tags": ["gift", None],
    "note": None,
    "updated_at": "2026-01-31T12:00:00.000000Z",
}
EVENT: dict[str, Any] = {
    "op": "c",
    "before": None,
    "after": ROW,
    "seq": 0,
    "position": 184549376,
    "ordinal": 0,
    "transaction": 733,
    "committed_at": "2026-01-31T12:00:00.000000Z",
    "schema_version": 1,
    "unchanged": None,
    "exact": None,
}


def fits(event: dict[str, Any], schema: dict[str, Any] = SCHEMA) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(event))


@pytest.mark.parametrize(("contract", "table"), TABLES, ids=lambda value: str(getattr(value, "name", value)))
def test_it_is_a_schema_with_everything_the_contract_says(contract: Contract, table: str) -> None:
    schema = contract.json_schema(table)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$id"] == f"urn:mesh:event-schema:{contract.domain}:{contract.product}:{table}"
    assert schema["x-key"] == list(contract.table(table).key)
    for column in contract.table(table).columns:
        described = schema["$defs"]["row"]["properties"][column.name]
        assert described["description"] == column.description
        assert described["x-classification"] == column.classification
        assert described["x-physical-type"] == column.physical_type


def test_ids_differ() -> None:
    ids = [contract.json_schema(table)["$id"] for contract, table in TABLES]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"op": "r", "transaction": None},
        {"op": "u", "before": {"order_id": 1}},
        {"op": "u", "before": ROW},
        {"op": "d", "before": {"order_id": 1}, "after": None},
        {"op": "t", "after": None},
        {"after": ROW | {"gift": True}},
        {"after": ROW | {"promised_on": "2026-02-01"}},
        {"after": ROW | {"placed_at": None}, "exact": {"placed_at": "infinity"}},
        {"op": "u", "after": ROW | {"status": None}, "unchanged": ["note", "status"]},
        {"something": "later"},
    ],
)
def test_events_that_fit(change: dict[str, Any]) -> None:
    assert fits(EVENT | change)


@pytest.mark.parametrize(
    "change",
    [
        {"op": "x"},
        {"after": None},
        {"op": "d"},
        {"op": "d", "before": {"order_id": 1}},
        {"op": "d", "before": {"customer_id": 1}, "after": None},
        {"op": "t"},
        {"position": -1},
        {"position": "0/1"},
        {"committed_at": None},
        {"after": ROW | {"order_id": None}},
        {"after": ROW | {"order_id": 2**63}},
        {"after": ROW | {"amount": 12.5}},
        {"after": ROW | {"amount": "12.5"}},
        {"after": ROW | {"amount": "1234567890123.00"}},
        {"after": ROW | {"status": None}},
        {"after": ROW | {"status": None}, "unchanged": ["note"]},
        {"after": ROW | {"placed_at": None}, "exact": {"updated_at": "infinity"}},
        {"after": ROW | {"currency": "EURO"}},
        {"after": {name: value for name, value in ROW.items() if name != "note"}},
        {"unchanged": "note"},
        {"exact": {"note": 1}},
    ],
)
def test_events_that_do_not(change: dict[str, Any]) -> None:
    assert not fits(EVENT | change)


def test_types_keep_their_values() -> None:
    contract = load(Path(__file__).parent / "fixtures" / "odcs_3_2" / "contract.yaml")
    row = contract.json_schema("returns")["$defs"]["row"]["properties"]
    assert row["order_id"] == {
        "type": "integer",
        "minimum": -(2**63),
        "maximum": 2**63 - 1,
        "x-physical-type": "int8",
    }
    assert row["reason"]["anyOf"] == [{"type": "string", "enum": ["broken", "late"]}, {"type": "null"}]
    assert row["embedding"]["items"]["anyOf"][-1] == {"type": "null"}


@pytest.mark.parametrize(
    ("physical", "fitting", "unfit"),
    [
        ("numeric(4,4)", ["0.1234", "-0.0001"], ["0.12345", "1"]),
        ("numeric(3,0)", ["-12", "999"], ["1.0", "1000", "NaN"]),
        ("numeric", ["1", "-1.5", "NaN", "-Infinity"], ["one", "1e5", ""]),
        ("numeric(3,-2)", ["12300", "NaN"], ["x"]),
        ("numeric(60,2)", ["1.00", "NaN"], ["x"]),
        ("double precision", [1.5, 3, "NaN", "-Infinity"], ["1.5", "nan"]),
        ("smallint", [-32768, 32767], [32768, 1.5, "1"]),
        ("timestamp", ["2026-01-31T12:00:00.123456"], ["2026-01-31T12:00:00Z", "2026-01-31"]),
        ("varchar(3)", ["abc", ""], ["abcd"]),
        ("numeric(a,b)", ["1"], [1]),
        ("boolean", [True], [0, "t"]),
        ("integer[]", [[1, None], []], [["1"], 1]),
        ("jsonb", ['{"a": 1}'], [{"a": 1}]),
    ],
)
def test_values(physical: str, fitting: list[Any], unfit: list[Any], tmp_path: Path) -> None:
    text = (Path(__file__).parent / "fixtures" / "minimal" / "contract.yaml").read_text()
    logical = {"integer[]": "array", "boolean": "boolean", "timestamp": "timestamp", "jsonb": "object"}.get(
        physical, "string" if "char" in physical else "integer" if "int" in physical else "number"
    )
    path = tmp_path / "contract.yaml"
    path.write_text(
        text + f"      - name: value\n        logicalType: {logical}\n        physicalType: {physical}\n"
    )
    schema = load(path).json_schema("returns")
    for value in [*fitting, None]:
        assert fits(EVENT | {"after": {"return_id": 1, "value": value}}, schema), value
    for value in unfit:
        assert not fits(EVENT | {"after": {"return_id": 1, "value": value}}, schema), value
