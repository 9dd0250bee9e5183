"""Materialize, pressed where no shift runs: the run is one itself, and comes to an end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from mesh_assets.local import organisation
from mesh_assets.local.organisation.sales import Sales
from mesh_assets.local.postgres import Cluster
from mesh_assets.names import CHANGES, CURRENT, Layout, ProductName
from mesh_assets.orchestration.location import location
from mesh_assets.product import Mesh
from mesh_assets.settings import Settings
from mesh_assets.status import latest_version

# pytest puts its own filters in place of the program's: what Dagster warns of itself is ignored again.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`parse_obj_as` is deprecated", "ignore::dagster.BetaWarning", "ignore::dagster.PreviewWarning"
)

ORDERS = ProductName("sales", "orders")


@pytest.fixture
def busy(products: Path, postgres: Cluster) -> Iterator[Callable[[str], int]]:
    """The sample organisation, whose sales never rest; asks for the rows of a table of theirs."""
    organisation.create(postgres, Settings())
    over = threading.Event()

    def trade() -> None:
        with psycopg.connect(postgres.url("sales"), autocommit=True) as connection:
            application = Sales(connection, 1)
            application.begin(1)
            while not over.wait(0.02):
                application.step()

    def count(table: str) -> int:
        with psycopg.connect(postgres.url("sales")) as connection:
            (found,) = connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() or (0,)
        return int(found)

    thread = threading.Thread(target=trade)
    thread.start()
    try:
        yield count
    finally:
        over.set()
        thread.join()
        for name in organisation.DOMAINS:
            postgres.drop_database(name)


def test_it_ends_once_it_has_what_was_there(
    busy: Callable[[str], int], instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESH_SHIFT_SECONDS", "3600")
    job = location("sales").resolve_implicit_global_asset_job_def()
    keys = [dg.AssetKey(ORDERS.asset_key(kind, "orders")) for kind in (CHANGES, CURRENT)]
    held = 0
    for _ in range(2):
        there = busy("shop.order_lines")
        done = job.execute_in_process(instance=instance, asset_selection=keys)
        assert done.success
        said = [entry.user_message for entry in instance.all_logs(done.run_id)]
        assert any("ended (caught up)" in text for text in said), said
        newest = [instance.get_latest_materialization_event(key) for key in keys]
        for event in newest:
            assert event is not None
            assert event.asset_materialization is not None
            assert event.asset_materialization.metadata["dagster/row_count"].value
        lines = Mesh().open("sales.orders.order_lines").polars().height
        # Cancelled orders take their lines with them.
        assert lines > there * 0.9
        version = latest_version(Layout(Settings().lake_root), ORDERS)
        assert version is not None
        assert version.version > held
        held = version.version
