"""Change frames: the rows of one relation version with what happened to them.

The sparse columns (``_unchanged``, ``_before``, ``_exact``) are shared runs of null where
no row has a value, so they cost nothing then.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mesh_assets.cdc import kernel
from mesh_assets.cdc.column import Cells, column, letters, longs, mask, text
from mesh_assets.cdc.kernel import Bytes, Ints, Longs
from mesh_assets.cdc.relation import (
    BEFORE_PREFIX,
    COMMITTED_AT_TYPE,
    EXACT_TYPE,
    UNCHANGED_TYPE,
    Relation,
)
from mesh_assets.cdc.type import array_delimiter
from mesh_assets.errors import SourceError

_CHANGED_OPS = (ord("c"), ord("u"))


@dataclass(frozen=True)
class Walked:
    """What the walk over the stream noted of rows of one relation version.

    Attributes:
        data: bytes in which the cells lie.
        rows: the row table's lines, one column per row.
        cell_at: where each cell's text starts.
        cell_length: each cell's length.
    """

    data: Bytes
    rows: Longs
    cell_at: Longs
    cell_length: Ints


@dataclass
class _Sparse:
    """Values that few rows have, as (row, name, value) in three parts per column."""

    rows: list[npt.NDArray[np.intp]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    values: list[pa.Array] = field(default_factory=list)

    def add(self, rows: npt.NDArray[np.intp], name: str, values: pa.Array | None = None) -> None:
        self.rows.append(rows)
        self.names.append(name)
        if values is not None:
            self.values.append(values)

    def _layout(self, size: int) -> tuple[Ints, pa.Buffer, npt.NDArray[np.intp], pa.Array]:
        """List offsets, validity of the lists, order of the entries, and the entries' names."""
        rows = np.concatenate(self.rows)
        order = np.argsort(rows, kind="stable")
        count = np.bincount(rows, minlength=size)
        offsets = np.zeros(size + 1, np.int32)
        np.cumsum(count, out=offsets[1:])
        name_index = np.repeat(np.arange(len(self.names)), [len(part) for part in self.rows])[order]
        names = pa.array(self.names, pa.string()).take(longs(name_index))
        return offsets, mask(count > 0), order, names

    def lists(self, size: int) -> pa.Array:
        """The names alone, as a list per row."""
        if not self.rows:
            return pa.nulls(size, UNCHANGED_TYPE)
        offsets, validity, _, names = self._layout(size)
        return pa.Array.from_buffers(
            UNCHANGED_TYPE, size, [validity, pa.py_buffer(offsets)], children=[names]
        )

    def maps(self, size: int) -> pa.Array:
        """Name to value, as a map per row."""
        if not self.rows:
            return pa.nulls(size, EXACT_TYPE)
        offsets, validity, order, names = self._layout(size)
        values = pa.concat_arrays(self.values).take(longs(order))
        entries = pa.StructArray.from_arrays(
            [names, values], fields=[EXACT_TYPE.key_field, EXACT_TYPE.item_field]
        )
        return pa.Array.from_buffers(EXACT_TYPE, size, [validity, pa.py_buffer(offsets)], children=[entries])


class Framer:
    """Builds change frames of one relation version."""

    def __init__(self, relation: Relation) -> None:
        self.relation = relation
        self._null_runs: dict[str, pa.Array] = {}
        self._delimiters = [array_delimiter(one.type) for one in relation.columns]

    def _nulls(self, name: str, size: int) -> pa.Array:
        """A run of nulls, shared by all frames that need no more of them."""
        run = self._null_runs.get(name)
        if run is None or len(run) < size:
            type_ = self.relation.frame_schema.field(name).type
            run = self._null_runs[name] = pa.nulls(1 << (size - 1).bit_length(), type_)
        return run[:size]

    def frame(self, walked: Walked) -> pa.RecordBatch:
        """The change frame of the walked rows.

        Raises:
            SourceError: when a text is not valid UTF-8; the message names the column.
        """
        rows = walked.rows
        size = rows.shape[1]
        ops = rows[kernel.ROW_OP]
        exact = _Sparse()
        unchanged = _Sparse()
        columns = self._columns(walked, rows[kernel.ROW_IMAGE], "", exact, unchanged, ops)
        before_first = rows[kernel.ROW_BEFORE]
        held = before_first >= 0
        if held.any():
            fields = self._columns(walked, before_first, BEFORE_PREFIX, exact, None, ops)
            type_ = self.relation.frame_schema.field("_before").type
            before = pa.Array.from_buffers(type_, size, [mask(held)], children=fields)
        else:
            before = self._nulls("_before", size)
        return pa.RecordBatch.from_arrays(
            [
                *columns,
                letters(ops),
                longs(rows[kernel.ROW_POSITION]),
                longs(rows[kernel.ROW_ORDINAL]),
                longs(rows[kernel.ROW_XID]),
                longs(rows[kernel.ROW_COMMITTED_AT]).view(COMMITTED_AT_TYPE),
                unchanged.lists(size) if unchanged.rows else self._nulls("_unchanged", size),
                before,
                exact.maps(size) if exact.rows else self._nulls("_exact", size),
            ],
            schema=self.relation.frame_schema,
        )

    def _columns(
        self,
        walked: Walked,
        first: Longs,
        prefix: str,
        exact: _Sparse,
        unchanged: _Sparse | None,
        ops: Longs,
    ) -> list[pa.Array]:
        size = len(first)
        first = np.ascontiguousarray(first)
        at = np.empty(size, np.int64)
        length = np.empty(size, np.int32)
        cells = Cells(walked.data, at, length)
        arrays = []
        for number, described in enumerate(self.relation.columns):
            unchanged_count = kernel.column_cells(
                first, number, walked.cell_at, walked.cell_length, at, length
            )
            if unchanged_count and unchanged is not None:
                marked = (length == kernel.UNCHANGED) & np.isin(ops, _CHANGED_OPS)
                unchanged.add(np.flatnonzero(marked), described.name)
            try:
                array, odd = column(described.arrow, cells, self._delimiters[number])
                if len(odd):
                    exact.add(odd, prefix + described.name, text(cells.take(odd)))
            except SourceError as error:
                raise SourceError(f"column {described.name!r}: {error.message}", hint=error.hint) from error
            arrays.append(array)
        return arrays


def text_columns(relation: Relation, table: pa.Table) -> pa.Table:
    """Typed columns from columns of text, exactly as the stream's values are read.

    Args:
        relation: whose columns to read; ``table`` has them all, by name, in any order.
        table: the texts of PostgreSQL's output functions as strings; null is null.

    Returns:
        The row's columns in the relation's order, then ``_exact``.
    """
    schema = relation.row_schema.append(pa.field("_exact", EXACT_TYPE))
    batches = []
    for batch in table.select([one.name for one in relation.columns]).to_batches():
        exact = _Sparse()
        arrays = []
        for described in relation.columns:
            texts = batch.column(described.name)
            if not pa.types.is_string(texts.type):
                texts = texts.cast(pa.string())
            if pa.types.is_string(described.arrow):
                arrays.append(texts)
                continue
            cells = Cells.of(texts)
            array, odd = column(described.arrow, cells, array_delimiter(described.type))
            if len(odd):
                exact.add(odd, described.name, text(cells.take(odd)))
            arrays.append(array)
        arrays.append(exact.maps(batch.num_rows))
        batches.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
    return pa.Table.from_batches(batches, schema)
