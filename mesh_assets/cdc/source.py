"""A PostgreSQL database as a source: what it needs, what it holds, and where it stands."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import TypeVar

import pyarrow as pa
from psycopg import sql

from mesh_assets.cdc import catalog, publication, slot
from mesh_assets.cdc.catalog import KeyColumn, OutputFunction, Partition, TableRecord
from mesh_assets.cdc.connection import Session, connect, place, translated
from mesh_assets.cdc.frame import text_columns
from mesh_assets.cdc.preflight import check
from mesh_assets.cdc.relation import Relation
from mesh_assets.cdc.slot import CreatedSlot, Slot
from mesh_assets.cdc.type import PostgresType
from mesh_assets.errors import SlotBusy, SourceDisconnected, SourceError, UnknownName

__all__ = ["Head", "Slot", "Source", "SourceConfig", "System"]

_HEAD_SECONDS = 3

_COUNTERS = """
SELECT n.nspname || '.' || c.relname, coalesce(sum(s.n_tup_ins + s.n_tup_upd + s.n_tup_del), 0)::int8
FROM unnest(%(schemas)s::text[], %(names)s::text[]) AS asked (schema, name)
JOIN pg_namespace n ON n.nspname = asked.schema
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = asked.name
LEFT JOIN LATERAL pg_partition_tree(c.oid::regclass) t ON t.isleaf
LEFT JOIN pg_stat_user_tables s ON s.relid = coalesce(t.relid, c.oid)
GROUP BY 1
"""

_T = TypeVar("_T")


@dataclass(frozen=True)
class SourceConfig:
    """Which tables of which database are captured.

    Attributes:
        domain, name: the source's name in the mesh.
        url: ``postgresql://user:password@host:port/database``.
        tables: as ``schema.table``.
        slot, publication: names of the replication slot and of the publication.
    """

    domain: str
    name: str
    url: str = field(repr=False)
    tables: tuple[str, ...]
    slot: str
    publication: str


_CLAIM = "SELECT pg_try_advisory_lock(hashtextextended('mesh shift ' || %(slot)s::text, 0))"
_CLAIM_SECONDS = 0.1
_TIP = "SELECT clock_timestamp(), (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::int8"


@dataclass(frozen=True)
class System:
    """Which server this is: positions are comparable only within one identifier and timeline."""

    identifier: str
    timeline: int


@dataclass(frozen=True)
class Head:
    """Where the source stands, cheaply: a hint, not a position.

    Attributes:
        changes: rows inserted, updated and deleted in the captured tables since the server's
            statistics began; behind by up to a second or so, without truncates.
        slot_confirmed_lsn: the slot's acknowledged position; 0 without a slot.
        retained_bytes: WAL that the server keeps for the slot.
        wal_status: ``reserved``, ``extended``, ``unreserved`` or ``lost``; empty without a slot.
        active: a connection holds the slot.
        now: the server's clock.
    """

    changes: int
    slot_confirmed_lsn: int
    retained_bytes: int
    wal_status: str
    active: bool
    now: datetime


class Source:
    """One source database. Connects when first used, again when the connection broke.

    Not for use by several threads at once.
    """

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        self.place = place(config.url)
        self._session: Session | None = None
        self._types: dict[tuple[int, int], PostgresType] = {}

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def session(self) -> Session:
        """The connection, opened if need be."""
        if self._session is None or self._session.closed:
            self._session = connect(self.config.url)
        return self._session

    def _ask(self, doing: str, question: Callable[[Session], _T]) -> _T:
        """Ask the server; once more on a new connection if an idle one turns out to be broken."""
        reused = self._session is not None
        try:
            with translated(self.config.url, doing):
                return question(self.session())
        except SourceDisconnected:
            self.close()
            if not reused:
                raise
        with translated(self.config.url, doing):
            return question(self.session())

    # -- before capture

    def preflight(self) -> dict[str, Relation]:
        """Check that everything is in place to capture the tables; describe them.

        Raises:
            SourceUnreachable, CredentialsRejected, SourceNotLogical, IdentityMissing, TableRefused,
            UnknownName: what is wrong, or
            SourceNotReady: everything that is wrong, if several things are.
        """
        config = self.config
        return self._ask(
            "check its settings",
            lambda session: check(session, config.url, config.tables, config.slot, config.publication),
        )

    def ensure_publication(self, *, slot_is_new: bool) -> tuple[str, ...]:
        """Create or extend the publication; returns the tables that it did not have before.

        Args:
            slot_is_new: no slot exists yet, or the caller is about to make another. With a slot
                that is kept, a publication that vanished is a gap and is not made again.

        Raises:
            PublicationLost: if it vanished while the slot was kept.
            PublicationMissing: if this user may not make it; the hint is the SQL to run.
        """
        config = self.config
        return self._ask(
            "change its publication",
            lambda session: publication.ensure(
                session, config.publication, config.tables, self.place, slot_is_new=slot_is_new
            ),
        )

    def drop_publication(self) -> None:
        """Drop the publication, if there is one.

        Raises:
            SourceError: if this user may not.
        """
        config = self.config
        self._ask(
            "drop its publication",
            lambda session: publication.drop(session, config.publication, self.place),
        )

    # -- slot

    def create_slot(self, *, timeout_seconds: float = 30) -> int:
        """Make the permanent slot; returns its consistent point: commits below it are not streamed.

        To read a snapshot at that very point, use ``ExportedSnapshot(source, permanent=True)``.

        Raises:
            SnapshotBlocked: if open transactions last longer than the timeout; it names them.
            SlotBusy: if the slot exists.
            SourceNotLogical: if the server has no free slot.
        """
        created = self.export_slot(permanent=True, timeout_seconds=timeout_seconds)
        created.session.close()
        return created.lsn

    def export_slot(self, *, permanent: bool, timeout_seconds: float) -> CreatedSlot:
        """Make a slot and keep the connection that exports its snapshot."""
        name = self.config.slot if permanent else slot.temporary_name(self.config.slot)
        return slot.create(self.config.url, name, temporary=not permanent, timeout_seconds=timeout_seconds)

    def drop_slot(self) -> bool:
        """Drop the slot; returns whether there was one.

        Raises:
            SlotBusy: if a connection holds it.
        """
        return self._ask(
            "drop its replication slot", lambda session: slot.drop(session, self.config.slot, self.place)
        )

    def slot(self) -> Slot | None:
        """The slot's state, or None if it does not exist."""
        return self._ask("read its replication slots", lambda session: slot.state(session, self.config.slot))

    def system(self) -> System:
        """The server's identity (``IDENTIFY_SYSTEM``)."""
        with (
            connect(self.config.url, replication="database") as session,
            translated(self.config.url, "identify itself"),
        ):
            row = session.execute("IDENTIFY_SYSTEM").fetchone()
        assert row is not None
        return System(str(row[0]), int(row[1]))

    def timeline_end(self, timeline: int) -> int | None:
        """The LSN at which the server left a timeline; None if it is still on it or never was.

        A position on that timeline is valid on this server if it is not beyond this LSN.
        """
        current = self.system().timeline
        if timeline >= current:
            return None
        with (
            connect(self.config.url, replication="database") as session,
            translated(self.config.url, "read its timeline history"),
        ):
            row = session.execute(sql.SQL("TIMELINE_HISTORY {}").format(sql.Literal(current))).fetchone()
        assert row is not None
        text = row[1].decode() if isinstance(row[1], bytes) else str(row[1])
        for line in text.splitlines():
            parts = line.split()
            if len(parts) >= 2 and parts[0] == str(timeline):
                high, low = parts[1].split("/")
                return (int(high, 16) << 32) | int(low, 16)
        return None

    # -- tables

    def describe(self, table: str) -> Relation:
        """What the catalog says now of ``schema.table``.

        Raises:
            UnknownName: if it does not exist.
        """
        return self.describe_all([table])[table]

    def describe_all(self, tables: Sequence[str] | None = None) -> dict[str, Relation]:
        """What the catalog says of several tables (default: all captured) at one moment."""
        names = self.config.tables if tables is None else tables

        def question(session: Session) -> dict[str, Relation]:
            with session.transaction():
                session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                records = self._records(session, names)
                return {name: catalog.describe(session, record) for name, record in records.items()}

        return self._ask("describe its tables", question)

    def _records(self, session: Session, names: Sequence[str]) -> dict[str, TableRecord]:
        records = catalog.tables(session, names, self.config.publication)
        for name in names:
            if name not in records:
                raise UnknownName.of(f"table at {self.place} named", name, catalog.capturable(session))
        return {name: records[name] for name in names}

    def partitions(self, relation: Relation) -> tuple[Partition, ...]:
        """The leaf partitions of a relation; empty for an ordinary table."""
        return tuple(self._ask("list partitions", lambda session: catalog.partitions(session, relation.oid)))

    def key_columns(self, relation: Relation) -> tuple[KeyColumn, ...]:
        """The relation's key in the order of its index; empty without a key."""
        if not relation.key:
            return ()

        def question(session: Session) -> tuple[KeyColumn, ...]:
            record = self._records(session, [relation.qualified_name])[relation.qualified_name]
            return () if record.key_index is None else tuple(catalog.key_columns(session, record.key_index))

        return self._ask("read the key of a table", question)

    def output_functions(self, relation: Relation) -> dict[int, OutputFunction]:
        """By type oid, the functions that print the relation's values."""
        types = [column.type for column in relation.columns]
        return self._ask("look up types", lambda session: catalog.output_functions(session, types))

    def resolve(self, oid: int, typmod: int) -> PostgresType:
        """The type behind an oid and modifier; asked once."""
        known = self._types.get((oid, typmod))
        if known is None:
            known = self._ask("look up a type", lambda session: catalog.resolve(session, oid, typmod))
            self._types[(oid, typmod)] = known
        return known

    def key_of(self, oid: int, schema: str, name: str) -> tuple[str, ...]:
        """Names of a table's key columns, for those whose stream does not tell (identity FULL)."""
        relation = self.describe(f"{schema}.{name}")
        return relation.key if relation.oid == oid else ()

    # -- head

    def table_changes(self) -> dict[str, int]:
        """Rows changed per captured table since the server's statistics began (see ``Head.changes``)."""
        return self._ask("read its statistics", self._count)

    def _count(self, session: Session) -> dict[str, int]:
        parts = [catalog.split_name(table) for table in self.config.tables]
        names = {"schemas": [schema for schema, _ in parts], "names": [name for _, name in parts]}
        return dict(session.execute(_COUNTERS, names).fetchall())

    def head(self) -> Head:
        """Where the source stands; takes some milliseconds, and 3 s at most if it does not answer.

        Raises:
            SourceUnreachable, SourceDisconnected: if it does not.
        """
        with self._hasty() as session, translated(self.config.url, "read its statistics"):
            changes = sum(self._count(session).values())
            found = slot.state(session, self.config.slot)
            row = session.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None
        if found is None:
            return Head(changes, 0, 0, "", False, row[0])
        return Head(
            changes,
            found.confirmed_lsn,
            found.retained_bytes,
            found.wal_status,
            found.active_pid is not None,
            row[0],
        )

    @contextmanager
    def claim(self, *, wait_seconds: float) -> Iterator[None]:
        """Be the only shift of this source: an advisory lock that ends with its connection.

        Fencing makes a second shift harmless to the lake; this also keeps it from the slot.

        Raises:
            SlotBusy: if another shift holds the source for longer than the wait.
        """
        deadline = time.monotonic() + wait_seconds

        def claimed(session: Session) -> bool:
            with translated(self.config.url, "claim the source"):
                return session.execute(_CLAIM, {"slot": self.config.slot}).fetchone() == (True,)

        with closing(connect(self.config.url)) as session:
            while not claimed(session):
                if time.monotonic() > deadline:
                    raise SlotBusy(
                        f"another shift drains {self.config.domain}.{self.config.name} at {self.place}",
                        hint="it captures everything; wait for it, or cancel its run in Dagster",
                    )
                time.sleep(_CLAIM_SECONDS)
            yield

    def tip(self) -> tuple[datetime, int]:
        """The server's clock, and an LSN before which everything lies that committed until then."""
        row = self._ask("read its position", lambda session: session.execute(_TIP).fetchone())
        assert row is not None
        return row[0], int(row[1])

    @contextmanager
    def _hasty(self) -> Iterator[Session]:
        """A connection of its own that gives up early."""
        session = connect(
            self.config.url,
            timeout_seconds=_HEAD_SECONDS,
            tcp_user_timeout=_HEAD_SECONDS * 1000,
        )
        try:
            session.execute(sql.SQL("SET statement_timeout = {}").format(_HEAD_SECONDS * 1000))
            yield session
        finally:
            session.close()

    def now(self) -> datetime:
        """The server's clock."""
        row = self._ask("tell the time", lambda s: s.execute("SELECT clock_timestamp()").fetchone())
        assert row is not None
        moment: datetime = row[0]
        return moment

    def heartbeat(self) -> int:
        """Write an empty transaction to the WAL, without any table; returns its LSN.

        Being a transaction it is flushed and decoded, so that the slot's position can pass it.
        """
        row = self._ask(
            "write a heartbeat",
            lambda session: session.execute(
                "SELECT (pg_logical_emit_message(true, 'mesh', '') - '0/0'::pg_lsn)::int8"
            ).fetchone(),
        )
        assert row is not None
        return int(row[0])

    # -- rows

    def read_row(self, relation: Relation, key: Mapping[str, object]) -> pa.Table | None:
        """The row of a key as it is now: one row (columns, then ``_exact``), or None if there is none.

        Args:
            key: a value for each of the relation's key columns; texts as PostgreSQL prints them will do.
        """
        if set(key) != set(relation.key) or not key:
            raise SourceError(
                f"{relation.qualified_name}: a row is read by its whole key", available=relation.key
            )
        outputs = self.output_functions(relation)
        query = sql.SQL("SELECT {} FROM {} t WHERE {}").format(
            sql.SQL(", ").join(catalog.column_text(column, outputs) for column in relation.columns),
            sql.Identifier(relation.schema, relation.name),
            sql.SQL(" AND ").join(
                sql.SQL("t.{} = {}::{}").format(
                    sql.Identifier(column.name),
                    sql.Placeholder(),
                    sql.SQL(outputs[column.type.root.oid].argument),
                )
                for column in relation.columns
                if column.key
            ),
        )
        values = [key[column.name] for column in relation.columns if column.key]
        row = self._ask("read a row", lambda session: session.execute(query, values).fetchone())
        if row is None:
            return None
        texts = pa.table(
            [pa.array([value], pa.string()) for value in row],
            names=[column.name for column in relation.columns],
        )
        return text_columns(relation, texts)
