"""Compiled walk over the stream: CopyData frames in, cells out.

A *cell* is one column's value of one tuple: where its text lies and how long it is. The
walk checks every length before anything is read by it, so later kernels may go without
bounds checks, and no input can crash the process. It allocates nothing.

Source: PostgreSQL documentation, "Streaming Replication Protocol" (XLogData, keepalive) and
"Logical Replication Message Formats", protocol version 1.

All functions that call each other stand in this file: numba's cache notices changes of the
file of the function it compiled, not of the files that function calls into.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

P = ParamSpec("P")
R = TypeVar("R")

Bytes = npt.NDArray[np.uint8]
Longs = npt.NDArray[np.int64]
Ints = npt.NDArray[np.int32]


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile on first call, without the interpreter lock; the machine code is kept on disk."""
    decorate = cast("Callable[[Any], Any]", numba.njit(nogil=True, cache=True, boundscheck=False))
    return cast("Callable[P, R]", decorate(function))


# In compiled code: conversions to 64 bits. To a type checker: plain integers.
signed = cast("Callable[[Any], int]", np.int64)
unsigned = cast("Callable[[Any], int]", np.uint64)

# Lengths of cells that have no text.
NULL: Final = -1
UNCHANGED: Final = -2

# Fields of the walk's state, an int64 vector.
POSITION: Final = 0  # Commit LSN of the open transaction (its Begin says it).
COMMITTED_AT: Final = 1  # Microseconds since 1970 (UTC).
XID: Final = 2
ORDINAL: Final = 3  # Of the next change in the transaction.
IN_TRANSACTION: Final = 4
ROW_COUNT: Final = 5  # Rows held in the row table.
CELL_COUNT: Final = 6
PARKED_COUNT: Final = 7
LAST_POSITION: Final = 8  # Of the last change seen.
LAST_ORDINAL: Final = 9
COMMIT_LSN: Final = 10  # Of the last complete transaction.
END_LSN: Final = 11
END_COMMITTED_AT: Final = 12
TRANSACTION_COUNT: Final = 13
WAL_END: Final = 14
REPLY_REQUESTED: Final = 15
MESSAGE_LSN: Final = 16  # Of the message being read.
STOP: Final = 17  # Why the walk stopped: one of the STOP_ values.
FAULT: Final = 18  # With STOP_FAULT: one of the FAULT_ values.
STATE_LENGTH: Final = 24

STOP_END: Final = 0  # Nothing but an incomplete frame is left.
STOP_FULL: Final = 1  # No room for the next message; nothing of it was taken.
STOP_RELATION: Final = 2  # A Relation message is next; the caller reads it and steps over it.
STOP_FRAME: Final = 3  # Not CopyData: an error, the end of the copy, or garbage.
STOP_FAULT: Final = 4  # The message breaks the protocol.

FAULT_LENGTH: Final = 1
FAULT_KIND: Final = 2
FAULT_RELATION: Final = 3
FAULT_COLUMN_COUNT: Final = 4
FAULT_CELL: Final = 5
FAULT_TUPLE: Final = 6
FAULT_TRANSACTION: Final = 7
FAULT_TRAILING: Final = 8

# Lines of the row table, an int64 matrix with one column per change-frame row.
ROW_EDITION: Final = 0
ROW_OP: Final = 1  # The letter's code.
ROW_POSITION: Final = 2
ROW_ORDINAL: Final = 3
ROW_XID: Final = 4
ROW_COMMITTED_AT: Final = 5
ROW_IMAGE: Final = 6  # First cell of the row's columns; -1 without.
ROW_BEFORE: Final = 7  # First cell of the old tuple; -1 without.
ROW_LINES: Final = 8

# Lines of the table of parked messages.
PARKED_EDITION: Final = 0
PARKED_KIND: Final = 1
PARKED_POSITION: Final = 2
PARKED_ORDINAL: Final = 3
PARKED_XID: Final = 4
PARKED_COMMITTED_AT: Final = 5
PARKED_START: Final = 6
PARKED_LENGTH: Final = 7
PARKED_LINES: Final = 8

# Fields of a relation edition.
EDITION_COLUMN_COUNT: Final = 0
EDITION_PARKED: Final = 1
EDITION_KEY: Final = 2  # Where the edition's key marks begin.
EDITION_FIELDS: Final = 3

_NO_CELL: Final = -1
_EPOCH: Final = 946_684_800_000_000  # 2000-01-01 in microseconds since 1970.
HASH: Final = 2654435761
"""Multiplier of the relation index's hash (Knuth): it starts at ``oid * HASH`` modulo the size."""

FRAME_HEAD: Final = 5  # Type byte and length.
_WAL_HEAD: Final = 25  # 'w', start, end, clock.


@compiled
def be16(b: Bytes, p: int) -> int:
    """Unsigned big-endian 16 bits."""
    # Unsigned places spare the test for places counted from the end, and let the bytes be one load.
    u = unsigned(p)
    return (signed(b[u]) << 8) | signed(b[u + unsigned(1)])


@compiled
def be32(b: Bytes, p: int) -> int:
    """Unsigned big-endian 32 bits."""
    u = unsigned(p)
    return (
        (signed(b[u]) << 24)
        | (signed(b[u + unsigned(1)]) << 16)
        | (signed(b[u + unsigned(2)]) << 8)
        | signed(b[u + unsigned(3)])
    )


@compiled
def be64(b: Bytes, p: int) -> int:
    """Signed big-endian 64 bits."""
    return (be32(b, p) << 32) | be32(b, p + 4)


@compiled
def find(index: Longs, oid: int) -> int:
    """The edition of a relation, or -1. ``index`` is an open hash table of (oid + 1, edition) pairs."""
    mask = index.shape[0] // 2 - 1
    at = (oid * HASH) & mask
    while index[2 * at] != 0:
        if index[2 * at] == oid + 1:
            return signed(index[2 * at + 1])
        at = (at + 1) & mask
    return -1


@compiled
def _tuple(
    b: Bytes, q: int, end: int, columns: int, delta: int, cell_at: Longs, cell_length: Ints, k: int
) -> int:
    """Note a tuple's cells from number k on; returns its end, or a negated FAULT."""
    if q + 2 > end:
        return -FAULT_LENGTH
    if be16(b, q) != columns:
        return -FAULT_COLUMN_COUNT
    q += 2
    for c in range(columns):
        if q >= end:
            return -FAULT_LENGTH
        kind = b[q]
        q += 1
        if kind == 116:  # t: text
            if q + 4 > end:
                return -FAULT_LENGTH
            length = be32(b, q)
            q += 4
            if length > end - q:
                return -FAULT_LENGTH
            cell_at[k + c] = q + delta
            cell_length[k + c] = length
            q += length
        elif kind == 110:  # n: null
            cell_at[k + c] = 0
            cell_length[k + c] = NULL
        elif kind == 117:  # u: unchanged TOAST
            cell_at[k + c] = 0
            cell_length[k + c] = UNCHANGED
        else:
            return -FAULT_CELL
    return q


@compiled
def _moved(
    b: Bytes,
    columns: int,
    delta: int,
    key: Bytes,
    key_at: int,
    cell_at: Longs,
    cell_length: Ints,
    before: int,
    image: int,
) -> bool:
    """Whether an update moved its row to another key.

    A column that the new tuple leaves out as unchanged TOAST, while the old one has it, gets
    the old one's cell first.
    """
    moved = False
    for c in range(columns):
        old = cell_length[before + c]
        if cell_length[image + c] == UNCHANGED and old >= 0:
            cell_length[image + c] = old
            cell_at[image + c] = cell_at[before + c]
        new = cell_length[image + c]
        if key[key_at + c] == 0 or moved or new == UNCHANGED:
            continue
        if old != new:
            moved = True
            continue
        p = cell_at[before + c] - delta
        q = cell_at[image + c] - delta
        for j in range(new):
            if b[p + j] != b[q + j]:
                moved = True
                break
    return moved


@compiled
def _row(state: Longs, rows: Longs, edition: int, op: int, image: int, before: int) -> None:
    n = state[ROW_COUNT]
    rows[ROW_EDITION, n] = edition
    rows[ROW_OP, n] = op
    rows[ROW_POSITION, n] = state[POSITION]
    rows[ROW_ORDINAL, n] = state[ORDINAL]
    rows[ROW_XID, n] = state[XID]
    rows[ROW_COMMITTED_AT, n] = state[COMMITTED_AT]
    rows[ROW_IMAGE, n] = image
    rows[ROW_BEFORE, n] = before
    state[ROW_COUNT] = n + 1
    state[LAST_POSITION] = state[POSITION]
    state[LAST_ORDINAL] = state[ORDINAL]
    state[ORDINAL] += 1


@compiled
def _park(
    state: Longs, parked: Longs, edition: int, kind: int, start: int, length: int, changes: int
) -> None:
    n = state[PARKED_COUNT]
    parked[PARKED_EDITION, n] = edition
    parked[PARKED_KIND, n] = kind
    parked[PARKED_POSITION, n] = state[POSITION]
    parked[PARKED_ORDINAL, n] = state[ORDINAL]
    parked[PARKED_XID, n] = state[XID]
    parked[PARKED_COMMITTED_AT, n] = state[COMMITTED_AT]
    parked[PARKED_START, n] = start
    parked[PARKED_LENGTH, n] = length
    state[PARKED_COUNT] = n + 1
    state[LAST_POSITION] = state[POSITION]
    state[LAST_ORDINAL] = state[ORDINAL] + changes - 1
    state[ORDINAL] += changes


@compiled
def _truncate(
    b: Bytes,
    m: int,
    end: int,
    delta: int,
    state: Longs,
    index: Longs,
    editions: Longs,
    rows: Longs,
    parked: Longs,
) -> int:
    if m + 6 > end:
        return -FAULT_LENGTH
    count = be32(b, m + 1)
    if end - m - 6 != 4 * count:
        return -FAULT_LENGTH
    for i in range(count):
        if find(index, be32(b, m + 6 + 4 * i)) < 0:
            return -FAULT_RELATION
    if state[ROW_COUNT] + count > rows.shape[1] or state[PARKED_COUNT] + count > parked.shape[1]:
        return STOP_FULL
    for i in range(count):
        edition = find(index, be32(b, m + 6 + 4 * i))
        if editions[edition, EDITION_PARKED] != 0:
            _park(state, parked, edition, signed(84), m + delta, end - m, signed(1))
        else:
            _row(state, rows, edition, signed(116), signed(_NO_CELL), signed(_NO_CELL))
    return STOP_END


@compiled
def change(
    b: Bytes,
    m: int,
    end: int,
    delta: int,
    state: Longs,
    index: Longs,
    editions: Longs,
    key: Bytes,
    rows: Longs,
    cell_at: Longs,
    cell_length: Ints,
    parked: Longs,
) -> int:
    """Take the Insert, Update, Delete or Truncate message in ``b[m:end]``; all of it or nothing.

    ``delta`` is added to every place noted. Returns STOP_END, STOP_FULL or a negated FAULT.
    """
    kind = b[m]
    if kind == 84:
        return _truncate(b, m, end, delta, state, index, editions, rows, parked)
    if m + 6 > end:
        return -FAULT_LENGTH
    edition = find(index, be32(b, m + 1))
    if edition < 0:
        return -FAULT_RELATION
    columns = editions[edition, EDITION_COLUMN_COUNT]
    first = state[CELL_COUNT]
    if (
        first + 2 * columns > cell_at.shape[0]
        or state[ROW_COUNT] + 2 > rows.shape[1]
        or state[PARKED_COUNT] + 1 > parked.shape[1]
    ):
        return STOP_FULL
    tag = b[m + 5]
    q = m + 6
    k = first
    before = signed(_NO_CELL)
    image = signed(_NO_CELL)
    if tag == 75 or tag == 79:  # K, O: an old key, an old tuple.
        if kind == 73:
            return -FAULT_TUPLE
        q = _tuple(b, q, end, columns, delta, cell_at, cell_length, k)
        if q < 0:
            return q
        before = k
        k += columns
        if kind == 85:
            if q >= end:
                return -FAULT_LENGTH
            tag = b[q]
            q += 1
    elif kind == 68:
        return -FAULT_TUPLE
    if kind != 68:
        if tag != 78:  # N: the new tuple.
            return -FAULT_TUPLE
        q = _tuple(b, q, end, columns, delta, cell_at, cell_length, k)
        if q < 0:
            return q
        image = k
        k += columns
    if q != end:
        return -FAULT_TRAILING

    moved = False
    if kind == 85 and before >= 0:
        moved = _moved(
            b, columns, delta, key, editions[edition, EDITION_KEY], cell_at, cell_length, before, image
        )
    if editions[edition, EDITION_PARKED] != 0:
        changes = signed(2) if moved else signed(1)
        _park(state, parked, edition, signed(kind), m + delta, end - m, changes)
        return STOP_END
    state[CELL_COUNT] = k
    op = signed(99)  # c
    if kind == 68 or moved:
        _row(state, rows, edition, signed(100), before, before)
    elif kind == 85:
        op = signed(117)  # u
    if kind != 68:
        _row(state, rows, edition, op, image, before)
    return STOP_END


@compiled
def _control(b: Bytes, m: int, end: int, state: Longs) -> int:
    """Take a message that is not a change: Begin, Commit, Origin, Type, logical Message."""
    kind = b[m]
    if kind == 66:  # B
        if end - m != 21:
            return -FAULT_LENGTH
        if state[IN_TRANSACTION] != 0:
            return -FAULT_TRANSACTION
        state[POSITION] = be64(b, m + 1)
        state[COMMITTED_AT] = be64(b, m + 9) + _EPOCH
        state[XID] = be32(b, m + 17)
        state[ORDINAL] = 0
        state[IN_TRANSACTION] = 1
    elif kind == 67:  # C
        if end - m != 26:
            return -FAULT_LENGTH
        if state[IN_TRANSACTION] == 0 or be64(b, m + 2) != state[POSITION]:
            return -FAULT_TRANSACTION
        state[COMMIT_LSN] = state[POSITION]
        state[END_LSN] = be64(b, m + 10)
        state[END_COMMITTED_AT] = be64(b, m + 18) + _EPOCH
        state[IN_TRANSACTION] = 0
        state[TRANSACTION_COUNT] += 1
    elif kind == 77:  # M
        if end - m < 15:
            return -FAULT_LENGTH
        # One outside of a transaction says that all before it was sent, as a keepalive does.
        if (b[m + 1] & 1) == 0 and state[IN_TRANSACTION] == 0 and be64(b, m + 2) > state[WAL_END]:
            state[WAL_END] = be64(b, m + 2)
    elif kind != 79 and kind != 89:  # O, Y
        return -FAULT_KIND
    return STOP_END


@compiled
def _stopped(state: Longs, outcome: int) -> None:
    """Note why: a STOP, or a negated FAULT."""
    state[FAULT] = -outcome
    state[STOP] = outcome if outcome >= 0 else STOP_FAULT


@compiled
def scan(
    b: Bytes,
    p: int,
    end: int,
    limit: int,
    delta: int,
    state: Longs,
    index: Longs,
    editions: Longs,
    key: Bytes,
    rows: Longs,
    cell_at: Longs,
    cell_length: Ints,
    parked: Longs,
) -> int:
    """Walk CopyData frames in ``b[p:end]`` and take the changes of those that end by ``limit``.

    Returns where it stopped; ``state[STOP]`` says why.
    """
    while True:
        state[STOP] = STOP_END
        if p + FRAME_HEAD > end:
            return p
        frame = b[p]
        length = be32(b, p + 1)
        data = frame == 100  # CopyData.
        skipped = frame == 78 or frame == 83 or frame == 65  # Notice, ParameterStatus, Notification.
        ending = frame == 69 or frame == 99 or frame == 67 or frame == 90  # Error, end of copy, done, ready.
        if not data and not skipped and not ending:
            state[STOP] = STOP_FRAME
            return p
        if length < 4 or length > 0x7FFFFFFF:
            state[FAULT] = FAULT_LENGTH
            state[STOP] = STOP_FAULT
            return p
        stop = p + 1 + length
        if stop > end:
            return p
        if ending:
            state[STOP] = STOP_FRAME
            return p
        if skipped:
            p = stop
            continue
        if stop > limit:
            state[STOP] = STOP_FULL
            return p
        q = p + FRAME_HEAD
        outcome = -FAULT_LENGTH
        if stop - q >= 18 and b[q] == 107:  # k: walEnd, clock, reply
            if be64(b, q + 1) > state[WAL_END]:
                state[WAL_END] = be64(b, q + 1)
            if b[q + 17] != 0:
                state[REPLY_REQUESTED] = 1
            outcome = STOP_END
        elif stop - q > _WAL_HEAD and b[q] == 119:  # w
            state[MESSAGE_LSN] = be64(b, q + 1)
            m = q + _WAL_HEAD
            kind = b[m]
            if kind == 73 or kind == 85 or kind == 68 or kind == 84:
                if state[IN_TRANSACTION] != 0:
                    outcome = change(
                        b, m, stop, delta, state, index, editions, key, rows, cell_at, cell_length, parked
                    )
                else:
                    outcome = -FAULT_TRANSACTION
            elif kind == 82:
                outcome = STOP_RELATION
            else:
                outcome = _control(b, m, stop, state)
        elif stop > q and b[q] != 107 and b[q] != 119:
            outcome = -FAULT_KIND
        if outcome != STOP_END:
            _stopped(state, outcome)
            return p
        p = stop


@compiled
def replay(
    b: Bytes,
    at: Longs,
    length: Ints,
    i: int,
    meta: Longs,
    state: Longs,
    index: Longs,
    editions: Longs,
    key: Bytes,
    rows: Longs,
    cell_at: Longs,
    cell_length: Ints,
    parked: Longs,
) -> int:
    """Take parked messages from number i on; returns at which it stopped, as :func:`scan` does.

    ``at`` and ``length`` say where in ``b`` the messages lie; ``meta`` has the lines of the table
    of parked messages. A Truncate stands for its edition alone.
    """
    while i < length.shape[0]:
        state[STOP] = STOP_END
        kind = meta[PARKED_KIND, i]
        state[POSITION] = meta[PARKED_POSITION, i]
        state[MESSAGE_LSN] = state[POSITION]
        state[ORDINAL] = meta[PARKED_ORDINAL, i]
        state[XID] = meta[PARKED_XID, i]
        state[COMMITTED_AT] = meta[PARKED_COMMITTED_AT, i]
        m = at[i]
        stop = m + length[i]
        outcome = STOP_END
        if stop <= m or b[m] != kind:
            outcome = -FAULT_KIND
        elif kind == 82:
            outcome = STOP_RELATION
        elif kind == 84:
            edition = find(index, meta[PARKED_EDITION, i])
            if edition < 0:
                outcome = -FAULT_RELATION
            elif state[ROW_COUNT] + 1 > rows.shape[1]:
                outcome = STOP_FULL
            else:
                _row(state, rows, edition, signed(116), signed(_NO_CELL), signed(_NO_CELL))
        elif kind == 73 or kind == 85 or kind == 68:
            # A bare 0 would be a type of its own and compile everything below once more.
            outcome = change(
                b, m, stop, signed(0), state, index, editions, key, rows, cell_at, cell_length, parked
            )
        else:
            outcome = -FAULT_KIND
        if outcome != STOP_END:
            _stopped(state, outcome)
            return i
        i += 1
    state[STOP] = STOP_END
    return i


@compiled
def column_cells(
    first: Longs, column: int, cell_at: Longs, cell_length: Ints, at: Longs, length: Ints
) -> int:
    """One column's cells of the rows whose tuples begin at ``first`` (-1: no tuple, all null).

    Returns how many are unchanged TOAST.
    """
    unchanged = 0
    for i in range(first.shape[0]):
        k = first[i]
        if k < 0:
            at[i] = 0
            length[i] = NULL
            continue
        at[i] = cell_at[k + column]
        length[i] = cell_length[k + column]
        if length[i] == UNCHANGED:
            unchanged += 1
    return unchanged
