"""A running mesh keeps derived products, checks and the enterprise catalog up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh_assets.lineage.store import read
from mesh_assets.names import Layout, lineage_job
from tests.local.running import ENDED, Running, processes_of
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

DERIVED = ("distribution.late_shipments", "finance.revenue", "sales.customer_360")
CUSTOMER_360 = "sales/customer_360/changes/customer_360"
CATALOG_CHECKS = {"orphans": "datasets", "unowned": "domains", "stale": "datasets", "failing": "checks"}


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


def test_derived_products_of_a_running_mesh(home: Path) -> None:
    with Running(home, "--rate", "2") as mesh:
        mesh.wait_until_ready()
        first = until(lambda: filled(mesh), "versions of all derived products")
        column_lineage(mesh)
        beside_a_running_shift(mesh)
        asked = checks(mesh)
        catalog(mesh)
        lineage(mesh, asked)
        later = until(lambda: moved(mesh, first), "newer versions")
        assert set(later) == set(first)
        mesh.process.send_signal(signal.SIGINT)
        assert mesh.process.wait(PATIENCE_SECONDS) == 0, mesh.told()
        assert "had to be killed" not in mesh.text()
    assert processes_of(home) == {}

    with Running(home, "--for", "5") as mesh:
        until(lambda: mesh.process.poll() is not None, "the end")
        assert mesh.process.returncode == 0, mesh.told()
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

    def cancelled() -> str | None:
        shift: str = until(derive, "a derive shift")[0]["runId"]
        assert mesh.ended(mesh.launch("sales", CUSTOMER_360)) == "SUCCESS"
        answer = mesh.cancel(shift)
        if mesh.ended(shift) == "SUCCESS":
            # It was idle, and ended by itself before.
            return None
        assert (answer, mesh.status(shift)) == ("TerminateRunSuccess", "CANCELED")
        return shift

    shift = until(cancelled, "a derive shift that is cancelled")
    following = until(derive, "the next derive shift")[0]["runId"]
    assert following != shift


def checks(mesh: Running) -> str:
    """Rules come out by themselves, and on demand; the run that was asked for."""
    key = "sales/orders/current/orders"
    run = mesh.launch("sales", key, "amount_required", "mean_amount_is_usual", "parity")
    assert mesh.ended(run) == "SUCCESS"
    history = mesh.checked(key)
    for name, expected in (
        ("amount_required", {"mesh/version", "quality/row_count"}),
        ("mean_amount_is_usual", {"mesh/version", "quality/observed"}),
        ("parity", {"cdc/position", "parity/source_rows", "parity/lake_rows"}),
    ):
        mine = [one for one in history[name] if one["runId"] == run]
        assert [one["status"] for one in mine] == ["SUCCEEDED"]
        labels = {entry["label"] for entry in mine[0]["evaluation"]["metadataEntries"]}
        assert expected <= labels

    def reported() -> bool:
        told = {one["runId"] for told in mesh.checked(key).values() for one in told}
        return bool(told & {one["runId"] for one in mesh.runs("sales.app")})

    until(reported, "outcomes reported by a shift")
    return run


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

    def looked() -> bool:
        found = {part: mesh.checked(f"enterprise/catalog/{part}") for part in set(CATALOG_CHECKS.values())}
        executions = [found[part][name] for name, part in CATALOG_CHECKS.items()]
        return all(any(one["status"] in {"SUCCEEDED", "FAILED"} for one in each) for each in executions)

    until(looked, "an execution of every check of the catalog")
    run = mesh.launch("enterprise", "enterprise/catalog/runs", "explained")
    assert mesh.ended(run) == "SUCCESS"
    executions = mesh.checked("enterprise/catalog/runs")["explained"]
    (mine,) = [one for one in executions if one["runId"] == run]
    assert mine["status"] == "SUCCEEDED"
    numbers = {entry["label"]: entry.get("intValue") for entry in mine["evaluation"]["metadataEntries"]}
    assert numbers["lineage/commits"] > 0
    assert numbers["lineage/products_unexplained"] == 0


def lineage(mesh: Running, asked: str) -> None:
    """Above every run in the lineage is the run of Dagster that it is part of."""
    events = read(Layout(str(mesh.home / "lake")).lineage()).collect()["event"]
    above: dict[str, str] = {}
    jobs: dict[str, tuple[str, str]] = {}
    for event in map(json.loads, events):
        run, job = event["run"], event["job"]
        jobs[run["runId"]] = (job["namespace"], job["name"])
        if parent := run["facets"].get("parent"):
            above[run["runId"]] = parent["run"]["runId"]
    assert {jobs[run_id] for run_id in jobs.keys() - above} == set()
    roots: dict[tuple[str, str], set[str]] = defaultdict(set)
    for run_id in above:
        root = run_id
        while root in above:
            root = above[root]
        roots[jobs[run_id]].add(root)
    unknown = {
        (job, root, jobs.get(root))
        for job, tops in roots.items()
        for root in tops
        if mesh.status(root) not in {"STARTED", *ENDED}
    }
    assert unknown == set()
    assert asked in roots[lineage_job("sales", "orders", "checks")]
    for job, known in (
        (lineage_job("sales", "app", "capture"), mesh.runs("sales.app")),
        (lineage_job("sales", "customer_360", "derive"), mesh.runs("sales", tag="mesh/derive")),
    ):
        assert roots[job]
        # Between two shifts parity captures what it waits for itself.
        assert roots[job] <= {asked, *(run["runId"] for run in known)}
