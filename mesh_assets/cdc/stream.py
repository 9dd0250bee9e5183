"""The running stream of one replication slot: bytes in, acknowledgements out.

Delivery is at least once and in commit order: after a crash the server sends again everything
behind the last acknowledged position. What makes it exactly once is the caller's, which keeps
each change's position beside the change and drops what it already holds.
"""

from __future__ import annotations

import struct
import threading
import time
from types import TracebackType
from typing import Any

import numba
import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql

from mesh_assets.cdc.connection import connect, place, translated
from mesh_assets.cdc.transport import Ended, Inbox, LibpqTransport, Refusal, Transport, open_transport
from mesh_assets.errors import (
    CredentialsRejected,
    PublicationLost,
    PublicationMissing,
    SlotBusy,
    SlotLost,
    SourceDisconnected,
    SourceError,
    SourceNotLogical,
)

_FEEDBACK_SECONDS = 10.0
_RETRY_SECONDS = 0.1
_RECEIVE_BYTES = 1 << 20
_POSTGRES_EPOCH_SECONDS = 946_684_800
_COPY_DATA = ord("d")
_KEEPALIVE = ord("k")


@numba.njit(cache=True, nogil=True)
def _look(buffer: Any, position: int, end: int, state: Any) -> int:  # noqa: ANN401 - compiled
    """Walk whole messages; stop at an incomplete one or at one that is not CopyData.

    ``state`` is [highest WAL end of a keepalive, whether a reply was requested].
    """
    while position + 5 <= end:
        length = (
            (np.int64(buffer[position + 1]) << 24)
            | (np.int64(buffer[position + 2]) << 16)
            | (np.int64(buffer[position + 3]) << 8)
            | np.int64(buffer[position + 4])
        )
        following = position + 1 + length
        if following > end or buffer[position] != _COPY_DATA:
            break
        if buffer[position + 5] == _KEEPALIVE:
            wal_end = np.int64(0)
            for index in range(position + 6, position + 14):
                wal_end = (wal_end << 8) | np.int64(buffer[index])
            if wal_end > state[0]:
                state[0] = wal_end
            if buffer[position + 22] != 0:
                state[1] = 1
        position = int(following)
    return position


def format_lsn(lsn: int) -> str:
    """An LSN as PostgreSQL writes it: ``16/B374D848``."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def parse_lsn(text: str) -> int:
    """The number behind ``16/B374D848``."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) | int(low, 16)


class ReplicationStream:
    """A slot's changes as CopyData messages (``pgoutput``, protocol 1, text values) in one buffer.

    Take ``buffer[start:end]``, decode it, say how far with :meth:`consumed`, and receive again.
    A daemon thread confirms the last acknowledged position every 10 s (sooner where the server's
    ``wal_sender_timeout`` asks for it), so the caller may work as long as it likes in between.

    Args:
        url: the source database.
        slot: a logical slot of that database, made for ``pgoutput``.
        publication: the publication that names the tables.
        start_lsn: nothing that was committed before this position is sent; the server starts at
            the slot's confirmed position if that is later.
        wait_seconds: how long to wait for a slot that is still held, as after a crash of its holder.
        plain_socket: False reads through libpq even where the socket could be read directly.

    Raises:
        SourceUnreachable, CredentialsRejected, SourceNotLogical: as when connecting.
        SlotBusy: if another connection holds the slot.
        SlotLost: if the slot does not exist or lacks WAL that the server has removed.
        PublicationMissing: if the publication does not exist (PublicationLost: but the slot does).
    """

    def __init__(
        self,
        url: str,
        *,
        slot: str,
        publication: str,
        start_lsn: int,
        wait_seconds: float = 3.0,
        plain_socket: bool = True,
    ) -> None:
        self.slot = slot
        self.acknowledged = 0
        self.byte_count = 0
        self._url = url
        self._publication = publication
        self._place = place(url)
        self._inbox = Inbox()
        self._state = np.zeros(2, np.int64)
        self._failure: SourceError | None = None
        self._closing = threading.Event()
        session = connect(url, replication="database")
        self.pid = session.info.backend_pid
        try:
            interval_seconds = self._check(session)
        except BaseException:
            session.close()
            raise
        self._transport: Transport = open_transport(session) if plain_socket else LibpqTransport(session)
        try:
            self._start(start_lsn, wait_seconds)
        except BaseException:
            self._transport.close()
            raise
        self._feedback = threading.Thread(
            target=self._confirm_regularly, args=(interval_seconds,), name=f"feedback {slot}", daemon=True
        )
        self._feedback.start()

    def __enter__(self) -> ReplicationStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- starting

    def _check(self, session: psycopg.Connection[Any]) -> float:
        """Refuse what the server would only notice later; returns the feedback interval in seconds."""
        query = sql.SQL(
            "SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = {publication}), "
            "(SELECT plugin FROM pg_replication_slots WHERE slot_name = {slot}), "
            "(SELECT database FROM pg_replication_slots WHERE slot_name = {slot}), current_database(), "
            "(SELECT setting::float8 / 1000 FROM pg_settings WHERE name = 'wal_sender_timeout')"
        ).format(publication=sql.Literal(self._publication), slot=sql.Literal(self.slot))
        with translated(self._url, "read its replication slots"):
            row = session.execute(query).fetchone()
        assert row is not None
        published, plugin, database, current, timeout_seconds = row
        if plugin is None:
            raise self._slot_lost("does not exist")
        if database != current:
            raise SourceError(
                f"{self._place}: replication slot {self.slot!r} belongs to database {database!r}",
                hint="give this source another slot name, or drop the slot where it belongs",
            )
        if plugin != "pgoutput":
            raise SourceError(
                f"{self._place}: replication slot {self.slot!r} was made for plugin {plugin!r}, not pgoutput",
                hint=f"drop it if nothing else uses it: SELECT pg_drop_replication_slot('{self.slot}')",
            )
        if not published:
            raise self._publication_lost()
        return min(_FEEDBACK_SECONDS, timeout_seconds / 3) if timeout_seconds else _FEEDBACK_SECONDS

    def _start(self, start_lsn: int, wait_seconds: float) -> None:
        quoted = '"' + self._publication.replace('"', '""') + '"'
        names = quoted.replace("'", "''")
        command = (
            f'START_REPLICATION SLOT "{self.slot}" LOGICAL {format_lsn(start_lsn)} '
            f"(proto_version '1', publication_names '{names}')"
        )
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                self._transport.start(command)
                return
            except Refusal as refusal:
                error = self._refused(refusal)
                if not isinstance(error, SlotBusy) or time.monotonic() > deadline:
                    raise error from refusal
            except Ended as ended:
                raise self._disconnected(str(ended)) from ended
            time.sleep(_RETRY_SECONDS)

    # -- errors

    def _slot_lost(self, reason: str) -> SlotLost:
        return SlotLost(
            f"{self._place}: replication slot {self.slot!r} {reason}",
            hint="changes since the last shift cannot be read any more: the source's tables "
            "are captured again from a snapshot",
        )

    def _publication_lost(self) -> PublicationMissing:
        return PublicationLost(
            f"{self._place}: publication {self._publication!r} does not exist, but slot {self.slot!r} does",
            hint="changes made while it was gone were not published: the next shift makes both again "
            "and reads the source's tables again",
        )

    def _disconnected(self, reason: str) -> SourceDisconnected:
        return SourceDisconnected(
            f"{self._place}: the replication connection of slot {self.slot!r} broke: {reason}",
            hint="nothing is lost: the server sends again what was not acknowledged",
        )

    def _refused(self, refusal: Refusal) -> SourceError:
        """The error that stands for what the server said."""
        state, text = refusal.sqlstate, str(refusal)
        if state == "55006":
            return SlotBusy(
                f"{self._place}: {text}",
                hint="another shift of this source runs, or one has just ended: wait for it, "
                "or end its connection with pg_terminate_backend(<PID>)",
            )
        if refusal.publication_skipped or (state == "42704" and "publication" in text):
            return self._publication_lost()
        if state in ("42704", "58P01"):
            return self._slot_lost(f"cannot be read: {text}")
        if state == "55000":
            if "wal_level" in text:
                return SourceNotLogical(
                    f"{self._place}: {text}", hint="set wal_level = logical and restart the server"
                )
            return self._slot_lost(f"cannot be read: {text}")
        if state in ("42501", "28000"):
            return CredentialsRejected(f"{self._place}: {text}", hint="ALTER ROLE ... REPLICATION")
        return self._disconnected(text)

    # -- receiving

    @property
    def buffer(self) -> NDArray[np.uint8]:
        """Received bytes; :meth:`receive` may replace or compact it."""
        return self._inbox.buffer

    @property
    def start(self) -> int:
        """Where the unconsumed bytes begin; always at the start of a message."""
        return self._inbox.start

    @property
    def end(self) -> int:
        """Where the received bytes end; the last message may be incomplete."""
        return self._inbox.end

    @property
    def wal_end(self) -> int:
        """The server has sent everything that was committed before this LSN (by its keepalives)."""
        return int(self._state[0])

    def receive(self, timeout_seconds: float) -> int:
        """Wait at most this long for data; returns the number of bytes that have arrived.

        Returns soon after the first byte; under load it rests a few milliseconds to take more at
        once. Messages other than CopyData are dealt with here and never left in the buffer.

        Raises:
            SourceDisconnected: if the connection broke. What arrived before stays in the buffer,
                and the calls that brought it return normally.
            SlotLost, PublicationMissing: if the server says so in the middle of the stream.
        """
        if self._failure is not None:
            raise self._failure
        inbox = self._inbox
        inbox.reserve(_RECEIVE_BYTES)
        before = inbox.end - inbox.start
        try:
            self._transport.receive(inbox, timeout_seconds)
            self._look()
            if self._state[1]:
                self._state[1] = 0
                self._confirm()
        except Refusal as refusal:
            self._failure = self._refused(refusal)
        except Ended as ended:
            self._failure = self._failure or self._disconnected(str(ended))
        got = inbox.end - inbox.start - before
        if self._failure is not None and not got:
            raise self._failure
        self.byte_count += got
        return got

    def _look(self) -> None:
        """Take the messages that are not CopyData out of what has arrived."""
        inbox = self._inbox
        while True:
            inbox.checked = _look(inbox.buffer, inbox.checked, inbox.end, self._state)
            at = inbox.checked
            if at + 5 > inbox.end or inbox.buffer[at] == _COPY_DATA:
                return
            length = int.from_bytes(inbox.buffer[at + 1 : at + 5].tobytes(), "big")
            if at + 1 + length > inbox.end:
                return
            message = inbox.cut(at, 1 + length)
            kind, body = message[:1], message[5:]
            if kind == b"E":
                raise Refusal.parse(body)
            if kind == b"N" and (notice := Refusal.parse(body)).publication_skipped:
                raise notice
            if kind in (b"c", b"C", b"Z"):
                raise Ended("the server ended the stream")

    def consumed(self, position: int) -> None:
        """Say that everything before ``position`` (as in ``buffer``) was decoded."""
        if not self._inbox.start <= position <= self._inbox.end:
            raise ValueError(f"{position} is not within {self._inbox.start}..{self._inbox.end}")
        self._inbox.start = position

    # -- acknowledging

    def acknowledge(self, end_lsn: int) -> None:
        """Tell the server that everything before ``end_lsn`` is durable here; it never moves back.

        Raises:
            SourceDisconnected: if the connection broke.
        """
        self.acknowledged = max(self.acknowledged, end_lsn)
        try:
            self._confirm()
        except Ended as ended:
            self._failure = self._failure or self._disconnected(str(ended))
            raise self._failure from ended

    def ask(self) -> None:
        """Have the server say soon how far it has sent (its next keepalive).

        Raises:
            SourceDisconnected: if the connection broke.
        """
        try:
            self._confirm(answer=True)
        except Ended as ended:
            self._failure = self._failure or self._disconnected(str(ended))
            raise self._failure from ended

    def _confirm(self, *, answer: bool = False) -> None:
        now = int((time.time() - _POSTGRES_EPOCH_SECONDS) * 1e6)
        lsn = self.acknowledged
        self._transport.send(struct.pack(">cQQQqB", b"r", lsn, lsn, lsn, now, answer))

    def _confirm_regularly(self, interval_seconds: float) -> None:
        while not self._closing.wait(interval_seconds):
            try:
                self._confirm()
            except Ended as ended:
                self._failure = self._failure or self._disconnected(str(ended))
                return

    def close(self) -> None:
        """End the session and see to it that the server releases the slot; safe to call twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._feedback.join()
        if not self._transport.close():
            self._terminate()

    def _terminate(self) -> None:
        """End a backend that did not notice our leaving, as in the middle of a huge transaction."""
        query = (
            "SELECT pg_terminate_backend(active_pid, 2000) FROM pg_replication_slots "
            "WHERE slot_name = %s AND active_pid = %s"
        )
        try:
            with connect(self._url, timeout_seconds=3) as session:
                session.execute(query, (self.slot, self.pid))
        except (SourceError, psycopg.Error):
            # The server is gone or will notice by itself; the next stream waits for the slot.
            return
