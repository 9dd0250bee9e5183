"""The gate at a real source: what fails is kept out, told, and released when its rule is mended."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mesh_assets.catalog.releases import Releases
from mesh_assets.cdc.source import Source
from mesh_assets.checks import log as checks
from mesh_assets.cli.app import app
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.version import VersionLog
from mesh_assets.lineage.completeness import Explanation, explain
from mesh_assets.parity import ParityResult
from mesh_assets.quarantine import quarantine, replay
from mesh_assets.shift.report import CheckReport, Silent, VersionReport
from tests.quarantine.shop import NAME, PEOPLE, QUICK, Shop
from tests.waiting import PATIENCE_SECONDS

LARGE = "repeat('large', 1000)"
BODY = "large" * 1000


@pytest.fixture
def shop(database_url: str, tmp_path: Path) -> Shop:
    """A source with three rows of which one fails a rule, not captured yet."""
    shop = Shop(database_url, tmp_path / "home")
    shop.execute(f"insert into shop.things values (1, 1, {LARGE}), (2, 2, {LARGE}), (3, -3, 'small')")
    return shop


def parity(shop: Shop) -> ParityResult:
    """Source and lake at one position."""
    result = shop.mesh.parity("shop.things")
    assert result.equal, result.sentence()
    return result


def explained(shop: Shop) -> Explanation:
    """Every commit is explained by one run, and nothing is left to tell."""
    found = explain(shop.plan.layout, NAME, ["things", "notes"])
    assert found.complete, [one.sentence() for one in (*found.unexplained, *found.ambiguous)]
    assert (found.pending, found.unlisted) == ((), ())
    return found


def test_a_row_that_fails_waits_in_quarantine_until_it_is_right(shop: Shop) -> None:
    shop.drain()
    assert shop.current() == {1: (1, BODY), 2: (2, BODY)}
    shop.execute("update shop.things set number = -1, body = 'bad' where thing_id = 1", "truncate shop.notes")
    # The large text is not in this change, which joins no entry: key 2 has none.
    shop.execute("update shop.things set number = 22 where thing_id = 2")
    shop.drain()
    assert shop.current() == {1: (1, BODY), 2: (22, BODY)}
    (found,) = quarantine(shop.mesh)
    assert [entry.key for entry in found.entries] == [{"thing_id": 3}, {"thing_id": 1}]
    assert found.entries[1].row == {"thing_id": 1, "number": -1, "body": "bad"}
    assert found.entries[1].reasons[0].rule == "things.number_is_not_below"
    assert found.entries[1].reasons[0].description == "Nothing counts less than nothing."
    result = parity(shop)
    assert result.row_count == 3
    assert result.quarantined_count == 2
    assert result.quarantined == ({"thing_id": 3}, {"thing_id": 1})
    assert "2 keys are in quarantine" in result.sentence()
    shop.execute("update shop.things set number = 7, body = 'good' where thing_id = 1")
    shop.execute("delete from shop.things where thing_id = 3")
    shop.drain()
    assert shop.current() == {1: (7, "good"), 2: (22, BODY)}
    assert list(quarantine(shop.mesh)) == []
    assert parity(shop).quarantined_count == 0


def test_a_replay_without_a_shift_is_done_under_the_mended_rule(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.drain()
    shop.execute("update shop.things set number = -1 where thing_id = 1")
    shop.execute("update shop.things set number = 5 where thing_id = 1")
    shop.execute("update shop.things set number = -50 where thing_id = 2")
    shop.drain()
    # The second change left the large text out, so it joined the entry of the first.
    assert shop.current() == {1: (1, BODY), 2: (2, BODY)}
    monkeypatch.setenv("MESH_HOME", str(shop.settings.home))
    monkeypatch.setenv("MESH_PRODUCTS", str(shop.settings.products))
    run = CliRunner().invoke
    listed = json.loads(run(app, ["quarantine", "shop.things", "--json"]).stdout)
    assert [(one["table"], one["keys"], one["changes"]) for one in listed] == [("shop.things.things", 3, 4)]
    rows = {entry["key"]["thing_id"]: entry["row"]["number"] for entry in listed[0]["entries"]}
    assert rows == {1: 5, 2: -50, 3: -3}
    assert "thing_id=3" in run(app, ["quarantine"], env={"COLUMNS": "200"}).stdout

    shop.edit("WHERE number < 0", "WHERE number < -10")
    shop.edit("version: 1.0.0", "version: 2.0.0")
    answered = run(app, ["quarantine", "replay", "shop.things", "--json"])
    assert answered.exit_code == 1
    done = json.loads(answered.stdout)["tables"]["things"]
    assert (done["released"], done["kept"], done["row_count"]) == (2, 1, 3)
    assert shop.current() == {1: (5, BODY), 2: (2, BODY), 3: (-3, "small")}
    assert parity(shop).quarantined == ({"thing_id": 2},)
    log = ChangeLog.open(shop.plan.targets[1].changes_uri)
    rejected = log.scan().collect()["_rejected_by"].drop_nulls().to_list()
    assert len(rejected) == 4
    assert not list(Path(shop.settings.lake_root).rglob("*.request.json"))
    # Also what the replay's own short shift committed.
    assert explained(shop).commit_count > 0


def test_a_running_shift_is_asked_to_replay(shop: Shop) -> None:
    shop.drain()
    shop.edit("WHERE number < 0", "WHERE number < -10")
    shop.edit("version: 1.0.0", "version: 2.0.0")
    ready, done = threading.Event(), threading.Event()

    class Watching(Silent):
        def version(self, report: VersionReport) -> None:
            ready.set()

        def cancelled(self) -> bool:
            return done.is_set()

    shop.execute("insert into shop.things values (9, 9, 'new')")
    results = []
    budget = replace(QUICK, idle_seconds=PATIENCE_SECONDS)
    thread = threading.Thread(target=lambda: results.append(shop.drain(Watching(), budget)))
    thread.start()
    try:
        assert ready.wait(PATIENCE_SECONDS)
        answer = replay(shop.mesh, "shop.things.things")
        # Its version is written at once: a reader need not wait for the next change.
        assert shop.current() == {1: (1, BODY), 2: (2, BODY), 3: (-3, "small"), 9: (9, "new")}
    finally:
        done.set()
        thread.join()
    assert answer.tables["things"].released == 1
    assert results[0].reason == "cancelled"
    assert parity(shop).quarantined_count == 0
    assert explained(shop).commit_count > 0


def test_a_table_read_again_holds_what_is_quarantined(shop: Shop) -> None:
    shop.drain()
    shop.execute("update shop.things set number = -1 where thing_id = 1")
    shop.drain()
    log = ChangeLog.open(shop.plan.targets[1].changes_uri)
    with Source(shop.plan.source) as source:
        source.drop_slot()
    # In the gap one failing row goes, another comes back to what current holds of it, a third one comes.
    shop.execute(
        "delete from shop.things where thing_id = 3",
        "update shop.things set number = 1 where thing_id = 1",
        "insert into shop.things values (4, -4, 'also bad')",
    )
    shop.drain()
    assert shop.current() == {1: (1, BODY), 2: (2, BODY)}
    assert parity(shop).quarantined == ({"thing_id": 4},)
    ops = log.table.read()["_op"].to_pylist()
    again = ChangeLog.open(log.table.uri).scan(log.seq).collect().sort("_seq")
    assert len(ops) == log.seq + 1
    assert again.select("_op", "thing_id").rows() == [("r", 1), ("r", 4), ("d", 3)]
    # Read again once more, with nothing changed: what is quarantined is known and does not come again.
    with Source(shop.plan.source) as source:
        source.drop_slot()
    shop.drain()
    assert ChangeLog.open(log.table.uri).seq == log.seq + 3


def test_a_breaking_contract_is_refused_and_the_other_table_goes_on(shop: Shop) -> None:
    shop.drain()
    assert Releases(shop.plan.layout.catalog(NAME)).latest() is not None
    shop.edit("      - {name: body, logicalType: string, physicalType: text}\n", "")
    shop.execute("insert into shop.things values (5, 5, 'five')", "insert into shop.notes values (1, 'one')")
    result = shop.drain()
    assert list(result.refused) == ["shop.things"]
    said = result.refused["shop.things"]
    assert "column 'body' was removed" in said
    assert "contract.yaml:" in said
    assert "version: 2.0.0" in said
    assert ChangeLog.open(shop.plan.layout.table(NAME, "changes", "notes")).seq == 0
    shop.edit("version: 1.0.0", "version: 2.0.0")
    assert not shop.drain().refused
    assert 5 in shop.mesh.open("shop.things").polars()["thing_id"].to_list()


def test_a_blocking_table_rule_blocks_consumers_until_it_holds(shop: Shop) -> None:
    reports: list[CheckReport] = []

    class Watching(Silent):
        def checked(self, report: CheckReport) -> None:
            reports.append(report)

    layout = shop.plan.layout
    assert checks.blocked(layout, NAME) is None
    shop.drain(Watching())
    assert checks.blocked(layout, NAME) is None
    found = {one.rule: one for one in reports[-1].outcomes}
    assert found["things.there_are_few"].status == "passed"
    assert found["things.there_are_few"].blocking
    # Nothing in current breaks the row rule, but a key is in quarantine by it.
    low = found["things.number_is_not_below"]
    assert (low.status, low.quarantined_count) == ("failed", 1)
    shop.execute("insert into shop.things select n, n, '' from generate_series(100, 1200) n")
    shop.drain()
    why = checks.blocked(layout, NAME)
    assert why is not None
    assert "things.there_are_few" in why
    shop.execute("delete from shop.things where thing_id >= 100")
    shop.drain()
    assert checks.blocked(layout, NAME) is None
    history = checks.CheckLog(layout, NAME).history("things.there_are_few")
    assert [one.status for one in history] == ["passed", "failed", "passed"]
    assert [one.evaluation for one in history] == [1, 2, 3]
    # Nothing new, nothing to evaluate.
    shop.drain()
    assert len(checks.CheckLog(layout, NAME).history("things.there_are_few")) == 3


def people(shop: Shop) -> set[int]:
    return set(shop.mesh.open(str(PEOPLE)).polars()["person_id"].to_list())


def test_a_rule_that_is_wrong_stops_its_product_and_says_where(shop: Shop) -> None:
    shop.add_people()
    shop.execute("insert into shop.people values (1), (2)")
    shop.edit("WHERE number < 0", "WHERE nmber < 0")
    first: list[VersionReport] = []

    class Watching(Silent):
        def version(self, report: VersionReport) -> None:
            if not first:
                shop.execute(
                    "insert into shop.people values (3)", "insert into shop.things values (4, 4, '')"
                )
            first.append(report)

    result = shop.drain(Watching())
    assert set(result.refused) == {"shop.things", "shop.notes"}
    assert "contract.yaml:" in result.refused["shop.things"]
    assert "nmber" in result.refused["shop.things"]
    # The other product goes on, in the snapshot and in the stream.
    assert {report.name for report in first} == {PEOPLE}
    assert people(shop) == {1, 2, 3}
    assert VersionLog(shop.plan.layout.versions(NAME)).latest() is None
    shop.edit("WHERE nmber < 0", "WHERE number < 0")
    assert not shop.drain().refused
    assert shop.current() == {1: (1, BODY), 2: (2, BODY), 4: (4, "")}
    assert people(shop) == {1, 2, 3}


def test_a_product_that_does_not_exist_cannot_be_replayed(shop: Shop) -> None:
    result = CliRunner().invoke(
        app,
        ["quarantine", "replay", "shop.thing"],
        env={"MESH_HOME": str(shop.settings.home), "MESH_PRODUCTS": str(shop.settings.products)},
    )
    assert result.exit_code == 1
    assert "shop.things" in result.stderr
