"""Reading: fresh and as of, all changes of a key, who may see what, what reaches the files."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from deltalake import TableFeatures

from mesh_assets.errors import AsOfRefused, LayoutUnknown, TableMissing, UnknownName
from mesh_assets.lake import read
from mesh_assets.lake.access import Access, Principal
from mesh_assets.lake.current import Current
from mesh_assets.lake.fold import fold
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.read import as_of, changes_of, fresh, open_pinned, rows_at
from mesh_assets.names import CHANGES, CURRENT, Layout, ProductName

NAME = ProductName("sales", "orders")
ME = Principal.local()
MOMENT = datetime(2026, 3, 1, 12, tzinfo=UTC)
ROW = pa.schema([("id", pa.int64()), ("amount", pa.decimal128(14, 2)), ("note", pa.string())])


def change(
    op: str, id_: int | None, amount: str | None = None, note: str | None = None, **more: Any
) -> dict[str, Any]:
    """One change as a row of the change frame."""
    value = None if amount is None else Decimal(amount)
    return {"_op": op, "id": id_, "amount": value, "note": note} | more


class Store:
    """A product's table on disk."""

    def __init__(self, root: Path, row: pa.Schema = ROW, key: tuple[str, ...] = ("id",)) -> None:
        self.layout = Layout(str(root))
        self.log = ChangeLog.create(self.layout.table(NAME, CHANGES, "orders"), row, key)
        self.current_uri = self.layout.table(NAME, CURRENT, "orders")

    def append(self, *changes: dict[str, Any]) -> int:
        """Append changes in one commit; returns the last ``_seq``."""
        first = self.log.seq + 1
        rows = [
            {"_position": 100 + first, "_ordinal": n, "_committed_at": MOMENT} | one
            for n, one in enumerate(changes)
        ]
        rejected = pa.array([row.pop("rejected", None) for row in rows], pa.list_(pa.string()))
        names = {name for row in rows for name in row}
        schema = pa.schema([field for field in self.log.table.schema if field.name in names])
        frame = pa.Table.from_pylist(rows, schema=schema)
        self.log.append(
            frame,
            source="app",
            position=(100 + first, len(rows) - 1),
            captured_at=MOMENT,
            schema_version=1,
            rejected_by=rejected,
        )
        return self.log.seq

    def fold(self, upto: int) -> Current:
        """Fold up to a cut."""
        current = Current.open_or_create(self.current_uri, self.log.row_schema, self.log.key)
        assert fold(self.log, current, upto).outcome == "folded"
        return current

    def rows(self, cut: int | None = None, **options: Any) -> list[tuple[Any, ...]]:
        """A fresh read, sorted."""
        frame = fresh(self.layout, NAME, "orders", cut, principal=ME, **options)
        return sorted(frame.collect().rows(), key=repr)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_nothing_captured_yet_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableMissing):
        fresh(Layout(str(tmp_path)), NAME, "orders", principal=ME)


def test_an_empty_log_reads_as_no_rows(store: Store) -> None:
    frame = fresh(store.layout, NAME, "orders", principal=ME)
    assert frame.collect_schema().names() == ["id", "amount", "note"]
    assert frame.collect().is_empty()


def test_base_and_tail_neither_overlap_nor_miss(store: Store) -> None:
    store.append(*(change("r", n, f"{n}.50") for n in range(5)))
    store.fold(store.log.seq)
    cut = store.append(change("u", 1, "9.99"), change("d", 2), change("c", 7, "7"))
    store.append(change("d", 7))
    expected = [(0, "0.50"), (1, "9.99"), (3, "3.50"), (4, "4.50"), (7, "7.00")]
    assert [(row[0], str(row[1])) for row in store.rows(cut)] == expected
    assert [row[0] for row in store.rows()] == [0, 1, 3, 4]
    store.fold(store.log.seq)
    assert [(row[0], str(row[1])) for row in store.rows(cut)] == expected, (
        "a cut before the fold: the log alone"
    )
    assert [row[0] for row in store.rows()] == [0, 1, 3, 4]


def test_as_of_every_cut_and_no_further(store: Store) -> None:
    for n in range(4):
        store.append(change("c", n, "1"))
    store.fold(2)
    for cut in range(-1, 4):
        frame = as_of(store.layout, NAME, "orders", cut, principal=ME)
        assert sorted(frame.collect()["id"]) == list(range(cut + 1))
    with pytest.raises(AsOfRefused, match="0 to 3, not 4"):
        as_of(store.layout, NAME, "orders", 4, principal=ME)


def test_a_truncate_hides_the_base(store: Store) -> None:
    store.append(*(change("r", n) for n in range(3)))
    store.fold(store.log.seq)
    store.append(change("c", 9), change("t", None), change("c", 5))
    assert [row[0] for row in store.rows()] == [5]
    current = store.fold(store.log.seq)
    assert current.row_count == 1
    assert [row[0] for row in store.rows()] == [5]


def test_a_masked_value_comes_from_base_tail_or_the_moved_key(store: Store) -> None:
    store.append(change("r", 1, "1", "one"), change("r", 2, "2", "two"))
    store.fold(store.log.seq)
    mask = {"_unchanged": ["note"]}
    old = {"id": 2, "amount": None, "note": None}
    store.append(change("u", 1, "10", **mask))
    store.append(change("d", 2, _before=old), change("c", 3, "20", _before=old, **mask))
    store.append(change("u", 3, "21", **mask), change("c", 2, "22", "new two"))
    expected = [(1, "10.00", "one"), (2, "22.00", "new two"), (3, "21.00", "two")]
    assert [(r[0], str(r[1]), r[2]) for r in store.rows()] == expected
    store.fold(store.log.seq)
    assert [(r[0], str(r[1]), r[2]) for r in store.rows()] == expected


def test_a_masked_value_comes_from_a_rejected_image_even_before_the_fold(store: Store) -> None:
    store.append(change("r", 1, "1", "old"), change("r", 2, "1", "kept"))
    store.append(change("u", 1, "-5", "newer", rejected=["amount is positive"]))
    current = store.fold(store.log.seq)
    assert current.held == 2
    assert store.rows()[0][2] == "old", "the last accepted image stays"
    store.append(change("u", 1, "6", _unchanged=["note"]), change("u", 2, "7", _unchanged=["note"]))
    assert [(r[0], r[2]) for r in store.rows()] == [(1, "newer"), (2, "kept")]
    current = store.fold(store.log.seq)
    assert [(r[0], r[2]) for r in store.rows()] == [(1, "newer"), (2, "kept")]
    assert current.held == current.folded + 1, "nothing rejected is open any more"


def test_exact_texts_travel_with_masked_values(store: Store) -> None:
    store.append(change("r", 1, None, "n", _exact=[("amount", "NaN")]), change("r", 2, "2", "n"))
    store.fold(store.log.seq)
    store.append(change("u", 1, None, "m", _unchanged=["amount"]))
    rows = fresh(store.layout, NAME, "orders", principal=ME, meta=True).sort("id").collect()
    assert rows["_exact"].to_list() == [{"amount": "NaN"}, None]
    store.append(change("u", 1, "3", "m"))
    rows = fresh(store.layout, NAME, "orders", principal=ME, meta=True).sort("id").collect()
    assert rows["_exact"].to_list() == [None, None]


def test_columns_added_after_the_fold(store: Store) -> None:
    store.append(change("r", 1, "1"), change("r", 2, "2"))
    store.fold(store.log.seq)
    store.log.add_columns([pa.field("tag", pa.string())])
    store.append(change("u", 2, "2", tag="new"))
    assert [(r[0], r[3]) for r in store.rows()] == [(1, None), (2, "new")]
    store.fold(store.log.seq)
    assert [(r[0], r[3]) for r in store.rows()] == [(1, None), (2, "new")]


def test_predicates_and_columns_reach_the_files(store: Store) -> None:
    store.append(*(change("r", n, "1") for n in range(10)))
    store.fold(store.log.seq)
    store.append(change("u", 3, "2"))
    frame = fresh(store.layout, NAME, "orders", principal=ME).filter(pl.col("id") == 3).select("id", "amount")
    plan = frame.explain()
    assert plan.count("SELECTION:") == 2
    assert "PROJECT 2/8 COLUMNS" in plan
    assert frame.collect().rows() == [(3, Decimal("2.00"))]


def test_a_pinned_read_does_not_move(store: Store) -> None:
    store.append(*(change("r", n, "1") for n in range(3)))
    store.fold(store.log.seq)
    store.append(change("u", 1, "5"))
    pinned = open_pinned(store.log.table.uri, store.current_uri)
    frame = pinned.frame()
    store.append(change("d", 0), change("d", 1))
    store.fold(store.log.seq)
    assert sorted(frame.collect()["id"]) == [0, 1, 2]
    assert sorted(pinned.frame().collect()["id"]) == [0, 1, 2]
    assert len(store.rows()) == 1


def test_changes_of_a_key_with_its_moves(store: Store) -> None:
    before = {"id": 1, "amount": None, "note": None}
    store.append(change("c", 1, "1"), change("c", 2, "2"))
    store.append(change("u", 1, "-1", rejected=["positive"]))
    store.append(change("d", 1, _before=before), change("c", 8, "3", _before=before))
    store.append(change("u", 8, "4"), change("c", 1, "5"))

    def seqs(key: object, cut: int | None = None) -> list[int]:
        found = changes_of(store.layout, NAME, "orders", {"id": key}, principal=ME, cut=cut)
        return found["_seq"].to_list()

    assert seqs(1) == [0, 2, 3, 4, 6]
    assert seqs("1", cut=3) == [0, 2, 3]
    assert seqs(8) == [4, 5]
    assert seqs(77) == []
    with pytest.raises(UnknownName, match="not order"):
        changes_of(store.layout, NAME, "orders", {"order": 1}, principal=ME)
    with pytest.raises(UnknownName, match="'x' is not a value of key column id"):
        seqs("x")


def test_changes_of_a_key_that_its_type_cannot_hold(tmp_path: Path) -> None:
    row = pa.schema([("at", pa.timestamp("us", "UTC")), ("n", pa.int32())])
    store = Store(tmp_path, row, ("at",))
    text = {"_exact": [("at", "infinity")]}
    store.append({"_op": "c", "at": None, "n": 1} | text, {"_op": "c", "at": MOMENT, "n": 2, "_exact": None})
    store.append({"_op": "c", "at": None, "n": 3, "_exact": [("at", "-infinity")]})
    assert len(store.rows()) == 3
    for key, n in (("infinity", 1), ("-infinity", 3), (MOMENT, 2), ("2026-03-01T12:00:00Z", 2)):
        assert changes_of(store.layout, NAME, "orders", {"at": key}, principal=ME)["n"].to_list() == [n]


def test_every_read_asks_for_access(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def restricted(principal: Principal, product: ProductName, table: str) -> Access:
        asked.append((principal, product, table))
        masked = pl.col("note").str.head(1) + "***"
        return Access(columns=frozenset({"id", "note"}), masks={"note": masked})

    monkeypatch.setattr(read, "authorise", restricted)
    store.append(change("c", 1, "1", "secret", _before=None))
    assert store.rows() == [(1, "s***")]
    with_meta = fresh(store.layout, NAME, "orders", principal=ME, meta=True).collect()
    assert with_meta.columns == ["id", "note", "_seq", "_position", "_ordinal", "_committed_at"]
    found = changes_of(store.layout, NAME, "orders", {"id": 1}, principal=ME)
    assert not {"amount", "_before", "_exact"} & set(found.columns)
    assert found["note"].to_list() == ["s***"]
    assert asked == [(ME, NAME, "orders")] * 3


def test_rows_for_machinery_take_any_columns(store: Store) -> None:
    store.append(change("r", 1, "1"))
    store.fold(0)
    store.append(change("u", 1, "2"))
    other = ChangeLog.open(store.log.table.uri)
    store.append(change("u", 1, "3"))
    assert rows_at(other, store.current_uri, 1, columns=["id", "_seq"]).collect().rows() == [(1, 1)]
    assert rows_at(other, store.current_uri, 2, columns=["amount"]).collect().rows() == [(Decimal("3.00"),)]
    assert rows_at(other, store.current_uri, 2).collect().columns == ["id", "amount", "note"]


def test_a_table_that_another_program_made_unreadable_is_refused(store: Store) -> None:
    store.append(change("r", 1, "1"))
    current = store.fold(0)
    current.table.delta().alter.add_feature(
        TableFeatures.DeletionVectors, allow_protocol_versions_increase=True
    )
    with pytest.raises(LayoutUnknown, match="deletionVectors"):
        store.rows()
