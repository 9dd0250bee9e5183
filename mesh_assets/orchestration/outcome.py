"""How Dagster is told of the outcomes of quality rules, at a bounded rate and with a history."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import dagster as dg

from mesh_assets.checks.pages import page
from mesh_assets.names import CURRENT, Layout, ProductName
from mesh_assets.orchestration.asset import VERSION, asset_key
from mesh_assets.orchestration.rule import check_name

if TYPE_CHECKING:
    # Loading these loads the Delta Lake library, which a code server has no need of.
    from mesh_assets.checks.log import Checked
    from mesh_assets.shift.report import CheckReport

DATA_DOCS = "quality/data_docs"
SAME_SECONDS = 300.0
"""How long an outcome that stays as it was is not told again."""


class Outcomes:
    """Tells Dagster of outcomes that are not those told before.

    They belong to the run that reports the table: only such are shown as up to date.

    Args:
        log_event: takes an evaluation.
        layout: of the lake.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        log_event: Callable[[dg.AssetCheckEvaluation], object],
        layout: Layout,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log_event = log_event
        self._layout = layout
        self._clock = clock
        self._told: dict[dg.AssetCheckKey, tuple[float, object]] = {}

    def tell(self, report: CheckReport) -> list[Checked]:
        """Report what is new, or was not told for some minutes; returns it."""
        now, new = self._clock(), []
        for checked in report.outcomes:
            evaluation = check_evaluation(report.name, checked, self._layout)
            key = dg.AssetCheckKey(evaluation.asset_key, evaluation.check_name)
            found = (checked.status, checked.observed, checked.unexpected_count, checked.quarantined_count)
            at, told = self._told.get(key, (float("-inf"), None))
            if found == told and now - at < SAME_SECONDS:
                continue
            self._told[key] = now, found
            self._log_event(evaluation)
            new.append(checked)
        return new


def check_evaluation(name: ProductName, checked: Checked, layout: Layout) -> dg.AssetCheckEvaluation:
    """How Dagster is told of a rule's outcome; numbers in it are plotted over time."""
    numbers = {
        "quality/unexpected_count": checked.unexpected_count,
        "quality/row_count": checked.row_count,
        "quality/quarantined_count": checked.quarantined_count,
        VERSION: checked.version,
    }
    metadata: dict[str, dg.MetadataValue] = {
        key: dg.MetadataValue.int(value) for key, value in numbers.items() if value is not None
    }
    if checked.observed:
        try:
            metadata["quality/observed"] = dg.MetadataValue.float(float(checked.observed))
        except ValueError:
            metadata["quality/observed"] = dg.MetadataValue.text(checked.observed)
    metadata["quality/status"] = dg.MetadataValue.text(checked.status)
    if (first := page(layout, name)) is not None:
        metadata[DATA_DOCS] = dg.MetadataValue.path(first)
    warning = checked.severity == "warning"
    return dg.AssetCheckEvaluation(
        asset_key=asset_key(name, CURRENT, checked.table),
        check_name=check_name(checked.rule),
        passed=checked.passed,
        severity=dg.AssetCheckSeverity.WARN if warning else dg.AssetCheckSeverity.ERROR,
        description=checked.sentence(),
        metadata=metadata,
    )
