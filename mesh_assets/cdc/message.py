"""Messages of the stream that are rare enough to be read in Python.

Source: PostgreSQL documentation, "Logical Replication Message Formats" (Relation) and
"Error and Notice Message Fields".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from mesh_assets.cdc import kernel
from mesh_assets.errors import PublicationMissing, SlotLost, SourceDisconnected, SourceError

_KEY_FLAG: Final = 1
_SHOWN_BYTES: Final = 64

_FAULT: Final = {
    kernel.FAULT_LENGTH: "has a length that its content contradicts",
    kernel.FAULT_KIND: "is of a kind that protocol version 1 does not have",
    kernel.FAULT_RELATION: "is about a relation that was not announced",
    kernel.FAULT_COLUMN_COUNT: "has another number of columns than its relation",
    kernel.FAULT_CELL: "has a column value that is not in text format",
    kernel.FAULT_TUPLE: "lacks the tuple that it must have",
    kernel.FAULT_TRANSACTION: "does not fit its transaction",
    kernel.FAULT_TRAILING: "goes on after its end",
}


@dataclass(frozen=True)
class AnnouncedColumn:
    """One column as a Relation message has it."""

    name: str
    type_oid: int
    typmod: int
    key: bool


@dataclass(frozen=True)
class Announcement:
    """A Relation message."""

    oid: int
    schema: str
    name: str
    identity: str
    columns: tuple[AnnouncedColumn, ...]


def position_text(lsn: int) -> str:
    """An LSN as PostgreSQL writes it.

    >>> position_text(0x16B374D848)
    '16/B374D848'
    """
    return f"{(lsn >> 32) & 0xFFFFFFFF:X}/{lsn & 0xFFFFFFFF:X}"


def _string(message: bytes, at: int) -> tuple[str, int]:
    end = message.index(0, at)
    return message[at:end].decode(), end + 1


def read_relation(message: bytes, where: str) -> Announcement:
    """Read a Relation message.

    Args:
        message: the message, from its kind byte on.
        where: for the error's text.

    Raises:
        SourceError: when it breaks the protocol.
    """
    try:
        (oid,) = struct.unpack_from(">I", message, 1)
        schema, at = _string(message, 5)
        name, at = _string(message, at)
        identity = chr(message[at])
        (count,) = struct.unpack_from(">H", message, at + 1)
        at += 3
        columns = []
        for _ in range(count):
            flags = message[at]
            column, at = _string(message, at + 1)
            type_oid, typmod = struct.unpack_from(">Ii", message, at)
            at += 8
            columns.append(AnnouncedColumn(column, type_oid, typmod, bool(flags & _KEY_FLAG)))
        if at != len(message):
            raise ValueError("bytes are left over")
    except (ValueError, IndexError, struct.error) as error:
        raise SourceError(
            f"a Relation message of the replication stream {where} is broken: {error}",
            hint="capture again; if it comes back, report it with this text",
        ) from error
    # In pg_catalog the schema's name is sent empty.
    return Announcement(oid, schema or "pg_catalog", name, identity, tuple(columns))


def _error_fields(payload: bytes) -> dict[str, str]:
    fields = {}
    for part in payload.split(b"\0"):
        if part:
            fields[chr(part[0])] = part[1:].decode("utf-8", "replace")
    return fields


def frame_error(frame: bytes, where: str) -> SourceError:
    """The error for a frame that is not CopyData: the server's own, or the end of the stream.

    Args:
        frame: the bytes from the frame's type byte on, maybe incomplete or longer.
        where: where in the stream, for the error's text.
    """
    kind = frame[:1]
    if kind in (b"c", b"C", b"Z"):
        return SourceDisconnected(
            f"the server ended the replication stream {where}",
            hint="nothing is lost: the next shift goes on where the ledger stands",
        )
    if kind != b"E":
        return SourceError(
            f"the replication stream {where} holds a frame of unknown kind {kind!r}",
            hint="capture again; if it comes back, report it with this text",
        )
    length = int.from_bytes(frame[1:5], "big")
    fields = _error_fields(frame[5 : 1 + length])
    code = fields.get("C", "")
    message = f"the server ended the replication stream {where}: {fields.get('M', 'no message')}"
    if code:
        message += f" (SQLSTATE {code})"
    if detail := fields.get("D"):
        message += f"; {detail}"
    hint = fields.get("H", "")
    if code.startswith(("57P", "08")):
        return SourceDisconnected(message, hint=hint or "the next shift goes on where the ledger stands")
    if code == "42704" and "publication" in message:
        return PublicationMissing(message, hint=hint)
    if code in ("55000", "58P01") and ("slot" in message or "WAL" in message):
        return SlotLost(message, hint=hint)
    return SourceError(message, hint=hint)


def fault_error(fault: int, message: bytes, lsn: int, commit_lsn: int) -> SourceError:
    """The error for a message that breaks the protocol.

    Args:
        fault: one of the kernel's FAULT values.
        message: its bytes, or as many of them as are at hand.
        lsn: where the server says that the message comes from.
        commit_lsn: of the transaction that was open last.
    """
    what = _FAULT.get(fault, "is not understood")
    return SourceError(
        f"a message of the replication stream at LSN {position_text(lsn)} "
        f"(transaction committed at {position_text(commit_lsn)}) {what}; "
        f"it starts with {message[:_SHOWN_BYTES].hex(' ')}",
        hint="nothing was acknowledged: capture again; if it comes back, report it with this text",
    )
