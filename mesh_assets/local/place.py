"""Where the state of one installation lies, and who has it: its lock, its record, its clusters."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh_assets.errors import MeshNotRunning, SettingError
from mesh_assets.local.postgres import Cluster
from mesh_assets.local.removal import Removal
from mesh_assets.settings import Settings

_DOWN_SECONDS = 60.0


@dataclass(frozen=True)
class Place:
    """The folder of one installation."""

    home: Path

    @classmethod
    def of(cls, settings: Settings) -> Place:
        """The place that the settings name."""
        return cls(settings.home.absolute())

    @property
    def lock(self) -> Path:
        """Held as long as a mesh is up."""
        return self.home / "up.lock"

    @property
    def record(self) -> Path:
        """Process id and addresses of the mesh that is up."""
        return self.home / "up.json"

    @property
    def logs(self) -> Path:
        """What the processes say."""
        return self.home / "logs"

    @property
    def clusters(self) -> dict[str, Cluster]:
        """The embedded clusters: the sample sources', and Dagster's."""
        folder = self.home / "clusters"
        return {
            "sources": Cluster(folder / "sources"),
            "dagster": Cluster(folder / "dagster", logical=False, shared_buffers_mb=32),
        }

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """Hold the installation's lock; yields False if another process does."""
        self.home.mkdir(parents=True, exist_ok=True)
        with self.lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def running(self) -> dict[str, Any]:
        """Process id and addresses of the running mesh; empty if it is not up."""
        try:
            found = json.loads(self.record.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def down(settings: Settings) -> None:
    """Stop the running mesh and wait until it is gone.

    Raises:
        MeshNotRunning: if it is not up, or does not end within a minute.
    """
    place = Place.of(settings)
    with place.locked() as free:
        if free:
            raise MeshNotRunning(f"the mesh in {place.home} is not up")
    pid = place.running().get("pid")
    if isinstance(pid, int):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _DOWN_SECONDS
    while time.monotonic() < deadline:
        with place.locked() as free:
            if free:
                return
        time.sleep(0.1)
    raise MeshNotRunning(f"process {pid} did not stop within {_DOWN_SECONDS:.0f} s", hint=f"kill -9 {pid}")


def reset(settings: Settings, removal: Removal) -> tuple[str, ...]:
    """Remove all data of this installation: clusters, lake, Dagster's home, logs, traces at sources.

    Args:
        removal: what the user has agreed to.

    Returns:
        What is left to be done by hand, one sentence each.

    Raises:
        SettingError: if the mesh is up.
    """
    place = Place.of(settings)
    with place.locked() as free:
        if not free:
            raise SettingError(f"the mesh in {place.home} is up", hint="stop it first: `mesh down`")
        left = removal.carry_out()
        for cluster in place.clusters.values():
            cluster.remove()
        for name in ("clusters", "sources", "dagster", "logs", "lake"):
            shutil.rmtree(place.home / name, ignore_errors=True)
        for file in (place.record, place.lock):
            file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        place.home.rmdir()
    return left
