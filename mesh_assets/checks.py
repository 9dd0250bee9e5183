"""Quality checks: a product's rules evaluated on one version, kept beside its data.

One row per rule and evaluation, in a Delta table of the product's catalog: its history is what
Dagster plots and what decides whether consumers may advance. Row rules that block never fail in
current; such a rule fails here while quarantine holds changes of it.
"""

from __future__ import annotations

import hashlib
import json
import queue
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import DeltaError

from mesh_assets.contract.discovery import Product, discover
from mesh_assets.errors import Fenced, MeshError, StorageFull, TableMissing
from mesh_assets.lake.access import Principal
from mesh_assets.lake.file import overlapping
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.quarantine import RULES, last_rows, open_rows
from mesh_assets.lake.read import fresh
from mesh_assets.lake.table import Table
from mesh_assets.lake.tail import shape_of
from mesh_assets.lake.version import VersionLog, VersionRow
from mesh_assets.lineage.check import check_run
from mesh_assets.lineage.facet import Assertion
from mesh_assets.names import CHANGES, Layout, ProductName
from mesh_assets.plan import checks_uri
from mesh_assets.quality.result import Outcome
from mesh_assets.quality.rule import Query, Rule, Ruleset, Scope, Severity, Status
from mesh_assets.report import CheckReport, VersionReport
from mesh_assets.statistics import refresh

if TYPE_CHECKING:
    from mesh_assets.shift_lineage import Tending

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
_REST_TIMES = 20.0
"""Checks rest for so many times as long as they took."""
_RELEASE_SECONDS = 0.2
_RELEASE_REST_TIMES = 3.0
"""As :data:`_REST_TIMES`, where consumers wait for the outcome."""
_LAST = 100
_FAULTS = (MeshError, DeltaError, OSError, pl.exceptions.PolarsError, pa.ArrowException, ValueError)
_FAILING = (Status.FAILED, Status.ERROR)
_TOLD = ("_count", "_percent", "_percent_total", "_percent_nonmissing")
"""Endings of what a result tells of rows in numbers; the rest are values of the column."""
_COUNTING = ("row_count", "unique_value_count", "proportion")
"""Parts of the names of expectations that compare a number of rows, not a value."""


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


def run(
    layout: Layout,
    product: Product,
    version: VersionRow | int | None = None,
    *,
    run_id: str = "",
    ruleset: Ruleset | None = None,
    tending: Tending | None = None,
) -> list[Checked]:
    """Evaluate all rules of a product on one version, and keep the outcomes.

    Args:
        layout: of the lake.
        product: whose contract and suites hold the rules.
        version: which; the newest by default.
        run_id: of the run in whose name this is done.
        ruleset: the rules, if they are loaded already.
        tending: the lineage of the shift that this belongs to; a run of its own when left out.

    Returns:
        One outcome per rule; none if the product has no rule.

    Raises:
        TableMissing: if the product has no version yet.
        AsOfRefused: if there is no such version.
        ContractError: if a rule is wrong.
    """
    from mesh_assets.quality import evaluate, load

    ruleset = load(product) if ruleset is None else ruleset
    if isinstance(version, VersionRow):
        number, tables = version.version, version.tables
    else:
        cut = VersionLog.open(layout.versions(product.name)).resolve(
            version, log=lambda table: ChangeLog.open(layout.table(product.name, CHANGES, table))
        )
        number, tables = cut.version or 0, cut.tables
    if not ruleset.rules:
        return []
    at = datetime.now(UTC)
    rows = []
    log = CheckLog(layout, product.name)
    checked = [table for table in dict.fromkeys(rule.table for rule in ruleset.rules) if table in tables]
    queries = any(isinstance(rule.check, Query) for rule in ruleset.table_rules)
    with check_run(
        layout,
        product.contract,
        number,
        checked,
        log.uri,
        recorder=tending.recorder if tending else None,
        parent=tending.parent(product.name) if tending else None,
    ) as lineage:
        # A query may read any table of the product, at the same cut.
        frames = {
            # With the exact texts: values that do not fit their column are judged by them.
            table: fresh(layout, product.name, table, seq, principal=Principal.local(), meta=True)
            for table, seq in tables.items()
            if queries or table in checked
        }
        for table in checked:
            others = {name: other for name, other in frames.items() if name != table}
            log_uri = layout.table(product.name, CHANGES, table)
            quarantined = _quarantined(ChangeLog.open(log_uri), tables[table])
            mine = [
                _checked(
                    found,
                    quarantined[found.rule.id],
                    hidden=_hides(product, found.rule),
                    version=number,
                    contract_hash=product.contract.hash,
                    rules_hash=rules_hash(ruleset),
                    run_id=run_id,
                    at=at,
                )
                for found in evaluate(ruleset.for_table(table), frames[table], others=others)
            ]
            counts = [row.row_count for row in mine if row.row_count is not None]
            lineage.outcomes(table, [_assertion(row) for row in mine], row_count=max(counts, default=None))
            rows += mine
        return log.append(rows)


def _assertion(row: Checked) -> Assertion:
    """One outcome as lineage tells it; values of restricted columns are not in it."""
    result = json.loads(row.result or "{}")
    configuration = result.get("expectation_config") or {}
    return Assertion(
        name=row.rule,
        assertion=str(configuration.get("type") or row.dimension or "rule"),
        success=row.passed,
        column=row.columns[0] if len(row.columns) == 1 else None,
        severity="error" if row.severity == Severity.ERROR else "warn",
        description=row.description or None,
        actual=row.observed
        or (None if row.unexpected_count is None else f"{row.unexpected_count} unexpected"),
    )


def blocked(layout: Layout, name: ProductName) -> str | None:
    """Why consumers of a product may not advance to its newest version; None if they may.

    So it is while a blocking rule about a table as a whole failed when it was last evaluated.
    """
    return _why_not(name, CheckLog(layout, name).latest())


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
    passed = (version for version, by in found.items() if _why_not(name, by[max(by)]) is None)
    return max(passed, default=None)


def _why_not(name: ProductName, rows: Sequence[Checked]) -> str | None:
    """Why the version of an evaluation is not for consumers; None if it is."""
    failing = [one for one in rows if one.blocking and one.scope == Scope.TABLE and one.status in _FAILING]
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


def _quarantined(log: ChangeLog, seq: int) -> Counter[str]:
    """How many keys each rule keeps in quarantine."""
    last = last_rows(shape_of(log), open_rows(log, seq))
    return Counter(last[RULES].explode(empty_as_null=False).drop_nulls().to_list())


def _hides(product: Product, rule: Rule) -> bool:
    """Whether values of the rule's columns are not for everybody who may see the outcome."""
    columns = {column.name: column for column in product.contract.table(rule.table).columns}
    return any(
        name in columns and columns[name].classification == "restricted"
        for name in rule.columns or tuple(columns)
    )


def _checked(found: Outcome, quarantined_count: int, *, hidden: bool, **known: Any) -> Checked:  # noqa: ANN401
    rule, status, message = found.rule, found.status, found.message
    if quarantined_count and found.success:
        status = Status.WARNING if rule.severity is Severity.WARNING else Status.FAILED
        message = f"{quarantined_count:,} keys are in quarantine by it"
    result = dict(found.result)
    if hidden:
        kind = str((result.get("expectation_config") or {}).get("type"))
        counting = any(part in kind for part in _COUNTING)
        result["result"] = {
            key: value
            for key, value in result["result"].items()
            if key.endswith(_TOLD) or (counting and key == "observed_value")
        }
        if found.status is Status.ERROR:
            # The message may quote a value.
            result.pop("exception_info", None)
            message = "it could not be evaluated; why is not told of restricted columns"
    observed = result["result"].get("observed_value")
    return Checked(
        evaluation=0,
        rule=rule.id,
        table=rule.table,
        columns=rule.columns,
        status=status.value,
        severity=rule.severity.value,
        scope=rule.scope.value,
        blocking=rule.blocking,
        dimension=rule.dimension,
        description=rule.description,
        message=message,
        observed="" if observed is None else json.dumps(observed, ensure_ascii=False),
        unexpected_count=found.unexpected_count,
        row_count=found.row_count,
        quarantined_count=quarantined_count,
        result=json.dumps(result, ensure_ascii=False),
        **known,
    )


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


# -- beside a shift ----------------------------------------------------------------------------------


class Checker:
    """Runs checks beside a shift, in a thread of its own, at a bounded rate, and refreshes statistics.

    Args:
        layout: of the lake.
        definitions: the products that the shift writes.
        rulesets: their rules.
        run_id: of the shift.
        every_seconds: least time between two evaluations of a product; None: nothing is evaluated.
        tending: the lineage of the shift.

    Attributes:
        messages: what could not be evaluated.
    """

    def __init__(
        self,
        layout: Layout,
        definitions: Mapping[ProductName, Product],
        rulesets: Mapping[ProductName, Ruleset],
        run_id: str,
        *,
        every_seconds: float | None,
        tending: Tending | None = None,
    ) -> None:
        self._layout = layout
        self._tending = tending
        self._definitions = definitions
        self._rulesets = {name: rules for name, rules in rulesets.items() if rules.rules}
        self._run_id = run_id
        self._every_seconds = every_seconds
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checker")
        self._jobs: dict[ProductName, Future[None]] = {}
        self._latest: dict[ProductName, VersionRow] = {}
        self._known: dict[ProductName, tuple[int, str]] = {}
        self._due: dict[ProductName, float] = {}
        self._reports: queue.SimpleQueue[CheckReport] = queue.SimpleQueue()
        self.messages: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def cut(self, report: VersionReport) -> None:
        """A product version is durable: it may be evaluated."""
        self._latest[report.name] = report.row
        now = time.monotonic()
        # The first version of a shift waits too: a snapshot or a backlog comes first.
        self._due.setdefault(report.name, now + (self._every_seconds or 0.0))
        if now >= self._due[report.name]:
            self._submit(report.name)

    def reports(self) -> Iterator[CheckReport]:
        """Evaluations since the last call; begins those that are due."""
        now = time.monotonic()
        for name, due in list(self._due.items()):
            if now >= due and not self._evaluated(name):
                self._submit(name)
        for name in list(self._jobs):
            if self._jobs[name].done():
                self._settle(name)
        while not self._reports.empty():
            yield self._reports.get()

    def finish(self) -> None:
        """Evaluate every product that has changed, or whose rules have, since it was last evaluated."""
        if self._every_seconds is None:
            return
        for name in self._rulesets:
            self._settle(name)
            if name not in self._latest and (row := VersionLog(self._layout.versions(name)).latest()):
                self._latest[name] = row
            if not self._evaluated(name):
                self._submit(name)
        for name in list(self._jobs):
            self._settle(name)

    def _evaluated(self, name: ProductName) -> bool:
        """Whether the newest version was evaluated under the contract as it is."""
        row = self._latest.get(name)
        if row is None or name not in self._rulesets:
            return True
        if name not in self._known:
            held = CheckLog(self._layout, name).latest()
            self._known[name] = (held[0].version, held[0].rules_hash) if held else (0, "")
        return self._known[name] == (row.version, rules_hash(self._rulesets[name]))

    def _submit(self, name: ProductName) -> None:
        if self._every_seconds is None or name not in self._rulesets:
            return
        job = self._jobs.get(name)
        if job is None or job.done():
            self._settle(name)
            self._jobs[name] = self._pool.submit(self._run, name)

    def _settle(self, name: ProductName) -> None:
        job = self._jobs.pop(name, None)
        if job is None or job.cancelled():
            return
        try:
            job.result()
        except StorageFull:
            raise
        except _FAULTS as error:
            # Capture does not depend on it.
            self.messages.append(f"{name}: its quality rules could not be evaluated: {error}")

    def _run(self, name: ProductName) -> None:
        started_at, started, row = datetime.now(UTC), time.monotonic(), self._latest[name]
        product = self._definitions[name]
        try:
            outcomes = run(
                self._layout,
                product,
                row,
                run_id=self._run_id,
                ruleset=self._rulesets[name],
                tending=self._tending,
            )
            refresh(self._layout, product, row)
        finally:
            seconds = time.monotonic() - started
            self._known[name] = (row.version, rules_hash(self._rulesets[name]))
            self._due[name] = time.monotonic() + max(self._every_seconds or 0.0, _REST_TIMES * seconds)
        self._reports.put(CheckReport(name, row.version, outcomes, started_at, seconds))


# -- before consumers advance ------------------------------------------------------------------------


@dataclass
class _Held:
    """A product with rules that keep its consumers from advancing."""

    product: Product
    ruleset: Ruleset
    newest: int = 0
    judged: int = 0
    passed: int | None = None
    why: str | None = None
    opened: bool = False
    failed: bool = False
    rest_until: float = 0.0
    job: Future[None] | None = None


def _passes(layout: Layout, one: _Held, row: VersionRow) -> bool:
    """Whether a version passes the blocking rules about tables as a whole; nothing is kept of it."""
    from mesh_assets.quality import evaluate

    rules = tuple(rule for rule in one.ruleset.table_rules if rule.blocking and rule.table in row.tables)
    tables = dict.fromkeys(rule.table for rule in rules)
    if any(isinstance(rule.check, Query) for rule in rules):
        tables = dict.fromkeys(row.tables)
    frames = {
        table: fresh(
            layout, one.product.name, table, row.tables[table], principal=Principal.local(), meta=True
        )
        for table in tables
    }
    asked = replace(one.ruleset, rules=rules)
    return not any(
        found.status in _FAILING
        for table in dict.fromkeys(rule.table for rule in rules)
        for found in evaluate(
            asked.for_table(table),
            frames[table],
            others={name: frame for name, frame in frames.items() if name != table},
        )
    )


class Releaser:
    """Says up to which version consumers may advance, and has newer ones evaluated, at a bounded rate.

    Only products with blocking rules about a table as a whole are held; the rules are those of when
    this object was made. All methods are for one thread; evaluations run in others.

    Args:
        layout: of the lake.
        products: the folder with the products.
        names: products that are consumed.
        run_id: of the consumers' shift.
        tending: the lineage of that shift.

    Attributes:
        messages: what could not be evaluated: until it can be, consumers stay where they are.
    """

    def __init__(
        self,
        layout: Layout,
        products: Path,
        names: Iterable[ProductName],
        run_id: str,
        *,
        tending: Tending | None = None,
    ) -> None:
        from mesh_assets.quality import load

        self._layout = layout
        self._run_id = run_id
        self._tending = tending
        self._held: dict[ProductName, _Held] = {}
        self.messages: list[str] = []
        found = discover(products)
        for name in names:
            product = found.products.get(name) or found.refused.get(name)
            try:
                ruleset = load(product) if product is not None else None
            except MeshError:
                # Its own shift says so and takes nothing.
                continue
            if product and ruleset and any(rule.blocking for rule in ruleset.table_rules):
                self._held[name] = _Held(product, ruleset)
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="releaser")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def holds(self, name: ProductName) -> bool:
        """Whether consumers of a product wait for its evaluations."""
        return name in self._held

    def released(self, name: ProductName) -> int | None:
        """The newest version that passed, as far as is known."""
        return self._held[name].passed

    def why(self, name: ProductName) -> str | None:
        """Why the newest evaluated version is not released; None if it is."""
        return self._held[name].why

    @property
    def pending(self) -> bool:
        """Whether an evaluation is to come."""
        return any(
            one.job is not None or (one.newest > one.judged and not one.failed) for one in self._held.values()
        )

    def offer(self, name: ProductName, row: VersionRow | None) -> None:
        """This is a product's newest version: take in what was evaluated, and begin what is due."""
        one = self._held.get(name)
        if one is None or row is None:
            return
        one.newest = row.version
        if one.job is not None:
            if not one.job.done():
                return
            self._settle(name, one, one.job)
        if one.newest > one.judged and time.monotonic() >= one.rest_until:
            one.job = self._pool.submit(self._judge, one, row)

    def _settle(self, name: ProductName, one: _Held, job: Future[None]) -> None:
        one.job = None
        try:
            job.result()
        except StorageFull:
            raise
        except _FAULTS as error:
            if not one.failed:
                self.messages.append(f"{name}: consumers wait, its rules could not be evaluated: {error}")
            one.failed = True
        else:
            one.failed = False

    def _judge(self, one: _Held, row: VersionRow) -> None:
        name, started = one.product.name, time.monotonic()
        try:
            if not one.opened:
                one.passed = released(self._layout, name, one.ruleset)
                one.opened = True
            if one.why is None and _passes(self._layout, one, row):
                one.judged = row.version
                one.passed = max(one.passed or 0, row.version)
                return
            # All of it, and kept, so that everybody can see why consumers wait, and when no longer.
            rows = run(
                self._layout,
                one.product,
                row,
                run_id=self._run_id,
                ruleset=one.ruleset,
                tending=self._tending,
            )
            self._take(one, row.version, rows)
        finally:
            self._rest(one, started)

    def _take(self, one: _Held, version: int, rows: Sequence[Checked]) -> None:
        one.judged = version
        one.why = _why_not(one.product.name, rows)
        if one.why is None:
            one.passed = max(one.passed or 0, version)
        elif one.passed == version:
            one.passed = released(self._layout, one.product.name, one.ruleset)

    def _rest(self, one: _Held, started: float) -> None:
        now = time.monotonic()
        one.rest_until = now + max(_RELEASE_SECONDS, _RELEASE_REST_TIMES * (now - started))
