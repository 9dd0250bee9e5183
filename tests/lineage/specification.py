"""Holds events against OpenLineage's own JSON schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

_SPEC = Path(__file__).parent / "spec"
_CORE = "https://openlineage.io/spec/2-0-2/OpenLineage.json"
OURS = "urn:mesh-assets:facet:"


@cache
def _schemas() -> dict[str, dict[str, Any]]:
    """By file name: the version in a facet's address is compared apart."""
    return {path.name: json.loads(path.read_text()) for path in _SPEC.rglob("*.json")}


@cache
def _registry() -> Registry:
    return Registry().with_resources(
        [(schema["$id"], Resource.from_contents(schema)) for schema in _schemas().values()]
    )


def facets(value: object, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every facet of an event, with where it is."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from facets(item, f"{path}[{number}]")
    elif isinstance(value, dict):
        if "_schemaURL" in value:
            yield path, value
        for name, item in value.items():
            yield from facets(item, f"{path}.{name}")


def problems(event: Mapping[str, Any]) -> list[str]:
    """What the specification says against an event."""
    found = [error.message for error in _validator({"$ref": f"{_CORE}#/$defs/RunEvent"}).iter_errors(event)]
    for path, facet in facets(event):
        address = str(facet["_schemaURL"])
        if address.startswith(OURS):
            continue
        base, _, fragment = address.partition("#")
        schema = _schemas().get(base.rpartition("/")[2])
        if schema is None:
            found.append(f"{path}: there is no schema for {address}")
            continue
        if _version(schema["$id"])[0] != _version(base)[0]:
            found.append(f"{path}: {address} is not of the version of {schema['$id']}")
        # A facet's schema describes the object that holds it under its own name.
        reference = {"$ref": f"{schema['$id']}#{fragment}"}
        found += [f"{path}: {error.message}" for error in _validator(reference).iter_errors(facet)]
    return found


def _version(address: str) -> tuple[int, ...]:
    return tuple(int(part) for part in address.split("/")[-2].split("-"))


def _validator(schema: Mapping[str, Any]) -> Draft202012Validator:
    return Draft202012Validator(
        schema, registry=_registry(), format_checker=Draft202012Validator.FORMAT_CHECKER
    )
