"""A running mesh keeps derived products, checks and the enterprise catalog up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.local.running import Running, processes_of
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

DERIVED = ("distribution.late_shipments", "finance.revenue", "sales.customer_360")
CUSTOMER_360 = "sales/customer_360/changes/customer_360"
ENDED = {"SUCCESS", "FAILURE", "CANCELED"}


@pytest.fixture
def home() -> Iterator[Path]:
    # Not pytest's own temporary folder: it is private to root, and PostgreSQL does not run as root.
    folder = Path(tempfile.mkdtemp(prefix="mesh-derived-"))
    folder.chmod(0o711)
    home = folder / "home"
    try:
        yield home
    finally:
        left = processes_of(home)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
        assert not left, "processes were left"


def versions(mesh: Running) -> dict[str, int]:
    """The newest version of every product; 0 before the first."""
    products = json.loads(mesh.command("status", "--json"))["products"]
    return {one["name"]: one["version"] or 0 for one in products}


def ended(mesh: Running, run_id: str | None) -> str:
    assert run_id is not None
    until(lambda: mesh.status(run_id) in ENDED, "its end")
    return mesh.status(run_id)


def test_derived_products_of_a_running_mesh(home: Path) -> None:
    with Running(home, "--rate", "2") as mesh:
        mesh.wait_until_ready()
        first = until(lambda: filled(mesh), "versions of all derived products")
        column_lineage(mesh)
        beside_a_running_shift(mesh)
        checks(mesh)
        catalog(mesh)
        later = until(lambda: moved(mesh, first), "newer versions")
        assert set(later) == set(first)
        mesh.process.send_signal(signal.SIGINT)
        assert mesh.process.wait(60) == 0, mesh.text()
    assert processes_of(home) == {}

    with Running(home, "--for", "5") as mesh:
        until(lambda: mesh.process.poll() is not None, "the end")
        assert mesh.process.returncode == 0, mesh.text()
        assert "everything worked" in mesh.text()


def filled(mesh: Running) -> dict[str, int] | None:
    found = versions(mesh)
    return found if all(found.get(name) for name in DERIVED) else None


def moved(mesh: Running, first: dict[str, int]) -> dict[str, int] | None:
    """Versions, once each derived product that can have a new one has it."""
    found = versions(mesh)
    return found if found["sales.customer_360"] > first["sales.customer_360"] else None


def column_lineage(mesh: Running) -> None:
    """Dagster knows which columns of other domains a column is made of."""
    lineage: Any = until(lambda: mesh.metadata(CUSTOMER_360).get("dagster/column_lineage"), "lineage")
    deps = {one["columnName"]: one["columnDeps"] for one in lineage["lineage"]}
    made_of = {("/".join(one["assetKey"]["path"]), one["columnName"]) for one in deps["total"]}
    assert ("finance/transactions/current/transactions", "amount") in made_of


def beside_a_running_shift(mesh: Running) -> None:
    """Materialize waits for what the shift derives; a cancelled shift loses nothing."""

    def derive() -> list[dict[str, Any]]:
        return mesh.runs("sales", "STARTED", tag="mesh/derive")

    shift = until(derive, "a derive shift")[0]["runId"]
    assert ended(mesh, mesh.launch("sales", CUSTOMER_360)) == "SUCCESS"
    assert mesh.cancel(shift) == "TerminateRunSuccess"
    assert ended(mesh, shift) == "CANCELED"
    following = until(derive, "the next derive shift")[0]["runId"]
    assert following != shift


def checks(mesh: Running) -> None:
    """Rules come out by themselves, and on demand."""
    key = "sales/orders/current/orders"
    run = mesh.launch("sales", key, "amount_required", "mean_amount_is_usual")
    assert ended(mesh, run) == "SUCCESS"
    history = mesh.checked(key)
    for name, number in (
        ("amount_required", "quality/row_count"),
        ("mean_amount_is_usual", "quality/observed"),
    ):
        mine = [one for one in history[name] if one["runId"] == run]
        assert [one["status"] for one in mine] == ["SUCCEEDED"]
        labels = {entry["label"] for entry in mine[0]["evaluation"]["metadataEntries"]}
        assert {"mesh/version", number} <= labels

    def reported() -> bool:
        told = {one["runId"] for told in mesh.checked(key).values() for one in told}
        return bool(told & {one["runId"] for one in mesh.runs("sales.app")})

    until(reported, "outcomes reported by a shift")


def catalog(mesh: Running) -> None:
    """The enterprise catalog has been folded from all products."""
    rows = until(lambda: mesh.metadata("enterprise/catalog/datasets").get("catalog/products"), "the catalog")
    assert rows["intValue"] > 0

    def whole() -> bool:
        found = mesh.metadata("enterprise/catalog/datasets")
        return bool(
            found["catalog/products"]["intValue"] == 10 and found["catalog/problems"]["intValue"] == 0
        )

    until(whole, "all products in the catalog")
    assert mesh.checked("enterprise/catalog/datasets").keys() >= {"orphans", "stale"}
