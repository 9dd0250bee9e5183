"""Change frames made out of nothing: the orders of the workload, without a database."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ROW_SCHEMA = pa.schema(
    [
        pa.field("order_id", pa.int64()),
        pa.field("customer_id", pa.int64()),
        pa.field("status", pa.string()),
        pa.field("currency", pa.string()),
        pa.field("amount", pa.decimal128(14, 2)),
        pa.field("note", pa.string()),
        pa.field("updated_at", pa.timestamp("us", "UTC")),
    ]
)
KEY = ("order_id",)

_STATUSES = pa.array(["new", "paid", "picked", "shipped"])
_CURRENCIES = pa.array(["EUR", "USD", "GBP"])
_EPOCH_US = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1e6)


def change_frame(order_ids: np.ndarray, op: str, position: int) -> pa.Table:
    """One change per order id, all committed at ``position``."""
    count = len(order_ids)
    ids = order_ids.astype(np.int64)
    cents = pa.array(ids * 104_729 % 900_000_000 + position % 1000)
    note = pc.if_else(
        pa.array(ids % 3 > 0),
        pc.binary_join_element_wise("order", pa.array(ids).cast(pa.string()), " "),
        None,
    )
    hundredth = pa.scalar(Decimal("0.01"), pa.decimal128(2, 2))
    amount = pc.multiply(cents.cast(pa.decimal128(19, 0)), hundredth).cast(pa.decimal128(14, 2))
    moment = pa.array(_EPOCH_US + ids % 10**12).cast(pa.timestamp("us", "UTC"))
    columns = {
        "order_id": pa.array(ids),
        "customer_id": pa.array(ids * 7919 % 50_000),
        "status": _STATUSES.take(pa.array((ids + position) % 4)),
        "currency": _CURRENCIES.take(pa.array(ids % 3)),
        "amount": amount,
        "note": note,
        "updated_at": moment,
        "_op": pa.repeat(pa.scalar(op), count),
        "_position": pa.repeat(pa.scalar(position, pa.int64()), count),
        "_ordinal": pa.array(np.arange(count, dtype=np.int64)),
        "_xid": pa.repeat(pa.scalar(position, pa.int64()), count),
        "_committed_at": moment,
    }
    return pa.table(columns)
