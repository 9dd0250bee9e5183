"""Loads a product's quality rules: from its contract, its columns' promises and its suites."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import polars as pl
import pyarrow as pa

from mesh_assets.contract.arrow import arrow_type
from mesh_assets.contract.discovery import Product
from mesh_assets.contract.document import display
from mesh_assets.contract.model import Contract, TableContract
from mesh_assets.errors import ContractError, Mistake, UnknownName
from mesh_assets.lake.shape import polars_schema
from mesh_assets.quality import odcs, suite
from mesh_assets.quality.kind import Incomparable
from mesh_assets.quality.measure import measure
from mesh_assets.quality.metric import is_row_wise, measure_metric
from mesh_assets.quality.odcs import Draft, Wrong
from mesh_assets.quality.predicate import Predicate, Uncompilable, predicate
from mesh_assets.quality.rule import Expectation, Metric, Query, Rule, Ruleset, Scope, Severity
from mesh_assets.quality.uniqueness import uniqueness

_BY_LOGICAL_TYPE: dict[str, pa.DataType] = {
    "integer": pa.int64(),
    "number": pa.float64(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "array": pa.list_(pa.string()),
}


def load(product: Product) -> Ruleset:
    """All quality rules of a product, compiled as far as that is possible without its data.

    Raises:
        ContractError: naming file and line of every mistake: an unknown column, metric, operator,
            expectation or argument, a value that cannot be compared, a broken regular expression.
    """
    return compile_rules(product.contract, product.folder)


def compile_rules(contract: Contract, folder: Path | None = None) -> Ruleset:
    """As :func:`load`, of a contract and the folder whose suites belong to it (``None``: none do)."""
    collected = _Collected()
    schemas = {table.name: schema_of(table) for table in contract.tables}
    for table in contract.tables:
        collected.table(contract, table, schemas[table.name])
    for path in suite.files(folder) if folder is not None else ():
        collected.suite(contract, path, schemas)
    collected.require_no_mistake()
    return Ruleset(contract.name, tuple(collected.rules))


def schema_of(table: TableContract) -> dict[str, pl.DataType]:
    """The polars types of a table's columns as its contract promises them.

    Where the contract leaves the width open, the widest is taken: rules compile for it alike.
    """
    fields = [
        pa.field(column.name, arrow_type(column) or _BY_LOGICAL_TYPE.get(column.logical_type, pa.string()))
        for column in table.columns
    ]
    return dict(polars_schema(pa.schema(fields)))


class _Collected:
    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self.ids: dict[str, tuple[str, int]] = {}
        self.mistakes: dict[str, list[Mistake]] = {}

    def table(self, contract: Contract, table: TableContract, schema: Mapping[str, pl.DataType]) -> None:
        try:
            for found, column in odcs.promised(table, schema):
                self.guarded(found, table, schema, contract.path, f"column {column.name!r}")
        except Wrong as wrong:
            self.wrong(contract.path, table.line, wrong)
        for written in table.quality:
            try:
                drafted = odcs.draft(written, table, schema)
            except Wrong as wrong:
                self.wrong(contract.path, written.line, wrong)
                continue
            if drafted is not None:
                self.guarded(drafted, table, schema, contract.path)

    def suite(self, contract: Contract, path: Path, schemas: Mapping[str, Mapping[str, pl.DataType]]) -> None:
        try:
            read = suite.read(path)
        except ContractError as error:
            self.mistakes.setdefault(display(path), []).extend(error.mistakes)
            return
        try:
            table = contract.table(read.table)
        except UnknownName as error:
            wrong = Wrong(
                f"{contract.name} has no table {read.table!r}",
                allowed=tuple(error.available),
                hint="name the file after the table, or write meta: table in the suite",
            )
            self.wrong(path, read.table_line, wrong)
            return
        for entry, line in read.expectations:
            try:
                drafted = suite.draft(entry, line)
            except Wrong as wrong:
                self.wrong(path, line, wrong)
            else:
                self.guarded(drafted, table, schemas[table.name], path)

    def guarded(
        self,
        drafted: Draft,
        table: TableContract,
        schema: Mapping[str, pl.DataType],
        path: Path,
        what: str = "",
    ) -> None:
        try:
            self.add(drafted, table, schema, path)
        except Wrong as wrong:
            message = f"{what}: {wrong.message}" if what else wrong.message
            self.wrong(path, drafted.line, Wrong(message, allowed=wrong.allowed, hint=wrong.hint))

    def add(
        self, drafted: Draft, table: TableContract, schema: Mapping[str, pl.DataType], path: Path
    ) -> None:
        scope, slow = _decided(drafted, schema, table.name)
        blocking = drafted.blocking
        if blocking is None:
            blocking = scope is Scope.ROW and drafted.severity is Severity.ERROR
        if blocking and drafted.severity is Severity.WARNING:
            raise Wrong("a warning does not block", hint="write severity: error, or blocking: false")
        name = drafted.name
        if not drafted.named:
            name = self.unused(table.name, name)
        identity = f"{table.name}.{name}"
        if identity in self.ids:
            file, line = self.ids[identity]
            raise Wrong(
                f"rule {name!r} of table {table.name} is defined twice; first in {file}:{line}",
                hint="give each rule a name of its own: the change log names it",
            )
        self.ids[identity] = display(path), drafted.line
        self.rules.append(
            Rule(
                identity,
                table.name,
                drafted.columns,
                drafted.check,
                scope,
                drafted.severity,
                blocking,
                slow,
                drafted.origin,
                drafted.dimension,
                drafted.description,
                path,
                drafted.line,
            )
        )

    def unused(self, table: str, name: str) -> str:
        """A name for a rule whose writer gave none: the second of a kind is numbered."""
        number, free = 1, name
        while f"{table}.{free}" in self.ids:
            number += 1
            free = f"{name}_{number}"
        return free

    def wrong(self, path: Path, line: int, wrong: Wrong) -> None:
        hint = wrong.hint
        self.mistakes.setdefault(display(path), []).append(Mistake(line, wrong.message, wrong.allowed, hint))

    def require_no_mistake(self) -> None:
        if not self.mistakes:
            return
        errors = [ContractError.of(file, found) for file, found in self.mistakes.items()]
        joined = ContractError("\n".join(error.message for error in errors))
        joined.mistakes = tuple(mistake for error in errors for mistake in error.mistakes)
        raise joined


def _decided(drafted: Draft, schema: Mapping[str, pl.DataType], table: str) -> tuple[Scope, bool]:
    """What decides a rule, and whether it has to run in Great Expectations itself.

    Raises:
        Wrong: if a column is missing or cannot be compared so.
    """
    check = drafted.check
    try:
        match check:
            case Expectation():
                return _decided_expectation(check, schema)
            case Metric():
                measure_metric(check, schema)
                return Scope.ROW if is_row_wise(check) else Scope.TABLE, False
            case Query():
                return Scope.ROW if check.predicate is not None else Scope.TABLE, False
    except KeyError as error:
        raise _unknown_column(str(error.args[0]), table, schema) from None
    except Incomparable:
        kinds = ", ".join(f"{name!r} ({schema[name]})" for name in drafted.columns if name in schema)
        raise Wrong(f"the rule's arguments do not fit its column {kinds}") from None
    except Uncompilable:
        assert isinstance(check, Metric)
        raise Wrong(
            "the pattern cannot be expressed here exactly",
            hint="write it as a custom great-expectations rule, which takes any pattern",
        ) from None
    return Scope.TABLE, False


def _decided_expectation(check: Expectation, schema: Mapping[str, pl.DataType]) -> tuple[Scope, bool]:
    found: Predicate | None
    try:
        found = predicate(check, schema)
        known = (
            found is not None or measure(check, schema) is not None or uniqueness(check, schema) is not None
        )
    except Uncompilable:
        found, known = None, False
    if not known:
        _require_columns(check, schema)
    decided_alone = found is not None and found.local and found.mostly >= 1
    return Scope.ROW if decided_alone else Scope.TABLE, not known


def _require_columns(check: Expectation, schema: Mapping[str, pl.DataType]) -> None:
    from mesh_assets.quality.expectation import columns_of

    for name in columns_of(check.type, check.kwargs):
        if name not in schema:
            raise KeyError(name)


def _unknown_column(name: str, table: str, schema: Iterable[str]) -> Wrong:
    unknown = UnknownName.of(f"column of {table}", name, schema)
    return Wrong(f"table {table} has no column {name!r}", allowed=tuple(unknown.available), hint=unknown.hint)
