"""PostgreSQL types and the Arrow types that keep their values.

The mapping assumes text output under ``timezone=UTC``, ``datestyle=ISO``,
``intervalstyle=iso_8601``, ``extra_float_digits=1``, ``bytea_output=hex`` and
``client_encoding=UTF8``. Only Arrow types that Delta can hold are used; a type without a
counterpart stays exact text. What its column's Arrow type cannot hold (infinity, BC, NaN
of a numeric, a two-dimensional array) is the business of ``_exact``.

Source: PostgreSQL ``pg_type.dat`` (object identifiers), ``format_type.c`` (names of types).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import pyarrow as pa

# oid: (name as by format_type(oid, -1), oid of the array type).
_BUILTIN: Final[dict[int, tuple[str, int]]] = {
    16: ("boolean", 1000),
    17: ("bytea", 1001),
    18: ('"char"', 1002),
    19: ("name", 1003),
    20: ("bigint", 1016),
    21: ("smallint", 1005),
    22: ("int2vector", 1006),
    23: ("integer", 1007),
    24: ("regproc", 1008),
    25: ("text", 1009),
    26: ("oid", 1028),
    27: ("tid", 1010),
    28: ("xid", 1011),
    29: ("cid", 1012),
    30: ("oidvector", 1013),
    114: ("json", 199),
    142: ("xml", 143),
    600: ("point", 1017),
    601: ("lseg", 1018),
    602: ("path", 1019),
    603: ("box", 1020),
    604: ("polygon", 1027),
    628: ("line", 629),
    650: ("cidr", 651),
    700: ("real", 1021),
    701: ("double precision", 1022),
    718: ("circle", 719),
    774: ("macaddr8", 775),
    790: ("money", 791),
    829: ("macaddr", 1040),
    869: ("inet", 1041),
    1033: ("aclitem", 1034),
    1042: ("bpchar", 1014),
    1043: ("character varying", 1015),
    1082: ("date", 1182),
    1083: ("time without time zone", 1183),
    1114: ("timestamp without time zone", 1115),
    1184: ("timestamp with time zone", 1185),
    1186: ("interval", 1187),
    1266: ("time with time zone", 1270),
    1560: ('"bit"', 1561),
    1562: ("bit varying", 1563),
    1700: ("numeric", 1231),
    1790: ("refcursor", 2201),
    2202: ("regprocedure", 2207),
    2203: ("regoper", 2208),
    2204: ("regoperator", 2209),
    2205: ("regclass", 2210),
    2206: ("regtype", 2211),
    2950: ("uuid", 2951),
    2970: ("txid_snapshot", 2949),
    3220: ("pg_lsn", 3221),
    3614: ("tsvector", 3643),
    3615: ("tsquery", 3645),
    3734: ("regconfig", 3735),
    3769: ("regdictionary", 3770),
    3802: ("jsonb", 3807),
    3904: ("int4range", 3905),
    3906: ("numrange", 3907),
    3908: ("tsrange", 3909),
    3910: ("tstzrange", 3911),
    3912: ("daterange", 3913),
    3926: ("int8range", 3927),
    4072: ("jsonpath", 4073),
    4089: ("regnamespace", 4090),
    4096: ("regrole", 4097),
    4191: ("regcollation", 4192),
    4451: ("int4multirange", 6150),
    4532: ("nummultirange", 6151),
    4533: ("tsmultirange", 6152),
    4534: ("tstzmultirange", 6153),
    4535: ("datemultirange", 6155),
    4536: ("int8multirange", 6157),
    5038: ("pg_snapshot", 5039),
    5069: ("xid8", 271),
}
_ELEMENT: Final = {array: element for element, (_, array) in _BUILTIN.items()}

_SCALAR: Final[dict[int, pa.DataType]] = {
    16: pa.bool_(),
    17: pa.binary(),
    20: pa.int64(),
    21: pa.int16(),
    23: pa.int32(),
    26: pa.int64(),
    700: pa.float32(),
    701: pa.float64(),
    1082: pa.date32(),
    1114: pa.timestamp("us"),
    1184: pa.timestamp("us", tz="UTC"),
}
_NUMERIC: Final = 1700
_BOX: Final = 603
_HEADER: Final = 4  # VARHDRSZ: length and numeric modifiers are stored with it added.

_INTERVAL_FIELD: Final = {
    1 << 2: "year",
    1 << 1: "month",
    1 << 3: "day",
    1 << 10: "hour",
    1 << 11: "minute",
    1 << 12: "second",
}
_INTERVAL_FULL_RANGE: Final = 0x7FFF
_INTERVAL_FULL_PRECISION: Final = 0xFFFF


@dataclass(frozen=True)
class PostgresType:
    """A column's type as the source's catalog knows it.

    Attributes:
        oid: ``pg_type.oid``.
        typmod: the column's type modifier; -1 if there is none.
        name: the text of ``format_type(oid, typmod)``.
        base: for a domain, the type it is over, with the domain's own modifier.
        element: for an array, the type of its elements, with the array's modifier.
        delimiter: ``typdelim``: what stands between values of this type in an array's text.
    """

    oid: int
    typmod: int = -1
    name: str = ""
    base: PostgresType | None = None
    element: PostgresType | None = None
    delimiter: str = ","

    @property
    def root(self) -> PostgresType:
        """The type below all domains; the type itself where there is none."""
        found = self
        while found.base is not None:
            found = found.base
        return found


def _numeric_shape(typmod: int) -> tuple[int, int]:
    packed = typmod - _HEADER
    # The scale is a signed number of 11 bits (PostgreSQL 15 and later allow -1000 to 1000).
    return (packed >> 16) & 0xFFFF, ((packed & 0x7FF) ^ 1024) - 1024


def _interval_modifier(typmod: int) -> str:
    fields = (typmod >> 16) & _INTERVAL_FULL_RANGE
    precision = typmod & 0xFFFF
    named = [name for bit, name in _INTERVAL_FIELD.items() if fields & bit]
    text = ""
    if fields != _INTERVAL_FULL_RANGE and named:
        text = f" {named[0]}" if len(named) == 1 else f" {named[0]} to {named[-1]}"
    return text if precision == _INTERVAL_FULL_PRECISION else f"{text}({precision})"


def _builtin_name(oid: int, typmod: int) -> str:
    name = _BUILTIN[oid][0]
    if typmod < 0:
        return name
    if oid == 1042:
        return f"character({typmod - _HEADER})"
    if oid == 1043:
        return f"{name}({typmod - _HEADER})"
    if oid in (1560, 1562):
        return name.strip('"') + f"({typmod})"
    if oid == _NUMERIC:
        precision, scale = _numeric_shape(typmod)
        return f"{name}({precision},{scale})"
    if oid in (1083, 1114, 1184, 1266):
        head, _, tail = name.partition(" ")
        return f"{head}({typmod}) {tail}"
    if oid == 1186:
        return name + _interval_modifier(typmod)
    return name


@lru_cache(maxsize=4096)
def builtin(oid: int, typmod: int = -1) -> PostgresType | None:
    """The type, if it is one of PostgreSQL's own (their numbers never change); otherwise None.

    >>> builtin(1700, 786438).name
    'numeric(12,2)'
    """
    if oid in _BUILTIN:
        return PostgresType(oid, typmod, _builtin_name(oid, typmod), delimiter=";" if oid == _BOX else ",")
    if oid in _ELEMENT:
        element = builtin(_ELEMENT[oid], typmod)
        assert element is not None
        return PostgresType(oid, typmod, element.name + "[]", element=element)
    return None


def arrow_type(type_: PostgresType) -> pa.DataType:
    """The Arrow type in which a column of this type is kept.

    A ``numeric(p, s)`` with p up to 38 and s from 0 to p is a decimal; any other numeric is
    exact text. Arrays become lists of what their elements become; elements that are arrays
    again (by a domain) stay text.
    """
    root = type_.root
    if root.element is not None:
        inner = root.element.root
        return pa.list_(pa.string() if inner.element is not None else arrow_type(inner))
    if root.oid == _NUMERIC and root.typmod >= _HEADER:
        precision, scale = _numeric_shape(root.typmod)
        if 1 <= precision <= 38 and 0 <= scale <= precision:
            return pa.decimal128(precision, scale)
    return _SCALAR.get(root.oid, pa.string())


def array_delimiter(type_: PostgresType) -> str:
    """What stands between the elements in the text of an array of this type."""
    root = type_.root
    return root.element.delimiter if root.element is not None else ","
