"""Names of PostgreSQL's types: their one spelling, and what they can mean.

A contract may say ``timestamptz`` or ``char(3)``; the source's catalog says
``timestamp with time zone`` and ``character(3)``.

Source: PostgreSQL documentation, "Data Types" (aliases) and ``format_type.c`` (spelling).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ALIASES = {
    "int2": "smallint",
    "smallserial": "smallint",
    "int": "integer",
    "int4": "integer",
    "serial": "integer",
    "int8": "bigint",
    "bigserial": "bigint",
    "float4": "real",
    "float8": "double precision",
    "float": "double precision",
    "decimal": "numeric",
    "bool": "boolean",
    "varchar": "character varying",
    "char varying": "character varying",
    "char": "character",
    "varbit": "bit varying",
}
_ZONED = {
    "timestamptz": ("timestamp", "with time zone"),
    "timestamp": ("timestamp", "without time zone"),
    "timetz": ("time", "with time zone"),
    "time": ("time", "without time zone"),
}
_ARRAY = re.compile(r"(?P<element>.*?)\s*(\[\s*\d*\s*\]\s*)+\Z")
_SHAPE = re.compile(
    r"(?P<name>[^()]+?)\s*(\(\s*(?P<arguments>[^()]*?)\s*\))?\s*(?P<zone>with(out)? time zone)?\Z"
)
_NUMBER = re.compile(r"-?[0-9]+\Z")
_QUOTED = re.compile(r'("(?:[^"]|"")*")')

_ANY_DOCUMENT = ("object", "array", "map", "vector", "string")
_LOGICAL: dict[str, tuple[str, ...]] = {
    "smallint": ("integer", "number"),
    "integer": ("integer", "number"),
    "bigint": ("integer", "number"),
    "oid": ("integer", "number"),
    "real": ("number",),
    "double precision": ("number",),
    "numeric": ("number", "integer"),
    "money": ("string", "number"),
    "boolean": ("boolean",),
    "text": ("string",),
    "character varying": ("string",),
    "character": ("string",),
    "name": ("string",),
    "uuid": ("string",),
    "bytea": ("string",),
    "xml": ("string",),
    "inet": ("string",),
    "cidr": ("string",),
    "macaddr": ("string",),
    "interval": ("string",),
    "bit": ("string",),
    "bit varying": ("string",),
    "date": ("date",),
    "timestamp": ("timestamp",),
    "time": ("time", "string"),
    "json": _ANY_DOCUMENT,
    "jsonb": _ANY_DOCUMENT,
}


@dataclass(frozen=True)
class PhysicalType:
    """A type's name taken apart.

    Attributes:
        name: PostgreSQL's own spelling without modifier, zone and brackets: ``numeric``, ``timestamp``;
            for types of the user as written, unquoted names in lower case.
        arguments: the modifier's numbers as text, for example ``("12", "2")``.
        zone: ``with time zone``, ``without time zone`` or "".
        array: whether it is an array (of any number of dimensions).
    """

    name: str
    arguments: tuple[str, ...] = ()
    zone: str = ""
    array: bool = False

    @classmethod
    def parse(cls, text: str) -> PhysicalType:
        """Take a type's name apart; every text gives something, an unknown one a name."""
        plain = _normal_case(text)
        match = _ARRAY.match(plain)
        if match:
            element = cls.parse(match["element"])
            return cls(element.name, element.arguments, element.zone, True)
        shape = _SHAPE.match(plain)
        if shape is None:
            return cls(plain)
        name, zone = shape["name"], shape["zone"] or ""
        given = tuple(part.strip() for part in (shape["arguments"] or "").split(",") if part.strip())
        bare_character = name == "char"
        if name in _ZONED:
            name, own_zone = _ZONED[name]
            zone = zone or own_zone
        name = _ALIASES.get(name, name)
        if name == "numeric" and len(given) == 1:
            given = (*given, "0")
        if name == "character" and not given and (bare_character or plain == "character"):
            given = ("1",)
        return cls(name, given, zone)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The modifier's numbers; empty if it is not made of numbers."""
        if not all(_NUMBER.match(part) for part in self.arguments):
            return ()
        return tuple(int(part) for part in self.arguments)

    @property
    def builtin(self) -> bool:
        """Whether it is one of PostgreSQL's everyday types; others are enums, domains, extensions."""
        return self.name in _LOGICAL

    @property
    def logical_types(self) -> tuple[str, ...]:
        """The ODCS logical types it can stand for; empty if that is not known."""
        if self.array:
            return ("array", "vector")
        return _LOGICAL.get(self.name, ())

    def same(self, other: PhysicalType) -> bool:
        """Whether both name one type; a user's type may be named with or without its schema."""
        if (self.arguments, self.zone, self.array) != (other.arguments, other.zone, other.array):
            return False
        if self.name == other.name:
            return True
        if self.builtin or other.builtin or ("." in self.name) == ("." in other.name):
            return False
        return self.name.rpartition(".")[2] == other.name.rpartition(".")[2]

    def __str__(self) -> str:
        modifier = f"({','.join(self.arguments)})" if self.arguments else ""
        zone = f" {self.zone}" if self.zone else ""
        return f"{self.name}{modifier}{zone}{'[]' if self.array else ''}"


def _normal_case(text: str) -> str:
    # Unquoted names fold to lower case, quoted ones are kept as they are.
    parts = _QUOTED.split(text.strip())
    folded = [part if part.startswith('"') else re.sub(r"\s+", " ", part).lower() for part in parts]
    return "".join(folded)
