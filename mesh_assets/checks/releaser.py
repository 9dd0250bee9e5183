"""Holds consumers back from versions that fail a blocking rule about a table as a whole."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mesh_assets.checks.evaluation import WHAT, check_product
from mesh_assets.checks.log import FAILING, FAULTS, Checked, released, why_not
from mesh_assets.contract.discovery import Product, discover
from mesh_assets.errors import MeshError, StorageFull
from mesh_assets.lake.access import Principal
from mesh_assets.lake.read import fresh
from mesh_assets.lake.version import VersionRow
from mesh_assets.names import Layout, ProductName
from mesh_assets.quality.concealment import concealing, discreet
from mesh_assets.quality.rule import Query, Ruleset

if TYPE_CHECKING:
    from mesh_assets.shift.lineage import Tending

_REST_SECONDS = 0.2
_REST_TIMES = 3.0
"""Checks rest for so many times as long as they took: consumers wait for the outcome."""


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
            layout,
            one.product.name,
            table,
            row.tables[table],
            principal=Principal.local(),
            generation=row.generation(table),
            meta=True,
        )
        for table in tables
    }
    asked = replace(one.ruleset, rules=rules)
    return not any(
        found.status in FAILING
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

    def judging(self, name: ProductName) -> bool:
        """Whether a product's newest version is being evaluated."""
        one = self._held.get(name)
        return one is not None and one.job is not None and not one.job.done()

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
        except FAULTS as error:
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
            with discreet(concealing(one.product.contract, WHAT)):
                passes = one.why is None and _passes(self._layout, one, row)
            if passes:
                one.judged = row.version
                one.passed = max(one.passed or 0, row.version)
                return
            # All of it, and kept, so that everybody can see why consumers wait, and when no longer.
            rows = check_product(
                self._layout,
                one.product,
                row,
                run_id=self._run_id,
                ruleset=one.ruleset,
                tending=self._tending,
            )
            self._take(one, row.version, [found.shown(one.product.contract) for found in rows])
        finally:
            self._rest(one, started)

    def _take(self, one: _Held, version: int, rows: Sequence[Checked]) -> None:
        one.judged = version
        one.why = why_not(one.product.name, rows)
        if one.why is None:
            one.passed = max(one.passed or 0, version)
        elif one.passed == version:
            one.passed = released(self._layout, one.product.name, one.ruleset)

    def _rest(self, one: _Held, started: float) -> None:
        now = time.monotonic()
        one.rest_until = now + max(_REST_SECONDS, _REST_TIMES * (now - started))
