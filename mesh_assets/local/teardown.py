"""How an installation ends: ``mesh down`` stops it, ``mesh reset`` removes it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time

from mesh_assets.errors import MeshNotRunning, SettingError
from mesh_assets.local.place import Place
from mesh_assets.local.removal import Removal
from mesh_assets.settings import Settings

_DOWN_SECONDS = 60.0


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
        for name in ("clusters", "sources", "dagster", "derive", "logs", "lake"):
            shutil.rmtree(place.home / name, ignore_errors=True)
        search_index = place.home.glob("search.sqlite*")
        for file in (*search_index, settings.dagster_url_file, place.record, place.lock):
            file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        place.home.rmdir()
    return left
