"""What changed between two cuts: net, accepted, with whole rows before and after."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh_assets.lake.between import changes_between
from mesh_assets.lake.current import Current
from mesh_assets.lake.fold import fold
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.view import Reader

SCHEMA = pa.schema([("a", pa.int64()), ("b", pa.string()), ("value", pa.string())])
KEY = ("a", "b")
_AT = datetime(2026, 1, 1, tzinfo=UTC)


class Book:
    """A log, and beside it the rows after every change."""

    def __init__(self, folder: Path) -> None:
        self.current_uri = str(folder / "current")
        self.log = ChangeLog.create(str(folder / "changes"), SCHEMA, KEY)
        self.rows: dict[tuple[int, str], str | None] = {}
        self.states: list[dict[tuple[int, str], str | None]] = []

    def change(
        self, op: str, key: tuple[int, str], value: str | None = None, *, rejected: bool = False
    ) -> None:
        """Append one change."""
        seq = self.log.seq + 1
        named = op != "t"
        frame = pa.table(
            {
                "a": pa.array([key[0] if named else None], pa.int64()),
                "b": pa.array([key[1] if named else None], pa.string()),
                "value": pa.array([value], pa.string()),
                "_op": [op],
                "_position": pa.array([seq], pa.int64()),
                "_ordinal": pa.array([0], pa.int64()),
                "_xid": pa.array([1], pa.int64()),
                "_committed_at": pa.array([_AT], pa.timestamp("us", "UTC")),
            }
        )
        verdict = pa.array([["rule"]], pa.list_(pa.string())) if rejected else None
        self.log.append(
            frame, source="app", position=(seq, 0), captured_at=_AT, schema_version=1, rejected_by=verdict
        )
        if op == "t":
            self.rows = {}
        elif op == "d":
            self.rows = {own: kept for own, kept in self.rows.items() if own != key}
        elif not rejected:
            self.rows = {**self.rows, key: value}
        self.states.append(self.rows)

    def at(self, seq: int) -> dict[tuple[int, str], str | None]:
        """The rows at a cut."""
        return self.states[seq] if seq >= 0 else {}

    def fold(self) -> None:
        """Fold all of it."""
        if self.log.seq >= 0:
            fold(self.log, Current.open_or_create(self.current_uri, SCHEMA, KEY), self.log.seq)


@pytest.fixture
def book(tmp_path: Path) -> Book:
    """An empty one."""
    return Book(tmp_path)


def images(rows: pl.LazyFrame) -> dict[tuple[int, str], str | None]:
    found = rows.collect()
    assert found.columns == SCHEMA.names
    assert not found.select(KEY).is_duplicated().any()
    return {(row["a"], row["b"]): row["value"] for row in found.iter_rows(named=True)}


def hold(book: Book, low: int, high: int) -> None:
    before, after = book.at(low), book.at(high)
    found = changes_between(book.log, book.current_uri, low, high)
    assert images(found.before) == {key: row for key, row in before.items() if after.get(key, "-") != row}
    assert images(found.after) == {key: row for key, row in after.items() if before.get(key, "-") != row}


def test_changes_are_net_and_whole(book: Book) -> None:
    book.change("c", (1, "x"), "one")
    book.change("c", (2, "x"), "two")
    low = book.log.seq
    book.change("u", (1, "x"), "other")
    book.change("u", (1, "x"), "one")
    book.change("u", (2, "x"), "rejected", rejected=True)
    book.change("d", (2, "x"))
    book.change("c", (3, "y"), None)
    found = changes_between(book.log, book.current_uri, low, book.log.seq)
    assert images(found.before) == {(2, "x"): "two"}
    assert images(found.after) == {(3, "y"): None}
    assert not found.truncated
    assert sorted(found.keys.rows()) == [(1, "x"), (2, "x"), (3, "y")]


def test_a_truncate_is_told(book: Book) -> None:
    book.change("c", (1, "x"), "one")
    book.change("c", (2, "x"), "two")
    low = book.log.seq
    book.change("t", (0, ""))
    book.change("c", (2, "x"), "two")
    found = changes_between(book.log, book.current_uri, low, book.log.seq)
    assert found.truncated
    assert images(found.before) == {(1, "x"): "one"}
    assert images(found.after) == {}


_KEYS = st.tuples(st.integers(0, 3), st.sampled_from(["x", "y"]))
_STEPS = st.one_of(
    st.tuples(st.sampled_from(["c", "d", "rejected"]), _KEYS, st.sampled_from(["1", "2", None])),
    st.tuples(st.sampled_from(["t", "fold", "look"]), st.just((0, "x")), st.none()),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(_STEPS, min_size=1, max_size=15), st.data())
def test_whatever_was_folded_meanwhile(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[str, tuple[int, str], str | None]],
    data: st.DataObject,
) -> None:
    book = Book(tmp_path_factory.mktemp("book"))
    reader: Callable[[int], Any] | None = None
    views = []
    for op, key, value in steps:
        if op == "fold":
            book.fold()
        elif op == "look":
            if book.log.seq >= 0:
                reader = reader or Reader(book.log.table.uri, book.current_uri).view
                views.append((book.log.seq, reader(book.log.seq)))
        else:
            book.change("c" if op == "rejected" else op, key, value, rejected=op == "rejected")
    if book.log.seq < 0:
        return
    low = data.draw(st.integers(-1, book.log.seq))
    high = data.draw(st.integers(low, book.log.seq))
    hold(book, low, high)
    # What was opened before still reads as it was, whole and in part.
    for seq, view in views:
        assert images(view.rows()) == book.at(seq)
        some = pl.DataFrame({"a": [1, 3]})
        assert images(view.holding(some)) == {k: v for k, v in book.at(seq).items() if k[0] in (1, 3)}
        pair = pl.DataFrame({"a": [1, 2], "b": ["x", "y"]})
        wanted = {k: v for k, v in book.at(seq).items() if k in ((1, "x"), (2, "y"))}
        assert images(view.holding(pair)) == wanted
        by_value = pl.DataFrame({"value": ["1"]})
        assert images(view.holding(by_value)) == {k: v for k, v in book.at(seq).items() if v == "1"}


def test_a_key_outside_of_its_columns_type_is_not_lost(tmp_path: Path) -> None:
    schema = pa.schema([("valid_from", pa.date32()), ("value", pa.string())])
    log = ChangeLog.create(str(tmp_path / "changes"), schema, ("valid_from",))
    for number, value in enumerate(["old", "new"]):
        rows = pa.table(
            {
                "valid_from": pa.array([None], pa.date32()),
                "value": [value],
                "_op": ["c" if number == 0 else "u"],
                "_position": pa.array([number], pa.int64()),
                "_ordinal": pa.array([0], pa.int64()),
                "_xid": pa.array([1], pa.int64()),
                "_committed_at": pa.array([_AT], pa.timestamp("us", "UTC")),
                "_exact": pa.array([[("valid_from", "infinity")]], pa.map_(pa.string(), pa.string())),
            }
        )
        log.append(rows, source="app", position=(number, 0), captured_at=_AT, schema_version=1)
    found = changes_between(log, str(tmp_path / "current"), 0, 1)
    assert (found.inexact, found.whole, found.truncated, found.empty) == (True, True, False, False)
    assert found.before.select("value").collect()["value"].to_list() == ["old"]
    assert found.after.select("value").collect()["value"].to_list() == ["new"]
    assert found.images(["value"])["value"].sort().to_list() == ["new", "old"]
