"""The ledger: what is durable, and so may be acknowledged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mesh_assets.errors import Fenced, TableMissing
from mesh_assets.lake.ledger import Ledger, LedgerRow
from tests.lake.sample import MOMENT


def row(end_lsn: int, **changes: object) -> LedgerRow:
    plain = LedgerRow(
        commit_lsn=end_lsn - 8,
        end_lsn=end_lsn,
        system_identifier="7480000000000000001",
        timeline=1,
        tables={"shop.orders": end_lsn, "shop.customers": -1},
        observed_at=MOMENT,
        shift="shift-1",
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_the_newest_row_is_read_back_as_written(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger"))
    assert ledger.latest() is None
    first = ledger.append(row(100))
    second = ledger.append(row(2**62, timeline=2))
    assert (first.entry, second.entry) == (1, 2)
    again = Ledger.open(ledger.records.uri)
    assert again.latest() == second
    assert again.at(1) == first
    assert second.recorded_at is not None


def test_a_source_never_captured_has_no_ledger(tmp_path: Path) -> None:
    uri = str(tmp_path / "ledger")
    ledger = Ledger(uri)
    assert (ledger.latest(), ledger.at(1), ledger.refresh()) == (None, None, 0)
    with pytest.raises(TableMissing):
        Ledger.open(uri)
    Ledger(uri).append(row(5))
    assert ledger.refresh() == 1
    assert ledger.latest() is not None


def test_two_shifts_fence_each_other(tmp_path: Path) -> None:
    uri = str(tmp_path / "ledger")
    mine = Ledger(uri)
    mine.append(row(100))
    other = Ledger(uri)
    other.append(row(200))
    for _ in range(2):
        with pytest.raises(Fenced):
            mine.append(row(150))
        mine.records.table.refresh()
    assert mine.refresh() == 2


def test_the_newest_row_comes_from_the_newest_file_alone(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger"))
    for end_lsn in (10, 20, 30):
        ledger.append(row(end_lsn))
    table = ledger.records.table
    for file in table.files()[:-1]:
        Path(table.uri, file.path).unlink()
    latest = Ledger(ledger.records.uri).latest()
    assert latest is not None
    assert latest.end_lsn == 30
