"""Snapshots against a real server: exact beside concurrent writers, resumable, bounded, never stale."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from psycopg import sql
from psycopg.rows import TupleRow

from mesh_assets.cdc import snapshot as snapshot_module
from mesh_assets.cdc.decode import Decoder
from mesh_assets.cdc.snapshot import ExportedSnapshot, SnapshotChunk, chunks
from mesh_assets.cdc.source import Source, SourceConfig
from mesh_assets.cdc.stream import ReplicationStream
from mesh_assets.errors import CredentialsRejected, SnapshotBlocked, SnapshotStale, SourceDisconnected
from mesh_assets.local.postgres import Cluster
from tests.waiting import until

Connection = psycopg.Connection[TupleRow]


@pytest.fixture
def application(database_url: str) -> Iterator[Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA shop")
        yield connection


@pytest.fixture
def source(database_url: str, application: Connection) -> Iterator[Source]:
    name = "snapshot_" + database_url.rsplit("/", 1)[1]
    with Source(SourceConfig("shop", "app", database_url, ("shop.item",), name, name)) as made:
        yield made


def ids(found: list[SnapshotChunk], column: str = "id") -> list[Any]:
    return [value for chunk in found for value in chunk.frame[column].to_pylist()]


def ordinals(found: list[SnapshotChunk]) -> list[int]:
    return [value for chunk in found for value in chunk.frame["_ordinal"].to_pylist()]


def rows_of(frames: list[pa.Table], columns: list[str]) -> list[dict[str, Any]]:
    return [row for frame in frames for row in frame.select(columns).to_pylist()]


def drain(source: Source, decoder: Decoder, start_lsn: int, upto_lsn: int) -> list[pa.Table]:
    """All change frames of the stream up to an LSN."""
    frames: list[pa.Table] = []
    config = source.config
    with ReplicationStream(
        config.url, slot=config.slot, publication=config.publication, start_lsn=start_lsn
    ) as stream:

        def came() -> bool:
            arrived = True
            while arrived and decoder.wal_end < upto_lsn:
                arrived = stream.receive(0.1) > 0
                stream.consumed(decoder.decode(stream.buffer, stream.start, stream.end))
            return decoder.wal_end >= upto_lsn

        until(came, "the end of the stream")
        frames += [frame for _, frame in decoder.take().segments]
    return frames


def test_a_snapshot_frame_is_a_change_frame(source: Source, application: Connection) -> None:
    application.execute("CREATE TABLE shop.item (id bigint PRIMARY KEY, body text)")
    application.execute("INSERT INTO shop.item VALUES (2, NULL), (1, 'a')")
    relation = source.describe("shop.item")
    with ExportedSnapshot(source) as snapshot:
        (chunk,) = chunks(source, relation, snapshot)
        moment, lsn = snapshot.taken_at, snapshot.lsn
    assert chunk.frame.schema == relation.frame_schema
    constant = {
        "_op": "r",
        "_position": lsn,
        "_xid": 0,
        "_committed_at": moment,
        "_unchanged": None,
        "_before": None,
        "_exact": None,
    }
    assert chunk.frame.to_pylist() == [
        {"id": 1, "body": "a", "_ordinal": 0, **constant},
        {"id": 2, "body": None, "_ordinal": 1, **constant},
    ]
    assert chunk.done
    assert chunk.lsn == lsn
    assert snapshot.contains(lsn - 1)
    assert not snapshot.contains(lsn)


def test_an_empty_table_is_one_empty_last_chunk(source: Source, application: Connection) -> None:
    application.execute("CREATE TABLE shop.item (id bigint PRIMARY KEY)")
    application.execute("CREATE TABLE shop.heap (id bigint)")
    with ExportedSnapshot(source) as snapshot:
        for table in ("shop.item", "shop.heap"):
            (chunk,) = chunks(source, source.describe(table), snapshot)
            assert (len(chunk.frame), chunk.done) == (0, True)
            assert chunk.frame.schema == source.describe(table).frame_schema


def test_no_trace_is_left(source: Source, application: Connection) -> None:
    count = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"
    with ExportedSnapshot(source):
        assert application.execute(count).fetchone() == (1,)
    until(lambda: application.execute(count).fetchone() == (0,), "no slot")


@pytest.mark.parametrize("row_count", [3, 10, 1000])
def test_chunks_follow_a_compound_key(source: Source, application: Connection, row_count: int) -> None:
    application.execute("CREATE TABLE shop.item (number int, code text, id int, PRIMARY KEY (code, number))")
    application.execute(
        "INSERT INTO shop.item SELECT i %% 7, 'c''%%\"' || i %% 3, i FROM generate_series(1, 20) i "
        "ON CONFLICT DO NOTHING",
        (),
    )
    relation = source.describe("shop.item")
    expected = [i for (i,) in application.execute("SELECT id FROM shop.item ORDER BY code, number")]
    with ExportedSnapshot(source) as snapshot:
        found = list(chunks(source, relation, snapshot, row_count=row_count))
        assert ids(found) == expected
        assert ordinals(found) == list(range(20))
        assert [chunk.done for chunk in found] == [False] * (len(found) - 1) + [True]
        for chunk, rest in zip(found, range(1, len(found) + 1), strict=True):
            again = list(chunks(source, relation, snapshot, after=chunk.last_key, row_count=row_count))
            if not chunk.done:
                assert ids(again) == ids(found[rest:])
                assert ordinals(again) == ordinals(found[rest:])


def test_a_later_snapshot_goes_on_where_an_earlier_one_ended(source: Source, application: Connection) -> None:
    application.execute("CREATE TABLE shop.item (id bigint PRIMARY KEY)")
    application.execute("INSERT INTO shop.item SELECT generate_series(1, 10)")
    relation = source.describe("shop.item")
    with ExportedSnapshot(source) as snapshot:
        first = next(chunks(source, relation, snapshot, row_count=4))
    application.execute("DELETE FROM shop.item WHERE id IN (2, 5)")
    application.execute("INSERT INTO shop.item VALUES (11)")
    with ExportedSnapshot(source) as snapshot:
        rest = list(chunks(source, relation, snapshot, after=first.last_key, row_count=4))
        assert snapshot.lsn > first.lsn
    assert ids([first, *rest]) == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert ordinals([first, *rest]) == list(range(10))


def test_a_table_without_key_is_read_by_blocks(source: Source, application: Connection) -> None:
    application.execute("CREATE TABLE shop.item (id int, body text)")
    application.execute("ALTER TABLE shop.item REPLICA IDENTITY FULL")
    application.execute("INSERT INTO shop.item SELECT i, repeat('x', 100) FROM generate_series(1, 5000) i")
    application.execute("DELETE FROM shop.item WHERE id % 10 = 0")
    relation = source.describe("shop.item")
    assert relation.key == ()
    with ExportedSnapshot(source) as snapshot:
        application.execute("INSERT INTO shop.item SELECT generate_series(6000, 9000)")
        found = list(chunks(source, relation, snapshot, row_count=500))
        assert ids(found) == [i for i in range(1, 5001) if i % 10]
        assert ordinals(found) == list(range(4500))
        assert len(found) > 5
        again = list(chunks(source, relation, snapshot, after=found[2].last_key, row_count=500))
        assert ids(found[:3] + again) == ids(found)
        token = {**json.loads(found[2].last_key), "rows": 3}
        assert ids(list(chunks(source, relation, snapshot, after=json.dumps(token))))[0] == ids(found[3:])[3]
    with ExportedSnapshot(source) as later:
        # The storage may have been reordered meanwhile: begin again.
        anew = next(chunks(source, relation, later, after=found[2].last_key, row_count=500))
        assert anew.frame["_ordinal"][0].as_py() == 0


@pytest.mark.parametrize("key", ["PRIMARY KEY (id, day)", "CHECK (id > 0)"])
def test_partitions_are_read_through_their_root(source: Source, application: Connection, key: str) -> None:
    application.execute(
        sql.SQL("CREATE TABLE shop.item (id int, day date, {}) PARTITION BY RANGE (day)").format(sql.SQL(key))
    )
    for year in (2025, 2026):
        application.execute(
            f"CREATE TABLE shop.item_{year} PARTITION OF shop.item "
            f"FOR VALUES FROM ('{year}-01-01') TO ('{year + 1}-01-01')".encode()
        )
    application.execute(
        "INSERT INTO shop.item SELECT i, '2025-12-01'::date + i FROM generate_series(1, 60) i"
    )
    with ExportedSnapshot(source) as snapshot:
        found = list(chunks(source, source.describe("shop.item"), snapshot, row_count=9))
    assert sorted(ids(found)) == list(range(1, 61))
    assert ordinals(found) == list(range(60))


def test_heirs_are_tables_of_their_own(source: Source, application: Connection) -> None:
    application.execute("CREATE TABLE shop.item (id int PRIMARY KEY)")
    application.execute("CREATE TABLE shop.heir () INHERITS (shop.item)")
    application.execute("INSERT INTO shop.item VALUES (1); INSERT INTO shop.heir VALUES (2)")
    with ExportedSnapshot(source) as snapshot:
        assert ids(list(chunks(source, source.describe("shop.item"), snapshot))) == [1]


def test_a_key_is_walked_in_its_index_own_collation(source: Source, application: Connection) -> None:
    application.execute('CREATE TABLE shop.item (id text COLLATE "POSIX" NOT NULL)')
    application.execute('CREATE UNIQUE INDEX by_id ON shop.item (id COLLATE "C")')
    application.execute("ALTER TABLE shop.item REPLICA IDENTITY USING INDEX by_id")
    application.execute("INSERT INTO shop.item VALUES ('b'), ('A'), ('a'), ('B')")
    relation = source.describe("shop.item")
    assert [column.collation for column in source.key_columns(relation)] == ['pg_catalog."C"']
    with ExportedSnapshot(source) as snapshot:
        assert ids(list(chunks(source, relation, snapshot, row_count=1))) == ["A", "B", "a", "b"]


def test_wide_rows_make_small_chunks(
    source: Source, application: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_module, "_CHUNK_BYTES", 1)
    application.execute("CREATE TABLE shop.item (id int PRIMARY KEY, body text)")
    application.execute("CREATE TABLE shop.heap (id int, body text)")
    for table in ("item", "heap"):
        application.execute(
            f"INSERT INTO shop.{table} SELECT i, repeat(i::text, 450000) "
            "FROM generate_series(10, 50) i".encode()
        )
        relation = source.describe(f"shop.{table}")
        with ExportedSnapshot(source) as snapshot:
            found = list(chunks(source, relation, snapshot))
            assert len(found) >= 3
            assert ids(found) == list(range(10, 51))
            assert max(chunk.frame["body"].nbytes for chunk in found) < 20_000_000
            again = list(chunks(source, relation, snapshot, after=found[0].last_key))
            assert ids(again) == ids(found[1:])
            assert ordinals(again) == ordinals(found[1:])
            # Giving up in the middle of a result does not spoil the snapshot.
            reading = chunks(source, relation, snapshot)
            next(reading)
            reading.close()  # type: ignore[attr-defined]
            assert ids(list(chunks(source, relation, snapshot)))[-1] == 50


VALUES = [
    ("bool", ["true", "false"]),
    ("smallint", ["-32768"]),
    ("bigint", ["9223372036854775807"]),
    ("oid", ["4294967295"]),
    ("real", ["0.1", "'NaN'", "'-Infinity'", "1e-40"]),
    ("double precision", ["0.1", "1e308", "-0.0::float8"]),
    ("numeric", ["'NaN'", "'Infinity'", "1e-30", "123456789012345678901234567890.5"]),
    ("numeric(12,2)", ["0.10", "-1234567890.12", "'NaN'"]),
    ("char(5)", ["'ab'"]),
    ("varchar(5)", ["'ab '"]),
    ('"char"', ["'x'"]),
    ("name", ["'n'"]),
    ("text", ["''", "E'tab\\t\\n\\\\ \\'q\\''", "'üñí😀'"]),
    ("bytea", ["'\\x00ff'"]),
    ("date", ["'2026-02-28'", "'infinity'", "'0044-03-15 BC'"]),
    ("time", ["'23:59:59.999999'"]),
    ("timetz", ["'23:59:59.9+05:30'"]),
    ("timestamp", ["'2026-01-01 00:00:00.000001'", "'-infinity'", "'294276-12-31'"]),
    ("timestamptz", ["'2026-01-01 12:00:00+02'", "'infinity'"]),
    ("interval", ["'1 year -2 days 03:04:05.6'"]),
    ("uuid", ["'6f0c6f9e-3a0e-4d43-9d5b-2f3e9e1c0001'"]),
    ("json", ['\'{"b": 1,  "a": [1]}\'']),
    ("jsonb", ['\'{"b": 1,  "a": [1]}\'']),
    ("inet", ["'10.0.0.1/8'", "'10.0.0.1'"]),
    ("cidr", ["'10.0.0.0/8'"]),
    ("macaddr", ["'08:00:2b:01:02:03'"]),
    ("money", ["'12.34'"]),
    ("bit(3)", ["B'101'"]),
    ("varbit", ["B'10'"]),
    ("point", ["'(1,2.5)'"]),
    ("tsvector", ["'a:1 b:2'"]),
    ("int4range", ["'[1,5)'"]),
    ("tstzmultirange", ["'{[2026-01-01, 2026-01-02)}'"]),
    ("regclass", ["'shop.item'"]),
    ("int[]", ["'{1,NULL,3}'", "'{{1,2},{3,4}}'", "'[0:1]={7,8}'", "'{}'"]),
    ("text[]", ['\'{a,"b c","",NULL,"NULL"}\'']),
    ("timestamptz[]", ["'{2026-01-01 00:00Z}'"]),
    ("shop.mood", ["'sad'"]),
    ("shop.mood[]", ["'{sad,fine}'"]),
    ("shop.price", ["1.50"]),
    ("shop.feeling", ["'fine'"]),
    ("shop.prices", ["'{1.5,2}'"]),
    ("shop.pair", ["ROW(1, 'a,b')::shop.pair"]),
    ("hstore", ["'a=>1, b=>NULL'"]),
]


def test_values_equal_those_of_the_stream(source: Source, application: Connection) -> None:
    application.execute("CREATE EXTENSION hstore")
    application.execute("CREATE TYPE shop.mood AS ENUM ('sad', 'fine')")
    application.execute("CREATE DOMAIN shop.price AS numeric(10,2)")
    application.execute("CREATE DOMAIN shop.feeling AS shop.mood")
    application.execute("CREATE DOMAIN shop.prices AS numeric(10,2)[]")
    application.execute("CREATE TYPE shop.pair AS (n int, t text)")
    listed = ", ".join(f"c{number} {name}" for number, (name, _) in enumerate(VALUES))
    application.execute(f"CREATE TABLE shop.item (id int PRIMARY KEY, {listed})".encode())
    source.ensure_publication(slot_is_new=True)
    start = source.create_slot()
    names = ", ".join(f"c{number}" for number in range(len(VALUES)))
    for row in range(max(len(values) for _, values in VALUES) + 1):
        values = ", ".join(values[row] if row < len(values) else "NULL" for _, values in VALUES)
        application.execute(f"INSERT INTO shop.item (id, {names}) VALUES ({row}, {values})".encode())
    relation = source.describe("shop.item")
    with ExportedSnapshot(source) as snapshot:
        (chunk,) = chunks(source, relation, snapshot)
    streamed = drain(source, Decoder(source.resolve), start, source.heartbeat())
    columns = [*relation.row_schema.names, "_exact"]
    assert str(rows_of([chunk.frame], columns)) == str(rows_of(streamed, columns))
    assert streamed[0].schema == chunk.frame.schema
    for row in chunk.frame.to_pylist():
        read = source.read_row(relation, {"id": row["id"]})
        assert read is not None
        assert str(read.to_pylist()[0]) == str({name: row[name] for name in columns})


def test_snapshot_and_stream_join_exactly_beside_writers(source: Source, application: Connection) -> None:
    application.execute("CREATE TABLE shop.item (id int PRIMARY KEY, body text, n int NOT NULL)")
    application.execute("INSERT INTO shop.item SELECT i, 'b', 0 FROM generate_series(1, 400) i")
    source.ensure_publication(slot_is_new=True)
    stop = threading.Event()
    written: list[int] = []

    def write(seed: int) -> None:
        with psycopg.connect(source.config.url, autocommit=True) as writer:
            number = seed
            while not stop.is_set():
                written.append(number)
                number = (number * 1103515245 + 12345) % 2**31
                key = number % 600
                if number % 5 == 0:
                    writer.execute("DELETE FROM shop.item WHERE id = %s", (key,))
                else:
                    writer.execute(
                        "INSERT INTO shop.item VALUES (%s, 'i', 1) "
                        "ON CONFLICT (id) DO UPDATE SET n = item.n + 1, body = excluded.body",
                        (key,),
                    )

    def more(count: int) -> None:
        goal = len(written) + count
        until(lambda: len(written) >= goal, f"{count} more changes")

    writers = [threading.Thread(target=write, args=(seed,)) for seed in (1, 2)]
    for thread in writers:
        thread.start()
    try:
        source.create_slot()
        relation = source.describe("shop.item")
        with ExportedSnapshot(source) as snapshot:
            more(100)
            frames = [chunk.frame for chunk in chunks(source, relation, snapshot, row_count=50)]
            lsn = snapshot.lsn
        more(100)
    finally:
        stop.set()
        for thread in writers:
            thread.join()
    streamed = drain(source, Decoder(source.resolve), 0, source.heartbeat())

    state = {row["id"]: row for row in rows_of(frames, ["id", "body", "n"])}
    inside = outside = 0
    for row in rows_of(streamed, ["_op", "_position", "id", "body", "n"]):
        if row["_position"] < lsn:
            inside += 1
            continue
        outside += 1
        if row["_op"] == "d":
            del state[row["id"]]
        else:
            assert (row["id"] in state) == (row["_op"] == "u")
            state[row["id"]] = {name: row[name] for name in ("id", "body", "n")}
    expected = application.execute("SELECT id, body, n FROM shop.item ORDER BY id").fetchall()
    assert [tuple(state[key].values()) for key in sorted(state)] == expected
    assert inside > 0
    assert outside > 50


def test_a_permanent_slot_begins_where_its_snapshot_ends(source: Source, application: Connection) -> None:
    application.execute("CREATE TABLE shop.item (id int PRIMARY KEY)")
    application.execute("INSERT INTO shop.item VALUES (1)")
    source.ensure_publication(slot_is_new=True)
    with ExportedSnapshot(source, permanent=True) as snapshot:
        application.execute("INSERT INTO shop.item VALUES (2)")
        found = list(chunks(source, source.describe("shop.item"), snapshot))
    assert ids(found) == [1]
    streamed = drain(source, Decoder(source.resolve), 0, source.heartbeat())
    assert [row["id"] for row in rows_of(streamed, ["id"])] == [2]
    assert streamed[0]["_position"][0].as_py() >= snapshot.lsn


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("TRUNCATE shop.item", "rewritten or truncated"),
        ("ALTER TABLE shop.item ALTER COLUMN body TYPE int USING 1", "rewritten or truncated"),
        ("ALTER TABLE shop.item RENAME COLUMN body TO note", "column 'body'"),
        ("ALTER TABLE shop.item DROP COLUMN body", "column 'body'"),
        ("DROP TABLE shop.item", "does not exist"),
    ],
)
def test_what_changed_under_a_snapshot_is_never_read(
    source: Source, application: Connection, statement: str, reason: str
) -> None:
    application.execute("CREATE TABLE shop.item (id int PRIMARY KEY, body text)")
    application.execute("INSERT INTO shop.item SELECT i, 'x' FROM generate_series(1, 10) i")
    relation = source.describe("shop.item")
    with ExportedSnapshot(source) as snapshot:
        reading = chunks(source, relation, snapshot, row_count=5)
        assert ids([next(reading)]) == [1, 2, 3, 4, 5]
        pending = threading.Thread(target=application.execute, args=(statement.encode(),))
        pending.start()
        with pytest.raises(SnapshotStale, match=reason) as caught:
            # The lock ends with the chunk, so that the migration goes first.
            list(_after(reading, pending))
    assert "take another snapshot" in caught.value.hint
    pending.join()


def _after(reading: Iterator[SnapshotChunk], pending: threading.Thread) -> Iterator[SnapshotChunk]:
    pending.join(timeout=10)
    assert not pending.is_alive()
    yield from reading


def test_an_added_column_does_not_disturb(source: Source, application: Connection) -> None:
    application.execute("CREATE TABLE shop.item (id int PRIMARY KEY)")
    application.execute("INSERT INTO shop.item VALUES (1)")
    relation = source.describe("shop.item")
    with ExportedSnapshot(source) as snapshot:
        application.execute("ALTER TABLE shop.item ADD COLUMN note text DEFAULT 'new'")
        assert ids(list(chunks(source, relation, snapshot))) == [1]


def test_a_snapshot_that_has_ended_is_stale(source: Source, application: Connection) -> None:
    application.execute("CREATE TABLE shop.item (id int PRIMARY KEY)")
    relation = source.describe("shop.item")
    snapshot = ExportedSnapshot(source)
    snapshot.close()
    with pytest.raises(SnapshotStale):
        list(chunks(source, relation, snapshot))
    snapshot.close()


def test_a_lost_reader_is_a_disconnection(source: Source, application: Connection) -> None:
    application.execute("CREATE TABLE shop.item (id int PRIMARY KEY)")
    application.execute("INSERT INTO shop.item SELECT generate_series(1, 10)")
    relation = source.describe("shop.item")
    with ExportedSnapshot(source) as snapshot:
        list(chunks(source, relation, snapshot))
        application.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name = 'mesh' AND backend_type = 'client backend'"
        )
        with pytest.raises(SourceDisconnected):
            list(chunks(source, relation, snapshot))
        assert ids(list(chunks(source, relation, snapshot))) == list(range(1, 11))


def test_a_locked_table_is_not_waited_for_for_ever(
    source: Source, database_url: str, application: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = snapshot_module._OPTIONS.replace("lock_timeout=60000", "lock_timeout=200")
    monkeypatch.setattr(snapshot_module, "_OPTIONS", options)
    application.execute("CREATE TABLE shop.item (id int PRIMARY KEY)")
    relation = source.describe("shop.item")
    with ExportedSnapshot(source) as snapshot, psycopg.connect(database_url) as migration:
        migration.execute("LOCK TABLE shop.item IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(SnapshotBlocked, match=r"shop\.item at .* was locked"):
            list(chunks(source, relation, snapshot))
        migration.rollback()
        assert ids(list(chunks(source, relation, snapshot))) == []


def test_open_transactions_that_keep_a_snapshot_from_being_taken(
    source: Source, database_url: str, application: Connection
) -> None:
    application.execute("CREATE TABLE shop.item (id int PRIMARY KEY)")
    with psycopg.connect(database_url, application_name="import") as blocker:
        blocker.execute("INSERT INTO shop.item VALUES (1)")
        with pytest.raises(SnapshotBlocked, match="application import"):
            ExportedSnapshot(source, timeout_seconds=0.3)
        blocker.rollback()
    with ExportedSnapshot(source) as snapshot:
        assert ids(list(chunks(source, source.describe("shop.item"), snapshot))) == []


def test_a_table_that_may_not_be_read(postgres: Cluster, source: Source, application: Connection) -> None:
    application.execute("CREATE TABLE shop.item (id int PRIMARY KEY)")
    relation = source.describe("shop.item")
    postgres.create_role("snapshot_reader", replication=True)
    url = postgres.url(source.config.url.rsplit("/", 1)[1], "snapshot_reader")
    with (
        Source(replace(source.config, url=url)) as reader,
        ExportedSnapshot(reader) as snapshot,
        pytest.raises(CredentialsRejected, match="permission denied"),
    ):
        list(chunks(reader, relation, snapshot))


def test_only_described_relations_are_read(source: Source, application: Connection) -> None:
    application.execute("CREATE TABLE shop.item (id int PRIMARY KEY)")
    relation = source.describe("shop.item")
    streamed = replace(relation, columns=tuple(replace(column, attnum=0) for column in relation.columns))
    with ExportedSnapshot(source) as snapshot, pytest.raises(ValueError, match="not described"):
        list(chunks(source, streamed, snapshot))
