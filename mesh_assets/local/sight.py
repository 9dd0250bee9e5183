"""What the mesh looks like at one moment, as :mod:`mesh_assets.local.watch` sees it."""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class SourceSight:
    """One source.

    Attributes:
        lag_seconds: since when it has had changes that are not captured; 0 if it has none.
        retained_bytes: WAL that it keeps for us.
        change_rate: rows changed per second at the source.
        problem: why it cannot be asked or captured; empty if it can.
        overdue: the problem is only that it has not answered yet.
    """

    name: str
    lag_seconds: float | None = None
    retained_bytes: int | None = None
    change_rate: float | None = None
    captured: bool = False
    problem: str = ""
    overdue: bool = False


@dataclass(frozen=True)
class ProductSight:
    """One product.

    Attributes:
        origin: the source that it is captured from, or the products that it is derived from.
        row_count: rows in its current tables, as last folded.
        version: the latest version; 0 before the first.
        committed_at: commit time at the source of the newest change in it, ISO 8601.
    """

    name: str
    row_count: int | None = None
    version: int = 0
    committed_at: str = ""
    problem: str = ""
    origin: str = ""


@dataclass(frozen=True)
class Sight:
    """Everything at one moment.

    Attributes:
        locations: what became of each code location: ``loaded``, ``loading`` or an error.
        daemons: required daemons of Dagster that are not healthy.
        failed_runs: runs that failed since the start.
        running_runs: how many runs are under way.
        web: whether the web server answers.
    """

    at: float = 0.0
    sources: Sequence[SourceSight] = ()
    products: Sequence[ProductSight] = ()
    locations: dict[str, str] = field(default_factory=dict)
    daemons: Sequence[str] = ()
    failed_runs: Sequence[str] = ()
    running_runs: int = 0
    web: bool = False

    @classmethod
    def load(cls, line: str) -> Sight:
        """Read what :meth:`dump` wrote."""
        found = json.loads(line)
        return cls(
            **found
            | {
                "sources": tuple(SourceSight(**one) for one in found["sources"]),
                "products": tuple(ProductSight(**one) for one in found["products"]),
                "daemons": tuple(found["daemons"]),
                "failed_runs": tuple(found["failed_runs"]),
            }
        )

    def dump(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


class Sights:
    """The sights that come through a pipe.

    Args:
        descriptor: the pipe's reading end.
        say: where to say that a line is no sight, and is left out.

    Attributes:
        latest: the newest one; an empty one before the first.
        came_at: when it came, by the monotonic clock.
    """

    def __init__(self, descriptor: int, say: Callable[[str], None]) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._say = say
        self._line = b""
        self.latest = Sight()
        self.came_at = time.monotonic()

    def read(self, timeout_seconds: float) -> bool:
        """Take in what has come; True if there was a new sight."""
        try:
            readable, _, _ = select.select([self._descriptor], [], [], timeout_seconds)
            received = os.read(self._descriptor, 1 << 20) if readable else b""
        except (InterruptedError, BlockingIOError):
            return False
        *whole, self._line = (self._line + received).split(b"\n")
        return sum(self._take(line.decode(errors="replace")) for line in whole) > 0

    def writer_ended(self) -> None:
        """Take in what it has written, but not half a line: its successor does not go on with that."""
        self.read(0)
        self._line = b""

    def _take(self, line: str) -> bool:
        try:
            self.latest = Sight.load(line)
        except (ValueError, LookupError, TypeError) as error:
            self._say(
                f"the watch wrote what is no sight, it is left out ({error!r}): {line[:_SHOWN_CHARACTERS]!r}"
            )
            return False
        self.came_at = time.monotonic()
        return True


def age_seconds(committed_at: str, now: datetime | None = None) -> float | None:
    """Seconds since a time in ISO 8601; None if there is none."""
    if not committed_at:
        return None
    return ((now or datetime.now(UTC)) - datetime.fromisoformat(committed_at)).total_seconds()
