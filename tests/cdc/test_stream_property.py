"""Any stream, cut anywhere, gives the same changes; any garbage gives an error and no crash."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh_assets.cdc.decode import Decoder
from mesh_assets.cdc.type import PostgresType
from mesh_assets.errors import MeshError
from tests.cdc import pgoutput
from tests.cdc.pgoutput import Cell, ColumnSpec, Toast

TABLES = {
    1: ("plain", "d"),
    2: ("whole", "f"),
    3: ("keyless", "n"),
}
COLUMNS: list[ColumnSpec] = [
    ("id", 20, -1, True),
    ("name", 25, -1, False),
    ("flag", 16, -1, False),
    ("amount", 1700, 786438, False),
]

Row = tuple[str, str | None, str | None, str | None]
Change = tuple[Any, ...]

ids = st.integers(-5, 5).map(str)
rows = st.tuples(
    ids,
    st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12),
    st.none() | st.sampled_from("tf"),
    st.none() | st.decimals(-99999, 99999, places=2).map(str) | st.just("NaN"),
)


@dataclass
class Model:
    """Writes a stream and knows, in plain Python, what must come out of it."""

    messages: list[bytes] = field(default_factory=list)
    expected: dict[tuple[int, int], list[Change]] = field(default_factory=dict)
    width: dict[int, int] = field(default_factory=dict)
    edition: dict[int, int] = field(default_factory=dict)
    lsn: int = 0
    ordinal: int = 0

    def begin(self) -> None:
        self.lsn += 100
        self.ordinal = 0
        self.messages.append(pgoutput.begin(self.lsn, pgoutput.EPOCH + self.lsn, self.lsn))

    def commit(self) -> None:
        self.messages.append(pgoutput.commit(self.lsn, self.lsn + 8, pgoutput.EPOCH + self.lsn))

    def announce(self, oid: int, width: int) -> None:
        name, identity = TABLES[oid]
        columns = [(one, type_, typmod, key or identity == "f") for one, type_, typmod, key in COLUMNS]
        if identity == "n":
            columns = [(one, type_, typmod, False) for one, type_, typmod, _ in COLUMNS]
        self.messages.append(pgoutput.relation(oid, "s", name, identity, columns[:width]))
        if self.width.get(oid) != width:
            self.width[oid] = width
            self.edition[oid] = self.edition.get(oid, 0) + 1

    def _expect(self, oid: int, op: str, row: Row | None, before: Row | None, unchanged: list[str]) -> None:
        width = self.width[oid]
        image = None if row is None else row[:width]
        old = None if before is None else before[:width]
        self.expected.setdefault((oid, self.edition[oid]), []).append(
            (op, self.lsn, self.ordinal, image, old, unchanged or None)
        )
        self.ordinal += 1

    def change(self, oid: int, kind: str, new: Row, old: Row, leave_out: bool) -> None:
        if oid not in self.width:
            self.announce(oid, len(COLUMNS))
        width = self.width[oid]
        identity = TABLES[oid][1]
        key_only = (old[0], None, None, None)
        tag, before = (b"O", old) if identity == "f" else (b"K", key_only)
        if kind == "truncate":
            oids = sorted(self.width)
            self.messages.append(pgoutput.truncate(oids))
            for one in oids:
                self._expect(one, "t", None, None, [])
        elif kind == "insert" or identity == "n":
            self.messages.append(pgoutput.insert(oid, new[:width]))
            self._expect(oid, "c", new, None, [])
        elif kind == "delete":
            self.messages.append(pgoutput.delete(oid, before[:width], tag))
            self._expect(oid, "d", before, before, [])
        else:
            self._update(oid, new, old, before, tag, leave_out)

    def _update(self, oid: int, new: Row, old: Row, before: Row, tag: bytes, leave_out: bool) -> None:
        width = self.width[oid]
        full = TABLES[oid][1] == "f"
        sent: list[Cell] = list(new)
        unchanged = []
        if leave_out:
            sent[1] = Toast.UNCHANGED
            if full and old[1] is not None:
                new = (new[0], old[1], new[2], new[3])
            else:
                new = (new[0], None, new[2], new[3])
                unchanged = ["name"]
        moved = new[0] != old[0]
        given_before = full or moved
        self.messages.append(
            pgoutput.update(oid, sent[:width], before[:width] if given_before else None, tag)
        )
        if moved:
            self._expect(oid, "d", before, before, [])
        self._expect(oid, "c" if moved else "u", new, before if given_before else None, unchanged)


def texts(values: dict[str, Any] | None, exact: dict[str, str], prefix: str) -> tuple[str | None, ...] | None:
    """The row's values as PostgreSQL's text again."""
    if values is None:
        return None
    found: list[str | None] = []
    for name, value in values.items():
        if value is None:
            found.append(exact.get(prefix + name))
        elif isinstance(value, bool):
            found.append("t" if value else "f")
        else:
            found.append(str(value))
    return tuple(found)


changes = st.tuples(
    st.sampled_from([1, 1, 2, 2, 3]),
    st.sampled_from(["insert", "insert", "update", "update", "delete", "truncate"]),
    rows,
    rows,
    st.booleans(),
)
noises = st.sampled_from(["announce", "narrow", "message", "origin", "nothing", "nothing", "nothing"])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    transactions=st.lists(st.lists(st.tuples(changes, noises), max_size=8), max_size=6),
    cuts=st.lists(st.tuples(st.integers(1, 400), st.booleans()), min_size=1, max_size=40),
    flush=st.integers(2, 9),
)
def test_changes_do_not_depend_on_the_cuts(
    transactions: list[list[tuple[Any, str]]], cuts: list[tuple[int, bool]], flush: int
) -> None:
    model = Model()
    for transaction in transactions:
        model.begin()
        for change, noise in transaction:
            if noise in ("announce", "narrow"):
                width = model.width.get(change[0], len(COLUMNS))
                model.announce(change[0], width if noise == "announce" else 2 + width % 3)
            elif noise == "message":
                model.messages.append(pgoutput.logical_message(model.lsn))
            elif noise == "origin":
                model.messages.append(pgoutput.origin())
            model.change(*change)
        model.commit()

    stream = pgoutput.stream(model.messages)
    decoder = Decoder(PostgresType, key_of=lambda *_: ("id",), max_rows_per_flush=flush)
    buffer = np.frombuffer(stream, np.uint8).copy()
    found: dict[int, list[Change]] = {}
    position = (0, -1)
    start = end = number = 0
    while end < len(buffer):
        size, take = cuts[number % len(cuts)]
        number += 1
        end = min(end + size, len(buffer))
        start = decoder.decode(buffer, start, end)
        if not take and end < len(buffer):
            continue
        batch = decoder.take()
        if batch.position != (0, -1):
            assert batch.position > position
            position = batch.position
        count = 0
        for relation, frame in batch.segments:
            frame.validate(full=True)
            count += frame.num_rows
            for row in frame.to_pylist():
                exact = dict(row["_exact"] or ())
                image = texts({one: row[one] for one in relation.row_schema.names}, exact, "")
                before = texts(row["_before"], exact, "_before.")
                found.setdefault(relation.oid, []).append(
                    (
                        row["_op"],
                        row["_position"],
                        row["_ordinal"],
                        None if row["_op"] == "t" else image,
                        before,
                        row["_unchanged"],
                    )
                )
            operations = frame["_op"].to_pylist()
            assert operations[-1] != "d" or not _half_a_move(model, relation.oid, found[relation.oid][-1])
        assert batch.row_count == count
    assert start == len(buffer)

    expected: dict[int, list[Change]] = {}
    for (oid, _), changed in model.expected.items():
        expected.setdefault(oid, []).extend(changed)
    for listed in expected.values():
        listed.sort(key=lambda change: change[1:3])
    assert found == expected


def _half_a_move(model: Model, oid: int, change: Change) -> bool:
    """Whether the change is a delete whose insert must follow it in the same batch."""
    _, lsn, ordinal, _, before, _ = change
    return any(
        other[:3] == ("c", lsn, ordinal + 1) and other[4] == before and before is not None
        for (one, _), listed in model.expected.items()
        if one == oid
        for other in listed
    )


VALID = pgoutput.stream(
    [
        pgoutput.begin(100),
        pgoutput.relation(1, "s", "plain", "f", COLUMNS),
        pgoutput.insert(1, ["1", "näme", "t", "1.50"]),
        pgoutput.update(1, ["2", Toast.UNCHANGED, None, "NaN"], ["1", "b", "f", "1.00"], b"O"),
        pgoutput.delete(1, ["2", "b", "f", "1.00"], b"O"),
        pgoutput.truncate([1]),
        pgoutput.logical_message(3),
        pgoutput.commit(100, 110),
    ]
) + pgoutput.keepalive(200)


@settings(max_examples=400, deadline=None)
@given(
    hits=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, len(VALID)),
    parked=st.booleans(),
)
def test_garbage_is_an_error_and_never_a_crash(hits: list[tuple[int, int]], cut: int, parked: bool) -> None:
    data = np.frombuffer(VALID, np.uint8)[:cut].copy() if cut else np.frombuffer(VALID, np.uint8).copy()
    for place, value in hits:
        if place < len(data):
            data[place] = value
    decoder = Decoder(PostgresType, key_of=lambda *_: ("id",), max_rows_per_flush=4)
    if parked:
        decoder.parked.add(1)
    with contextlib.suppress(MeshError):
        decoder.decode(data, 0, len(data))
    try:
        batch = decoder.take()
    except MeshError:
        return
    for _, frame in batch.segments:
        frame.validate(full=True)
    for oid, raw in batch.parked:
        raw.validate(full=True)
        again = Decoder(PostgresType)
        with contextlib.suppress(MeshError):
            again.replay(oid, raw)
            again.take()


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    decoder = Decoder(PostgresType)
    with contextlib.suppress(MeshError):
        assert 0 <= decoder.decode(np.frombuffer(data, np.uint8), 0, len(data)) <= len(data)
