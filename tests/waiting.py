"""Waiting for what others do: another thread, process or server."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE_SECONDS = 240.0
"""When what has not come is given up: for what hangs, not for what is slow. Longer than `mesh up` waits."""

_LOOK_SECONDS = 0.05

T = TypeVar("T")


def until(condition: Callable[[], T], what: str = "it", timeout_seconds: float = PATIENCE_SECONDS) -> T:
    """Wait until the condition is truthy, and return what it gave; fails with what it gave last."""
    deadline = time.monotonic() + timeout_seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_seconds:.0f} s, but {found!r}"
        time.sleep(_LOOK_SECONDS)
    return found
