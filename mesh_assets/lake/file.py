"""One Parquet file of a Delta table: how it is written and what Delta remembers of it.

Source: Delta transaction log protocol, "Per-file Statistics". Bounds are kept only for the
columns that something prunes by; every further column would cost bytes in each commit and
checkpoint for as long as the file lives.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

PARQUET_OPTIONS: dict[str, Any] = {
    # Measured on change frames of 100, 10k and 500k rows: zstd at level 1 without dictionaries is
    # half the bytes of snappy or lz4 for a third more time, and dictionaries cost more than either.
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": False,
    # A reader holds a few row groups at a time: this bounds its memory more than anything else.
    "row_group_size": 65_536,
}
_TEXT_LIMIT = 64
_EXACT_DECIMAL_DIGITS = 15  # JSON numbers are read as doubles by many readers.
_LAST_CODE_POINT = "\U0010ffff"


@dataclass(frozen=True, slots=True)
class FileRef:
    """A data file that a Delta version refers to.

    Attributes:
        path: below the table's root.
        size: bytes.
        row_count: rows.
        low: a lower bound per column with statistics (columns without one are absent).
        high: an upper bound likewise; for long texts it may lie above the largest value.
        null_count: nulls per column with statistics.
    """

    path: str
    size: int
    row_count: int
    low: Mapping[str, Any]
    high: Mapping[str, Any]
    null_count: Mapping[str, int]

    def statistics(self) -> str:
        """Delta's statistics JSON."""
        return json.dumps(
            {
                "numRecords": self.row_count,
                "minValues": {name: _encode(value) for name, value in self.low.items()},
                "maxValues": {name: _encode(value) for name, value in self.high.items()},
                "nullCount": dict(self.null_count),
            },
            ensure_ascii=False,
        )

    @classmethod
    def from_statistics(cls, path: str, size: int, text: str | None, schema: pa.Schema) -> FileRef:
        """Read back what :meth:`statistics` wrote (or another writer of the format)."""
        record = json.loads(text) if text else {}
        return cls(
            path=path,
            size=size,
            row_count=int(record.get("numRecords", 0)),
            low=_decode_all(record.get("minValues", {}), schema),
            high=_decode_all(record.get("maxValues", {}), schema),
            null_count=dict(record.get("nullCount", {})),
        )


def bounded(kind: pa.DataType) -> bool:
    """Whether bounds of this type survive Delta's JSON exactly enough to prune by."""
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_string(kind)
        or pa.types.is_date32(kind)
        or (pa.types.is_timestamp(kind) and kind.unit == "us")
        or (pa.types.is_decimal(kind) and kind.precision <= _EXACT_DECIMAL_DIGITS)
    )


def describe(path: str, size: int, rows: pa.Table, columns: Iterable[str]) -> FileRef:
    """The reference of a file with these rows, with statistics of ``columns`` where their type allows it."""
    low: dict[str, Any] = {}
    high: dict[str, Any] = {}
    null_count: dict[str, int] = {}
    for name in columns:
        column = rows.column(name)
        null_count[name] = column.null_count
        if not bounded(column.type) or column.null_count == len(column):
            continue
        bounds = pc.min_max(column)
        least, most = bounds["min"].as_py(), bounds["max"].as_py()
        if isinstance(least, str):
            low[name] = least[:_TEXT_LIMIT]
            if (above := _above(most)) is not None:
                high[name] = above
        else:
            low[name], high[name] = least, most
    return FileRef(path, size, rows.num_rows, low, high, null_count)


def joined(path: str, size: int, parts: Sequence[FileRef]) -> FileRef:
    """The reference of a file that is made of parts, each described by :func:`describe`."""
    low: dict[str, Any] = {}
    high: dict[str, Any] = {}
    for name in parts[0].null_count:
        held = [part for part in parts if part.null_count[name] < part.row_count]
        # A part without a bound leaves the file without one.
        if held and all(name in part.low for part in held):
            low[name] = min(part.low[name] for part in held)
        if held and all(name in part.high for part in held):
            high[name] = max(part.high[name] for part in held)
    return FileRef(
        path,
        size,
        sum(part.row_count for part in parts),
        low,
        high,
        {name: sum(part.null_count[name] for part in parts) for name in parts[0].null_count},
    )


def slices(rows: pa.Table, *, max_rows: int, max_bytes: int) -> list[pa.Table]:
    """Cut rows, in order, so that no part has more rows or (on average) more Arrow bytes than allowed."""
    if rows.num_rows <= max_rows and rows.nbytes <= max_bytes:
        return [rows]
    width = max(1, rows.nbytes // max(1, rows.num_rows))
    step = max(1, min(max_rows, max_bytes // width))
    return [rows.slice(start, step) for start in range(0, rows.num_rows, step)]


def conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows in the shape of ``schema``: columns (and fields of structs) that are missing become null.

    Raises:
        ValueError: if a column has another type, or is not in the schema at all; the text names it.
    """
    if rows.schema.equals(schema):
        return rows
    if extra := [name for name in rows.column_names if name not in schema.names]:
        raise ValueError(f"columns {extra} are not in the table")
    columns = []
    for field in schema:
        index = rows.schema.get_field_index(field.name)
        if index < 0:
            columns.append(pa.chunked_array([pa.nulls(rows.num_rows, field.type)]))
        else:
            columns.append(_conform_column(field.name, rows.column(index), field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _conform_column(name: str, column: pa.ChunkedArray[Any], kind: pa.DataType) -> pa.ChunkedArray[Any]:
    if column.type.equals(kind):
        return column
    if pa.types.is_null(column.type) or _same_value_type(column.type, kind):
        return column.cast(kind)
    if isinstance(column.type, pa.StructType) and isinstance(kind, pa.StructType):
        chunks = [_conform_struct(name, chunk, kind) for chunk in column.chunks]
        return pa.chunked_array(chunks) if chunks else pa.chunked_array([pa.nulls(0, kind)])
    raise ValueError(f"column {name} has type {column.type}, the table has {kind}")


def _conform_struct(name: str, array: Any, kind: pa.StructType) -> pa.StructArray:  # noqa: ANN401 - chunks are untyped
    given = {array.type.field(i).name: i for i in range(array.type.num_fields)}
    wanted = [kind.field(i) for i in range(kind.num_fields)]
    if extra := sorted(set(given) - {field.name for field in wanted}):
        raise ValueError(f"fields {extra} of column {name} are not in the table")
    children: list[Any] = []
    for field in wanted:
        if field.name not in given:
            children.append(pa.nulls(len(array), field.type))
            continue
        child = pa.chunked_array([array.field(given[field.name])])
        conformed = _conform_column(f"{name}.{field.name}", child, field.type)
        children.append(conformed.combine_chunks())
    return pa.StructArray.from_arrays(children, fields=wanted, mask=array.is_null())


def _same_value_type(given: pa.DataType, kind: pa.DataType) -> bool:
    """Types that hold the same values in another layout."""
    types = pa.types
    if types.is_large_string(given) or types.is_string_view(given):
        return bool(types.is_string(kind))
    if types.is_large_binary(given) or types.is_binary_view(given):
        return bool(types.is_binary(kind))
    if types.is_large_list(given) and types.is_list(kind):
        return bool(
            given.value_type.equals(kind.value_type) or _same_value_type(given.value_type, kind.value_type)
        )
    if isinstance(given, pa.MapType) and isinstance(kind, pa.MapType):
        pairs = ((given.key_type, kind.key_type), (given.item_type, kind.item_type))
        return all(one.equals(other) or _same_value_type(one, other) for one, other in pairs)
    return bool(types.is_dictionary(given) and given.value_type.equals(kind))


def overlapping(files: Sequence[FileRef], column: str, low: Any, high: Any) -> list[FileRef]:  # noqa: ANN401 - any bound
    """The files that may hold a value of ``column`` within ``[low, high]`` (None: unbounded)."""
    return [
        file
        for file in files
        if (low is None or column not in file.high or file.high[column] >= low)
        and (high is None or column not in file.low or file.low[column] <= high)
    ]


def _above(text: str) -> str | None:
    """The text itself, or something short that sorts at or above it by code point; None if there is none."""
    if len(text) <= _TEXT_LIMIT:
        return text
    bound = text[:_TEXT_LIMIT] + _LAST_CODE_POINT
    return bound if bound >= text else None


def _encode(value: Any) -> Any:  # noqa: ANN401 - a JSON value
    if isinstance(value, datetime):
        if value.tzinfo is None:
            return value.isoformat(timespec="microseconds")
        return value.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    return value


def _decode_all(values: Mapping[str, Any], schema: pa.Schema) -> dict[str, Any]:
    decoded = {}
    for name, value in values.items():
        index = schema.get_field_index(name)
        if index >= 0 and value is not None and bounded(schema.field(index).type):
            decoded[name] = _decode(value, schema.field(index).type)
    return decoded


def _decode(value: Any, kind: pa.DataType) -> Any:  # noqa: ANN401 - a JSON value to a Python one
    if pa.types.is_timestamp(kind):
        moment = datetime.fromisoformat(value)
        if kind.tz is None:
            return moment.replace(tzinfo=None)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    if pa.types.is_date32(kind):
        return date.fromisoformat(value)
    if pa.types.is_decimal(kind):
        return Decimal(repr(value) if isinstance(value, float) else str(value)).quantize(
            Decimal(1).scaleb(-kind.scale)
        )
    return value
