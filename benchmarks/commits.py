"""A contender: one change log that takes many small appends, with upkeep in between."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import numpy as np

from benchmarks.changes import KEY, ROW_SCHEMA, change_frame
from benchmarks.child import Report, serve
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.table import Table
from mesh_assets.lake.upkeep import Upkeep, maintain

ROWS = 100
_UPKEEP_COMMITS = 40
# A shift appends about once a second and keeps commit files for ten minutes; here time runs faster.
_UPKEEP = Upkeep(archive_seconds=10.0, vacuum_seconds=60.0)


def work(parameters: dict[str, Any], report: Report) -> dict[str, Any]:
    """Append until the log has ``version_count`` versions; returns every append's seconds and CPU seconds.

    Each of the ``marks``, versions, ends a part.
    """
    uri = parameters["uri"]
    log = ChangeLog.create(uri, ROW_SCHEMA, KEY)
    seconds, cpu_seconds = [], []
    for number in range(1, parameters["version_count"] + 1):
        frame = change_frame(np.arange(ROWS) + number * ROWS, "c", number)
        now = datetime.now(UTC)
        began, began_cpu = time.perf_counter(), time.process_time()
        log.append(frame, source="benchmark", position=(number, ROWS - 1), captured_at=now, schema_version=1)
        seconds.append(time.perf_counter() - began)
        cpu_seconds.append(time.process_time() - began_cpu)
        if number % _UPKEEP_COMMITS == 0:
            maintain(Table.open(uri), _UPKEEP)
            report(progress=number)
        if number in parameters["marks"]:
            report(part=str(number))
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "delta_version": log.table.version}


if __name__ == "__main__":
    serve(work)
