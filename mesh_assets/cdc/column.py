"""Arrow columns from the text of values, whichever way the text came.

A value that its Arrow type cannot hold becomes null and is reported, so that its exact text
can go to ``_exact``; nothing is rounded, cut or dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mesh_assets.cdc import value
from mesh_assets.cdc.kernel import Bytes, Ints, Longs
from mesh_assets.errors import SourceError

_RANGE = {
    pa.int16(): (-(2**15), 2**15 - 1),
    pa.int32(): (-(2**31), 2**31 - 1),
    pa.int64(): (-(2**63), 2**63 - 1),
}


@dataclass(frozen=True)
class Cells:
    """The text of one column's values.

    Attributes:
        data: bytes that hold the texts.
        at: where in ``data`` each value starts.
        length: bytes of each value; negative for null.
    """

    data: Bytes
    at: Longs
    length: Ints

    def __len__(self) -> int:
        return len(self.length)

    def take(self, rows: npt.NDArray[np.intp]) -> Cells:
        """Some of the cells, in the given order."""
        return Cells(self.data, self.at[rows], self.length[rows])

    @classmethod
    def of(cls, texts: pa.Array) -> Cells:
        """The cells of an Arrow string or binary array, without a copy of its bytes."""
        size = len(texts)
        _, offset_buffer, data_buffer = texts.buffers()
        if size == 0 or offset_buffer is None:
            return cls(np.empty(1, np.uint8), np.zeros(size, np.int64), np.full(size, -1, np.int32))
        offsets = np.frombuffer(offset_buffer, np.int32)[texts.offset : texts.offset + size + 1]
        length = np.diff(offsets)
        if texts.null_count:
            length[texts.is_null().to_numpy(zero_copy_only=False)] = -1
        data = np.empty(1, np.uint8)
        if data_buffer is not None and data_buffer.size:
            data = writable(np.frombuffer(data_buffer, np.uint8))
        return cls(data, offsets[:-1].astype(np.int64), length)


class _Memory:
    """Lends the memory of an array that it keeps alive."""

    def __init__(self, owner: Bytes) -> None:
        self.owner = owner
        self.__array_interface__ = {**owner.__array_interface__, "data": (owner.ctypes.data, False)}


def writable(data: Bytes) -> Bytes:
    """The same bytes in an array not marked read-only, for which the kernels are compiled.

    No kernel writes to its input; one specialisation instead of two halves compilation.
    """
    if data.flags.writeable:
        return data
    view: Bytes = np.asarray(_Memory(data))
    return view


def longs(numbers: Longs) -> pa.Array:
    """An Arrow array over the numbers (``pa.array`` would import pandas first)."""
    return pa.Array.from_buffers(pa.int64(), len(numbers), [None, pa.py_buffer(numbers)], 0)


def letters(codes: Longs) -> pa.Array:
    """A string array of one ASCII letter per row."""
    size = len(codes)
    offsets = np.arange(size + 1, dtype=np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(codes.astype(np.uint8))]
    return pa.Array.from_buffers(pa.string(), size, buffers, 0)


def mask(marks: npt.NDArray[np.bool_]) -> pa.Buffer:
    """A validity bit map."""
    return pa.py_buffer(np.packbits(marks, bitorder="little"))


def _bits(size: int) -> Bytes:
    return np.zeros((size + 7) // 8, np.uint8)


def _assemble(
    arrow: pa.DataType, size: int, null_count: int, bits: Bytes, *buffers: npt.NDArray[np.generic]
) -> pa.Array:
    validity = pa.py_buffer(bits) if null_count else None
    return pa.Array.from_buffers(arrow, size, [validity, *map(pa.py_buffer, buffers)], null_count)


def _copied(arrow: pa.DataType, cells: Cells) -> tuple[pa.Array, bool]:
    """The cells' bytes as they are, and whether all of them are ASCII."""
    size = len(cells)
    bits = _bits(size)
    offsets = np.empty(size + 1, np.int32)
    data = np.empty(value.text_size(cells.length), np.uint8)
    null_count, union = value.texts(cells.data, cells.at, cells.length, offsets, data, bits)
    return _assemble(arrow, size, null_count, bits, offsets, data), union < 128


def raw(cells: Cells) -> pa.Array:
    """The cells' bytes as an Arrow binary array."""
    return _copied(pa.binary(), cells)[0]


def text(cells: Cells) -> pa.Array:
    """The cells as an Arrow string array.

    Raises:
        SourceError: when a text is not valid UTF-8 (a database with encoding SQL_ASCII).
    """
    array, ascii_only = _copied(pa.string(), cells)
    if not ascii_only:
        try:
            array.validate(full=True)
        except pa.ArrowInvalid as error:
            raise SourceError(
                f"a text value is not valid UTF-8: {error}",
                hint="the database's encoding must not be SQL_ASCII; "
                "repair the value at the source or make it a bytea",
            ) from error
    return array


def _binary(cells: Cells, bad: Bytes) -> tuple[pa.Array, int]:
    size = len(cells)
    bits = _bits(size)
    offsets = np.empty(size + 1, np.int32)
    data = np.empty(value.text_size(cells.length) // 2, np.uint8)
    null_count, bad_count = value.binaries(cells.data, cells.at, cells.length, offsets, data, bits, bad)
    return _assemble(pa.binary(), size, null_count, bits, offsets, data[: offsets[size]]), bad_count


def _float(arrow: pa.DataType, cells: Cells, bad: Bytes) -> tuple[pa.Array, int]:
    # Arrow's parser rounds correctly to either width, also for NaN and Infinity.
    texts = text(cells)
    try:
        return texts.cast(arrow), 0
    except pa.ArrowInvalid:
        values: list[float | None] = []
        for row, one in enumerate(texts):
            try:
                values.append(one.cast(arrow).as_py())
            except pa.ArrowInvalid:
                bad[row] = 1
                values.append(None)
        return pa.array(values, arrow), int(bad.sum())


def _array(arrow: pa.DataType, cells: Cells, delimiter: str, bad: Bytes) -> tuple[pa.Array, int]:
    size = len(cells)
    bits = _bits(size)
    offsets = np.empty(size + 1, np.int32)
    code = ord(delimiter)
    room = value.element_room(cells.data, cells.at, cells.length, code)
    at = np.empty(room, np.int64)
    length = np.empty(room, np.int32)
    scratch = np.empty(value.text_size(cells.length) + 1, np.uint8)
    null_count, bad_count, element_count = value.elements(
        cells.data, cells.at, cells.length, code, offsets, at, length, scratch, bits, bad
    )
    inner, odd = column(arrow.value_type, Cells(scratch, at[:element_count], length[:element_count]))
    if len(odd):
        # An array is kept whole or not at all: without the rows of odd elements, once more.
        rows = np.searchsorted(offsets, odd, side="right") - 1
        bad[rows] = 1
        kept = np.where(bad.view(np.bool_), np.int32(-1), cells.length)
        array, _ = _array(arrow, Cells(cells.data, cells.at, kept), delimiter, bad)
        return array, int(bad.sum())
    validity = pa.py_buffer(bits) if null_count else None
    buffers = [validity, pa.py_buffer(offsets)]
    array = pa.Array.from_buffers(arrow, size, buffers, null_count, children=[inner])
    return array, bad_count


def _fixed(arrow: pa.DataType, cells: Cells, bad: Bytes) -> tuple[pa.Array, int]:
    size = len(cells)
    data, at, length = cells.data, cells.at, cells.length
    bits = _bits(size)
    out: npt.NDArray[np.generic]
    if pa.types.is_boolean(arrow):
        out = flags = _bits(size)
        null_count, bad_count = value.booleans(data, at, length, flags, bits, bad)
    elif pa.types.is_date32(arrow):
        out = days = np.empty(size, np.int32)
        null_count, bad_count = value.dates(data, at, length, days, bits, bad)
    elif pa.types.is_timestamp(arrow):
        out = instants = np.empty(size, np.int64)
        null_count, bad_count = value.instants(data, at, length, instants, bits, bad)
    elif pa.types.is_decimal128(arrow):
        out = words = np.empty(2 * size, np.int64)
        null_count, bad_count = value.decimals(
            data, at, length, arrow.precision, arrow.scale, words, bits, bad
        )
    else:
        low, high = _RANGE[arrow]
        out = integers = np.empty(size, np.int64)
        null_count, bad_count = value.integers(data, at, length, low, high, integers, bits, bad)
        if arrow.bit_width < 64:
            out = integers.astype(np.int16 if arrow.bit_width == 16 else np.int32)
    return _assemble(arrow, size, null_count, bits, out), bad_count


def column(arrow: pa.DataType, cells: Cells, delimiter: str = ",") -> tuple[pa.Array, npt.NDArray[np.intp]]:
    """One Arrow column, and the rows whose value it cannot hold (they are null in it).

    Args:
        arrow: a type that :func:`mesh_assets.cdc.type.arrow_type` gives.
        cells: the values' text.
        delimiter: what stands between the elements of arrays.

    Raises:
        SourceError: when a text is not valid UTF-8.
    """
    if pa.types.is_string(arrow):
        return text(cells), np.empty(0, np.intp)
    bad = np.zeros(len(cells), np.uint8)
    if pa.types.is_binary(arrow):
        array, bad_count = _binary(cells, bad)
    elif pa.types.is_floating(arrow):
        array, bad_count = _float(arrow, cells, bad)
    elif pa.types.is_list(arrow):
        array, bad_count = _array(arrow, cells, delimiter, bad)
    else:
        array, bad_count = _fixed(arrow, cells, bad)
    return array, np.flatnonzero(bad) if bad_count else np.empty(0, np.intp)
