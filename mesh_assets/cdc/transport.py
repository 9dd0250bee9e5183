"""How replication messages reach one large buffer: by the plain socket, or through libpq.

A PostgreSQL server sends one small message per change. Waking for each of them costs several
times more than decoding it, so over plain TCP libpq only logs in: the idle socket is then read
directly, many messages at once. Over TLS libpq reads, and its messages are framed again as they
were on the wire, so that nothing behind the buffer sees a difference.

Source: PostgreSQL documentation, "Message Formats" and "Streaming Replication Protocol".
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import pq

from mesh_assets.cdc.connection import Session

_INITIAL_BYTES = 4 << 20
_SHRINK_BYTES = 64 << 20
_READ_BYTES = 1 << 20
_HEADER_BYTES = 5

# The first message after a silence is taken at once. One that follows on its heels is worth a
# short rest, because more are coming; under load a longer rest lets hundreds gather in the kernel.
_HEEL_SECONDS = 0.002
_SHORT_NAP_SECONDS = 0.002
_LONG_NAP_SECONDS = 0.010
_LOAD_BYTES = 32 << 10

_START_SECONDS = 60.0
_SEND_SECONDS = 20.0
_CLOSE_SECONDS = 1.0


@dataclass(eq=False)
class Refusal(Exception):
    """The server's ErrorResponse or NoticeResponse; ``routine`` is where in its source it arose."""

    sqlstate: str
    message: str
    detail: str = ""
    routine: str = ""

    @classmethod
    def parse(cls, body: bytes) -> Refusal:
        """Read the fields of an ErrorResponse's or NoticeResponse's body."""
        fields = {part[:1]: part[1:].decode("utf-8", "replace") for part in body.split(b"\0") if part}
        return cls(*(fields.get(name, "") for name in (b"C", b"M", b"D", b"R")))

    @property
    def publication_skipped(self) -> bool:
        """PostgreSQL 18 goes on without a missing publication: it only warns, once, and sends nothing."""
        # Texts are translated at the server, its routines are not.
        return self.routine == "LoadPublications"

    def __str__(self) -> str:
        return f"{self.message} ({self.detail})" if self.detail else self.message


class Ended(Exception):
    """The server, or something in between, closed the connection."""


class Inbox:
    """A growable byte buffer: ``buffer[start:end]`` holds what was received and not yet consumed.

    Below ``checked``, which is at the start of a message, all messages have been looked at.
    """

    def __init__(self) -> None:
        self.buffer: NDArray[np.uint8] = np.empty(_INITIAL_BYTES, np.uint8)
        self.start = 0
        self.end = 0
        self.checked = 0

    def reserve(self, byte_count: int) -> None:
        """Make room for ``byte_count`` more bytes; this may replace the buffer and move its content."""
        kept = self.end - self.start
        if kept == 0 and len(self.buffer) > _SHRINK_BYTES:
            # One huge transaction must not keep its memory for the rest of the shift.
            self.buffer = np.empty(_INITIAL_BYTES, np.uint8)
        if kept and len(self.buffer) - self.end >= byte_count:
            return
        if kept + byte_count > len(self.buffer):
            larger = np.empty(max(2 * len(self.buffer), kept + byte_count), np.uint8)
            larger[:kept] = self.buffer[self.start : self.end]
            self.buffer = larger
        elif kept:
            self.buffer[:kept] = self.buffer[self.start : self.end]
        self.checked -= self.start
        self.start, self.end = 0, kept

    def cut(self, position: int, byte_count: int) -> bytes:
        """Take ``byte_count`` bytes out of the middle and return them."""
        taken = self.buffer[position : position + byte_count].tobytes()
        self.buffer[position : self.end - byte_count] = self.buffer[position + byte_count : self.end]
        self.end -= byte_count
        return taken


class Transport(Protocol):
    """A connection in copy mode. ``send`` may be called by another thread than ``receive``."""

    def start(self, command: str) -> None:
        """Send a replication command and wait for copy mode; raises Refusal or Ended."""

    def receive(self, inbox: Inbox, timeout_seconds: float) -> int:
        """Append what has arrived, as whole wire bytes, waiting for it at most this long.

        Raises:
            Ended: if the connection is closed and nothing is left to read.
            Refusal: what the server said, where that does not come through the inbox.
        """

    def send(self, payload: bytes) -> None:
        """Send one CopyData message; raises Ended."""

    def close(self) -> bool:
        """End the session; returns whether the server is known to have ended it, too."""


def open_transport(session: Session) -> Transport:
    """The fastest transport that can serve a replication connection."""
    return LibpqTransport(session) if session.pgconn.ssl_in_use else SocketTransport(session)


class SocketTransport:
    """Reads the connection's plain socket directly."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._socket = socket.socket(fileno=os.dup(session.fileno()))
        self._socket.setblocking(False)
        # A local socket holds too few messages for the server to go on while its reader rests.
        self._naps = self._socket.family != socket.AF_UNIX
        self._readable = select.poll()
        self._readable.register(self._socket, select.POLLIN)
        self._sending = threading.Lock()
        self._received_at = 0.0
        self._last_count = 0

    def start(self, command: str) -> None:
        query = command.encode() + b"\0"
        self._send(b"Q" + struct.pack(">i", len(query) + 4) + query)
        refusal = None
        while True:
            # Byte by byte of one answer: what follows it belongs to the inbox.
            header = self._read_exactly(_HEADER_BYTES)
            kind, length = header[:1], int.from_bytes(header[1:], "big")
            reply = self._read_exactly(length - 4)
            if kind == b"W":
                return
            if kind == b"E":
                refusal = Refusal.parse(reply)
                if refusal.sqlstate.startswith("57P"):
                    raise refusal
            elif kind == b"Z" and refusal is not None:
                raise refusal

    def _read_exactly(self, byte_count: int) -> bytes:
        data = b""
        deadline = time.monotonic() + _START_SECONDS
        while len(data) < byte_count:
            if not self._readable.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise Ended(f"no answer within {_START_SECONDS:.0f} s")
            try:
                piece = self._socket.recv(byte_count - len(data))
            except BlockingIOError:
                continue
            except OSError as error:
                raise Ended(error.strerror or "connection lost") from error
            if not piece:
                raise Ended("the server closed the connection")
            data += piece
        return data

    def receive(self, inbox: Inbox, timeout_seconds: float) -> int:
        began = time.monotonic()
        if not self._readable.poll(max(0.0, timeout_seconds) * 1000):
            return 0
        now = time.monotonic()
        if self._naps and now - self._received_at < _LONG_NAP_SECONDS and now - began < _HEEL_SECONDS:
            nap = _LONG_NAP_SECONDS if self._last_count >= _LOAD_BYTES else _SHORT_NAP_SECONDS
            time.sleep(min(nap, max(0.0, timeout_seconds)))
        count = 0
        while True:
            view = inbox.buffer.data[inbox.end :]
            try:
                got = self._socket.recv_into(view)
            except BlockingIOError:
                break
            except OSError as error:
                raise Ended(error.strerror or "connection lost") from error
            if got == 0:
                if count:
                    break  # Told again by the next call, after this data.
                raise Ended("the server closed the connection")
            inbox.end += got
            count += got
            if got == len(view) or got < _READ_BYTES:
                break
        self._received_at = time.monotonic()
        self._last_count = count
        return count

    def send(self, payload: bytes) -> None:
        self._send(b"d" + struct.pack(">i", len(payload) + 4) + payload)

    def _send(self, data: bytes) -> None:
        deadline = time.monotonic() + _SEND_SECONDS
        with self._sending:
            rest = memoryview(data)
            while rest:
                try:
                    rest = rest[self._socket.send(rest) :]
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise Ended("the server stopped reading") from None
                    select.select([], [self._socket], [], 0.1)
                except OSError as error:
                    raise Ended(error.strerror or "connection lost") from error

    def close(self) -> bool:
        ended = False
        try:
            self._send(b"X" + struct.pack(">i", 4))
            ended = self._drain()
        except Ended:
            ended = True
        finally:
            self._socket.close()
            self._session.close()
        return ended

    def _drain(self) -> bool:
        """Read and forget until the server closes its end: then the slot is free."""
        deadline = time.monotonic() + _CLOSE_SECONDS
        scrap = bytearray(_READ_BYTES)
        while (rest := deadline - time.monotonic()) > 0:
            if not self._readable.poll(rest * 1000):
                continue
            try:
                if not self._socket.recv_into(scrap):
                    return True
            except BlockingIOError:
                continue
            except OSError:
                return True
        return False


class LibpqTransport:
    """Reads through libpq, message by message: for TLS, where the socket's bytes are not ours to read."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._connection = session.pgconn
        self._using = threading.Lock()
        self._readable = select.poll()
        self._readable.register(session.fileno(), select.POLLIN)
        self._outcome: Exception | None = None
        session.add_notice_handler(self._notice)

    def _notice(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        notice = Refusal(
            diagnostic.sqlstate or "",
            diagnostic.message_primary or "",
            diagnostic.message_detail or "",
            diagnostic.source_function or "",
        )
        if notice.publication_skipped:
            self._outcome = notice

    def start(self, command: str) -> None:
        with self._using:
            result = self._connection.exec_(command.encode())
        if result.status != pq.ExecStatus.COPY_BOTH:
            raise self._refusal(result)

    def _refusal(self, result: pq.abc.PGresult | None) -> Exception:
        if result is None or not result.error_field(pq.DiagnosticField.SQLSTATE):
            message = (result.error_message if result else self._connection.error_message) or b""
            return Ended(message.decode("utf-8", "replace").strip() or "the server closed the connection")

        def field(name: pq.DiagnosticField) -> str:
            return (result.error_field(name) or b"").decode("utf-8", "replace")

        return Refusal(
            field(pq.DiagnosticField.SQLSTATE),
            field(pq.DiagnosticField.MESSAGE_PRIMARY),
            field(pq.DiagnosticField.MESSAGE_DETAIL),
        )

    def receive(self, inbox: Inbox, timeout_seconds: float) -> int:
        count = self._take(inbox)
        if not count and self._readable.poll(max(0.0, timeout_seconds) * 1000):
            with self._using:
                try:
                    self._connection.consume_input()
                except psycopg.OperationalError as error:
                    raise Ended(str(error)) from error
            count = self._take(inbox)
        return count

    def _take(self, inbox: Inbox) -> int:
        """Frame again what libpq has read, up to about one buffer."""
        count = 0
        with self._using:
            while count < _INITIAL_BYTES and self._outcome is None:
                length, data = self._connection.get_copy_data(1)
                if length == 0:
                    break
                if length < 0:
                    self._outcome = self._refusal(self._connection.get_result())
                    break
                inbox.reserve(length + _HEADER_BYTES)
                at = inbox.end
                struct.pack_into(">ci", inbox.buffer.data, at, b"d", length + 4)
                inbox.buffer[at + _HEADER_BYTES : at + _HEADER_BYTES + length] = np.frombuffer(data, np.uint8)
                inbox.end += length + _HEADER_BYTES
                count += length + _HEADER_BYTES
        if self._outcome is not None and not count:
            raise self._outcome
        return count

    def send(self, payload: bytes) -> None:
        deadline = time.monotonic() + _SEND_SECONDS
        with self._using:
            try:
                self._connection.put_copy_data(payload)
                while self._connection.flush():
                    if time.monotonic() > deadline:
                        raise Ended("the server stopped reading")
                    select.select([], [self._session.fileno()], [], 0.1)
            except psycopg.OperationalError as error:
                raise Ended(str(error)) from error

    def close(self) -> bool:
        with self._using:
            self._session.close()
        return False
