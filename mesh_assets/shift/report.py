"""What a shift may use, what it tells, and who listens."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from mesh_assets.lake.current import FoldPolicy
from mesh_assets.lake.upkeep import Upkeep
from mesh_assets.lake.version import VersionRow
from mesh_assets.names import ProductName

if TYPE_CHECKING:
    from mesh_assets.checks.log import Checked

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """What a shift may use.

    Attributes:
        max_seconds: after so long on the stream the shift ends, once it is relieved.
        idle_seconds: after this long without a change the shift ends.
        catching_up: the shift ends as soon as it has what was there when it began, whatever comes after.
        batch_seconds: a batch lands at most this often.
        batch_rows: a batch lands at once when it has this many changes.
        batch_bytes: or this many bytes of the stream.
        snapshot_rows: rows of a snapshot read, and appended, at a time.
        claim_seconds: how long to wait for another shift of the source to end.
        fold: when folds and upkeep run beside the drain; None: never.
        check_seconds: quality checks run at most this often beside the drain, and when it is idle in
            the end; None: never.
        upkeep: what upkeep keeps, and for how long.
    """

    max_seconds: float = 900.0
    idle_seconds: float = 10.0
    catching_up: bool = False
    batch_seconds: float = 0.7
    batch_rows: int = 100_000
    batch_bytes: int = 32 << 20
    snapshot_rows: int = 200_000
    claim_seconds: float = 3.0
    fold: FoldPolicy | None = field(default_factory=FoldPolicy)
    check_seconds: float | None = 60.0
    upkeep: Upkeep = field(default_factory=Upkeep)


@dataclass(frozen=True)
class TableReport:
    """What one batch added to one table's change log.

    Attributes:
        columns: the captured columns and their types at the source.
        rejected_count: changes in this shift that the gate kept out of current.
    """

    name: ProductName
    table: str
    row_count: int
    op_count: Mapping[str, int]
    last_seq: int
    delta_version: int
    columns: Mapping[str, str] = field(default_factory=dict)
    rejected_count: int = 0


@dataclass(frozen=True)
class BatchReport:
    """One batch, durable and acknowledged."""

    tables: Sequence[TableReport]
    commit_lsn: int
    end_lsn: int
    committed_at: datetime | None
    row_count: int
    transaction_count: int
    parked_count: int
    seconds: float


@dataclass(frozen=True)
class FoldReport:
    """One current table was folded up to a cut."""

    name: ProductName
    table: str
    upto_seq: int
    tail_row_count: int
    row_count: int
    delta_version: int
    started_at: datetime
    seconds: float


@dataclass(frozen=True)
class CheckReport:
    """The quality rules of one product were evaluated on one version.

    Attributes:
        outcomes: one per rule (:class:`mesh_assets.checks.log.Checked`), as told beyond the lake.
    """

    name: ProductName
    version: int
    outcomes: Sequence[Checked]
    started_at: datetime
    seconds: float


@dataclass(frozen=True)
class VersionReport:
    """One product version."""

    name: ProductName
    row: VersionRow


@dataclass
class ShiftResult:
    """What a shift did.

    Attributes:
        reason: why it ended: ``idle``, ``caught up``, ``budget``, ``cancelled`` or ``contract changed``.
    """

    reason: str = "idle"
    row_count: int = 0
    batch_count: int = 0
    transaction_count: int = 0
    parked_count: int = 0
    snapshot_row_count: int = 0
    seconds: float = 0.0
    refused: dict[str, str] = field(default_factory=dict)
    tables: dict[tuple[ProductName, str], TableReport] = field(default_factory=dict)

    def add(self, report: BatchReport) -> None:
        """Count one batch."""
        self.row_count += report.row_count
        self.batch_count += 1
        self.transaction_count += report.transaction_count
        self.parked_count += report.parked_count
        for table in report.tables:
            self.tables[(table.name, table.table)] = table


class Observer(Protocol):
    """Who watches a shift: a Dagster run, the command line, a test."""

    def message(self, text: str) -> None:
        """Something worth a line in the log."""

    def batch(self, report: BatchReport) -> None:
        """A batch is durable and acknowledged."""

    def version(self, report: VersionReport) -> None:
        """A product version is durable."""

    def fold(self, report: FoldReport) -> None:
        """A current table was folded."""

    def checked(self, report: CheckReport) -> None:
        """The quality checks of a product were run."""

    def cancelled(self) -> bool:
        """Whether the shift shall end now, between two batches."""

    def relieved(self) -> bool:
        """Whether the shift may end at its budget: its successor is ready, or it needs none."""


class Silent:
    """An observer that watches nothing and never interrupts."""

    def message(self, text: str) -> None:
        """Log it."""
        logger.info("%s", text)

    def batch(self, report: BatchReport) -> None:
        """Ignore it."""

    def version(self, report: VersionReport) -> None:
        """Ignore it."""

    def fold(self, report: FoldReport) -> None:
        """Ignore it."""

    def checked(self, report: CheckReport) -> None:
        """Ignore it."""

    def cancelled(self) -> bool:
        """Never."""
        return False

    def relieved(self) -> bool:
        """Always."""
        return True
