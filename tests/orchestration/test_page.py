"""Data Docs as a job of a domain: started where checks are newer, and linked where checks are shown."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from mesh_assets.checks import pages
from mesh_assets.checks.log import CheckLog
from mesh_assets.names import Layout
from mesh_assets.orchestration.outcome import DATA_DOCS, check_evaluation
from mesh_assets.orchestration.page import PAGES_TAG, pages_job, pages_schedule
from tests.quarantine.shop import NAME, Shop


@pytest.mark.slow
def test_the_job_builds_what_is_behind(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(database_url, tmp_path / "home")
    monkeypatch.setenv("MESH_HOME", str(shop.settings.home))
    monkeypatch.setenv("MESH_PRODUCTS", str(shop.settings.products))
    layout = Layout(shop.settings.lake_root)
    job = pages_job("shop")
    schedule = pages_schedule("shop", job)
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    assert job.tags == {PAGES_TAG: "one"}

    def asked() -> int:
        with dg.DagsterInstance.ephemeral() as instance, dg.build_schedule_context(instance) as context:
            return len(schedule.evaluate_tick(context).run_requests or ())

    assert asked() == 0
    shop.execute("insert into shop.things values (1, 1, 'one')")
    shop.drain()
    rows = CheckLog(layout, NAME).latest()
    assert DATA_DOCS not in check_evaluation(NAME, rows[0], layout).metadata
    assert asked() == 1
    done = job.execute_in_process()
    page = pages.page(layout, NAME)
    assert page is not None
    (handled,) = done.filter_events(lambda event: event.is_successful_output)
    assert handled.step_output_data.metadata[str(NAME)] == dg.MetadataValue.path(page)
    assert asked() == 0
    assert check_evaluation(NAME, rows[0], layout).metadata[DATA_DOCS] == dg.MetadataValue.path(page)
    assert job.execute_in_process().success
