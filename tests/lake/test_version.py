"""Product versions: sealed, chained, fenced; and the one cut that each as of means."""

from __future__ import annotations

import dataclasses
import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_assets.errors import AsOfRefused, Fenced, LakeError, TableMissing
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.position import Lsn
from mesh_assets.lake.upkeep import compact
from mesh_assets.lake.version import Cut, Horizon, InputPosition, VersionLog, VersionRow, parse_as_of
from tests.lake.sample import MOMENT, ROW, append, frame


def add(
    versions: VersionLog,
    tables: dict[str, int],
    *,
    lsn: int = 10,
    seconds: float | None = 0,
    generations: dict[str, int] | None = None,
) -> VersionRow:
    return versions.append(
        tables=tables,
        positions={"app": InputPosition(lsn, 3, lsn + 8)},
        row_count={"c": 2, "d": 1},
        contract_hash="abc",
        code_version="0.1.0",
        run_id="run",
        actor="user:test",
        committed_at=None if seconds is None else MOMENT + timedelta(seconds=seconds),
        parents={"sales.orders": 4},
        created_at=MOMENT,
        generations=generations,
    )


@pytest.fixture
def versions(tmp_path: Path) -> VersionLog:
    return VersionLog(str(tmp_path / "versions"))


def test_versions_are_dense_chained_and_sealed(versions: VersionLog) -> None:
    assert versions.latest() is None
    rows = [add(versions, {"orders": n, "order_lines": 2 * n}, lsn=10 + n, seconds=n) for n in range(3)]
    assert [row.version for row in rows] == [1, 2, 3]
    again = VersionLog.open(versions.records.uri)
    assert again.between(1, 3) == rows
    assert again.latest() == rows[-1] == again.at(3)
    assert again.at(4) is None
    assert [row.previous_hash for row in rows] == ["", rows[0].hash, rows[1].hash]
    assert all(row.hash == row.digest() and len(row.hash) == 64 for row in again.between(1, 3))
    assert rows[0].positions == {"app": InputPosition(10, 3, 18)}
    assert (rows[0].row_count, rows[0].parents) == ({"c": 2, "d": 1}, {"sales.orders": 4})


def test_the_hash_covers_every_field(versions: VersionLog) -> None:
    row = add(versions, {"orders": 1})
    other = {
        "version": 2,
        "tables": {"orders": 2},
        "positions": {"app": InputPosition(10, 4, 18)},
        "row_count": {},
        "contract_hash": "x",
        "code_version": "x",
        "run_id": "x",
        "actor": "x",
        "parents": {},
        "committed_at": MOMENT + timedelta(microseconds=1),
        "created_at": MOMENT + timedelta(microseconds=1),
        "previous_hash": "x",
        "generations": {"orders": 2},
    }
    assert set(other) | {"hash"} == {field.name for field in dataclasses.fields(VersionRow)}
    changed = [dataclasses.replace(row, **{name: value}).digest() for name, value in other.items()]  # type: ignore[arg-type]
    assert len({row.digest(), *changed}) == len(other) + 1


def test_commit_times_never_go_back_but_cuts_must_not(versions: VersionLog) -> None:
    add(versions, {"orders": 5}, seconds=9)
    assert add(versions, {"orders": 6}, seconds=3).committed_at == MOMENT + timedelta(seconds=9)
    assert add(versions, {"orders": 6}, seconds=None).committed_at == MOMENT + timedelta(seconds=9)
    with pytest.raises(LakeError, match="go back"):
        add(versions, {"orders": 4})


def test_two_writers_of_versions_fence_each_other(versions: VersionLog) -> None:
    add(versions, {"orders": 1})
    other = VersionLog.open(versions.records.uri)
    add(other, {"orders": 2})
    with pytest.raises(Fenced):
        add(versions, {"orders": 2})
    versions.records.table.refresh()
    with pytest.raises(Fenced):
        add(versions, {"orders": 2})
    assert versions.refresh() == 2
    assert versions.latest() == other.latest()


def test_a_reader_of_a_product_without_versions_creates_nothing(tmp_path: Path) -> None:
    versions = VersionLog(str(tmp_path / "versions"))
    assert (versions.latest(), versions.at(1), versions.refresh()) == (None, None, 0)
    with pytest.raises(AsOfRefused, match="no version yet"):
        versions.resolve(None, log=no_log)
    with pytest.raises(TableMissing):
        VersionLog.open(str(tmp_path / "versions"))
    assert list(tmp_path.iterdir()) == []
    assert VersionLog.ensure(str(tmp_path / "versions")).latest() is None


def test_reading_the_newest_version_opens_one_file(versions: VersionLog) -> None:
    for n in range(4):
        add(versions, {"orders": n})
    table = versions.records.table
    for file in table.files()[:-1]:
        Path(table.uri, file.path).unlink()
    latest = VersionLog.open(versions.records.uri).latest()
    assert latest is not None
    assert latest.version == 4


def test_versions_stay_readable_when_compacted(versions: VersionLog) -> None:
    rows = [add(versions, {"orders": n}, seconds=n) for n in range(10)]
    assert compact(versions.records.table, small_bytes=10**6, run_length=2) == 10
    again = VersionLog.open(versions.records.uri)
    assert again.between(1, 10) == rows
    assert again.between(4, 6) == rows[3:6]
    found = again.records.last_upto("committed_at", MOMENT + timedelta(seconds=4.5))
    assert found is not None
    assert found["version"] == 5


def no_log(table: str, generation: int) -> ChangeLog:
    raise AssertionError(f"the log of {table} was opened")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", 12),
        ("0/16B3748", Lsn(0x16B3748)),
        ("A/0", Lsn(10 << 32)),
        ("2026-03-01T12:00:00+02:00", datetime(2026, 3, 1, 10, tzinfo=UTC)),
        ("2026-03-01 12:00", datetime(2026, 3, 1, 12, tzinfo=UTC)),
    ],
)
def test_an_as_of_is_read_from_text(text: str, expected: object) -> None:
    found = parse_as_of(text)
    assert found == expected
    assert type(found) is type(expected)


def test_a_senseless_as_of_is_refused_with_a_hint() -> None:
    for text in ("yesterday", "1/2/3", "-4", "G/0"):
        with pytest.raises(AsOfRefused) as refused:
            parse_as_of(text)
        assert "2026-03-01T12:00:00" in str(refused.value)


def test_an_lsn_prints_as_it_is_written() -> None:
    lsn = Lsn.parse("16/B374D848")
    assert (str(lsn), repr(lsn), f"{lsn:>12}") == ("16/B374D848", "Lsn('16/B374D848')", " 16/B374D848")
    assert lsn == (0x16 << 32) + 0xB374D848
    with pytest.raises(ValueError, match="log sequence number"):
        Lsn.parse("16")


def test_versions_resolve_without_opening_a_log(versions: VersionLog) -> None:
    add(versions, {"orders": 1}, lsn=10, seconds=0)
    add(versions, {"orders": 4}, lsn=20, seconds=5)
    assert versions.resolve(1, log=no_log) == Cut(1, {"orders": 1}, 10, MOMENT)
    assert versions.resolve(None, log=no_log).version == 2
    assert versions.resolve("2", log=no_log).tables == {"orders": 4}
    assert versions.resolve(Lsn(20), log=no_log).version == 2
    assert versions.resolve(MOMENT + timedelta(seconds=5), log=no_log).version == 2


def test_what_is_not_held_is_refused_with_the_range(versions: VersionLog) -> None:
    add(versions, {"orders": 1}, lsn=0x10, seconds=0)
    add(versions, {"orders": 4}, lsn=0x20, seconds=5)
    horizon = Horizon({"orders": 4}, lsn=0x30, observed_at=MOMENT + timedelta(seconds=60))
    with pytest.raises(AsOfRefused, match="no version 3") as refused:
        versions.resolve(3, log=no_log)
    assert refused.value.available == ["1 to 2"]
    with pytest.raises(AsOfRefused, match="before the first version"):
        versions.resolve(MOMENT - timedelta(seconds=1), log=no_log, horizon=horizon)
    with pytest.raises(AsOfRefused, match="before the first version"):
        versions.resolve(Lsn(0xF), log=no_log, horizon=horizon)
    with pytest.raises(AsOfRefused, match="beyond what was observed") as refused:
        versions.resolve("0/31", log=no_log, horizon=horizon)
    assert refused.value.available == ["0/10 to 0/30"]
    with pytest.raises(AsOfRefused, match="beyond what was observed"):
        versions.resolve(MOMENT + timedelta(seconds=61), log=no_log, horizon=horizon)
    with pytest.raises(AsOfRefused, match="beyond what was observed"):
        versions.resolve(MOMENT + timedelta(seconds=6), log=no_log)
    # The source was seen to be silent since: the newest version is the answer.
    assert versions.resolve(MOMENT + timedelta(seconds=60), log=no_log, horizon=horizon).version == 2
    assert versions.resolve("0/30", log=no_log, horizon=horizon).version == 2


def test_one_position_says_nothing_about_several_inputs(versions: VersionLog) -> None:
    versions.append(
        tables={"t": 1},
        positions={"a": InputPosition(1), "b": InputPosition(2)},
        row_count={},
        contract_hash="",
        code_version="",
        run_id="",
        actor="",
        committed_at=MOMENT,
    )
    with pytest.raises(AsOfRefused, match="2 inputs"):
        versions.resolve(Lsn(1), log=no_log)


def test_between_two_versions_a_table_lies_where_the_earlier_has_it(
    tmp_path: Path, versions: VersionLog
) -> None:
    logs = {
        ("orders", 1): ChangeLog.create(str(tmp_path / "orders"), ROW, ("id",)),
        ("order_lines", 1): ChangeLog.create(str(tmp_path / "order_lines"), ROW, ("id",)),
    }
    append(logs["orders", 1], frame([1, 2], lsn=10))
    append(logs["order_lines", 1], frame([1], lsn=10))
    add(versions, {"orders": 1, "order_lines": 0}, lsn=10)
    logs["orders", 2] = ChangeLog.create(str(tmp_path / "orders.g2"), ROW, ("id",), after=1)
    append(logs["orders", 2], frame([1, 2], lsn=20, seconds=9))
    # A row that was in quarantine is logged once more where and when it was at first.
    append(logs["order_lines", 1], frame([2], lsn=10, first_ordinal=3))
    add(versions, {"orders": 3, "order_lines": 1}, lsn=20, seconds=9, generations={"orders": 2})
    cut = versions.resolve(MOMENT + timedelta(seconds=5), log=lambda *which: logs[which])
    assert (cut.version, cut.tables) == (None, {"orders": 1, "order_lines": 1})
    assert (cut.generation("orders"), cut.generation("order_lines")) == (1, 1)
    after = versions.resolve(MOMENT + timedelta(seconds=9), log=no_log)
    assert (after.version, after.generation("orders")) == (2, 2)


# -- against a model --------------------------------------------------------------------------

TABLES = ("orders", "order_lines")
transactions = st.lists(
    st.tuples(
        st.integers(0, 12),  # commit time in seconds: not in the order of positions
        st.lists(st.sampled_from(TABLES), min_size=1, max_size=3),
        st.booleans(),  # whether a version is cut after it
    ),
    min_size=1,
    max_size=8,
)


@given(transactions, st.integers(-1, 13), st.booleans())
@settings(max_examples=20, deadline=None)
def test_resolve_agrees_with_a_walk_over_all_changes(
    history: list[tuple[int, list[str], bool]], asked: int, by_time: bool
) -> None:
    with TemporaryDirectory() as folder:
        logs = {table: ChangeLog.create(f"{folder}/{table}", ROW, ("id",)) for table in TABLES}
        versions = VersionLog(f"{folder}/versions")
        walk: list[tuple[int, int, str]] = []  # (lsn, seconds, table) in order of position
        for number, (seconds, touched, cut) in enumerate(history):
            lsn = 100 + number
            for ordinal, table in enumerate(touched):
                append(logs[table], frame([ordinal], lsn=lsn, seconds=seconds, first_ordinal=ordinal))
                walk.append((lsn, seconds, table))
            if cut or number == 0:
                heads = {table: log.seq for table, log in logs.items()}
                add(versions, heads, lsn=lsn, seconds=max(s for _, s, _ in walk))
        observed = max(seconds for _, seconds, _ in walk)
        horizon = Horizon(
            {table: log.seq for table, log in logs.items()},
            lsn=100 + len(history) - 1,
            observed_at=MOMENT + timedelta(seconds=observed),
        )
        as_of = MOMENT + timedelta(seconds=asked) if by_time else Lsn(100 + asked)
        first = versions.at(1)
        assert first is not None
        begins = first.committed_at if by_time else Lsn(first.lsn or 0)
        ends = horizon.observed_at if by_time else Lsn(horizon.lsn)
        if not begins <= as_of <= ends:  # type: ignore[operator]
            with pytest.raises(AsOfRefused):
                versions.resolve(as_of, log=lambda table, generation: logs[table], horizon=horizon)
            return
        highest = itertools.accumulate((seconds for _, seconds, _ in walk), max)
        included = [
            (lsn, seconds, table)
            for (lsn, seconds, table), reached in zip(walk, highest, strict=True)
            if (reached <= asked if by_time else lsn <= 100 + asked)
        ]
        expected = {table: sum(1 for row in included if row[2] == table) - 1 for table in TABLES}
        found = versions.resolve(as_of, log=lambda table, generation: logs[table], horizon=horizon)
        assert dict(found.tables) == expected
        assert found.lsn == included[-1][0]
        assert found.committed_at == MOMENT + timedelta(seconds=max(s for _, s, _ in included))
        if found.version is not None:
            named = versions.at(found.version)
            assert named is not None
            assert dict(named.tables) == expected
