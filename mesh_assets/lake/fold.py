"""One fold: the log's tail goes into the current table, file by file, in bounded memory.

The files of a current table hold disjoint spans of the key space, each sorted. A fold routes the
tail's keys to those spans and rewrites just the files it meets: a file and its part of the tail are
merged piece by piece in key order, and what is merged leaves memory row group by row group. All of
it becomes visible in one Delta commit. A tail too large for memory is put aside by span first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl
import pyarrow as pa

from mesh_assets import failpoint
from mesh_assets.errors import AsOfRefused, CommitConflict, Fenced
from mesh_assets.lake.base import NOTHING, Base, Piece
from mesh_assets.lake.current import CLUSTERED, FOLDED, HELD, Current, digest
from mesh_assets.lake.file import FileRef
from mesh_assets.lake.image import combine, index
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.multiset import count_steps, counted
from mesh_assets.lake.shape import META_COLUMNS
from mesh_assets.lake.span import Span, ordered, route, spans, split, starts_of
from mesh_assets.lake.spill import spilled
from mesh_assets.lake.survey import SAMPLE_ROWS, survey
from mesh_assets.lake.table import FileDraft
from mesh_assets.lake.tail import Tail, shape_of

_WORK_BYTES = 4 << 20
"""Bytes of tail rows, and of base rows, that are in memory at one time (a few copies of them are)."""
_FILE_BYTES = 40 << 20
"""Bytes of one file's rows in memory: a fold rewrites whole files, so that they must not be large."""
_FILE_ROWS = 500_000
_MOST_ROWS = 65_536
_FEW_ROWS = 2_000
_CHANGE_COLUMNS = ("_op", "_unchanged", "_rejected_by")
"""What a fold has to know of a change besides its image."""


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
    after = max(current.refresh(), log.after)
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
        except BaseException:
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
    """A span of the key space, with the part of the tail that falls into it.

    Attributes:
        files: where its base rows lie: one sorted file, or any number if :attr:`loose`.
        loose: the files are in no known order, and hold rows of other spans.
        forced: to be written even if no change falls into it, because its files are rewritten anyway.
        count: about how many tail rows fall into it.
    """

    span: Span
    files: tuple[FileRef, ...]
    loose: bool
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
    _draft: FileDraft | None = None

    def run(self) -> None:
        """Write the files that take the place of those that the tail touches."""
        shape = self.shape = shape_of(self.log)
        self.current.table.add_columns([*self.log.row_schema])
        self.folded = self.current.folded
        self.files = self.current.table.files()
        after = max(self.folded, self.log.after)
        tail = Tail(self.log, shape, after, self.upto, self.current.held)
        self.seen = survey(tail)
        self.cut = self.seen.cut
        unheld = tail.held > tail.after and not self.seen.rejected
        self.held = self.upto + 1 if unheld else tail.still_held(self.cut)
        self.tail = Tail(self.log, shape, after if self.cut is None else self.cut, self.upto, tail.held)
        if self.cut is not None:
            self.removed.extend(self.files)
        if shape.key:
            self._run_keyed()
        else:
            self._run_counted()
        self._close()

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
        """Remove what was written and no commit refers to."""
        if self._draft is not None:
            self._draft.abandon()
        self.current.refresh()
        landed = {file.path for file in self.current.table.files()}
        self.current.table.discard(file for file in self.added if file.path not in landed)
        self.added.clear()
        self.removed.clear()

    # -- with a key -------------------------------------------------------------------------------

    def _run_keyed(self) -> None:
        shape, tail, masked = self.shape, self.tail, self.seen.masked
        self.columns = [*shape.columns, *META_COLUMNS, *(["_before"] if masked else []), *_CHANGE_COLUMNS]
        self.work_rows = self._work_rows()
        reach = self._reach() if masked else None
        # What is searched again for every piece must not be searched for many.
        searched = reach is not None or (masked and tail.held <= tail.after)
        self.piece_rows = self.file_rows if searched else self.work_rows
        units = self._units()
        previous = -2
        with self._pieces(units) as pieces:
            for number, mine in self._parts(units):
                unit = units[number]
                if mine.is_empty() and not unit.forced:
                    continue
                if number != previous + 1:
                    self._close()
                previous = number
                self._merge(mine, pieces(number), reach)
                self.removed.extend(file for file in unit.files if file not in self.removed)

    def _work_rows(self) -> int:
        """How many tail rows may be in memory at one time."""
        upto = min(self.tail.after + _FEW_ROWS, self.upto)
        batches = self.log.batches(self.tail.after, upto, self.columns, row_count=_FEW_ROWS)
        few = next(batches, None)
        if few is None:
            return _MOST_ROWS
        width = max(16, int(few.estimated_size()) // max(1, few.height))
        return max(1, min(_MOST_ROWS, self.work_bytes // width))

    def _reach(self) -> pl.LazyFrame | None:
        """The whole tail, if values that come with a key move may stand in another span."""
        rows = self.tail.rows().filter(pl.col("_op") != "t")
        moves = (pl.col("_op") == "c") & pl.col("_before").is_not_null() & pl.col("_unchanged").is_not_null()
        count = rows.filter(moves).select(pl.len()).collect(engine="streaming").item()
        return rows if count else None

    def _parts(self, units: Sequence[_Unit]) -> Iterator[tuple[int, pl.DataFrame]]:
        """Each unit's tail rows; in memory are those of as many neighbouring units as it holds."""
        shape = self.shape
        passes = list(_passes(units, self.work_rows))
        if len(passes) == 1:
            yield from self._routed(units, 0, pl.concat([self._nothing(), *self._slices()]))
            return
        wholes = [Span(units[first].span.low, units[last - 1].span.high) for first, last in passes]
        lows = starts_of(wholes, self._nothing().select(shape.identity))
        with spilled(shape, self._slices(), lows) as spill:
            for number, (first, last) in enumerate(passes):
                yield from self._routed(units[first:last], first, spill.part(number))

    def _routed(
        self, units: Sequence[_Unit], first: int, found: pl.DataFrame
    ) -> Iterator[tuple[int, pl.DataFrame]]:
        starts = starts_of([unit.span for unit in units], found.select(self.shape.identity))
        numbers = route(self.shape, found, starts)
        for place in range(len(units)):
            yield first + place, found.filter(numbers == place)

    def _slices(self) -> Iterator[pl.DataFrame]:
        """The tail's rows in order of ``_seq``, identified, as many at a time as memory holds."""
        yield self._nothing()
        for rows in self.log.batches(self.tail.after, self.upto, self.columns, row_count=self.work_rows):
            yield self.shape.identified(rows.lazy().filter(pl.col("_op") != "t")).collect()

    def _nothing(self) -> pl.DataFrame:
        """No rows of the tail, identified."""
        schema = pa.schema([self.log.table.schema.field(name) for name in self.columns])
        nothing = pl.from_arrow(schema.empty_table())
        assert isinstance(nothing, pl.DataFrame)
        return self.shape.identified(nothing.lazy()).collect()

    @contextmanager
    def _pieces(self, units: Sequence[_Unit]) -> Iterator[Callable[[int], Iterator[Piece]]]:
        """Gives the base rows of each unit, to be asked for in order; in memory is a piece at a time."""
        shape, base = self.shape, Base(self.current, self.shape, self.piece_rows)

        def of(number: int) -> Iterator[Piece]:
            unit = units[number]
            return base.pieces(unit.files[0], unit.span.high) if unit.files else iter([NOTHING])

        if not any(unit.loose for unit in units):
            yield of
            return
        batches = self.current.batches(shape, self.files, row_count=self.piece_rows)
        identified = (shape.identified(batch.lazy()).collect() for batch in batches)
        lows = starts_of([unit.span for unit in units], self._nothing().select(shape.identity))
        with spilled(shape, identified, lows) as spill:

            def sorted_anew(number: int) -> Iterator[Piece]:
                rows = spill.part(number).select(shape.names(meta=True))
                yield Piece(ordered(shape, rows), None, 0)

            yield sorted_anew

    def _merge(self, mine: pl.DataFrame, pieces: Iterator[Piece], reach: pl.LazyFrame | None) -> None:
        """Bring base rows and tail rows of one unit together, and take the result."""
        for piece in pieces:
            part, mine = self._below(mine, piece.bound)
            rows = piece.rows
            if part.height:
                rows = self._merged(part, rows, reach)
            if rows is not None:
                self._put(rows, piece.left + self._growth(mine))
        if self._draft is not None and self._draft.row_count >= self.size // 2:
            self._close()

    def _below(self, rows: pl.DataFrame, bound: tuple[Any, ...] | None) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The rows below an identity, and the others."""
        if bound is None or rows.is_empty():
            return rows, rows.clear()
        below = rows.select(Span(None, bound).holds(self.shape)).to_series()
        return rows.filter(below), rows.filter(~below)

    def _growth(self, rows: pl.DataFrame) -> int:
        """About how many rows more there will be after these changes."""
        if not self.files or self.cut is not None:
            return rows.height
        return int((rows["_op"] == "c").sum()) - int((rows["_op"] == "d").sum())

    def _merged(
        self, part: pl.DataFrame, base: pl.DataFrame | None, reach: pl.LazyFrame | None
    ) -> pl.DataFrame:
        """The rows of one piece after the tail, in key order."""
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
        lazy = None if base is None else base.lazy()
        roots = lazy
        if found.columns and (reach is not None or sources is not None) and self.cut is None:
            roots = self.current.scan(shape, self.files)
        frame = combine(
            shape, found, rows, lazy, meta=True, sources=reach if sources is None else sources, roots=roots
        )
        return ordered(shape, frame.collect(engine="streaming"))

    def _units(self) -> list[_Unit]:
        """Spans in key order: those of the files, split where too much of the tail falls into one."""
        shape, sample, step = self.shape, self.seen.sample, self.seen.step
        files = [] if self.cut is not None else [file for file in self.files if file.row_count]
        if not files:
            pieces = -(-sample.height * step // self.work_rows)
            lows = split(shape, sample, pieces)
            count = sample.height * step // max(1, lows.height)
            return [_Unit(span, (), False, False, count) for span in spans(lows)]
        if not self.current.clustered:
            return self._units_of_any(files)
        starts = self.current.starts(shape, files)
        numbers = route(shape, sample, starts)
        units: list[_Unit] = []
        for place, span in enumerate(spans(starts.select(shape.identity))):
            file = files[starts["_file"][place]]
            inside = sample.filter(numbers == place)
            count = inside.height * step
            pieces = -(-count // self.work_rows)
            if pieces <= 1:
                units.append(_Unit(span, (file,), False, False, count))
                continue
            inner = spans(split(shape, inside, pieces))
            for number, one in enumerate(inner):
                low = span.low if number == 0 else one.low
                high = span.high if number == len(inner) - 1 else one.high
                units.append(_Unit(Span(low, high), (file,), False, True, count // len(inner)))
        return units

    def _units_of_any(self, files: Sequence[FileRef]) -> list[_Unit]:
        """Spans over files in no known order (another program rewrote them): all of them are sorted anew."""
        shape, sample, step = self.shape, self.seen.sample, self.seen.step
        total = sum(file.row_count for file in files)
        nth = max(1, total // SAMPLE_ROWS)
        keys = [sample]
        keys += [
            shape.identified(batch.gather_every(nth).lazy()).select(shape.identity).collect()
            for batch in self.current.batches(shape, files, row_count=_MOST_ROWS, narrow=True)
        ]
        pieces = max(-(-total // self.piece_rows), -(-sample.height * step // self.work_rows))
        found = spans(split(shape, pl.concat(keys), pieces))
        count = sample.height * step // len(found)
        return [_Unit(span, tuple(files), True, True, count) for span in found]

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
            self._put(counted(shape, mine).collect(engine="streaming"), 0)
        self.removed.extend(file for file in files if file not in self.removed)

    # -- writing --------------------------------------------------------------------------------------

    def _put(self, rows: pl.DataFrame, ahead: int) -> None:
        """Take rows that follow those taken before in key order, about ``ahead`` more of which will follow.

        They go into files of about equal size.
        """
        while rows.height:
            if self._draft is None:
                self._draft = self.current.table.draft()
            width = max(1, int(rows.estimated_size()) // rows.height)
            self.size = max(1, min(self.file_rows, _FILE_BYTES // width))
            total = self._draft.row_count + rows.height + max(0, ahead)
            target = -(-total // -(-total // self.size))
            room = max(0, target - self._draft.row_count)
            self._draft.write(self._arrow(rows[:room]))
            rows = rows[room:]
            if total > target and self._draft.row_count >= target:
                self._close()

    def _close(self) -> None:
        """Complete the file that is being written."""
        draft, self._draft = self._draft, None
        if draft is not None:
            self.added.append(draft.finish())

    def _arrow(self, rows: pl.DataFrame) -> pa.Table:
        names = self.current.table.schema.names
        missing = [pl.lit(None).alias(name) for name in names if name not in rows.columns]
        return rows.with_columns(missing).select(names).to_arrow().cast(self.current.table.schema)


def _passes(units: Sequence[_Unit], work_rows: int) -> Iterator[tuple[int, int]]:
    """Neighbouring units (first, last exclusive) whose tail rows fit into memory together."""
    first, count = 0, 0
    for number, unit in enumerate(units):
        if number > first and count + unit.count > work_rows:
            yield first, number
            first, count = number, 0
        count += unit.count
    yield first, len(units)
