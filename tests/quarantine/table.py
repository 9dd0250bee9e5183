"""One landed table without a source: its relation, frames of changes, landings, and a gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from mesh_assets.cdc.relation import Column, Relation
from mesh_assets.cdc.schema import SchemaLog
from mesh_assets.cdc.type import arrow_type, builtin
from mesh_assets.ingest.landing import Landing
from mesh_assets.names import ProductName
from mesh_assets.quality.gate import Gate
from mesh_assets.quality.rule import Check, Expectation, Query, Rule, Scope
from mesh_assets.shift.plan import Target

PRODUCT = ProductName("shop", "things")
SOURCE = "app"
MOMENT = datetime(2026, 3, 1, 12, tzinfo=UTC)
FOREVER, NEVER = "infinity", "-infinity"
"""Keys whose values do not fit their column: only their exact texts tell them."""


_BETWEEN = "expect_column_values_to_be_between"
BIGINT, TIMESTAMPTZ = 20, 1184
"""Types of the key, by their numbers in PostgreSQL."""


def relation(key_type: int) -> Relation:
    """``shop.things``: a key, a number, a large text."""
    columns = []
    for number, (name, oid) in enumerate((("k", key_type), ("n", 23), ("big", 25)), 1):
        kind = builtin(oid)
        assert kind is not None
        columns.append(Column(name, kind, arrow_type(kind), key=name == "k", attnum=number))
    return Relation(70, "shop", "things", "d", tuple(columns), relfilenode=70)


@dataclass(frozen=True)
class Change:
    """One row of a change frame; ``masked`` leaves ``big`` out, ``moved`` is the old key."""

    op: str
    key: Any = None
    n: int | None = None
    big: str | None = None
    masked: bool = False
    moved: Any = None


def frame(shape: Relation, changes: Sequence[Change], lsn: int) -> pa.Table:
    """The changes of one transaction."""
    rows = []
    for ordinal, change in enumerate(changes):
        exact = {}
        if isinstance(change.key, str):
            exact["k"] = change.key
        if isinstance(change.moved, str):
            exact["_before.k"] = change.moved
        rows.append(
            {
                "k": None if isinstance(change.key, str) else change.key,
                "n": change.n,
                "big": None if change.masked else change.big,
                "_op": change.op,
                "_position": lsn,
                "_ordinal": ordinal,
                "_xid": lsn,
                "_committed_at": MOMENT + timedelta(seconds=lsn),
                "_unchanged": ["big"] if change.masked else None,
                "_before": None
                if change.moved is None
                else {"k": None if isinstance(change.moved, str) else change.moved, "n": None, "big": None},
                "_exact": list(exact.items()) or None,
            }
        )
    return pa.Table.from_pylist(rows, schema=shape.frame_schema)


def at_least(limit: int) -> Rule:
    """``n`` is not below a limit; a row without a number passes."""
    kwargs = {"column": "n", "min_value": limit}
    return _rule(f"at_least_{limit}".replace("-", "minus_"), "n", Expectation(_BETWEEN, kwargs))


def not_beginning(letter: str) -> Rule:
    """``big`` does not begin with a letter."""
    predicate = f"big LIKE '{letter}%'"
    return _rule(
        f"not_{letter}", "big", Query(f"SELECT count(*) FROM t WHERE {predicate}", "mustBe", 0, predicate)
    )


def _rule(name: str, column: str, check: Check) -> Rule:
    return Rule(f"things.{name}", "things", (column,), check, Scope.ROW, blocking=True)


@dataclass
class Place:
    """A folder in which one table is landed, by one landing after the other."""

    folder: Path
    shape: Relation
    lsn: int = 100
    schemas: SchemaLog = field(init=False)

    def __post_init__(self) -> None:
        self.schemas = SchemaLog(str(self.folder / "schemas"))
        self.target = Target(
            PRODUCT,
            "things",
            "shop.things",
            ("k",),
            str(self.folder / "changes"),
            str(self.folder / "current"),
        )

    def landing(self, rules: Sequence[Rule]) -> Landing:
        """A landing as a new shift opens it."""
        gate = Gate(rules, ("k",)) if rules else None
        landing = Landing(self.target, SOURCE, self.schemas, lambda _: self.shape, 0, gate)
        landing.open(self.shape, MOMENT)
        return landing

    def next_frame(self, changes: Sequence[Change]) -> pa.Table:
        """The changes as the next transaction."""
        self.lsn += 10
        return frame(self.shape, changes, self.lsn)
