"""The decoder: bytes of a replication stream in, Arrow change frames out.

Changes are read by compiled kernels straight from the receive buffer into Arrow buffers;
there is no Python object per row. One decoder serves one connection: the order of messages
is its memory.

Guarantees: rows keep the stream's order within a table; an ordinal counts the changes of a
whole transaction over all tables, parked ones included, so that ``(commit LSN, ordinal)``
names a change for ever, however the stream was cut into batches; the two rows of a key move
are never in different batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mesh_assets.cdc import kernel
from mesh_assets.cdc.column import Cells, letters, longs, raw, writable
from mesh_assets.cdc.edition import Edition, EditionTable
from mesh_assets.cdc.frame import Framer, Walked, text_columns
from mesh_assets.cdc.message import Announcement, frame_error, position_text, read_relation
from mesh_assets.cdc.relation import COMMITTED_AT_TYPE, IDENTITY_FULL, Column, Relation
from mesh_assets.cdc.type import PostgresType, arrow_type, builtin
from mesh_assets.errors import MeshError, SourceError

__all__ = ["Batch", "Decoder", "text_columns"]

Resolve = Callable[[int, int], PostgresType]
KeyOf = Callable[[int, str, str], Sequence[str]]
Accept = Callable[[Relation], bool]

_ROWS_PER_FLUSH: Final = 16_384
_ARENA_BYTES: Final = 4 << 20
_FAULT_BYTES: Final = 64
_MOST_COLUMNS: Final = 1_664  # MaxTupleAttributeNumber: more than any table can have.

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
"""Columns of parked messages: the raw message and what :meth:`Decoder.replay` needs to know."""

_PARKED_LINE: Final = {
    kernel.PARKED_POSITION: "_position",
    kernel.PARKED_ORDINAL: "_ordinal",
    kernel.PARKED_XID: "_xid",
    kernel.PARKED_COMMITTED_AT: "_committed_at",
}


@dataclass
class Batch:
    """Everything decoded between two calls of :meth:`Decoder.take`.

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


class Decoder:
    """Decodes the CopyData frames of one replication connection.

    Args:
        resolve: gives the type for (oid, typmod); not called for PostgreSQL's own types, and
            once for any other.
        key_of: gives the key columns for (relation oid, schema, name) of a table with replica
            identity FULL, whose Relation message marks all columns. Without it such a table
            has no key, so none of its updates is a key move.
        accept: asked at every announcement of a relation whether its changes can be taken in
            this shape; if not, it is parked from this announcement on.
        max_rows_per_flush: rows decoded to Arrow at a time.

    Attributes:
        parked: oids of relations whose messages are kept raw; add and remove at any time.
        relations: the relations as last announced.
        refused: relations that cannot be described, with the error. They are missing in
            ``relations`` and are parked.
        names: ``schema.table`` of every relation announced, refused ones included.
        wal_end: the server has sent everything before this position.
        reply_requested: the server wants a status message soon; reset it after sending one.
        row_count: changes decoded and not yet taken.
        byte_count: bytes decoded and not yet taken.
    """

    def __init__(
        self,
        resolve: Resolve,
        *,
        key_of: KeyOf | None = None,
        accept: Accept | None = None,
        max_rows_per_flush: int = _ROWS_PER_FLUSH,
    ) -> None:
        self.parked: set[int] = set()
        self.relations: dict[int, Relation] = {}
        self.refused: dict[int, MeshError] = {}
        self.names: dict[int, str] = {}
        self._resolve = resolve
        self._key_of = key_of
        self._accept = accept
        self._types: dict[tuple[int, int], PostgresType] = {}
        self._max_rows = max(2, max_rows_per_flush)

        self._state = np.zeros(kernel.STATE_LENGTH, np.int64)
        self._rows = np.empty((kernel.ROW_LINES, self._max_rows), np.int64)
        self._parked_rows = np.empty((kernel.PARKED_LINES, self._max_rows), np.int64)
        cells = max(8 * self._max_rows, 2 * _MOST_COLUMNS)
        self._cell_at = np.empty(cells, np.int64)
        self._cell_length = np.empty(cells, np.int32)
        self._arena = np.empty(_ARENA_BYTES, np.uint8)
        self._arena_used = 0

        self._editions = EditionTable()
        self._parking: set[int] = set()

        self._touched: list[int] = []
        self._parked_batches: dict[int, list[pa.RecordBatch]] = {}
        self._announced: dict[int, None] = {}
        self._flushed_rows = 0
        self.byte_count = 0
        self._forget()

    @property
    def wal_end(self) -> int:
        """The server has sent everything before this position."""
        return int(self._state[kernel.WAL_END])

    @property
    def reply_requested(self) -> bool:
        """The server wants a status message soon."""
        return bool(self._state[kernel.REPLY_REQUESTED])

    @reply_requested.setter
    def reply_requested(self, wanted: bool) -> None:
        self._state[kernel.REPLY_REQUESTED] = wanted

    @property
    def row_count(self) -> int:
        """Changes decoded and not yet taken, parked ones included."""
        return self._flushed_rows + int(self._state[kernel.ROW_COUNT]) + int(self._state[kernel.PARKED_COUNT])

    @property
    def in_transaction(self) -> bool:
        """A transaction is open: its Begin was read and its Commit was not."""
        return bool(self._state[kernel.IN_TRANSACTION])

    # Reading.

    def decode(self, buffer: npt.NDArray[np.uint8], start: int, end: int) -> int:
        """Decode the whole frames in ``buffer[start:end]``.

        Returns where the first incomplete frame starts. What is needed later is copied, so
        the caller may reuse everything before that.

        Raises:
            SourceDisconnected: the server ended the stream.
            SourceError: the server sent an error, or a message that breaks the protocol; the
                message names the LSN. All earlier messages have been decoded and can be taken.
        """
        if not 0 <= start <= end <= len(buffer):
            raise ValueError(f"no bytes {start} to {end} in a buffer of {len(buffer)}")
        data = writable(buffer)
        self._sync_parking()
        state = self._state
        place = start
        while True:
            limit = place + len(self._arena) - self._arena_used
            stop = kernel.scan(
                data,
                place,
                end,
                limit,
                self._arena_used - place,
                state,
                self._editions.index,
                self._editions.fields,
                self._editions.key_marks,
                self._rows,
                self._cell_at,
                self._cell_length,
                self._parked_rows,
            )
            self._keep(data, place, stop)
            place = stop
            reason = state[kernel.STOP]
            if reason == kernel.STOP_END:
                return place
            if reason == kernel.STOP_FULL:
                self._make_room(int.from_bytes(data[place + 1 : place + 5].tobytes(), "big") + 1)
            elif reason == kernel.STOP_RELATION:
                length = int.from_bytes(data[place + 1 : place + 5].tobytes(), "big") + 1
                self._announce(data[place + 30 : place + length].tobytes())
                self.byte_count += length
                place += length
            elif reason == kernel.STOP_FRAME:
                raise frame_error(data[place:end].tobytes(), self._where())
            else:
                raise self._fault(data[place : place + _FAULT_BYTES].tobytes())

    def replay(self, oid: int, messages: pa.Table) -> None:
        """Decode messages of one relation that were parked (``PARKED_SCHEMA``), in their order.

        The changes get the positions and ordinals that they had. Use a decoder of its own for
        it, and :meth:`take` what comes out.

        Raises:
            SourceError: when a message is broken, or no Relation message comes before it.
        """
        for batch in messages.select(PARKED_SCHEMA.names).cast(PARKED_SCHEMA).to_batches():
            self._replay(oid, batch)

    def _replay(self, oid: int, batch: pa.RecordBatch) -> None:
        messages = Cells.of(batch.column("message"))
        meta = np.zeros((kernel.PARKED_LINES, batch.num_rows), np.int64)
        meta[kernel.PARKED_EDITION] = oid
        kinds = Cells.of(batch.column("kind"))
        meta[kernel.PARKED_KIND] = kinds.data[kinds.at]
        for line, name in _PARKED_LINE.items():
            meta[line] = batch.column(name).cast(pa.int64()).to_numpy(zero_copy_only=False)
        number = 0
        while True:
            number = kernel.replay(
                messages.data,
                messages.at,
                messages.length,
                number,
                meta,
                self._state,
                self._editions.index,
                self._editions.fields,
                self._editions.key_marks,
                self._rows,
                self._cell_at,
                self._cell_length,
                self._parked_rows,
            )
            reason = self._state[kernel.STOP]
            if reason == kernel.STOP_FAULT:
                raise self._fault(raw(messages.take(np.array([number])))[0].as_py() or b"")
            if reason == kernel.STOP_FULL and not self._holds_any():
                self._grow_tables()
            # The cells lie in the messages, which are gone with this batch.
            self._flush(messages.data)
            if reason == kernel.STOP_END:
                return
            if reason == kernel.STOP_RELATION:
                self._announce(raw(messages.take(np.array([number])))[0].as_py())
                number += 1

    def take(self) -> Batch:
        """Everything decoded since the last take. A transaction may be open at its end."""
        self._flush(self._arena)
        state = self._state
        segments = []
        for number in self._touched:
            edition = self._editions[number]
            assert edition.framer is not None
            segments.append((edition.framer.relation, pa.Table.from_batches(edition.batches)))
            edition.batches = []
        batch = Batch(
            segments=segments,
            parked=[(oid, pa.Table.from_batches(parts)) for oid, parts in self._parked_batches.items()],
            announced=tuple(self._announced),
            position=(int(state[kernel.LAST_POSITION]), int(state[kernel.LAST_ORDINAL])),
            commit_lsn=int(state[kernel.COMMIT_LSN]),
            end_lsn=int(state[kernel.END_LSN]),
            committed_at=int(state[kernel.END_COMMITTED_AT]),
            in_transaction=self.in_transaction,
            row_count=self._flushed_rows,
            transaction_count=int(state[kernel.TRANSACTION_COUNT]),
            byte_count=self.byte_count,
            wal_end=self.wal_end,
        )
        self._forget()
        return batch

    def _forget(self) -> None:
        self._touched = []
        self._parked_batches = {}
        self._announced = {}
        self._flushed_rows = 0
        self.byte_count = 0
        state = self._state
        state[kernel.LAST_POSITION] = 0
        state[kernel.LAST_ORDINAL] = -1
        state[kernel.COMMIT_LSN] = 0
        state[kernel.END_LSN] = 0
        state[kernel.END_COMMITTED_AT] = 0
        state[kernel.TRANSACTION_COUNT] = 0

    # Room.

    def _holds_any(self) -> bool:
        return bool(self._state[kernel.ROW_COUNT] or self._state[kernel.PARKED_COUNT])

    def _keep(self, data: npt.NDArray[np.uint8], start: int, stop: int) -> None:
        """Copy scanned bytes to where the noted cells point to."""
        size = stop - start
        self.byte_count += size
        if self._holds_any():
            self._arena[self._arena_used : self._arena_used + size] = data[start:stop]
            self._arena_used += size

    def _make_room(self, frame_size: int) -> None:
        if self._holds_any():
            self._flush(self._arena)
        elif frame_size > len(self._arena):
            # Kept until the flush after it, and then given back.
            self._arena = np.empty(frame_size, np.uint8)
        else:
            self._grow_tables()

    def _grow_tables(self) -> None:
        """A Truncate of very many tables has no room even in empty ones."""
        self._rows = np.empty((kernel.ROW_LINES, 2 * self._rows.shape[1]), np.int64)
        self._parked_rows = np.empty((kernel.PARKED_LINES, 2 * self._parked_rows.shape[1]), np.int64)
        self._cell_at = np.empty(2 * len(self._cell_at), np.int64)
        self._cell_length = np.empty(2 * len(self._cell_length), np.int32)

    # Arrow.

    def _flush(self, data: npt.NDArray[np.uint8]) -> None:
        state = self._state
        count = int(state[kernel.ROW_COUNT])
        if count:
            self._flush_rows(data, self._rows[:, :count])
            self._flushed_rows += count
        parked_count = int(state[kernel.PARKED_COUNT])
        if parked_count:
            self._flush_parked(data, self._parked_rows[:, :parked_count])
            self._flushed_rows += parked_count
        state[kernel.ROW_COUNT] = 0
        state[kernel.CELL_COUNT] = 0
        state[kernel.PARKED_COUNT] = 0
        self._arena_used = 0
        if len(self._arena) > _ARENA_BYTES:
            self._arena = np.empty(_ARENA_BYTES, np.uint8)

    def _flush_rows(self, data: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]) -> None:
        for number, part in _by_edition(rows):
            edition = self._editions[number]
            assert edition.framer is not None
            if not edition.batches:
                self._touched.append(number)
            try:
                frame = edition.framer.frame(Walked(data, part, self._cell_at, self._cell_length))
            except SourceError as error:
                raise SourceError(
                    f"table {edition.framer.relation.qualified_name}, changes from commit "
                    f"{position_text(int(part[kernel.ROW_POSITION, 0]))} on: {error.message}",
                    hint=error.hint,
                ) from error
            edition.batches.append(frame)

    def _flush_parked(self, data: npt.NDArray[np.uint8], parked: npt.NDArray[np.int64]) -> None:
        for number, part in _by_edition(parked):
            cells = Cells(
                data,
                np.ascontiguousarray(part[kernel.PARKED_START]),
                part[kernel.PARKED_LENGTH].astype(np.int32),
            )
            self._park(
                self._editions[number].oid,
                raw(cells),
                [part[line] for line in _PARKED_LINE],
                letters(part[kernel.PARKED_KIND]),
            )

    def _park(
        self, oid: int, messages: pa.Array, meta: Sequence[npt.NDArray[np.int64]], kinds: pa.Array
    ) -> None:
        arrays = [messages, *map(longs, meta), kinds]
        arrays[4] = arrays[4].view(COMMITTED_AT_TYPE)
        self._parked_batches.setdefault(oid, []).append(
            pa.RecordBatch.from_arrays(arrays, schema=PARKED_SCHEMA)
        )

    # Relations.

    def _announce(self, message: bytes) -> None:
        """Take a Relation message: a new edition, if it says anything new."""
        announced = read_relation(message, self._where())
        oid = announced.oid
        self._announced[oid] = None
        self.names[oid] = f"{announced.schema}.{announced.name}"
        key: tuple[str, ...] = tuple(one.name for one in announced.columns if one.key)
        if announced.identity == IDENTITY_FULL:
            key = ()
            if self._key_of is not None:
                key = tuple(self._key_of(oid, announced.schema, announced.name))
        known = self._editions.newest(oid)
        if known is None or known.announcement != message or known.key != key:
            self._describe(announced, message, key)
        relation = self.relations.get(oid)
        if relation is not None and self._accept is not None and not self._accept(relation):
            self.parked.add(oid)
        if oid in self._parking:
            self._park_announcement(oid)
        self._sync_parking()

    def _describe(self, announced: Announcement, message: bytes, key: tuple[str, ...]) -> None:
        oid = announced.oid
        columns = tuple(
            self._column(one.name, one.type_oid, one.typmod, one.name in key) for one in announced.columns
        )
        edition = Edition(oid, message, None, key)
        try:
            relation = Relation(oid, announced.schema, announced.name, announced.identity, columns)
        except SourceError as error:
            self.refused[oid] = error
            self.relations.pop(oid, None)
        else:
            edition.framer = Framer(relation)
            self.relations[oid] = relation
            self.refused.pop(oid, None)
        self._editions.add(edition, [one.key for one in columns], parked=oid in self._parking)

    def _column(self, name: str, type_oid: int, typmod: int, key: bool) -> Column:
        type_ = builtin(type_oid, typmod)
        if type_ is None:
            type_ = self._types.get((type_oid, typmod))
        if type_ is None:
            type_ = self._types[type_oid, typmod] = self._resolve(type_oid, typmod)
        return Column(name, type_, arrow_type(type_), key)

    def _sync_parking(self) -> None:
        """Let the walk know which relations are parked now."""
        self.parked.update(self.refused)
        if self.parked == self._parking:
            return
        for oid in self.parked ^ self._parking:
            self._editions.park(oid, oid in self.parked)
            if oid in self.parked and self._editions.newest(oid) is not None:
                self._park_announcement(oid)
        self._parking = set(self.parked)

    def _park_announcement(self, oid: int) -> None:
        """Keep the Relation message before the changes that it describes."""
        self._flush(self._arena)
        edition = self._editions.newest(oid)
        assert edition is not None
        state = self._state
        meta = [
            state[line : line + 1].copy()
            for line in (kernel.POSITION, kernel.ORDINAL, kernel.XID, kernel.COMMITTED_AT)
        ]
        self._park(oid, pa.array([edition.announcement], pa.binary()), meta, pa.array(["R"]))

    # Errors.

    def _where(self) -> str:
        return f"after LSN {position_text(int(self._state[kernel.MESSAGE_LSN]))}"

    def _fault(self, message: bytes) -> SourceError:
        state = self._state
        what = _FAULT.get(int(state[kernel.FAULT]), "is not understood")
        return SourceError(
            f"a message of the replication stream at LSN {position_text(int(state[kernel.MESSAGE_LSN]))} "
            f"(transaction committed at {position_text(int(state[kernel.POSITION]))}) {what}; "
            f"it starts with {message[:_FAULT_BYTES].hex(' ')}",
            hint="nothing was acknowledged: capture again; if it comes back, report it with this text",
        )


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


def _by_edition(table: npt.NDArray[np.int64]) -> list[tuple[int, npt.NDArray[np.int64]]]:
    """The table's columns per edition (line 0), editions in order of first appearance; always a copy."""
    editions = table[0]
    first = int(editions[0])
    if (editions == first).all():
        return [(first, table.copy())]
    order = np.argsort(editions.astype(np.uint32), kind="stable")
    bounds = np.flatnonzero(np.diff(editions[order])) + 1
    parts = np.split(order, bounds)
    parts.sort(key=lambda part: int(part[0]))
    return [(int(editions[part[0]]), np.take(table, part, axis=1)) for part in parts]
