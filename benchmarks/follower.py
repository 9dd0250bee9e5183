"""Listening to a contender while the harness does something else."""

from __future__ import annotations

import threading
from typing import Any

from benchmarks import child


class Follower:
    """Reads a contender's messages in a thread, so that its pipe never fills up."""

    def __init__(self, contender: child.Child) -> None:
        self._contender = contender
        self._progress = 0
        self._changed = threading.Condition()
        self._result: dict[str, Any] | None = None
        self._failure: Exception | None = None
        self.ended = threading.Event()
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        try:
            self._result = self._contender.result(self._note)
        except child.ContenderError as error:
            self._failure = error
        with self._changed:
            self.ended.set()
            self._changed.notify()

    def _note(self, progress: int) -> None:
        with self._changed:
            self._progress = progress
            self._changed.notify()

    def reach(self, progress: int, seconds: float) -> None:
        """Wait until the contender has come so far, has ended, or so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._progress >= progress or self.ended.is_set(), seconds)

    def result(self) -> dict[str, Any]:
        """Its result, once it has ended."""
        self.ended.wait()
        if self._failure is not None:
            raise self._failure
        assert self._result is not None
        return self._result
