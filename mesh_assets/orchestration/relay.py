"""How shifts of one kind follow one another: one at a time, and the next is warm before its turn comes.

A run worker needs seconds until it can take anything in. So the next run is started while the shift still
drains (the run queue lets two runs per value start, see ``dagster.yaml``); it loads what it needs, says that
it is ready and waits. The shift ends only then, and says that it is over before it writes its last reports.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256

import dagster as dg

from mesh_assets.contract.discovery import Product
from mesh_assets.errors import MeshError

ACTIVE = (
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)

READY_TAG = ".dagster/mesh_ready"
"""On a run that waits for its turn and can take over at once; not shown to people."""
OVER_TAG = ".dagster/mesh_over"
"""On a run whose shift is over, though it still writes its reports."""

_TURN_SECONDS = 0.2
_SPREAD = 0.125


def turn_seconds(shift_seconds: float, name: str) -> float:
    """How long a shift of this name lasts: an eighth more or less, so that not all are relieved at once."""
    share = int(sha256(name.encode()).hexdigest()[:8], 16) / 2**32
    return shift_seconds * (1 + _SPREAD * (2 * share - 1))


class Relay:
    """The turns of one run among the shifts that bear the same tags.

    Args:
        instance: where all of them are recorded.
        run: this one; if it bears the tags from the start, its turn will come, else it may find a turn free.
        tags: what tells these shifts from others.
        queue_seconds: a successor that has waited in the queue for so long finds no place beside the shift.

    Attributes:
        in_line: whether this run was started to be the next shift.
    """

    def __init__(
        self,
        instance: dg.DagsterInstance,
        run: dg.DagsterRun,
        tags: Mapping[str, str],
        *,
        queue_seconds: float = 20.0,
    ) -> None:
        self._instance = instance
        self._run_id = run.run_id
        self._tags = dict(tags)
        self._ready = False
        self._queue_seconds = queue_seconds
        self.in_line = self._tags.items() <= run.tags.items()

    def other(self) -> dg.DagsterRun | None:
        """The run that is the shift now, or will be before this one."""
        runs = self._instance.get_runs(dg.RunsFilter(tags=self._tags, statuses=list(ACTIVE)))
        ids = [run.run_id for run in runs]
        # Newest first. Those in line wait only for older ones: no two wait for each other.
        before = runs[ids.index(self._run_id) + 1 :] if self._run_id in ids else runs
        return next((run for run in before if OVER_TAG not in run.tags), None)

    def wait(self, products: Iterable[Product]) -> None:
        """Wait a moment for the turn; before the first time, get ready and say so.

        Args:
            products: those whose rules the shift will ask for.
        """
        if not self._ready:
            self._ready = True
            _compile_rules(products)
            self._instance.add_run_tags(self._run_id, {READY_TAG: "true"})
        time.sleep(_TURN_SECONDS)

    def begin(self) -> None:
        """It is this run's turn."""
        self._instance.add_run_tags(self._run_id, self._tags)

    def over(self) -> None:
        """The shift has ended: the next may begin while this run writes its last reports."""
        self._instance.add_run_tags(self._run_id, {OVER_TAG: "true"})

    def relieved(self) -> bool:
        """Whether the next shift is ready, or must have this one's place to begin at all."""
        statuses = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.QUEUED]
        return any(
            self._relieves(record)
            for record in self._instance.get_run_records(dg.RunsFilter(tags=self._tags, statuses=statuses))
            if record.dagster_run.run_id != self._run_id
        )

    def _relieves(self, record: dg.RunRecord) -> bool:
        run = record.dagster_run
        if run.status == dg.DagsterRunStatus.QUEUED:
            waited = datetime.now(UTC).timestamp() - record.create_timestamp.timestamp()
            return waited > self._queue_seconds
        return READY_TAG in run.tags and OVER_TAG not in run.tags


def _compile_rules(products: Iterable[Product]) -> None:
    """Compile rules as the shift will: what takes long in it, queries and patterns, is kept in memory."""
    from mesh_assets.quality import load

    for product in products:
        # The shift itself says what is wrong with a product.
        with suppress(MeshError):
            load(product)
