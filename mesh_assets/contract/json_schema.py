"""JSON Schema (draft 2020-12) of the change events of one table, derived from its contract.

The schema says what the change log keeps, as JSON::

    {"op": "u", "before": null, "after": {"order_id": 1, "amount": "12.50", …},
     "seq": 7, "position": 184549376, "ordinal": 0, "transaction": 733,
     "committed_at": "2026-01-31T12:00:00.000000Z", "schema_version": 1,
     "unchanged": ["note"], "exact": null}

Numbers that JSON would round (numeric) are exact text. A value that its column's type cannot
hold (infinity, BC, NaN of a numeric) is null in the row and stands, exactly, in ``exact``. A
large value that a change did not touch is null in the row and its column in ``unchanged``.
Columns that the source adds later are allowed; so are further fields of the event. The schema
holds for every accepted change; one that broke a promise is in the log too, marked as rejected.
"""

from __future__ import annotations

from typing import Any

from mesh_assets import names
from mesh_assets.contract.model import ColumnContract, Contract, TableContract
from mesh_assets.contract.physical import PhysicalType

DIALECT = "https://json-schema.org/draft/2020-12/schema"
OPERATIONS = {"r": "read by a snapshot", "c": "create", "u": "update", "d": "delete", "t": "truncate"}

_INTEGER_BITS = {"smallint": 16, "integer": 32, "bigint": 64}
_INT64 = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
_WIDEST_DECIMAL = 38
_NUMERIC = r"^-?[0-9]+(\.[0-9]+)?$"
_DATE = {"type": "string", "format": "date"}
_TIMESTAMP = {"type": "string", "format": "date-time"}
_LOCAL_TIMESTAMP = {
    "type": "string",
    "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?$",
}
_FLOAT = {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}
_JSON_TEXT = {"type": "string", "contentMediaType": "application/json"}
_TYPES: dict[str, dict[str, Any]] = {
    "real": _FLOAT,
    "double precision": _FLOAT,
    "boolean": {"type": "boolean"},
    "uuid": {"type": "string", "format": "uuid"},
    "bytea": {"type": "string", "contentEncoding": "base64"},
    "date": _DATE,
    "json": _JSON_TEXT,
    "jsonb": _JSON_TEXT,
    "oid": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
}
_BY_LOGICAL_TYPE: dict[str, dict[str, Any]] = {
    "integer": {"type": "integer"},
    "number": {"anyOf": [{"type": "number"}, {"type": "string", "pattern": _NUMERIC}]},
    "boolean": {"type": "boolean"},
    "date": _DATE,
    "timestamp": {"anyOf": [_TIMESTAMP, _LOCAL_TIMESTAMP]},
    "array": {"anyOf": [{"type": "array"}, _JSON_TEXT]},
    "vector": {"type": "array", "items": {"type": "number"}},
}
# The formats of ODCS that are formats of JSON Schema too.
_FORMATS = {"email", "uuid", "uri", "hostname", "ipv4", "ipv6"}
# Types of a fixed length: never stored out of line, so never left out as unchanged, and without
# values beyond their Arrow type.
_ALWAYS_PRESENT = {*_INTEGER_BITS, "oid", "real", "double precision", "boolean", "uuid"}


def event_schema(contract: Contract, table: TableContract) -> dict[str, Any]:
    """The schema of one table's change events.

    Args:
        contract: the product's contract.
        table: one of its tables.

    Returns:
        A JSON Schema whose ``$id`` follows from the product's and table's names alone.
    """
    return {
        "$schema": DIALECT,
        "$id": names.event_schema_id(contract.name, table.name),
        "title": f"Changes of {table.business_name or table.name}",
        "description": table.description,
        "x-product": str(contract.name),
        "x-table": table.name,
        "x-contract-version": contract.version,
        "x-key": list(table.key),
        "type": "object",
        "required": ["op", "before", "after", "position", "ordinal", "committed_at", "schema_version"],
        "properties": {
            "op": {
                "enum": list(OPERATIONS),
                "description": "; ".join(f"{op}: {meaning}" for op, meaning in OPERATIONS.items()),
            },
            "before": {
                "anyOf": [{"$ref": "#/$defs/image"}, {"type": "null"}],
                "description": "The row before the change as far as the source tells it, often only its key.",
            },
            "after": {
                "anyOf": [{"$ref": "#/$defs/row"}, {"type": "null"}],
                "description": "The row after the change; null when it was deleted.",
            },
            "seq": _INT64 | {"description": "Place of the change in this table's change log, dense from 0."},
            "position": _INT64 | {"description": "Commit position at the source."},
            "ordinal": _INT64 | {"description": "Place of the change in its transaction, from 0."},
            "transaction": {
                "anyOf": [_INT64, {"type": "null"}],
                "description": "Number of the transaction at the source.",
            },
            "committed_at": _TIMESTAMP | {"description": "When the source committed the transaction."},
            "schema_version": _INT64 | {"description": "Version of the table's schema at the source."},
            "unchanged": {
                "anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}],
                "description": "Columns that the change left as they were and whose value is not repeated.",
            },
            "exact": {
                "anyOf": [
                    {"type": "object", "additionalProperties": {"type": "string"}},
                    {"type": "null"},
                ],
                "description": "Column -> its exact text, for values that the column's type cannot hold.",
            },
        },
        "allOf": [*_shape_of_operations(), *_presence(table)],
        "$defs": {
            "row": {
                "type": "object",
                "description": table.description,
                "required": [column.name for column in table.columns],
                "properties": {
                    column.name: _column(column, nullable=not _never_null(column)) for column in table.columns
                },
            },
            "image": {
                "type": "object",
                "description": "A row of which only some columns may be known.",
                "required": list(table.key),
                "properties": {column.name: _column(column, nullable=True) for column in table.columns},
            },
        },
    }


def _shape_of_operations() -> list[dict[str, Any]]:
    def when(ops: list[str], **images: str) -> dict[str, Any]:
        return {
            "if": {"properties": {"op": {"enum": ops}}},
            "then": {"properties": {name: {"type": kind} for name, kind in images.items()}},
        }

    return [
        when(["r", "c", "u"], after="object"),
        when(["d"], before="object", after="null"),
        when(["t"], before="null", after="null"),
    ]


def _never_null(column: ColumnContract) -> bool:
    physical = PhysicalType.parse(column.physical_type)
    return column.required and physical.name in _ALWAYS_PRESENT and not physical.array


def _presence(table: TableContract) -> list[dict[str, Any]]:
    """A required value is in the row, or the event says why it is not."""
    rules: list[dict[str, Any]] = []
    for column in table.columns:
        if not column.required or _never_null(column):
            continue
        rules.append(
            {
                "anyOf": [
                    {"properties": {"after": {"properties": {column.name: {"not": {"type": "null"}}}}}},
                    {
                        "required": ["unchanged"],
                        "properties": {"unchanged": {"type": "array", "contains": {"const": column.name}}},
                    },
                    {
                        "required": ["exact"],
                        "properties": {"exact": {"type": "object", "required": [column.name]}},
                    },
                ]
            }
        )
    return rules


def _column(column: ColumnContract, *, nullable: bool) -> dict[str, Any]:
    physical = PhysicalType.parse(column.physical_type)
    value = _value(column, physical)
    if physical.array and column.physical_type:
        value = {"type": "array", "items": _or_null(_scalar(physical))}
    schema = _or_null(value) if nullable else dict(value)
    if column.business_name:
        schema["title"] = column.business_name
    if column.description:
        schema["description"] = column.description
    if column.classification:
        schema["x-classification"] = column.classification
    if column.physical_type:
        schema["x-physical-type"] = column.physical_type
    if column.tags:
        schema["x-tags"] = list(column.tags)
    return schema


def _value(column: ColumnContract, physical: PhysicalType) -> dict[str, Any]:
    if not column.physical_type:
        return _BY_LOGICAL_TYPE.get(column.logical_type, {"type": "string"})
    value = dict(_scalar(physical))
    if column.values and value.get("type") == "string":
        value["enum"] = [str(item) for item in column.values]
    # Options are promises about the value; the ones about text carry over as they are.
    if value == {"type": "string"} and column.logical_type == "string":
        for option in ("minLength", "maxLength", "pattern"):
            if option in column.options:
                value[option] = column.options[option]
        if column.options.get("format") in _FORMATS:
            value["format"] = column.options["format"]
    return value


def _scalar(physical: PhysicalType) -> dict[str, Any]:
    if physical.name in _INTEGER_BITS:
        bound = 2 ** (_INTEGER_BITS[physical.name] - 1)
        return {"type": "integer", "minimum": -bound, "maximum": bound - 1}
    if physical.name == "numeric":
        return {"type": "string", "pattern": _numeric_pattern(physical.numbers)}
    if physical.name == "timestamp":
        return _TIMESTAMP if physical.zone == "with time zone" else _LOCAL_TIMESTAMP
    if physical.name == "character varying" and physical.numbers:
        return {"type": "string", "maxLength": physical.numbers[0]}
    return _TYPES.get(physical.name, {"type": "string"})


def _numeric_pattern(numbers: tuple[int, ...]) -> str:
    precision, scale = numbers if len(numbers) == 2 else (0, -1)
    if not (1 <= precision <= _WIDEST_DECIMAL and 0 <= scale <= precision):
        # Kept as text that nothing bounds, so NaN and infinity are in the row itself.
        return r"^(-?[0-9]+(\.[0-9]+)?|NaN|-?Infinity)$"
    whole = rf"^-?[0-9]{{1,{max(precision - scale, 1)}}}"
    return whole + (rf"\.[0-9]{{{scale}}}$" if scale else "$")


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    if isinstance(schema.get("type"), str) and "enum" not in schema:
        return schema | {"type": [schema["type"], "null"]}
    if "anyOf" not in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    return {"anyOf": [*schema["anyOf"], {"type": "null"}]}
