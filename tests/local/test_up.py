"""``mesh up`` as a whole: from an empty folder to running, through faults, to nothing left but the data."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh_assets.lake.version import VersionLog
from mesh_assets.local import organisation
from mesh_assets.local.place import DAGSTER, SOURCES, Place
from mesh_assets.local.postgres import Cluster
from mesh_assets.names import Layout, ProductName
from mesh_assets.settings import Settings
from tests.local.running import PROJECT, Running, processes_of
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

WELL = dict.fromkeys(("distribution.app", "finance.app", "sales.app"), ("shift running", None))
EVENT_LOG = "enterprise/event_log"
ORDERS = ProductName("sales", "orders")
TRANSACTIONS = ProductName("finance", "transactions")
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


def ended_well(mesh: Running) -> None:
    """Everything ended, and by itself."""
    assert mesh.process.wait(PATIENCE_SECONDS) == 0, mesh.told()
    assert "had to be killed" not in mesh.text()
    assert processes_of(mesh.home) == {}


def test_a_mesh_from_the_first_start_to_the_last(home: Path) -> None:
    with Running(home) as mesh:
        mesh.wait_until_ready()
        rows = first_look(mesh)
        a_cluster_dies(mesh, SOURCES)
        a_cluster_dies(mesh, DAGSTER)
        dagster_beside_it(mesh)
        beside_a_running_shift(mesh)
        a_code_server_dies(mesh, "sales", "sales/orders/changes/orders", TRANSACTIONS)
        a_code_server_dies(mesh, "finance", "finance/transactions/changes/transactions", ORDERS)
        if sys.platform == "linux":
            the_watch_dies(mesh)
        assert "is already up: http://127.0.0.1:" in mesh.command("up", code=1)
        assert "stop it first: `mesh down`" in mesh.command("reset", "--yes", code=1)
        mesh.command("down")
        assert processes_of(home) == {}
        ended_well(mesh)

    with Running(home, session=True) as mesh:
        until(lambda: mesh.says("PostgreSQL"), "its databases")
        # What Ctrl-C at a terminal does.
        os.killpg(mesh.process.pid, signal.SIGINT)
        ended_well(mesh)

    with Running(home) as mesh:
        until(lambda: mesh.says("code locations"), "code locations")
        mesh.process.kill()
        until(lambda: not processes_of(home), "everything gone after kill -9 of the supervisor")

    with Running(home, "--for", "5") as mesh:
        ended_well(mesh)
        assert "everything worked" in mesh.text()
        # The rows of the first start, and what has been written since.
        held = {one["name"]: one["tables"] for one in status(mesh)["products"]}
        assert held["sales.orders"][0]["rows"] >= rows["sales.orders.orders"]
        mesh.command("reset", "--yes")
        assert not home.exists()


def test_all_databases_are_somebody_elses(home: Path, postgres: Cluster) -> None:
    urls = organisation.create(postgres, Settings(home=home.with_name("theirs")))
    more = {f"MESH_SOURCE_{domain.upper()}_APP_URL": url for domain, url in urls.items()}
    more["MESH_DAGSTER_POSTGRES_URL"] = postgres.create_database("dagster_elsewhere")
    slots = "SELECT count(*) FROM pg_replication_slots WHERE database = ANY(%s)"
    try:
        with Running(home, "--for", "5", more=more) as mesh, postgres.connect() as connection:
            ended_well(mesh)
            assert "everything worked" in mesh.text()
            assert not (home / "clusters").exists()
            assert connection.execute(slots, [list(urls)]).fetchone() == (3,)
            assert min(parity(mesh).values()) > 0
            mesh.command("search", "orders")
            mesh.command("reset", "--yes")
            assert not home.exists()
            assert connection.execute(slots, [list(urls)]).fetchone() == (0,)
    finally:
        for name in (*urls, "dagster_elsewhere"):
            postgres.drop_database(name)


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
    until(lambda: sources(mesh) == WELL, "a shift of every source")
    rows_and_versions(mesh)
    return rows


def sources(mesh: Running) -> dict[str, tuple[str, str | None]]:
    """State and problem of every source."""
    return {one["name"]: (one["state"], one["problem"]) for one in status(mesh)["sources"]}


def rows_and_versions(mesh: Running) -> None:
    """Materialisations bear row count and Delta version of their tables, which may have moved on since."""

    def numbers(kind: str) -> tuple[int, int] | None:
        newest = mesh.metadata(f"sales/orders/{kind}/orders")
        labels = ("dagster/row_count", "delta/version")
        rows, version = (newest.get(label, {}).get("intValue") for label in labels)
        return None if rows is None or version is None else (rows, version)

    changes = until(lambda: numbers("changes"), "a row count of the changes")
    current = until(lambda: numbers("current"), "a row count of the fold")
    (table,) = json.loads(mesh.command("show", "sales.orders.orders", "--json"))["tables"]
    assert 0 < changes[0] <= table["changes"]
    assert 0 < changes[1] <= table["changes_delta_version"]
    # Not more and more rows: cancelled orders are deleted.
    assert 0 < current[0] <= table["changes"]
    assert 0 < current[1] <= table["current_delta_version"]
    assert current[1] != table["current_delta_version"] or current[0] == table["folded_rows"]


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

    def cancelled() -> bool:
        shift = until(lambda: mesh.runs("finance.app", "STARTED"), "a shift")[0]["runId"]
        run = until(lambda: mesh.launch("finance", "finance/accounts/current/accounts"), "a run")
        upkeep = until(lambda: mesh.launch("enterprise", EVENT_LOG), "a run")
        assert [mesh.ended(one) for one in (run, upkeep)] == ["SUCCESS", "SUCCESS"]
        answer = mesh.cancel(shift)
        if mesh.ended(shift) == "SUCCESS":
            # It was idle, and ended by itself before.
            return False
        assert (answer, mesh.status(shift)) == ("TerminateRunSuccess", "CANCELED")
        return True

    until(cancelled, "a shift that is cancelled")
    until(lambda: mesh.runs("finance.app", "STARTED"), "the next shift")
    parity(mesh, "finance")


def a_code_server_dies(mesh: Running, domain: str, key: str, beside: ProductName) -> None:
    """It is told, and healed; a shift of another domain goes on meanwhile."""
    name = f"code-{domain}"
    shift = until(lambda: goes_on_without(mesh, name, beside), f"a shift that goes on without {name}")
    until(lambda: mesh.says(f"{name} ended (exit code -9)"), "word of its end")
    until(lambda: mesh.child(name), "its next start")
    until(lambda: mesh.says(f"{name} was started again"), "word of its start")
    run = until(lambda: mesh.launch(domain, key), "a run in the new code server")
    assert mesh.ended(run) == "SUCCESS"
    assert mesh.status(shift) in {"STARTED", "SUCCESS"}


def goes_on_without(mesh: Running, name: str, beside: ProductName) -> str | None:
    """A shift that makes a version while a code server of others is down; None if it was idle, and ended."""
    shift: str = until(lambda: mesh.runs(f"{beside.domain}.app", "STARTED"), "a shift of the other")[-1][
        "runId"
    ]
    versions = VersionLog(Layout(str(mesh.home / "lake")).versions(beside))
    before = None

    def risen() -> bool:
        nonlocal before
        version = versions.refresh()
        if child := mesh.child(name):
            # Also one that was started again before there was a version.
            child.kill()
            child.wait(PATIENCE_SECONDS)
            before = versions.refresh()
            return False
        return before is not None and version > before

    until(risen, f"a version of {beside} while {name} is down")
    newest = versions.latest()
    if mesh.status(shift) == "SUCCESS":
        return None
    assert mesh.status(shift) == "STARTED"
    assert newest is not None
    assert newest.run_id == shift
    return shift


def a_cluster_dies(mesh: Running, name: str) -> None:
    """It is told, and healed; what was committed is captured."""
    cluster = Place(mesh.home).clusters[name]
    cluster.kill()
    assert not cluster.running
    until(lambda: mesh.says(f"the PostgreSQL cluster of {name} was started again"), "word of its start")

    def succeeds(key: str) -> bool:
        try:
            return mesh.ended(mesh.launch("sales", key)) == "SUCCESS"
        except AssertionError as error:
            # Dagster does not answer yet, or not well.
            print(key, error)
            return False

    for key in ("sales/orders/changes/orders", "sales/customer_360/changes/customer_360"):
        until(lambda key=key: succeeds(key), f"a run that succeeds after the death of {name}")
    until(lambda: sources(mesh) == WELL, f"a shift of every source after the death of {name}")
    parity(mesh)


def the_watch_dies(mesh: Running) -> None:
    """In the middle of a line: what the next one sees is shown."""
    watch = mesh.child("watch")
    assert watch is not None
    watch.suspend()
    with written_pipe(watch.pid).open("wb", buffering=0) as pipe:
        pipe.write(b'{"at": 1.0, "sou')
    watch.kill()
    until(lambda: mesh.says("watch was started again"), "word of its start")
    shown = mesh.text().count("sales.app: lag")
    until(lambda: mesh.text().count("sales.app: lag") > shown, "what the next one sees")
    assert "no sight" not in mesh.text()


def written_pipe(pid: int) -> Path:
    """The one pipe that a process, which stands still, can write to."""

    def written(file: Path) -> bool:
        try:
            flags = int((file.parents[1] / "fdinfo" / file.name).read_text().split()[3], 8)
            return str(file.readlink()).startswith("pipe:") and bool(flags & os.O_WRONLY)
        except FileNotFoundError:
            # A thread that was told to stand still has closed it meanwhile.
            return False

    (found,) = filter(written, Path(f"/proc/{pid}/fd").iterdir())
    return found
