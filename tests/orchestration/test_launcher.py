"""Run workers forked from a warm process: launched, cancelled, looked at, and missed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.launcher import LaunchRunContext
from dagster._core.launcher.base import WorkerStatus

from mesh_assets.errors import MeshNotRunning
from mesh_assets.orchestration.launcher import (
    NURSERY_VARIABLE,
    WarmRunLauncher,
    ask_nursery,
    fail_orphaned_runs,
)
from tests.orchestration.job import told
from tests.waiting import PATIENCE_SECONDS, until

NURSERY = """
import sys
from pathlib import Path
from mesh_assets.local.nursery import Nursery, warm_up
warm_up()
sys.exit(Nursery(sys.argv[1], Path(sys.argv[2])).serve())
"""


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A nursery in a process of its own."""
    folder = tmp_path_factory.mktemp("nursery")
    path = str(folder / "socket")
    command = [sys.executable, "-c", NURSERY, path, str(folder / "runs")]
    with subprocess.Popen(command, start_new_session=True) as process:
        until(lambda: _answers(path))
        yield path
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0


@pytest.fixture
def instance(nursery: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """An instance whose runs the nursery launches."""
    monkeypatch.setenv(NURSERY_VARIABLE, nursery)
    overrides = {
        "run_launcher": {"module": WarmRunLauncher.__module__, "class": WarmRunLauncher.__name__},
        "compute_logs": {
            "module": "dagster.core.storage.noop_compute_log_manager",
            "class": "NoOpComputeLogManager",
        },
        "telemetry": {"enabled": False},
    }
    with dg.instance_for_test(overrides=overrides, temp_dir=str(tmp_path)) as found:
        yield found


def _answers(path: str) -> bool:
    try:
        return bool(ask_nursery(path, {"verb": "look", "run_id": "none"}))
    except MeshNotRunning:
        return False


def launcher(instance: dg.DagsterInstance) -> WarmRunLauncher:
    found = instance.run_launcher
    assert isinstance(found, WarmRunLauncher)
    return found


def launch(instance: dg.DagsterInstance, how: str, mark: Path) -> dg.DagsterRun:
    """Launch a run as the run queue does."""
    run = instance.create_run_for_job(
        told,
        tags={"how": how, "mark": str(mark)},
        job_code_origin=dg.reconstructable(told).get_python_origin(),
        status=dg.DagsterRunStatus.STARTING,
    )
    launcher(instance).launch_run(LaunchRunContext(dagster_run=run, workspace=None))
    return run


def status(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRunStatus:
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    return found.status


def health(instance: dg.DagsterInstance, run: dg.DagsterRun) -> tuple[WorkerStatus, str]:
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    result = launcher(instance).check_run_worker_health(found)
    return result.status, str(result.msg)


def test_a_run_runs_in_a_fork_of_the_nursery(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    run = launch(instance, "succeed", tmp_path / "mark")
    until(lambda: status(instance, run) == dg.DagsterRunStatus.SUCCESS)
    until(lambda: health(instance, run)[0] == WorkerStatus.SUCCESS)
    assert f"(pid {(tmp_path / 'mark').read_text()})" in "\n".join(
        entry.message for entry in instance.all_logs(run.run_id)
    )
    assert not launcher(instance).terminate(run.run_id)


def test_a_run_that_fails_says_so(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    run = launch(instance, "fail", tmp_path / "mark")
    until(lambda: health(instance, run) == (WorkerStatus.FAILED, "its worker ended with exit code 1"))
    assert status(instance, run) == dg.DagsterRunStatus.FAILURE


def test_a_worker_that_dies_is_found_dead(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    run = launch(instance, "die", tmp_path / "mark")
    until(lambda: health(instance, run) == (WorkerStatus.FAILED, "its worker ended with signal 9"))
    assert status(instance, run) == dg.DagsterRunStatus.STARTED


def test_a_run_is_cancelled(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    run = launch(instance, "wait", tmp_path / "mark")
    until((tmp_path / "mark").exists)
    assert health(instance, run)[0] == WorkerStatus.RUNNING
    assert launcher(instance).terminate(run.run_id)
    until(lambda: status(instance, run) == dg.DagsterRunStatus.CANCELED)
    until(lambda: health(instance, run)[0] != WorkerStatus.RUNNING)


def test_without_its_nursery_a_run_fails_with_the_reason(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NURSERY_VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(MeshNotRunning, match=r"does not answer at .*gone.*\n.*restarted by `mesh up`"):
        launch(instance, "succeed", tmp_path / "mark")
    (run,) = instance.get_runs()
    # Whether it is there again in a moment is not known: nothing is decided by that.
    assert health(instance, run)[0] == WorkerStatus.UNKNOWN
    assert not launcher(instance).terminate(run.run_id)
    assert status(instance, run) == dg.DagsterRunStatus.CANCELED


def test_a_new_nursery_knows_nothing_of_the_old_ones_runs(
    instance: dg.DagsterInstance, nursery: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = launch(instance, "wait", tmp_path / "mark")
    until((tmp_path / "mark").exists)
    monkeypatch.setenv(NURSERY_VARIABLE, str(tmp_path / "another"))
    assert health(instance, run) == (WorkerStatus.NOT_FOUND, "its worker ended with an earlier `mesh up`")
    assert fail_orphaned_runs(instance) == 1
    assert status(instance, run) == dg.DagsterRunStatus.FAILURE
    assert fail_orphaned_runs(instance) == 0
    assert ask_nursery(nursery, {"verb": "cancel", "run_id": run.run_id}) == {"found": True}


def test_a_worker_that_never_started_is_not_found(nursery: str) -> None:
    assert ask_nursery(nursery, {"verb": "look", "run_id": "x"})["status"] == WorkerStatus.NOT_FOUND.value
    assert ask_nursery(nursery, {"verb": "cancel", "run_id": "x"}) == {"found": False}


@pytest.mark.parametrize("nonsense", [b"", b"{", b"[]", b'{"verb": "launch"}', b"\xff" * 100_000])
def test_nonsense_does_not_hurt_the_nursery(nursery: str, nonsense: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(nursery)
        connection.sendall(nonsense)
    assert _answers(nursery)


def test_a_nursery_ends_with_what_runs_in_it(tmp_path: Path) -> None:
    script = NURSERY.replace("warm_up()\n", "").replace("import Nursery, warm_up", "import Nursery") + ""
    sleeper = script.replace(
        "sys.exit(",
        "import mesh_assets.local.nursery as module, time\n"
        "module._work = lambda arguments: time.sleep(600)\nsys.exit(",
    )
    path = str(tmp_path / "socket")
    command = [sys.executable, "-c", sleeper, path, str(tmp_path / "runs")]
    with subprocess.Popen(command, start_new_session=True) as process:
        until(lambda: _answers(path))
        pid = ask_nursery(path, {"verb": "launch", "run_id": "a", "arguments": ""})["pid"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_without_a_nursery_it_is_dagsters_own_launcher(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(NURSERY_VARIABLE)
    assert not launcher(instance).supports_check_run_worker_health
    called = []
    monkeypatch.setattr(dg.DefaultRunLauncher, "launch_run", lambda self, context: called.append(context))
    launch(instance, "succeed", tmp_path / "mark")
    assert len(called) == 1


def test_what_is_warm_has_no_threads_that_a_fork_would_lose() -> None:
    program = (
        "import sys\nfrom mesh_assets.local import nursery\n"
        "nursery.warm_up()\nnursery.warm_up(nursery.WARM_RUNS)\n"
        "sys.exit(', '.join({'polars', 'deltalake', 'duckdb'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() == ""
