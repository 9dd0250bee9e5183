"""A tick of a domain's sensor over derived products, with a real lake and a real instance."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from mesh_assets.contract.discovery import discover
from mesh_assets.lake.version import VersionLog
from mesh_assets.names import Layout, ProductName
from mesh_assets.orchestration.derive import derive_tag
from mesh_assets.orchestration.sensor import Scope, Tick
from mesh_assets.orchestration.shift import shift_tag
from mesh_assets.orchestration.subscription import SEEN_TAG, code_text, seen_text
from mesh_assets.orchestration.version import newest_versions
from tests.orchestration.conftest import PROJECT

NAME = ProductName("sales", "customer_360")


class World:
    """The sensor's scope, with a lake and an instance of its own."""

    def __init__(self, instance: dg.DagsterInstance, root: Path) -> None:
        found = discover(PROJECT / "products")
        self.instance = instance
        self.layout = Layout(str(root / "lake"))
        self.scope = Scope.of("sales", [found.products[NAME]], found)

    def append(self, *names: str) -> None:
        """One version more of each product."""
        for name in names:
            log = VersionLog.ensure(self.layout.versions(ProductName.parse(name)))
            log.append(
                tables={},
                positions={},
                row_count={},
                contract_hash="",
                code_version="",
                run_id="",
                actor="",
                committed_at=datetime.now(UTC),
            )

    def append_all(self) -> None:
        self.append(*(str(product.name) for product in self.scope.inputs))

    def run(self, status: dg.DagsterRunStatus, tags: dict[str, str]) -> None:
        """A run of another job, as far as the sensor sees it."""

        @dg.job
        def other() -> None: ...

        self.instance.create_run_for_job(other, tags=tags, status=status)

    def derived(self) -> None:
        """A derive shift has looked at everything there is."""
        heads = newest_versions(self.layout, self.scope.inputs, self.instance)
        tags = {**derive_tag("sales"), SEEN_TAG: seen_text(heads, code_text(self.scope.derived))}
        self.run(dg.DagsterRunStatus.SUCCESS, tags)

    def tick(self) -> tuple[list[str], str]:
        """The reasons of the shifts that are started, and why none is."""
        with dg.build_sensor_context(instance=self.instance) as context:
            result = Tick(context, self.scope, {}).result()
        requests = result.run_requests or []
        assert [request.job_name for request in requests] == ["sales_derive"] * len(requests)
        skip = result.skip_reason.skip_message if isinstance(result.skip_reason, dg.SkipReason) else ""
        return [request.tags["mesh/reason"] for request in requests], skip or ""


@pytest.fixture
def world(instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("MESH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MESH_LAKE", str(tmp_path / "lake"))
    return World(instance, tmp_path)


def test_a_derive_shift_is_started_for_versions_that_none_has_seen(world: World) -> None:
    assert world.tick() == ([], "derived products: what they are made of has no version yet")
    world.append_all()
    assert world.tick()[0] == ["they were not derived by this code yet"]
    world.derived()
    assert world.tick() == ([], "derived products: nothing new")
    world.append("finance.transactions")
    assert world.tick()[0] == ["finance.transactions has version 2"]


def test_beside_a_running_derive_shift_no_other_is_started(world: World) -> None:
    world.append_all()
    world.run(dg.DagsterRunStatus.STARTED, derive_tag("sales"))
    assert world.tick() == ([], "a derive shift runs")


def test_it_is_started_while_changes_are_captured(world: World) -> None:
    world.append_all()
    world.derived()
    idle = {**shift_tag("finance", "app"), "mesh/reason": "no shift for 10 minutes"}
    world.run(dg.DagsterRunStatus.STARTED, idle)
    assert world.tick() == ([], "derived products: nothing new")
    busy = {**shift_tag("distribution", "app"), "mesh/reason": "it has new changes"}
    world.run(dg.DagsterRunStatus.STARTED, busy)
    assert world.tick()[0] == ["changes of distribution.app are being captured"]


def test_what_a_cancelled_shift_has_not_seen_is_derived_by_the_next(world: World) -> None:
    world.append_all()
    world.derived()
    world.append("sales.orders")
    world.run(dg.DagsterRunStatus.CANCELED, derive_tag("sales"))
    assert world.tick()[0] == ["sales.orders has version 2"]


def test_a_product_left_behind_is_tried_again_once_in_a_while(world: World) -> None:
    world.append_all()
    heads = newest_versions(world.layout, world.scope.inputs, world.instance)
    seen = seen_text(heads, code_text(world.scope.derived), [NAME])
    for _ in range(2):
        world.run(dg.DagsterRunStatus.SUCCESS, {**derive_tag("sales"), SEEN_TAG: seen})
    reasons, why = world.tick()
    assert reasons == []
    seconds = int(why.removeprefix(f"derived products: {NAME} was left behind; tried again in ").split()[0])
    assert 60 < seconds <= 120
