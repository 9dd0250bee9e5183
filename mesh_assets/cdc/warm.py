"""Compiles every kernel ahead of time, so that no shift has to wait for the compiler.

The machine code goes to numba's cache beside the modules; ``python -m mesh_assets.cdc.warm``
is a step of the installation.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
import pyarrow as pa

from mesh_assets.cdc.decode import PARKED_SCHEMA, Decoder
from mesh_assets.cdc.type import PostgresType

_OID: Final = 1
_COLUMNS: Final = (
    ("a", 20, -1, "1"),
    ("b", 25, -1, "text"),
    ("c", 1700, 786438, "1.50"),
    ("d", 1184, -1, "2000-01-01 00:00:00+00"),
    ("e", 701, -1, "0.5"),
    ("f", 16, -1, "t"),
    ("g", 1082, -1, "2000-01-01"),
    ("h", 17, -1, "\\x00"),
    ("i", 1009, -1, "{a,b}"),
)


def _relation() -> bytes:
    head = b"R" + struct.pack(">I", _OID) + b"public\0warm\0d" + struct.pack(">H", len(_COLUMNS))
    return head + b"".join(
        bytes([name == "a"]) + name.encode() + b"\0" + struct.pack(">Ii", oid, typmod)
        for name, oid, typmod, _ in _COLUMNS
    )


def _tuple() -> bytes:
    texts = [text.encode() for *_, text in _COLUMNS]
    return struct.pack(">H", len(texts)) + b"".join(
        b"t" + struct.pack(">I", len(text)) + text for text in texts
    )


def warm() -> None:
    """Decode a few changes of all kinds, which compiles each kernel or loads it from the cache."""
    head = struct.pack(">I", _OID)
    insert = b"I" + head + b"N" + _tuple()
    messages = [
        b"B" + struct.pack(">qqI", 1, 0, 1),
        _relation(),
        insert,
        b"U" + head + b"K" + _tuple() + b"N" + _tuple(),
        b"D" + head + b"K" + _tuple(),
        b"T" + struct.pack(">IBI", 1, 0, _OID),
        b"C\0" + struct.pack(">qqq", 1, 2, 0),
    ]
    frames = bytearray()
    for message in messages:
        payload = b"w" + struct.pack(">qqq", 1, 1, 0) + message
        frames += b"d" + struct.pack(">I", len(payload) + 4) + payload
    buffer = np.frombuffer(frames, np.uint8)

    decoder = Decoder(PostgresType)
    decoder.decode(buffer, 0, len(buffer))
    decoder.take()
    parked = pa.table(
        [[_relation(), insert], [1, 1], [0, 0], [1, 1], [0, 0], ["R", "I"]], names=PARKED_SCHEMA.names
    )
    decoder.replay(_OID, parked)
    decoder.take()


if __name__ == "__main__":
    warm()
