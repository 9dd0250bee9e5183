"""Whose turn it is among the shifts of one source, with a real instance."""

from __future__ import annotations

import dagster as dg
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)

from mesh_assets.contract.discovery import discover
from mesh_assets.orchestration.relay import Relay
from mesh_assets.orchestration.shift import shift_tag
from tests.orchestration.conftest import PROJECT

TAGS = shift_tag("sales", "app")


class Line:
    """Runs of one source, as an instance knows them."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance

    def run(
        self, status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED, *, tagged: bool = True
    ) -> dg.DagsterRun:
        @dg.job
        def drain() -> None: ...

        # Dagster queues only what it could launch.
        location = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("sales"), "sales")
        return self.instance.create_run_for_job(
            drain,
            tags=TAGS if tagged else {},
            status=status,
            remote_job_origin=RemoteJobOrigin(location, "drain"),
        )

    def relay(self, run: dg.DagsterRun) -> Relay:
        return Relay(self.instance, run, TAGS)

    def ahead(self, run: dg.DagsterRun) -> str | None:
        """The run that this one waits for."""
        other = self.relay(run).other()
        return other.run_id if other else None


def test_the_next_shift_waits_until_the_one_before_is_over(instance: dg.DagsterInstance) -> None:
    line = Line(instance)
    first, second = line.run(), line.run()
    assert line.relay(second).in_line
    assert line.ahead(first) is None
    assert line.ahead(second) == first.run_id
    # Its run goes on: it still writes its reports.
    line.relay(first).over()
    assert line.ahead(second) is None


def test_of_many_in_line_none_waits_for_a_later_one(instance: dg.DagsterInstance) -> None:
    line = Line(instance)
    runs = [line.run() for _ in range(3)]
    assert [line.ahead(run) for run in runs] == [None, runs[0].run_id, runs[1].run_id]


def test_a_run_that_is_not_in_line_waits_for_all_that_are(instance: dg.DagsterInstance) -> None:
    line = Line(instance)
    asked = line.run(tagged=False)
    assert not line.relay(asked).in_line
    assert line.ahead(asked) is None
    shift = line.run()
    assert line.ahead(asked) == shift.run_id
    line.relay(shift).over()
    line.relay(asked).begin()
    assert line.ahead(line.run()) == asked.run_id


def test_a_shift_is_relieved_once_the_next_one_is_ready(instance: dg.DagsterInstance) -> None:
    line = Line(instance)
    products = discover(PROJECT / "products").products.values()
    first, second = line.run(), line.run()
    assert not line.relay(first).relieved()
    line.relay(second).wait(products)
    assert line.relay(first).relieved()
    line.relay(first).over()
    # It is the shift now, and its own successor is not there yet.
    assert not line.relay(second).relieved()


def test_a_shift_is_relieved_by_one_that_finds_no_place_beside_it(instance: dg.DagsterInstance) -> None:
    line = Line(instance)
    first = line.run()
    line.run(dg.DagsterRunStatus.QUEUED)
    assert not line.relay(first).relieved()
    assert Relay(instance, first, TAGS, queue_seconds=0.0).relieved()
