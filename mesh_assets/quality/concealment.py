"""Values of restricted columns stay in their tables: what outcomes, statistics and errors may tell of such.

By the contract in force, so what was kept before a column was restricted is concealed when it is read.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from deltalake.exceptions import DeltaError

from mesh_assets.contract.model import Contract, TableContract
from mesh_assets.errors import CommitConflict, Fenced, MeshError, StorageFull
from mesh_assets.quality.result import raised
from mesh_assets.quality.rule import Status

Hidden = Callable[[TableContract], frozenset[str]]
"""Says which columns of a table are hidden: :func:`restricted` or :func:`secret`."""

_RESTRICTED = "restricted"
_CONFIDENTIAL = "confidential"
_TOLD = ("_count", "_percent", "_percent_total", "_percent_nonmissing")
"""Endings of what a result tells of rows in numbers; the rest are values of the column."""
_COUNTING = ("row_count", "unique_value_count", "proportion")
"""Parts of the names of expectations that compare a number of rows, not a value."""
_SUMMING = ("column_mean_", "column_sum_", "column_stdev_")
"""Parts of the names of expectations that compare a summary of all rows, in which no row's value shows."""
_METRIC = "odcs_"
"""All metrics of ODCS count rows."""
_QUERY = "odcs_sql"
_COUNTED = re.compile(r"\s*select\s+count\s*\([^()]*\)(\s+as\s+\w+)?\s+from\b(?!.*\bunion\b)", re.I | re.S)
"""A query that gives a number of rows."""
_UNTOLD = "it could not be evaluated; why is not told here, since it may quote values"
MORE = "more is not told: it may quote values of restricted columns"
"""What an error says in place of what it leaves out."""
_VALUES = ("minimum", "maximum", "mean", "deviation", "top")
"""What statistics say of values themselves."""
_PLAIN = (OSError, EOFError, DeltaError)
"""Errors of other programs that speak of files and processes, never of rows."""
_PACKAGE = Path(__file__).parents[1]


def restricted(table: TableContract) -> frozenset[str]:
    """The columns whose values are not for everybody who may see the catalog."""
    return frozenset(column.name for column in table.columns if column.classification == _RESTRICTED)


def secret(table: TableContract) -> frozenset[str]:
    """The columns whose values are for nobody beyond the lake: whom lineage goes to, who sees Dagster."""
    hidden = (_RESTRICTED, _CONFIDENTIAL)
    return frozenset(column.name for column in table.columns if column.classification in hidden)


# -- outcomes and statistics --------------------------------------------------------------------------


def told_outcome(
    row: Mapping[str, Any],
    contract: Contract | None,
    hidden: Hidden = restricted,
    *,
    summaries: bool = False,
) -> dict[str, Any]:
    """An outcome as checks keep it (``result`` and ``observed`` as JSON), as it may be told.

    Args:
        row: the outcome.
        contract: the one in force, None if it is not known; of a table that it does not have nothing says
            that values may be told.
        hidden: which columns' values are left out.
        summaries: whether means, sums and deviations are told all the same.
    """
    return _in_numbers(row, summaries=summaries) if _conceals(row, contract, hidden) else dict(row)


def concealed_statistics(row: Mapping[str, Any]) -> dict[str, Any]:
    """One column's statistics as checks keep them, without values."""
    summary = json.loads(row["summary"])
    told = {key: value for key, value in summary.items() if key not in _VALUES}
    return {**row, **dict.fromkeys(_VALUES[:4]), "summary": json.dumps(told, ensure_ascii=False)}


def _conceals(row: Mapping[str, Any], contract: Contract | None, hidden: Hidden) -> bool:
    """Whether an outcome may not tell values; one about no columns may be about all."""
    columns = {table.name: hidden(table) for table in contract.tables} if contract else {}
    own = columns.pop(row["table"], None)
    if own is None or not own.isdisjoint(row["columns"] or own):
        return True
    others = [name for name, found in columns.items() if found]
    if not others:
        return False
    # A query may read the product's other tables; which of their columns is not known.
    query = _query(json.loads(row["result"] or "{}"))
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", query, re.I) for name in others)


def _query(result: Mapping[str, Any]) -> str:
    configuration = result.get("expectation_config") or {}
    return str((configuration.get("kwargs") or {}).get("query") or "")


def _in_numbers(row: Mapping[str, Any], *, summaries: bool) -> dict[str, Any]:
    result = json.loads(row["result"] or "{}")
    found = result.get("result") or {}
    kind = str((result.get("expectation_config") or {}).get("type"))
    observed = _counts(kind, result) or (summaries and any(part in kind for part in _SUMMING))
    told = {
        key: value
        for key, value in found.items()
        if key.endswith(_TOLD) or (observed and key == "observed_value")
    }
    result["result"] = told
    kept = {**row, "observed": row["observed"] if "observed_value" in told else ""}
    if row["status"] == Status.ERROR:
        # What it raised may quote a value.
        result["exception_info"] = raised(_UNTOLD)
        kept["message"] = _UNTOLD
    return {**kept, "result": json.dumps(result, ensure_ascii=False)}


def _counts(kind: str, result: Mapping[str, Any]) -> bool:
    """Whether what was observed is a number of rows, or a share of them."""
    if kind == _QUERY:
        return _COUNTED.match(_query(result)) is not None
    return kind.startswith(_METRIC) or any(part in kind for part in _COUNTING)


# -- errors -------------------------------------------------------------------------------------------


@contextmanager
def discreet(conceal: Callable[[BaseException], MeshError] | None) -> Iterator[None]:
    """Let no words of other libraries out that may quote values of the rows at hand.

    Errors of ours, of storage and of processes are told as they are, unless such words led to them.

    Args:
        conceal: makes the error that is told instead; None: all may be told.
    """
    told = None
    try:
        yield
    except (Exception, pl.exceptions.PanicException) as error:
        if conceal is None or not _quotes(error):
            raise
        told = conceal(error)
    if told is not None:
        # Nor may a stack trace show what it was.
        raise told from None


def untold(what: str, error: BaseException, *, said: str = "", hint: str = "") -> MeshError:
    """The error that is told instead of one that may quote values: its kind and where it was raised.

    Args:
        what: what failed.
        error: why.
        said: what may be told of it, if that is more than its kind.
        hint: where to find the rest.
    """
    frames = traceback.extract_tb(error.__traceback__)
    mine = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)]
    place = f" at {Path(mine[-1].filename).relative_to(_PACKAGE.parent)}:{mine[-1].lineno}" if mine else ""
    return MeshError(f"{what}: {said or type(error).__name__}{place} ({MORE})", hint=hint)


def concealing(contract: Contract, what: str) -> Callable[[BaseException], MeshError] | None:
    """For :func:`discreet`: how errors over a product's own rows are concealed; None if they need not be."""
    if not any(restricted(table) for table in contract.tables):
        return None
    hint = "who may see the rows finds them by `mesh sql`"
    return lambda error: untold(f"{contract.name}: {what}", error, hint=hint)


def _quotes(error: BaseException) -> bool:
    """Whether words of another library are in an error, or in what led to it."""
    if isinstance(error, StorageFull | Fenced | CommitConflict):
        # Whoever catches them goes by the type; what led to them speaks of files.
        return False
    link: BaseException | None = error
    while link is not None:
        ours = type(link).__module__.partition(".")[0] == _PACKAGE.name
        if not ours and not isinstance(link, _PLAIN):
            return True
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return False
