"""Locks that the kernel lets go of, however their process ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO


def held(path: Path) -> IO[str] | None:
    """Lock a file, made if it is missing, until it is closed.

    None if another process has it, or has just removed it.
    """
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_nlink:
            return file
    except BlockingIOError:
        pass
    except BaseException:
        file.close()
        raise
    file.close()
    return None
