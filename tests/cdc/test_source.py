"""A source against a real server: what is refused and in which words, and what the catalog says."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import psycopg
import pyarrow as pa
import pytest
from psycopg.rows import TupleRow

from mesh_assets.cdc.connection import conninfo, place, redacted
from mesh_assets.cdc.source import Source, SourceConfig
from mesh_assets.cdc.stream import ReplicationStream
from mesh_assets.errors import (
    CredentialsRejected,
    IdentityMissing,
    PublicationLost,
    PublicationMissing,
    SlotBusy,
    SnapshotBlocked,
    SourceError,
    SourceNotLogical,
    SourceNotReady,
    SourceUnreachable,
    TableRefused,
    UnknownName,
)
from mesh_assets.local.postgres import Cluster
from tests.waiting import PATIENCE_SECONDS, until

Connection = psycopg.Connection[TupleRow]


@pytest.fixture
def application(database_url: str) -> Iterator[Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA shop")
        connection.execute("CREATE TABLE shop.item (id bigint PRIMARY KEY, body text)")
        yield connection


@pytest.fixture
def config(database_url: str) -> SourceConfig:
    name = "source_" + database_url.rsplit("/", 1)[1]
    return SourceConfig("shop", "app", database_url, ("shop.item",), name, name)


@pytest.fixture
def source(config: SourceConfig, application: Connection) -> Iterator[Source]:
    with Source(config) as made:
        yield made


@pytest.fixture
def with_tables(source: Source) -> Iterator[Callable[..., Source]]:
    """Open the source with other tables, or as another user."""
    opened: list[Source] = []

    def opening(*tables: str, url: str = source.config.url) -> Source:
        opened.append(Source(replace(source.config, tables=tables, url=url)))
        return opened[-1]

    yield opening
    for made in opened:
        made.close()


# -- connecting


def test_nobody_answers(config: SourceConfig) -> None:
    url = re.sub(r":\d+/", ":9/", config.url)
    with pytest.raises(SourceUnreachable, match="Connection refused") as caught:
        Source(replace(config, url=url)).system()
    assert "127.0.0.1:9" in str(caught.value)


def test_no_such_host(config: SourceConfig) -> None:
    with pytest.raises(SourceUnreachable, match="no-such-host"):
        Source(replace(config, url="postgresql://u:p@no-such-host.invalid/d")).head()


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (lambda url: re.sub(r":[^:@]+@", ":hunter2@", url), "password authentication failed", "password"),
        (lambda url: re.sub(r":[^:@]+@", "@", url), "no password supplied", "holds no password"),
        (lambda url: url.rsplit("/", 1)[0] + "/nowhere", "does not exist", "database name"),
        (lambda url: url.replace("postgres:", "nobody:", 1), "authentication failed", "password"),
        (lambda url: url + "?sslmode=require", "does not support SSL", "sslmode"),
    ],
)
def test_the_server_refuses(
    config: SourceConfig, change: Callable[[str], str], message: str, hint: str
) -> None:
    changed = re.sub(r"^postgresql://", "postgresql://", config.url)
    with pytest.raises(CredentialsRejected, match=message) as caught:
        Source(replace(config, url=change(changed))).preflight()
    assert hint in caught.value.hint
    assert "hunter2" not in str(caught.value)


def test_the_access_rules_refuse(postgres: Cluster, config: SourceConfig) -> None:
    rules = postgres.data / "pg_hba.conf"
    before = rules.read_text()
    with postgres.connect() as admin:
        try:
            rules.write_text("host all source_rejected 127.0.0.1/32 reject\n" + before)
            admin.execute("SELECT pg_reload_conf()")
            url = config.url.replace("postgres:", "source_rejected:", 1)

            def refused() -> str:
                with pytest.raises(CredentialsRejected) as caught:
                    Source(replace(config, url=url)).preflight()
                return str(caught.value)

            until(lambda: "pg_hba.conf rejects" in refused(), "the rule")
            assert "add a line for this user" in refused()
        finally:
            rules.write_text(before)
            admin.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hun@ter2@localhost/shop",
        "postgresql://user:hun/ter2@localhost/shop",
        "postgresql://user:hunter2@localhost/shop?nonsense=hunter2",
        "postgresql://user:hunter2%zz@localhost/shop",
        "hunter2 is no url",
    ],
)
def test_a_url_that_cannot_be_parsed_shows_nothing_of_it(url: str) -> None:
    with pytest.raises(CredentialsRejected, match="cannot be parsed") as caught:
        place(url)
    assert "hun" not in str(caught.value).replace("percent", "")
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_passwords_stay_out_of_texts(config: SourceConfig) -> None:
    url = "postgresql://user:hunter2@localhost:1/shop"
    assert place(url) == "user@localhost:1/shop"
    assert redacted("login hunter2 failed", url) == "login *** failed"
    assert "hunter2" not in repr(replace(config, url=url))
    assert "-c timezone=UTC" in conninfo(url + "?options=-c%20work_mem%3D8MB")
    assert "work_mem=8MB" in conninfo(url + "?options=-c%20work_mem%3D8MB")


# -- preflight


def test_preflight_describes_the_tables(source: Source) -> None:
    relations = source.preflight()
    assert relations["shop.item"].key == ("id",)
    assert relations["shop.item"] == source.describe("shop.item")


def test_a_server_without_logical_wal(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("replica")
    cluster = Cluster(
        folder / "cluster",
        logical=False,
        shared_buffers_mb=16,
        options={"fsync": "off", "max_replication_slots": "1", "max_wal_senders": "1"},
    )
    try:
        with cluster.start().connect() as admin:
            admin.execute("CREATE TABLE item (id int PRIMARY KEY)")
            config = SourceConfig("shop", "app", cluster.url(), ("public.item",), "s", "p")
            with Source(config) as source, pytest.raises(SourceNotReady) as caught:
                source.preflight()
            assert len(caught.value.problems) == 2
            assert "wal_level = replica" in str(caught.value)
            assert "ALTER SYSTEM SET wal_level = logical" in str(caught.value)
            assert "0 replication slots of at most 1; 2 more are needed" in str(caught.value)
            with Source(config) as source, pytest.raises(SourceNotLogical, match="wal_level"):
                source.create_slot()

            admin.execute("ALTER SYSTEM SET wal_level = logical")
            cluster.stop()
            cluster._options["wal_level"] = "logical"
            cluster.start()
            with Source(config) as source:
                source.ensure_publication(slot_is_new=True)
                source.create_slot()
                # The server notices a little later that the connection which made the slot has gone.
                while source.session().execute("SELECT FROM pg_stat_replication").fetchall():
                    pass
                with pytest.raises(SourceNotLogical, match="1 replication slots of at most 1"):
                    source.preflight()
                with pytest.raises(SourceNotLogical, match="replication slots are in use"):
                    Source(replace(config, slot="other")).create_slot()
                with (
                    ReplicationStream(cluster.url(), slot="s", publication="p", start_lsn=0),
                    pytest.raises(SourceNotLogical, match="no free WAL sender"),
                ):
                    source.system()
    finally:
        cluster.remove()


def test_an_encoding_that_is_none(postgres: Cluster, postgres_url: str, config: SourceConfig) -> None:
    with postgres.connect() as admin:
        admin.execute(
            "CREATE DATABASE source_ascii TEMPLATE template0 ENCODING 'SQL_ASCII' "
            "LOCALE 'C' LOCALE_PROVIDER libc"
        )
    try:
        url = postgres_url.rsplit("/", 1)[0] + "/source_ascii"
        with (
            Source(replace(config, url=url, tables=())) as source,
            pytest.raises(SourceNotLogical, match="SQL_ASCII") as caught,
        ):
            source.preflight()
        assert "ENCODING 'UTF8'" in caught.value.hint
    finally:
        postgres.drop_database("source_ascii")


def test_missing_tables_list_those_there_are(
    with_tables: Callable[..., Source], source: Source, application: Connection
) -> None:
    application.execute("CREATE TABLE shop.other (id int PRIMARY KEY)")
    with pytest.raises(UnknownName, match=r"shop\.itme") as caught:
        with_tables("shop.itme").preflight()
    assert caught.value.available == ["shop.item", "shop.other"]
    assert "did you mean 'shop.item'?" in caught.value.hint
    with pytest.raises(UnknownName):
        source.describe("shop.itme")


@pytest.mark.parametrize(
    ("definition", "message", "hint"),
    [
        ("CREATE VIEW shop.t AS SELECT * FROM shop.item", "is a view", "behind it"),
        ("CREATE UNLOGGED TABLE shop.t (id int PRIMARY KEY)", "unlogged", "SET LOGGED"),
        (
            "CREATE TABLE shop.t (id int PRIMARY KEY); ALTER TABLE shop.t ENABLE ROW LEVEL SECURITY, "
            "FORCE ROW LEVEL SECURITY",
            "row level security",
            "BYPASSRLS",
        ),
    ],
)
def test_tables_that_cannot_be_captured(
    postgres: Cluster, source: Source, application: Connection, definition: str, message: str, hint: str
) -> None:
    application.execute(definition)
    postgres.create_role("source_capture", replication=True)
    application.execute("GRANT USAGE ON SCHEMA shop TO source_capture")
    application.execute("GRANT SELECT ON ALL TABLES IN SCHEMA shop TO source_capture")
    url = postgres.url(source.config.url.rsplit("/", 1)[1], "source_capture")
    with (
        Source(replace(source.config, url=url, tables=("shop.t",))) as captured,
        pytest.raises(TableRefused, match=message) as caught,
    ):
        captured.preflight()
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("definition", "message", "hint"),
    [
        (
            "CREATE TABLE shop.t (id int)",
            "no primary key",
            'ALTER TABLE "shop"."t" REPLICA IDENTITY FULL',
        ),
        (
            "CREATE TABLE shop.t (id int PRIMARY KEY DEFERRABLE)",
            "deferrable",
            'ALTER TABLE "shop"."t" REPLICA IDENTITY FULL',
        ),
        (
            "CREATE TABLE shop.t (id int NOT NULL, UNIQUE (id))",
            "no primary key",
            'ALTER TABLE "shop"."t" REPLICA IDENTITY USING INDEX t_id_key',
        ),
        (
            "CREATE TABLE shop.t (id int PRIMARY KEY); ALTER TABLE shop.t REPLICA IDENTITY NOTHING",
            "IDENTITY NOTHING",
            'ALTER TABLE "shop"."t" REPLICA IDENTITY DEFAULT',
        ),
        (
            "CREATE TABLE shop.t (id int NOT NULL); CREATE UNIQUE INDEX t_index ON shop.t (id); "
            "ALTER TABLE shop.t REPLICA IDENTITY USING INDEX t_index; DROP INDEX shop.t_index",
            "lost the index",
            "ADD PRIMARY KEY",
        ),
    ],
)
def test_tables_without_identity(
    with_tables: Callable[..., Source],
    source: Source,
    application: Connection,
    definition: str,
    message: str,
    hint: str,
) -> None:
    application.execute(definition)
    with pytest.raises(IdentityMissing, match=message) as caught:
        with_tables("shop.t").preflight()
    assert "shop.t" in str(caught.value)
    assert hint in caught.value.hint


def test_a_partition_without_identity(
    with_tables: Callable[..., Source], source: Source, application: Connection
) -> None:
    application.execute(
        "CREATE TABLE shop.t (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);"
        "CREATE TABLE shop.t_1 PARTITION OF shop.t FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');"
        "ALTER TABLE shop.t_1 REPLICA IDENTITY NOTHING"
    )
    with pytest.raises(IdentityMissing, match=r"shop\.t_1"):
        with_tables("shop.t").preflight()


def test_reserved_column_names(
    with_tables: Callable[..., Source], source: Source, application: Connection
) -> None:
    application.execute("CREATE TABLE shop.t (id int PRIMARY KEY, _op text)")
    with pytest.raises(SourceError, match="'_op'"):
        with_tables("shop.t").preflight()


def test_missing_privileges(postgres: Cluster, source: Source) -> None:
    postgres.create_role("source_stranger")
    url = postgres.url(source.config.url.rsplit("/", 1)[1], "source_stranger")
    with Source(replace(source.config, url=url)) as stranger, pytest.raises(SourceNotReady) as caught:
        stranger.preflight()
    text = str(caught.value)
    assert "ALTER ROLE source_stranger REPLICATION" in text
    assert 'GRANT SELECT ON "shop"."item" TO "source_stranger"' in text
    assert postgres.password("source_stranger") not in text
    assert {type(problem) for problem in caught.value.problems} == {CredentialsRejected}


def test_all_problems_come_at_once(
    with_tables: Callable[..., Source], source: Source, application: Connection
) -> None:
    application.execute("CREATE TABLE shop.a (id int); CREATE VIEW shop.b AS SELECT 1 AS id")
    with pytest.raises(SourceNotReady, match="3 things") as caught:
        with_tables("shop.item", "shop.a", "shop.b", "shop.c").preflight()
    assert [type(problem) for problem in caught.value.problems] == [
        IdentityMissing,
        TableRefused,
        UnknownName,
    ]


# -- publication


def test_the_publication_is_made_and_extended(
    with_tables: Callable[..., Source], source: Source, application: Connection
) -> None:
    assert source.ensure_publication(slot_is_new=True) == ("shop.item",)
    assert source.ensure_publication(slot_is_new=False) == ()
    application.execute('CREATE TABLE shop."Odd ""name" (id int PRIMARY KEY)')
    wider = with_tables("shop.item", 'shop.Odd "name')
    assert wider.ensure_publication(slot_is_new=False) == ('shop.Odd "name',)
    assert wider.ensure_publication(slot_is_new=False) == ()


def test_partitions_are_published_by_their_root(
    with_tables: Callable[..., Source], source: Source, application: Connection
) -> None:
    name = source.config.publication
    application.execute(
        "CREATE TABLE shop.t (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);"
        "CREATE TABLE shop.t_1 PARTITION OF shop.t FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');"
    )
    application.execute(f"CREATE PUBLICATION {name} FOR TABLE shop.item WITH (publish = 'insert')")
    wider = with_tables("shop.item", "shop.t")
    assert wider.ensure_publication(slot_is_new=True) == ("shop.t",)
    found = application.execute(
        "SELECT pubviaroot, pubupdate, pubdelete, pubtruncate FROM pg_publication WHERE pubname = %s",
        (name,),
    )
    assert found.fetchone() == (True, True, True, True)
    published = application.execute(
        "SELECT tablename FROM pg_publication_tables WHERE pubname = %s ORDER BY 1", (name,)
    )
    assert published.fetchall() == [("item",), ("t",)]


def test_a_lost_publication_is_not_made_again(source: Source, application: Connection) -> None:
    source.ensure_publication(slot_is_new=True)
    source.create_slot()
    application.execute(f"DROP PUBLICATION {source.config.publication}")
    with pytest.raises(PublicationLost, match="not exist any more"):
        source.ensure_publication(slot_is_new=False)
    assert source.ensure_publication(slot_is_new=True) == ("shop.item",)


def test_a_filtered_publication_is_refused(source: Source, application: Connection) -> None:
    application.execute(f"CREATE PUBLICATION {source.config.publication} FOR TABLE shop.item WHERE (id > 5)")
    with pytest.raises(TableRefused, match=r"only some rows of shop\.item"):
        source.ensure_publication(slot_is_new=True)


def test_a_publication_that_must_be_made_by_somebody_else(
    with_tables: Callable[..., Source], postgres: Cluster, source: Source, application: Connection
) -> None:
    postgres.create_role("source_capture", replication=True)
    url = postgres.url(source.config.url.rsplit("/", 1)[1], "source_capture")
    name = source.config.publication
    with Source(replace(source.config, url=url)) as poor:
        with pytest.raises(PublicationMissing, match="may not") as caught:
            poor.ensure_publication(slot_is_new=True)
        statement = caught.value.hint.split("run: ", 1)[1]
        assert statement.startswith(f'CREATE PUBLICATION "{name}" FOR TABLE "shop"."item" WITH (')
        application.execute(statement.encode())
        assert poor.ensure_publication(slot_is_new=False) == ()
        application.execute("CREATE TABLE shop.other (id int PRIMARY KEY)")
        with pytest.raises(PublicationMissing, match=r"lacks shop\.other") as caught:
            with_tables("shop.item", "shop.other", url=url).ensure_publication(slot_is_new=False)
        assert f'ALTER PUBLICATION "{name}" ADD TABLE "shop"."other"' in caught.value.hint


# -- slots


def test_the_slot_comes_and_goes(source: Source) -> None:
    assert source.slot() is None
    assert source.drop_slot() is False
    lsn = source.create_slot()
    found = source.slot()
    assert found is not None
    assert (found.plugin, found.active_pid, found.confirmed_lsn) == ("pgoutput", None, lsn)
    assert found.wal_status == "reserved"
    assert found.restart_lsn <= lsn
    with pytest.raises(SlotBusy, match="already exists"):
        source.create_slot()
    source.ensure_publication(slot_is_new=True)
    stream = ReplicationStream(
        source.config.url, slot=found.name, publication=source.config.publication, start_lsn=0
    )
    held = source.slot()
    assert held is not None
    assert held.active_pid == stream.pid
    with pytest.raises(SlotBusy, match=f"active for PID {stream.pid}"):
        source.drop_slot()
    stream.close()
    assert source.drop_slot() is True


def test_whoever_keeps_a_slot_from_being_made_is_named(
    database_url: str, source: Source, application: Connection
) -> None:
    with psycopg.connect(database_url, application_name="nightly-report") as blocker:
        blocker.execute("INSERT INTO shop.item VALUES (1, 'a')")
        pid = blocker.info.backend_pid
        with pytest.raises(SnapshotBlocked, match=f"pid {pid}, user postgres") as caught:
            source.create_slot(timeout_seconds=0.5)
        assert "application nightly-report, idle in transaction" in str(caught.value)
        assert f"database {database_url.rsplit('/', 1)[1]}" in str(caught.value)
        blocker.rollback()
    until(lambda: source.slot() is None, "the unfinished slot is gone")
    assert source.create_slot(timeout_seconds=PATIENCE_SECONDS) > 0


def test_the_system_is_identified(source: Source) -> None:
    system = source.system()
    assert system.identifier.isdigit()
    assert system.timeline == 1
    assert source.timeline_end(1) is None


# -- catalog


def test_describe_tells_everything(
    with_tables: Callable[..., Source], source: Source, application: Connection
) -> None:
    application.execute("CREATE TYPE shop.mood AS ENUM ('sad', 'fine')")
    application.execute("CREATE DOMAIN shop.price AS numeric(10,2) CHECK (VALUE > 0)")
    application.execute(
        "CREATE TABLE shop.t (gone int, id bigint, code text, mood shop.mood, price shop.price, "
        "prices shop.price[], total int GENERATED ALWAYS AS (id + 1) STORED, "
        "virtual int GENERATED ALWAYS AS (id + 2) VIRTUAL, PRIMARY KEY (code, id))"
    )
    application.execute("INSERT INTO shop.t (id, code) VALUES (1, 'a')")
    application.execute("ALTER TABLE shop.t DROP COLUMN gone")
    application.execute(
        "ALTER TABLE shop.t ADD COLUMN note text DEFAULT 'it''s \"new\", {really}', "
        "ADD COLUMN tags text[] DEFAULT '{a,\"b c\"}', "
        "ADD COLUMN since timestamptz DEFAULT '2026-01-01T00:00Z'"
    )
    described = with_tables("shop.t").describe("shop.t")
    columns = {column.name: column for column in described.columns}
    assert list(columns) == ["id", "code", "mood", "price", "prices", "total", "note", "tags", "since"]
    assert described.key == ("id", "code")
    assert described.identity == "d"
    assert described.relfilenode > 0
    assert columns["id"].attnum == 2
    assert not columns["id"].nullable
    assert columns["mood"].type.name == "shop.mood"
    assert columns["mood"].arrow == pa.string()
    assert columns["price"].type.name == "shop.price"
    assert columns["price"].arrow == pa.decimal128(10, 2)
    assert columns["prices"].arrow == pa.list_(pa.decimal128(10, 2))
    assert columns["total"].generated
    assert not columns["id"].generated
    assert columns["note"].missing == 'it\'s "new", {really}'
    assert columns["tags"].missing == '{a,"b c"}'
    assert columns["since"].missing == "2026-01-01 00:00:00+00"
    assert columns["mood"].missing is None


@pytest.mark.parametrize(
    ("alteration", "identity", "key"),
    [
        ("REPLICA IDENTITY FULL", "f", ("id",)),
        ("REPLICA IDENTITY USING INDEX t_code", "i", ("code",)),
        ("REPLICA IDENTITY FULL, DROP CONSTRAINT t_pkey", "f", ()),
    ],
)
def test_describe_names_the_key_of_every_identity(
    with_tables: Callable[..., Source],
    source: Source,
    application: Connection,
    alteration: str,
    identity: str,
    key: tuple[str, ...],
) -> None:
    application.execute("CREATE TABLE shop.t (id int PRIMARY KEY, code text NOT NULL)")
    application.execute("CREATE UNIQUE INDEX t_code ON shop.t (code)")
    application.execute(f"ALTER TABLE shop.t {alteration}".encode())
    described = with_tables("shop.t").preflight()["shop.t"]
    assert (described.identity, described.key) == (identity, key)
    assert source.key_of(described.oid, "shop", "t") == key
    assert source.key_of(1, "shop", "t") == ()


def test_describe_follows_the_publications_columns(source: Source, application: Connection) -> None:
    application.execute(f"CREATE PUBLICATION {source.config.publication} FOR TABLE shop.item (id)")
    assert [column.name for column in source.describe("shop.item").columns] == ["id"]


def test_describe_takes_missing_values_of_a_root_from_its_leaves(
    source: Source, application: Connection
) -> None:
    application.execute(
        "CREATE TABLE shop.t (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);"
        "CREATE TABLE shop.t_1 PARTITION OF shop.t FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');"
        "INSERT INTO shop.t VALUES (1, '2026-02-02');"
        "ALTER TABLE shop.t ADD COLUMN level int DEFAULT 7"
    )
    described = source.describe("shop.t")
    assert {column.name: column.missing for column in described.columns} == {
        "id": None,
        "day": None,
        "level": "7",
    }
    assert [leaf.qualified_name for leaf in source.partitions(described)] == ["shop.t_1"]
    assert source.partitions(source.describe("shop.item")) == ()


def test_types_are_resolved_and_survive_their_own_end(source: Source, application: Connection) -> None:
    application.execute("CREATE TYPE shop.mood AS ENUM ('sad', 'fine')")
    row = application.execute(
        "SELECT oid::int8, typarray::int8 FROM pg_type WHERE typname = 'mood'"
    ).fetchone()
    assert row is not None
    assert source.resolve(row[0], -1).name == "shop.mood"
    moods = source.resolve(row[1], -1)
    assert moods.element == source.resolve(row[0], -1)
    assert source.resolve(1700, 786438).name == "numeric(12,2)"
    application.execute("DROP TYPE shop.mood")
    assert source.resolve(row[0], -1).name == "shop.mood"
    with Source(source.config) as later:
        assert later.resolve(row[0], -1).name == f"dropped type {row[0]}"


# -- head and rows


def test_the_head_counts_changes(
    with_tables: Callable[..., Source], source: Source, application: Connection
) -> None:
    application.execute(
        "CREATE TABLE shop.t (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);"
        "CREATE TABLE shop.t_1 PARTITION OF shop.t FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')"
    )
    wider = with_tables("shop.item", "shop.t")
    head = wider.head()
    assert (head.changes, head.slot_confirmed_lsn, head.wal_status, head.active) == (0, 0, "", False)
    lsn = wider.create_slot()
    application.execute("INSERT INTO shop.item VALUES (1, 'a'), (2, 'b')")
    application.execute("UPDATE shop.item SET body = 'c'; DELETE FROM shop.item WHERE id = 1")
    application.execute("INSERT INTO shop.t VALUES (1, '2026-02-02')")
    application.execute("SELECT pg_stat_force_next_flush()")
    until(lambda: wider.head().changes == 6, "all changes counted")
    assert wider.table_changes() == {"shop.item": 5, "shop.t": 1}
    head = wider.head()
    assert (head.slot_confirmed_lsn, head.wal_status, head.active) == (lsn, "reserved", False)
    assert head.retained_bytes > 0
    assert abs(head.now.timestamp() - time.time()) < 60


def test_a_heartbeat_moves_the_log(source: Source) -> None:
    assert source.heartbeat() < source.heartbeat()


def test_a_row_is_read_by_its_key(source: Source, application: Connection) -> None:
    application.execute(
        "CREATE TABLE shop.t (code char(4), day date, yes boolean, big text, PRIMARY KEY (code, day))"
    )
    application.execute("INSERT INTO shop.t VALUES ('ab', 'infinity', true, repeat('x', 100000))")
    relation = source.describe("shop.t")
    row = source.read_row(relation, {"code": "ab", "day": "infinity"})
    assert row is not None
    assert row.to_pylist() == [
        {"code": "ab  ", "day": None, "yes": True, "big": "x" * 100_000, "_exact": [("day", "infinity")]}
    ]
    assert source.read_row(relation, {"code": "zz", "day": "infinity"}) is None
    with pytest.raises(SourceError, match="whole key"):
        source.read_row(relation, {"code": "ab"})


def test_a_broken_idle_connection_is_replaced(source: Source, application: Connection) -> None:
    first = source.session().info.backend_pid
    application.execute("SELECT pg_terminate_backend(%s, 5000)", (first,))
    assert source.slot() is None
    assert source.session().info.backend_pid != first
