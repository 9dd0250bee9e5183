"""Outcomes of quality checks, kept beside a product's data: one row per rule and evaluation.

Their history is what Dagster plots, and what decides whether consumers may advance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import DeltaError

from mesh_assets.contract.model import Contract
from mesh_assets.errors import Fenced, MeshError, TableMissing
from mesh_assets.lake.file import overlapping
from mesh_assets.lake.table import Table
from mesh_assets.names import Layout, ProductName
from mesh_assets.quality.concealment import Hidden, restricted, secret, told_outcome
from mesh_assets.quality.rule import Ruleset, Scope, Status
from mesh_assets.shift.plan import checks_uri

EVALUATION = "evaluation"
"""Column and app transaction: evaluations are numbered from 1."""

_MOMENT = pa.timestamp("us", tz="UTC")
_SCHEMA = pa.schema(
    [
        (EVALUATION, pa.int64()),
        ("version", pa.int64()),
        ("rule", pa.string()),
        ("table", pa.string()),
        ("columns", pa.list_(pa.string())),
        ("status", pa.string()),
        ("severity", pa.string()),
        ("scope", pa.string()),
        ("blocking", pa.bool_()),
        ("dimension", pa.string()),
        ("description", pa.string()),
        ("message", pa.string()),
        ("observed", pa.string()),
        ("unexpected_count", pa.int64()),
        ("row_count", pa.int64()),
        ("quarantined_count", pa.int64()),
        ("result", pa.string()),
        ("contract_hash", pa.string()),
        ("rules_hash", pa.string()),
        ("run_id", pa.string()),
        ("at", _MOMENT),
    ]
)
_ATTEMPTS = 5
_LAST = 100
FAILING = (Status.FAILED, Status.ERROR)
"""What keeps consumers of a product back, if the rule blocks."""
FAULTS = (MeshError, DeltaError, OSError, pl.exceptions.PolarsError, pa.ArrowException, ValueError)
"""What an evaluation may raise; everything else is a mistake of ours."""


@dataclass(frozen=True)
class Checked:
    """How one rule came out on one version.

    Attributes:
        evaluation: number of the evaluation, dense from 1; all rules of a product share it.
        version: of the product.
        rule, table, columns, severity, scope, blocking, dimension, description: the rule's.
        status: passed, warning, failed, error or skipped.
        message: what could not be evaluated and why; how much is in quarantine.
        observed: the value that was compared, as JSON; empty for rules about each row.
        unexpected_count: rows that break the rule, if it is about rows.
        row_count: rows that were looked at.
        quarantined_count: keys that the rule keeps in quarantine.
        result: Great Expectations' ``ExpectationValidationResult`` as JSON.
        contract_hash: of the contract in force.
        rules_hash: of all rules of the evaluation.
        run_id: of the shift or run that evaluated it.
        at: when.
    """

    evaluation: int
    version: int
    rule: str
    table: str
    columns: tuple[str, ...]
    status: str
    severity: str
    scope: str
    blocking: bool
    dimension: str
    description: str
    message: str
    observed: str
    unexpected_count: int | None
    row_count: int | None
    quarantined_count: int
    result: str
    contract_hash: str
    rules_hash: str
    run_id: str
    at: datetime

    @property
    def passed(self) -> bool:
        """Whether the rule is met; one that is skipped has no say."""
        return self.status in (Status.PASSED, Status.SKIPPED)

    def concealed(
        self, contract: Contract | None, hidden: Hidden = restricted, *, summaries: bool = False
    ) -> Checked:
        """The outcome as it may be told under a contract: values of its hidden columns are not in it.

        Args:
            contract: the one in force; None if it is not known: then no values are told at all.
            hidden: which columns; those that are :func:`~mesh_assets.quality.concealment.secret` for whoever
                is told of it beyond the lake.
            summaries: whether means, sums and deviations are told all the same.
        """
        shown = ("table", "columns", "result", "observed", "message", "status")
        row = {name: getattr(self, name) for name in shown}
        return replace(self, **told_outcome(row, contract, hidden, summaries=summaries))

    def shown(self, contract: Contract) -> Checked:
        """The outcome as Dagster shows it: in numbers, where columns are restricted or confidential.

        Of confidential ones those are also means, sums and deviations, to see how they go.
        """
        return self.concealed(contract, secret, summaries=True)

    def sentence(self) -> str:
        """The outcome in words."""
        if self.message:
            return f"{self.rule}: {self.message}"
        if self.unexpected_count:
            return f"{self.rule}: {self.unexpected_count:,} of {self.row_count or 0:,} rows break it"
        return f"{self.rule}: {self.status}" + (f", found {self.observed}" if self.observed else "")


class CheckLog:
    """The outcomes of one product's checks.

    Args:
        layout: of the lake.
        name: the product.
    """

    def __init__(self, layout: Layout, name: ProductName) -> None:
        self.uri = checks_uri(layout, name)

    def latest(self) -> list[Checked]:
        """The newest outcome of every rule; empty before the first evaluation."""
        table = self._table()
        number = table.transaction(EVALUATION) if table else None
        return [] if table is None or number is None else _read(table, number, number)

    def history(self, rule: str = "", *, last: int = 100) -> list[Checked]:
        """The outcomes of the last evaluations, oldest first; of one rule, if it is named."""
        table = self._table()
        number = table.transaction(EVALUATION) if table else None
        if table is None or number is None:
            return []
        return [one for one in _read(table, number - last + 1, number) if rule in ("", one.rule)]

    def append(self, rows: Sequence[Checked]) -> list[Checked]:
        """Keep the outcomes of one evaluation, durably; returns them with its number.

        Raises:
            StorageFull: if the disk is full.
        """
        for attempt in range(_ATTEMPTS):
            table = self._table() or Table.create(
                self.uri,
                _SCHEMA,
                append_only=True,
                statistics=[EVALUATION, "version", "at"],
                order=EVALUATION,
                description="One row per quality rule and evaluation.",
            )
            held = table.transaction(EVALUATION)
            number = (held or 0) + 1
            records = [{**_record(row), EVALUATION: number} for row in rows]
            try:
                table.append(
                    pa.Table.from_pylist(records, schema=table.schema),
                    transactions={EVALUATION: number},
                    expect={EVALUATION: held},
                )
            except Fenced:
                # Somebody else evaluated at the same time: both are kept, one after the other.
                if attempt == _ATTEMPTS - 1:
                    raise
                continue
            return [_row(record) for record in records]
        return []

    def _table(self) -> Table | None:
        try:
            return Table.open(self.uri)
        except TableMissing:
            return None


def blocked(layout: Layout, name: ProductName) -> str | None:
    """Why consumers of a product may not advance to its newest version; None if they may.

    So it is while a blocking rule about a table as a whole failed when it was last evaluated.
    """
    return why_not(name, [one.concealed(None) for one in CheckLog(layout, name).latest()])


def released(layout: Layout, name: ProductName, ruleset: Ruleset | None = None) -> int | None:
    """The newest version of a product that passed all blocking rules about a table as a whole.

    A version that was evaluated more than once is what the last evaluation says.

    Args:
        layout: of the lake.
        name: the product.
        ruleset: only evaluations by these rules count; by any, if left out.

    Returns:
        Its number; None if no version of the last evaluations passed.
    """
    wanted = None if ruleset is None else rules_hash(ruleset)
    found: dict[int, dict[int, list[Checked]]] = {}
    for row in CheckLog(layout, name).history(last=_LAST):
        if wanted in (None, row.rules_hash):
            found.setdefault(row.version, {}).setdefault(row.evaluation, []).append(row)
    passed = (version for version, by in found.items() if why_not(name, by[max(by)]) is None)
    return max(passed, default=None)


def why_not(name: ProductName, rows: Sequence[Checked]) -> str | None:
    """Why the version of an evaluation is not for consumers; None if it is."""
    failing = [one for one in rows if one.blocking and one.scope == Scope.TABLE and one.status in FAILING]
    if not failing:
        return None
    version = failing[0].version
    return f"{name} version {version} fails " + "; ".join(one.sentence() for one in failing)


def rules_hash(ruleset: Ruleset) -> str:
    """What changes when a rule does."""
    text = "\n".join(
        repr((one.id, one.table, one.columns, one.check, one.scope, one.severity, one.blocking))
        for one in ruleset.rules
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _record(row: Checked) -> dict[str, Any]:
    return {one.name: getattr(row, one.name) for one in fields(row)} | {"columns": list(row.columns)}


def _row(record: Mapping[str, Any]) -> Checked:
    known = {one.name: record[one.name] for one in fields(Checked)}
    return Checked(**(known | {"columns": tuple(record["columns"])}))


def _read(table: Table, first: int, last: int) -> list[Checked]:
    rows = table.read(overlapping(table.files(), EVALUATION, first, last))
    number = pc.field(EVALUATION)
    kept = rows.filter((number >= pc.scalar(first)) & (number <= pc.scalar(last)))
    return [_row(record) for record in kept.sort_by(EVALUATION).to_pylist()]
