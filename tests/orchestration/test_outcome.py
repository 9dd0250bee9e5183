"""Outcomes of quality rules as Dagster keeps them: with a history, and without needless repetition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from mesh_assets.checks.log import Checked
from mesh_assets.names import CURRENT, Layout, ProductName
from mesh_assets.orchestration.outcome import SAME_SECONDS, Outcomes
from mesh_assets.orchestration.prune import Keeping, prune
from mesh_assets.orchestration.rule import check_name
from mesh_assets.orchestration.storage import InstanceStorage
from mesh_assets.shift.report import CheckReport

NAME = ProductName("sales", "orders")
KEY = dg.AssetCheckKey(dg.AssetKey(NAME.asset_key(CURRENT, "orders")), "amount_positive")


def checked(version: int, unexpected: int, *, severity: str = "error", observed: str = "") -> Checked:
    status = "passed" if not unexpected else "failed" if severity == "error" else "warning"
    return Checked(
        evaluation=version,
        version=version,
        rule="orders.amount_positive",
        table="orders",
        columns=("amount",),
        status=status,
        severity=severity,
        scope="table",
        blocking=False,
        dimension="",
        description="",
        message="",
        observed=observed,
        unexpected_count=unexpected,
        row_count=100,
        quarantined_count=0,
        result="{}",
        contract_hash="",
        rules_hash="",
        run_id="run",
        at=datetime.now(UTC),
    )


@pytest.fixture
def instance(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """An instance with the storage that `dagster.yaml` names."""
    monkeypatch.setenv("MESH_DAGSTER_POSTGRES_URL", database_url)
    storage = {"module": InstanceStorage.__module__, "class": InstanceStorage.__name__, "config": {}}
    overrides = {"storage": {"custom": storage}, "telemetry": {"enabled": False}}
    with dg.instance_for_test(overrides=overrides, temp_dir=str(tmp_path)) as found:
        yield found


def shift(instance: dg.DagsterInstance, outcomes: Sequence[Checked], seconds: float = 60.0) -> str:
    """A run that tells these outcomes, one after another; returns its id."""

    @dg.asset(key=KEY.asset_key)
    def drain(context) -> None:  # type: ignore[no-untyped-def]
        now = [0.0]
        told = Outcomes(context.log_event, Layout("/nowhere"), clock=lambda: now[0])
        for one in outcomes:
            now[0] += seconds
            told.tell(CheckReport(NAME, one.version, (one,), datetime.now(UTC), 0.1))

    result = dg.materialize([drain], instance=instance)
    assert result.success
    return result.run_id


def evaluations(instance: dg.DagsterInstance) -> list[dg.AssetCheckEvaluation]:
    """The check's history, oldest first."""
    records = instance.event_log_storage.get_asset_check_execution_history(KEY, limit=100)
    found = [one.event.dagster_event for one in reversed(records) if one.event is not None]
    return [event.asset_check_evaluation_data for event in found if event is not None]


def test_every_new_outcome_of_a_run_stays_in_the_history(instance: dg.DagsterInstance) -> None:
    shift(instance, [checked(version, count) for version, count in enumerate((0, 0, 3, 5, 5, 0), 1)])
    shift(instance, [checked(7, 1)])
    found = evaluations(instance)
    assert [one.metadata["quality/unexpected_count"].value for one in found] == [0, 3, 5, 0, 1]
    assert [one.passed for one in found] == [True, False, False, True, False]


def test_an_outcome_that_stays_is_told_now_and_then(instance: dg.DagsterInstance) -> None:
    shift(instance, [checked(version, 0) for version in range(1, 22)])
    assert len(evaluations(instance)) == 20 * 60 / SAME_SECONDS + 1


def test_of_old_outcomes_the_newest_of_each_run_stays(instance: dg.DagsterInstance) -> None:
    shift(instance, [checked(version, version) for version in range(1, 5)])
    shift(instance, [checked(version, version) for version in range(5, 9)])
    later = datetime.now(UTC) + timedelta(days=1)
    assert prune(instance, Keeping(), now=later).check_count == 6
    assert [one.metadata["mesh/version"].value for one in evaluations(instance)] == [4, 8]


def test_a_planned_check_is_completed_and_not_there_twice(instance: dg.DagsterInstance) -> None:
    @dg.asset(key=KEY.asset_key, check_specs=[dg.AssetCheckSpec(KEY.name, asset=KEY.asset_key)])
    def judged():  # type: ignore[no-untyped-def]
        return dg.MaterializeResult(check_results=[dg.AssetCheckResult(passed=True, check_name=KEY.name)])

    assert dg.materialize([judged], instance=instance).success
    assert [one.passed for one in evaluations(instance)] == [True]


def test_a_warning_is_a_warning_and_a_number_is_a_number(instance: dg.DagsterInstance) -> None:
    shift(instance, [checked(1, 2, severity="warning", observed="2.5")])
    (evaluation,) = evaluations(instance)
    assert evaluation.severity == dg.AssetCheckSeverity.WARN
    assert not evaluation.passed
    assert evaluation.metadata["quality/observed"].value == 2.5


def test_names_of_checks_are_unique_and_valid() -> None:
    assert check_name("orders.amount_positive") == "amount_positive"
    assert check_name("orders.amount.required") == "amount_required"
    assert check_name("orders.a-b") != check_name("orders.a b") != check_name("orders.a_b")
    assert check_name("orders.ä").isidentifier()
