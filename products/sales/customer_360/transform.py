"""One row per customer: what was ordered, sent and paid; and one per customer and currency."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

MONEY = pl.Decimal(18, 2)
LIVE = pl.col("status") != "cancelled"


def transform(inputs: Mapping[str, pl.LazyFrame]) -> dict[str, pl.LazyFrame]:
    """The tables ``customer_360`` and ``spending``."""
    orders = inputs["orders"].select("order_id", "customer_id", "status", "currency", "amount", "placed_at")
    owner = orders.select("order_id", "customer_id")
    ordered = orders.group_by("customer_id").agg(
        order_count=pl.col("order_id").filter(LIVE).count(),
        open_order_count=pl.col("order_id").filter(LIVE, pl.col("status") != "delivered").count(),
        first_order_at=pl.col("placed_at").min(),
        last_order_at=pl.col("placed_at").max(),
    )
    pieces = (
        orders.filter(LIVE)
        .join(inputs["lines"], on="order_id")
        .group_by("customer_id")
        .agg(piece_count=pl.col("quantity").cast(pl.Int64).sum())
    )
    shipped = (
        inputs["shipments"]
        .join(owner, on="order_id")
        .group_by("customer_id")
        .agg(
            shipment_count=pl.len(),
            lost_shipment_count=(pl.col("status") == "lost").sum(),
        )
    )
    received = (
        inputs["payments"]
        # Every booking has two sides; ours is the one that money comes in on.
        .filter(pl.col("kind") == "payment", pl.col("amount") > 0, pl.col("reversed_by").is_null())
        .join(owner, on="order_id")
        .group_by("customer_id")
        .agg(total=pl.col("amount").sum())
    )
    overview = inputs["customers"].select(
        "customer_id", "segment", "marketing_consent", registered_at=pl.col("created_at")
    )
    for part in (ordered, pieces, shipped, received):
        overview = overview.join(part, on="customer_id", how="left")
    counts = ("order_count", "open_order_count", "shipment_count", "lost_shipment_count")
    return {
        "customer_360": overview.select(
            "customer_id",
            "segment",
            "marketing_consent",
            "registered_at",
            *(pl.col(name).fill_null(0).cast(pl.Int32) for name in counts[:2]),
            pl.col("piece_count").fill_null(0),
            *(pl.col(name).fill_null(0).cast(pl.Int32) for name in counts[2:]),
            pl.col("total").fill_null(0).cast(MONEY),
            "first_order_at",
            "last_order_at",
        ),
        "spending": orders.filter(LIVE)
        .group_by("customer_id", "currency")
        .agg(order_count=pl.len().cast(pl.Int32), ordered=pl.col("amount").sum().cast(MONEY)),
    }
