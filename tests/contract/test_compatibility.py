"""Changes of a contract: which break a promise, whom they concern, and which version they need."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mesh_assets.contract import Contract, load
from mesh_assets.contract.compatibility import Change, compare, major, refusal, rises, unraised
from mesh_assets.names import ProductName

CONTRACT = """\
apiVersion: v3.1.0
kind: DataContract
id: sales.orders
name: orders
version: 1.4.0
status: active
domain: sales
team: {name: sales}
slaProperties:
  - {property: latency, value: 10, unit: seconds, element: orders}
  - {property: retention, value: 2, unit: years, element: orders}
  - {property: endOfSupport, value: "2027-06-30"}
schema:
  - name: orders
    physicalName: shop.orders
    quality:
      - {name: many, metric: rowCount, mustBeGreaterThan: 10, severity: error}
    properties:
      - {name: id, logicalType: integer, physicalType: integer, primaryKey: true}
      - name: status
        logicalType: string
        physicalType: varchar(10)
        logicalTypeOptions: {minLength: 2, maxLength: 10}
        required: true
        enum: [{value: placed}, {value: paid}]
        quality:
          - name: given
            metric: nullValues
            mustBe: 0
            severity: error
            customProperties: [{property: blocking, value: true}]
          - {name: usual, type: sql, query: SELECT 1, mustBe: 0, severity: warning}
      - {name: amount, logicalType: number, physicalType: "numeric(12,2)", classification: confidential}
      - {name: note, logicalType: string, physicalType: text, unique: true}
  - name: lines
    physicalName: shop.lines
    properties:
      - {name: id, logicalType: integer, physicalType: bigint, primaryKey: true}
"""
LINES = "  - name: lines" + CONTRACT.partition("  - name: lines")[2]
REVENUE, OVERVIEW = ProductName("finance", "revenue"), ProductName("sales", "overview")
READERS = {
    ("orders", "amount"): [REVENUE],
    ("orders", "id"): [REVENUE, OVERVIEW],
    ("lines", None): [OVERVIEW],
}


def contract(folder: Path, text: str, name: str = "contract") -> Contract:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return load(path)


def changed(folder: Path, old: str, new: str) -> tuple[Change, ...]:
    """What one replacement in the contract means."""
    assert CONTRACT.count(old) == 1, old
    before = contract(folder, CONTRACT)
    return compare(before, contract(folder, CONTRACT.replace(old, new), "new"), READERS)


@pytest.mark.parametrize(
    ("old", "new", "said", "breaking"),
    [
        # tables and columns
        (LINES, "", "lines: the table was removed; read by sales.overview", True),
        ("- name: lines", "- name: rows", "rows: the table was added", False),
        (
            "      - {name: amount, l",
            "      - {name: total, l",
            "renamed to 'total'?); read by finance.r",
            True,
        ),
        (
            "text, unique: true}",
            "text, unique: true}\n      - {name: x, logicalType: date}",
            "'x' was added",
            False,
        ),
        ("status: active", "status: retired", "status active became retired; read by finance.revenue,", True),
        ("status: active", "status: deprecated", "status active became deprecated", False),
        ("id: sales.orders", "id: other", "the contract's id became 'other' from 'sales.orders'", True),
        ("shop.lines", "shop.rows", "lines: it is read from shop.rows, no longer from shop.lines", False),
        (
            "physicalType: bigint, primaryKey: true}",
            "physicalType: bigint}\n      - {name: key, logicalType: date, primaryKey: true}",
            "lines: the primary key id became key; read by sales.overview",
            True,
        ),
        # types
        (
            "physicalType: integer",
            "physicalType: bigint",
            "column 'id': integer became bigint; read by",
            False,
        ),
        ("physicalType: integer", "physicalType: smallint", "column 'id': integer became smallint", True),
        ("physicalType: integer", "physicalType: int4", "", False),
        ('"numeric(12,2)"', '"numeric(14,2)"', "numeric(12,2) became numeric(14,2)", False),
        ('"numeric(12,2)"', '"numeric(10,2)"', "numeric(12,2) became numeric(10,2)", True),
        ('"numeric(12,2)"', '"numeric(14,3)"', "numeric(12,2) became numeric(14,3)", True),
        ('"numeric(12,2)"', "numeric", "numeric(12,2) became numeric", True),
        ("varchar(10)", "varchar(20)", "varchar(10) became varchar(20)", False),
        ("varchar(10)", "text", "varchar(10) became text", False),
        ("varchar(10)", "varchar(9)", "varchar(10) became varchar(9)", True),
        ("physicalType: text", "physicalType: varchar(9)", "text became varchar(9)", True),
        (", physicalType: text", "", "the type text is no longer promised", True),
        (
            "logicalType: number, physicalType",
            "logicalType: integer, physicalType",
            "logical type number became integer",
            True,
        ),
        # what values may be
        ("required: true", "required: false", "column 'status' may be null", True),
        ("text, unique: true}", "text, unique: true, required: true}", "'note' is never null", False),
        ("text, unique: true}", "text}", "column 'note' need not be unique", True),
        ("{value: paid}]", "{value: paid}, {value: late}]", "column 'status' may be late too", True),
        (", {value: paid}]", "]", "column 'status' is no longer paid", False),
        ("        enum: [{value: placed}, {value: paid}]\n", "", "may be anything", True),
        ("minLength: 2", "minLength: 3", "minLength 2 became 3", False),
        ("minLength: 2", "minLength: 1", "minLength 2 became 1", True),
        ("maxLength: 10", "maxLength: 12", "maxLength 10 became 12", True),
        ("minLength: 2, ", "", "minLength is no longer 2", True),
        ("minLength: 2,", "minLength: 2, format: uuid,", "format is uuid", False),
        ("classification: confidential", "classification: public", "confidential became public", True),
        ("classification: confidential", "classification: restricted", "became restricted", False),
        (", classification: confidential", "", "is no longer confidential", True),
        ("text, unique: true}", "text, unique: true, classification: internal}", "is internal", False),
        # service levels
        ("latency, value: 10", "latency, value: 20", "latency of orders 10 seconds became 20 seconds", True),
        ("value: 10, unit: seconds", "value: 1, unit: minutes", "10 seconds became 1 minutes", True),
        ("latency, value: 10", "latency, value: 5", "latency of orders 10 seconds became 5 seconds", False),
        ("retention, value: 2", "retention, value: 1", "2 years became 1 years", True),
        ("retention, value: 2", "retention, value: 3", "2 years became 3 years", False),
        ("2027-06-30", "2027-05-31", "endOfSupport 2027-06-30 became 2027-05-31", True),
        ("2027-06-30", "2028-06-30", "endOfSupport 2027-06-30 became 2028-06-30", False),
        (
            "  - {property: retention, value: 2, unit: years, element: orders}\n",
            "",
            "retention of orders 2 years is no longer promised",
            True,
        ),
        (
            "slaProperties:\n",
            "slaProperties:\n  - {property: availability, value: 99}\n",
            "availability 99 is promised",
            False,
        ),
        # quality
        ("mustBeGreaterThan: 10", "mustBeGreaterThan: 20", "mustBeGreaterThan 10 became 20", False),
        ("mustBeGreaterThan: 10", "mustBeGreaterThan: 5", "mustBeGreaterThan 10 became 5", True),
        ("10, severity: error}", "10, severity: warning}", "rule 'many': it only warns", True),
        ("value: true}]\n", "value: false}]\n", "rule 'given': what fails is no longer kept out", True),
        (
            "            customProperties: [{property: blocking, value: true}]\n",
            "",
            "rule 'given': it no longer says that it blocks",
            True,
        ),
        (
            "mustBeGreaterThan: 10, severity: error}",
            "mustBeGreaterThan: 10, severity: error, customProperties: [{property: blocking, value: true}]}",
            "rule 'many': it blocks",
            False,
        ),
        ("metric: nullValues", "metric: missingValues", "rule 'given': it checks something else", True),
        ("SELECT 1", "SELECT 2", "rule 'usual': it checks something else", False),
        (
            "          - {name: usual, type: sql, query: SELECT 1, mustBe: 0, severity: warning}\n",
            "",
            "rule 'usual' was removed",
            False,
        ),
        (
            "    quality:\n      - {name: many, metric: rowCount, mustBeGreaterThan: 10, severity: error}\n",
            "",
            "rule 'many' was removed",
            True,
        ),
        ("{name: many, metric: rowCount", "{name: lots, metric: rowCount", "rule 'lots' was added", False),
        # words
        ("team: {name: sales}", "team: {name: sales, description: Sells.}", "", False),
    ],
)
def test_what_a_change_means(tmp_path: Path, old: str, new: str, said: str, breaking: bool) -> None:
    changes = changed(tmp_path, old, new)
    if not said:
        assert changes == ()
        return
    meant = [change for change in changes if said in str(change)]
    assert meant, [str(change) for change in changes]
    assert meant[0].breaking == breaking


def test_a_change_knows_its_line_and_whom_it_concerns(tmp_path: Path) -> None:
    (change,) = changed(tmp_path, '"numeric(12,2)"', '"numeric(14,4)"')
    assert (change.line, change.consumers) == (33, (REVENUE,))
    (change,) = changed(tmp_path, "physicalType: bigint", "physicalType: smallint")
    assert change.consumers == (OVERVIEW,)


def test_a_removed_columns_rules_are_not_told_again(tmp_path: Path) -> None:
    text = (
        CONTRACT[: CONTRACT.index("      - name: status")]
        + CONTRACT[CONTRACT.index("      - {name: amount") :]
    )
    changes = compare(contract(tmp_path, CONTRACT), contract(tmp_path, text, "new"))
    assert [str(change) for change in changes] == ["orders: column 'status' was removed"]


def test_a_broken_promise_needs_a_higher_major_version(tmp_path: Path) -> None:
    old = contract(tmp_path, CONTRACT)

    def verdict(version: str, text: str = CONTRACT) -> str:
        new = contract(tmp_path, text.replace("version: 1.4.0", f"version: {version}"), "new")
        return str(refusal(old, new, compare(old, new, READERS)) or "")

    broken = CONTRACT.replace('"numeric(12,2)"', "date").replace("logicalType: number", "logicalType: date")
    amount = f"{tmp_path}/new.yaml:33: breaks a promise: orders: column 'amount':"
    assert verdict("1.5.0", broken) == (
        f"{amount} logical type number became date; read by finance.revenue\n"
        f"{amount} numeric(12,2) became date; read by finance.revenue\n"
        "  hint: sales.orders 1.4.0 promised it: keep the promise, or write version: 2.0.0 and leave "
        "consumers the old one for a while"
    )
    assert verdict("1.4.0", broken)
    assert verdict("0.9.0", broken)
    assert verdict("2.0.0", broken) == ""
    assert verdict("1.4.0") == verdict("1.3.0") == ""


def test_other_content_needs_a_higher_version(tmp_path: Path) -> None:
    old = contract(tmp_path, CONTRACT)

    def hint(version: str, *replacement: str) -> str:
        text = CONTRACT.replace(*replacement) if replacement else CONTRACT
        new = contract(tmp_path, re.sub(r"version: 1\.4\.0", f"version: {version}", text), "new")
        mistake = unraised(old, new, compare(old, new))
        return f"{mistake.message} / {mistake.hint}" if mistake else ""

    wider = ("varchar(10)", "varchar(20)")
    assert hint("1.4.0", *wider) == (
        "version 1.4.0 of sales.orders already stands for other content; what changed: orders: column "
        "'status': varchar(10) became varchar(20) / write version: 1.5.0"
    )
    assert "what changed: its words" in hint("1.4.0", "{name: sales}", "{name: sales, description: S.}")
    assert hint("1.4.1", *wider) == hint("1.10.0", *wider) == hint("1.4.0") == ""
    assert "version 1.3.9 of sales.orders is lower than 1.4.0" in hint("1.3.9", *wider)


@pytest.mark.parametrize(
    ("version", "number"),
    [("1.0.0", "1"), ("v12.1", "12"), ("3", "3"), ("2-beta", "2"), ("2026.1", "2026"), ("first", "first")],
)
def test_the_major_version(version: str, number: str) -> None:
    assert major(version) == number


def test_versions_rise_by_their_numbers() -> None:
    assert rises("1.9.0", "1.10.0")
    assert rises("1.0", "1.0.1")
    assert not rises("2.0.0", "1.99.0")
    assert not rises("1.0.0", "1.0.0")
