"""What the Open Data Contract Standard (ODCS) allows, and how a contract is written.

Source: ODCS 3.0, 3.1 and 3.2 (Bitol, Linux Foundation); the enumerations are read from the JSON
Schema that the ``open-data-contract-standard`` package ships.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import yaml

KIND = "DataContract"
WRITTEN_VERSION = "v3.1.0"
ACCEPTED_VERSION = re.compile(r"v3\.[0-2]\.[0-9]+\Z")
ACCEPTED_VERSIONS = ("v3.0.x", "v3.1.x", "v3.2.x")
STATUSES = ("proposed", "draft", "active", "deprecated", "retired")
CLASSIFICATIONS = ("public", "internal", "confidential", "restricted")
"""From open to all to named persons only. The standard allows any word; this mesh has four."""

NOUNS = {
    "OpenDataContractStandard": "a contract",
    "SchemaObject": "a table",
    "SchemaProperty": "a column",
    "DataQuality": "a quality rule",
    "ServiceLevelAgreementProperty": "an SLA property",
    "Team": "a team",
    "TeamMember": "a team member",
    "Role": "a role",
    "Server": "a server",
    "Support": "a support channel",
    "Description": "a description (a mapping of usage, purpose, limitations)",
    "Pricing": "a price",
    "CustomProperty": "a custom property",
    "AuthoritativeDefinition": "an authoritative definition",
    "Relationship": "a relationship",
    "EnumValue": "an enumeration value",
}

OPERATORS = (
    "mustBe",
    "mustNotBe",
    "mustBeGreaterThan",
    "mustBeGreaterOrEqualTo",
    "mustBeLessThan",
    "mustBeLessOrEqualTo",
    "mustBeBetween",
    "mustNotBeBetween",
)

_SECONDS = {
    ("ms", "millisecond", "milliseconds"): 0.001,
    ("s", "sec", "second", "seconds"): 1.0,
    ("m", "min", "minute", "minutes"): 60.0,
    ("h", "hr", "hour", "hours"): 3600.0,
    ("d", "day", "days"): 86400.0,
    ("w", "week", "weeks"): 7 * 86400.0,
    ("mo", "month", "months"): 30 * 86400.0,
    ("y", "yr", "year", "years"): 365 * 86400.0,
}
UNIT_SECONDS = {unit: seconds for units, seconds in _SECONDS.items() for unit in units}
"""Seconds of each time unit of an SLA property; a month is 30 days, a year 365."""
UNITS = tuple(units[-1] for units in _SECONDS)
"""The unabbreviated units, as messages list them."""

DURATION_PROPERTIES = ("latency", "frequency", "retention", "timeToDetect", "timeToNotify", "timeToRepair")
"""SLA properties whose value is a number of time units."""

# Fields that only 3.2 has, on the elements that have customProperties in 3.1 to carry them.
_NEW_IN_32 = ("context", "deprecated", "synonyms", "semanticType", "enum")


@cache
def _schema() -> dict[str, Any]:
    file = resources.files("open_data_contract_standard").joinpath("schema.json")
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _enumeration(definition: str, field: str) -> tuple[str, ...]:
    return tuple(_schema()["$defs"][definition]["properties"][field]["enum"])


def logical_types() -> tuple[str, ...]:
    """Allowed values of a column's ``logicalType``."""
    return _enumeration("SchemaBaseProperty", "logicalType")


@cache
def logical_type_options() -> dict[str, tuple[str, ...]]:
    """Logical type -> the keys its ``logicalTypeOptions`` may have."""
    options: dict[str, tuple[str, ...]] = {}
    for rule in _schema()["$defs"]["SchemaBaseProperty"]["allOf"]:
        if "if" not in rule:
            continue
        allowed = tuple(rule["then"]["properties"].get("logicalTypeOptions", {}).get("properties", ()))
        for condition in rule["if"].get("anyOf", [rule["if"]]):
            options[condition["properties"]["logicalType"]["const"]] = allowed
    return options


def quality_types() -> tuple[str, ...]:
    """Allowed values of a quality rule's ``type``."""
    return _enumeration("DataQuality", "type")


def quality_dimensions() -> tuple[str, ...]:
    """Allowed values of a quality rule's ``dimension``."""
    return _enumeration("DataQuality", "dimension")


def quality_metrics() -> tuple[str, ...]:
    """Allowed values of a library rule's ``metric``."""
    return _enumeration("DataQualityLibrary", "metric")


def server_types() -> tuple[str, ...]:
    """Allowed values of a server's ``type``."""
    return _enumeration("Server", "type")


# What 3.0 called the metrics, as far as their meaning is the same.
_RENAMED_METRICS = {"duplicateCount": "duplicateValues", "nullCheck": "nullValues", "rowCount": "rowCount"}


def normalised(data: Mapping[str, Any]) -> dict[str, Any]:
    """A contract's content independent of the 3.x spelling it came in.

    A 3.0 team (a list of members) becomes a team with members, a deprecated ``rule`` becomes a
    ``metric``; empty values go; ``apiVersion`` is what we write. The same promise gives the same
    content, so its hash tells whether the promise changed.
    """
    content: dict[str, Any] = _normal(data)
    content["apiVersion"] = WRITTEN_VERSION
    if isinstance(content.get("team"), list):
        content["team"] = {"members": content["team"]}
    return content


def _normal(value: Any) -> Any:  # noqa: ANN401 - any YAML value
    if isinstance(value, Mapping):
        plain = {key: _normal(item) for key, item in value.items() if item is not None}
        rule = plain.get("rule")
        if isinstance(rule, str) and "metric" not in plain and plain.get("type", "library") == "library":
            plain["metric"] = _RENAMED_METRICS.get(rule, rule)
            del plain["rule"]
        return plain
    if isinstance(value, list):
        return [_normal(item) for item in value]
    return value


def written(content: Mapping[str, Any]) -> dict[str, Any]:
    """Normalised content as ODCS 3.1.0.

    What only 3.2 can say is kept as custom properties of the same name, on the element itself
    where 3.1 has them there, else on the contract.
    """
    strays: list[dict[str, Any]] = []
    plain: dict[str, Any] = _as_31(dict(content), (), strays)
    if strays:
        plain.setdefault("customProperties", []).append({"property": "odcs32", "value": strays})
    return plain


def to_yaml(content: Mapping[str, Any]) -> str:
    """Normalised content as the text of an ODCS 3.1.0 file."""
    order = ("apiVersion", "kind", "id", "name", "version", "status", "domain")
    plain = written(content)
    ordered = {key: plain[key] for key in order if key in plain} | plain
    return str(yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, width=100))


def _as_31(value: Any, path: tuple[str | int, ...], strays: list[dict[str, Any]]) -> Any:  # noqa: ANN401
    if isinstance(value, list):
        return [_as_31(item, (*path, index), strays) for index, item in enumerate(value)]
    if not isinstance(value, Mapping) or path[-1:] in (("value",), ("arguments",), ("implementation",)):
        return value
    plain = {key: _as_31(item, (*path, key), strays) for key, item in value.items()}
    element = not path or (len(path) > 1 and path[-2] in ("schema", "properties")) or path[-1] == "items"
    if element:
        for field in _NEW_IN_32:
            if field in plain:
                _carry(plain, field, plain.pop(field))
        if plain.get("logicalType") in ("map", "vector"):
            _carry(plain, "logicalType", plain["logicalType"])
            if "map" in plain:
                _carry(plain, "map", plain.pop("map"))
            if "logicalTypeOptions" in plain:
                _carry(plain, "logicalTypeOptions", plain.pop("logicalTypeOptions"))
            plain["logicalType"] = "object" if plain["logicalType"] == "map" else "array"
        return plain
    parent = path[-2] if len(path) > 1 else ""
    gone: tuple[str, ...] = ()
    if parent == "customProperties":
        gone = ("vendor",)
    elif parent == "slaProperties":
        gone = ("customProperties", "authoritativeDefinitions")
    elif parent == "relationships":
        gone = ("id",)
    strays += [
        {"path": "/".join(map(str, (*path, field))), "value": plain.pop(field)}
        for field in gone
        if field in plain
    ]
    return plain


def _carry(element: dict[str, Any], field: str, value: Any) -> None:  # noqa: ANN401
    element.setdefault("customProperties", []).append({"property": field, "value": value})
