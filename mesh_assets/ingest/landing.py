"""One captured table on its way into the lake: what it holds, what it still takes, in which shape.

A landing drops what its change log already holds (redelivered after a crash, or contained in a
snapshot), so that every change lands once, and follows the schema versions of its table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from mesh_assets import failpoint
from mesh_assets.cdc.relation import IDENTITY_FULL, Leaf, Relation
from mesh_assets.cdc.schema import SchemaLog, SchemaVersion, added_columns, leaves_of, same_shape
from mesh_assets.errors import MeshError, MigrationRefused
from mesh_assets.lake.log import Appended, ChangeLog
from mesh_assets.lake.quarantine import Release
from mesh_assets.lake.table import Table
from mesh_assets.quality.gate import Gate
from mesh_assets.shift.gating import Guard, Verdict
from mesh_assets.shift.plan import Target
from mesh_assets.shift.report import TableReport

_SNAPSHOT = "snapshot"
_SNAPSHOT_LSN = "snapshot/lsn"
_SNAPSHOT_GAPS = "snapshot/gaps"
_READING, _DONE, _BACKFILL = 0, 1, 2
"""States of a table's snapshot, kept as an app transaction of its log."""
LAST_ORDINAL = 2**62
"""The ordinal of the last row that a snapshot has at its position."""


@dataclass
class Since:
    """Changes after some ``_seq``: how many by op, and their latest commit time."""

    op_count: Counter[str] = field(default_factory=Counter)
    committed_at: datetime | None = None


class Landing:
    """The landing of one source table in the change log of one product table.

    Args:
        target: the product's table.
        source: name of the source, which prefixes its positions.
        schemas: schema versions of the source's tables.
        describe: what the source's catalog says of ``schema.table`` now.
        gap_count: how many gaps the source had so far.
        gate: the blocking row rules of the table; None if there are none.

    Attributes:
        refused: why the table takes nothing in this shift; its changes are parked.
        op_count: changes landed by this object, by op.
        rejected_count: how many of them the gate kept out of current.
    """

    def __init__(
        self,
        target: Target,
        source: str,
        schemas: SchemaLog,
        describe: Callable[[str], Relation],
        gap_count: int,
        gate: Gate | None = None,
    ) -> None:
        self.target = target
        self.refused: MeshError | None = None
        self.op_count: Counter[str] = Counter()
        self.rejected_count = 0
        self._gate = gate
        self._counted = Since()
        self._log: ChangeLog | None = None
        self._source = source
        self._schemas = schemas
        self._describe = describe
        self._leaves: tuple[Leaf, ...] | None = None
        self._gap_count = gap_count

    @property
    def opened(self) -> bool:
        """Whether the change log is open; a table that was refused at once has none."""
        return self._log is not None

    @property
    def log(self) -> ChangeLog:
        """The change log; only once opened."""
        assert self._log is not None
        return self._log

    # -- shape --------------------------------------------------------------------------------

    def open(self, described: Relation, at: datetime) -> None:
        """Create or open the change log and bring it to the shape that the catalog describes.

        Raises:
            MigrationRefused: if the source's table changed in a way that does not apply by itself.
            ContractError: if the gate cannot work on this table.
        """
        uri = self.target.changes_uri
        known = self._schemas.latest(described.qualified_name)
        captured = Table.exists(uri)
        if known is None or (not captured and SchemaVersion.of(described, known.number) != known):
            # A shape in which nothing was captured binds nobody.
            known = SchemaVersion.of(described, known.number + 1 if known else 1)
            self._schemas.record([known], at)
        self._version = known
        self.relation = described
        if captured:
            self._log = ChangeLog.open(uri)
        else:
            self._log = ChangeLog.create(uri, described.row_schema, self.target.key)
        self.guard = Guard(self._log, self.target.current_uri, self._gate)
        self._extend(described, at)

    def read_again(self, at: datetime) -> None:
        """Have the rows compared with the source's once more, and the differences appended."""
        if not self.snapshot_wanted:
            self._mark(_BACKFILL, at)

    def check(self, streamed: Relation) -> None:
        """Check that changes in the announced shape can be landed.

        Raises:
            MigrationRefused: if it differs from the known shape by more than added columns.
        """
        described = self._describe(self.target.source_table)
        if leaves_of(described) != self._version.leaves:
            self._leaves = described.leaves
        if streamed.identity != IDENTITY_FULL and set(streamed.key) != set(self.target.key):
            raise MigrationRefused(
                f"{self.target.source_table}: the replica identity is now {list(streamed.key)}, "
                f"the contract's key is {list(self.target.key)}",
                hint="its changes are kept in the parking log until identity and contract agree again",
            )
        if same_shape(streamed, self.relation):
            # The message lacks attribute numbers: a column dropped and added again looks the same.
            now = {column.name: column.attnum for column in described.columns}
            again = [c.name for c in self._version.columns if now.get(c.name, c.attnum) != c.attnum]
            if again:
                raise MigrationRefused(
                    f"{self.target.source_table}: columns {again} were dropped and added again",
                    hint="their older values are gone at the source; its changes are kept in the parking log",
                )
            return
        if not self._older(streamed):
            added_columns(self._version, _restricted(described, streamed))

    def _older(self, streamed: Relation) -> bool:
        """Whether a shape is the known one before its last columns: the log fills those with null."""
        before = [(c.name, c.type.oid, c.type.typmod) for c in streamed.columns]
        known = [(c.name, c.type.oid, c.type.typmod) for c in self.relation.columns]
        return len(before) < len(known) and known[: len(before)] == before

    def _extend(self, relation: Relation, at: datetime) -> None:
        """Add the columns that ``relation`` (from the catalog) has beyond the known version."""
        known = self._version
        added = added_columns(known, relation)
        self.log.add_columns([pa.field(column.name, column.arrow) for column in added])
        replaced = known.replaced(relation)
        if replaced or any(column.missing is not None for column in added):
            self.read_again(at)
        if replaced or added or known.leaves != leaves_of(relation):
            number = known.number + 1 if added else known.number
            self._version = SchemaVersion.of(relation, number)
            self._schemas.record([self._version], at)
        self.relation = relation

    def _follow(self, streamed: Relation, at: datetime) -> None:
        leaves, self._leaves = self._leaves, None
        if leaves is not None:
            self._extend(replace(self.relation, leaves=leaves), at)
        if not same_shape(streamed, self.relation) and not self._older(streamed):
            self._extend(_restricted(self._describe(self.target.source_table), streamed), at)

    # -- what it holds ------------------------------------------------------------------------

    @property
    def position(self) -> tuple[int, int]:
        """Position at the source of the last change held; (0, -1) when there is none."""
        return self.log.position(self._source) or (0, -1)

    @property
    def committed_lsn(self) -> int:
        """Commit LSN of the last change held, or what the last snapshot contains."""
        return self.position[0]

    @property
    def snapshot_wanted(self) -> bool:
        """Whether no whole snapshot since the source's last gap is held."""
        state = self.log.transaction(_SNAPSHOT) or _READING
        return state == _READING or self.gapped

    @property
    def gapped(self) -> bool:
        """Whether the source had a gap since the snapshot that is held was taken."""
        return self.held_gap_count < self._gap_count

    @property
    def held_gap_count(self) -> int:
        """How many gaps there were when the snapshot that is held was taken; it qualifies the position."""
        return gap_count_of(self.log)

    @property
    def backfill_wanted(self) -> bool:
        """Whether rows have to be read again for a column that was added with a value."""
        return self.opened and self.refused is None and self.log.transaction(_SNAPSHOT) == _BACKFILL

    def report(self, appended: Appended) -> TableReport:
        """One append, for whoever watches the shift."""
        return TableReport(
            self.target.name,
            self.target.table,
            appended.row_count,
            dict(self.op_count),
            appended.last_seq,
            appended.delta_version,
            self._version.types,
            self.rejected_count,
        )

    def since(self, seq: int) -> Since:
        """What the log holds after ``seq``; also what an earlier, killed shift appended."""
        counted, self._counted = self._counted, Since()
        if counted.op_count.total() == self.log.seq - seq:
            return counted
        rows = self.log.scan(seq, self.log.seq, ["_op", "_committed_at"]).collect()
        counts = rows.get_column("_op").value_counts()
        return Since(Counter(dict(counts.iter_rows())), rows.select(pl.col("_committed_at").max()).item())

    # -- rows ---------------------------------------------------------------------------------

    def land(self, relation: Relation, frame: pa.Table, at: datetime) -> Appended | None:
        """Append the changes of ``frame`` that the log does not hold yet; None if it holds all.

        Raises:
            MigrationRefused: if the frame's shape cannot be followed.
            Fenced: if another shift has appended.
        """
        if relation.identity != IDENTITY_FULL and not set(self.target.key) <= set(relation.key):
            # Parked under another identity: whose row it was is not in the change.
            raise self._unfit(f"they name rows by {[*relation.key]}, the key is {[*self.target.key]}")
        try:
            self._follow(relation, at)
        except MigrationRefused as error:
            raise self._unfit(error.message) from error
        frame = self._beyond(frame)
        if not frame.num_rows:
            return None
        frame = self._fitted(frame)
        last = frame.num_rows - 1
        position = (frame["_position"][last].as_py(), frame["_ordinal"][last].as_py())
        return self._append(frame, position, at, {})

    def land_snapshot(self, frame: pa.Table, lsn: int, at: datetime, *, done: bool) -> Appended:
        """Append rows of a snapshot taken at ``lsn``; its end is part of the last commit.

        Changes committed before the snapshot's consistent point are contained in it: the position
        moves up to it in the same commit, so that the stream's are dropped.
        """
        state = _DONE if done else self._reading()
        kept = {_SNAPSHOT_LSN: lsn, _SNAPSHOT_GAPS: self._gap_count, _SNAPSHOT: state}
        appended = self._append(frame, (lsn - 1, LAST_ORDINAL), at, kept)
        failpoint.reach("snapshot.chunk")
        return appended

    def _reading(self) -> int:
        return _BACKFILL if self.backfill_wanted and not self.snapshot_wanted else _READING

    def _mark(self, state: int, at: datetime) -> None:
        """Commit a snapshot state alone."""
        nothing = self.relation.frame_schema.empty_table()
        lsn = self.log.transaction(_SNAPSHOT_LSN) or 0
        self._append(nothing, self.position, at, {_SNAPSHOT_LSN: lsn, _SNAPSHOT: state})

    def replay(self, at: datetime) -> Iterator[tuple[Release, Appended | None]]:
        """Append once more, whole and with their positions, the quarantined changes that pass by now.

        The position at the source stays where it is: this landing holds these changes already. Where
        no change of a part passes, nothing is appended.

        Raises:
            Fenced: if another shift has appended.
        """
        for release, verdict in self.guard.released():
            if not release.frame.num_rows:
                yield release, None
                continue
            failpoint.reach("replay.before")
            appended = self._append(release.frame, self.position, at, {}, verdict)
            failpoint.reach("replay.after")
            yield release, appended

    def _append(
        self,
        frame: pa.Table,
        position: tuple[int, int],
        at: datetime,
        transactions: dict[str, int],
        verdict: Verdict | None = None,
    ) -> Appended:
        verdict = verdict or self.guard.judge(frame)
        appended = self.log.append(
            frame,
            source=self._source,
            position=position,
            captured_at=at,
            schema_version=self._version.number,
            rejected_by=verdict.rejected_by,
            transactions={**transactions, **verdict.transactions},
            # Another server, or a snapshot after a gap, may count from below.
            rewound=bool(transactions),
            empty=bool(transactions),
        )
        self.rejected_count += verdict.rejected_count
        for item in pc.value_counts(frame["_op"]).to_pylist():
            self.op_count[item["values"]] += item["counts"]
            self._counted.op_count[item["values"]] += item["counts"]
        latest = pc.max(frame["_committed_at"]).as_py()
        if latest is not None:
            self._counted.committed_at = max(latest, self._counted.committed_at or latest)
        return appended

    def _fitted(self, frame: pa.Table) -> pa.Table:
        """The rows in the log's types: what was parked may be of another shape than the table has now."""
        row_schema = self.log.row_schema
        given = [name for name in frame.column_names if not name.startswith("_")]
        try:
            if all(frame.schema.field(name).type.equals(row_schema.field(name).type) for name in given):
                return frame
            for name in given:
                there, wanted = frame.schema.field(name).type, row_schema.field(name).type
                if not there.equals(wanted) and not (
                    pa.types.is_integer(there) and pa.types.is_integer(wanted)
                ):
                    raise pa.ArrowInvalid(f"column {name} has type {there}, the log has {wanted}")
                place = frame.schema.get_field_index(name)
                frame = frame.set_column(place, name, frame[name].cast(wanted))
            before = self.log.table.schema.field("_before").type
            place = frame.schema.get_field_index("_before")
            held = [before.field(one.name) for one in frame.schema.field("_before").type]
            return frame.set_column(place, "_before", frame["_before"].cast(pa.struct(held)))
        except (KeyError, pa.ArrowInvalid) as error:
            raise self._unfit(str(error)) from error

    def _unfit(self, reason: str) -> MigrationRefused:
        return MigrationRefused(
            f"{self.target.source_table}: changes that were made in another shape do not fit: {reason}",
            hint="they stay in the parking log; to go on without them, drop the source's replication slot "
            "while no shift runs: all of its tables are read again",
        )

    def _beyond(self, frame: pa.Table) -> pa.Table:
        """The rows beyond the log's position."""
        held_lsn, held_ordinal = self.position
        lsn = frame["_position"].to_numpy()
        if not len(lsn) or lsn[0] > held_lsn:
            return frame
        ordinal = frame["_ordinal"].to_numpy()
        return frame.filter(pa.array((lsn > held_lsn) | ((lsn == held_lsn) & (ordinal > held_ordinal))))


def gap_count_of(log: ChangeLog) -> int:
    """How many gaps its source had when the snapshot that a change log holds was taken."""
    return log.transaction(_SNAPSHOT_GAPS) or 0


def _restricted(described: Relation, streamed: Relation) -> Relation:
    """The catalog's relation with the streamed columns only: the catalog may be ahead of the stream."""
    names = [column.name for column in streamed.columns]
    columns = tuple(column for column in described.columns if column.name in names)
    order = [column.name for column in columns]
    if order != [name for name in names if name in order]:
        raise MigrationRefused(
            f"{described.qualified_name}: its columns {order} were {names} when these changes were made",
            hint="a name that has gone to another column does not tell whose values they are",
        )
    return Relation(
        described.oid,
        described.schema,
        described.name,
        streamed.identity,
        columns,
        described.relfilenode,
        described.leaves,
    )
