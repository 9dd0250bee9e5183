"""Every Delta commit of every product table is explained by exactly one run, whatever happens."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from mesh_assets.ingest.shift import Shift
from mesh_assets.lake import table as table_module
from mesh_assets.lake.current import FoldPolicy
from mesh_assets.lake.file import FileRef
from mesh_assets.lake.signature import signatures
from mesh_assets.lake.table import Table
from mesh_assets.lake.upkeep import Upkeep, archive
from mesh_assets.lineage import completeness
from mesh_assets.lineage.completeness import Explanation, explain, explain_further
from mesh_assets.lineage.dataset import Dataset
from mesh_assets.lineage.event import LineageRun, lake_output
from mesh_assets.lineage.reconcile import close_dead
from mesh_assets.lineage.recorder import Recorder, Recording
from mesh_assets.lineage.store import read
from mesh_assets.names import lake_dataset
from mesh_assets.shift.report import Budget
from tests.crash.pool import KILLED, Pool
from tests.crash.world import World
from tests.lineage.specification import facets, problems

EAGER = Budget(
    claim_seconds=60,
    idle_seconds=0.1,
    batch_seconds=0.02,
    batch_rows=100,
    snapshot_rows=25,
    fold=FoldPolicy(share=0.0, min_count=1, min_age_seconds=0.0),
    upkeep=Upkeep(
        archive_seconds=0.0, vacuum_seconds=60.0, run_length=3, commit_count=3, look_seconds=0, tend_seconds=0
    ),
)


def explained(world: World) -> Explanation:
    name = world.plan.products[0]
    return explain(world.plan.layout, name, [target.table for target in world.plan.targets])


def told(world: World) -> pl.DataFrame:
    return read(world.plan.layout.lineage()).collect().sort("event_time")


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints so often that there is something to archive."""
    monkeypatch.setattr(table_module, "CHECKPOINT_INTERVAL", 4)


@pytest.mark.usefixtures("often")
def test_shifts_folds_and_upkeep_explain_every_commit(world: World) -> None:
    for _ in range(3):
        Shift(world.plan, budget=EAGER).run()
        world.application.transact(30)
    found = explained(world)
    assert found.complete, [one.sentence() for one in (*found.unexplained, *found.ambiguous)]
    assert (found.pending, found.unlisted) == ((), ())
    versions = {one.changes_uri: Table.open(one.changes_uri).version for one in world.plan.targets}
    versions |= {one.current_uri: Table.open(one.current_uri).version for one in world.plan.targets}
    log = world.plan.layout.versions(world.plan.products[0])
    versions[log] = Table.open(log).version
    assert found.commit_count == sum(version + 1 for version in versions.values())
    assert "commits are explained by exactly one run" in found.sentence()
    events = told(world)
    assert {"CAPTURE", "FOLD", "UPKEEP"} == {
        json.loads(event)["job"]["facets"]["jobType"]["jobType"] for event in events["event"]
    }
    ends = events.filter(pl.col("event_type").is_in(["COMPLETE", "FAIL", "ABORT"]))
    assert sorted(ends["run_id"]) == sorted(events["run_id"].unique())


@pytest.mark.usefixtures("often")
def test_events_are_as_the_specification_wants_them(world: World) -> None:
    Shift(world.plan, budget=EAGER).run()
    world.application.transact(30)
    Shift(world.plan, budget=EAGER).run()
    seen: set[str] = set()
    for text in told(world)["event"]:
        event = json.loads(text)
        assert problems(event) == []
        seen |= {path.rpartition(".")[2] for path, _ in facets(event)}
    assert seen >= {
        "columnLineage",
        "dataQualityMetrics",
        "dataSource",
        "inputStatistics",
        "jobType",
        "lifecycleStateChange",
        "mesh_deltaVersions",
        "mesh_process",
        "mesh_product",
        "outputStatistics",
        "parent",
        "processing_engine",
        "schema",
        "sourceCodeLocation",
        "storage",
        "symlinks",
        "catalog",
        "version",
    }


def test_statistics_and_columns_are_those_of_the_tables(world: World) -> None:
    Shift(world.plan, budget=EAGER).run()
    target = world.plan.targets[0]
    ended = json.loads(told(world).filter(event_type="COMPLETE", job_name="app.capture")["event"][0])
    output = next(one for one in ended["outputs"] if one["name"] == target.changes_uri)
    log = Table.open(target.changes_uri)
    assert output["outputFacets"]["outputStatistics"]["rowCount"] == sum(f.row_count for f in log.files())
    assert [field["name"] for field in output["facets"]["schema"]["fields"]] == log.schema.names
    columns = output["facets"]["columnLineage"]["fields"]
    assert set(columns) == {name for name in log.schema.names if not name.startswith("_")}
    source = next(one for one in ended["inputs"] if one["name"].endswith(target.source_table))
    for name, lineage in columns.items():
        [origin] = lineage["inputFields"]
        assert (origin["namespace"], origin["name"]) == (source["namespace"], source["name"])
        assert (origin["field"], origin["transformations"][0]["subtype"]) == (name, "IDENTITY")


def test_archived_commits_are_found(world: World) -> None:
    Shift(world.plan, budget=EAGER).run()
    uri = world.plan.targets[0].changes_uri
    before = list(signatures(uri))
    log = Table.open(uri)
    for _ in range(2):
        log.append(log.schema.empty_table(), transactions={})
        log.checkpoint()
    assert archive(log, grace_seconds=0.0) >= len(before)
    after = list(signatures(uri))
    assert after[: len(before)] == before
    assert [one.version for one in after] == list(range(log.version + 1))
    assert [one.version for one in signatures(uri, after=1)] == list(range(2, log.version + 1))


def test_a_commit_of_another_program_is_named(world: World) -> None:
    Shift(world.plan, budget=EAGER).run()
    uri = world.plan.targets[0].current_uri
    schema = Table.open(uri).schema
    row: dict[str, Any] = {field.name: pa.nulls(1, field.type) for field in schema}
    write_deltalake(uri, pa.table(row, schema=schema), mode="append")
    found = explained(world)
    assert not found.complete
    [commit] = found.unexplained
    assert (commit.uri, commit.version) == (uri, Table.open(uri).version)
    assert "another program made it" in commit.sentence()


def test_a_commit_that_two_runs_claim_is_named(world: World) -> None:
    Shift(world.plan, budget=EAGER).run()
    uri = world.plan.targets[0].changes_uri
    other = LineageRun("mesh.shop", "imposter", "CAPTURE")
    with Recorder(world.plan.layout.lineage(), log=print) as recorder:
        recorder.emit(other.complete(outputs=[lake_output(uri, version=1, first_version=1)]))
    found = explained(world)
    [commit] = found.ambiguous
    assert (commit.uri, commit.version, len(commit.listed_by)) == (uri, 1, 2)
    assert "2 runs" in commit.sentence()


def further(world: World) -> Explanation:
    name = world.plan.products[0]
    return explain_further(world.plan.layout, name, [target.table for target in world.plan.targets])


def append(world: World, recording: Recording | None = None) -> int:
    """A commit to a change log; in the name of a run, if one is given."""
    log = Table.open(world.plan.targets[0].changes_uri)
    with recording.making() if recording else nullcontext():
        return log.append(log.schema.empty_table(), transactions={})


def recording(world: World, recorder: Recorder, name: str) -> Recording:
    target = world.plan.targets[0]
    dataset = Dataset(lake_dataset(target.changes_uri))
    return Recording(recorder, LineageRun("mesh.shop", name, "CAPTURE"), [dataset])


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One host has one clock: a test need not wait until events are old."""
    monkeypatch.setattr(completeness, "_CLOCKS", timedelta(0))


@pytest.mark.usefixtures("clocks")
def test_a_further_look_reads_what_is_new(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = Table.scan

    def scan(self: Table, files: Iterable[FileRef]) -> pl.LazyFrame:
        chosen = list(files)
        opened.extend(file.path for file in chosen)
        return original(self, chosen)

    for _ in range(3):
        Shift(world.plan, budget=EAGER).run()
        world.application.transact(30)
    whole = explained(world)
    held = {file.path for file in Table.open(world.plan.layout.lineage()).files()}
    monkeypatch.setattr(Table, "scan", scan)
    first = further(world)
    assert first.complete
    assert first.commit_count == whole.commit_count
    # All but the very first event, that a shift begins: it comes before any commit.
    assert len(held) - 1 <= len(opened) <= len(held)
    opened.clear()
    again = further(world)
    assert (again.complete, again.commit_count, opened) == (True, 0, [])
    Shift(world.plan, budget=EAGER).run()
    opened.clear()
    third = further(world)
    assert third.complete
    assert opened
    assert held.isdisjoint(opened)
    assert 0 < third.commit_count == explained(world).commit_count - whole.commit_count
    # Nothing is lost with what was remembered.
    Path(world.plan.layout.catalog(world.plan.products[0]), "explained.json").write_text("nonsense")
    assert further(world).commit_count == whole.commit_count + third.commit_count


@pytest.mark.usefixtures("clocks")
def test_a_further_look_finds_what_no_run_made(world: World) -> None:
    Shift(world.plan, budget=EAGER).run()
    assert further(world).complete
    version = append(world)
    for _ in range(2):
        # It is told as long as nothing explains it.
        [commit] = further(world).unexplained
        assert (commit.version, commit.made_by) == (version, "")
    uri = world.plan.targets[0].changes_uri
    with Recorder(world.plan.layout.lineage(), log=print) as recorder:
        late = LineageRun("mesh.shop", "app.late", "CAPTURE")
        recorder.emit(late.complete(outputs=[lake_output(uri, version=version, first_version=version)]))
    found = further(world)
    assert (found.complete, found.unexplained) == (True, ())
    assert further(world).commit_count == 0


@pytest.mark.usefixtures("clocks")
def test_a_further_look_waits_for_events_that_come_late(world: World) -> None:
    Shift(world.plan, budget=EAGER).run()
    layout = world.plan.layout
    assert further(world).complete
    with Recorder(layout.lineage(), log=print) as recorder:
        slow = recording(world, recorder, "app.slow")
        slow.start()
        assert further(world).complete
        version = append(world, slow)
        happened = datetime.now(UTC)
        [pending] = further(world).pending
        assert (pending.version, pending.made_by) == (version, slow.run.run_id)
        # Looks go on while the event is on its way.
        assert [one.version for one in further(world).pending] == [version]
        output = lake_output(pending.uri, version=version, first_version=version)
        recorder.emit(slow.run.running(happened, outputs=[output]), urgent=True)
        assert further(world).pending == ()
        # The run is closed by somebody else later, with what it did not tell any more.
        untold = append(world, slow)
        assert [one.version for one in further(world).pending] == [untold]
    ended = close_dead(layout.lineage(), Recorder(layout.lineage(), log=print), alive=lambda run: False)
    assert [one.run_id for one in ended] == [slow.run.run_id]
    found = further(world)
    assert (found.complete, found.pending, found.unlisted) == (True, (), ())


@pytest.mark.usefixtures("clocks")
def test_a_further_look_finds_a_second_claim_on_what_was_proved(world: World) -> None:
    Shift(world.plan, budget=EAGER).run()
    assert further(world).complete
    uri = world.plan.targets[0].changes_uri
    with Recorder(world.plan.layout.lineage(), log=print) as recorder:
        other = LineageRun("mesh.shop", "imposter", "CAPTURE")
        recorder.emit(other.complete(outputs=[lake_output(uri, version=1, first_version=1)]))
    for _ in range(2):
        [commit] = further(world).ambiguous
        assert (commit.uri, commit.version, len(commit.claims)) == (uri, 1, 2)


@pytest.mark.usefixtures("clocks")
def test_a_table_that_was_made_anew_is_looked_at_from_its_start(world: World) -> None:
    Shift(world.plan, budget=EAGER).run()
    assert further(world).complete
    uri = world.plan.targets[0].current_uri
    schema = Table.open(uri).schema
    shutil.rmtree(uri)
    Table.create(uri, schema)
    [commit] = further(world).unexplained
    assert (commit.uri, commit.version) == (uri, 0)


_DYING = """
import os, signal, sys
from mesh_assets.checks.evaluation import check_product
from mesh_assets.checks.statistics import refresh
from mesh_assets.ingest.lineage import ShiftLineage
from mesh_assets.lake.table import Table
from mesh_assets.lake.version import VersionLog
from tests.crash.world import PRODUCT, plan_for
url, lake, part, inside = sys.argv[1:]
plan = plan_for(url, lake, gated=True)
append = Table.append
def dying(self, *arguments, **options):
    append(self, *arguments, **options)
    if self.uri == plan.layout.catalog(PRODUCT, part):
        os.kill(os.getpid(), signal.SIGKILL)
Table.append = dying
shift = ShiftLineage(plan, "", print)
tending = shift.__enter__().tending if inside else None
product, row = plan.definitions[PRODUCT], VersionLog(plan.layout.versions(PRODUCT)).latest()
check_product(plan.layout, product, row, tending=tending)
refresh(plan.layout, product, row, tending=tending)
"""


def test_what_a_killed_check_kept_is_explained(world: World) -> None:
    """Outcomes and statistics that are durable while their run is not told yet, in a shift and by hand."""
    lineage, name = world.plan.layout.lineage(), world.plan.products[0]
    for inside in ("shift", ""):
        for part in ("checks", "statistics"):
            world.application.transact(10)
            Shift(world.plan, budget=EAGER).run()
            arguments = [sys.executable, "-c", _DYING, world.url, str(world.lake), part, inside]
            died = subprocess.run(arguments, capture_output=True, text=True, check=False)
            assert died.returncode == -signal.SIGKILL, died.stderr
            between = explained(world)
            assert between.complete, [one.sentence() for one in between.unexplained]
            uri = world.plan.layout.catalog(name, part)
            assert Table.open(uri).version in [one.version for one in between.pending if one.uri == uri]
            if not inside:
                # The catalog's fold closes what no shift looks after.
                with Recorder(lineage, log=print) as recorder:
                    assert close_dead(lineage, recorder)
    Shift(world.plan, budget=EAGER).run()
    found = explained(world)
    assert found.complete, [one.sentence() for one in (*found.unexplained, *found.ambiguous)]
    assert (found.pending, found.unlisted) == ((), ())


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool() as pool:
        yield pool


@pytest.mark.slow
def test_what_nobody_told_of_a_dead_run_is_told_by_the_next_look(
    world: World, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a shift that had lost its source was killed after its successor had ended."""
    layout, name = world.plan.layout, world.plan.products[0]
    tables = [target.table for target in world.plan.targets]
    world.application.transact(25)
    assert world.shift(pool, "fold.after:1") == KILLED
    with Recorder(layout.lineage(), log=print) as recorder:
        assert [run.kind for run in close_dead(layout.lineage(), recorder)] == ["CAPTURE"]
        # A fold may go on a little after the run above it has ended, and tell it then.
        young = explain_further(layout, name, tables, emitter=recorder)
        assert young.complete
        assert {one.uri for one in young.pending} < {one.current_uri for one in world.plan.targets}
        monkeypatch.setattr(completeness, "_TELLING", timedelta(0))
        before = explain_further(layout, name, tables)
        folded = {one.uri for one in before.unexplained}
        assert len(folded) == 1
        assert folded < {one.current_uri for one in world.plan.targets}
        found = explain_further(layout, name, tables, emitter=recorder)
    assert found.complete, [one.sentence() for one in (*found.unexplained, *found.ambiguous)]
    assert (found.pending, found.unlisted) == ((), ())
    assert explain_further(layout, name, tables).commit_count == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kills_leave_no_commit_unexplained(world: World, pool: Pool) -> None:
    """Also those that a run made just before it died, and those of folds that never told anything."""
    points = (
        "snapshot.chunk:2",
        "append.first:1",
        "version.after:1",
        "fold.after:1",
        "compact.after:1",
        "ledger.before:1",
    )
    pending_count = 0
    for point in points:
        world.application.transact(25)
        if world.shift(pool, point) != KILLED:
            pytest.fail(f"the shift never reached {point}")
        between = explained(world)
        assert between.complete, (point, [one.sentence() for one in between.unexplained])
        pending_count += len(between.pending)
    assert pending_count > 0
    world.application.transact(5)
    assert world.shift(pool) == 0
    found = explained(world)
    assert found.complete, [one.sentence() for one in (*found.unexplained, *found.ambiguous)]
    assert (found.pending, found.unlisted) == ((), ())
    events = told(world)
    aborted = events.filter(event_type="ABORT")
    assert aborted.filter(job_name="app.capture").height == len(points)
    assert aborted.filter(pl.col("job_name").str.ends_with(".fold")).height >= 1
    for text in aborted["event"]:
        assert problems(json.loads(text)) == []
