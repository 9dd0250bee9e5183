"""Products made anew from the logs, and held against what stands before anything is swapped.

A captured product's current tables are folded anew from its own change logs. A derived product is
recomputed from the logs of its inputs, at the versions that it was made of; what differs is appended to
its own log as one more version. Each table is swapped in one commit: a reader sees the old one or the new.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from mesh_assets import failpoint
from mesh_assets.contract.discovery import Product
from mesh_assets.derive.derivation import Derivation, Heads
from mesh_assets.derive.difference import differences
from mesh_assets.derive.generation import going_on
from mesh_assets.derive.lineage import DeriveLineage
from mesh_assets.derive.plan import DerivePlan
from mesh_assets.derive.secrecy import concealed
from mesh_assets.derive.transform import Transformer
from mesh_assets.errors import CommitConflict, Fenced, TableMissing
from mesh_assets.lake.checksum import row_hash
from mesh_assets.lake.current import CLUSTERED, FOLDED, HELD, Current, digest
from mesh_assets.lake.fold import fold
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.read import pin, rows_at
from mesh_assets.lake.shape import Shape
from mesh_assets.lake.storage import Storage, storage_of
from mesh_assets.lake.tail import shape_of
from mesh_assets.lake.version import VersionLog, VersionRow
from mesh_assets.lineage.recorder import Recorder
from mesh_assets.names import CHANGES, CURRENT, Layout, ProductName
from mesh_assets.parity import Difference, ParityResult, RangeResult
from mesh_assets.shift.lineage import Tending
from mesh_assets.shift.plan import Target
from mesh_assets.shift.readiness import promises

_FOLDER = "_rebuild"
_MOST_EXAMPLES = 10
_BATCH_ROWS = 250_000
_ATTEMPTS = 3


@dataclass(frozen=True)
class Example:
    """One key that differs.

    Attributes:
        op: what the rebuild does to it: ``c``, ``u`` or ``d``.
        before, after: values of the columns that differ (of all columns, where a side has no row).
    """

    key: Mapping[str, Any]
    op: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


@dataclass(frozen=True)
class TableRebuild:
    """What a rebuild finds of one table.

    Attributes:
        row_count: rows that it makes.
        op_count: keys that come (``c``), change (``u``) and go (``d``).
        examples: the first of them.
        swapped: whether the table was replaced.
    """

    table: str
    row_count: int
    op_count: Mapping[str, int] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()
    swapped: bool = False

    @property
    def equal(self) -> bool:
        """Whether what stood is what the logs make."""
        return not self.op_count


@dataclass(frozen=True)
class Rebuild:
    """What a rebuild of one product finds, and does.

    Attributes:
        version: the version that was held against the logs.
        made_of: the inputs' versions of a derived product.
        new_version: the version that has what differed; None if none was written.
    """

    name: ProductName
    version: int
    tables: tuple[TableRebuild, ...]
    made_of: Mapping[str, int] = field(default_factory=dict)
    new_version: int | None = None
    seconds: float = 0.0

    @property
    def equal(self) -> bool:
        """Whether everything that stood is what the logs make."""
        return all(table.equal for table in self.tables)


def rebuild(
    layout: Layout,
    product: Product,
    plan: DerivePlan | None,
    *,
    dry_run: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Rebuild:
    """Make a product anew from the logs.

    Args:
        plan: of a derived product.
        dry_run: only say what differs.
        tell: told of what goes on.

    Raises:
        TableMissing: if nothing was captured or derived yet.
        TransformError: if a derived product's function fails.
        Fenced: if others kept writing what was to be swapped.
    """
    started = time.monotonic()
    tell = tell or (lambda text: None)
    last = VersionLog(layout.versions(product.name)).latest()
    if last is None and plan is None:
        raise TableMissing(
            f"{product.name} has no version yet: nothing was captured",
            hint="start the mesh with `mesh up`, or materialize the product in Dagster",
        )
    if plan is None:
        assert last is not None
        found = _currents(layout, product, last, dry_run=dry_run, tell=tell)
        return Rebuild(product.name, last.version, found, seconds=time.monotonic() - started)
    made = _again(plan, dry_run=dry_run, tell=tell)
    return replace(made, seconds=time.monotonic() - started)


# -- current tables, from their own logs -----------------------------------------------------------


def _currents(
    layout: Layout, product: Product, last: VersionRow, *, dry_run: bool, tell: Callable[[str], None]
) -> tuple[TableRebuild, ...]:
    done = []
    recorder = Recorder(layout.lineage(), log=tell)
    try:
        tending = Tending(recorder, layout, {product.name: product.contract}, lambda name: None)
        for table in product.contract.tables:
            target = Target(
                product.name,
                table.name,
                table.physical_name,
                table.key,
                layout.table(product.name, CHANGES, table.name),
                layout.table(product.name, CURRENT, table.name),
                table,
            )
            tell(f"{product.name}.{table.name}: read from its log")
            done.append(rebuild_current(target, last.tables.get(table.name, -1), tending, dry_run=dry_run))
    finally:
        recorder.close()
    return tuple(done)


def rebuild_current(target: Target, cut: int, tending: Tending, *, dry_run: bool = False) -> TableRebuild:
    """Fold a current table anew from its whole log, and swap it if it is not what stands.

    Raises:
        Fenced: if others kept folding it.
    """
    log = ChangeLog.open(target.changes_uri)
    shape = shape_of(log)
    standing = rows_at(log, target.current_uri, cut)
    anew = pin(log, None, cut).stored()
    count = int(anew.select(pl.len()).collect(engine="streaming").item())
    found = differences(shape, anew, standing, row_count=2 * count)
    rebuilt = summary(target.table, shape, found, count)
    if dry_run or rebuilt.equal:
        return rebuilt
    for attempt in range(_ATTEMPTS):
        try:
            with tending.fold(target):
                _swap(log, target.current_uri, cut)
        except (Fenced, CommitConflict):
            if attempt == _ATTEMPTS - 1:
                raise
        else:
            break
    return replace(rebuilt, swapped=True)


def _swap(log: ChangeLog, current_uri: str, cut: int) -> None:
    """Put a table that is folded from nothing in the place of the one that stands, in one commit."""
    standing = Current.open_or_create(current_uri, log.row_schema, log.key)
    # As a fold does: files are only readable by a schema that has their columns.
    standing.table.add_columns([*log.row_schema])
    storage = standing.table.storage
    aside = f"{current_uri.rstrip('/')}/{_FOLDER}"
    # What a killed rebuild left; it may not be a whole table any more.
    _clear(storage_of(aside))
    fresh = Current.create(aside, log.row_schema, log.key)
    fold(log, fresh, cut)
    if max(fresh.folded, log.after) != cut:
        raise CommitConflict(f"another rebuild of {current_uri} is under way")
    files = fresh.table.files()
    for file in files:
        storage.move(f"{_FOLDER}/{file.path}", file.path)
    failpoint.reach("swap.moved")
    folded = standing.folded
    try:
        standing.table.rewrite(
            remove=standing.table.files(),
            add=files,
            transactions={FOLDED: cut, HELD: fresh.held, CLUSTERED: digest(files)},
            expect={FOLDED: None if folded < 0 else folded},
        )
        failpoint.reach("swap.committed")
    finally:
        _clear(fresh.table.storage)


def _clear(storage: Storage) -> None:
    """Remove a table that nobody reads, or what is left of it."""
    storage.remove(entry.path for folder in ("", "_delta_log") for entry in storage.entries(folder))


# -- derived products, from their inputs' logs -----------------------------------------------------


def _again(plan: DerivePlan, *, dry_run: bool, tell: Callable[[str], None]) -> Rebuild:
    held = promises(plan.layout, {plan.name: plan.product}, keep=not dry_run)
    if not dry_run and (refusal := held.refused.get(plan.name)):
        raise refusal
    for text in held.messages:
        tell(text)
    gates = {target.table: held.gate(target) for target in plan.targets}
    with (
        DeriveLineage([plan], str(uuid.uuid4()), tell) as lineage,
        Transformer(plan.home) as transformer,
        lineage.product(plan.name),
        concealed(plan),
    ):
        for attempt in range(_ATTEMPTS):
            derivation = Derivation(
                plan,
                "rebuild",
                transformer,
                gates={table: gate for table, gate in gates.items() if gate is not None},
                from_logs=True,
            )
            derivation.open()
            try:
                rebuilt = _held_against(plan, derivation, lineage, dry_run=dry_run, tell=tell)
            except Fenced:
                # A shift has written meanwhile: what stands is another.
                if attempt == _ATTEMPTS - 1:
                    raise
                continue
            for text in transformer.messages:
                tell(text)
            return rebuilt
    raise AssertionError("not reached")


def _held_against(
    plan: DerivePlan,
    derivation: Derivation,
    lineage: DeriveLineage,
    *,
    dry_run: bool,
    tell: Callable[[str], None],
) -> Rebuild:
    last = derivation.latest()
    goal = derivation.parents() or _newest(plan)
    tell(f"{plan.name}: recomputed from the logs of {', '.join(map(str, plan.input_products))}")
    found = []
    for one in derivation.compare(goal):
        count = one.row_count()
        found.append(summary(one.table, one.shape, one.differences(count), count))
    tables = tuple(found)
    number, new = last.version if last else 0, None
    if not dry_run:
        if any(not table.equal for table in tables) or last is None:
            step = derivation.step(goal, whole_because="a rebuild was asked for")
            new = step.version.row.version
            lineage.version(step.version)
            tables = tuple(replace(one, swapped=not one.equal) for one in tables)
        row = derivation.latest()
        assert row is not None
        for target in derivation.targets:
            tell(f"{plan.name}.{target.table}: read from its own log")
            again = rebuild_current(target, row.tables[target.table], lineage.tending)
            if again.swapped:
                tables = tuple(_merged(one, again) if one.table == target.table else one for one in tables)
    made_of = {str(name): row.version for name, row in goal.items()}
    return Rebuild(plan.name, number, tables, made_of, new)


def _merged(one: TableRebuild, again: TableRebuild) -> TableRebuild:
    """What differed from the inputs' logs, and what differed from the own one."""
    ops = Counter(one.op_count) + Counter(again.op_count)
    return replace(
        one, op_count=dict(ops), examples=(one.examples + again.examples)[:_MOST_EXAMPLES], swapped=True
    )


def _newest(plan: DerivePlan) -> Heads:
    found: dict[ProductName, VersionRow] = {}
    for name in plan.input_products:
        row = VersionLog(plan.layout.versions(name)).latest()
        if row is None:
            raise TableMissing(
                f"{plan.name} cannot be made: {name} has no version yet",
                hint="start the mesh with `mesh up`, or materialize it in Dagster",
            )
        found[name] = row
    return found


def derived_parity(plan: DerivePlan, table: str) -> ParityResult:
    """Hold one table of a derived product against a recomputation from the versions that it was made of.

    A row in quarantine counts as the row that its key has; floats that differ by the order in which a sum
    was taken count as equal.

    Raises:
        TableMissing: if it was not derived yet.
        TransformError: if its function fails.
    """
    started = time.monotonic()
    with concealed(plan), Transformer(plan.home) as transformer:
        held = VersionLog(plan.versions_uri).latest()
        if held is None:
            raise TableMissing(
                f"{plan.name} was not derived yet",
                hint="start the mesh with `mesh up`, or materialize the product in Dagster",
            )
        if any(held.generation(target.table) != target.generation for target in going_on(plan, held)):
            raise TableMissing(
                f"{plan.name} was not derived yet under its contract as it is now, which gives columns "
                "other types or a table another key",
                hint="start the mesh with `mesh up`, or materialize the product in Dagster",
            )
        derivation = Derivation(plan, "parity", transformer)
        derivation.open()
        last, goal = derivation.latest(), derivation.parents()
        if last is None or goal is None:
            raise TableMissing(f"{plan.name} has no version whose inputs are still held")
        # A shift may go on appending meanwhile: what counts is the version and what it was made of.
        for one in derivation.compare(goal, last.tables):
            if one.table != table:
                continue
            count = one.row_count()
            found = summary(table, one.shape, one.differences(count), count)
            made = _checksum(one.made, one.shape)
            stands = made if found.equal else _checksum(one.standing, one.shape)
            quarantined_count = one.quarantined_count
    gone, came = found.op_count.get("d", 0), found.op_count.get("c", 0)
    kinds = {"c": "missing", "u": "different", "d": "extra"}
    return ParityResult(
        plan.name,
        table,
        0,
        (RangeResult("", "", count, count - came + gone, made, stands),),
        tuple(Difference(dict(one.key), kinds[one.op]) for one in found.examples),
        time.monotonic() - started,
        quarantined_count,
        version=last.version,
    )


def _checksum(rows: pl.LazyFrame, shape: Shape) -> str:
    """An order-free sum of row hashes."""
    total = 0
    for batch in rows.collect_batches(chunk_size=_BATCH_ROWS):
        total += int(row_hash(batch, shape.columns.names()).sum())
    return f"{total % 2**64:016x}"


# -- in few words ----------------------------------------------------------------------------------


def summary(table: str, shape: Shape, found: Iterable[pl.DataFrame], row_count: int) -> TableRebuild:
    """What differs, counted, with the first keys."""
    ops: Counter[str] = Counter()
    examples: list[Example] = []
    for part in found:
        ops.update(part["_op"].to_list())
        wanted = _MOST_EXAMPLES - len(examples)
        examples += [_example(shape, row) for row in part.head(wanted).iter_rows(named=True)]
    return TableRebuild(table, row_count, dict(ops), tuple(examples))


def _example(shape: Shape, row: Mapping[str, Any]) -> Example:
    op = row["_op"]
    names = [name for name in shape.columns if name not in shape.key]
    if op == "u":
        names = [name for name in names if row[f"_old_{name}"] != row[f"_new_{name}"]]
    return Example(
        {name: row[name] for name in shape.key},
        op,
        None if op == "c" else {name: row[f"_old_{name}"] for name in names},
        None if op == "d" else {name: row[f"_new_{name}"] for name in names},
    )
