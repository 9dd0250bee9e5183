"""The replication stream against a real server: starting, breaking, acknowledging, ending."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.rows import TupleRow

from mesh_assets.cdc import transport as transport_module
from mesh_assets.cdc.source import Source, SourceConfig
from mesh_assets.cdc.stream import ReplicationStream, format_lsn, parse_lsn
from mesh_assets.cdc.transport import Inbox, LibpqTransport
from mesh_assets.errors import (
    CredentialsRejected,
    PublicationLost,
    SlotBusy,
    SlotLost,
    SourceDisconnected,
    SourceError,
)
from mesh_assets.local.postgres import Cluster
from tests.waiting import PATIENCE_SECONDS, until

Connection = psycopg.Connection[TupleRow]


@pytest.fixture
def application(database_url: str) -> Iterator[Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE item (id bigint PRIMARY KEY, body text)")
        yield connection


@pytest.fixture
def source(database_url: str, application: Connection) -> Iterator[Source]:
    # Slot names are unique in the whole server.
    name = "stream_" + database_url.rsplit("/", 1)[1]
    config = SourceConfig("shop", "app", database_url, ("public.item",), name, name)
    with Source(config) as made:
        made.ensure_publication(slot_is_new=True)
        made.create_slot()
        yield made


@pytest.fixture
def open_stream(source: Source) -> Iterator[Callable[..., ReplicationStream]]:
    opened: list[ReplicationStream] = []

    def opening(**options: object) -> ReplicationStream:
        arguments = {
            "url": source.config.url,
            "slot": source.config.slot,
            "publication": source.config.publication,
            "start_lsn": 0,
            "wait_seconds": PATIENCE_SECONDS,
            **options,
        }
        stream = ReplicationStream(**arguments)  # type: ignore[arg-type]
        opened.append(stream)
        return stream

    yield opening
    for stream in opened:
        stream.close()


def payloads(stream: ReplicationStream) -> Iterator[bytes]:
    """Take the whole messages out of the stream's buffer."""
    while stream.end - stream.start >= 5:
        at = stream.start
        length = int.from_bytes(stream.buffer[at + 1 : at + 5].tobytes(), "big")
        if at + 1 + length > stream.end:
            return
        assert stream.buffer[at] == ord("d")
        body = stream.buffer[at + 5 : at + 1 + length].tobytes()
        stream.consumed(at + 1 + length)
        yield body


def changes(stream: ReplicationStream, commit_count: int) -> list[bytes]:
    """The pgoutput messages up to and including the given number of commits."""
    found: list[bytes] = []
    commits = 0

    def came() -> bool:
        nonlocal commits
        arrived = True
        while arrived and commits < commit_count:
            arrived = stream.receive(0.2) > 0
            for body in payloads(stream):
                if body[:1] == b"w":
                    found.append(body[25:])
                    commits += body[25:26] == b"C"
        return commits >= commit_count

    until(came, f"{commit_count} commits")
    return found


def inserts(messages: list[bytes]) -> int:
    return sum(message[:1] == b"I" for message in messages)


def end_lsn(messages: list[bytes]) -> int:
    """Where the last transaction ends."""
    return int.from_bytes(messages[-1][10:18], "big")


@pytest.mark.parametrize("plain_socket", [True, False])
def test_changes_arrive_in_commit_order(
    application: Connection, open_stream: Callable[..., ReplicationStream], plain_socket: bool
) -> None:
    stream = open_stream(plain_socket=plain_socket)
    for number in range(20):
        application.execute("INSERT INTO item VALUES (%s, %s)", (number, "x" * number))
    messages = changes(stream, 20)
    assert inserts(messages) == 20
    commits = [int.from_bytes(message[2:10], "big") for message in messages if message[:1] == b"C"]
    assert commits == sorted(set(commits))
    assert stream.byte_count > 0


@pytest.mark.parametrize("plain_socket", [True, False])
def test_what_was_not_acknowledged_comes_again(
    application: Connection,
    source: Source,
    open_stream: Callable[..., ReplicationStream],
    plain_socket: bool,
) -> None:
    first = open_stream(plain_socket=plain_socket)
    application.execute("INSERT INTO item VALUES (1, 'a')")
    application.execute("INSERT INTO item VALUES (2, 'b')")
    one = changes(first, 1)
    rest = changes(first, 1) if inserts(one) == 1 else []
    assert inserts(one + rest) == 2
    first.close()

    second = open_stream(plain_socket=plain_socket)
    again = changes(second, 2)
    assert [m for m in again if m[:1] == b"I"] == [m for m in one + rest if m[:1] == b"I"]
    second.acknowledge(end_lsn(again))
    slot = source.slot
    until(lambda: (found := slot()) is not None and found.confirmed_lsn == end_lsn(again), "confirmed")
    second.acknowledge(1)
    assert second.acknowledged == end_lsn(again)
    second.close()

    third = open_stream(plain_socket=plain_socket)
    application.execute("INSERT INTO item VALUES (3, 'c')")
    assert inserts(changes(third, 1)) == 1


def test_start_skips_what_was_committed_before(
    application: Connection, open_stream: Callable[..., ReplicationStream]
) -> None:
    stream = open_stream()
    application.execute("INSERT INTO item VALUES (1, 'a')")
    held = end_lsn(changes(stream, 1))
    stream.close()
    application.execute("INSERT INTO item VALUES (2, 'b')")
    assert inserts(changes(open_stream(start_lsn=held), 1)) == 1


def test_a_busy_slot_is_named_with_its_holder(open_stream: Callable[..., ReplicationStream]) -> None:
    holder = open_stream()
    with pytest.raises(SlotBusy, match=f"active for PID {holder.pid}") as caught:
        open_stream(wait_seconds=0)
    assert "pg_terminate_backend" in caught.value.hint


def test_a_slot_that_its_dying_holder_still_has_is_waited_for(
    open_stream: Callable[..., ReplicationStream],
) -> None:
    holder = open_stream()
    timer = threading.Timer(0.3, holder.close)
    timer.start()
    open_stream()
    timer.join()


@pytest.mark.parametrize("drain_seconds", [1.0, 0.0])
def test_close_frees_the_slot_in_the_middle_of_a_transaction(
    application: Connection,
    source: Source,
    open_stream: Callable[..., ReplicationStream],
    monkeypatch: pytest.MonkeyPatch,
    drain_seconds: float,
) -> None:
    """Also if the server does not notice by itself while we read on."""
    monkeypatch.setattr(transport_module, "_CLOSE_SECONDS", drain_seconds)
    application.execute("INSERT INTO item SELECT i, repeat('x', 200) FROM generate_series(1, 200000) i")
    stream = open_stream()
    # What comes first is a keepalive.
    until(lambda: stream.receive(0.1) >= 0 and stream.byte_count > 1_000_000, "the first rows")
    assert stream.byte_count < 20_000_000  # of 48
    stream.close()
    slot = source.slot
    until(lambda: (found := slot()) is not None and found.active_pid is None, "the slot is free")
    mine = "SELECT pid FROM pg_stat_activity WHERE pid = %s"
    until(lambda: application.execute(mine, (stream.pid,)).fetchone() is None, "its session is over")
    stream.close()


def test_a_missing_slot_is_lost(source: Source, open_stream: Callable[..., ReplicationStream]) -> None:
    source.drop_slot()
    with pytest.raises(SlotLost, match=r"does not exist") as caught:
        open_stream()
    assert "snapshot" in caught.value.hint


def test_a_slot_of_another_database_is_refused(
    source: Source, postgres_url: str, open_stream: Callable[..., ReplicationStream]
) -> None:
    with pytest.raises(SourceError, match="belongs to database"):
        open_stream(url=postgres_url)


def test_a_vanished_publication_is_a_gap(
    application: Connection, source: Source, open_stream: Callable[..., ReplicationStream]
) -> None:
    application.execute(f"DROP PUBLICATION {source.config.publication}")
    with pytest.raises(PublicationLost, match="does not exist") as caught:
        open_stream()
    assert "next shift" in caught.value.hint


@pytest.mark.parametrize("plain_socket", [True, False])
def test_a_publication_that_vanishes_while_streaming_is_noticed(
    application: Connection,
    source: Source,
    open_stream: Callable[..., ReplicationStream],
    plain_socket: bool,
) -> None:
    stream = open_stream(plain_socket=plain_socket)
    application.execute(f"DROP PUBLICATION {source.config.publication}")
    application.execute("INSERT INTO item VALUES (1, 'a')")

    def receive() -> bool:
        stream.receive(0.1)
        return False

    with pytest.raises(PublicationLost):
        until(receive, "told")


@pytest.mark.parametrize("plain_socket", [True, False])
def test_a_terminated_backend_is_a_disconnection(
    application: Connection, open_stream: Callable[..., ReplicationStream], plain_socket: bool
) -> None:
    stream = open_stream(plain_socket=plain_socket)
    application.execute("INSERT INTO item VALUES (1, 'a')")
    changes(stream, 1)
    application.execute("SELECT pg_terminate_backend(%s, 5000)", (stream.pid,))
    with pytest.raises(SourceDisconnected, match="terminating connection"):
        until(lambda: stream.receive(0.1) < 0, "told")
    with pytest.raises(SourceDisconnected):
        stream.receive(0)
    stream.close()
    assert inserts(changes(open_stream(plain_socket=plain_socket), 1)) == 1


def test_feedback_goes_on_while_the_caller_works(
    application: Connection, source: Source, open_stream: Callable[..., ReplicationStream]
) -> None:
    # Long enough for a machine that stalls; both ways of reading wait at once.
    url = source.config.url + "?options=-c%20wal_sender_timeout%3D6s"
    second = source.config.slot + "_libpq"
    application.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (second,))
    streams = [open_stream(url=url), open_stream(url=url, slot=second, plain_socket=False)]

    def replied(stream: ReplicationStream) -> bool:
        row = application.execute(
            "SELECT reply_time > backend_start + interval '13 s' FROM pg_stat_replication WHERE pid = %s",
            (stream.pid,),
        ).fetchone()
        assert row is not None, "the server gave up"
        return bool(row[0])

    until(lambda: all(map(replied, streams)), "feedback two timeouts later")
    application.execute("INSERT INTO item VALUES (1, 'a')")
    assert [inserts(changes(stream, 1)) for stream in streams] == [1, 1]


def test_keepalives_move_the_wal_end(
    application: Connection, source: Source, open_stream: Callable[..., ReplicationStream]
) -> None:
    stream = open_stream()
    application.execute("CREATE TABLE elsewhere (n int)")
    application.execute("INSERT INTO elsewhere SELECT generate_series(1, 1000)")
    mark = source.heartbeat()

    def passed() -> bool:
        stream.receive(0.05)
        for _ in payloads(stream):
            pass
        return stream.wal_end >= mark

    until(passed, "a keepalive beyond the heartbeat")
    stream.acknowledge(stream.wal_end)
    slot = source.slot
    until(lambda: (found := slot()) is not None and found.confirmed_lsn >= mark, "confirmed")


@pytest.mark.parametrize("plain_socket", [True, False])
def test_a_message_larger_than_the_buffer(
    application: Connection, open_stream: Callable[..., ReplicationStream], plain_socket: bool
) -> None:
    stream = open_stream(plain_socket=plain_socket)
    application.execute("INSERT INTO item VALUES (1, repeat('x', 80000000))")
    messages = changes(stream, 1)
    assert max(len(message) for message in messages) > 80_000_000
    stream.receive(0)
    assert len(stream.buffer) < 10 << 20


def test_a_transaction_of_many_rows_comes_whole(
    application: Connection, open_stream: Callable[..., ReplicationStream]
) -> None:
    stream = open_stream()
    application.execute("INSERT INTO item SELECT i, md5(i::text) FROM generate_series(1, 100000) i")
    assert inserts(changes(stream, 1)) == 100_000


def test_a_role_without_replication_cannot_stream(
    postgres: Cluster, source: Source, open_stream: Callable[..., ReplicationStream]
) -> None:
    postgres.create_role("stream_reader")
    url = postgres.url(source.config.url.rsplit("/", 1)[1], "stream_reader")
    with pytest.raises(CredentialsRejected, match="REPLICATION") as caught:
        open_stream(url=url)
    assert "ALTER ROLE stream_reader REPLICATION" in caught.value.hint
    assert postgres.password("stream_reader") not in str(caught.value)


def test_a_local_socket_works() -> None:
    folder = Path(tempfile.mkdtemp(prefix="mesh-socket-"))
    folder.chmod(0o777)
    options = {"fsync": "off", "unix_socket_directories": str(folder)}
    cluster = Cluster(folder / "cluster", shared_buffers_mb=16, options=options)
    try:
        cluster.start()
        url = f"postgresql://postgres:{cluster.password()}@/postgres?host={folder}&port={cluster.port}"
        with Source(SourceConfig("shop", "app", url, ("public.item",), "local", "local")) as source:
            source.session().execute("CREATE TABLE public.item (id bigint PRIMARY KEY, body text)")
            source.ensure_publication(slot_is_new=True)
            source.create_slot()
            with ReplicationStream(url, slot="local", publication="local", start_lsn=0) as stream:
                source.session().execute("INSERT INTO public.item VALUES (1, 'a')")
                assert inserts(changes(stream, 1)) == 1
    finally:
        cluster.remove()
        shutil.rmtree(folder, ignore_errors=True)


@given(st.lists(st.tuples(st.binary(max_size=9_000_000 // 64), st.floats(0, 1)), max_size=30))
def test_the_inbox_keeps_what_is_not_consumed(steps: list[tuple[bytes, float]]) -> None:
    inbox, model = Inbox(), b""
    for data, share in steps:
        inbox.reserve(len(data))
        inbox.buffer[inbox.end : inbox.end + len(data)] = np.frombuffer(data, np.uint8)
        inbox.end += len(data)
        inbox.checked = inbox.end
        model += data
        eaten = int(share * len(model))
        inbox.start += eaten
        model = model[eaten:]
        assert inbox.buffer[inbox.start : inbox.end].tobytes() == model
        assert inbox.start <= inbox.checked <= inbox.end


@given(st.binary(min_size=1, max_size=50), st.integers(0, 50), st.integers(0, 50))
def test_the_inbox_can_be_cut(data: bytes, at: int, count: int) -> None:
    at = min(at, len(data))
    count = min(count, len(data) - at)
    inbox = Inbox()
    inbox.buffer[: len(data)] = np.frombuffer(data, np.uint8)
    inbox.end = len(data)
    assert inbox.cut(at, count) == data[at : at + count]
    assert inbox.buffer[: inbox.end].tobytes() == data[:at] + data[at + count :]


@given(st.integers(0, 2**63 - 1))
def test_lsn_text_round_trip(lsn: int) -> None:
    assert parse_lsn(format_lsn(lsn)) == lsn


def test_consumed_refuses_nonsense(open_stream: Callable[..., ReplicationStream]) -> None:
    stream = open_stream()
    with pytest.raises(ValueError, match="not within"):
        stream.consumed(stream.end + 1)


def test_libpq_transport_is_used_over_tls_only(open_stream: Callable[..., ReplicationStream]) -> None:
    assert not isinstance(open_stream()._transport, LibpqTransport)
