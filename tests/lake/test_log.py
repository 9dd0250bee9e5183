"""The change log: dense sequence, positions in the same commit, fencing, scans by sequence."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from mesh_assets.errors import Fenced, LakeError, TableMissing
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.upkeep import Upkeep, maintain
from tests.lake.sample import MOMENT, ROW, append, frame


@pytest.fixture
def log(tmp_path: Path) -> ChangeLog:
    return ChangeLog.create(str(tmp_path / "changes"), ROW, ("id",))


def seqs(log: ChangeLog, after: int | None = None, upto: int | None = None) -> list[int]:
    found: list[int] = sorted(log.scan(after, upto, ["_seq"]).collect()["_seq"].to_list())
    return found


def test_seq_is_dense_from_zero_and_survives_reopening(log: ChangeLog) -> None:
    assert (log.seq, log.position("app")) == (-1, None)
    first = append(log, frame([1, 2, 3], lsn=10))
    assert (first.first_seq, first.last_seq, first.row_count, first.delta_version) == (0, 2, 3, 1)
    assert first.file_bytes > 0
    again = ChangeLog.open(log.table.uri)
    assert (again.seq, again.key, again.position("app")) == (2, ("id",), (10, 2))
    append(again, frame([4], lsn=11))
    assert seqs(again) == [0, 1, 2, 3]
    assert again.row_schema.names == ROW.names


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    assert not ChangeLog.exists(str(tmp_path / "no"))
    with pytest.raises(TableMissing):
        ChangeLog.open(str(tmp_path / "no"))


def test_a_log_is_created_only_over_sound_columns(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="reserved"):
        ChangeLog.create(str(tmp_path / "a"), pa.schema([("_op", pa.string())]), ())
    with pytest.raises(LakeError, match="key columns"):
        ChangeLog.create(str(tmp_path / "b"), ROW, ("number",))


def test_the_rows_come_back_as_they_were_given(log: ChangeLog) -> None:
    rows = frame([7, 8], lsn=10, seconds=3)
    verdicts = pa.array([None, ["rule"]], pa.list_(pa.string()))
    append(log, rows, rejected_by=verdicts)
    held = log.table.read()
    assert held.select(rows.column_names).equals(rows)
    assert held["_rejected_by"].to_pylist() == [None, ["rule"]]
    assert held["_captured_at"].to_pylist() == [MOMENT] * 2
    assert held["_schema_version"].to_pylist() == [1, 1]


def test_a_record_batch_is_a_frame_too(log: ChangeLog) -> None:
    assert append(log, frame([1], lsn=3).to_batches()[0]).last_seq == 0


def test_no_rows_no_commit_unless_the_position_is_wanted(log: ChangeLog) -> None:
    none = frame([], lsn=10)
    given = {"source": "app", "captured_at": MOMENT, "schema_version": 1}
    assert log.append(none, position=(10, 0), **given).row_count == 0
    assert log.table.version == 0
    for lsn in (10, 11):
        moved = log.append(none, position=(lsn, 0), empty=True, transactions={"s": lsn}, **given)
        assert (moved.row_count, log.seq) == (0, -1)
    assert (log.position("app"), log.transaction("s"), log.table.version) == ((11, 0), 11, 2)
    append(log, frame([1], lsn=12))
    assert ChangeLog.open(log.table.uri).seq == 0


def test_positions_do_not_go_back_unless_the_source_did(log: ChangeLog) -> None:
    append(log, frame([1, 2], lsn=10))
    with pytest.raises(LakeError, match="comes after"):
        append(log, frame([3], lsn=10))
    append(log, frame([3], lsn=5), source="other")
    append(log, frame([4], lsn=5), rewound=True)
    assert (log.position("app"), log.position("other"), log.seq) == ((5, 0), (5, 0), 3)


def test_the_log_guards_its_own_columns_and_transactions(log: ChangeLog) -> None:
    rows = frame([1], lsn=10)
    with pytest.raises(LakeError, match="assigned at append"):
        append(log, rows.append_column("_seq", pa.array([5])))
    with pytest.raises(LakeError, match="lacks"):
        log.append(
            rows.drop_columns(["_op"]), source="app", position=(1, 0), captured_at=MOMENT, schema_version=1
        )
    with pytest.raises(LakeError, match="belong to the log"):
        append(log, rows, transactions={"seq": 9})
    with pytest.raises(LakeError, match="2 verdicts for 1 rows"):
        append(log, rows, rejected_by=pa.nulls(2, pa.list_(pa.string())))
    assert log.seq == -1


def test_an_older_relation_version_gets_nulls_and_a_newer_one_needs_its_columns(log: ChangeLog) -> None:
    older = pa.schema([("id", pa.int64())])
    wider = pa.schema([*ROW, ("tags", pa.list_(pa.string()))])
    append(log, frame([1], lsn=10, row=older))
    with pytest.raises(LakeError, match="tags"):
        append(log, frame([2], lsn=11, row=wider))
    log.add_columns(pa.schema([("tags", pa.list_(pa.string()))]))
    log.add_columns([pa.field("tags", pa.list_(pa.string()))])
    append(log, frame([2], lsn=11, row=wider))
    append(log, frame([3], lsn=12))
    held = log.scan().sort("_seq").collect()
    assert held["name"].to_list() == [None, "name 2", "name 3"]
    assert held["tags"].to_list() == [None, None, None]
    assert [field.name for field in held.schema["_before"].fields] == wider.names  # type: ignore[attr-defined]
    assert log.row_schema.names == wider.names
    with pytest.raises(LakeError, match="reserved"):
        log.add_columns([pa.field("_tags", pa.string())])


def test_extra_transactions_are_in_the_same_commit(log: ChangeLog) -> None:
    done = append(log, frame([1], lsn=10), transactions={"snapshot/1": 4})
    assert (done.delta_version, log.transaction("snapshot/1")) == (1, 4)
    assert ChangeLog.open(log.table.uri).transaction("snapshot/1") == 4


def test_a_scan_reads_only_the_files_that_may_hold_its_rows(log: ChangeLog) -> None:
    for n in range(5):
        append(log, frame([n, n], lsn=10 + n))
    uri = Path(log.table.uri)
    for file in log.table.files():
        if not 2 <= file.low["_seq"] <= 6:
            (uri / file.path).unlink()
    assert seqs(log, after=1, upto=7) == [2, 3, 4, 5, 6, 7]
    assert seqs(log, after=2, upto=3) == [3]
    assert seqs(log, after=9) == []
    assert log.scan(9, None).collect().columns == log.table.schema.names


def test_a_zombie_that_reopens_its_handle_is_still_fenced(log: ChangeLog) -> None:
    append(log, frame([1], lsn=10))
    successor = ChangeLog.open(log.table.uri)
    append(successor, frame([2], lsn=11))
    log.table.refresh()  # As its handle does by itself every so often.
    with pytest.raises(Fenced):
        append(log, frame([2], lsn=11))
    assert seqs(ChangeLog.open(log.table.uri)) == [0, 1]


def test_a_zombie_is_fenced_by_a_position_without_rows(log: ChangeLog) -> None:
    append(log, frame([1], lsn=10))
    successor = ChangeLog.open(log.table.uri)
    successor.append(
        frame([], lsn=0), source="app", position=(20, 0), captured_at=MOMENT, schema_version=1, empty=True
    )
    log.table.refresh()
    with pytest.raises(Fenced):
        append(log, frame([2], lsn=11))


class ChangeLogMachine(RuleBasedStateMachine):
    """Any number of writers over one log: each position lands once, in order, whoever wins."""

    writers = Bundle("writers")

    @initialize()
    def begin(self) -> None:
        self.folder = TemporaryDirectory()
        self.uri = f"{self.folder.name}/changes"
        ChangeLog.create(self.uri, ROW, ("id",))
        self.model: list[tuple[int, int]] = []  # (lsn, id) by _seq
        self.owner: ChangeLog | None = None
        self.clock = MOMENT

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()

    @rule(target=writers)
    def open(self) -> ChangeLog:
        """A new shift (or one after a kill, which just drops its handles)."""
        return ChangeLog.open(self.uri)

    @rule(log=writers, sizes=st.lists(st.integers(0, 3), min_size=1, max_size=3))
    def append(self, log: ChangeLog, sizes: list[int]) -> None:
        """Append batches as a shift does: from the position that the log told when it was opened."""
        for size in sizes:
            current = len(self.model)
            stale = log.seq != current - 1
            try:
                held = log.position("app") or (0, -1)
            except LakeError:
                # Its handle is so old that upkeep has archived what it would read: it can't write.
                assert stale
                return
            lsn = held[0] + 1
            rows = frame(list(range(current, current + size)), lsn=lsn)
            if stale and size:
                with pytest.raises(Fenced):
                    append(log, rows)
                return
            if not size:
                log.append(rows, source="app", position=(lsn, 0), captured_at=self.clock, schema_version=1)
                continue
            done = append(log, rows)
            assert (done.first_seq, done.last_seq) == (current, current + size - 1)
            self.model += [(lsn, id_) for id_ in range(current, current + size)]

    @rule(log=writers)
    def refresh_handle(self, log: ChangeLog) -> None:
        """What a zombie's handle does on its own."""
        log.table.refresh()

    @rule()
    def tend(self) -> None:
        """Upkeep by another process."""
        table = ChangeLog.open(self.uri).table
        table.checkpoint()
        maintain(table, Upkeep(archive_seconds=0, vacuum_seconds=0, run_length=2))

    @rule(after=st.integers(-1, 8), span=st.integers(0, 8))
    def scan(self, after: int, span: int) -> None:
        found = seqs(ChangeLog.open(self.uri), after, after + span)
        assert found == [seq for seq in range(len(self.model)) if after < seq <= after + span]

    @invariant()
    def holds_the_model(self) -> None:
        if not hasattr(self, "uri"):
            return
        log = ChangeLog.open(self.uri)
        held = log.scan(columns=["_seq", "_position", "id"]).sort("_seq").collect().rows()
        assert held == [(seq, lsn, id_) for seq, (lsn, id_) in enumerate(self.model)]
        assert log.seq == len(self.model) - 1
        if self.model:
            assert log.position("app") is not None


TestChangeLog = ChangeLogMachine.TestCase
TestChangeLog.settings = settings(max_examples=12, stateful_step_count=12, deadline=None)


def test_a_time_zone_of_the_capture_moment_does_not_matter(log: ChangeLog) -> None:
    local = datetime.fromisoformat("2026-03-01T14:00:00+02:00")
    log.append(frame([1], lsn=1), source="app", position=(1, 0), captured_at=local, schema_version=1)
    assert log.table.read(columns=["_captured_at"])["_captured_at"].to_pylist() == [MOMENT + timedelta(0)]
