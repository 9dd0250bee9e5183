"""What a decoder hands over: change frames, parked messages, and how far the stream got."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mesh_assets.cdc import kernel
from mesh_assets.cdc.relation import COMMITTED_AT_TYPE, Relation

PARKED_SCHEMA: Final = pa.schema(
    [
        pa.field("message", pa.binary()),
        pa.field("_position", pa.int64()),
        pa.field("_ordinal", pa.int64()),
        pa.field("_xid", pa.int64()),
        pa.field("_committed_at", COMMITTED_AT_TYPE),
        pa.field("kind", pa.string()),
    ]
)
"""Columns of parked messages: the raw message and what a replay needs to know."""

PARKED_LINE: Final = {
    kernel.PARKED_POSITION: "_position",
    kernel.PARKED_ORDINAL: "_ordinal",
    kernel.PARKED_XID: "_xid",
    kernel.PARKED_COMMITTED_AT: "_committed_at",
}
"""Which line of the walk's table of parked messages becomes which column."""


@dataclass
class Batch:
    """Everything decoded between two calls of ``Decoder.take``.

    Attributes:
        segments: one change frame per relation version, in order of first appearance.
        parked: raw messages (``PARKED_SCHEMA``) per parked relation, in order.
        announced: relations with a Relation message in this batch, whether it changed
            anything visible or not: their catalog is worth a look.
        position: (commit LSN, ordinal) of the last change contained, parked ones included;
            (0, -1) without a change.
        commit_lsn: commit LSN of the last complete transaction; 0 without one.
        end_lsn: where the last complete transaction ends: what may be acknowledged; 0 without one.
        committed_at: commit time of the last complete transaction, microseconds since 1970
            (UTC); 0 without one.
        in_transaction: the batch ends inside of a transaction.
        row_count: rows in segments plus parked changes.
        transaction_count: transactions that were completed in this batch.
        byte_count: bytes of the stream that it was made of.
        wal_end: the server has sent everything before this position. Outside of a
            transaction, and with all earlier batches durable, it may be acknowledged.
    """

    segments: list[tuple[Relation, pa.Table]]
    parked: list[tuple[int, pa.Table]]
    announced: tuple[int, ...]
    position: tuple[int, int]
    commit_lsn: int
    end_lsn: int
    committed_at: int
    in_transaction: bool
    row_count: int
    transaction_count: int
    byte_count: int
    wal_end: int


def by_edition(table: npt.NDArray[np.int64]) -> list[tuple[int, npt.NDArray[np.int64]]]:
    """The columns of one of the walk's tables per edition, which is its line 0.

    Editions come in order of first appearance. The parts are copies: the walk reuses its tables.
    """
    editions = table[0]
    first = int(editions[0])
    if (editions == first).all():
        return [(first, table.copy())]
    # numpy sorts small integers by their digits, which is several times faster.
    small = editions.astype(np.uint16) if int(editions.max()) < 1 << 16 else editions
    order = np.argsort(small, kind="stable")
    bounds = np.flatnonzero(np.diff(editions[order])) + 1
    parts = np.split(order, bounds)
    parts.sort(key=lambda part: int(part[0]))
    return [(int(editions[part[0]]), np.take(table, part, axis=1)) for part in parts]
