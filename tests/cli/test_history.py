"""Rows before and after, rebuilt from what change logs hold."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pyarrow as pa

from mesh_assets.history import key_history
from mesh_assets.lake.log import log_schema

ROW = pa.schema(
    [("id", pa.int64()), ("name", pa.string()), ("price", pa.decimal128(8, 2)), ("seen", pa.date32())]
)
MOMENT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def change(op: str, seq: int, **values: Any) -> dict[str, Any]:
    """One log row; ``values`` are row columns and change columns."""
    base = {"_op": op, "_seq": seq, "_position": 100 + seq, "_ordinal": 0, "_xid": 7}
    return {**base, "_committed_at": MOMENT, "_captured_at": MOMENT, **values}


def history(*changes: dict[str, Any]) -> list[Any]:
    """The history of log rows."""
    schema = log_schema(ROW)
    rows = [{name: one.get(name) for name in schema.names} for one in changes]
    frame = pl.from_arrow(pa.Table.from_pylist(rows, schema=schema))
    assert isinstance(frame, pl.DataFrame)
    return key_history(frame)


def row(name: str | None, price: str = "1.50") -> dict[str, Any]:
    """The row with key 1."""
    return {"id": 1, "name": name, "price": Decimal(price), "seen": None}


def test_an_old_row_is_taken_from_the_change_before() -> None:
    first, second = history(change("c", 0, **row("a")), change("u", 1, **row(None)))
    assert (first.before, first.after) == (None, row("a"))
    assert (second.before, second.after) == (row("a"), row(None))
    assert second.changed == ("name",)


def test_an_unchanged_large_value_is_taken_from_the_change_before() -> None:
    large = {**row(None, "2.00"), "_unchanged": ["name"]}
    _, second, third = history(
        change("c", 0, **row("a")), change("u", 1, **large), change("u", 2, **row("b", "2.00"))
    )
    assert second.after == row("a", "2.00")
    assert second.changed == ("price",)
    assert third.changed == ("name",)


def test_an_unchanged_value_that_was_never_seen_is_left_out() -> None:
    (only,) = history(change("u", 5, **{**row(None), "_unchanged": ["name"]}))
    assert "name" not in only.after


def test_a_whole_old_row_from_the_source_is_believed() -> None:
    (only,) = history(change("u", 5, **row("b"), _before=row(None)))
    assert only.before == row(None)
    assert only.changed == ("name",)


def test_a_delete_shows_the_row_that_was() -> None:
    key = {"id": 1, "name": None, "price": None, "seen": None}
    _, gone, back = history(
        change("r", 0, **row("a")), change("d", 1, id=1, _before=key), change("c", 2, **row("b"))
    )
    assert (gone.before, gone.after) == (row("a"), None)
    assert gone.changed == ("id", "name", "price", "seen")
    assert (back.before, back.after) == (None, row("b"))
    (alone,) = history(change("d", 1, id=1, _before=key))
    assert alone.before == {"id": 1}


def test_a_key_that_moves_away() -> None:
    key = {"id": 1, "name": None, "price": None, "seen": None}
    _, gone, moved, again = history(
        change("c", 0, **row("a")),
        change("d", 1, id=1, _before=key),
        change("c", 2, **{**row("a"), "id": 2}, _before=key),
        change("c", 3, **row("new")),
    )
    assert gone.name == "delete"
    assert moved.name == "key moved"
    assert moved.before == row("a")
    assert moved.changed == ("id",)
    assert again.before is None


def test_a_key_that_comes_from_another() -> None:
    old = {"id": 9, "name": None, "price": None, "seen": None}
    moved, updated = history(change("c", 2, **row("a"), _before=old), change("u", 3, **row("b")))
    assert (moved.moved, moved.before, moved.after) == (True, {"id": 9}, row("a"))
    assert updated.before == row("a")


def test_a_truncate_ends_the_row_and_is_nothing_without_one() -> None:
    found = history(change("t", 0), change("c", 1, **row("a")), change("t", 2), change("t", 3))
    assert [one.op for one in found] == ["c", "t"]
    assert (found[1].before, found[1].after) == (row("a"), None)


def test_exact_texts_stand_for_values() -> None:
    (first, second) = history(
        change("c", 0, **row("a"), _exact=[("seen", "infinity")]),
        change("u", 1, **row("a"), _exact=[("seen", "-infinity")]),
    )
    assert first.after["seen"] == "infinity"
    assert second.changed == ("seen",)
    assert second.before["seen"] == "infinity"


def test_a_rejected_change_says_by_what() -> None:
    (only,) = history(change("c", 0, **row("a"), _rejected_by=["amount_is_plausible"]))
    assert only.rejected_by == ("amount_is_plausible",)
