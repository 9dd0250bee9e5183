"""Parcels that arrived after the day promised to the customer."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl


def transform(inputs: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    """The table ``late_shipments``."""
    promised = inputs["orders"].select("order_id", "promised_on")
    delivered_on = pl.col("delivered_at").dt.date()
    return (
        inputs["shipments"]
        .filter(pl.col("status") == "delivered")
        .join(promised, on="order_id")
        .filter(delivered_on > pl.col("promised_on"))
        .select(
            "shipment_id",
            "order_id",
            "warehouse_id",
            "carrier",
            "promised_on",
            "delivered_at",
            days_late=(delivered_on - pl.col("promised_on")).dt.total_days().cast(pl.Int32),
        )
    )
