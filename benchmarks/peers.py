"""The environment of the peers: pinned, checked by hash, apart from the mesh's own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console

_HERE = Path(__file__).resolve().parent
LOCK = _HERE / "requirements.lock"
ENVIRONMENT = _HERE.parent / ".venv-bench"


class PeersError(Exception):
    """The peers cannot be installed here; the message says why."""


def peer_python(console: Console) -> str:
    """The interpreter of the peers' environment, which is made or brought up to the lock if need be.

    Raises:
        PeersError: if it cannot be made, for example without a network.
    """
    python = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    mark = ENVIRONMENT / "installed"
    digest = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()
    if mark.exists() and mark.read_text() == digest:
        return str(python)
    commands = (
        [sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)],
        [str(python), "-m", "pip", "install", "--quiet", "--require-hashes", "--requirement", str(LOCK)],
    )
    with console.status(f"installing the peers into {ENVIRONMENT.name} (once; about 200 MB)"):
        for command in commands:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
            )
            if done.returncode:
                raise PeersError(f"{' '.join(command)} failed:\n{done.stdout.strip()[-2000:]}")
    mark.write_text(digest)
    return str(python)


if __name__ == "__main__":
    peer_python(Console())
