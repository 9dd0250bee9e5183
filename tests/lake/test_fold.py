"""Folding: a plain sequential model against the vectorised images, the folded table, and reads."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh_assets.lake.current import Current
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


KEYS = st.integers(0, 3)
PARTS = st.sampled_from([MOMENT, Exact("infinity"), Exact("-infinity")])
TEXTS = st.none() | st.text("abc", max_size=2)
DUES = st.none() | st.just(MOMENT) | st.sampled_from([Exact("infinity"), Exact("0044-03-15 00:00:00+00 BC")])
TAGS = st.none() | st.lists(st.none() | st.text("xy", max_size=1), max_size=2) | st.just(Exact("[0:0]={z}"))
MASKS = st.lists(st.sampled_from(MASKABLE), unique=True, max_size=3).map(tuple)


@st.composite
def histories(draw: st.DrawFn, key: tuple[str, ...], *, truncates: bool = True) -> list[Change]:
    """A log of a table with this key: upserts, masks, deletes, key moves, truncates, rejections."""

    def keys() -> Row:
        return {"k": draw(KEYS)} | ({"part": draw(PARTS)} if "part" in key else {})

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
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_images_equal_the_sequential_model(name: str, data: st.DataObject) -> None:
    shape = SHAPES[name]
    changes = data.draw(histories(shape.key))
    log = pl.from_arrow(table(changes)).lazy()
    same(seen(fold_images(shape, log, None, -1)), expected(changes, shape.key))


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=300, deadline=None)
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
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
