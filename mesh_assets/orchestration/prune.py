"""Keeps Dagster's event log bounded; the truth about every change lies in the lake.

Dagster's own ``retention`` prunes ticks only. Here: old runs are deleted with their events unless
they hold the newest report of an asset or check, and of the reports that a shift makes while it
runs, and of those made without a run, only the newest per asset stays once they are old.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg
import sqlalchemy as db
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    AssetEventTagsTable,
    SqlEventLogStorageTable,
)
from dagster_postgres.event_log import PostgresEventLogStorage

_CHUNK = 5_000
_REPORTS = ("ASSET_MATERIALIZATION", "ASSET_OBSERVATION")
_CHECKS = "ASSET_CHECK_EVALUATION"
_ENDED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)

_events = SqlEventLogStorageTable
_tags = AssetEventTagsTable
_checks = AssetCheckExecutionsTable


@dataclass(frozen=True)
class Keeping:
    """How long things are kept.

    Attributes:
        report_age: reports by running shifts and without a run.
        run_age: runs that succeeded or were cancelled.
        failure_age: runs that failed.
    """

    report_age: timedelta = timedelta(hours=6)
    run_age: timedelta = timedelta(days=3)
    failure_age: timedelta = timedelta(days=30)


@dataclass(frozen=True)
class Pruned:
    """What was removed."""

    run_count: int
    report_count: int
    check_count: int


def prune(instance: dg.DagsterInstance, keeping: Keeping, now: datetime | None = None) -> Pruned:
    """Remove what is older than it has to be kept; safe while everything runs.

    Raises:
        DagsterInvariantViolationError: if the instance does not store its events in PostgreSQL.
    """
    storage = instance.event_log_storage
    if not isinstance(storage, PostgresEventLogStorage):
        raise dg.DagsterInvariantViolationError(
            f"the event log is a {type(storage).__name__}: only one in PostgreSQL is pruned"
        )
    moment = now or datetime.now(UTC)
    report_count = _prune_reports(storage, moment - keeping.report_age)
    check_count = _prune_checks(storage, moment - keeping.report_age)
    run_count = _prune_runs(instance, storage, moment, keeping)
    return Pruned(run_count, report_count, check_count)


def _naive(moment: datetime) -> datetime:
    """As Dagster stores it: UTC without a zone."""
    return moment.astimezone(UTC).replace(tzinfo=None)


def _prune_reports(storage: PostgresEventLogStorage, before: datetime) -> int:
    """Old reports except for the newest per asset, kind and run (all run-less ones count as one run)."""
    newest = (
        db.select(db.func.max(_events.c.id))
        .where(_events.c.dagster_event_type.in_(_REPORTS))
        .group_by(_events.c.asset_key, _events.c.partition, _events.c.dagster_event_type, _events.c.run_id)
    )
    surplus = db.select(_events.c.id).where(
        _events.c.dagster_event_type.in_(_REPORTS),
        _events.c.timestamp < _naive(before),
        _events.c.id.not_in(newest),
    )
    return _delete(storage, surplus)


def _prune_checks(storage: PostgresEventLogStorage, before: datetime) -> int:
    """Old check evaluations except for the newest of each check and run (all run-less ones count as one)."""
    newest = db.select(db.func.max(_checks.c.id)).group_by(
        _checks.c.asset_key, _checks.c.check_name, _checks.c.run_id
    )
    surplus = db.select(_checks.c.id, _checks.c.evaluation_event_storage_id).where(
        _checks.c.evaluation_event_timestamp < _naive(before),
        _checks.c.id.not_in(newest),
    )
    count = 0
    while True:
        with storage.index_connection() as connection:
            rows = connection.execute(surplus.limit(_CHUNK)).fetchall()
            if not rows:
                return count
            connection.execute(_checks.delete().where(_checks.c.id.in_([row[0] for row in rows])))
            events = [row[1] for row in rows if row[1] is not None]
            connection.execute(_events.delete().where(_events.c.id.in_(events)))
        count += len(rows)


def _delete(storage: PostgresEventLogStorage, surplus: db.Select[tuple[int]]) -> int:
    """Delete events and their tags in small transactions, so that nobody waits for long."""
    count = 0
    while True:
        with storage.index_connection() as connection:
            ids = [row[0] for row in connection.execute(surplus.limit(_CHUNK))]
            if not ids:
                return count
            connection.execute(_tags.delete().where(_tags.c.event_id.in_(ids)))
            connection.execute(_events.delete().where(_events.c.id.in_(ids)))
        count += len(ids)


def _prune_runs(
    instance: dg.DagsterInstance, storage: PostgresEventLogStorage, now: datetime, keeping: Keeping
) -> int:
    needed = _runs_with_newest(storage)
    count = 0
    for statuses, age in (
        ([status for status in _ENDED if status != dg.DagsterRunStatus.FAILURE], keeping.run_age),
        ([dg.DagsterRunStatus.FAILURE], keeping.failure_age),
    ):
        old = dg.RunsFilter(statuses=statuses, updated_before=now - age)
        for run in instance.get_runs(old):
            if run.run_id not in needed:
                instance.delete_run(run.run_id)
                count += 1
    return count


def _runs_with_newest(storage: PostgresEventLogStorage) -> set[str]:
    """Runs that hold the newest report of an asset or the newest evaluation of a check."""
    newest = (
        db.select(db.func.max(_events.c.id))
        .where(_events.c.dagster_event_type.in_(_REPORTS))
        .group_by(_events.c.asset_key, _events.c.dagster_event_type)
    )
    newest_check = db.select(db.func.max(_checks.c.id)).group_by(_checks.c.asset_key, _checks.c.check_name)
    with storage.index_connection() as connection:
        runs = connection.execute(db.select(_events.c.run_id).where(_events.c.id.in_(newest)))
        checks = connection.execute(db.select(_checks.c.run_id).where(_checks.c.id.in_(newest_check)))
        return {row[0] for row in (*runs, *checks)}
