"""A run launcher that forks run workers from a warm process instead of starting Python anew.

Dagster's default launcher spawns a new interpreter for every run, which costs one to two seconds of
CPU before the first line of the run. ``mesh up`` keeps a *nursery* (:mod:`mesh_assets.local.nursery`):
a process that has imported what runs need and forks itself on request. Where no nursery is announced
by ``MESH_NURSERY_SOCKET`` (``dagster dev``, tests), this is Dagster's default launcher.

The protocol is one JSON object per connection and direction, over a private Unix socket
(``arguments`` are serialised ``ExecuteRunArgs``)::

    {"verb": "launch", "run_id": …, "arguments": …}     -> {"pid": …}
    {"verb": "cancel", "run_id": …}                     -> {"found": true or false}
    {"verb": "look", "run_id": …}                       -> {"status": a WorkerStatus, "message": …}
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster import DagsterRun, DefaultRunLauncher
from dagster._core.launcher import LaunchRunContext
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import serialize_value

from mesh_assets.errors import MeshNotRunning

NURSERY_VARIABLE = "MESH_NURSERY_SOCKET"

# Tags with this prefix are not shown to people.
_NURSERY_TAG = ".dagster/mesh_nursery"
_TIMEOUT_SECONDS = 120.0
"""The nursery answers at once, but a machine may be slow, and it may just be warming up."""


def ask_nursery(path: str, request: Mapping[str, object]) -> dict[str, Any]:
    """Send one request to the nursery at ``path`` and return its reply.

    Raises:
        MeshNotRunning: if nobody listens there or the reply does not come in time.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_TIMEOUT_SECONDS)
            connection.connect(path)
            connection.sendall(json.dumps(request).encode())
            connection.shutdown(socket.SHUT_WR)
            received = b"".join(iter(lambda: connection.recv(65536), b""))
        reply: dict[str, Any] = json.loads(received)
    except (OSError, ValueError) as error:
        raise MeshNotRunning(
            f"the process that runs are forked from does not answer at {path}: {error}",
            hint="it is restarted by `mesh up` within seconds; look at its log if that repeats",
        ) from error
    return reply


class WarmRunLauncher(DefaultRunLauncher):
    """Launch runs through the nursery where there is one, else as Dagster's default launcher does."""

    def launch_run(self, context: LaunchRunContext) -> None:
        """Fork a run worker.

        Raises:
            MeshNotRunning: if the nursery does not answer; Dagster marks the run as failed.
        """
        path = os.environ.get(NURSERY_VARIABLE)
        run = context.dagster_run
        origin = context.job_code_origin
        if not path or origin is None:
            super().launch_run(context)
            return
        arguments = ExecuteRunArgs(
            job_origin=origin,
            run_id=run.run_id,
            instance_ref=self._instance.get_ref(),
            set_exit_code_on_failure=True,
        )
        # The tag comes first: a run that has it and whose nursery does not know it never started.
        self._instance.add_run_tags(run.run_id, {_NURSERY_TAG: path})
        request = {"verb": "launch", "run_id": run.run_id, "arguments": serialize_value(arguments)}
        reply = ask_nursery(path, request)
        message = f"Forked run worker (pid {reply['pid']})."
        self._instance.report_engine_event(message, run, cls=type(self))

    def terminate(self, run_id: str) -> bool:
        """Ask the run's worker to end; False if there was nothing to end."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        path = _nursery_of(run)
        if path is None:
            return bool(super().terminate(run_id))  # type: ignore[no-untyped-call]
        self._instance.report_run_canceling(run)
        try:
            found = bool(ask_nursery(path, {"verb": "cancel", "run_id": run_id})["found"])
        except MeshNotRunning:
            found = False
        if not found:
            self._instance.report_run_canceled(run, message="its worker is gone")
        return found

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Run monitoring may ask for the health of run workers."""
        return bool(os.environ.get(NURSERY_VARIABLE))

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the run's worker lives."""
        path = _nursery_of(run)
        if path is None:
            return CheckRunHealthResult(WorkerStatus.UNKNOWN, "not started by this mesh")
        if path != os.environ.get(NURSERY_VARIABLE):
            return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "its worker ended with an earlier `mesh up`")
        try:
            reply = ask_nursery(path, {"verb": "look", "run_id": run.run_id})
        except MeshNotRunning as error:
            return CheckRunHealthResult(WorkerStatus.UNKNOWN, error.message, transient=True)
        return CheckRunHealthResult(WorkerStatus(reply["status"]), str(reply["message"]))


def fail_orphaned_runs(instance: dg.DagsterInstance) -> int:
    """Mark runs as failed whose workers ended with an earlier ``mesh up``; returns how many.

    Without this they would hold their source's only shift until run monitoring found them.
    """
    statuses = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    count = 0
    for run in instance.get_runs(dg.RunsFilter(statuses=statuses)):
        if _nursery_of(run) != os.environ.get(NURSERY_VARIABLE):
            if run.status == dg.DagsterRunStatus.CANCELING:
                instance.report_run_canceled(run, message="its worker ended with an earlier `mesh up`")
            else:
                instance.report_run_failed(run, message="its worker ended with an earlier `mesh up`")
            count += 1
    return count


def _nursery_of(run: DagsterRun) -> str | None:
    return run.tags.get(_NURSERY_TAG)
