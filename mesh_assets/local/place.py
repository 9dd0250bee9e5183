"""Where the state of one installation lies, and who has it: its lock, its record, its clusters."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh_assets.lake.lock import held
from mesh_assets.local.postgres import Cluster
from mesh_assets.settings import Settings

SOURCES = "sources"
"""The cluster of the sample organisation."""
DAGSTER = "dagster"
"""The cluster of Dagster's state."""


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
        """The embedded clusters."""
        folder = self.home / "clusters"
        return {
            SOURCES: Cluster(folder / SOURCES),
            DAGSTER: Cluster(folder / DAGSTER, logical=False, shared_buffers_mb=32),
        }

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """Hold the installation's lock; yields False if another process does, or has just removed it."""
        self.home.mkdir(parents=True, exist_ok=True)
        with held(self.lock) or contextlib.nullcontext() as file:
            yield file is not None

    def running(self) -> dict[str, Any]:
        """Process id and addresses of the running mesh; empty if it is not up."""
        try:
            found = json.loads(self.record.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}
