"""A mesh that runs as people run it: the command in a process of its own, asked over HTTP and by commands."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from tests.waiting import PATIENCE_SECONDS, until

PROJECT = Path(__file__).resolve().parents[2]
MESH = Path(sys.executable).with_name("mesh")
ENDED = frozenset({"SUCCESS", "FAILURE", "CANCELED"})
"""Statuses of a run that is over."""

_VIEW = re.compile(r": lag .*WAL kept| v\d+ .* rows ")
_VIEW_LINES = 4
_SHOWN_CHARACTERS = 300
READY_SECONDS = 420.0
"""Longer than a mesh gives itself."""


def environment(home: Path, **more: str) -> dict[str, str]:
    """This process's environment, with nothing in it that would point at another mesh."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "DAGSTER_"))}
    return {**kept, "MESH_HOME": str(home), "MESH_PORT": str(free_port()), **more}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def processes_of(home: Path) -> dict[int, str]:
    """All processes that belong to the mesh of a home folder, wherever they were moved to."""
    found = {}
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            line = " ".join(process.cmdline())
            ours = str(home) in line
            # PostgreSQL writes over its environment, but has its folder in its command line.
            if not ours and process.name() != "postgres":
                ours = process.environ().get("MESH_HOME") == str(home)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if ours:
            found[process.pid] = f"{process.name()}: {line}"
    return found


class Running:
    """One ``mesh up``; killed at the end if it still runs.

    Args:
        home: its home folder.
        arguments: of the command.
        more: environment variables.
        session: whether it leads a session of its own, as what a terminal runs.
    """

    def __init__(
        self, home: Path, *arguments: str, more: Mapping[str, str] | None = None, session: bool = False
    ) -> None:
        self.home = home
        self.output = home.with_name(f"{home.name}.out")
        self.environment = environment(home, **(more or {}))
        with self.output.open("wb") as stream:
            self.process = subprocess.Popen(
                [MESH, "up", *arguments],
                cwd=PROJECT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=session,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
        if error is not None:
            logs = [log for log in sorted((self.home / "logs").rglob("*.log")) if log.stat().st_size]
            parts = [f"== {log.name}\n{log.read_text()[-_SHOWN_CHARACTERS:]}" for log in logs]
            print(*parts, "== mesh up", self.told(), sep="\n")

    def text(self) -> str:
        """What it has printed."""
        return self.output.read_text()

    def told(self) -> str:
        """The same, of the views only the last one."""
        lines = self.text().splitlines()
        views = [line for line in lines if _VIEW.search(line)]
        return "\n".join([line for line in lines if line not in views] + views[-_VIEW_LINES:])

    def says(self, text: str) -> bool:
        """Whether it has printed this; fails if it ended without."""
        if text in self.text():
            return True
        assert self.process.poll() is None, f"it ended without saying {text!r}:\n{self.told()}"
        return False

    def wait_until_ready(self) -> None:
        """Wait until it says where its pages are; fails with its words if it ends without."""
        until(lambda: self.says("Dagster: http://"), "ready", READY_SECONDS)

    def child(self, name: str) -> psutil.Process | None:
        """A child process, by the name that the kernel knows it by."""
        for process in psutil.Process(self.process.pid).children():
            if process.name() == name[:15] and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def command(self, *arguments: str, code: int = 0) -> str:
        """Run another ``mesh`` command beside it and return its output, with the errors of one that fails."""
        done = subprocess.run(
            [MESH, *arguments],
            cwd=PROJECT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + (done.stderr if code else "")

    # -- Dagster

    @property
    def address(self) -> str:
        record = json.loads((self.home / "up.json").read_text())
        return str(record["addresses"]["Dagster"])

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Ask Dagster in GraphQL."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(
            f"{self.address}/graphql", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                found: dict[str, Any] = json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        return found

    def materialised(self) -> dict[str, int]:
        """How many materialisations (at most one) each asset has, by key."""
        nodes = self.ask("{assetNodes {assetKey {path} assetMaterializations(limit: 1) {runId}}}")[
            "assetNodes"
        ]
        return {"/".join(node["assetKey"]["path"]): len(node["assetMaterializations"]) for node in nodes}

    def runs(self, value: str, *statuses: str, tag: str = "mesh/shift") -> list[dict[str, Any]]:
        """Shifts of a source, newest first; without statuses all of them.

        ``tag="mesh/derive"`` asks for the derive shifts of a domain instead.
        """
        answer = self.ask(
            "query q($filter: RunsFilter!) {runsOrError(filter: $filter) {... on Runs {results "
            "{runId status creationTime startTime endTime}}}}",
            filter={
                "tags": [{"key": tag, "value": value}],
                **({"statuses": statuses} if statuses else {}),
            },
        )
        found: list[dict[str, Any]] = answer["runsOrError"]["results"]
        return found

    def status(self, run_id: str) -> str:
        """The status of a run; ``unknown`` if Dagster has no such run."""
        answer = self.ask("query q($id: ID!) {runOrError(runId: $id) {... on Run {status}}}", id=run_id)
        return str(answer["runOrError"].get("status", "unknown"))

    def ended(self, run_id: str | None) -> str:
        """The status of a run at its end, which is waited for."""
        assert run_id is not None
        until(lambda: self.status(run_id) in ENDED, "the end of a run")
        return self.status(run_id)

    def messages(self, run_id: str) -> list[str]:
        """What a run has said in its log."""
        answer = self.ask(
            "query q($id: ID!) {logsForRun(runId: $id, limit: 1000) {... on EventConnection {events "
            "{... on MessageEvent {message}}}}}",
            id=run_id,
        )
        return [event["message"] for event in answer["logsForRun"]["events"] if "message" in event]

    def launch(self, location: str, key: str, *checks: str) -> str | None:
        """Press Materialize on one asset, or Execute on checks of it.

        Returns:
            The run's id, or None if its location is not there.
        """
        asset = {"path": key.split("/")}
        answer = self.ask(
            "mutation m($p: ExecutionParams!) {launchPipelineExecution(executionParams: $p) "
            "{__typename ... on LaunchRunSuccess {run {runId}} ... on PythonError {message}}}",
            p={
                "selector": {
                    "repositoryLocationName": location,
                    "repositoryName": "__repository__",
                    "pipelineName": "__ASSET_JOB",
                    "assetSelection": [] if checks else [asset],
                    "assetCheckSelection": [{"assetKey": asset, "name": name} for name in checks],
                },
                "runConfigData": "{}",
                "mode": "default",
            },
        )["launchPipelineExecution"]
        return str(answer["run"]["runId"]) if "run" in answer else None

    def checked(self, key: str) -> dict[str, list[dict[str, Any]]]:
        """The history of every check of an asset, newest first, by name."""
        nodes = self.ask(
            "query q($keys: [AssetKeyInput!]) {assetNodes(assetKeys: $keys) {assetChecksOrError {"
            "... on AssetChecks {checks {name executionForLatestMaterialization {status runId}}}}}}",
            keys=[{"path": key.split("/")}],
        )["assetNodes"]
        found = {}
        for check in nodes[0]["assetChecksOrError"].get("checks", []):
            found[check["name"]] = self.ask(
                "query q($key: AssetKeyInput!, $name: String!) {assetCheckExecutions(assetKey: $key, "
                "checkName: $name, limit: 20) {status runId evaluation {success metadataEntries {label "
                "... on IntMetadataEntry {intValue} ... on FloatMetadataEntry {floatValue}}}}}",
                key={"path": key.split("/")},
                name=check["name"],
            )["assetCheckExecutions"]
        return found

    def metadata(self, key: str) -> dict[str, dict[str, Any]]:
        """The metadata of an asset's newest materialisation, by label."""
        nodes = self.ask(
            "query q($keys: [AssetKeyInput!]) {assetNodes(assetKeys: $keys) "
            "{assetMaterializations(limit: 1) {metadataEntries {label ... on IntMetadataEntry {intValue} "
            "... on TableColumnLineageMetadataEntry "
            "{lineage {columnName columnDeps {assetKey {path} columnName}}}}}}}",
            keys=[{"path": key.split("/")}],
        )["assetNodes"]
        newest = nodes[0]["assetMaterializations"]
        return {entry["label"]: entry for entry in newest[0]["metadataEntries"]} if newest else {}

    def cancel(self, run_id: str) -> str:
        """Cancel a run as the UI does; the kind of answer."""
        answer = self.ask("mutation m($id: String!) {terminateRun(runId: $id) {__typename}}", id=run_id)
        return str(answer["terminateRun"]["__typename"])
