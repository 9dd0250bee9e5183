"""One fold: the log's tail goes into the current table, file by file, in bounded memory.

The files of a current table hold disjoint spans of the key space, each sorted. A fold routes the
tail's keys to those spans and rewrites just the files it meets, one after the other; all of it
becomes visible in one Delta commit. A tail too large for memory is read span by span too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import polars as pl
import pyarrow as pa

from mesh_assets import failpoint
from mesh_assets.errors import AsOfRefused, CommitConflict, Fenced, MeshError
from mesh_assets.lake.current import CLUSTERED, FOLDED, HELD, Current, digest
from mesh_assets.lake.file import FileRef, overlapping
from mesh_assets.lake.image import combine, index
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.multiset import count_steps, counted
from mesh_assets.lake.span import Span, ordered, route, spans, split, starts_of
from mesh_assets.lake.spill import spilled
from mesh_assets.lake.tail import Tail, shape_of, truncated_at

_WORK_BYTES = 32 << 20
"""Arrow bytes of tail rows that are in memory at one time (a few copies of them are)."""
_FILE_BYTES = 40 << 20
"""Arrow bytes of one file's rows: a fold holds a few copies of one file at a time."""
_FILE_ROWS = 500_000
_SAMPLE_ROWS = 200_000
_READ_TIMES = 3.0
"""A tail that would have to be read more often than this is put aside by key first."""


@dataclass(frozen=True)
class Fold:
    """What one fold did.

    Attributes:
        outcome: ``folded``; ``nothing`` (the cut was folded already); ``discarded`` (another fold came
            first, and this one's work was thrown away: nothing is lost).
        after_seq, upto_seq: the tail is the log rows with ``after_seq`` < ``_seq`` <= ``upto_seq``.
        tail_row_count: how many those are.
        row_count: rows of the table afterwards.
        removed, added: data files replaced, and the ones that replace them.
        touched_bytes, written_bytes: their sizes.
        seconds, cpu_seconds: how long it took; the CPU time is the whole process'.
        delta_version: of the current table afterwards.
    """

    outcome: Literal["folded", "nothing", "discarded"]
    after_seq: int
    upto_seq: int
    tail_row_count: int
    row_count: int
    removed: int
    added: int
    touched_bytes: int
    written_bytes: int
    seconds: float
    cpu_seconds: float
    delta_version: int

    @property
    def seconds_per_byte(self) -> float | None:
        """What a byte cost, for :class:`~mesh_assets.lake.current.FoldCase`; None if nothing was written."""
        total = self.touched_bytes + self.written_bytes
        return self.seconds / total if self.outcome == "folded" and total else None


def fold(
    log: ChangeLog, current: Current, upto: int, *, file_rows: int = _FILE_ROWS, work_bytes: int = _WORK_BYTES
) -> Fold:
    """Fold the log's rows up to ``upto`` (the ``_seq`` of a product version's cut) into the current table.

    Args:
        log: the change log; its handle must have seen ``upto``.
        current: its handle moves to the newest commit.
        upto: a cut at a transaction boundary.
        file_rows: at most about so many rows per file.
        work_bytes: at most about so many Arrow bytes of the tail in memory.

    Raises:
        AsOfRefused: if the log does not reach ``upto``.
        StorageFull: if the disk is full; nothing has changed.
    """
    started, cpu_started = time.monotonic(), time.process_time()
    failpoint.reach("fold.before")
    after = current.refresh()
    if upto > log.seq:
        raise AsOfRefused(f"{log.table.uri} ends at _seq {log.seq} and cannot be folded up to {upto}")
    work = _Work(log, current, upto, file_rows=file_rows, work_bytes=work_bytes)
    outcome: Literal["folded", "nothing", "discarded"] = "nothing"
    if upto > after:
        try:
            work.run()
            failpoint.reach("fold.written")
            work.commit()
            outcome = "folded"
        except (Fenced, CommitConflict):
            work.discard()
            current.refresh()
            outcome = "discarded"
        except MeshError:
            work.discard()
            raise
        failpoint.reach("fold.after")
    return Fold(
        outcome=outcome,
        after_seq=after,
        upto_seq=upto,
        tail_row_count=max(0, upto - after),
        row_count=current.row_count,
        removed=len(work.removed),
        added=len(work.added),
        touched_bytes=sum(file.size for file in work.removed),
        written_bytes=sum(file.size for file in work.added),
        seconds=time.monotonic() - started,
        cpu_seconds=time.process_time() - cpu_started,
        delta_version=current.table.version,
    )


@dataclass(frozen=True)
class _Unit:
    """A span of the key space that is merged at one time.

    Attributes:
        files: where its base rows lie.
        whole: the files lie wholly within the span.
        forced: to be written even if no change falls into it, because its files are rewritten anyway.
        count: about how many tail rows fall into it.
    """

    span: Span
    files: tuple[FileRef, ...]
    whole: bool
    forced: bool
    count: int


@dataclass
class _Work:
    """The state of one fold: what is replaced by what."""

    log: ChangeLog
    current: Current
    upto: int
    file_rows: int
    work_bytes: int
    removed: list[FileRef] = field(default_factory=list)
    added: list[FileRef] = field(default_factory=list)
    _pending: pl.DataFrame | None = None

    def run(self) -> None:
        """Write the files that take the place of those that the tail touches."""
        shape = self.shape = shape_of(self.log)
        self.current.table.add_columns([*self.log.row_schema])
        self.folded = self.current.folded
        self.files = self.current.table.files()
        tail = Tail(self.log, shape, self.folded, self.upto, self.current.held)
        self.cut = truncated_at(tail.rows())
        self.held = tail.still_held(self.cut)
        self.tail = Tail(self.log, shape, self.folded if self.cut is None else self.cut, self.upto, tail.held)
        if self.cut is not None:
            self.removed.extend(self.files)
        if shape.key:
            self._run_keyed()
        else:
            self._run_counted()
        self._flush()

    def commit(self) -> None:
        """Make it visible, unless another fold was faster."""
        gone = {file.path for file in self.removed}
        files = [file for file in self.files if file.path not in gone] + self.added
        self.current.table.rewrite(
            remove=self.removed,
            add=self.added,
            transactions={FOLDED: self.upto, HELD: self.held, CLUSTERED: digest(files)},
            expect={FOLDED: None if self.folded < 0 else self.folded},
        )

    def discard(self) -> None:
        """Remove what was written; no commit refers to it."""
        self.current.table.discard(self.added)
        self.added.clear()
        self.removed.clear()

    # -- with a key -------------------------------------------------------------------------------

    def _run_keyed(self) -> None:
        shape, tail = self.shape, self.tail
        rows = tail.rows().filter(pl.col("_op") != "t")
        units = self._units(self._work_rows())
        # Values that come with a key move may stand in another span: then the whole tail is searched.
        moves = (pl.col("_op") == "c") & pl.col("_before").is_not_null() & pl.col("_unchanged").is_not_null()
        moved = rows.filter(moves).select(pl.len()).collect(engine="streaming").item() > 0
        reach = rows if moved else None
        previous = -2
        for first, last, found in self._parts(shape.identified(rows), units):
            chosen = units[first:last]
            numbers = route(
                shape, found, starts_of([unit.span for unit in chosen], found.select(shape.identity))
            )
            for place, unit in enumerate(chosen):
                mine = found.filter(numbers == place)
                if mine.is_empty() and not unit.forced:
                    continue
                if first + place != previous + 1:
                    self._flush()
                previous = first + place
                self._put(self._merged(unit, mine, reach))
                self.removed.extend(file for file in unit.files if file not in self.removed)

    def _parts(self, rows: pl.LazyFrame, units: Sequence[_Unit]) -> Iterator[tuple[int, int, pl.DataFrame]]:
        """The tail's rows, as many neighbouring units (first, last exclusive) at a time as memory holds."""
        shape = self.shape
        passes = list(_passes(units, self._work_rows()))
        if len(passes) == 1:
            yield 0, len(units), rows.collect(engine="streaming")
            return
        wholes = [Span(units[first].span.low, units[last - 1].span.high) for first, last in passes]
        if self._read_times(wholes) <= _READ_TIMES:
            for (first, last), whole in zip(passes, wholes, strict=True):
                yield first, last, rows.filter(whole.holds(shape)).collect(engine="streaming")
            return
        lows = starts_of(wholes, pl.DataFrame(schema=rows.select(shape.identity).collect_schema()))
        with spilled(shape, self._slices(), lows) as spill:
            for number, (first, last) in enumerate(passes):
                yield first, last, spill.part(number)

    def _slices(self) -> Iterator[pl.DataFrame]:
        """The tail's rows in order of ``_seq``, identified, as many at a time as memory holds."""
        step = self._work_rows()
        for after in range(self.tail.after, self.upto, step):
            rows = self.log.scan(after, min(after + step, self.upto)).filter(pl.col("_op") != "t")
            yield self.shape.identified(rows).collect(engine="streaming")

    def _read_times(self, wholes: Sequence[Span]) -> float:
        """How often each byte of the tail would be read if every span were read for itself."""
        column = self.shape.identity[0]
        files = overlapping(self.log.table.files(), "_seq", self.tail.after + 1, self.tail.upto)
        if column in self.shape.inexact or any(column not in file.low for file in files):
            return float(len(wholes))
        read = sum(
            file.size
            for whole in wholes
            for file in overlapping(files, column, whole.low and whole.low[0], whole.high and whole.high[0])
        )
        return read / max(1, sum(file.size for file in files))

    def _merged(self, unit: _Unit, part: pl.DataFrame, reach: pl.LazyFrame | None) -> pl.DataFrame:
        """The rows of one span after the tail, in key order."""
        shape, tail, rows = self.shape, self.tail, part.lazy()
        found = index(
            shape,
            rows,
            row_count=part.height,
            after=tail.after,
            has_base=self.cut is None,
            reach=reach,
        )
        found, sources = tail.settle(found)
        base = None
        if unit.files:
            base = self.current.scan(shape, unit.files)
            if not unit.whole:
                inside = shape.identified(base).filter(unit.span.holds(shape))
                base = inside.select(shape.names(meta=True))
        roots = base
        if found.columns and (reach is not None or sources is not None) and self.cut is None:
            roots = self.current.scan(shape, self.files)
        frame = combine(
            shape, found, rows, base, meta=True, sources=reach if sources is None else sources, roots=roots
        )
        return ordered(shape, frame.collect(engine="streaming"))

    def _work_rows(self) -> int:
        """How many tail rows may be in memory at one time."""
        head = self.log.scan(self.tail.after, min(self.tail.after + 2_000, self.upto)).collect()
        width = max(16, int(head.estimated_size()) // max(1, head.height))
        return max(1, min(_FILE_ROWS, self.work_bytes // width))

    def _units(self, work_rows: int) -> list[_Unit]:
        """Spans in key order: those of the files, split where too much of the tail falls into one."""
        shape, tail = self.shape, self.tail
        step = max(1, tail.row_count // _SAMPLE_ROWS)
        sampled = tail.rows().filter((pl.col("_seq") % step == 0) & (pl.col("_op") != "t"))
        sample = shape.identified(sampled).select(shape.identity).collect(engine="streaming")
        files = [] if self.cut is not None else [file for file in self.files if file.row_count]
        if not files:
            pieces = -(-sample.height * step // work_rows)
            lows = split(shape, sample, pieces)
            count = sample.height * step // max(1, lows.height)
            return [_Unit(span, (), True, False, count) for span in spans(lows)]
        if not self.current.clustered:
            return self._units_of_any(files, sample, step, work_rows)
        starts = self.current.starts(shape, files)
        numbers = route(shape, sample, starts)
        units: list[_Unit] = []
        for place, span in enumerate(spans(starts.select(shape.identity))):
            file = files[starts["_file"][place]]
            inside = sample.filter(numbers == place)
            count = inside.height * step
            pieces = -(-count // work_rows)
            if pieces <= 1:
                units.append(_Unit(span, (file,), True, False, count))
                continue
            inner = spans(split(shape, inside, pieces))
            for number, one in enumerate(inner):
                low = span.low if number == 0 else one.low
                high = span.high if number == len(inner) - 1 else one.high
                units.append(_Unit(Span(low, high), (file,), False, True, count // len(inner)))
        return units

    def _units_of_any(
        self, files: Sequence[FileRef], sample: pl.DataFrame, step: int, work_rows: int
    ) -> list[_Unit]:
        """Spans over files in no known order (another program rewrote them): all of them are sorted anew."""
        shape = self.shape
        total = sum(file.row_count for file in files)
        nth = max(1, total // _SAMPLE_ROWS)
        keys = shape.identified(self.current.scan(shape, files)).select(shape.identity)
        base = keys.with_row_index("_row").filter(pl.col("_row") % nth == 0).drop("_row")
        both = pl.concat([base.collect(engine="streaming"), sample])
        pieces = max(-(-total // self.file_rows), -(-sample.height * step // work_rows))
        found = spans(split(shape, both, pieces))
        count = sample.height * step // len(found)
        return [_Unit(span, tuple(files), False, True, count) for span in found]

    # -- without a key ------------------------------------------------------------------------------

    def _run_counted(self) -> None:
        """Count every row anew, a share of all rows at a time (equal rows are in the same share)."""
        shape, tail = self.shape, self.tail
        files = [] if self.cut is not None else self.files
        steps = count_steps(shape, tail.rows().filter(pl.col("_op") != "t"))
        if files:
            base = self.current.scan(shape, files).with_columns(_sign=pl.lit(1), _step=pl.lit(-1, pl.Int64))
            steps.insert(0, base)
        shares = -(-(sum(file.row_count for file in files) + tail.row_count) // self.file_rows)
        every = pl.concat(steps)
        if shares > 1:
            every = every.with_columns(_share=pl.struct(*shape.columns.names()).hash(seed=0) % shares)
        for share in range(shares):
            mine = every.filter(pl.col("_share") == share).drop("_share") if shares > 1 else every
            self._put(counted(shape, mine).collect(engine="streaming"))
        self.removed.extend(file for file in files if file not in self.removed)

    # -- writing --------------------------------------------------------------------------------------

    def _put(self, rows: pl.DataFrame) -> None:
        """Take rows that follow those taken before in key order; write whole files of them."""
        if self._pending is not None and len(self._pending):
            rows = pl.concat([self._pending, rows])
        self._pending = rows
        size = self._size(rows)
        if rows.height >= size // 2:
            self._flush()

    def _flush(self) -> None:
        """Write what was taken, as files of about equal size."""
        rows, self._pending = self._pending, None
        if rows is None or rows.is_empty():
            return
        pieces = -(-rows.height // self._size(rows))
        for number in range(pieces):
            low, high = number * rows.height // pieces, (number + 1) * rows.height // pieces
            self.added.extend(self.current.table.write(self._arrow(rows[low:high])))

    def _size(self, rows: pl.DataFrame) -> int:
        """How many rows like these make a file."""
        width = max(1, int(rows.estimated_size()) // max(1, rows.height))
        return max(1, min(self.file_rows, _FILE_BYTES // width))

    def _arrow(self, rows: pl.DataFrame) -> pa.Table:
        names = [name for name in self.current.table.schema.names if name in rows.columns]
        schema = pa.schema([self.current.table.schema.field(name) for name in names])
        return rows.select(names).to_arrow().cast(schema)


def _passes(units: Sequence[_Unit], work_rows: int) -> Iterator[tuple[int, int]]:
    """Neighbouring units (first, last exclusive) whose tail rows fit into memory together."""
    first, count = 0, 0
    for number, unit in enumerate(units):
        if number > first and count + unit.count > work_rows:
            yield first, number
            first, count = number, 0
        count += unit.count
    yield first, len(units)
