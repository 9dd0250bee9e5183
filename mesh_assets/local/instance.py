"""Dagster's instance as ``mesh up`` sets it up: its home, its storage, its code locations, its processes."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from mesh_assets.errors import SettingError
from mesh_assets.settings import Settings

_PROJECT = Path(__file__).resolve().parent.parent.parent
_HOST = "127.0.0.1"
_PORT_TRIES = 200
_SENSOR_LOOP_SECONDS = 1.5


@dataclass(frozen=True)
class Location:
    """A code location of ``workspace.yaml``: an attribute of a module."""

    name: str
    module: str
    attribute: str


def project_file(settings: Settings, name: str) -> Path:
    """A file of the project: beside the products folder, else beside this package.

    Raises:
        SettingError: if it is in neither place.
    """
    for folder in (settings.products.absolute().parent, _PROJECT):
        if (folder / name).is_file():
            return folder / name
    raise SettingError(
        f"there is no {name} in {settings.products.absolute().parent}",
        hint="run in a checkout of the project, or set MESH_PRODUCTS to the products folder of one",
    )


def locations(workspace: Path) -> list[Location]:
    """The code locations of a ``workspace.yaml``.

    Raises:
        SettingError: if one is not a ``python_module`` with an attribute.
    """
    found = []
    for entry in (yaml.safe_load(workspace.read_text()) or {}).get("load_from") or []:
        module = entry.get("python_module") if isinstance(entry, dict) else None
        if not isinstance(module, dict) or not {"module_name", "attribute"} <= module.keys():
            raise SettingError(
                f"{workspace}: `mesh up` starts code locations of the form "
                "python_module: {module_name: …, attribute: …, location_name: …}",
                hint=f"mend this entry: {entry}",
            )
        name = str(module.get("location_name") or module["attribute"])
        found.append(Location(name, str(module["module_name"]), str(module["attribute"])))
    return found


def served_workspace(names: dict[str, str]) -> str:
    """A workspace file over running code servers: location name -> Unix socket."""
    entries = [{"grpc_server": {"socket": path, "location_name": name}} for name, path in names.items()]
    return yaml.safe_dump({"load_from": entries}, sort_keys=False)


def free_port(wanted: int) -> int:
    """The first free loopback port from ``wanted`` on.

    Raises:
        SettingError: if there is none near.
    """
    for port in range(wanted, wanted + _PORT_TRIES):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, port))
            except OSError:
                continue
            return port
    raise SettingError(
        f"no port from {wanted} to {wanted + _PORT_TRIES - 1} is free", hint="set MESH_PORT to another one"
    )


def prepare_home(settings: Settings) -> Path:
    """Make Dagster's home with the project's ``dagster.yaml`` in it; returns the folder."""
    home = settings.home.absolute() / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    (home / "dagster.yaml").write_bytes(project_file(settings, "dagster.yaml").read_bytes())
    return home


def publish_address(settings: Settings, url: str) -> None:
    """Let commands beside the running mesh find its Dagster storage; readable by this account only."""
    file = settings.dagster_url_file
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(url + "\n")


def initialise_storage() -> int:
    """Make Dagster's tables, and end what an earlier ``mesh up`` left running in them."""
    from dagster import DagsterInstance

    from mesh_assets.orchestration.launcher import fail_orphaned_runs

    with DagsterInstance.get() as instance:
        count = fail_orphaned_runs(instance)
    if count:
        print(f"{count} runs of an earlier `mesh up` marked as failed")  # noqa: T201 - this child's log
    return 0


def serve_code(location: Location, path: str) -> int:
    """Be the code server of one location, on a Unix socket."""
    from dagster._cli.api import grpc_command

    Path(path).unlink(missing_ok=True)
    return _call(
        grpc_command,
        *("--socket", path, "--module-name", location.module, "--attribute", location.attribute),
        *("--location-name", location.name, "--lazy-load-user-code", "--log-level", "warning"),
        "--use-python-environment-entry-point",
    )


def serve_web(workspace: Path, port: int) -> int:
    """Be the web server."""
    from dagster_webserver.cli import dagster_webserver

    return _call(
        dagster_webserver,
        *("--workspace", str(workspace), "--host", _HOST, "--port", str(port)),
        *("--dagster-log-level", "warning", "--uvicorn-log-level", "warning"),
    )


def serve_daemon(workspace: Path) -> int:
    """Be the daemon: sensors, schedules, the run queue, run monitoring, freshness."""
    from dagster._daemon import sensor
    from dagster._daemon.cli import run_command

    # Dagster looks every five seconds which sensors are due, and has no setting for it.
    sensor.MIN_INTERVAL_LOOP_TIME = _SENSOR_LOOP_SECONDS  # type: ignore[assignment]
    return _call(run_command, "--workspace", str(workspace), "--log-level", "warning")


def _call(command: object, *arguments: str) -> int:
    """Run one of Dagster's click commands in this process."""
    main = getattr(command, "main")  # noqa: B009 - click's commands are untyped here
    sys.argv = ["dagster", *arguments]
    return int(main(list(arguments), standalone_mode=False) or 0)


def environment(settings: Settings, dagster_url: str, nursery: str) -> dict[str, str]:
    """What every process of the mesh finds in its environment."""
    return {
        "DAGSTER_HOME": str(settings.home.absolute() / "dagster"),
        "MESH_DAGSTER_POSTGRES_URL": dagster_url,
        "MESH_HOME": str(settings.home.absolute()),
        "MESH_PRODUCTS": str(settings.products.absolute()),
        "MESH_NURSERY_SOCKET": nursery,
        # Nothing is ever sent anywhere by us; some libraries ask only this.
        "DO_NOT_TRACK": os.environ.get("DO_NOT_TRACK", "1"),
    }
