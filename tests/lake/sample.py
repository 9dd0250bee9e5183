"""Change frames for tests of the lake's write path."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from mesh_assets.lake.log import Appended, ChangeLog

MOMENT = datetime(2026, 3, 1, 12, tzinfo=UTC)
ROW = pa.schema([("id", pa.int64()), ("name", pa.string()), ("amount", pa.decimal128(22, 2))])


def frame(
    ids: Sequence[int],
    *,
    lsn: int | Sequence[int],
    seconds: float | Sequence[float] = 0,
    row: pa.Schema = ROW,
    first_ordinal: int = 0,
) -> pa.Table:
    """Inserts of rows with these ids, all of one transaction unless ``lsn`` says otherwise."""
    count = len(ids)
    lsns = [lsn] * count if isinstance(lsn, int) else list(lsn)
    moments = [seconds] * count if isinstance(seconds, int | float) else list(seconds)
    columns = {
        "id": pa.array(ids, pa.int64()),
        "name": pa.array([f"name {i}" for i in ids]),
        "amount": pa.array(ids, pa.int64()).cast(pa.decimal128(22, 2)),
    }
    values = [columns.get(field.name, pa.nulls(count, field.type)) for field in row]
    frame = {field.name: value for field, value in zip(row, values, strict=True)}
    frame |= {
        "_op": pa.array(["c"] * count),
        "_position": pa.array(lsns, pa.int64()),
        "_ordinal": pa.array(range(first_ordinal, first_ordinal + count), pa.int64()),
        "_xid": pa.array([7] * count, pa.int64()),
        "_committed_at": pa.array(
            [MOMENT + timedelta(seconds=s) for s in moments], pa.timestamp("us", "UTC")
        ),
        "_unchanged": pa.nulls(count, pa.list_(pa.string())),
        "_before": pa.nulls(count, pa.struct(list(row))),
        "_exact": pa.nulls(count, pa.map_(pa.string(), pa.string())),
    }
    return pa.table(frame)


def append(log: ChangeLog, rows: pa.Table, *, source: str = "app", **options: Any) -> Appended:
    """Append with the position of the frame's last change."""
    last = rows.num_rows - 1
    position = (rows["_position"][last].as_py(), rows["_ordinal"][last].as_py())
    return log.append(rows, source=source, position=position, captured_at=MOMENT, schema_version=1, **options)
