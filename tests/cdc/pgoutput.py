"""Writes a replication stream as PostgreSQL's ``pgoutput`` does (protocol version 1, text)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import Enum
from typing import Final

EPOCH: Final = 946_684_800_000_000


class Toast(Enum):
    """Stands for a column value that is not sent."""

    UNCHANGED = "u"


Cell = str | None | Toast
ColumnSpec = tuple[str, int, int, bool]
"""Name, type oid, type modifier, whether it is marked as part of the identity."""


def row(cells: Sequence[Cell]) -> bytes:
    """A tuple."""
    parts = [struct.pack(">H", len(cells))]
    for cell in cells:
        if cell is None:
            parts.append(b"n")
        elif isinstance(cell, Toast):
            parts.append(b"u")
        else:
            text = cell.encode()
            parts.append(b"t" + struct.pack(">I", len(text)) + text)
    return b"".join(parts)


def begin(lsn: int, committed_at: int = EPOCH, xid: int = 1) -> bytes:
    return b"B" + struct.pack(">qqI", lsn, committed_at - EPOCH, xid)


def commit(lsn: int, end_lsn: int, committed_at: int = EPOCH) -> bytes:
    return b"C\0" + struct.pack(">qqq", lsn, end_lsn, committed_at - EPOCH)


def relation(oid: int, schema: str, name: str, identity: str, columns: Sequence[ColumnSpec]) -> bytes:
    head = b"R" + struct.pack(">I", oid) + schema.encode() + b"\0" + name.encode() + b"\0" + identity.encode()
    return (
        head
        + struct.pack(">H", len(columns))
        + b"".join(
            bytes([key]) + column.encode() + b"\0" + struct.pack(">Ii", type_oid, typmod)
            for column, type_oid, typmod, key in columns
        )
    )


def insert(oid: int, new: Sequence[Cell]) -> bytes:
    return b"I" + struct.pack(">I", oid) + b"N" + row(new)


def update(oid: int, new: Sequence[Cell], old: Sequence[Cell] | None = None, tag: bytes = b"K") -> bytes:
    before = b"" if old is None else tag + row(old)
    return b"U" + struct.pack(">I", oid) + before + b"N" + row(new)


def delete(oid: int, old: Sequence[Cell], tag: bytes = b"K") -> bytes:
    return b"D" + struct.pack(">I", oid) + tag + row(old)


def truncate(oids: Sequence[int]) -> bytes:
    return b"T" + struct.pack(">IB", len(oids), 0) + b"".join(struct.pack(">I", oid) for oid in oids)


def logical_message(lsn: int, content: bytes = b"hello", *, transactional: bool = False) -> bytes:
    head = b"M" + bytes([transactional]) + struct.pack(">q", lsn)
    return head + b"mesh\0" + struct.pack(">I", len(content)) + content


def origin(lsn: int = 1) -> bytes:
    return b"O" + struct.pack(">q", lsn) + b"elsewhere\0"


def type_(oid: int, schema: str = "public", name: str = "mood") -> bytes:
    return b"Y" + struct.pack(">I", oid) + schema.encode() + b"\0" + name.encode() + b"\0"


def frame(message: bytes, lsn: int = 1) -> bytes:
    """CopyData with XLogData."""
    payload = b"w" + struct.pack(">qqq", lsn, lsn, 0) + message
    return b"d" + struct.pack(">I", len(payload) + 4) + payload


def keepalive(wal_end: int, *, reply: bool = False) -> bytes:
    payload = b"k" + struct.pack(">qq", wal_end, 0) + bytes([reply])
    return b"d" + struct.pack(">I", len(payload) + 4) + payload


def error(code: str, message: str, severity: str = "ERROR") -> bytes:
    body = b"".join(
        kind + text.encode() + b"\0" for kind, text in ((b"S", severity), (b"C", code), (b"M", message))
    )
    return b"E" + struct.pack(">I", len(body) + 5) + body + b"\0"


def stream(messages: Sequence[bytes]) -> bytes:
    return b"".join(frame(message) for message in messages)
