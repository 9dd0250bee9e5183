"""A failing gate never lets a bad row reach current and never loses it: random histories, a plain model.

Changes of every kind (partial ones, key moves, removals, truncates), folds, redelivered batches,
shifts that die at commit points, rules that are changed, and replays run through the real landing,
log, fold and fresh read. ``MESH_TEST_EXAMPLES=500`` runs more of them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh_assets import failpoint
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.read import rows_at
from mesh_assets.quality.rule import Rule
from tests.quarantine.reading import as_rows, at_source, current, fold_all, quarantined
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

Row = tuple[int | None, str | None]
"""The number and the large text."""

EXAMPLES = int(os.environ.get("MESH_TEST_EXAMPLES", "25"))


@dataclass(frozen=True)
class Rules:
    """The rules of one contract: no number below the limit, no text that begins with the letter."""

    limit: int | None = None
    letter: str | None = None

    def fails(self, row: Row) -> bool:
        """Whether a whole row fails."""
        number, text = row
        low = self.limit is not None and number is not None and number < self.limit
        return low or (self.letter is not None and text is not None and text.startswith(self.letter))

    def made(self) -> list[Rule]:
        """The same for the gate."""
        rules = []
        if self.limit is not None:
            rules.append(at_least(self.limit))
        if self.letter is not None:
            rules.append(not_beginning(self.letter))
        return rules


@dataclass
class Model:
    """One table as it must be; entries hold a key's rejected images since its last accepted one."""

    rules: Rules
    source: dict[Any, Row] = field(default_factory=dict)
    current: dict[Any, Row] = field(default_factory=dict)
    entries: dict[Any, list[Row]] = field(default_factory=dict)

    def put(self, key: Any, row: Row, joins: bool) -> None:
        """An image arrives; it ``joins`` an open entry if it is partial and there is one."""
        self.source[key] = row
        if joins or self.rules.fails(row):
            self.entries.setdefault(key, []).append(row)
        else:
            self.current[key] = row
            self.entries.pop(key, None)

    def remove(self, key: Any) -> None:
        """A removal is always accepted."""
        for rows in (self.source, self.current, self.entries):
            rows.pop(key, None)

    def change(self, act: Act) -> list[Change]:
        """Do one act; what the stream says of it."""
        key, other, held = act.key, act.other, self.source.get(act.key)
        open_, masked = key in self.entries, act.masked
        if act.kind == "truncate":
            for rows in (self.source, self.current, self.entries):
                rows.clear()
            return [Change("t")]
        if act.kind == "put" and held is None:
            self.put(key, (act.number, act.text), joins=False)
            return [Change("c", key, act.number, act.text)]
        if held is None:
            return []
        row = (act.number, held[1] if masked else act.text)
        if act.kind == "put":
            self.put(key, row, joins=masked and open_)
            return [Change("u", key, *row, masked=masked)]
        self.remove(key)
        gone = Change("d", key)
        if act.kind == "drop" or other in self.source or other == key:
            return [gone]
        self.put(other, row, joins=masked and open_)
        return [gone, Change("c", other, *row, masked=masked, moved=key)]

    def replay(self) -> None:
        """Today's rules on what is quarantined, in the order in which it came."""
        for key, rows in list(self.entries.items()):
            del self.entries[key]
            passed = False
            for row in rows:
                if not self.rules.fails(row):
                    self.current[key] = row
                    self.entries.pop(key, None)
                    passed = True
                else:
                    self.entries.setdefault(key, []).append(row)
            assert passed or self.entries[key] == rows


# -- what happens -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Act:
    """One statement at the source; ``masked`` leaves the large text as it is."""

    kind: str
    key: Any
    other: Any
    number: int | None
    text: str | None
    masked: bool


@dataclass(frozen=True)
class Step:
    """``transact``, ``again`` (the last batch is delivered once more), ``fold``, ``rules`` or ``replay``.

    A shift that dies does so at the point; the next one begins where it stood.
    """

    kind: str
    acts: tuple[Act, ...] = ()
    rules: Rules = Rules()
    dies_at: str = ""


KEYS = {
    BIGINT: [1, 2, 3, 4],
    TIMESTAMPTZ: [FOREVER, NEVER, MOMENT, MOMENT + timedelta(days=1)],
}
_rules = st.builds(Rules, limit=st.sampled_from([None, -5, 0, 3]), letter=st.sampled_from([None, "x", "y"]))


def _steps(key_type: int) -> st.SearchStrategy[Step]:
    keys = st.sampled_from(KEYS[key_type])
    act = st.builds(
        Act,
        kind=st.sampled_from(["put"] * 10 + ["move"] * 4 + ["drop"] * 3 + ["truncate"]),
        key=keys,
        other=keys,
        number=st.one_of(st.none(), st.integers(-9, 9)),
        text=st.sampled_from([None, "x", "y", "z", "xx"]),
        masked=st.booleans(),
    )
    return st.builds(
        Step,
        kind=st.sampled_from(["transact"] * 6 + ["again", "fold", "rules", "rules", "replay", "replay"]),
        acts=st.lists(act, min_size=1, max_size=6).map(tuple),
        rules=_rules,
        dies_at=st.sampled_from(["", "", "file.written", "replay.before", "replay.after"]),
    )


class Crash(Exception):
    """Ends a shift wherever it is."""


@contextmanager
def dying(point: str) -> Iterator[None]:
    """Raise :class:`Crash` at a failpoint."""

    def reach(name: str) -> None:
        if name == point:
            raise Crash(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failpoint, "reach", reach)
        yield


@dataclass
class Example:
    """The table beside its model, and what current was after each step."""

    place: Place
    model: Model
    past: list[tuple[int, dict[Any, Row]]] = field(default_factory=list)
    delivered: set[tuple[int, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.landing = self.place.landing(self.model.rules.made())
        self.last = self.place.next_frame([])

    def run(self, step: Step) -> None:
        """One step; after a crash a new shift does the rest."""
        if step.kind == "transact":
            changes = [change for act in step.acts for change in self.model.change(act)]
            self.last = self.place.next_frame(changes)
            self.delivered |= {(self.place.lsn, ordinal) for ordinal in range(len(changes))}
            self._do(step.dies_at, lambda: self.landing.land(self.place.shape, self.last, MOMENT))
        elif step.kind == "again":
            assert self.landing.land(self.place.shape, self.last, MOMENT) is None
        elif step.kind == "fold":
            fold_all(self.place)
        elif step.kind == "rules":
            self.model.rules = step.rules
            self.landing = self.place.landing(step.rules.made())
        else:
            self.model.replay()
            self._do(step.dies_at, lambda: list(self.landing.replay(MOMENT)))
        self.check()

    def _do(self, dies_at: str, work: Any) -> None:
        try:
            with dying(dies_at):
                work()
        except Crash:
            self.landing = self.place.landing(self.model.rules.made())
            work()

    def check(self) -> None:
        """The lake is as the model says."""
        assert current(self.place) == self.model.current
        assert quarantined(self.place) == {key: rows[-1] for key, rows in self.model.entries.items()}
        guard = self.landing.guard
        assert guard.entries is None or len(guard.entries) == len(self.model.entries)
        self.past.append((self.landing.log.seq, dict(self.model.current)))

    def check_past(self) -> None:
        """Nothing is lost, the source's rows are known, and the past reads as it was."""
        assert at_source(self.place) == self.model.source
        log = ChangeLog.open(self.place.target.changes_uri)
        rows = log.scan(columns=["_seq", "_position", "_ordinal"]).collect().sort("_seq")
        assert rows["_seq"].to_list() == list(range(rows.height))
        assert set(rows.select("_position", "_ordinal").iter_rows()) == self.delivered
        columns = ["k", "n", "big", "_exact"]
        for seq, expected in self.past[:: max(1, len(self.past) // 4)]:
            held = rows_at(log, self.place.target.current_uri, seq, columns=columns)
            assert as_rows(held.collect()) == expected, f"as of {seq}"


@pytest.mark.parametrize("key_type", [BIGINT, TIMESTAMPTZ], ids=["integer key", "key with exact texts"])
@settings(max_examples=EXAMPLES, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_bad_row_reaches_current_and_none_is_lost(key_type: int, data: st.DataObject) -> None:
    rules = data.draw(_rules, "rules")
    steps: Sequence[Step] = data.draw(st.lists(_steps(key_type), min_size=3, max_size=14), "steps")
    with tempfile.TemporaryDirectory() as folder:
        example = Example(Place(Path(folder), relation(key_type)), Model(rules))
        for step in steps:
            example.run(step)
        example.check_past()
