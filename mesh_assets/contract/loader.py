"""Reads a contract file: ODCS 3.0 to 3.2 in, one frozen :class:`Contract` or one error out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from open_data_contract_standard.model import OpenDataContractStandard
from pydantic import ValidationError

from mesh_assets.contract import document as yaml_document
from mesh_assets.contract import standard, structure
from mesh_assets.contract.check import check, owners
from mesh_assets.contract.document import Document, Location
from mesh_assets.contract.model import ColumnContract, Contract, QualityRule, SlaProperty, TableContract
from mesh_assets.names import ProductName


def load(path: Path | str, *, name: ProductName | None = None) -> Contract:
    """Read and check a contract.

    Args:
        path: an ODCS YAML file.
        name: the product whose folder holds it; the contract must name the same domain and
            product. ``None`` takes them from the contract.

    Raises:
        ContractError: naming file, line, what is wrong, what is allowed, of every mistake found.
    """
    return build(yaml_document.read(Path(path)), name)


def build(document: Document, name: ProductName | None = None) -> Contract:
    """The contract of a parsed file; see :func:`load`."""
    if document.data is None:
        document.add((), "the file is empty")
        document.require_no_mistake()
    structure.check(document, OpenDataContractStandard, standard.NOUNS)
    if isinstance(document.data, dict):
        check(document, name)
    document.require_no_mistake()
    try:
        OpenDataContractStandard.model_validate(document.data)
    except ValidationError as error:
        for detail in error.errors():
            document.add(detail["loc"], detail["msg"])
        document.require_no_mistake()
    return _contract(document)


def from_content(content: Mapping[str, Any], path: Path) -> Contract:
    """The contract with this content (:attr:`Contract.content`), checked when it was read from its file.

    Checks may have become stricter since: what was released stays readable.
    """
    return _contract(Document(path, dict(content), {(): 1}))


def content_hash(content: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of normalised content: keys in any order give the same."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _contract(document: Document) -> Contract:
    data: dict[str, Any] = document.data
    content = standard.normalised(data)
    description = content.get("description", {})
    return Contract(
        name=ProductName(content["domain"], content["name"]),
        id=content["id"],
        version=content["version"],
        status=content["status"],
        owners=tuple(dict.fromkeys(owner for owner, _ in owners(content["team"]))),
        tables=tuple(_table(document, index, table) for index, table in enumerate(content["schema"])),
        hash=content_hash(content),
        description=_flat(description.get("purpose", "")),
        usage=_flat(description.get("usage", "")),
        limitations=_flat(description.get("limitations", "")),
        tags=tuple(content.get("tags", ())),
        sla=tuple(
            _promise(document, index, sla) for index, sla in enumerate(content.get("slaProperties", ()))
        ),
        servers=tuple(content.get("servers", ())),
        support=tuple(content.get("support", ())),
        content=content,
        path=document.path,
    )


def _table(document: Document, index: int, table: Mapping[str, Any]) -> TableContract:
    location: Location = ("schema", index)
    name = table["name"]
    columns: list[ColumnContract] = []
    rules = _rules(document, name, None, table, location)
    key: list[tuple[int, str]] = []
    for position, column in enumerate(table["properties"]):
        column_location: Location = (*location, "properties", position)
        if column.get("primaryKey", False):
            key.append((column.get("primaryKeyPosition", -1), column["name"]))
        columns.append(_column(document, column, column_location))
        rules += _rules(document, name, column["name"], column, column_location)
    return TableContract(
        name=name,
        physical_name=table.get("physicalName", name),
        columns=tuple(columns),
        key=tuple(column for _, column in sorted(key, key=lambda part: part[0])),
        business_name=table.get("businessName", ""),
        description=_flat(table.get("description", "")),
        granularity=_flat(table.get("dataGranularityDescription", "")),
        tags=tuple(table.get("tags", ())),
        quality=tuple(rules),
        line=document.line(location),
    )


def _column(document: Document, column: Mapping[str, Any], location: Location) -> ColumnContract:
    key = bool(column.get("primaryKey", False))
    return ColumnContract(
        name=column["name"],
        logical_type=column["logicalType"],
        physical_type=column.get("physicalType", ""),
        required=key or bool(column.get("required", False)),
        key=key,
        unique=bool(column.get("unique", False)),
        classification=column.get("classification"),
        business_name=column.get("businessName", ""),
        description=_flat(column.get("description", "")),
        tags=tuple(column.get("tags", ())),
        examples=tuple(column.get("examples", ())),
        values=tuple(value["value"] for value in column.get("enum", ())),
        options=column.get("logicalTypeOptions", {}),
        line=document.line(location),
    )


def _rules(
    document: Document, table: str, column: str | None, element: Mapping[str, Any], location: Location
) -> list[QualityRule]:
    return [
        QualityRule(table, column, rule, document.line((*location, "quality", index)))
        for index, rule in enumerate(element.get("quality", ()))
    ]


def _promise(document: Document, index: int, promise: Mapping[str, Any]) -> SlaProperty:
    return SlaProperty(
        name=promise["property"],
        value=promise["value"],
        unit=promise.get("unit", ""),
        element=promise.get("element", ""),
        description=_flat(promise.get("description", "")),
        line=document.line(("slaProperties", index)),
    )


def _flat(text: str) -> str:
    # Folded YAML keeps a line break at its end, and descriptions are shown in one cell.
    return " ".join(text.split())
