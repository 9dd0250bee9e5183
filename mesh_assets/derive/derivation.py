"""One derived product on its way: what it was made of, what its inputs have by now, and the step between.

A step appends to every table what its recomputation changes, then the version row that names the inputs'
versions. Each append carries those in its own commit. Killed anywhere in between, the next step is for
the same versions of the inputs, and what is appended already is not different any more.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from mesh_assets import failpoint
from mesh_assets.contract.document import display
from mesh_assets.derive.affected import Paths, whole
from mesh_assets.derive.difference import Stamp, differences, no_change, same_rows
from mesh_assets.derive.exact import Doubts, Given, given, widened, with_texts
from mesh_assets.derive.generation import going_on
from mesh_assets.derive.plan import DerivePlan, Subscription
from mesh_assets.derive.table import OwnTable
from mesh_assets.derive.transform import Made, Transformer, shown_key
from mesh_assets.lake.access import Principal
from mesh_assets.lake.between import Between, between
from mesh_assets.lake.shape import Shape
from mesh_assets.lake.version import InputPosition, VersionLog, VersionRow
from mesh_assets.lake.view import Reader, View, chosen
from mesh_assets.names import ProductName
from mesh_assets.quality.gate import Gate
from mesh_assets.shift.plan import Target
from mesh_assets.shift.replay import Desk, Replayed
from mesh_assets.shift.report import BatchReport, TableReport, VersionReport

_WHOLE = "derive/whole"
"""App transaction: the code that proved not to be computable in parts, as :func:`_number` of its hash."""
_SAMPLE_COUNT = 25
_PROOF_COUNT = 200
_PROOF_SECONDS = 60.0
_WHOLE_SHARE = 0.3
"""Where more than this share of an output is affected, all of it is recomputed at once."""
_FEW = 5_000

Heads = Mapping[ProductName, VersionRow]
_Input = tuple[ProductName, str, int]
"""A table of an input, and in which generation."""


@dataclass(frozen=True)
class Step:
    """What one step did.

    Attributes:
        version: the version that it wrote.
        batch: what it appended.
        whole: why everything was recomputed; None if only what was affected.
        affected_count: values of the unit that were recomputed.
        seconds: how long it took, and the transform of that.
        reads: per input the Delta version of its log that was read, and how many of its rows counted.
        messages: what somebody should know.
    """

    version: VersionReport
    batch: BatchReport
    whole: str | None
    affected_count: int
    seconds: float
    transform_seconds: float
    reads: Mapping[str, tuple[int, int]]
    messages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """A table recomputed, beside the one that stands.

    Attributes:
        made, standing: their rows; of a key in quarantine the row that is there.
        quarantined_count: keys in quarantine.
    """

    table: str
    shape: Shape
    made: pl.LazyFrame
    standing: pl.LazyFrame
    quarantined_count: int

    def row_count(self) -> int:
        """Rows that the recomputation has."""
        return int(self.made.select(pl.len()).collect(engine="streaming").item())

    def differences(self, row_count: int) -> Iterator[pl.DataFrame]:
        """What differs (:func:`mesh_assets.derive.difference.differences`)."""
        return differences(self.shape, self.made, self.standing, row_count=2 * row_count)


class Derivation:
    """One derived product.

    Args:
        plan: the product.
        run_id: recorded in its versions.
        transformer: runs its function.
        gates: of its tables; those without blocking rules may be missing.
        from_logs: read the inputs' logs alone, whatever was folded of them.
        proof_seconds: how often a sample is recomputed to see whether parts may stand for the whole.
    """

    def __init__(
        self,
        plan: DerivePlan,
        run_id: str,
        transformer: Transformer,
        *,
        gates: Mapping[str, Gate] | None = None,
        from_logs: bool = False,
        proof_seconds: float = _PROOF_SECONDS,
    ) -> None:
        self.plan = plan
        self._run_id = run_id
        self._transformer = transformer
        self._gates = gates or {}
        self._proof_seconds = proof_seconds
        self._proved = 0.0
        self._from_logs = from_logs
        self._readers: dict[_Input, Reader] = {}
        self._doubts: dict[_Input, Doubts] = {}
        self._input_logs = {name: VersionLog(plan.layout.versions(name)) for name in plan.input_products}
        self._previous: dict[_Input, View] = {}
        self._messages: list[str] = []
        self._touched: dict[str, int] = {}
        self._seed = time.time_ns() % 2**31

    # -- opening ----------------------------------------------------------------------------------

    def open(self) -> None:
        """Open or create the product's logs; again after another writer was found to have appended.

        Raises:
            ContractError: if a table cannot take the shape that the contract has by now.
            Fenced: if another writer appends meanwhile.
        """
        self._versions = VersionLog(self.plan.versions_uri)
        last = self.latest()
        self._tables = {
            target.table: OwnTable.open(self.plan, target, self._gates.get(target.table), last)
            for target in going_on(self.plan, last)
        }
        self._previous = {}
        first = next(iter(self._tables.values()))
        self.unproved = first.log.transaction(_WHOLE) == _number(self.plan.code_hash)
        # Whether what stands was made whole since it was found out is not recorded.
        self._owed = self.unproved

    # -- where it stands --------------------------------------------------------------------------

    @property
    def targets(self) -> tuple[Target, ...]:
        """Its tables, where their rows go."""
        return tuple(table.target for table in self._tables.values())

    def latest(self) -> VersionRow | None:
        """The newest version, as of :meth:`open` or this writer's last step."""
        return self._versions.latest()

    def unfinished(self) -> bool:
        """Whether a log holds more than the newest version: a step was killed, or has lost a race."""
        last = self.latest()
        held = last.tables if last else {}
        return any(table.log.seq > held.get(name, -1) for name, table in self._tables.items())

    def due(self, heads: Heads) -> str | None:
        """Why a step is due; None if it is not."""
        if self.unfinished():
            return "a step was not finished"
        if self._owed:
            return "its transform does not compute in parts"
        return self.plan.due(self.latest(), {name: row.version for name, row in heads.items()})

    def _goal(self, heads: Heads) -> Heads:
        """The inputs' versions that the next step is for: first those of a step that was not finished."""
        last = self.latest()
        number = (last.version if last else 0) + 1
        if not self.unfinished():
            return heads
        for table in self._tables.values():
            if table.log.transaction(f"{self.plan.name}/lsn") != number:
                continue
            goal: dict[ProductName, VersionRow] = {}
            for name in self.plan.input_products:
                at = table.log.transaction(f"{name}/lsn")
                row = self._input_row(name, at) if at is not None else None
                if row is not None:
                    goal[name] = row
            held = last.parents if last else {}
            if goal.keys() == heads.keys() and all(
                held.get(str(name), 0) <= row.version for name, row in goal.items()
            ):
                return goal
        return heads

    # -- one step ---------------------------------------------------------------------------------

    def step(self, heads: Heads, *, whole_because: str | None = None) -> Step:
        """Make the product what these versions of its inputs make of it.

        Args:
            heads: of every input.
            whole_because: recompute all of it, for this reason.

        Raises:
            TransformError: if its function fails, or what it gives is not as promised.
            Fenced: if another writer has appended; :meth:`open` anew.
            StorageFull: if the disk is full.
        """
        started = time.monotonic()
        self._messages = []
        last = self.latest()
        goal = self._goal(heads)
        later = self._views_at(goal)
        inputs = self._given(later, goal)
        reason, unit = whole_because, None
        if reason is None:
            reason, unit = self._scope(last, goal, inputs)
        stamp = Stamp((last.version if last else 0) + 1, _committed_at(goal, last))
        reports: list[TableReport] = []
        if unit is not None and unit.is_empty():
            transform_seconds = 0.0
        else:
            frames = whole(inputs) if unit is None else Paths(self.plan).parts(unit, inputs)
            with self._transformer.run(self.plan, self._shapes(), frames, unit) as made:
                transform_seconds = made.seconds
                if unit is None and (last is None or not self._same_code(last)):
                    self._prove_whole(made, inputs)
                failpoint.reach("append.before")
                for number, (name, table) in enumerate(self._tables.items()):
                    reports += table.append_differences(made.tables[name], unit, _versions(goal), stamp)
                    failpoint.reach("append.first" if number == 0 else "append.middle")
        if last is not None and last.contract_hash != self.plan.contract_hash:
            done = {name: self.replay(name) for name in self._tables}
            Desk(self.plan.layout, self.plan.name).note(self._run_id, self.plan.contract_hash, done)
        failpoint.reach("version.before")
        row = self._cut(last, goal, stamp)
        failpoint.reach("version.after")
        self._previous = {_input(one, goal): later[one.name] for one in self.plan.inputs}
        if unit is not None:
            self._sample(unit, inputs)
        else:
            self._owed = False
        seconds = time.monotonic() - started
        batch = BatchReport(
            reports,
            row.version,
            row.version,
            row.committed_at,
            sum(report.row_count for report in reports),
            1,
            0,
            seconds,
        )
        return Step(
            VersionReport(self.plan.name, row),
            batch,
            reason if unit is None else None,
            0 if unit is None else unit.height,
            seconds,
            transform_seconds,
            {
                name: (view.log.table.version, view.row_count if unit is None else self._touched.get(name, 0))
                for name, view in later.items()
            },
            tuple(self._messages),
        )

    def _views_at(self, rows: Heads) -> dict[str, View]:
        """Every input at the versions given."""
        found: dict[_Input, View] = {}
        for one in self.plan.inputs:
            key = _input(one, rows)
            if key not in found:
                found[key] = self._view(one, rows)
        return {one.name: found[_input(one, rows)] for one in self.plan.inputs}

    def _view(self, one: Subscription, rows: Heads) -> View:
        """One input at its version among those given: the one of the last step, if that was the same."""
        key, row = _input(one, rows), rows[one.product]
        cut = row.tables.get(one.table, -1)
        held = self._previous.get(key)
        if held is not None and held.cut == cut:
            return held
        if key not in self._readers:
            current_uri = None if self._from_logs else one.current_uri(row)
            self._readers[key] = Reader(one.changes_uri(row), current_uri)
        return self._readers[key].view(cut)

    def _given(self, views: Mapping[str, View], rows: Heads) -> dict[str, Given]:
        """These views as the transform gets them."""
        doubts = {
            one.name: self._doubts.setdefault(_input(one, rows), Doubts()).columns(views[one.name])
            for one in self.plan.inputs
        }
        return given(self.plan, views, doubts)

    def _shapes(self) -> dict[str, Shape]:
        return {name: table.shape for name, table in self._tables.items()}

    def _input_row(self, name: ProductName, version: int) -> VersionRow | None:
        """A version of an input; one that was written after this handle last looked is looked for again."""
        log = self._input_logs[name]
        row = log.at(version)
        if row is None:
            log.refresh()
            row = log.at(version)
        return row

    def _scope(
        self, last: VersionRow | None, goal: Heads, inputs: Mapping[str, Given]
    ) -> tuple[str | None, pl.DataFrame | None]:
        """Why everything has to be recomputed, or the values of the unit that have to be."""
        plan = self.plan
        if last is None:
            return "it was never made", None
        if not self._same_code(last):
            return "its transform changed", None
        if last.contract_hash != plan.contract_hash:
            return "its contract changed", None
        below: dict[ProductName, VersionRow] = {}
        for name in plan.input_products:
            at = last.parents.get(str(name), 0)
            row = goal[name] if at == goal[name].version else self._input_row(name, at)
            if row is None or at > goal[name].version:
                return f"{name} began anew: there is no version {at} of it", None
            below[name] = row
        earlier = {}
        betweens: dict[str, Between] = {}
        for one in plan.inputs:
            if _input(one, below) != _input(one, goal):
                return f"input {one.name!r} has columns of other types, or another key, by now", None
            view = inputs[one.name].view
            same = below[one.product].tables.get(one.table, -1) == view.cut
            earlier[one.name] = view if same else self._view(one, below)
            betweens[one.name] = between(earlier[one.name], view)
        changed = {name: change for name, change in betweens.items() if not change.empty}
        self._touched = {name: change.keys.height for name, change in changed.items()}
        if self._owed:
            return "its transform does not compute in parts", None
        if not changed and not self.unfinished():
            return None, pl.DataFrame(schema=dict.fromkeys(plan.unit, pl.Null))
        extra = self._beyond(last)
        for called, change in changed.items():
            if change.truncated:
                return f"input {called!r} was truncated", None
            if change.inexact:
                return f"a key of input {called!r} is outside of its column's type", None
        if pathless := [name for name, one in inputs.items() if one.pathless]:
            return f"a key path of input {pathless[0]!r} may be outside of its column's type", None
        if not plan.unit:
            names = [one.name for one in plan.inputs if not (one.key or one.through)]
            why = f"inputs without a key path: {', '.join(names)}" if names else "no common key path"
            return why, None
        if self.unproved:
            return "its transform does not compute in parts", None
        unit = Paths(plan).affected(changed, earlier, {name: one.view for name, one in inputs.items()})
        if extra is not None:
            unit = pl.concat([unit, extra.cast(unit.schema)]).unique()
        standing = max(table.view().row_count for table in self._tables.values())
        if unit.height > max(_FEW, _WHOLE_SHARE * standing):
            return f"{unit.height:,} of about {standing:,} keys are affected", None
        return None, unit

    def _same_code(self, last: VersionRow) -> bool:
        return last.code_version.partition("+")[2] == self.plan.code_version.partition("+")[2]

    def _beyond(self, last: VersionRow) -> pl.DataFrame | None:
        """Values of the unit in the logs' rows beyond the newest version."""
        parts = []
        for name, table in self._tables.items():
            after = last.tables.get(name, -1)
            if table.log.seq > after and self.plan.unit:
                parts.append(table.log.scan(after, table.log.seq, self.plan.unit).unique().collect())
        return pl.concat(parts, how="vertical_relaxed").unique().drop_nulls() if parts else None

    # -- held against what stands -----------------------------------------------------------------

    def parents(self) -> Heads | None:
        """The inputs' versions of which the newest version was made; None if there is none."""
        last = self.latest()
        if last is None:
            return None
        found: dict[ProductName, VersionRow] = {}
        for name in self.plan.input_products:
            row = self._input_row(name, last.parents.get(str(name), 0))
            if row is None:
                return None
            found[name] = row
        return found

    def compare(self, goal: Heads, cuts: Mapping[str, int] | None = None) -> Iterator[Comparison]:
        """Recompute all of it from these versions of its inputs, and hold it against what stands.

        Each comparison can be read until the next is asked for.

        Args:
            goal: the inputs' versions.
            cuts: the last ``_seq`` of each table that counts, for a reader beside a shift that goes on
                appending; by default all that this object knows of.
        """
        frames = whole(self._given(self._views_at(goal), goal))
        with self._transformer.run(self.plan, self._shapes(), frames) as made:
            for name, table in self._tables.items():
                texts = table.texts(made.tables[name])
                if cuts is None:
                    standing, _ = table.standing(None, texts)
                    count = table.guard.open_count
                else:
                    standing, count = table.stood(cuts[name], texts)
                rows = with_texts(made.tables[name], table.shape, texts)
                yield Comparison(name, widened(table.shape, texts), rows, standing, count)

    # -- appending --------------------------------------------------------------------------------

    def replay(self, name: str) -> Replayed:
        """Judge again what is quarantined of a table; the next step writes the version that has it.

        Raises:
            UnknownName: if there is no such table.
            Fenced: if another writer has appended.
        """
        self.plan.product.contract.table(name)
        last = self.latest()
        return self._tables[name].replay(last.parents if last else {})

    def _cut(self, last: VersionRow | None, goal: Heads, stamp: Stamp) -> VersionRow:
        ops: Counter[str] = Counter()
        for name, table in self._tables.items():
            after = last.tables.get(name, -1) if last else -1
            if table.log.seq > after:
                counted = table.log.scan(after, table.log.seq, ["_op"]).collect()["_op"].value_counts()
                ops.update(dict(counted.iter_rows()))
        plan = self.plan
        return self._versions.append(
            tables={name: table.log.seq for name, table in self._tables.items()},
            positions={name: InputPosition(version) for name, version in _versions(goal).items()},
            row_count=dict(ops),
            contract_hash=plan.contract_hash,
            code_version=plan.code_version,
            run_id=self._run_id,
            actor=Principal.local().name,
            committed_at=stamp.committed_at,
            parents=_versions(goal),
            generations={target.table: target.generation for target in self.targets},
        )

    # -- proof ------------------------------------------------------------------------------------

    def _prove_whole(self, made: Made, inputs: Mapping[str, Given]) -> None:
        """Hold a recomputation of some parts against the whole that was just made."""
        if not self.plan.unit or self.unproved:
            return
        table = next(iter(self._tables))
        unit = self._some(made.tables[table].select(self.plan.unit), _PROOF_COUNT)
        if unit.is_empty():
            return
        whole_tables = {name: chosen(rows, unit) for name, rows in made.tables.items()}
        self._hold(unit, whole_tables, inputs, "it")

    def _sample(self, affected: pl.DataFrame, inputs: Mapping[str, Given]) -> None:
        """Now and then, hold a recomputation of some other parts against the rows that stand."""
        if affected.is_empty() or time.monotonic() - self._proved < self._proof_seconds:
            return
        self._proved = time.monotonic()
        table = next(iter(self._tables.values()))
        view = table.view()
        names = list(self.plan.unit)
        own = view.rows()
        if view.base is not None and view.files:
            own = view.base.scan(view.shape, [view.files[self._seed % len(view.files)]])
        others = self._some(own.select(names), _SAMPLE_COUNT)
        few = affected.sample(min(affected.height, _SAMPLE_COUNT), seed=self._seed)
        unit = pl.concat([others.cast(few.schema), few]).unique()
        standing = {name: one.standing(unit)[0] for name, one in self._tables.items()}
        self._hold(unit, standing, inputs, "what stands")

    def _some(self, keys: pl.LazyFrame, count: int) -> pl.DataFrame:
        self._seed += 1
        narrow = keys.drop_nulls().unique().collect(engine="streaming")
        return narrow.sample(min(count, narrow.height), seed=self._seed)

    def _hold(
        self, unit: pl.DataFrame, wanted: Mapping[str, pl.LazyFrame], inputs: Mapping[str, Given], what: str
    ) -> None:
        plan = self.plan
        shapes = self._shapes()
        with self._transformer.run(plan, shapes, Paths(plan).parts(unit, inputs), unit) as parts:
            for name, rows in wanted.items():
                unlike = same_rows(shapes[name], parts.tables[name], rows)
                if unlike.is_empty():
                    continue
                row = unlike.row(0, named=True)
                key = shown_key(plan, name, row, shapes[name].key)
                self._messages.append(
                    f"{plan.name}: WRONG WHEN COMPUTED IN PARTS: of table {name!r} {unlike.height} of "
                    f"{unit.height} sampled keys differ from {what} (for example {key}); from now on every "
                    f"change recomputes all of it, until {display(plan.transform)} or its key paths change"
                )
                self._disprove()
                return

    def _disprove(self) -> None:
        """Remember, in the log, that this code does not compute in parts."""
        self.unproved = self._owed = True
        table = next(iter(self._tables.values()))
        last = self.latest()
        number = (last.version if last else 0) + 1
        table.note(no_change(table.log.table.schema), number, {_WHOLE: _number(self.plan.code_hash)})


def _input(one: Subscription, rows: Heads) -> _Input:
    return one.product, one.table, rows[one.product].generation(one.table)


def _versions(goal: Heads) -> dict[str, int]:
    return {str(name): row.version for name, row in goal.items()}


def _committed_at(goal: Heads, last: VersionRow | None) -> datetime:
    moments = [row.committed_at for row in goal.values()]
    return max([*moments, last.committed_at] if last else moments)


def _number(code_hash: str) -> int:
    return int(code_hash[:15], 16)
