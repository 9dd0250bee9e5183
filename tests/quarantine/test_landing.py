"""The gate in a landing: what fails is kept, shown, and out of current until it is right or released."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh_assets.ingest.landing import Landing
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.quarantine import open_rows
from tests.quarantine.reading import at_source, current, fold_all, quarantined
from tests.quarantine.table import (
    BIGINT,
    FOREVER,
    MOMENT,
    NEVER,
    TIMESTAMPTZ,
    Change,
    Place,
    at_least,
    not_beginning,
    relation,
)

NOT_NEGATIVE = at_least(0)
NO_X = not_beginning("x")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, relation(BIGINT))


def land(place: Place, landing: Landing, *changes: Change) -> None:
    """One transaction."""
    landing.land(place.shape, place.next_frame(changes), MOMENT)


def replay(landing: Landing) -> tuple[int, int]:
    """How many entries were released and how many stay."""
    released = kept = 0
    for release, _ in landing.replay(MOMENT):
        released, kept = released + release.released, kept + release.kept
    return released, kept


def test_a_failing_change_stays_in_the_log_and_out_of_current(place: Place) -> None:
    landing = place.landing([NOT_NEGATIVE])
    land(place, landing, Change("c", 1, 5, "a"), Change("c", 2, -1, "b"))
    land(place, landing, Change("u", 1, -7, "c"))
    assert current(place) == {1: (5, "a")}
    assert quarantined(place) == {1: (-7, "c"), 2: (-1, "b")}
    assert at_source(place) == quarantined(place)
    fold_all(place)
    assert current(place) == {1: (5, "a")}
    log = ChangeLog.open(place.target.changes_uri)
    marks = log.scan().sort("_seq").collect()["_rejected_by"].to_list()
    assert marks == [None, ["things.at_least_0"], ["things.at_least_0"]]
    assert landing.rejected_count == 2


def test_a_valid_change_or_a_removal_closes_an_entry(place: Place) -> None:
    landing = place.landing([NOT_NEGATIVE])
    land(place, landing, *(Change("c", key, -1, "a") for key in (1, 2, 3)))
    land(place, landing, Change("u", 1, 4, "b"), Change("d", 2))
    assert current(place) == {1: (4, "b")}
    assert list(quarantined(place)) == [3]
    land(place, landing, Change("t"))
    assert quarantined(place) == {}
    assert landing.guard.open_count == 0
    assert replay(place.landing([])) == (0, 0)


def test_a_partial_change_joins_the_open_entry_of_its_key(place: Place) -> None:
    landing = place.landing([NOT_NEGATIVE])
    land(place, landing, Change("c", 1, 5, "large"), Change("c", 2, 5, "large too"))
    land(place, landing, Change("u", 1, -1, "larger"))
    land(place, landing, Change("u", 1, 6, masked=True), Change("u", 2, 6, masked=True))
    assert current(place) == {1: (5, "large"), 2: (6, "large too")}
    assert quarantined(place) == {1: (6, "larger")}
    # A landing that begins anew knows the entry from the log.
    again = place.landing([NOT_NEGATIVE])
    land(place, again, Change("u", 1, 7, masked=True))
    assert quarantined(place) == {1: (7, "larger")}
    assert replay(again) == (1, 0)
    assert current(place) == {1: (7, "larger"), 2: (6, "large too")}


def test_a_moved_key_takes_its_entry_along_if_the_change_is_partial(place: Place) -> None:
    landing = place.landing([NOT_NEGATIVE])
    land(place, landing, Change("c", 1, 5, "a"), Change("c", 2, 5, "b"))
    land(place, landing, Change("u", 1, -1, "aa"), Change("u", 2, -1, "bb"))
    land(
        place,
        landing,
        Change("d", 1),
        Change("c", 11, 6, masked=True, moved=1),
        Change("d", 2),
        Change("c", 12, 7, "bbb", moved=2),
    )
    assert current(place) == {12: (7, "bbb")}
    assert quarantined(place) == {11: (6, "aa")}
    land(place, landing, Change("d", 11), Change("c", 21, 8, masked=True, moved=11))
    assert quarantined(place) == {21: (8, "aa")}
    assert replay(place.landing([NOT_NEGATIVE])) == (1, 0)
    assert current(place) == {12: (7, "bbb"), 21: (8, "aa")}


def test_a_rule_about_a_value_that_a_change_leaves_out_takes_the_value_before(place: Place) -> None:
    free = place.landing([])
    land(place, free, Change("c", 1, 5, "x"), Change("c", 2, 5, "y"), Change("c", 3, 5, "x"))
    fold_all(place)
    land(place, free, Change("u", 3, 5, "z"))
    landing = place.landing([NO_X])
    land(
        place,
        landing,
        *(Change("u", key, 6, masked=True) for key in (1, 2, 3)),
        Change("d", 3),
        Change("c", 4, 7, masked=True, moved=3),
    )
    assert current(place) == {1: (5, "x"), 2: (6, "y"), 4: (7, "z")}
    assert quarantined(place) == {1: (6, "x")}


def test_a_replay_after_a_fix_releases_with_the_original_position(place: Place) -> None:
    landing = place.landing([NOT_NEGATIVE])
    land(place, landing, Change("c", 1, -1, "a"), Change("c", 2, -50, "b"))
    land(place, landing, Change("u", 3, 1, "c"))
    position = landing.position
    milder = place.landing([at_least(-10)])
    assert replay(milder) == (1, 1)
    assert current(place) == {1: (-1, "a"), 3: (1, "c")}
    assert quarantined(place) == {2: (-50, "b")}
    log = ChangeLog.open(place.target.changes_uri)
    rows = log.scan().sort("_seq").collect()
    assert rows.height == 4
    first, again = rows.row(0, named=True), rows.row(3, named=True)
    names = ["k", "n", "big", "_op", "_position", "_ordinal", "_xid", "_committed_at"]
    assert [again[name] for name in names] == [first[name] for name in names]
    assert first["_rejected_by"] == ["things.at_least_0"]
    assert again["_rejected_by"] is None
    assert milder.position == position
    assert replay(milder) == (0, 1)
    assert ChangeLog.open(place.target.changes_uri).seq == log.seq


def test_a_replay_never_overrides_what_came_later(place: Place) -> None:
    landing = place.landing([NOT_NEGATIVE])
    land(place, landing, *(Change("c", key, -1, "a") for key in (1, 2, 3)))
    land(place, landing, Change("u", 1, 9, "later"), Change("d", 2))
    assert replay(place.landing([])) == (1, 0)
    assert current(place) == {1: (9, "later"), 3: (-1, "a")}


def test_of_several_quarantined_images_the_last_that_passes_becomes_current(place: Place) -> None:
    landing = place.landing([NOT_NEGATIVE])
    land(place, landing, Change("c", 1, 1, "good"))
    land(place, landing, Change("u", 1, -2, "a"))
    land(place, landing, Change("u", 1, -50, "b"))
    milder = place.landing([at_least(-10)])
    assert replay(milder) == (0, 1)
    assert current(place) == {1: (-2, "a")}
    assert quarantined(place) == {1: (-50, "b")}
    # What is not whole still continues the last image, not the last accepted one.
    land(place, milder, Change("u", 1, 3, masked=True))
    assert quarantined(place) == {1: (3, "b")}
    assert replay(milder) == (1, 0)
    assert current(place) == {1: (3, "b")}


def test_keys_that_only_a_text_tells_apart_have_entries_of_their_own(tmp_path: Path) -> None:
    place = Place(tmp_path, relation(TIMESTAMPTZ))
    landing = place.landing([NOT_NEGATIVE])
    land(place, landing, Change("c", FOREVER, -1, "a"), Change("c", MOMENT, 1, "b"))
    land(place, landing, Change("u", FOREVER, 2, masked=True))
    assert list(current(place)) == [MOMENT]
    assert quarantined(place) == {FOREVER: (2, "a")}
    assert replay(place.landing([NOT_NEGATIVE])) == (1, 0)
    assert current(place) == {MOMENT: (1, "b"), FOREVER: (2, "a")}


def test_a_value_left_out_is_never_that_of_another_key_without_a_value(tmp_path: Path) -> None:
    place = Place(tmp_path, relation(TIMESTAMPTZ))
    landing = place.landing([NO_X])
    land(place, landing, Change("c", NEVER, 1, "y"))
    land(place, landing, Change("c", FOREVER, 1, "x"), Change("u", NEVER, 2, masked=True))
    assert current(place) == {NEVER: (2, "y")}
    assert quarantined(place) == {FOREVER: (1, "x")}


def test_a_log_in_which_nothing_was_rejected_says_so_without_being_read(place: Place) -> None:
    landing = place.landing([])
    land(place, landing, Change("c", 1, -1, "a"))
    assert landing.guard.entries is None
    log = ChangeLog.open(place.target.changes_uri)
    assert log.transaction("rejected") is None
    assert log.transaction("quarantine") is None
    assert open_rows(log).is_empty()
