"""Statistics of a product's columns: one profile per data file, merged per fold.

A data file never changes, so it is read once; statistics cost what the folds since rewrote.
They describe each current table as of its last fold, and each row says which product version that holds.
"""

from __future__ import annotations

import json
import math
import zlib
from bisect import bisect_right
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mesh_assets.contract.discovery import Product
from mesh_assets.lake.current import Current
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.storage import Storage, storage_of
from mesh_assets.lake.table import Table
from mesh_assets.lake.tail import shape_of
from mesh_assets.lake.version import VersionLog, VersionRow
from mesh_assets.lineage.check import StatisticsRecording, statistics_run
from mesh_assets.lineage.facet import ColumnMetrics
from mesh_assets.names import CHANGES, CURRENT, Layout, ProductName
from mesh_assets.quality.concealment import (
    concealed_statistics,
    concealing,
    discreet,
    restricted,
    secret,
)
from mesh_assets.quality.kind import NUMERIC, Kind
from mesh_assets.quality.profile import ColumnProfile, TableProfile, incremental, merged
from mesh_assets.shift.plan import statistics_uri

if TYPE_CHECKING:
    from mesh_assets.shift.lineage import Tending

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


@dataclass(frozen=True)
class _Profiled:
    """What a current table holds at one of its Delta versions, folded up to ``folded_seq``."""

    folded_seq: int
    delta_version: int
    byte_count: int
    file_count: int
    profile: TableProfile


def refresh(layout: Layout, product: Product, version: VersionRow, *, tending: Tending | None = None) -> int:
    """Bring a product's statistics up to its last folds; returns how many rows were added.

    Args:
        layout: of the lake.
        product: whose columns; values of those classified as restricted are not told.
        version: the newest product version when this is done.
        tending: the lineage of the shift that this belongs to; a run of its own when left out.

    Raises:
        StorageFull: if the disk is full.
    """
    with (
        statistics_run(
            layout,
            product.contract,
            statistics_uri(layout, product.name),
            generations=version.generations,
            recorder=tending.recorder if tending else None,
            parent=tending.parent(product.name) if tending else None,
        ) as lineage,
        discreet(concealing(product.contract, "its statistics could not be refreshed")),
    ):
        return _refresh(layout, product, version, lineage)


def _refresh(layout: Layout, product: Product, version: VersionRow, lineage: StatisticsRecording) -> int:
    uri = statistics_uri(layout, product.name)
    table = Table.open(uri) if Table.exists(uri) else None
    held = table.transaction(NUMBER) if table else None
    number = (held or 0) + 1
    state: dict[str, int] = {}
    found: dict[str, _Profiled] = {}
    for contract in product.contract.tables:
        hidden = restricted(contract)
        profiled = _profiled(layout, product.name, contract.name, hidden, version.generation(contract.name))
        if profiled is None:
            continue
        found[contract.name] = profiled
        # Statistics are told again once other columns are restricted.
        names = ",".join(sorted(hidden)).encode()
        state |= {
            f"{contract.name}/folded": profiled.folded_seq,
            f"{contract.name}/restricted": zlib.crc32(names),
        }
    if not found or (table is not None and all(table.transaction(one) == at for one, at in state.items())):
        return 0
    rows: list[dict[str, Any]] = []
    for name, profiled in found.items():
        holds = _version_of(layout, product.name, name, profiled, version)
        _tell(lineage, product, name, profiled, holds)
        hidden = restricted(product.contract.table(name))
        for column, one in profiled.profile.columns.items():
            row = {NUMBER: number, "version": holds, "table": name, "folded_seq": profiled.folded_seq}
            row |= _row(column, one)
            rows.append(concealed_statistics(row) if column in hidden else row)
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
        transactions={NUMBER: number, **state},
        expect={NUMBER: held},
    )
    return len(rows)


def _profiled(
    layout: Layout, name: ProductName, table: str, hidden: frozenset[str], generation: int
) -> _Profiled | None:
    """A table's profile; None before the first fold."""
    current_uri = layout.table(name, CURRENT, table, generation)
    changes_uri = layout.table(name, CHANGES, table, generation)
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
    profiles = {file: _without_values(one, hidden) for file, one in found.items()}
    if profiles.keys() != held.keys() or any(profiles[file] is not held[file] for file in profiles):
        content = {file: profile.to_json() for file, profile in profiles.items()}
        storage.write(path, json.dumps(content).encode())
    return _Profiled(
        current.folded,
        current.table.version,
        sum(file.size for file in files),
        len(files),
        merged(profiles[file.path] for file in files),
    )


def _version_of(
    layout: Layout, name: ProductName, table: str, profiled: _Profiled, newest: VersionRow
) -> int | None:
    """The product version that a current table holds: tables are folded up to the cut of one."""
    if newest.tables.get(table) == profiled.folded_seq:
        return newest.version
    log = VersionLog.open(layout.versions(name))

    def reached(version: int) -> int:
        row = log.at(version)
        return row.tables.get(table, -1) if row else -1

    found = bisect_right(range(1, log.records.number + 1), profiled.folded_seq, key=reached)
    return found if found and reached(found) == profiled.folded_seq else None


def _tell(
    lineage: StatisticsRecording, product: Product, table: str, profiled: _Profiled, version: int | None
) -> None:
    """Tell lineage, and with it whoever its events are forwarded to, what is no secret of the columns."""
    contract = product.contract.table(table)
    hidden = secret(contract)
    lineage.profiled(
        table,
        profiled.delta_version,
        {name: _metrics(one, told=name not in hidden) for name, one in profiled.profile.columns.items()},
        row_count=profiled.profile.row_count,
        byte_count=profiled.byte_count,
        file_count=profiled.file_count,
        version=version,
    )


def _metrics(profile: ColumnProfile, *, told: bool) -> ColumnMetrics:
    """A column in numbers, as OpenLineage takes them; without its values unless they may be ``told``.

    Distinct values are estimated where there are many, the sum is that of floats.
    """
    known = ColumnMetrics(
        null_count=profile.null_count + profile.nan_count,
        distinct_count=None if profile.kind is Kind.OTHER else profile.distinct_count,
        count=profile.value_count,
    )
    if not told or profile.kind not in NUMERIC:
        return known
    total = None if profile.mean is None else profile.mean * profile.value_count
    return replace(known, total=_number(total), low=_number(profile.minimum), high=_number(profile.maximum))


def _number(value: float | Decimal | None) -> float | None:
    """A value as JSON has numbers, which are finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(value) if isinstance(value, Decimal) else value


def _held(storage: Storage, path: str) -> dict[str, TableProfile]:
    """The profiles of the files seen last; what cannot be read is made anew."""
    try:
        content = json.loads(storage.read(path))
        return {file: TableProfile.from_json(profile) for file, profile in content.items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def _without_values(profile: TableProfile, hidden: frozenset[str]) -> TableProfile:
    """The profile without values of some columns; itself if it has none."""
    told = {name: one for name, one in profile.columns.items() if name in hidden and _tells(one)}
    without = {
        name: replace(one, minimum=None, maximum=None, mean=None, squares=0.0, top={}, top_exact=False)
        for name, one in told.items()
    }
    return replace(profile, columns={**profile.columns, **without}) if without else profile


def _tells(profile: ColumnProfile) -> bool:
    values = (profile.minimum, profile.maximum, profile.mean)
    return bool(profile.top) or profile.top_exact or any(value is not None for value in values)


def _row(column: str, profile: ColumnProfile) -> dict[str, Any]:
    summary = profile.summary()
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
