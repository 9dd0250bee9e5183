"""Folders for what transforms give, in the installation's own; those that dead shifts left are swept."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from mesh_assets.derive.claim import alone, held, private

_OWNER = "owner"
"""The file in each folder that its process keeps locked."""
_FOLDER = "scratch"


class Scratch:
    """A folder of one process.

    Args:
        home: the installation's folder for derive shifts.

    Attributes:
        folder: where it is.
    """

    def __init__(self, home: Path) -> None:
        place = private(private(home) / _FOLDER)
        # Alone, so that nobody takes a folder that is not locked yet for one that was left.
        with alone(place.with_suffix(".lock")):
            for left in place.iterdir():
                _sweep(left)
            self.folder = Path(tempfile.mkdtemp(dir=place))
            self._owner = held(self.folder / _OWNER)

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._owner is not None:
            self._owner.close()


def _sweep(folder: Path) -> None:
    """Remove a folder whose process is dead."""
    try:
        owner = held(folder / _OWNER)
    except (FileNotFoundError, NotADirectoryError):
        # Its process is removing it.
        return
    if owner is not None:
        shutil.rmtree(folder, ignore_errors=True)
        owner.close()
