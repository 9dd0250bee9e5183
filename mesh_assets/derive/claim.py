"""What one live process at a time may have: a domain's derived products, to keep them up."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mesh_assets.errors import ShiftBusy
from mesh_assets.lake.lock import held
from mesh_assets.lake.scratch import private

_LOOK_SECONDS = 0.1


@contextmanager
def claim(
    home: Path,
    domain: str,
    run_id: str,
    *,
    wait_seconds: float,
    cancelled: Callable[[], bool],
    tell: Callable[[str], None],
) -> Iterator[None]:
    """Be the only derive shift of a domain in this installation.

    Fencing makes a second shift harmless to the lake, wherever it runs; this keeps the two from doing the
    same work.

    Args:
        home: the installation's folder for derive shifts.
        run_id: told to whoever comes second.
        wait_seconds: how long to wait for another to end.
        cancelled: whether to wait no longer.
        tell: told if it has to wait.

    Raises:
        ShiftBusy: if another holds the domain for longer.
    """
    path = private(home) / f"{domain}.claim"
    deadline = time.monotonic() + wait_seconds
    told = False
    while (file := held(path)) is None:
        if time.monotonic() >= deadline or cancelled():
            raise ShiftBusy(
                f"another shift derives the products of {domain}: {_holder(path)}",
                hint="it derives everything; wait for it, or cancel its run in Dagster",
            )
        if not told:
            tell(f"this shift waits for the one that derives the products of {domain}: {_holder(path)}")
            told = True
        time.sleep(_LOOK_SECONDS)
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()}, run {run_id}")
        file.flush()
        yield
        file.truncate(0)


def _holder(path: Path) -> str:
    with suppress(OSError):
        if told := path.read_text().strip():
            return told
    return "it has just begun"
