"""Answers for :mod:`mesh_assets.inspection`, in a process of its own that loads little more than polars."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from mesh_assets.lineage.columns import column_lineage


def encoded(schema: pl.Schema) -> str:
    """A schema as JSON can hold it."""
    return base64.b64encode(pl.DataFrame(schema=schema).write_ipc(None).getvalue()).decode()


def _decoded(text: str) -> pl.Schema:
    return pl.read_ipc(io.BytesIO(base64.b64decode(text))).schema


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """What the query plans of a transform tell, or its error."""
    inputs = {name: _decoded(text) for name, text in request["inputs"].items()}
    path = Path(request["transform"])
    try:
        transform = runpy.run_path(str(path))[request["function"]]
        given = transform({name: pl.LazyFrame(schema=schema) for name, schema in inputs.items()})
        frames = dict(given) if isinstance(given, Mapping) else {request["table"]: given}
        for frame in frames.values():
            if not isinstance(frame, pl.LazyFrame | pl.DataFrame):
                return {"error": f"it returned {type(frame).__name__}, not a LazyFrame"}
        made = {table: frame.lazy().collect_schema() for table, frame in frames.items()}
        lineage = column_lineage(transform, inputs, request["table"])
    except Exception as error:  # noqa: BLE001 - whatever a transform raises is its own.
        return {"error": _told(error, path)}
    reads: dict[str, set[str]] = {}
    for columns in lineage.values():
        for sources in columns.values():
            for source in sources:
                reads.setdefault(source.input, set()).add(source.column)
    promised = {table: _decoded(text) for table, text in request["tables"].items()}
    return {
        "reads": {name: sorted(columns) for name, columns in reads.items()},
        "makes": {
            table: {name: str(kind) for name, kind in schema.items()} for table, schema in made.items()
        },
        "differs": {
            table: {
                name: str(kind)
                for name, kind in schema.items()
                if table in made and made[table].get(name, kind) != kind
            }
            for table, schema in promised.items()
        },
    }


def _told(error: Exception, path: Path) -> str:
    """The error with the line of the transform's file that it comes from."""
    line = 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    # Polars adds the whole plan below its first line.
    message = (str(error).strip() or "no message").splitlines()[0]
    place = f"{path.name}:{line}: " if line else ""
    return f"{place}{type(error).__name__}: {message}"


if __name__ == "__main__":
    # What a transform prints is not the answer.
    with contextlib.redirect_stdout(sys.stderr):
        found = _answer(json.load(sys.stdin))
    json.dump(found, sys.stdout)
