"""``mesh sql``: a statement's answer as a table, CSV, JSON or Parquet."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import polars as pl
import polars.selectors
import pyarrow as pa
import pyarrow.parquet as pq

from mesh_assets.cli.terminal import cell, console, counted, emit, finite, moment, note, plain, table
from mesh_assets.errors import SettingError
from mesh_assets.lake.version import AsOf, Cut
from mesh_assets.names import ProductName
from mesh_assets.product import Mesh

_SHOWN_ROWS = 50
_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)


class Format(StrEnum):
    """How rows are written."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


def run(
    mesh: Mesh, text: str, as_of: AsOf | None, form: Format, output: Path | None, row_limit: int | None
) -> None:
    """Run the statement and write its rows to the file, or to standard output."""
    answer = mesh.sql(text, as_of=as_of)
    rows = answer.table
    if output is not None:
        _write(rows, form, output)
        note(f"{counted(rows.num_rows, 'row')} in {output}; {_origin(answer.cuts)}")
    elif form is Format.table:
        _print(rows, row_limit)
        note(f"{counted(rows.num_rows, 'row')}; {_origin(answer.cuts)}")
    elif form is Format.json:
        emit(records(rows))
    elif form is Format.csv:
        sys.stdout.write(_flat(rows).write_csv())
    else:
        pq.write_table(rows, sys.stdout.buffer)


def records(rows: pa.Table) -> list[dict[str, Any]]:
    """Rows as JSON has them: exact numbers, moments and bytes as text, NaN and the infinities too."""
    found: list[dict[str, Any]] = finite(rows.to_pylist(maps_as_pydicts="strict"))
    return found


def format_of(output: Path | None) -> Format:
    """The format that a file's name asks for; a table without a file."""
    if output is None:
        return Format.table
    try:
        return Format(output.suffix.removeprefix("."))
    except ValueError:
        raise SettingError(
            f"the name {output.name} does not say how to write it",
            available=[".csv", ".json", ".parquet"],
            hint="name the file so, or give --format",
        ) from None


def _write(rows: pa.Table, form: Format, output: Path) -> None:
    try:
        if form is Format.parquet:
            pq.write_table(rows, output)
        elif form is Format.csv:
            _flat(rows).write_csv(output)
        elif form is Format.json:
            text = json.dumps(records(rows), indent=2, ensure_ascii=False, allow_nan=False, default=plain)
            output.write_text(text + "\n", encoding="utf-8")
        else:
            raise SettingError(
                "a table is for reading on the screen", hint="give --format csv, json or parquet"
            )
    except OSError as error:
        raise SettingError(f"{output} cannot be written: {error.strerror}") from error


def _flat(rows: pa.Table) -> pl.DataFrame:
    """Rows as CSV can hold them: nested values as JSON, bytes as hexadecimal text."""
    columns: dict[str, pa.Array[Any] | pa.ChunkedArray[Any]] = {}
    for field, column in zip(rows.schema, rows.columns, strict=True):
        if pa.types.is_nested(field.type):
            texts = [
                None if value is None else json.dumps(finite(value), default=plain)
                for value in column.to_pylist()
            ]
            columns[field.name] = pa.array(texts, pa.string())
        elif pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            hexes = [None if value is None else plain(value) for value in column.to_pylist()]
            columns[field.name] = pa.array(hexes, pa.string())
        else:
            columns[field.name] = column
    frame = pl.from_arrow(pa.table(columns))
    assert isinstance(frame, pl.DataFrame)
    return frame.with_columns(polars.selectors.datetime().dt.to_string("iso:strict"))


def _print(rows: pa.Table, row_limit: int | None) -> None:
    out = console()
    limit = row_limit if row_limit is not None else _SHOWN_ROWS if out.is_terminal else 0
    shown = rows.slice(0, limit) if limit else rows
    numbers = [field.name for field in rows.schema if any(is_kind(field.type) for is_kind in _NUMBERS)]
    made = table(*rows.schema.names, right=numbers)
    for row in zip(*(column.to_pylist() for column in shown.columns), strict=True):
        made.add_row(*(cell(value) if value is not None else cell("null", "dim") for value in row))
    out.print(made)
    if shown.num_rows < rows.num_rows:
        note(f"the first {shown.num_rows:,} of {rows.num_rows:,} rows; --rows 0 shows all", "yellow")


def _origin(cuts: Mapping[ProductName, Cut]) -> str:
    """Which version of each product was read."""
    if not cuts:
        return "no product was read"
    return ", ".join(
        f"{name} version {cut.version}"
        if cut.version is not None
        else f"{name} at {moment(cut.committed_at)}"
        for name, cut in sorted(cuts.items())
    )
