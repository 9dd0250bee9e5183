"""Statistics of a product's columns: one profile per data file, merged per product version.

A data file never changes, so it is read once; a version's statistics cost what its folds rewrote.
They describe the current table as of its last fold, and each row says which version that is.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa

from mesh_assets.contract.discovery import Product
from mesh_assets.contract.model import TableContract
from mesh_assets.lake.current import Current
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.storage import Storage, storage_of
from mesh_assets.lake.table import Table
from mesh_assets.lake.tail import shape_of
from mesh_assets.lake.version import VersionRow
from mesh_assets.names import CHANGES, CURRENT, Layout, ProductName
from mesh_assets.quality.profile import ColumnProfile, TableProfile, incremental, merged
from mesh_assets.shift.plan import statistics_uri

NUMBER = "number"
"""Column and app transaction: refreshes are numbered from 1."""

_SCHEMA = pa.schema(
    [
        (NUMBER, pa.int64()),
        ("version", pa.int64()),
        ("table", pa.string()),
        ("column", pa.string()),
        ("folded_seq", pa.int64()),
        ("row_count", pa.int64()),
        ("null_count", pa.int64()),
        ("distinct_count", pa.int64()),
        ("minimum", pa.string()),
        ("maximum", pa.string()),
        ("mean", pa.float64()),
        ("deviation", pa.float64()),
        ("summary", pa.string()),
    ]
)
_SHOWN = ("minimum", "maximum", "mean", "deviation", "top")
"""What a summary says of values themselves; left out for restricted columns."""


def refresh(layout: Layout, product: Product, version: VersionRow) -> int:
    """Bring a product's statistics up to its last folds; returns how many rows were added.

    Args:
        layout: of the lake.
        product: whose columns; values of those classified as restricted are not told.
        version: the newest product version when this is done.

    Raises:
        StorageFull: if the disk is full.
    """
    uri = statistics_uri(layout, product.name)
    table = Table.open(uri) if Table.exists(uri) else None
    held = table.transaction(NUMBER) if table else None
    number = (held or 0) + 1
    rows: list[dict[str, Any]] = []
    folded: dict[str, int] = {}
    for contract in product.contract.tables:
        hidden = _hidden(contract)
        profiled = _profiled(layout, product.name, contract.name, hidden)
        if profiled is None:
            continue
        folded[contract.name], profile = profiled
        for column, found in profile.columns.items():
            rows.append(
                {
                    NUMBER: number,
                    "version": version.version,
                    "table": contract.name,
                    "folded_seq": folded[contract.name],
                }
                | _row(column, found, hidden=column in hidden)
            )
    app_ids = {f"{name}/folded": seq for name, seq in folded.items()}
    if not rows or (table is not None and all(table.transaction(one) == seq for one, seq in app_ids.items())):
        return 0
    table = table or Table.create(
        uri,
        _SCHEMA,
        append_only=True,
        statistics=[NUMBER],
        order=NUMBER,
        description="Statistics of each table and column, one row per refresh.",
    )
    table.append(
        pa.Table.from_pylist(rows, schema=_SCHEMA),
        transactions={NUMBER: number, **app_ids},
        expect={NUMBER: held},
    )
    return len(rows)


def _profiled(
    layout: Layout, name: ProductName, table: str, hidden: frozenset[str]
) -> tuple[int, TableProfile] | None:
    """The last folded ``_seq`` of a table and its profile; None before the first fold."""
    current_uri, changes_uri = layout.table(name, CURRENT, table), layout.table(name, CHANGES, table)
    if not (Table.exists(current_uri) and Table.exists(changes_uri)):
        return None
    current = Current.open(current_uri)
    if current.folded < 0:
        return None
    shape = shape_of(ChangeLog.open(changes_uri))
    storage, path = storage_of(layout.catalog(name)), f"profiles/{table}.json"
    held = _held(storage, path)
    files = current.table.files()
    found = incremental({file.path: partial(current.scan, shape, [file]) for file in files}, held)
    # Values of restricted columns are kept nowhere but in the table.
    profiles = {
        file: one if held.get(file) is one else _without_values(one, hidden) for file, one in found.items()
    }
    if profiles.keys() != held.keys() or any(profiles[file] is not held[file] for file in profiles):
        content = {file: profile.to_json() for file, profile in profiles.items()}
        storage.write(path, json.dumps(content).encode())
    return current.folded, merged(profiles[file.path] for file in files)


def _held(storage: Storage, path: str) -> dict[str, TableProfile]:
    """The profiles of the files seen last; what cannot be read is made anew."""
    try:
        content = json.loads(storage.read(path))
        return {file: TableProfile.from_json(profile) for file, profile in content.items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def _hidden(contract: TableContract) -> frozenset[str]:
    """The columns whose values are not for everybody who may see the catalog."""
    return frozenset(one.name for one in contract.columns if one.classification == "restricted")


def _without_values(profile: TableProfile, hidden: frozenset[str]) -> TableProfile:
    columns = {
        name: replace(one, minimum=None, maximum=None, mean=None, squares=0.0, top={}, top_exact=False)
        if name in hidden
        else one
        for name, one in profile.columns.items()
    }
    return replace(profile, columns=columns)


def _row(column: str, profile: ColumnProfile, *, hidden: bool) -> dict[str, Any]:
    summary = profile.summary()
    if hidden:
        summary = {key: value for key, value in summary.items() if key not in _SHOWN}
    bounds = {key: _text(summary.get(key)) for key in ("minimum", "maximum")}
    return {
        "column": column,
        "row_count": summary["count"],
        "null_count": summary["null_count"],
        "distinct_count": summary["distinct_count"],
        **bounds,
        "mean": summary.get("mean"),
        "deviation": summary.get("deviation"),
        "summary": json.dumps(summary, ensure_ascii=False),
    }


def _text(value: object) -> str | None:
    return None if value is None else str(value)
