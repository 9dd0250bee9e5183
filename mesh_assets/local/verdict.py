"""Whether the mesh works, judged by a sight of it: what has failed, and what is only on its way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mesh_assets.local.sight import ProductSight, Sight, SourceSight

LAG_SECONDS = 15.0
"""A source whose changes wait longer than this lags."""
GRACE_SECONDS = 60.0
"""What is on its way when a mesh's time is over may come within this."""


@dataclass(frozen=True)
class Verdict:
    """What speaks against a mesh; nothing of either kind: it works.

    Attributes:
        failures: what no waiting mends.
        awaited: what may come by itself.
    """

    failures: tuple[str, ...] = ()
    awaited: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """All of it, as judged when there is no more waiting."""
        return self.failures + self.awaited


def judge(sight: Sight, crashes: Sequence[str] = ()) -> Verdict:
    """The verdict on a mesh that looks like this.

    Args:
        crashes: processes of it that have ended by themselves, one sentence each.
    """
    findings = tuple(_findings(sight))
    return Verdict(
        (*crashes, *(text for text, may_come in findings if not may_come)),
        tuple(text for text, may_come in findings if may_come),
    )


class Patience:
    """How long a mesh stays up: its time, and a little more for what is on its way then.

    Args:
        seconds: its time; None: without end.
        say: where to say what is waited for.
    """

    def __init__(self, seconds: float | None, say: Callable[[str], None]) -> None:
        self._seconds = seconds
        self._say = say
        self._waiting = False

    def stays(self, up_seconds: float, verdict: Verdict) -> bool:
        """Whether a mesh that has been ready for so long, and is judged so, stays up."""
        if self._seconds is None or up_seconds < self._seconds:
            return True
        late_seconds = up_seconds - self._seconds
        if verdict.failures or late_seconds >= GRACE_SECONDS:
            return False
        if not verdict.awaited:
            if self._waiting:
                self._say(f"all of it came, {late_seconds:.0f} s later")
            return False
        if not self._waiting:
            self._waiting = True
            self._say(
                f"{self._seconds:g} s are over, but something is still on its way; waiting up to "
                f"{GRACE_SECONDS:.0f} s more for: {'; '.join(verdict.awaited)}"
            )
        return True


def _findings(sight: Sight) -> Iterator[tuple[str, bool]]:
    """What is not as it should be, each with whether it may come right by itself."""
    if not sight.web:
        # It is who knows of daemons, locations and runs.
        yield "Dagster's web server does not answer", True
    else:
        for daemon in sight.daemons:
            yield f"Dagster's {daemon} daemon is not healthy", True
        if not sight.locations:
            yield "Dagster knows of no code location", True
    for name, state in sight.locations.items():
        if state != "loaded":
            yield f"code location {name}: {state}", state == "loading"
    for run in sight.failed_runs:
        yield f"run failed: {run}", False
    for product in sight.products:
        yield from _product(product)
    for source in sight.sources:
        yield from _source(source)


def _product(product: ProductSight) -> Iterator[tuple[str, bool]]:
    if product.problem:
        yield f"product {product.name}: {product.problem}", False
    elif not product.version:
        yield f"product {product.name} has no version", True


def _source(source: SourceSight) -> Iterator[tuple[str, bool]]:
    if source.problem:
        yield f"source {source.name}: {source.problem}", source.overdue
    elif source.lag_seconds is None:
        yield f"source {source.name} was not captured", True
    elif source.lag_seconds > LAG_SECONDS:
        yield f"source {source.name} lags by {source.lag_seconds:.0f} s", True
