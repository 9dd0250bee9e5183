"""A quality rule: what is expected of the rows of a table, or of the table as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from mesh_assets.errors import UnknownName
from mesh_assets.names import ProductName


class Scope(StrEnum):
    """What decides a rule: one row alone, or all rows together."""

    ROW = "row"
    TABLE = "table"


class Severity(StrEnum):
    """How bad it is when a rule fails."""

    ERROR = "error"
    WARNING = "warning"


class Origin(StrEnum):
    """Where a rule was written."""

    SCHEMA = "schema"
    """The contract's columns themselves: required, enum, logicalTypeOptions, unique."""
    CONTRACT = "contract"
    """A contract's ``quality``."""
    SUITE = "suite"
    """A Great Expectations suite in the product's ``expectations`` folder."""


class Status(StrEnum):
    """How a rule came out."""

    PASSED = "passed"
    WARNING = "warning"
    FAILED = "failed"
    ERROR = "error"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Expectation:
    """What Great Expectations calls an expectation: its type and arguments."""

    type: str
    kwargs: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True)
class Metric:
    """An ODCS library metric compared with a threshold.

    Attributes:
        metric: nullValues, missingValues, invalidValues, duplicateValues or rowCount.
        columns: the columns that it is measured on; empty for rowCount.
        operator: ODCS operator, such as mustBeLessThan.
        threshold: the number, or the two numbers, that the metric is compared with.
        percent: the metric is counted in percent of all rows, else in rows.
        arguments: the metric's arguments.
    """

    metric: str
    columns: tuple[str, ...]
    operator: str
    threshold: Any
    percent: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Query:
    """An ODCS sql rule: one value, compared with a threshold.

    Attributes:
        sql: the query; the table is called :data:`TABLE` in it.
        operator: ODCS operator.
        threshold: what the value is compared with.
        predicate: for ``SELECT count(*) FROM table WHERE predicate`` that must be 0, with a
            predicate about one row alone: the predicate; a row for which it is true fails.
    """

    sql: str
    operator: str
    threshold: Any
    predicate: str | None = None


@dataclass(frozen=True)
class Skipped:
    """A rule that this mesh does not run, and why."""

    reason: str


Check = Expectation | Metric | Query | Skipped


@dataclass(frozen=True)
class Rule:
    """One quality rule of one table.

    Attributes:
        id: ``<table>.<name>``, stable and unique in its product; change logs name it.
        table: the table it is about.
        columns: the columns it reads; empty if none or not known.
        check: what is expected.
        scope: whether each row decides it alone.
        severity: what a failure means: an error or a warning.
        blocking: a row rule keeps failing rows out of current, a table rule keeps consumers from advancing.
        slow: it does not compile to expressions and runs in Great Expectations itself.
        origin: where it was written.
        dimension: ODCS quality dimension, or "".
        description: for people.
        path: the file it stands in.
        line: the line.
    """

    id: str
    table: str
    columns: tuple[str, ...]
    check: Check
    scope: Scope = Scope.TABLE
    severity: Severity = Severity.ERROR
    blocking: bool = False
    slow: bool = False
    origin: Origin = Origin.CONTRACT
    dimension: str = ""
    description: str = ""
    path: Path = field(default=Path(), compare=False)
    line: int = field(default=1, compare=False)

    @property
    def column(self) -> str | None:
        """The column, if the rule is about exactly one."""
        return self.columns[0] if len(self.columns) == 1 else None


@dataclass(frozen=True)
class Ruleset:
    """All quality rules of one product, table by table in the order they were written."""

    product: ProductName
    rules: tuple[Rule, ...]

    def for_table(self, table: str) -> Ruleset:
        """The rules of one table."""
        return Ruleset(self.product, tuple(rule for rule in self.rules if rule.table == table))

    @property
    def row_rules(self) -> tuple[Rule, ...]:
        """Rules that a gate can decide row by row."""
        return tuple(rule for rule in self.rules if rule.scope is Scope.ROW)

    @property
    def table_rules(self) -> tuple[Rule, ...]:
        """Rules about a table as a whole."""
        return tuple(rule for rule in self.rules if rule.scope is Scope.TABLE)

    @property
    def blocking(self) -> tuple[Rule, ...]:
        """Rules whose failure blocks."""
        return tuple(rule for rule in self.rules if rule.blocking)

    def rule(self, id: str) -> Rule:
        """A rule by its id.

        Raises:
            UnknownName: if there is none.
        """
        for rule in self.rules:
            if rule.id == id:
                return rule
        raise UnknownName.of("quality rule", id, self.ids)

    @property
    def ids(self) -> Iterable[str]:
        """The ids of all rules, in order."""
        return [rule.id for rule in self.rules]
