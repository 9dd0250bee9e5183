"""When a source needs a shift, decided from its head and from what was seen before."""

from __future__ import annotations

from mesh_assets.errors import SourceUnreachable
from mesh_assets.orchestration.head import Head
from mesh_assets.orchestration.sensor import Cursor, Seen, abandoned, due

NOW = 1_000_000.0


def head(
    changes: int = 10,
    wal: int = 1000,
    confirmed: int | None = 1000,
    retained: int = 0,
    status: str = "reserved",
) -> Head:
    return Head(changes, wal, confirmed, retained, status, active=False)


def seen(changes: int = 10, lsn: int = 900) -> Seen:
    return Seen(changes, lsn, NOW)


def test_an_idle_source_needs_none_however_much_wal_others_write() -> None:
    assert due(head(wal=5000, confirmed=1000), seen(), NOW) is None


def test_new_changes_need_one_until_the_slot_has_confirmed_them() -> None:
    memory = seen()
    assert due(head(changes=11, wal=2000, confirmed=1000), memory, NOW) == "it has new changes"
    assert due(head(changes=11, wal=2500, confirmed=1999), memory, NOW) == "it has new changes"
    assert due(head(changes=11, wal=9000, confirmed=2000), memory, NOW) is None


def test_a_source_without_slot_was_never_captured() -> None:
    assert due(head(confirmed=None), seen(), NOW) == "it was never captured"


def test_a_lost_slot_and_much_wal_and_a_long_silence_need_one() -> None:
    assert due(head(status="lost"), seen(), NOW) == "its replication slot was lost"
    assert due(head(retained=100 << 20), seen(), NOW) == "it retains 100 MiB of WAL"
    assert due(head(), seen(), NOW + 601) == "no shift for 10 minutes"


def test_other_contracts_need_one_though_nothing_changes_at_the_source() -> None:
    memory = seen()
    assert due(head(), memory, NOW, "raised") == "its contracts have changed"
    memory.contracts = "raised"
    assert due(head(), memory, NOW, "raised") is None


def test_without_a_memory_one_short_shift_is_started() -> None:
    assert due(head(), Seen(shift_at=NOW), NOW) is None
    assert due(head(wal=1001), Seen(shift_at=NOW), NOW) == "it has new changes"


def test_a_source_without_products_is_named_while_a_slot_of_it_is_left() -> None:
    assert abandoned("app", head(confirmed=None, status="")) == ""
    text = abandoned("app", head(retained=300 << 20))
    assert "no shift captures it" in text
    assert "300 MiB of WAL" in text
    assert "did not answer" in abandoned("app", SourceUnreachable("it did not answer"))


def test_a_cursor_survives_and_a_strange_one_is_forgotten() -> None:
    cursor = Cursor({"app": seen()}, {"a/b": 1.0}, "x")
    assert Cursor.load(cursor.dump()) == cursor
    for text in (None, "", "[]", "{", '{"sources": {"app": {"strange": 1}}}'):
        assert Cursor.load(text) == Cursor()
