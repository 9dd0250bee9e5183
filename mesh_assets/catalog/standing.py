"""How products stand, as rows of the enterprise catalog: a pure function of their published records."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from mesh_assets.catalog.local import LocalRecord
from mesh_assets.contract.model import Contract, SlaProperty, TableContract
from mesh_assets.names import CHANGES, CURRENT

Row = dict[str, Any]
SOURCE = "source"
"""The kind of a table at an operational source."""


def datasets(record: LocalRecord) -> list[Row]:
    """One row per table."""
    contract = record.promised
    latest = record.versions[-1] if record.versions else None
    standing = {table.name: table for table in record.tables}
    released = [one.released_at for one in record.releases if one.hash == contract.hash]
    default = contract.default_table
    latency = contract.promise("latency")
    found = []
    for table in contract.tables:
        own = standing.get(table.name)
        inputs = [one for one in record.inputs if one.output in ("", table.name)]
        found.append(
            {
                "dataset": f"{record.product}.{table.name}",
                "domain": contract.domain,
                "product": record.product,
                "table": table.name,
                "is_default": default is not None and default.name == table.name,
                "derived": record.derived,
                "status": contract.status,
                "business_name": table.business_name,
                "description": table.description,
                "product_description": contract.description,
                "usage": contract.usage,
                "limitations": contract.limitations,
                "owners": list(contract.owners),
                "tags": sorted({*contract.tags, *table.tags}),
                "key": list(table.key),
                "promises": [_promise(one) for one in contract.sla if not one.element or _about(one, table)],
                "inputs": [_input_name(one.kind, one.name, one.table) for one in inputs],
                "source_table": "" if record.derived else table.physical_name,
                "contract_version": contract.version,
                "contract_hash": contract.hash,
                "contract_file": record.contract.file,
                "released_at": released[0] if released else None,
                "latency_seconds": latency.seconds if latency is not None else None,
                "version": latest.version if latest else None,
                "version_hash": latest.hash if latest else None,
                "parents": sorted(latest.parents.items()) if latest else [],
                "run_id": latest.run_id if latest else None,
                "committed_at": latest.committed_at if latest else None,
                "created_at": latest.created_at if latest else None,
                "change_count": own.change_count if own else 0,
                "folded_row_count": own.folded_row_count if own else 0,
                "folded_seq": own.folded_seq if own else -1,
                "schema_version": own.schemas[-1].number if own and own.schemas else None,
                "published_at": record.published_at,
            }
        )
    return found


def columns(record: LocalRecord) -> list[Row]:
    """One row per promised column."""
    contract = record.promised
    statistics = {(str(row.get("table", "")), str(row.get("column", ""))): row for row in record.statistics}
    found = []
    for table in contract.tables:
        lake = next((one.columns for one in record.tables if one.name == table.name), {})
        for ordinal, column in enumerate(table.columns, 1):
            known = statistics.get((table.name, column.name))
            found.append(
                {
                    "dataset": f"{record.product}.{table.name}",
                    "domain": contract.domain,
                    "product": record.product,
                    "table": table.name,
                    "column": column.name,
                    "ordinal": ordinal,
                    "logical_type": column.logical_type,
                    "physical_type": column.physical_type,
                    "lake_type": lake.get(column.name, ""),
                    "key": column.key,
                    "required": column.required,
                    "unique": column.unique,
                    "classification": column.classification,
                    "business_name": column.business_name,
                    "description": column.description,
                    "tags": list(column.tags),
                    "since": _span(record, table.name, column.name)[0],
                    "statistics": json.dumps(known, sort_keys=True) if known else None,
                }
            )
    return found


def checks(record: LocalRecord) -> list[Row]:
    """One row per rule that was evaluated."""
    domain = record.name.domain
    return [{"product": record.product, "domain": domain, **one.model_dump()} for one in record.checks]


def domains(records: Iterable[LocalRecord]) -> list[Row]:
    """One row per domain that has products."""
    by_domain: dict[str, list[LocalRecord]] = {}
    for record in records:
        by_domain.setdefault(record.domain.name, []).append(record)
    found = []
    for name, own in sorted(by_domain.items()):
        newest = max(own, key=lambda record: (record.published_at, record.product))
        sources = {one.name for record in own for one in record.inputs if one.kind == "source"}
        found.append(
            {
                "domain": name,
                "description": newest.domain.description,
                "owner": newest.domain.owner,
                "sources": sorted(sources),
                "product_count": len(own),
                "derived_count": sum(record.derived for record in own),
                "table_count": sum(len(record.promised.tables) for record in own),
            }
        )
    return found


def edges(record: LocalRecord) -> list[Row]:
    """What the contract and the definition say of where tables and columns come from.

    A captured column is the source's own; how a derived product's columns come about is told by
    the lineage of its runs, so here are its inputs and their key paths only.
    """
    contract = record.promised
    found: list[Row] = []
    for table in contract.tables:
        changes = _node("to", f"{record.product}.{table.name}", CHANGES)
        names = _columns(record, contract, table)
        for one in record.inputs:
            if one.output not in ("", table.name):
                continue
            kind = SOURCE if one.kind == SOURCE else CURRENT
            origin = _node("from", _input_name(one.kind, one.name, one.table), kind)
            found.append(_edge("table", {**origin, **changes}, since=_released(record)))
            if one.kind == SOURCE:
                found += [
                    _column_edge(record, table.name, name, name, {**origin, **changes}) for name in names
                ]
            else:
                found += [
                    _column_edge(record, table.name, theirs, own, {**origin, **changes}, "JOIN")
                    for own, theirs in one.key.items()
                ]
        folded = {
            **_node("from", f"{record.product}.{table.name}", CHANGES),
            **_node("to", f"{record.product}.{table.name}", CURRENT),
        }
        found.append(_edge("table", folded, since=_released(record)))
        found += [_column_edge(record, table.name, name, name, folded) for name in names]
    unique = {tuple((key, row[key]) for key in sorted(row)): row for row in found}
    return list(unique.values())


def _columns(record: LocalRecord, contract: Contract, table: TableContract) -> list[str]:
    """Every column that the table has or had."""
    present = [column.name for column in table.columns]
    past = [name for release in record.releases for name in release.columns.get(table.name, ())]
    return list(dict.fromkeys([*present, *past]))


def _span(record: LocalRecord, table: str, column: str) -> tuple[datetime | None, datetime | None]:
    """Since when a column is promised, and until when; None: not known, or still."""
    releases = sorted(record.releases, key=lambda release: release.released_at)
    having = [number for number, release in enumerate(releases) if column in release.columns.get(table, ())]
    now = next((one for one in record.promised.tables if one.name == table), None)
    held = now is not None and any(one.name == column for one in now.columns)
    since = releases[having[0]].released_at if having else None
    if held or not having or having[-1] + 1 == len(releases):
        return since, None
    return since, releases[having[-1] + 1].released_at


def _released(record: LocalRecord) -> datetime | None:
    return min((release.released_at for release in record.releases), default=None)


def _node(end: str, dataset: str, kind: str) -> Row:
    return {f"{end}_dataset": dataset, f"{end}_kind": kind}


def _edge(kind: str, ends: Row, *, since: datetime | None, until: datetime | None = None) -> Row:
    texts = (
        *("from_namespace", "from_name", "from_column", "to_namespace", "to_name", "to_column"),
        *("type", "subtype", "description", "job", "statement", "run_id"),
    )
    empty: Row = dict.fromkeys(texts, "")
    numbers: Row = dict.fromkeys(("first_delta_version", "last_delta_version", "row_count"))
    known = {"kind": kind, "origin": "contract", "masking": False}
    return {**empty, **numbers, **known, **ends, "first_seen_at": since, "last_seen_at": until}


def _column_edge(
    record: LocalRecord, table: str, source: str, column: str, ends: Row, subtype: str = "IDENTITY"
) -> Row:
    since, until = _span(record, table, column)
    row = _edge("column", ends, since=since, until=until)
    kind = "DIRECT" if subtype == "IDENTITY" else "INDIRECT"
    return {**row, "from_column": source, "to_column": column, "type": kind, "subtype": subtype}


def _input_name(kind: str, name: str, table: str) -> str:
    return f"{name}/{table}" if kind == SOURCE else f"{name}.{table}"


def _promise(one: SlaProperty) -> str:
    return " ".join(str(part) for part in (one.name, one.value, one.unit) if part != "")


def _about(promise: SlaProperty, table: TableContract) -> bool:
    return promise.element.split(".")[0] == table.name
