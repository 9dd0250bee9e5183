"""The ledger: what is durable, and a snapshot that goes on after a crash without doubling a chunk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_assets.errors import Fenced, TableMissing
from mesh_assets.lake.ledger import Ledger, LedgerRow, SnapshotProgress, snapshot_transaction
from mesh_assets.lake.log import ChangeLog
from tests.lake.sample import MOMENT, ROW, append, frame


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
    progress = {
        "shop.orders": SnapshotProgress("reading", 2, 7, '["6"]', '["7"]', 100, 120),
        "shop.customers": SnapshotProgress(),
    }
    first = ledger.append(row(100, head_changes=17))
    second = ledger.append(row(2**62, timeline=2, snapshots=progress))
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


def test_a_snapshot_begins_again_under_a_new_number() -> None:
    done = SnapshotProgress("reading", 1, 4, '["3"]', '["4"]', 90, 95).finished()
    assert (done.state, done.chunk, done.max_lsn) == ("done", 4, 95)
    assert done.again() == SnapshotProgress(snapshot=2, max_lsn=95)


@given(st.lists(st.sampled_from(["nothing", "intended", "appended"]), max_size=8))
@settings(max_examples=25, deadline=None)
def test_a_snapshot_killed_anywhere_holds_every_row_once(crashes: list[str]) -> None:
    """Each chunk of the run may be cut short after its intent or after its append."""
    keys, size = list(range(7)), 2
    with TemporaryDirectory() as folder:
        ledger_uri, log_uri = f"{folder}/ledger", f"{folder}/changes"
        ChangeLog.create(log_uri, ROW, ("id",))
        pending = list(crashes)
        lsn = 100
        while True:  # One shift per round, from what is durable.
            ledger, log = Ledger(ledger_uri), ChangeLog.open(log_uri)
            last = ledger.latest()
            progress = last.snapshots["t"] if last else SnapshotProgress()
            lsn += 1  # A new snapshot has a later consistent point.
            finished = True
            while True:
                after = progress.resume_after(log)
                chunk = [key for key in keys if after is None or key > int(after)][:size]
                if not chunk:
                    break
                progress = progress.intend(log, last_key=str(chunk[-1]), lsn=lsn)
                ledger.append(row(lsn, snapshots={"t": progress}))
                crash = pending.pop(0) if pending else "nothing"
                if crash == "intended":
                    finished = False
                    break
                number = {snapshot_transaction(progress.snapshot): progress.chunk}
                append(log, frame(chunk, lsn=lsn), transactions=number, rewound=True)
                if crash == "appended":
                    finished = False
                    break
            if finished:
                break
        assert log.scan(columns=["id"]).collect()["id"].to_list() == keys
        assert progress.finished().max_lsn == progress.lsn
