"""Money received per day, by the currency in which the paid orders were placed."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

MONEY = pl.Decimal(18, 2)
NO_CURRENCY = "XXX"
"""ISO 4217: no currency; an order that sales does not know (any more)."""


def transform(inputs: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    """The table ``revenue``."""
    payments = inputs["transactions"].filter(
        # Every booking has two sides; ours is the one that money comes in on.
        pl.col("kind") == "payment",
        pl.col("amount") > 0,
        pl.col("reversed_by").is_null(),
    )
    orders = inputs["orders"].select("order_id", "currency", ordered="amount")
    return (
        payments.join(orders, on="order_id", how="left")
        .group_by(day="value_date", currency=pl.col("currency").fill_null(NO_CURRENCY))
        .agg(
            payment_count=pl.len().cast(pl.Int32),
            received=pl.col("amount").sum().cast(MONEY),
            ordered=pl.col("ordered").sum().cast(MONEY),
        )
    )
