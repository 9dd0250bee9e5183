"""Folding: a plain sequential model against the vectorised images, the folded table, and reads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh_assets.errors import AsOfRefused
from mesh_assets.lake.current import Current, FoldCase, FoldPolicy, should_fold
from mesh_assets.lake.fold import fold
from mesh_assets.lake.image import combine, index
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.read import pin
from mesh_assets.lake.shape import Shape, polars_schema
from mesh_assets.lake.tail import shape_of

MOMENT = datetime(2026, 3, 1, tzinfo=UTC)
EXACT = pa.map_(pa.string(), pa.string())
ROW = pa.schema(
    [
        ("k", pa.int64()),
        ("part", pa.timestamp("us", "UTC")),
        ("n", pa.int32()),
        ("big", pa.string()),
        ("due", pa.timestamp("us", "UTC")),
        ("tags", pa.list_(pa.string())),
    ]
)
MASKABLE = ("big", "due", "tags")
Row = dict[str, Any]
"""A row's values; one that does not fit its column is an :class:`Exact`."""


@dataclass(frozen=True)
class Exact:
    """A value known by its text only."""

    text: str


@dataclass(frozen=True)
class Change:
    """One log row of the model."""

    op: str
    row: Row = field(default_factory=dict)
    unchanged: tuple[str, ...] = ()
    before: Row | None = None
    rejected: bool = False


def table(changes: list[Change], first: int = 0) -> pa.Table:
    """The changes as the change frame with ``_seq`` and ``_rejected_by``."""
    rows = []
    for number, change in enumerate(changes, first):
        exact = {name: v.text for name, v in change.row.items() if isinstance(v, Exact)}
        for name, value in (change.before or {}).items():
            if isinstance(value, Exact):
                exact[f"_before.{name}"] = value.text
        fit = {name: None if isinstance(v, Exact) else v for name, v in change.row.items()}
        before = change.before and {n: None if isinstance(v, Exact) else v for n, v in change.before.items()}
        rows.append(
            {name: None if name in change.unchanged else fit.get(name) for name in ROW.names}
            | {
                "_seq": number,
                "_op": change.op,
                "_position": 1000 + number // 3,
                "_ordinal": number % 3,
                "_xid": 7,
                "_committed_at": MOMENT + timedelta(seconds=number),
                "_unchanged": list(change.unchanged) or None,
                "_before": before,
                "_exact": list(exact.items()) or None,
                "_rejected_by": ["rule"] if change.rejected else None,
            }
        )
    return pa.Table.from_pylist(rows, schema=LOG)


LOG = pa.schema(
    [
        *ROW,
        ("_seq", pa.int64()),
        ("_op", pa.string()),
        ("_position", pa.int64()),
        ("_ordinal", pa.int64()),
        ("_xid", pa.int64()),
        ("_committed_at", pa.timestamp("us", "UTC")),
        ("_unchanged", pa.list_(pa.string())),
        ("_before", pa.struct(list(ROW))),
        ("_exact", EXACT),
        ("_rejected_by", pa.list_(pa.string())),
    ]
)


def expected(changes: list[Change], key: tuple[str, ...], upto: int | None = None) -> list[Row]:
    """What a reader must see after the changes up to ``_seq`` ``upto``, one by one."""
    logged: dict[tuple[Any, ...], Row] = {}
    gone: dict[tuple[Any, ...], Row] = {}
    accepted: dict[tuple[Any, ...], Row] = {}

    def of(row: Row) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in key)

    for number, change in enumerate(changes if upto is None else changes[: upto + 1]):
        if change.op == "t":
            logged, gone, accepted = {}, {}, {}
            continue
        at = of(change.row)
        if change.op == "d":
            gone[at] = logged.pop(at, {})
            accepted.pop(at, None)
            continue
        previous = gone.get(of(change.before), {}) if change.before else logged.get(at, {})
        row = {n: previous.get(n) if n in change.unchanged else change.row.get(n) for n in ROW.names}
        logged[at] = row
        if not change.rejected:
            accepted[at] = row | {"_seq": number}
    return list(accepted.values())


def seen(frame: pl.DataFrame) -> list[Row]:
    """The rows of a read with meta columns in the model's form."""
    out = []
    for row in frame.to_dicts():
        exact = row["_exact"]
        assert exact != {}, "an empty map must be null"
        values = {name: row[name] for name in ROW.names}
        for name, text in (exact or {}).items():
            assert values[name] is None
            values[name] = Exact(text)
        assert row["_position"] == 1000 + row["_seq"] // 3
        assert row["_ordinal"] == row["_seq"] % 3
        assert row["_committed_at"] == MOMENT + timedelta(seconds=row["_seq"])
        out.append(values | {"_seq": row["_seq"]})
    return out


def same(left: list[Row], right: list[Row]) -> None:
    def counted(rows: list[Row]) -> Counter[str]:
        return Counter(str([(n, str(row.get(n))) for n in (*ROW.names, "_seq")]) for row in rows)

    assert counted(left) == counted(right)


def boundaries(changes: list[Change]) -> list[int]:
    """Cuts at which a fold may stop: never between the two rows of a key move (one transaction)."""
    moved = {n for n, change in enumerate(changes) if change.op == "c" and change.before is not None}
    return [n for n in range(len(changes)) if n + 1 not in moved]


PARTS = st.sampled_from([MOMENT, Exact("infinity"), Exact("-infinity")])
TEXTS = st.none() | st.text("abc", max_size=2)
DUES = st.none() | st.just(MOMENT) | st.sampled_from([Exact("infinity"), Exact("0044-03-15 00:00:00+00 BC")])
TAGS = st.none() | st.lists(st.none() | st.text("xy", max_size=1), max_size=2) | st.just(Exact("[0:0]={z}"))
MASKS = st.lists(st.sampled_from(MASKABLE), unique=True, max_size=3).map(tuple)


@st.composite
def histories(draw: st.DrawFn, key: tuple[str, ...], *, truncates: bool = True) -> list[Change]:
    """A log of a table with this key: upserts, masks, deletes, key moves, truncates, rejections."""

    last = draw(st.integers(0, 3))

    def keys() -> Row:
        return {"k": draw(st.integers(0, last))} | ({"part": draw(PARTS)} if "part" in key else {})

    def values(at: Row, mask: tuple[str, ...]) -> Row:
        row = {"part": None, "n": draw(st.integers(-2, 2)), "big": draw(TEXTS)} | at
        row |= {"due": draw(DUES), "tags": draw(TAGS)}
        return {name: value for name, value in row.items() if name not in mask}

    changes: list[Change] = []
    kinds = ["c", "u", "u", "u", "d", "m", "m"] + (["t"] if truncates else [])
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=14)):
        rejected = draw(st.integers(0, 3)) == 0
        if kind == "t":
            changes.append(Change("t"))
        elif kind == "d":
            at = keys()
            changes.append(Change("d", at, before=at))
        elif kind == "m":
            old, new, mask = keys(), keys(), draw(MASKS)
            if old == new:
                continue
            changes.append(Change("d", old, before=old))
            changes.append(Change("c", values(new, mask), mask, before=old, rejected=rejected))
        else:
            mask = draw(MASKS) if kind == "u" else ()
            changes.append(Change(kind, values(keys(), mask), mask, rejected=rejected))
    return changes


SHAPES = {
    "k": Shape(polars_schema(ROW), ("k",)),
    "k+part": Shape(polars_schema(ROW), ("k", "part")),
}


def fold_images(shape: Shape, log: pl.LazyFrame, base: pl.DataFrame | None, after: int) -> pl.DataFrame:
    """The rows after ``log``'s rows beyond ``after``, given the rows as of ``after``."""
    tail = log.filter(pl.col("_seq") > after)
    found = index(shape, tail, row_count=10, after=after, has_base=base is not None)
    lazy = None if base is None else base.lazy()
    return combine(shape, found, tail, lazy, meta=True).collect()


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_images_equal_the_sequential_model(name: str, data: st.DataObject) -> None:
    shape = SHAPES[name]
    changes = data.draw(histories(shape.key))
    log = pl.from_arrow(table(changes)).lazy()
    same(seen(fold_images(shape, log, None, -1)), expected(changes, shape.key))


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_images_on_a_base_equal_the_sequential_model(name: str, data: st.DataObject) -> None:
    """Without rejections a base is the log's previous image; with them, reading looks further back."""
    shape = SHAPES[name]
    changes = [replace(change, rejected=False) for change in data.draw(histories(shape.key))]
    log = pl.from_arrow(table(changes)).lazy()
    base: pl.DataFrame | None = None
    after = -1
    for cut in data.draw(st.lists(st.sampled_from(boundaries(changes) or [-1]), unique=True).map(sorted)):
        base = fold_images(shape, log.filter(pl.col("_seq") <= cut), base, after)
        same(seen(base), expected(changes, shape.key, cut))
        after = cut


# -- on Delta tables ------------------------------------------------------------------------------

ASSIGNED = ["_seq", "_rejected_by"]


def append(log: ChangeLog, changes: list[Change]) -> None:
    """Append model changes to a real log."""
    frame = table(changes, log.seq + 1)
    log.append(
        frame.drop_columns(ASSIGNED),
        source="app",
        position=(1000 + (log.seq + len(changes)) // 3, (log.seq + len(changes)) % 3),
        captured_at=MOMENT,
        schema_version=1,
        rejected_by=frame["_rejected_by"],
    )


@pytest.mark.parametrize("key", [("k",), ("k", "part")], ids="+".join)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_folds_and_reads_equal_the_sequential_model(
    key: tuple[str, ...], tmp_path: Path, data: st.DataObject
) -> None:
    """Whatever is folded when, with files of any size: every cut reads as the model says."""
    changes = data.draw(histories(key))
    folder = tmp_path / uuid4().hex
    log = ChangeLog.create(str(folder / "changes"), ROW, key)
    current = Current.create(str(folder / "current"), ROW, key)
    ends = boundaries(changes)
    stops = data.draw(st.sets(st.sampled_from(ends), max_size=3)) if ends else set()
    written = 0
    for stop in [*sorted(stops), len(changes) - 1]:
        if written <= stop:
            append(log, changes[written : stop + 1])
            written = stop + 1
        cut = data.draw(st.sampled_from([end for end in ends if end <= stop] or [-1]))
        small = data.draw(st.booleans())
        result = fold(log, current, cut, file_rows=2 if small else 1000, work_bytes=1 if small else 1000)
        assert current.folded == max(cut, result.after_seq)
        same(seen(current.scan(shape_of(log)).collect()), expected(changes, key, current.folded))
        for asked in range(-1, written):
            # Between the two rows of a key move there is no version, so nothing folds or reads there.
            if asked in ends or asked < 0 or asked < current.folded:
                pinned = pin(log, current, asked)
                same(
                    seen(pinned.frame(meta=True).collect()),
                    expected(changes, key, asked) if asked >= 0 else [],
                )
    files = [current.scan(shape_of(log), [file]).collect() for file in current.table.files()]
    assert current.clustered or not current.table.version
    assert sum(file.height for file in files) == current.row_count


def occurrences(changes: list[Change], upto: int) -> Counter[str]:
    """The rows of a table without a key after the changes up to a ``_seq``."""
    held: Counter[str] = Counter()
    for change in changes[: upto + 1]:
        if change.op == "t":
            held.clear()
            continue
        if change.before is not None and held[repr(change.before)]:
            held[repr(change.before)] -= 1
        if change.op != "d" and not change.rejected:
            given = {n: change.before[n] if n in change.unchanged else change.row[n] for n in ROW.names}
            held[repr(given)] += 1
    return +held


@st.composite
def keyless_histories(draw: st.DrawFn) -> list[Change]:
    """A log of a table without a key: every old row is given whole."""

    def values() -> Row:
        exact = draw(st.sampled_from([None, Exact("infinity"), Exact("-infinity")]))
        return {"k": draw(st.integers(0, 1)), "part": None, "n": None, "big": "b", "due": exact, "tags": None}

    changes: list[Change] = []
    for op in draw(st.lists(st.sampled_from("ccccuuudddt"), max_size=12)):
        mask = draw(st.sampled_from([(), ("due",), ("due", "big")])) if op == "u" else ()
        row = {n: v for n, v in values().items() if n not in mask} if op in "cu" else {}
        before = values() if op in "ud" else None
        row = dict(before or {}) if op == "d" else row
        changes.append(Change(op, row, mask, before, rejected=op in "cu" and draw(st.integers(0, 3)) == 0))
    return changes


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=keyless_histories(), stop=st.integers(0, 11), small=st.booleans())
def test_a_table_without_a_key_is_a_multiset(
    tmp_path: Path, changes: list[Change], stop: int, small: bool
) -> None:
    folder = tmp_path / uuid4().hex
    log = ChangeLog.create(str(folder / "changes"), ROW, ())
    current = Current.create(str(folder / "current"), ROW, ())
    if changes:
        append(log, changes)

    def counted(frame: pl.DataFrame) -> Counter[str]:
        return Counter(repr({n: row[n] for n in ROW.names}) for row in seen(frame))

    for cut in (min(stop, log.seq), log.seq):
        fold(log, current, cut, file_rows=2 if small else 1000)
        assert counted(current.scan(shape_of(log)).collect()) == occurrences(changes, cut)
        for asked in range(-1, log.seq + 1):
            rows = pin(log, current, asked).frame(meta=True).collect()
            assert counted(rows) == occurrences(changes, asked)


# -- files ----------------------------------------------------------------------------------------

PLAIN = pa.schema([("k", pa.int64()), ("n", pa.int32())])


def plain_log(folder: Path, keys: list[int], op: str = "r") -> ChangeLog:
    """A log of a plain table with one commit."""
    log = ChangeLog.create(str(folder / "changes"), PLAIN, ("k",))
    put(log, keys, op)
    return log


def put(log: ChangeLog, keys: list[int], op: str = "u") -> None:
    """Append one change per key."""
    count = len(keys)
    columns = {"k": keys, "n": [log.seq] * count, "_op": [op] * count, "_position": [log.seq + 2] * count}
    columns |= {"_ordinal": list(range(count)), "_committed_at": [MOMENT] * count}
    fields = [log.table.schema.field(name) for name in columns]
    frame = pa.table(columns, schema=pa.schema(fields))
    log.append(frame, source="app", position=(log.seq + 2, count), captured_at=MOMENT, schema_version=1)


def spans_of(current: Current, log: ChangeLog) -> list[tuple[int, int]]:
    """First and last key of each file, in key order; checks that each file is sorted."""
    found = []
    for file in current.table.files():
        keys = current.scan(shape_of(log), [file]).collect()["k"]
        assert keys.is_sorted()
        found.append((keys[0], keys[-1]))
    return sorted(found)


def test_files_hold_disjoint_spans_and_a_fold_rewrites_only_what_it_meets(tmp_path: Path) -> None:
    log = plain_log(tmp_path, list(range(0, 2000, 2)))
    current = Current.create(str(tmp_path / "current"), PLAIN, ("k",))
    first = fold(log, current, log.seq, file_rows=100, work_bytes=4_000)
    assert first.row_count == 1000
    spans = spans_of(current, log)
    assert len(spans) >= 10
    assert all(high < low for (_, high), (low, _) in pairwise(spans))

    before = {file.path for file in current.table.files()}
    put(log, [501, 503, 1998, 2001])
    put(log, [500], "d")
    done = fold(log, current, log.seq, file_rows=100)
    assert (done.removed, done.row_count) == (2, 1002)
    assert len(before - {file.path for file in current.table.files()}) == 2
    assert done.touched_bytes < current.byte_count / 4
    spans = spans_of(current, log)
    assert all(high < low for (_, high), (low, _) in pairwise(spans))
    keys = current.scan(shape_of(log)).collect()["k"].sort().to_list()
    assert keys == sorted({*range(0, 2000, 2), 501, 503, 2001} - {500})


def test_a_growing_file_is_split_and_small_neighbours_are_put_together(tmp_path: Path) -> None:
    log = plain_log(tmp_path, list(range(100)))
    current = Current.create(str(tmp_path / "current"), PLAIN, ("k",))
    fold(log, current, log.seq, file_rows=100)
    for start in range(100, 1000, 100):
        put(log, list(range(start, start + 100)), "c")
        fold(log, current, log.seq, file_rows=100)
    assert all(50 <= file.row_count <= 100 for file in current.table.files())
    put(log, [key for key in range(1000) if key % 10], "d")
    fold(log, current, log.seq, file_rows=100)
    assert [file.row_count for file in current.table.files()] == [50, 50]
    put(log, list(range(0, 1000, 10)), "d")
    fold(log, current, log.seq, file_rows=100)
    assert (current.table.files(), current.row_count) == ([], 0)


def test_files_that_another_program_rewrote_are_sorted_anew(tmp_path: Path) -> None:
    log = plain_log(tmp_path, list(range(300)))
    current = Current.create(str(tmp_path / "current"), PLAIN, ("k",))
    fold(log, current, log.seq, file_rows=50)
    files = current.table.files()
    mixed = current.table.read([files[0], files[-1]])
    current.table.rewrite(remove=[files[0], files[-1]], add=mixed, data_change=False)
    assert not current.clustered
    put(log, [1, 299, 400])
    done = fold(log, current, log.seq, file_rows=50)
    assert (done.outcome, done.row_count) == ("folded", 301)
    assert current.clustered
    assert all(high < low for (_, high), (low, _) in pairwise(spans_of(current, log)))
    assert current.scan(shape_of(log)).collect()["k"].n_unique() == 301


def test_the_slower_of_two_folds_is_discarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = plain_log(tmp_path, [1, 2, 3])
    uri = str(tmp_path / "current")
    Current.create(uri, PLAIN, ("k",))
    slow, fast = Current.open(uri), Current.open(uri)
    put(log, [2, 5])

    overtakers = [fast]

    def overtaken(point: str) -> None:
        if point == "fold.written" and overtakers:
            overtakers.clear()
            assert fold(ChangeLog.open(log.table.uri), fast, 2).outcome == "folded"

    monkeypatch.setattr("mesh_assets.failpoint.reach", overtaken)
    done = fold(log, slow, log.seq)
    assert (done.outcome, done.added) == ("discarded", 0)
    assert slow.folded == 2
    files = {path.name for path in (tmp_path / "current").glob("*.parquet")}
    assert files == {file.path for file in slow.table.files()}, "what was written for nothing is gone"
    assert fold(log, slow, log.seq).outcome == "folded"
    assert fold(log, slow, log.seq).outcome == "nothing"
    assert slow.row_count == 4
    with pytest.raises(AsOfRefused, match="cannot be folded up to 99"):
        fold(log, slow, 99)


@pytest.mark.parametrize("point", ["fold.before", "file.written", "fold.written", "fold.after"])
def test_a_killed_fold_is_whole_or_absent(tmp_path: Path, point: str) -> None:
    log = plain_log(tmp_path, list(range(20)))
    uri = str(tmp_path / "current")
    current = Current.create(uri, PLAIN, ("k",))
    fold(log, current, 9, file_rows=5)
    put(log, [3, 30], "u")
    script = (
        "import sys; from mesh_assets.lake.log import ChangeLog; "
        "from mesh_assets.lake.current import Current; from mesh_assets.lake.fold import fold; "
        "log = ChangeLog.open(sys.argv[1]); "
        "fold(log, Current.open(sys.argv[2]), log.seq, file_rows=5)"
    )
    command = [sys.executable, "-c", script, log.table.uri, uri]
    done = subprocess.run(command, env={**os.environ, "MESH_FAILPOINT": point}, check=False)
    assert done.returncode == -signal.SIGKILL
    current.refresh()
    assert current.folded == (log.seq if point == "fold.after" else 9)
    fold(log, current, log.seq, file_rows=5)
    rows = current.scan(shape_of(log)).collect()
    assert sorted(rows["k"].to_list()) == [*range(20), 30]
    assert rows.filter(pl.col("k") == 3)["_seq"].item() == 20


# -- when to fold -----------------------------------------------------------------------------------


def case(**values: Any) -> FoldCase:
    """A large table with a small tail, just folded."""
    usual = FoldCase(
        tail_count=1_000,
        base_count=10_000_000,
        touched_bytes=500_000_000,
        seconds_per_byte=2e-8,
        age_seconds=10.0,
        cpu_seconds=10.0,
    )
    return replace(usual, **values)


def test_a_fold_waits_until_it_pays() -> None:
    assert should_fold(case()) is None
    assert should_fold(case(tail_count=0, age_seconds=1e9, cpu_seconds=1e9)) is None
    assert should_fold(case(tail_count=1_000_000)) == "share"
    assert should_fold(case(age_seconds=3600.0)) == "age"
    assert should_fold(case(cpu_seconds=101.0)) == "budget", "10 s of work within a tenth of the time since"
    assert should_fold(case(cpu_seconds=99.0)) is None
    assert should_fold(case(touched_bytes=1_000_000)) == "budget", "clustered keys touch little"
    assert should_fold(case(base_count=0, touched_bytes=0, tail_count=10)) == "budget"
    assert should_fold(case(base_count=0, touched_bytes=0, age_seconds=0.1)) is None, "let a batch gather"
    assert should_fold(case(), FoldPolicy(share=0.0001, min_count=1)) == "share"


def test_folding_takes_a_tenth_of_the_time_and_less_per_change_the_faster_they_come() -> None:
    """A steady stream of changes into a table of 10 million rows, a second at a time."""
    costs = []
    for changes_per_second in (100, 10_000):
        tail, since, spent, folds = 0, 0.0, 0.0, 0
        for _ in range(3600):
            tail, since = tail + changes_per_second, since + 1.0
            if should_fold(case(tail_count=tail, cpu_seconds=since, age_seconds=since)):
                tail, since, folds = 0, 0.0, folds + 1
                spent += 500_000_000 * 2e-8
        assert 0.05 * 3600 < spent <= 0.11 * 3600
        costs.append(spent / (changes_per_second * 3600))
    assert costs[1] < costs[0] / 50


def test_touched_bytes_follow_the_keys_of_the_tail(tmp_path: Path) -> None:
    log = plain_log(tmp_path, list(range(1000)))
    current = Current.create(str(tmp_path / "current"), PLAIN, ("k",))
    fold(log, current, log.seq, file_rows=100)
    put(log, [999, 1001], "u")
    recent = current.touched_bytes(log, log.seq)
    assert 0 < recent < current.byte_count / 5
    put(log, [0, 1001], "u")
    assert current.touched_bytes(log, log.seq) == current.byte_count
