"""The gate: which changes are rejected, and by which rules."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_assets.quality.gate import Gate, Marks
from mesh_assets.quality.rule import Expectation, Metric, Query, Rule, Scope, Severity

ROW = pa.schema(
    [
        ("id", pa.int64()),
        ("name", pa.string()),
        ("amount", pa.decimal128(10, 2)),
        ("at", pa.timestamp("us", tz="UTC")),
    ]
)
FRAME = pa.schema(
    [
        *ROW,
        ("_op", pa.string()),
        ("_unchanged", pa.list_(pa.string())),
        ("_before", pa.struct(list(ROW))),
        ("_exact", pa.map_(pa.string(), pa.string())),
    ]
)


def rule(name: str, check: Expectation | Metric | Query, *columns: str, blocking: bool = True) -> Rule:
    severity = Severity.ERROR if blocking else Severity.WARNING
    return Rule(f"t.{name}", "t", columns, check, Scope.ROW, severity, blocking)


NAMED = rule("named", Expectation("expect_column_values_to_not_be_null", {"column": "name"}), "name")
SHORT = rule(
    "short",
    Expectation("expect_column_value_lengths_to_be_between", {"column": "name", "max_value": 3}),
    "name",
)
POSITIVE = rule(
    "positive", Query("select count(*) from t where amount < 0", "mustBe", 0, "amount < 0"), "amount"
)
LIMITED = rule(
    "limited",
    Expectation("expect_column_values_to_be_between", {"column": "amount", "min_value": 0, "max_value": 100}),
    "amount",
    blocking=False,
)
RECENT = rule(
    "recent",
    Expectation("expect_column_values_to_be_between", {"column": "at", "max_value": "2030-01-01"}),
    "at",
)
GIVEN_AT = rule("at_given", Expectation("expect_column_values_to_not_be_null", {"column": "at"}), "at")
# Only DuckDB knows this function.
PLAIN = rule("plain", Query("", "mustBe", 0, "jaro_similarity(name, 'xxx') = 1"), "name")
RULES = [NAMED, SHORT, POSITIVE, LIMITED, RECENT, PLAIN]


def frame(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([{"_op": "c", **row} for row in rows], schema=FRAME)


def row(id: int, **given: Any) -> dict[str, Any]:
    return {"id": id, "name": "ann", "amount": Decimal(1), "at": datetime(2024, 1, 1, tzinfo=UTC), **given}


def marks(found: Marks) -> list[list[str] | None] | None:
    return None if found.rejected_by is None else found.rejected_by.to_pylist()


def test_an_accepted_frame_has_no_marks() -> None:
    found = Gate(RULES, ["id"]).mark(frame(row(1), row(2)))
    assert found == Marks(None, {}, 2)


def test_a_failing_row_names_all_blocking_rules_it_fails_and_warnings_are_counted() -> None:
    given = frame(
        row(1), row(2, name="annabel", amount=Decimal(-5)), row(3, name=None), row(4, amount=Decimal(500))
    )
    found = Gate(RULES, ["id"]).mark(given)
    assert marks(found) == [None, ["t.positive", "t.short"], ["t.named"], None]
    assert found.rejected_by is not None
    assert found.rejected_by.type == pa.list_(pa.string())
    assert found.failed == {"t.short": 1, "t.positive": 1, "t.named": 1, "t.limited": 2}


def test_a_warning_alone_rejects_nothing() -> None:
    found = Gate(RULES, ["id"]).mark(frame(row(1, amount=Decimal(500))))
    assert marks(found) is None
    assert found.failed == {"t.limited": 1}


def test_a_predicate_that_only_duckdb_knows_is_asked_there() -> None:
    found = Gate([PLAIN], ["id"]).mark(frame(row(1, name="xxx"), row(2), row(3, name=None)))
    assert marks(found) == [["t.plain"], None, None]


def test_deletes_and_truncates_never_fail() -> None:
    key_only = {"id": 1, "_op": "d"}
    found = Gate(RULES, ["id"]).mark(
        frame(key_only, {"_op": "t"}, row(2, name=None, _op="u"), row(3, _op="r"))
    )
    assert marks(found) == [None, None, ["t.named"], None]
    assert found.row_count == 2


def test_a_masked_value_is_that_of_the_earlier_row_of_its_key() -> None:
    masked = row(1, name=None, amount=Decimal(2), _op="u", _unchanged=["name"])
    found = Gate(RULES, ["id"]).mark(frame(row(1, name="annabel"), row(2), masked))
    assert marks(found) == [["t.short"], None, ["t.short"]]


def test_a_masked_value_follows_the_move_of_its_key() -> None:
    old = row(1, name="annabel")
    moved = row(9, name=None, _op="c", _unchanged=["name"], _before={"id": 1})
    found = Gate(RULES, ["id"]).mark(frame(old, {"id": 1, "_op": "d"}, moved))
    assert marks(found) == [["t.short"], None, ["t.short"]]


def test_masks_follow_masks_and_stop_at_a_truncate() -> None:
    asked: list[tuple[list[int], list[str]]] = []

    def previous(rows: pa.Int64Array, columns: Sequence[str]) -> pa.Table:
        asked.append((rows.to_pylist(), list(columns)))
        return pa.table({"name": ["bob"] * len(rows)})

    masked = {"name": None, "_op": "u", "_unchanged": ["name"]}
    given = frame(
        row(1, name="annabel"),
        row(1, **masked),
        row(1, **masked),
        {"_op": "t"},
        row(1, **masked),
        row(2, **masked),
    )
    found = Gate([NAMED, SHORT], ["id"]).mark(given, previous)
    assert marks(found) == [["t.short"], ["t.short"], ["t.short"], None, None, None]
    assert asked == [([4, 5], ["name"])]


def test_what_the_frame_does_not_hold_is_asked_for() -> None:
    def previous(rows: pa.Int64Array, columns: Sequence[str]) -> pa.Table:
        assert rows.to_pylist() == [0, 2]
        return pa.table({"name": pa.array(["annabel", None], pa.string())})

    masked = {"name": None, "_op": "u", "_unchanged": ["name"]}
    found = Gate(RULES, ["id"]).mark(frame(row(1, **masked), row(2), row(3, **masked)), previous)
    assert marks(found) == [["t.short"], None, ["t.named"]]


def test_without_a_previous_image_a_masked_value_fails_nothing() -> None:
    masked = row(1, name=None, amount=Decimal(-1), _op="u", _unchanged=["name"])
    assert marks(Gate(RULES, ["id"]).mark(frame(masked))) == [["t.positive"]]


def test_values_that_do_not_fit_their_column_are_judged_by_their_text() -> None:
    given = frame(
        row(1, at=None, _exact=[("at", "infinity")]),
        row(2, at=None, _exact=[("at", "-infinity")]),
        row(3, at=None),
        row(4, amount=None, _exact=[("amount", "-Infinity")]),
        row(5, amount=None, _exact=[("amount", "NaN")]),
        row(6, amount=None, _exact=[("amount", "12345678901234567890123456789012345678901234567890")]),
        row(7, amount=None, _exact=[("_before.amount", "-Infinity")]),
    )
    found = Gate([*RULES, GIVEN_AT], ["id"]).mark(given)
    assert marks(found) == [["t.recent"], None, ["t.at_given"], ["t.positive"], None, None, None]
    assert found.failed["t.limited"] == 2


def test_a_text_goes_where_its_value_goes() -> None:
    first = row(1, at=None, _exact=[("at", "infinity")])
    masked = row(1, at=None, _op="u", _unchanged=["at"])
    assert marks(Gate([RECENT, GIVEN_AT], ["id"]).mark(frame(first, masked))) == [["t.recent"], ["t.recent"]]

    def previous(rows: pa.Int64Array, columns: Sequence[str]) -> pa.Table:
        return frame(row(1, at=None, _exact=[("at", "infinity")])).select([*columns, "_exact"])

    assert marks(Gate([RECENT, GIVEN_AT], ["id"]).mark(frame(masked), previous)) == [["t.recent"]]


def test_a_column_of_another_type_breaks_its_rules_aloud_and_no_others() -> None:
    given = frame(row(1), row(2, amount=Decimal(-1)))
    other = given.set_column(1, "name", pa.array([1, 2], pa.int64()))
    found = Gate([SHORT, POSITIVE], ["id"]).mark(other)
    assert marks(found) == [None, ["t.positive"]]
    assert list(found.broken) == ["t.short"]
    assert "name (Int64)" in found.broken["t.short"]


def test_a_query_that_fails_on_a_value_is_told_for_that_frame_alone() -> None:
    number = rule("number", Query("", "mustBe", 0, "cast(name as integer) < 0"), "name")
    gate = Gate([number, PLAIN], ["id"])
    found = gate.mark(frame(row(1, name="ann"), row(2, name="xxx")))
    assert marks(found) == [None, ["t.plain"]]
    assert list(found.broken) == ["t.number"]
    assert "ann" in found.broken["t.number"]
    found = gate.mark(frame(row(1, name="-5"), row(2, name="7")))
    assert marks(found) == [["t.number"], None]
    assert not found.broken


def test_a_column_that_the_frame_lacks_counts_as_null() -> None:
    found = Gate([NAMED], ["id"]).mark(frame(row(1)).drop(["name"]))
    assert marks(found) == [["t.named"]]


@pytest.mark.parametrize("rules", [[], [LIMITED]])
def test_nothing_is_rejected_without_blocking_rules(rules: list[Rule]) -> None:
    assert Gate(rules, ["id"]).mark(frame(row(1, name=None, amount=Decimal(-1)))).rejected_by is None


def test_an_empty_frame_has_no_marks() -> None:
    assert Gate(RULES, ["id"]).mark(FRAME.empty_table()) == Marks(None)


GATE = Gate(RULES, ["id"])
NAMES = st.one_of(st.none(), st.sampled_from(["ann", "annabel", "xxx", ""]))
CHANGES = st.lists(
    st.tuples(st.integers(1, 3), st.sampled_from("cudu"), NAMES, st.booleans(), st.integers(-2, 2)),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(CHANGES)
def test_marks_are_those_of_a_row_by_row_reading(
    changes: list[tuple[int, str, str | None, bool, int]],
) -> None:
    rows, expected = [], []
    held: dict[int, str | None] = {}
    for id, op, name, masked, amount in changes:
        if op == "d":
            held.pop(id, None)
            rows.append({"id": id, "_op": "d"})
            expected.append(None)
            continue
        keep = masked and op == "u" and id in held
        value = held[id] if keep else name
        held[id] = value
        unchanged = ["name"] if keep else None
        rows.append(
            row(id, _op=op, name=None if keep else name, amount=Decimal(amount), _unchanged=unchanged)
        )
        failed = [
            rule_id
            for rule_id, wrong in (
                ("t.named", value is None),
                ("t.plain", value == "xxx"),
                ("t.positive", amount < 0),
                ("t.short", value is not None and len(value) > 3),
            )
            if wrong
        ]
        expected.append(failed or None)
    found = GATE.mark(frame(*rows))
    assert (marks(found) or [None] * len(rows)) == expected


def test_chunked_frames_are_judged_alike() -> None:
    first, second = frame(row(1, name=None)), frame(row(1, name=None, _op="u", _unchanged=["name"]), row(2))
    both = pa.concat_tables([first, second])
    assert both["name"].num_chunks == 2
    assert marks(Gate(RULES, ["id"]).mark(both)) == [["t.named"], ["t.named"], None]
    assert pl.from_arrow(both).shape == (3, 8)
