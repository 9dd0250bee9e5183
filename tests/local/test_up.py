"""``mesh up`` as a whole: from an empty folder to running, through faults, to nothing left but the data."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.local.running import PROJECT, Running, processes_of
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STOP_SECONDS = 10.0
EVENT_LOG = "enterprise/event_log"
DERIVED = ("distribution/late_shipments/", "finance/revenue/", "sales/customer_360/")


@pytest.fixture
def home() -> Iterator[Path]:
    # Not pytest's own temporary folder: it is private to root, and PostgreSQL does not run as root.
    folder = Path(tempfile.mkdtemp(prefix="mesh-up-"))
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


def parity(mesh: Running, *names: str) -> dict[str, int]:
    """Compare while the applications write; rows by table."""
    outcomes = json.loads(mesh.command("parity", "--json", *names))
    assert [one for one in outcomes if one["outcome"] != "equal"] == []
    return {one["table"]: one["source_rows"] for one in outcomes}


def status(mesh: Running) -> Any:
    return json.loads(mesh.command("status", "--json"))


def stopped(mesh: Running, number: int) -> float:
    """Send a signal and wait for the end; how many seconds that took."""
    started = time.monotonic()
    mesh.process.send_signal(number)
    assert mesh.process.wait(60) == 0, mesh.text()
    return time.monotonic() - started


def test_a_mesh_from_the_first_start_to_the_last(home: Path) -> None:
    with Running(home) as mesh:
        mesh.wait_until_ready()
        rows = first_look(mesh)
        dagster_beside_it(mesh)
        beside_a_running_shift(mesh)
        a_code_server_dies(mesh)
        assert "is already up: http://127.0.0.1:" in mesh.command("up", code=1)
        assert stopped(mesh, signal.SIGINT) < STOP_SECONDS
    assert processes_of(home) == {}

    with Running(home) as mesh:
        until(lambda: mesh.says("code locations"), "code locations")
        mesh.process.kill()
        until(lambda: not processes_of(home), "everything gone after kill -9 of the supervisor")

    with Running(home, "--for", "5") as mesh:
        until(lambda: mesh.process.poll() is not None, "the end")
        assert mesh.process.returncode == 0, mesh.text()
        assert "everything worked" in mesh.text()
        assert processes_of(home) == {}
        # The rows of the first start, and what has been written since.
        held = {one["name"]: one["tables"] for one in status(mesh)["products"]}
        assert held["sales.orders"][0]["rows"] >= rows["sales.orders.orders"]


def captured(key: str) -> bool:
    """Whether an asset is captured from a source."""
    return not key.startswith(("enterprise/", *DERIVED))


def first_look(mesh: Running) -> dict[str, int]:
    """Every table is captured, and equal to its source while the applications write."""

    def missing() -> set[str]:
        return {key for key, count in mesh.materialised().items() if not count}

    until(lambda: not any(map(captured, missing())), "a materialisation of every captured asset")
    # What is made of them comes after them, one thing after the other; the log at an hour of its own,
    # which may be now.
    until(lambda: missing() <= {EVENT_LOG}, "a materialisation of every asset")
    rows = parity(mesh)
    # Eight tables are captured, four derived.
    assert len(rows) == 12
    assert min(rows.values()) > 0
    assert {one["name"]: (one["state"], one["problem"]) for one in status(mesh)["sources"]} == dict.fromkeys(
        ("distribution.app", "finance.app", "sales.app"), ("shift running", None)
    )
    return rows


def dagster_beside_it(mesh: Running) -> None:
    """Dagster's own commands find the storage of the running mesh."""
    run = until(lambda: mesh.runs("finance.app", "STARTED"), "a shift")[0]["runId"]
    done = subprocess.run(
        [Path(sys.executable).with_name("dagster"), "run", "list"],
        cwd=PROJECT,
        env=mesh.environment | {"DAGSTER_HOME": str(mesh.home / "dagster")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run in done.stdout, done.stdout + done.stderr
    assert (mesh.home / "dagster.url").stat().st_mode & 0o077 == 0


def beside_a_running_shift(mesh: Running) -> None:
    """Materialize waits for what the shift captures; a cancelled shift loses nothing."""
    shift = until(lambda: mesh.runs("finance.app", "STARTED"), "a shift")[0]["runId"]
    run = until(lambda: mesh.launch("finance", "finance/accounts/current/accounts"), "a run")
    upkeep = until(lambda: mesh.launch("enterprise", EVENT_LOG), "a run")
    for one in (run, upkeep):
        until(lambda one=one: mesh.status(one) in {"SUCCESS", "FAILURE", "CANCELED"}, "its end")
        assert mesh.status(one) == "SUCCESS"
    assert mesh.status(shift) == "STARTED"
    assert mesh.cancel(shift) == "TerminateRunSuccess"
    until(lambda: mesh.status(shift) == "CANCELED", "the end of a cancelled shift")
    until(lambda: mesh.runs("finance.app", "STARTED"), "the next shift")
    parity(mesh, "finance")


def a_code_server_dies(mesh: Running) -> None:
    """It is told, and healed."""
    child = mesh.child("code-sales")
    assert child is not None
    child.kill()
    until(lambda: mesh.says("code-sales ended (exit code -9)"), "word of its end")
    until(lambda: mesh.says("code-sales was started again"), "word of its start")
    run = until(lambda: mesh.launch("sales", "sales/orders/changes/orders"), "a run in the new code server")
    until(lambda: mesh.status(run) in {"SUCCESS", "FAILURE", "CANCELED"}, "its end")
    assert mesh.status(run) == "SUCCESS"
