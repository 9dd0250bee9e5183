"""What a contract must hold beyond the fields and types of the standard.

Every check notes what it finds in the document and goes on, so that one look shows all
mistakes; values of a wrong type were noted before and are passed over here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mesh_assets.contract import standard
from mesh_assets.contract.document import Document, Location, mapping, mappings, text
from mesh_assets.contract.physical import PhysicalType
from mesh_assets.names import ProductName, valid_part

_OWNER = re.compile(r"team:[a-z0-9][a-z0-9._-]*\Z|[^@\s:]+@[^@\s]+\.[^@\s]+\Z")
_TEAM = re.compile(r"(team:)?[a-z0-9][a-z0-9._-]*\Z")
_PHYSICAL_NAME = re.compile(r"[^.\s]+(\.[^.\s]+)?\Z")
# Delta refuses these in column names unless column mapping is on, which DuckDB then cannot read.
_UNSTORABLE = re.compile(r"[ ,;{}()\n\t=.]")
_REQUIRED = ("apiVersion", "kind", "id", "name", "version", "status", "domain", "team", "schema")
_OWNER_HINT = "write team:<name> (lower case, digits, '-', '_', '.') or an e-mail address"


def valid_owner(owner: str) -> bool:
    """Whether the text is ``team:<name>`` or an e-mail address."""
    return bool(_OWNER.match(owner))


def owners(team: object) -> Iterator[tuple[str, Location]]:
    """Owners named by an ODCS ``team``, with their location below it, the team itself first.

    The team's name is an owner (``team:`` may be left out), and so is each member with the role
    "owner" (any spelling of "data owner" or "product owner" too) by its username.
    """
    members = team if isinstance(team, list) else mapping(team).get("members")
    name = text(mapping(team).get("name"))
    if name:
        yield name if name.startswith("team:") else f"team:{name}", ("name",)
    prefix: Location = () if isinstance(team, list) else ("members",)
    for index, member in mappings(members):
        role = text(member.get("role")).casefold().replace("-", " ").replace("_", " ")
        username = text(member.get("username"))
        if username and role.split()[-1:] == ["owner"]:
            yield username, (*prefix, index, "username")


def check(document: Document, name: ProductName | None) -> None:
    """Note every mistake of a contract's content.

    Args:
        document: the parsed file.
        name: the product whose folder it lies in; ``None`` if it lies elsewhere.
    """
    data = mapping(document.data)
    for field in _REQUIRED:
        if data.get(field) in (None, "", [], {}):
            document.add((field,) if field in data else (), f"a contract needs {field!r}")
    _check_head(document, data)
    _check_name(document, data, name)
    _check_team(document, data.get("team"))
    _check_promises(document, data)
    for index, server in mappings(data.get("servers")):
        location: Location = ("servers", index)
        _need(document, server, ("server", "type"), "a server", location)
        _one_of(document, server, "type", standard.server_types(), location)
    _check_tables(document, data)


def _check_head(document: Document, data: Mapping[str, Any]) -> None:
    kind, version = data.get("kind"), data.get("apiVersion")
    if isinstance(kind, str) and kind != standard.KIND:
        document.add(("kind",), f"kind {kind!r} is not a contract", allowed=[standard.KIND], given=kind)
    if isinstance(version, str) and version and not standard.ACCEPTED_VERSION.match(version):
        hint = f"write apiVersion: {standard.WRITTEN_VERSION}"
        if standard.ACCEPTED_VERSION.match(f"v{version}"):
            hint = f"write apiVersion: v{version}"
        document.add(
            ("apiVersion",),
            f"apiVersion {version!r} is not supported",
            allowed=standard.ACCEPTED_VERSIONS,
            hint=hint,
        )
    _one_of(document, data, "status", standard.STATUSES, ())


def _check_name(document: Document, data: Mapping[str, Any], name: ProductName | None) -> None:
    for field, folder in (
        ("domain", name and name.domain),
        ("name", name and name.product),
        ("dataProduct", name and name.product),
    ):
        value = text(data.get(field))
        if not value:
            continue
        if folder and value != folder:
            document.add(
                (field,),
                f"{field} is {value!r}, but the folder is {folder!r}",
                hint=f"write {field}: {folder}, or rename the folder",
            )
        elif not valid_part(value):
            document.add(
                (field,), f"{field} {value!r} is not a name", hint="use a-z, 0-9 and _, a letter first"
            )


def _check_team(document: Document, team: object) -> None:
    if not team or not isinstance(team, dict | list):
        return
    members = team if isinstance(team, list) else team.get("members")
    prefix: Location = ("team",) if isinstance(team, list) else ("team", "members")
    for index, member in mappings(members):
        _need(document, member, ("username",), "a team member", (*prefix, index))
    found = list(owners(team))
    for owner, below in found:
        if not valid_owner(owner) or (below == ("name",) and not _TEAM.match(owner)):
            document.add(("team", *below), f"{owner!r} is not an owner", hint=_OWNER_HINT)
    if not found:
        document.add(
            ("team",),
            "the contract names no owner",
            hint="give the team a name, or a member the role owner and a username",
        )


def _check_promises(document: Document, data: Mapping[str, Any]) -> None:
    for index, promise in mappings(data.get("slaProperties")):
        location: Location = ("slaProperties", index)
        _need(document, promise, ("property", "value"), "an SLA property", location)
        if promise.get("property") not in standard.DURATION_PROPERTIES:
            continue
        if isinstance(promise.get("value"), str | bool):
            document.add(
                (*location, "value"),
                f"the {promise['property']} must be a number of time units",
                hint="for example value: 5 and unit: minutes",
            )
        unit = promise.get("unit")
        if unit is None:
            document.add(location, f"the {promise['property']} needs a 'unit'", allowed=standard.UNITS)
        elif isinstance(unit, str) and unit not in standard.UNIT_SECONDS:
            document.add((*location, "unit"), f"unit {unit!r} is unknown", allowed=standard.UNITS, given=unit)


def _check_tables(document: Document, data: Mapping[str, Any]) -> None:
    names: dict[str, int] = {}
    physical_names: dict[str, int] = {}
    for index, table in mappings(data.get("schema")):
        location: Location = ("schema", index)
        _need(document, table, ("name", "properties"), "a table", location)
        _distinct(document, names, "table", text(table.get("name")), (*location, "name"))
        physical_name = text(table.get("physicalName"))
        _distinct(document, physical_names, "physical table", physical_name, (*location, "physicalName"))
        if physical_name and not _PHYSICAL_NAME.match(physical_name):
            document.add(
                (*location, "physicalName"),
                f"physicalName {physical_name!r} is not a table name",
                hint="write schema.table, as the source names it",
            )
        if (name := text(table.get("name"))) and not valid_part(name):
            document.add(
                (*location, "name"),
                f"table {name!r} is not a name",
                hint="use a-z, 0-9 and _, a letter first",
            )
        _one_of(document, table, "logicalType", ("object",), location)
        _check_quality(document, table, location)
        _check_columns(document, table, location)


def _check_columns(document: Document, table: Mapping[str, Any], table_location: Location) -> None:
    label = text(table.get("name")) or "the table"
    names: dict[str, int] = {}
    positions: dict[int, str] = {}
    key: list[tuple[str, Location, object]] = []
    for index, column in mappings(table.get("properties")):
        location: Location = (*table_location, "properties", index)
        _need(document, column, ("name", "logicalType"), "a column", location)
        name = text(column.get("name"))
        _distinct(document, names, f"column of {label}", name, (*location, "name"))
        _check_column(document, column, name, location)
        position = column.get("primaryKeyPosition")
        if column.get("primaryKey") is True:
            key.append((name, location, position))
            if column.get("required") is False:
                document.add(
                    (*location, "required"),
                    f"key column {name!r} is never null, so it cannot be 'required: false'",
                    hint="remove required",
                )
        elif isinstance(position, int) and position > 0:
            document.add(
                (*location, "primaryKeyPosition"),
                f"column {name!r} has a position in the primary key but is not part of it",
                hint="add primaryKey: true",
            )
    marked = any(column.get("primaryKey") for _, column in mappings(table.get("properties")))
    if table.get("properties") and not marked:
        document.add(
            table_location,
            f"table {label!r} has no primary key",
            hint="mark its column or columns with primaryKey: true",
        )
    if len(key) < 2:
        return
    for name, location, position in key:
        if not isinstance(position, int) or not 1 <= position <= len(key):
            document.add(
                (*location, "primaryKeyPosition"),
                f"key column {name!r} needs a primaryKeyPosition from 1 to {len(key)}",
            )
        elif position in positions:
            document.add(
                (*location, "primaryKeyPosition"),
                f"key columns {positions[position]!r} and {name!r} both have primaryKeyPosition {position}",
            )
        else:
            positions[position] = name


def _check_column(document: Document, column: Mapping[str, Any], name: str, location: Location) -> None:
    if name.startswith("_"):
        document.add(
            (*location, "name"), f"column {name!r} starts with '_'", hint="such names are the lake's own"
        )
    elif _UNSTORABLE.search(name):
        document.add(
            (*location, "name"), f"column {name!r} holds a character that Delta cannot store in a name"
        )
    physical_name = column.get("physicalName")
    if isinstance(physical_name, str) and physical_name != name:
        document.add(
            (*location, "physicalName"),
            f"column {name!r} is called {physical_name!r} at the source",
            hint="products keep the source's names: use that one, or leave physicalName out",
        )
    _one_of(document, column, "logicalType", standard.logical_types(), location)
    _one_of(document, column, "classification", standard.CLASSIFICATIONS, location)
    logical_type = text(column.get("logicalType"))
    options = standard.logical_type_options().get(logical_type)
    if options is not None:
        for option in mapping(column.get("logicalTypeOptions")):
            if option not in options:
                document.add(
                    (*location, "logicalTypeOptions", option),
                    f"logical type {logical_type} has no option {option!r}",
                    allowed=options,
                    given=option,
                )
    for index, value in mappings(column.get("enum")):
        _need(document, value, ("value",), "an enumeration value", (*location, "enum", index))
    physical = PhysicalType.parse(text(column.get("physicalType")))
    if logical_type in standard.logical_types() and logical_type not in (
        physical.logical_types or (logical_type,)
    ):
        document.add(
            (*location, "logicalType"),
            f"logicalType {logical_type!r} does not fit physicalType {text(column.get('physicalType'))!r}",
            allowed=physical.logical_types,
        )
    _check_quality(document, column, location)
    _one_of(
        document, mapping(column.get("items")), "logicalType", standard.logical_types(), (*location, "items")
    )
    for index, inner in mappings(column.get("properties")):
        inner_location: Location = (*location, "properties", index)
        _need(document, inner, ("name",), "a nested property", inner_location)
        _one_of(document, inner, "logicalType", standard.logical_types(), inner_location)


def _check_quality(document: Document, element: Mapping[str, Any], element_location: Location) -> None:
    for index, rule in mappings(element.get("quality")):
        location: Location = (*element_location, "quality", index)
        _one_of(document, rule, "type", standard.quality_types(), location)
        _one_of(document, rule, "dimension", standard.quality_dimensions(), location)
        kind = text(rule.get("type")) or "library"
        if kind == "custom":
            _need(document, rule, ("engine", "implementation"), "a custom quality rule", location)
        elif kind in ("library", "sql"):
            if kind == "sql":
                _need(document, rule, ("query",), "an sql quality rule", location)
            elif "rule" not in rule:
                _need(document, rule, ("metric",), "a library quality rule", location)
                _one_of(document, rule, "metric", standard.quality_metrics(), location)
            _check_operator(document, rule, location)


def _check_operator(document: Document, rule: Mapping[str, Any], location: Location) -> None:
    given = [operator for operator in standard.OPERATORS if operator in rule]
    if len(given) != 1:
        found = f"has {' and '.join(given)}" if given else "compares with nothing"
        document.add(
            location, f"a quality rule needs one operator, this one {found}", allowed=standard.OPERATORS
        )
    for operator in ("mustBeBetween", "mustNotBeBetween"):
        bounds = rule.get(operator)
        if isinstance(bounds, list) and (len(bounds) != 2 or not _ordered(bounds)):
            document.add((*location, operator), f"{operator} must be two numbers, the smaller one first")


def _ordered(bounds: list[Any]) -> bool:
    numbers = [bound for bound in bounds if isinstance(bound, int | float)]
    return len(numbers) < 2 or numbers[0] <= numbers[1]


def _need(
    document: Document, element: Mapping[str, Any], fields: tuple[str, ...], noun: str, location: Location
) -> None:
    for field in fields:
        if element.get(field) in (None, "", [], {}):
            document.add((*location, field), f"{noun} needs {field!r}")


def _one_of(
    document: Document, element: Mapping[str, Any], field: str, allowed: tuple[str, ...], location: Location
) -> None:
    value = element.get(field)
    if isinstance(value, str) and value not in allowed:
        document.add((*location, field), f"{field} {value!r} is unknown", allowed=allowed, given=value)


def _distinct(document: Document, seen: dict[str, int], noun: str, name: str, location: Location) -> None:
    if not name:
        return
    if name in seen:
        document.add(location, f"{noun} {name!r} is defined twice; first in line {seen[name]}")
    else:
        seen[name] = document.line(location)
