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
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mesh_assets.cdc import kernel
from mesh_assets.cdc.batch import PARKED_LINE, PARKED_SCHEMA, Batch, by_edition
from mesh_assets.cdc.column import Cells, letters, longs, raw, writable
from mesh_assets.cdc.edition import Describer, Edition, EditionTable, KeyOf, Resolve
from mesh_assets.cdc.frame import Walked, text_columns
from mesh_assets.cdc.message import Announcement, fault_error, frame_error, position_text, read_relation
from mesh_assets.cdc.relation import COMMITTED_AT_TYPE, Relation
from mesh_assets.errors import MeshError, SourceError

__all__ = ["PARKED_SCHEMA", "Batch", "Decoder", "text_columns"]

Accept = Callable[[Relation], bool]

_ROWS_PER_FLUSH: Final = 16_384
_ARENA_BYTES: Final = 4 << 20
_SHOWN_BYTES: Final = 64
_MOST_COLUMNS: Final = 1_664  # MaxTupleAttributeNumber: more than any table can have.


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
        self._describer = Describer(resolve, key_of)
        self._accept = accept
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
        self._taken_open = False
        self._failure: SourceError | None = None
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

    @property
    def late_commit(self) -> bool:
        """The transaction that was open at the end of the last take has ended, and no change has come."""
        return self._taken_open and not self.in_transaction and not self.row_count

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
                raise self._fault(data[place : place + _SHOWN_BYTES].tobytes())

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
        for line, name in PARKED_LINE.items():
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
            if reason == kernel.STOP_FULL and not self._holds_any():
                self._grow_tables()
            # The cells lie in the messages, not in the arena.
            self._flush(messages.data)
            if reason == kernel.STOP_FAULT:
                raise self._fault(raw(messages.take(np.array([number])))[0].as_py() or b"")
            if reason == kernel.STOP_END:
                return
            if reason == kernel.STOP_RELATION:
                self._announce(raw(messages.take(np.array([number])))[0].as_py())
                number += 1

    def take(self) -> Batch:
        """Everything decoded since the last take. A transaction may be open at its end.

        Raises:
            SourceError: a value is not valid UTF-8; the message names table, column and commit.
        """
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
        self._taken_open = batch.in_transaction
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
        if self._failure is not None:
            raise self._failure
        count = int(self._state[kernel.ROW_COUNT])
        parked_count = int(self._state[kernel.PARKED_COUNT])
        try:
            if count:
                self._flush_rows(data, self._rows[:, :count])
            if parked_count:
                self._flush_parked(data, self._parked_rows[:, :parked_count])
        except SourceError as error:
            # These rows exist nowhere else: nothing after them may be taken.
            self._failure = error
            raise
        finally:
            self._flushed_rows += count + parked_count
            self._state[kernel.ROW_COUNT] = 0
            self._state[kernel.CELL_COUNT] = 0
            self._state[kernel.PARKED_COUNT] = 0
            self._arena_used = 0
            if len(self._arena) > _ARENA_BYTES:
                self._arena = np.empty(_ARENA_BYTES, np.uint8)

    def _flush_rows(self, data: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]) -> None:
        for number, part in by_edition(rows):
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
        for number, part in by_edition(parked):
            cells = Cells(
                data,
                np.ascontiguousarray(part[kernel.PARKED_START]),
                part[kernel.PARKED_LENGTH].astype(np.int32),
            )
            self._park(
                self._editions[number].oid,
                raw(cells),
                [part[line] for line in PARKED_LINE],
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
        key = self._describer.key(announced)
        known = self._editions.newest(oid)
        if known is None or known.announcement != message or known.key != key:
            self._add(self._describer.edition(announced, message, key), announced)
        relation = self.relations.get(oid)
        if relation is not None and self._accept is not None and not self._accept(relation):
            self.parked.add(oid)
        if oid in self._parking:
            self._park_announcement(oid)
        self._sync_parking()

    def _add(self, edition: Edition, announced: Announcement) -> None:
        oid = edition.oid
        if edition.framer is not None:
            self.relations[oid] = edition.framer.relation
            self.refused.pop(oid, None)
        elif edition.refusal is not None:
            self.relations.pop(oid, None)
            self.refused[oid] = edition.refusal
        marks = [one.name in edition.key for one in announced.columns]
        self._editions.add(edition, marks, parked=oid in self._parking)

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
        return fault_error(
            int(state[kernel.FAULT]), message, int(state[kernel.MESSAGE_LSN]), int(state[kernel.POSITION])
        )
