"""Named points at which a test may kill this process.

``MESH_FAILPOINT=append.after:3`` sends SIGKILL to the process the third time it reaches
``append.after``. Without the variable a point costs one dictionary look-up. A kill is the
only action on purpose: exceptions would run clean-up code that a power cut does not run.
"""

from __future__ import annotations

import os
import signal

_ENVIRONMENT_VARIABLE = "MESH_FAILPOINT"

POINTS = (
    "decode.before",
    "decode.after",
    "file.written",
    "append.before",
    "append.first",
    "append.middle",
    "version.before",
    "version.after",
    "ledger.before",
    "ledger.after",
    "acknowledge.after",
    "replay.before",
    "replay.after",
    "fold.before",
    "fold.written",
    "fold.after",
    "snapshot.chunk",
    "snapshot.done",
    "compact.before",
    "compact.after",
    "checkpoint.after",
    "archive.written",
)
"""All points of a shift, in the order in which it reaches them."""

OTHER_POINTS = ("swap.moved", "swap.committed")
"""Points that no shift reaches: those of a rebuild."""


_remaining: dict[str, int] = {}


def arm(text: str) -> None:
    """Die at ``point`` or, written ``point:count``, when it is reached so often; an empty text disarms.

    Raises:
        ValueError: if there is no such point.
    """
    _remaining.clear()
    if not text:
        return
    name, _, count = text.partition(":")
    if name not in (known := POINTS + OTHER_POINTS):
        raise ValueError(f"{_ENVIRONMENT_VARIABLE}: unknown point {name!r}; one of {', '.join(known)}")
    _remaining[name] = int(count or 1)


arm(os.environ.get(_ENVIRONMENT_VARIABLE, ""))


def reach(point: str) -> None:
    """Die here, as by a power cut, if the environment asks for it."""
    if point not in _remaining:
        return
    _remaining[point] -= 1
    if _remaining[point] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
