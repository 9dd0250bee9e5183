"""Values of restricted columns stay in their tables: what outcomes and statistics may tell of such columns.

By the contract in force, so what was kept before a column was restricted is concealed when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from mesh_assets.contract.model import TableContract
from mesh_assets.quality.result import raised
from mesh_assets.quality.rule import Status

_RESTRICTED = "restricted"
_TOLD = ("_count", "_percent", "_percent_total", "_percent_nonmissing")
"""Endings of what a result tells of rows in numbers; the rest are values of the column."""
_COUNTING = ("row_count", "unique_value_count", "proportion")
"""Parts of the names of expectations that compare a number of rows, not a value."""
_UNTOLD = "it could not be evaluated; why is not told of restricted columns"
_VALUES = ("minimum", "maximum", "mean", "deviation", "top")
"""What statistics say of values themselves."""


def restricted(table: TableContract) -> frozenset[str]:
    """The columns whose values are not for everybody who may see the catalog."""
    return frozenset(column.name for column in table.columns if column.classification == _RESTRICTED)


def conceals(table: TableContract, columns: Iterable[str]) -> bool:
    """Whether an outcome about some columns may not tell values; without any it may be about all."""
    hidden = restricted(table)
    return not hidden.isdisjoint(columns or hidden)


def concealed_outcome(row: Mapping[str, Any]) -> dict[str, Any]:
    """An outcome as checks keep it (``result`` and ``observed`` as JSON), in numbers of rows only."""
    result = json.loads(row["result"] or "{}")
    found = result.get("result") or {}
    kind = str((result.get("expectation_config") or {}).get("type"))
    counting = any(part in kind for part in _COUNTING)
    told = {
        key: value
        for key, value in found.items()
        if key.endswith(_TOLD) or (counting and key == "observed_value")
    }
    result["result"] = told
    kept = {**row, "observed": row["observed"] if "observed_value" in told else ""}
    if row["status"] == Status.ERROR:
        # What it raised may quote a value.
        result["exception_info"] = raised(_UNTOLD)
        kept["message"] = _UNTOLD
    return {**kept, "result": json.dumps(result, ensure_ascii=False)}


def concealed_statistics(row: Mapping[str, Any]) -> dict[str, Any]:
    """One column's statistics as checks keep them, without values."""
    summary = json.loads(row["summary"])
    told = {key: value for key, value in summary.items() if key not in _VALUES}
    return {**row, **dict.fromkeys(_VALUES[:4]), "summary": json.dumps(told, ensure_ascii=False)}
