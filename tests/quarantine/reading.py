"""What a landed table looks like from outside."""

from __future__ import annotations

from typing import Any

import polars as pl

from mesh_assets.lake.current import Current
from mesh_assets.lake.fold import fold
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.quarantine import images, last_rows, open_rows, source_rows
from mesh_assets.lake.read import rows_at
from mesh_assets.lake.tail import shape_of
from tests.quarantine.table import Place


def current(place: Place) -> dict[Any, tuple[Any, Any]]:
    """What a fresh read gives."""
    log = ChangeLog.open(place.target.changes_uri)
    rows = rows_at(log, place.target.current_uri, log.seq, columns=["k", "n", "big", "_exact"]).collect()
    return as_rows(rows)


def as_rows(rows: pl.DataFrame) -> dict[Any, tuple[Any, Any]]:
    """Key -> (n, big)."""
    found = {
        dict(exact or ()).get("k", key): (n, big)
        for key, n, big, exact in rows.select("k", "n", "big", "_exact").iter_rows()
    }
    assert len(found) == rows.height
    return found


def quarantined(place: Place) -> dict[Any, tuple[Any, Any]]:
    """The last images of the open entries."""
    log = ChangeLog.open(place.target.changes_uri)
    return as_rows(images(log, last_rows(shape_of(log), open_rows(log))).collect())


def at_source(place: Place) -> dict[Any, tuple[Any, Any]]:
    """What the lake takes for the source's rows."""
    log = ChangeLog.open(place.target.changes_uri)
    columns = ["k", "n", "big", "_exact"]
    return as_rows(source_rows(log, place.target.current_uri, log.seq, columns=columns).collect())


def fold_all(place: Place) -> None:
    """Fold the log to its end."""
    log = ChangeLog.open(place.target.changes_uri)
    fold(log, Current.open_or_create(place.target.current_uri, log.row_schema, log.key), log.seq)
