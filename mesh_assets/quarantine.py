"""What is in quarantine, and how it comes out: a use case over :mod:`mesh_assets.lake.quarantine`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl

from mesh_assets.contract.discovery import Product
from mesh_assets.derive.shift import DeriveShift
from mesh_assets.errors import ContractError, MeshError, ShiftBusy, SlotBusy, UnknownName
from mesh_assets.ingest.shift import Shift
from mesh_assets.lake.access import Principal, authorise
from mesh_assets.lake.log import BEFORE, SEQ, ChangeLog
from mesh_assets.lake.quarantine import RULES, images, last_rows, open_rows
from mesh_assets.lake.shape import META_COLUMNS
from mesh_assets.lake.tail import shape_of
from mesh_assets.names import ProductName
from mesh_assets.product import Mesh
from mesh_assets.quality.rule import Ruleset
from mesh_assets.shift.replay import Answer, Desk, Request
from mesh_assets.shift.report import Budget, Silent

MOST_ENTRIES = 100
"""How many entries of a table are listed if nobody says otherwise."""
_LOOK_SECONDS = 0.2
_SHIFT_SECONDS = 30.0


@dataclass(frozen=True)
class Reason:
    """A rule that a quarantined change fails.

    Attributes:
        rule: its id.
        description: what it asks for; empty if the rule is gone.
    """

    rule: str
    description: str


@dataclass(frozen=True)
class Entry:
    """One key in quarantine.

    Attributes:
        key: of the row.
        reasons: the rules that its last change fails, or joined an entry for.
        row: the whole image that would be current.
        op, position, ordinal, committed_at, captured_at: of the last change.
        seq: of the last change in the log.
        change_count: changes of the key that wait.
    """

    key: Mapping[str, Any]
    reasons: tuple[Reason, ...]
    row: Mapping[str, Any]
    op: str
    position: int
    ordinal: int
    committed_at: datetime | None
    captured_at: datetime
    seq: int
    change_count: int


@dataclass(frozen=True)
class Quarantine:
    """What one table has in quarantine.

    Attributes:
        count: keys in quarantine.
        change_count: changes that wait.
        rules: rule -> keys that it keeps.
        entries: the oldest of them.
    """

    name: ProductName
    table: str
    count: int
    change_count: int
    rules: Mapping[str, int]
    entries: tuple[Entry, ...]


def quarantine(
    mesh: Mesh,
    names: Sequence[str] = (),
    *,
    most: int | None = MOST_ENTRIES,
    principal: Principal | None = None,
) -> Iterator[Quarantine]:
    """What is in quarantine now, table by table; tables without anything are left out.

    Args:
        mesh: the products.
        names: domains, products or tables; all of them without one.
        most: entries of a table, oldest first; None for all.
        principal: who asks.

    Raises:
        UnknownName: if a name selects nothing.
    """
    rulesets: dict[ProductName, Ruleset] = {}
    for product, table in mesh.select(names):
        uri = mesh.changes_uri(product.name, table.name)
        if not ChangeLog.exists(uri):
            continue
        if product.name not in rulesets:
            rulesets[product.name] = _rules(product)
        found = _of(product, table.name, ChangeLog.open(uri), rulesets[product.name], most, principal)
        if found.count:
            yield found


def replay(mesh: Mesh, name: str, *, timeout_seconds: float = 120.0) -> Answer:
    """Judge what a product or table has in quarantine once more, under its contract as it is now.

    A shift that runs is asked to do it; where none does, one is begun here that does just this.

    Raises:
        UnknownName: if there is no such product or table.
        ContractError: if its contract or its rules are broken.
        MeshError: if no shift answered in time, or the source cannot be reached.
    """
    product, tables = _named(mesh, name)
    desk = Desk(mesh.layout, product.name)
    request = desk.ask(tables)
    deadline = time.monotonic() + timeout_seconds
    try:
        while True:
            if (answer := desk.fetch(request)) is not None:
                return answer
            if time.monotonic() > deadline:
                raise MeshError(
                    f"{product.name}: the shift that runs did not replay in {timeout_seconds:.0f} s",
                    hint="look at its log in Dagster; it may still be under the contract as it was before",
                )
            try:
                _run(mesh, product, _Answered(desk, request))
            except (SlotBusy, ShiftBusy):
                # A shift is running: it has been asked.
                time.sleep(_LOOK_SECONDS)
            # It may have ended because what it was planned by is another.
            mesh = Mesh(mesh.settings)
    finally:
        desk.withdraw(request)


class _Answered(Silent):
    """Ends a shift once it has done what it was begun for."""

    def __init__(self, desk: Desk, request: Request) -> None:
        self._desk = desk
        self._request = request

    def cancelled(self) -> bool:
        """Whether the replay is done."""
        return self._desk.is_answered(self._request)


def _run(mesh: Mesh, product: Product, observer: _Answered) -> None:
    budget = Budget(
        max_seconds=_SHIFT_SECONDS, idle_seconds=1.5, claim_seconds=0.0, fold=None, check_seconds=None
    )
    source = product.definition.source
    if source is None:
        plan = mesh.derive_plan(str(product.name))
        DeriveShift([plan], budget=budget, observer=observer).run()
        return
    Shift(mesh.plan(product.name.domain, source), budget=budget, observer=observer).run()


def _named(mesh: Mesh, name: str) -> tuple[Product, tuple[str, ...]]:
    """A product and the tables meant; none means all."""
    parts = name.split(".")
    if len(parts) == 2:
        return mesh.product(name), ()
    if len(parts) != 3:
        known = [str(one) for one in mesh.discovery.products]
        raise UnknownName.of("product or table", name, known)
    product, table = mesh.resolve(name)
    return product, (table.name,)


def _rules(product: Product) -> Ruleset:
    from mesh_assets.quality import load

    try:
        return load(product)
    except ContractError:
        # The entries are there all the same; what their rules ask for is not known.
        return Ruleset(product.name, ())


def _of(
    product: Product,
    table: str,
    log: ChangeLog,
    ruleset: Ruleset,
    most: int | None,
    principal: Principal | None,
) -> Quarantine:
    shape = shape_of(log)
    rows = open_rows(log)
    last = last_rows(shape, rows)
    rules = last[RULES].explode(empty_as_null=False).value_counts(sort=True)
    counts = rows.group_by(shape.identity).agg(_count=pl.len())
    shown = last if most is None else last.head(most)
    shown = shown.join(counts, on=shape.identity, how="left", nulls_equal=bool(shape.inexact))
    entries: list[Entry] = []
    if shown.height:
        access = authorise(principal or Principal.local(), product.name, table)
        stored = {
            row[SEQ]: row for row in access.apply(images(log, shown)).collect(engine="streaming").to_dicts()
        }
        narrow = [SEQ, "_op", "_position", "_ordinal", "_committed_at", "_captured_at"]
        low, high = int(shown[SEQ].min()), int(shown[SEQ].max())  # type: ignore[arg-type]  # polars' any
        changes = log.scan(low - 1, high, narrow).join(shown.select(SEQ).lazy(), on=SEQ, how="semi")
        told = {row[SEQ]: row for row in changes.collect(engine="streaming").to_dicts()}
        known = {rule.id: rule.description for rule in ruleset.rules}
        for found in shown.sort(SEQ).iter_rows(named=True):
            seq = found[SEQ]
            change, image = told[seq], stored[seq]
            # A value that its column cannot hold stands beside it as text.
            exact = dict(image.get("_exact") or {})
            row = {one: exact.get(one, image[one]) for one in image if one not in (*META_COLUMNS, BEFORE)}
            entries.append(
                Entry(
                    key={one: row.get(one, found[one]) for one in shape.key},
                    reasons=tuple(Reason(rule, known.get(rule, "")) for rule in found[RULES]),
                    row=row,
                    op=change["_op"],
                    position=change["_position"],
                    ordinal=change["_ordinal"],
                    committed_at=change["_committed_at"],
                    captured_at=change["_captured_at"],
                    seq=seq,
                    change_count=found["_count"],
                )
            )
    return Quarantine(product.name, table, last.height, rows.height, dict(rules.iter_rows()), tuple(entries))
