"""A derive shift: one run that keeps a domain's derived products up until their inputs are quiet.

Every product takes its steps beside the others', so that one whose transform is slow, fails or never
ends keeps nobody waiting but those that read it. One that fails is named and left until its inputs,
transform or contract are others; its parents stay where they were, so nothing is lost.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Event

import polars as pl
import pyarrow as pa
from deltalake.exceptions import DeltaError

from mesh_assets.checks.checker import Checker
from mesh_assets.checks.log import blocked
from mesh_assets.checks.releaser import Releaser
from mesh_assets.derive.claim import claim
from mesh_assets.derive.derivation import Derivation, Heads, Step
from mesh_assets.derive.lineage import DeriveLineage
from mesh_assets.derive.plan import DerivePlan
from mesh_assets.derive.secrecy import concealed
from mesh_assets.derive.transform import Cancelled, Transformer
from mesh_assets.errors import Fenced, MeshError, StorageFull
from mesh_assets.lake.layout import ensure_layout
from mesh_assets.lake.recovery import recover
from mesh_assets.lake.version import VersionLog, VersionRow
from mesh_assets.names import Layout, ProductName
from mesh_assets.shift.housekeeping import Housekeeper
from mesh_assets.shift.memory import be_frugal
from mesh_assets.shift.plan import Target, beside
from mesh_assets.shift.publisher import Publisher
from mesh_assets.shift.readiness import promises
from mesh_assets.shift.release import record_release
from mesh_assets.shift.replay import Desk, Desks, Replayed
from mesh_assets.shift.report import Budget, Observer, ShiftResult, Silent

_FAULTS = (MeshError, DeltaError, OSError, pl.exceptions.PolarsError, pa.ArrowException, ValueError)
_LOOK_SECONDS = 10.0
_POLL_SECONDS = 0.1
_PATIENCE_SECONDS = 0.5
"""How long a step waits for an evaluation under way: without what that lets in, the next one would be due."""
_HEAD_SECONDS = 0.25
_BLOCKED_SECONDS = 5.0
_MOST_THREADS = 4
_MOST_FENCES = 3
_RETRY_SECONDS = 2.0
_YIELD_SECONDS = 5.0
"""How long a product takes no step because somebody waits for a replay."""
_LONGEST_RETRY_SECONDS = 600.0


@dataclass(frozen=True)
class Tended:
    """What a housekeeper tends of several derived products, as it does of a source's."""

    layout: Layout
    targets: tuple[Target, ...]
    shared: tuple[str, ...]

    @classmethod
    def of(cls, plans: Sequence[DerivePlan]) -> Tended:
        """The tables of these plans."""
        layout = plans[0].layout
        targets = tuple(target for plan in plans for target in plan.targets)
        own = [uri for plan in plans for uri in beside(layout, plan.name)]
        return cls(layout, targets, (*own, layout.lineage()))


@dataclass
class _Replay:
    """What a replay of some tables came to; kept for a while, until whoever asked is answered."""

    tables: tuple[str, ...]
    done: Mapping[str, Replayed]
    until: float = 0.0


@dataclass
class _Course:
    """One product in this shift."""

    plan: DerivePlan
    derivation: Derivation | None = None
    job: Future[Step | None] | None = None
    attempted: str = ""
    failures: int = 0
    fences: int = 0
    rest_until: float = 0.0
    again_after: float = 0.0
    patient_since: float | None = None
    began: float = 0.0
    blocked: dict[ProductName, tuple[int, str | None, float]] = field(default_factory=dict)
    released: bool = False
    contracts: set[str] = field(default_factory=set)
    replay: _Replay | None = None
    yields_until: float = 0.0

    @property
    def busy(self) -> bool:
        return self.job is not None


class DeriveShift:
    """Keeps the derived products of one domain up.

    Args:
        plans: one per product, each after those that it is made of.
        budget: when to end.
        observer: who watches.
        run_id: the orchestrator's run, recorded in versions and lineage.
        expecting: whether more is to come, because a shift of an input runs.
    """

    def __init__(
        self,
        plans: Sequence[DerivePlan],
        *,
        budget: Budget | None = None,
        observer: Observer | None = None,
        run_id: str = "",
        expecting: Callable[[], bool] | None = None,
    ) -> None:
        self.plans = tuple(plans)
        self.budget = budget or Budget()
        self.observer: Observer = observer or Silent()
        self.run_id = run_id or str(uuid.uuid4())
        self.expecting = expecting or (lambda: False)
        self.result = ShiftResult()
        self._ending = False
        self._stepped = Event()
        self._outdated = False

    def run(self) -> ShiftResult:
        """Refresh until idle, out of budget, cancelled or overtaken by a new contract or transform.

        Raises:
            ShiftBusy: another derive shift of the domain runs.
            StorageFull: the disk is full; nothing is lost.
        """
        self._started = time.monotonic()
        if not self.plans:
            return self.result
        be_frugal()
        first = self.plans[0]
        with claim(
            first.home,
            first.name.domain,
            self.run_id,
            wait_seconds=self.budget.claim_seconds,
            cancelled=self.observer.cancelled,
            tell=self.observer.message,
        ):
            self._keep_up()
        self.result.seconds = time.monotonic() - self._started
        return self.result

    def _keep_up(self) -> None:
        layout = self.plans[0].layout
        ensure_layout(layout.root)
        self._recover()
        self._promises = promises(
            layout,
            {plan.name: plan.product for plan in self.plans},
            {plan.name: plan.readers for plan in self.plans},
        )
        for text in self._promises.messages:
            self.observer.message(text)
        if any(plan.contracts_changed() for plan in self.plans):
            # Who reads an old version that is kept by now is planned anew.
            self.result.reason = "contract changed"
            return
        self._seen: set[ProductName] = set()
        self._heads = {
            name: VersionLog(layout.versions(name)) for plan in self.plans for name in plan.input_products
        }
        with ExitStack() as inside:
            self._lineage = inside.enter_context(
                DeriveLineage(self.plans, self.run_id, self.observer.message)
            )
            self._transformer = inside.enter_context(Transformer(self.plans[0].home, lambda: self._ending))
            self._transformer.warm()
            self._housekeeper = inside.enter_context(
                Housekeeper(
                    Tended.of(self.plans), self.budget.fold, self.budget.upkeep, self._lineage.tending
                )
            )
            self._checker = inside.enter_context(
                Checker(
                    layout,
                    {plan.name: plan.product for plan in self.plans},
                    self._promises.rulesets,
                    self.run_id,
                    every_seconds=self.budget.check_seconds,
                    tending=self._lineage.tending,
                )
            )
            self._releaser = inside.enter_context(
                Releaser(
                    layout,
                    self.plans[0].product.folder.absolute().parent.parent,
                    self._heads,
                    self.run_id,
                    tending=self._lineage.tending,
                )
            )
            self._pool = ThreadPoolExecutor(min(_MOST_THREADS, len(self.plans)), thread_name_prefix="derive")
            inside.callback(self._stop)
            self._desks = Desks(layout, [plan.name for plan in self.plans])
            self._courses = {plan.name: _Course(plan) for plan in self.plans}
            self._publisher = inside.enter_context(Publisher(layout, [plan.product for plan in self.plans]))
            for course in self._courses.values():
                if refusal := self._refusal(course.plan):
                    self._refuse(course, refusal, "")
                    self._lineage.failed(course.plan.name, refusal)
            self._loop()
            if self.result.reason != "budget":
                # Else the successor does, which waits for this shift to end.
                self._publisher.finish()
            self._report()

    # -- around -----------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Move aside what a power cut left unreadable: it is derived again."""
        for plan in self.plans:
            # In which generation a table goes on, only what can be read says.
            for uri in (*beside(plan.layout, plan.name), *plan.held_uris()):
                for address in recover(uri):
                    self.observer.message(f"unreadable after a crash, moved aside: {address}")

    def _stop(self) -> None:
        self._ending = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _loop(self) -> None:
        budget, observer = self.budget, self.observer
        looked = moved = time.monotonic()
        asked = 0.0
        self._stirred = False
        while True:
            now = time.monotonic()
            if now - asked >= _HEAD_SECONDS:
                asked = now
                self._look()
            if self._begin(now):
                moved = now
            if self._settle():
                # Another product may be made of what was just written, or this one of what came meanwhile.
                moved, asked = time.monotonic(), 0.0
            if self._replay() or self._stirred:
                moved, asked, self._stirred = time.monotonic(), 0.0, False
            self._report()
            self._lineage.recorder.flush_if_due()
            self._publisher.write_if_due()
            if observer.cancelled():
                self.result.reason = "cancelled"
                return
            if now - looked > _LOOK_SECONDS or self._outdated:
                looked = now
                if any(plan.contracts_changed() for plan in self.plans):
                    self.result.reason = "contract changed"
                    self._finish()
                    return
            courses = self._courses.values()
            busy = self._releaser.pending or any(course.busy or course.replay for course in courses)
            if (
                not busy
                and now - moved >= self._idle_seconds
                and (budget.catching_up or not self.expecting())
                # What comes meanwhile is derived at once.
                and self._housekeeper.conclude()
                and self._checker.conclude()
            ):
                self.result.reason = "caught up" if budget.catching_up else "idle"
                return
            if (
                now - self._started > budget.max_seconds
                and observer.relieved()
                # The successor cannot begin before this shift has ended: go on while a fold or check ends.
                and all((self._housekeeper.rest(), self._checker.rest()))
            ):
                self.result.reason = "budget"
                self._finish()
                return
            self._pause()

    @property
    def _idle_seconds(self) -> float:
        """How long nothing happens before the shift ends; a product waits between two steps."""
        budget = self.budget
        return budget.batch_seconds + _POLL_SECONDS if budget.catching_up else budget.idle_seconds

    def _pause(self) -> None:
        """Wait for the end of a step, but not for long."""
        self._stepped.wait(_POLL_SECONDS)
        self._stepped.clear()

    def _finish(self) -> None:
        """Let the steps end that are under way."""
        while any(course.busy for course in self._courses.values()) and not self.observer.cancelled():
            if not self._settle():
                self._pause()

    def _look(self) -> None:
        for name, log in self._heads.items():
            # One that catches up takes what its inputs had when it began; its own products go on.
            if not self.budget.catching_up or name in self._courses or name not in self._seen:
                log.refresh()
                self._seen.add(name)
            self._releaser.offer(name, log.latest())

    def _report(self) -> None:
        for report in self._housekeeper.reports():
            self.observer.fold(report)
        for checked in self._checker.reports():
            self.observer.checked(checked)
        told = (self._housekeeper, self._checker, self._releaser, self._publisher, self._transformer)
        for messages in (one.messages for one in told):
            while messages:
                self.observer.message(messages.pop(0))

    # -- steps ------------------------------------------------------------------------------------

    def _begin(self, now: float) -> bool:
        """Begin the steps that are due; whether there are any."""
        begun = False
        for course in self._courses.values():
            if course.busy or now < course.rest_until or now - course.began < self.budget.batch_seconds:
                continue
            if now < course.yields_until:
                # Somebody waits for a replay of its quarantine.
                continue
            if self._refusal(course.plan):
                continue
            heads = self._goal(course)
            if heads is None:
                continue
            state = course.plan.state(heads)
            if course.failures and state == course.attempted and now < course.again_after:
                continue
            if course.derivation is not None and course.derivation.due(heads) is None:
                continue
            if self._patient(course, now):
                continue
            course.attempted = state
            course.began = now
            course.patient_since = None
            course.job = self._pool.submit(self._work, course, heads)
            course.job.add_done_callback(lambda _: self._stepped.set())
            begun = True
        return begun

    def _patient(self, course: _Course, now: float) -> bool:
        """Whether a step that is due waits a moment for the newest version of an input to be let in."""
        if not any(self._releaser.judging(name) for name in course.plan.input_products):
            return False
        if course.patient_since is None:
            course.patient_since = now
        return now - course.patient_since < _PATIENCE_SECONDS

    def _work(self, course: _Course, heads: Heads) -> Step | None:
        """Take one step, if one is due; in a thread of the pool."""
        plan, lineage = course.plan, self._lineage
        # Lineage looks into the transform, too: not in the thread that all wait for.
        try:
            with lineage.product(plan.name, heads), concealed(plan):
                if course.derivation is None:
                    course.derivation = self._opened(course)
                if course.derivation.due(heads) is None:
                    return None
                step = course.derivation.step(heads)
            for one in plan.inputs:
                version, count = step.reads[one.name]
                lineage.read(plan.name, one, version=version, row_count=count)
            lineage.version(step.version)
        except Cancelled:
            raise
        except Exception as error:
            lineage.failed(plan.name, error)
            raise
        return step

    def _refusal(self, plan: DerivePlan) -> MeshError | None:
        """Why a product takes nothing under its contract as it is: its tables are made together."""
        found = (self._promises.refusal(target) for target in plan.targets)
        return next((refusal for refusal in found if refusal is not None), None)

    def _opened(self, course: _Course) -> Derivation:
        gates = {target.table: self._promises.gate(target) for target in course.plan.targets}
        derivation = Derivation(
            course.plan,
            self.run_id,
            self._transformer,
            gates={table: gate for table, gate in gates.items() if gate is not None},
        )
        derivation.open()
        return derivation

    def _goal(self, course: _Course) -> Heads | None:
        """The inputs' versions that a product may be made of; None while one has none."""
        plan = course.plan
        heads: dict[ProductName, VersionRow] = {}
        for name in plan.input_products:
            row = self._heads[name].latest()
            if row is None:
                return None
            why = self._blocked(course, name, row)
            passed = row.version
            if self._releaser.holds(name):
                passed = self._releaser.released(name) or 0
            elif why is not None:
                passed = 0
            if passed < row.version:
                held = (
                    course.derivation.latest()
                    if course.derivation
                    else VersionLog(plan.versions_uri).latest()
                )
                # Never back: what it is made of stands, whatever a later evaluation says.
                at = max(passed, held.parents.get(str(name), 0) if held else 0)
                row = self._heads[name].at(at) if at else None
                if row is None:
                    return None
            heads[name] = row
        return heads if self._planned_for(course, heads) else None

    def _planned_for(self, course: _Course, heads: Heads) -> bool:
        """Whether the plan may be held against the contracts that these versions were made under.

        One that was not met before may be new, also to a plan that has read it: who read the old one
        may have to read what keeps that, which is there before the first version under the new one.
        """
        others = {row.contract_hash for row in heads.values()}
        if others <= course.contracts:
            return True
        if course.plan.contracts_changed():
            self._outdated = True
            return False
        course.contracts |= others
        return True

    def _blocked(self, course: _Course, name: ProductName, row: VersionRow) -> str | None:
        known = course.blocked.get(name)
        now = time.monotonic()
        if self._releaser.holds(name):
            why = self._releaser.why(name)
        elif known is not None and now < known[2]:
            # Checks are run at most once in a while: the last outcome stands until then.
            return known[1]
        else:
            why = blocked(course.plan.layout, name)
        if why is not None and (known is None or known[1] != why):
            self.observer.message(f"{course.plan.name} waits: {why}")
            self._stirred = True
        course.blocked[name] = (row.version, why, now + _BLOCKED_SECONDS)
        return why

    def _settle(self) -> bool:
        """Take in the steps that have ended; whether any has."""
        ended = False
        for course in self._courses.values():
            job = course.job
            if job is None or not job.done():
                continue
            course.job, ended = None, True
            try:
                step = job.result()
            except StorageFull:
                raise
            except Cancelled:
                continue
            except Fenced as fenced:
                self._fenced(course, fenced)
            except Exception as error:  # noqa: BLE001 - told; the other products go on
                self._refuse(course, error, course.attempted)
            else:
                if step is not None:
                    self._done(course, step)
        return ended

    def _fenced(self, course: _Course, fenced: Fenced) -> None:
        """Somebody else wrote, a rebuild for example: what stands is read anew, and held against."""
        course.fences += 1
        course.derivation = None
        course.rest_until = time.monotonic() + self.budget.batch_seconds
        if course.fences > _MOST_FENCES:
            raise fenced
        self.observer.message(f"{course.plan.name}: {fenced.message}; it is read anew")

    def _refuse(self, course: _Course, error: BaseException, state: str) -> None:
        name = course.plan.name
        course.failures += 1
        course.derivation = None
        course.attempted = state
        now = time.monotonic()
        # With other inputs it is tried again soon, with the same ones ever later.
        course.rest_until = now + max(_RETRY_SECONDS, now - course.began if course.began else 0.0)
        course.again_after = now + min(_LONGEST_RETRY_SECONDS, _RETRY_SECONDS * 4**course.failures)
        text = str(error) or type(error).__name__
        if self.result.refused.get(str(name)) != text:
            self.result.refused[str(name)] = text
            self.observer.message(f"{name} stays as it is: {text}")
        course.plan.refuse("passing" if _passing(error) else state, text, datetime.now(UTC).isoformat())

    def _done(self, course: _Course, step: Step) -> None:
        name = course.plan.name
        if course.failures:
            course.failures = 0
            self.result.refused.pop(str(name), None)
        course.fences = 0
        course.plan.forgive()
        self._release(course)
        if step.whole is not None:
            self.observer.message(
                f"{name}: recomputed as a whole in {step.seconds:.1f} s, because {step.whole}"
            )
        for text in step.messages:
            self.observer.message(text)
        if step.batch.row_count:
            self.result.add(step.batch)
            self.observer.batch(step.batch)
        self._publisher.changed()
        self.observer.version(step.version)
        self._housekeeper.cut(step.version)
        self._checker.cut(step.version)

    def _release(self, course: _Course) -> None:
        """Keep the contract under which the product's first version of this shift was made."""
        if course.released:
            return
        course.released = True
        if text := record_release(course.plan.layout, course.plan.product, course.plan.code_hash):
            self.observer.message(text)

    # -- quarantine -------------------------------------------------------------------------------

    def _replay(self) -> bool:
        """Answer who asks for a replay; whether anybody was answered."""
        served, now = False, time.monotonic()
        for name, answer in self._desks.serve(self.run_id, self._answered):
            told = ", ".join(f"{table} {one.sentence()}" for table, one in answer.tables.items())
            self.observer.message(f"{name}: replay of quarantine: {told}")
            served = True
        for course in self._courses.values():
            if course.replay is not None and not course.busy and now > course.replay.until:
                # Nobody waits for it any more.
                course.replay = None
        return served

    def _answered(self, name: ProductName, tables: Sequence[str]) -> Mapping[str, Replayed] | None:
        """What a replay came to; None while it is under way, or the product's step is."""
        course, now = self._courses[name], time.monotonic()
        course.yields_until = now + _YIELD_SECONDS
        if course.busy:
            return None
        replay, course.replay = course.replay, None
        if replay is not None and replay.tables == tuple(tables):
            course.yields_until = 0.0
            return replay.done
        course.job = self._pool.submit(self._rejudge, course, tuple(tables))
        return None

    def _rejudge(self, course: _Course, tables: tuple[str, ...]) -> Step | None:
        """Replay some tables (all, if none is named), in a thread of the pool, like a step."""
        wanted = tables or tuple(target.table for target in course.plan.targets)
        step = None
        try:
            with self._lineage.product(course.plan.name), concealed(course.plan):
                if course.derivation is None:
                    course.derivation = self._opened(course)
                done = {table: course.derivation.replay(table) for table in wanted}
                step = self._shown(course.derivation)
            done = Desk(course.plan.layout, course.plan.name).told(course.plan.contract_hash, done)
        except (StorageFull, Fenced) as error:
            # The next run looks up anew where the tables go on.
            self._lineage.failed(course.plan.name, error)
            raise
        except _FAULTS as error:
            course.derivation = None
            done = {table: Replayed(refused=str(error)) for table in wanted}
        else:
            course.fences = 0
        course.replay = _Replay(tables, done, time.monotonic() + _YIELD_SECONDS)
        return step

    def _shown(self, derivation: Derivation) -> Step | None:
        """Write the version that has what was released: whoever asked may read it at once."""
        parents = derivation.parents()
        if parents is None or not derivation.unfinished():
            return None
        step = derivation.step(parents)
        for one in derivation.plan.inputs:
            version, count = step.reads[one.name]
            self._lineage.read(derivation.plan.name, one, version=version, row_count=count)
        self._lineage.version(step.version)
        return step


def _passing(error: BaseException) -> bool:
    """Whether the same attempt may well succeed: storage, or the transform's process, was lost under it."""
    return isinstance(error, (OSError, DeltaError)) or isinstance(
        error.__cause__ or error.__context__, (EOFError, OSError)
    )
