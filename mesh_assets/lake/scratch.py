"""Folders for what a process puts aside for a while; those that dead processes left are swept.

Beside each folder lies a file that its process keeps locked. Nobody waits for a lock: whoever finds
one that nobody keeps removes the folder.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO

from mesh_assets.lake.lock import held

_PREFIX = "mesh-scratch-"
_LOCK = ".lock"


def private(folder: Path) -> Path:
    """The folder, made if it is missing, for its owner's eyes only."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


class Scratch:
    """A folder for its owner's eyes only, until the block ends or it is closed.

    Args:
        what: it is for; part of its name.
        place: the folder to make it in, for its owner's eyes only too; left out, the system's for
            temporary files.

    Attributes:
        folder: where it is.
    """

    def __init__(self, what: str, place: Path | None = None) -> None:
        place = Path(tempfile.gettempdir()) if place is None else private(place)
        _sweep(place)
        self._lock, self._owner = _locked(place, what)
        self.folder = self._lock.with_suffix("")
        self.folder.mkdir(mode=0o700)

    def __enter__(self) -> Path:
        return self.folder

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove it."""
        _remove(self._lock)
        self._owner.close()


def _locked(place: Path, what: str) -> tuple[Path, IO[str]]:
    """A new file that this process has locked."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f"{_PREFIX}{what}-", suffix=_LOCK, dir=place)
        os.close(handle)
        # A process that sweeps may take it for one that was left, before it is locked.
        if (owner := held(Path(name))) is not None:
            return Path(name), owner


def _sweep(place: Path) -> None:
    """Remove this user's folders whose processes are dead."""
    for lock in place.glob(f"{_PREFIX}*{_LOCK}"):
        try:
            if lock.lstat().st_uid != os.geteuid():
                continue
        except FileNotFoundError:
            # Its process has just removed it.
            continue
        if (owner := held(lock)) is not None:
            _remove(lock)
            owner.close()


def _remove(lock: Path) -> None:
    """Remove a folder; its lock stays while something of it does, so that it is swept another time."""
    folder = lock.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        lock.unlink(missing_ok=True)
