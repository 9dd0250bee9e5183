"""A shift: one run that drains a source into its products' change logs until idle or out of budget.

Order of commits for every batch, each durable before the next: the change log of every table, the
parking log, the version row of every product, the ledger; only then is the position acknowledged
to the source. Killed anywhere in between, the next shift is sent the batch again and every table
drops what it already holds.

A change that fails a blocking rule lands like any other, marked; asked to, the shift judges what is
quarantined again between two batches.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from mesh_assets import failpoint
from mesh_assets.cdc.decode import Batch, Decoder
from mesh_assets.cdc.gap import Gap, GapLog, find_gap
from mesh_assets.cdc.parking import ParkingLog
from mesh_assets.cdc.refusal import RefusalLog
from mesh_assets.cdc.relation import Relation
from mesh_assets.cdc.schema import SchemaLog
from mesh_assets.cdc.snapshot import ExportedSnapshot
from mesh_assets.cdc.source import Source
from mesh_assets.cdc.stream import ReplicationStream
from mesh_assets.checks.checker import Checker
from mesh_assets.errors import (
    MeshError,
    MigrationRefused,
    PublicationLost,
    SlotBusy,
    SnapshotBlocked,
    SnapshotStale,
    SourceDisconnected,
    SourceError,
)
from mesh_assets.ingest.landing import Landing
from mesh_assets.ingest.lineage import ShiftLineage
from mesh_assets.ingest.quiet import Goal, Quiet, passed
from mesh_assets.ingest.snapshot import Backfill, SnapshotReader
from mesh_assets.ingest.versioning import Cutter
from mesh_assets.lake.layout import ensure_layout
from mesh_assets.lake.ledger import Ledger, LedgerRow
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.recovery import recover
from mesh_assets.lake.table import Table
from mesh_assets.names import ProductName
from mesh_assets.shift.housekeeping import Housekeeper
from mesh_assets.shift.memory import be_frugal
from mesh_assets.shift.plan import CapturePlan, Target, checks_uri
from mesh_assets.shift.publisher import Publisher
from mesh_assets.shift.readiness import TABLE_ERRORS, check_contract, preflight, promises
from mesh_assets.shift.release import record_release
from mesh_assets.shift.replay import Desks, Replayed
from mesh_assets.shift.report import BatchReport, Budget, Observer, ShiftResult, Silent, TableReport

_LOOK_SECONDS = 10.0
_POLL_SECONDS = 0.2
_CLOCK_MARGIN = timedelta(seconds=1)
_SNAPSHOT_ATTEMPTS = 5
_SLOT_SECONDS = 3.0


class Shift:
    """Drains one source.

    Args:
        plan: the source and the tables of the products that it feeds.
        budget: when to land and when to end.
        observer: who watches.
        run_id: the orchestrator's run, recorded in versions and lineage.
    """

    def __init__(
        self,
        plan: CapturePlan,
        *,
        budget: Budget | None = None,
        observer: Observer | None = None,
        run_id: str = "",
    ) -> None:
        self.plan = plan
        self.budget = budget or Budget()
        self.observer: Observer = observer or Silent()
        self.run_id = run_id or str(uuid.uuid4())
        self.result = ShiftResult()
        self._landings: dict[str, Landing] = {}
        self._desks = Desks(plan.layout, plan.products)
        self._released: set[ProductName] = set()
        self._behind = False

    def run(self) -> ShiftResult:
        """Drain until idle, out of budget, cancelled or overtaken by a new contract.

        Raises:
            SourceError: the source cannot be captured; nothing is lost.
            Fenced: another shift has taken over.
            StorageFull: nothing was acknowledged.
        """
        self._started = time.monotonic()
        be_frugal()
        with (
            Source(self.plan.source) as source,
            self._claimed(source),
            self._told() as self._lineage,
        ):
            self._open(source)
            self._reader = SnapshotReader(source, self.budget.snapshot_rows, self.observer, self._read)
            with (
                Housekeeper(
                    self.plan, self.budget.fold, self.budget.upkeep, self._lineage.tending
                ) as self._housekeeper,
                Checker(
                    self.plan.layout,
                    self.plan.definitions,
                    self._promises.rulesets,
                    self.run_id,
                    every_seconds=self.budget.check_seconds,
                    tending=self._lineage.tending,
                ) as self._checker,
                Publisher(self.plan.layout, self.plan.definitions.values()) as self._publisher,
            ):
                if self._snapshot(source):
                    self._drain(source)
                if self.result.reason != "budget":
                    # Else the successor does, which waits for this shift to end.
                    self._publisher.finish()
                self._report_folds()
        self.result.seconds = time.monotonic() - self._started
        return self.result

    # -- opening ------------------------------------------------------------------------------

    def _told(self) -> ShiftLineage:
        return ShiftLineage(self.plan, self.run_id, self.observer.message)

    @contextmanager
    def _claimed(self, source: Source) -> Iterator[None]:
        with ExitStack() as claim:
            try:
                claim.enter_context(source.claim(wait_seconds=self.budget.claim_seconds))
            except SlotBusy:
                # Another shift captures: this one has not begun, and nothing has failed.
                raise
            except MeshError:
                with self._told():
                    raise
            yield

    def _open(self, source: Source) -> None:
        plan, now = self.plan, datetime.now(UTC)
        ensure_layout(plan.layout.root)
        relations, unfit = preflight(plan, source)
        self._system = source.system()
        self._recover()
        self._ledger = Ledger(plan.part_uri("ledger"))
        self._gaps = GapLog(plan.part_uri("gaps"))
        schemas = SchemaLog(plan.part_uri("schemas"))
        self._cutter = Cutter(plan, self.run_id)
        with Source(replace(plan.source, tables=tuple(relations))) as publisher:
            published = self._begin(publisher)
        self._parking = ParkingLog(plan.part_uri("parking"), self._gaps.count)
        self._refusals = RefusalLog(plan.part_uri("refusals"))
        self._promises = promises(plan.layout, plan.definitions, plan.readers)
        for text in self._promises.messages:
            self.observer.message(text)
        for target in plan.targets:
            gate = self._promises.gate(target)
            landing = Landing(target, plan.source.name, schemas, source.describe, self._gaps.count, gate)
            self._landings[target.source_table] = landing
            if refusal := unfit.get(target.source_table) or self._promises.refusal(target):
                self._refuse(landing, refusal)
                continue
            try:
                landing.open(relations[target.source_table], now)
                check_contract(plan, target, relations[target.source_table])
                if target.source_table in published:
                    # It was not in the publication: what changed meanwhile was not sent.
                    landing.read_again(now)
                self._unpark(source, landing)
            except (MigrationRefused, *TABLE_ERRORS) as refusal:
                self._refuse(landing, refusal)
            if landing.refused is None:
                self._refusals.record(target.source_table, None, now, self.run_id)

    def _recover(self) -> None:
        """Move aside what a power cut left unreadable; it was not acknowledged and comes again."""
        plan = self.plan
        moved = recover(plan.part_uri("ledger"))
        last = Ledger(plan.part_uri("ledger")).latest()
        held = last.tables if last else {}
        for target in plan.targets:
            seq = held.get(target.source_table, -1)
            moved += recover(target.changes_uri, {"seq": seq} if seq >= 0 else {})
        others = [
            uri
            for name in plan.products
            for uri in (plan.layout.versions(name), checks_uri(plan.layout, name))
        ]
        others += [plan.part_uri(part) for part in ("parking", "schemas", "gaps", "refusals")]
        others += [*(target.current_uri for target in plan.targets), plan.layout.lineage()]
        for uri in others:
            moved += recover(uri)
        for address in moved:
            self.observer.message(f"unreadable after a crash, moved aside: {address}")

    def _begin(self, source: Source) -> tuple[str, ...]:
        """Continue the ledger on its slot, or record why that cannot be and begin again.

        Returns:
            The tables that the publication did not have before.
        """
        last, slot = self._ledger.latest(), source.slot()
        gap = find_gap(last, slot, self._system, source.tip()[1])
        if last is None and any(_holds_rows(target.changes_uri) for target in self.plan.targets):
            gap = "the ledger is missing beside change logs that hold rows"
        if last is not None and gap is None:
            try:
                published = source.ensure_publication(slot_is_new=False)
            except PublicationLost:
                gap = "the publication was dropped: what changed meanwhile was not sent"
            else:
                self._commit_lsn, self._held_lsn = last.commit_lsn, last.end_lsn
                return published
        if slot is not None:
            # Without a ledger it is the leaving of a shift that died before its first row.
            source.drop_slot()
        published = source.ensure_publication(slot_is_new=True)
        now, lsn = source.tip()[0], source.create_slot()
        if gap is not None:
            self._gaps.record(Gap(gap, last.end_lsn if last else 0, lsn), now)
            self.observer.message(f"gap: {gap}; every table of the source is read again")
        self._record(lsn, lsn, now)
        return published

    def _refuse(self, landing: Landing, refusal: MeshError) -> None:
        landing.refused = refusal
        table = landing.target.source_table
        self._refusals.record(table, str(refusal), datetime.now(UTC), self.run_id)
        self._cutter.suspend(landing.target.name)
        self.result.refused[landing.target.source_table] = str(refusal)
        self.observer.message(f"parked {refusal}")

    def _unpark(self, source: Source, landing: Landing) -> None:
        """Give a repaired table its parked changes, in order, before any new one."""
        table = landing.target.source_table
        decoder = Decoder(source.resolve, key_of=self._key_of)
        try:
            for relation, frame in self._parking.replay(
                table, landing.relation.oid, landing.position, decoder, gap_count=landing.held_gap_count
            ):
                landing.land(relation, frame, datetime.now(UTC))
                self.observer.message(f"{table}: {frame.num_rows:,} parked changes landed")
        except SourceDisconnected:
            raise
        except SourceError as error:
            if landing.gapped:
                # It is read again as a whole, and needs them no more.
                self.observer.message(f"{table}: goes on without its parked changes: {error.message}")
                return
            # What was parked cannot be decoded: this table waits, the others go on.
            self._refuse(landing, error)

    # -- snapshot -----------------------------------------------------------------------------

    def _snapshot(self, source: Source) -> bool:
        """Read every table that is not wholly held; False if cancelled meanwhile."""

        def wanted() -> list[Landing]:
            present = (one for one in self._landings.values() if one.refused is None)
            return [landing for landing in present if landing.snapshot_wanted]

        for attempt in range(_SNAPSHOT_ATTEMPTS):
            landings = wanted()
            if not landings:
                break
            try:
                exported = ExportedSnapshot(source)
            except SnapshotBlocked as blocked:
                # The tables that are held go on; these are parked until the server lets us look.
                for landing in landings:
                    self._refuse(landing, blocked)
                break
            with exported as snapshot:
                for landing in landings:
                    try:
                        if not self._reader.read(snapshot, landing):
                            self.result.reason = "cancelled"
                            return False
                    except SnapshotStale as stale:
                        if attempt == _SNAPSHOT_ATTEMPTS - 1:
                            raise
                        self.observer.message(f"{stale.message}; it is read again")
                if len(landings) == len(self._landings) and not wanted():
                    # All tables at one position: a cut. Otherwise the stream brings the first one.
                    self._cut(snapshot.lsn - 1, snapshot.lsn - 1, final=True)
        failpoint.reach("snapshot.done")
        return True

    def _read(self, target: Target, row_count: int) -> None:
        self._lineage.snapshot(target, row_count)
        self.result.snapshot_row_count += row_count

    # -- drain --------------------------------------------------------------------------------

    def _drain(self, source: Source) -> None:
        plan = self.plan.source
        decoder = Decoder(source.resolve, key_of=self._key_of, accept=self._accept)
        self._backfill = Backfill(self._reader, self._landings, self._land_frame)
        try:
            stream = ReplicationStream(
                plan.url,
                slot=plan.slot,
                publication=plan.publication,
                start_lsn=self._held_lsn,
                # Who has the claim knows that whoever still holds the slot is on its way out.
                wait_seconds=max(_SLOT_SECONDS, self.budget.claim_seconds),
            )
            try:
                self._stream(source, decoder, stream)
            finally:
                stream.close()
                self._backfill.close()
        except PublicationLost:
            # Whoever makes it again, this slot has to pass the time without it. The next shift begins anew.
            with suppress(SlotBusy):
                source.drop_slot()
            raise

    def _stream(self, source: Source, decoder: Decoder, stream: ReplicationStream) -> None:
        budget, observer = self.budget, self.observer
        quiet = Quiet(source, decoder, stream, budget.idle_seconds)
        goal = Goal(source, decoder, stream) if budget.catching_up else None
        backfill = self._backfill
        # From here on: a shift that takes long to open gets somewhere all the same.
        began = now = time.monotonic()
        landed, looked = now - budget.batch_seconds, now
        settled = False
        while True:
            for name, answer in self._desks.serve(self.run_id, self._replay):
                told = ", ".join(f"{table} {one.sentence()}" for table, one in answer.tables.items())
                observer.message(f"{name}: replay of quarantine: {told}")
            wait = _POLL_SECONDS
            if decoder.row_count:
                wait = max(0.0, min(wait, landed + budget.batch_seconds - now))
            if stream.receive(wait):
                failpoint.reach("decode.before")
                stream.consumed(decoder.decode(stream.buffer, stream.start, stream.end))
                failpoint.reach("decode.after")
            now = time.monotonic()
            quiet.look(now)
            if self._due(decoder, now - landed):
                self._land(source, decoder, stream)
                landed = now = time.monotonic()
            if self._cutter.owing:
                self._cut(self._commit_lsn, self._held_lsn)
            self._report_folds()
            self._lineage.flush_if_due()
            self._publisher.write_if_due()
            caught_up = goal is not None and goal.reached(now, self._held_lsn)
            backfill.begin(ending=quiet.over or caught_up)
            if backfill.lsn is not None and passed(decoder, backfill.lsn):
                backfill.run()
            if now - looked > _LOOK_SECONDS:
                looked = now
                self._acknowledge(decoder, stream, quiet.since)
                if self.plan.contracts_changed():
                    self.result.reason = "contract changed"
                    break
            if observer.cancelled():
                self.result.reason = "cancelled"
                break
            if caught_up and not backfill.owing:
                self.result.reason = "caught up"
                break
            if not quiet.over or backfill.owing:
                settled = False
            elif not settled:
                self._settle(decoder, stream, quiet.since)
                settled = True
            # What comes meanwhile is landed at once.
            elif self._housekeeper.conclude() and self._checker.conclude():
                break
            if (
                now - began > budget.max_seconds
                and observer.relieved()
                # The successor cannot begin before this shift has ended: drain on while a fold or check ends.
                and all((self._housekeeper.rest(), self._checker.rest()))
            ):
                self.result.reason = "budget"
                break
        if decoder.row_count:
            self._land(source, decoder, stream)
        if goal is not None and self.result.reason == "caught up":
            self._settle(decoder, stream, goal.since)
            self._conclude()
        elif not settled:
            self._settle(decoder, stream, quiet.since)

    def _settle(self, decoder: Decoder, stream: ReplicationStream, since: datetime | None) -> None:
        """Cut the versions that are owed, and tell the source how far everything is durable.

        ``since`` is a moment of the source's clock before which everything has arrived, if there is one.
        """
        if since and passed(decoder, self._held_lsn):
            self._cut(decoder.wal_end, decoder.wal_end, final=True)
        else:
            self._cut(self._commit_lsn, self._held_lsn, final=True)
        self._acknowledge(decoder, stream, since)

    def _conclude(self) -> None:
        """Fold and check what was captured, while nothing more is taken in."""
        while not (self._housekeeper.conclude() and self._checker.conclude()):
            self._report_folds()
            if self.observer.cancelled():
                self.result.reason = "cancelled"
                return
            time.sleep(_POLL_SECONDS)

    def _due(self, decoder: Decoder, seconds_since_landing: float) -> bool:
        budget = self.budget
        return decoder.late_commit or (
            decoder.row_count > 0
            and (
                seconds_since_landing >= budget.batch_seconds
                or decoder.row_count >= budget.batch_rows
                or decoder.byte_count >= budget.batch_bytes
            )
        )

    def _accept(self, relation: Relation) -> bool:
        """Whether the changes of a relation that the stream announces can be landed; else they are parked."""
        landing = self._landings.get(relation.qualified_name)
        if landing is None or landing.refused is not None:
            return False
        try:
            landing.check(relation)
        except (MigrationRefused, *TABLE_ERRORS) as refusal:
            self._refuse(landing, refusal)
            return False
        return True

    def _key_of(self, oid: int, schema: str, name: str) -> tuple[str, ...]:
        """The contract's key, for a table whose replica identity is the whole row."""
        landing = self._landings.get(f"{schema}.{name}")
        return landing.target.key if landing else ()

    def _land_frame(self, landing: Landing, relation: Relation, frame: pa.Table) -> TableReport | None:
        appended = landing.land(relation, frame, datetime.now(UTC))
        if appended is None:
            return None
        report = landing.report(appended)
        self._lineage.appended(report)
        return report

    def _land(self, source: Source, decoder: Decoder, stream: ReplicationStream) -> None:
        """Make one batch durable in the order that this module promises, then acknowledge it."""
        started, batch = time.monotonic(), decoder.take()
        # Large batches are a backlog: folding waits until it is drained, and then folds once.
        self._behind = batch.row_count >= self.budget.batch_rows / 4
        failpoint.reach("append.before")
        for oid, error in decoder.refused.items():
            refused = self._landings.get(decoder.names[oid])
            if refused is not None and refused.refused is None:
                self._refuse(refused, error)
        reports: list[TableReport] = []
        if self._backfill.lsn is not None and batch.position[0] >= self._backfill.lsn:
            self._backfill.run(batch)
        for number, (relation, frame) in enumerate(batch.segments):
            if report := self._land_frame(self._landings[relation.qualified_name], relation, frame):
                reports.append(report)
            if number == 0:
                failpoint.reach("append.first")
            elif number < len(batch.segments) - 1:
                failpoint.reach("append.middle")
        parked_count = self._park(batch, decoder.names)
        committed_at = _moment(batch.committed_at)
        if batch.end_lsn:
            if not batch.in_transaction:
                self._cut(batch.commit_lsn, batch.end_lsn)
            self._record(batch.commit_lsn, batch.end_lsn, committed_at)
            stream.acknowledge(batch.end_lsn)
            failpoint.reach("acknowledge.after")
        done = BatchReport(
            reports,
            batch.commit_lsn,
            batch.end_lsn,
            committed_at if batch.end_lsn else None,
            sum(table.row_count for table in reports),
            batch.transaction_count,
            parked_count,
            time.monotonic() - started,
        )
        self.result.add(done)
        self.observer.batch(done)

    def _park(self, batch: Batch, names: Mapping[int, str]) -> int:
        """Keep the raw changes of tables that cannot take them."""
        count = 0
        for oid, messages in batch.parked:
            count += self._parking.park(names[oid], messages)
        return count

    # -- after the logs -----------------------------------------------------------------------

    def _cut(self, commit_lsn: int, end_lsn: int, *, final: bool = False) -> None:
        """Write the product versions that are due, and let their tables be folded up to them."""
        failpoint.reach("version.before")
        for report in self._cutter.cut(self._landings.values(), commit_lsn, end_lsn, final=final):
            self._release(report.name)
            self._lineage.version(report)
            self.observer.version(report)
            self._housekeeper.cut(report, later=self._behind)
            self._checker.cut(report)
            self._publisher.changed()
        failpoint.reach("version.after")

    def _release(self, name: ProductName) -> None:
        """Keep the contract under which a product's first version of this shift was made."""
        product = self.plan.definitions.get(name)
        if product is None or name in self._released:
            return
        self._released.add(name)
        if text := record_release(self.plan.layout, product):
            self.observer.message(text)

    # -- quarantine ---------------------------------------------------------------------------

    def _replay(self, name: ProductName, tables: Sequence[str]) -> Mapping[str, Replayed]:
        """Judge what is quarantined again, under the contract of this shift."""
        done: dict[str, Replayed] = {}
        for landing in self._landings.values():
            table = landing.target.table
            if landing.target.name != name or (tables and table not in tables):
                continue
            if landing.refused is not None:
                done[table] = Replayed(refused=f"the table is parked: {landing.refused.message}")
                continue
            done[table] = Replayed()
            for release, appended in landing.replay(datetime.now(UTC)):
                count = appended.row_count if appended else 0
                done[table] += Replayed(release.released, release.kept, count)
                if appended is not None:
                    report = landing.report(appended)
                    self._lineage.appended(report)
                    self.result.tables[name, table] = report
        if any(one.row_count for one in done.values()):
            self._cut(self._commit_lsn, self._held_lsn, final=True)
        return done

    def _record(self, commit_lsn: int, end_lsn: int, observed_at: datetime) -> None:
        """Append the ledger's row: from here on the position may be acknowledged.

        ``observed_at`` is a moment of the source's clock before which nothing more will commit.
        """
        failpoint.reach("ledger.before")
        self._ledger.append(
            LedgerRow(
                commit_lsn=commit_lsn,
                end_lsn=end_lsn,
                system_identifier=self._system.identifier,
                timeline=self._system.timeline,
                tables=self._held(),
                # Commit times are taken a little before the commits get their order.
                observed_at=observed_at - _CLOCK_MARGIN,
                shift=self.run_id,
            )
        )
        self._commit_lsn, self._held_lsn = commit_lsn, end_lsn
        failpoint.reach("ledger.after")

    def _held(self) -> Mapping[str, int]:
        """The last ``_seq`` of every table that is held wholly up to here."""
        return {
            table: landing.log.seq
            for table, landing in self._landings.items()
            if landing.opened and landing.refused is None and not landing.snapshot_wanted
        }

    def _acknowledge(self, decoder: Decoder, stream: ReplicationStream, quiet_since: datetime | None) -> None:
        """Move ledger and slot over WAL that holds nothing of ours, so that it is not retained.

        ``quiet_since`` is a moment of the source's clock after which the stream had time to say more.
        """
        if quiet_since is None or decoder.row_count or decoder.in_transaction:
            return
        if decoder.wal_end > self._held_lsn:
            self._record(self._held_lsn, decoder.wal_end, quiet_since)
            stream.acknowledge(decoder.wal_end)

    def _report_folds(self) -> None:
        for report in self._housekeeper.reports():
            self.observer.fold(report)
        for checked in self._checker.reports():
            self.observer.checked(checked)
        for messages in (self._housekeeper.messages, self._checker.messages, self._publisher.messages):
            while messages:
                self.observer.message(messages.pop(0))


def _holds_rows(uri: str) -> bool:
    return Table.exists(uri) and ChangeLog.open(uri).seq >= 0


def _moment(micros: int) -> datetime:
    return datetime.fromtimestamp(micros / 1e6, UTC)
