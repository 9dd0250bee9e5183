"""The event log stays bounded, and the newest of everything stays."""

# Dagster reads the annotation of `context` as an object: no postponed annotations in this module.

from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from mesh_assets.orchestration.prune import Keeping, Pruned, prune

KEY = dg.AssetKey(["sales", "orders", "changes", "orders"])
LATER = datetime.now(UTC) + timedelta(days=40)


@dg.asset(key=KEY)
def reporting(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
    for number in range(5):
        context.log_event(dg.AssetMaterialization(KEY, metadata={"number": number}))
    return dg.MaterializeResult(metadata={"number": 99})


def materialisations(instance: dg.DagsterInstance) -> list[int]:
    records = instance.fetch_materializations(KEY, limit=1000).records
    return [
        int(str(record.asset_materialization.metadata["number"].value))
        for record in records
        if record.asset_materialization
    ]


def test_young_events_stay(instance: dg.DagsterInstance) -> None:
    assert dg.materialize([reporting], instance=instance).success
    assert prune(instance, Keeping()) == Pruned(0, 0, 0)
    assert len(materialisations(instance)) == 6


def test_of_old_reports_the_newest_per_run_stays(instance: dg.DagsterInstance) -> None:
    for number in range(7):
        instance.report_runless_asset_event(dg.AssetMaterialization(KEY, metadata={"number": 200 + number}))
    assert dg.materialize([reporting], instance=instance).success
    pruned = prune(instance, Keeping(run_age=timedelta(days=400)), now=LATER)
    assert pruned == Pruned(0, 11, 0)
    assert materialisations(instance) == [99, 206]


def test_old_runs_go_except_for_those_with_the_newest_report(instance: dg.DagsterInstance) -> None:
    for _ in range(3):
        assert dg.materialize([reporting], instance=instance).success
    newest = instance.get_runs(limit=1)[0].run_id
    assert prune(instance, Keeping(), now=LATER).run_count == 2
    assert [run.run_id for run in instance.get_runs()] == [newest]
    assert materialisations(instance) == [99]
    assert instance.get_latest_materialization_event(KEY) is not None


def test_run_less_evaluations_go_except_for_the_newest(instance: dg.DagsterInstance) -> None:
    for passed in (True, True, False):
        instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(asset_key=KEY, check_name="loads", passed=passed)
        )
    assert prune(instance, Keeping(), now=LATER).check_count == 2
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(
        [dg.AssetCheckKey(KEY, "loads")]
    )
    assert len(latest) == 1


def test_only_postgresql_is_pruned(tmp_path: Path) -> None:
    with (
        dg.DagsterInstance.ephemeral(str(tmp_path)) as ephemeral,
        pytest.raises(dg.DagsterInvariantViolationError),
    ):
        prune(ephemeral, Keeping())
