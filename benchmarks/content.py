"""What an analyst reads of the benchmarks' product, in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.child import Report, serve
from benchmarks.organisation import PRODUCT, settings_of
from mesh_assets.product import Mesh


def work(parameters: dict[str, Any], report: Report) -> dict[str, Any]:
    """Row count and sum of amounts, exact."""
    frame = Mesh(settings_of(Path(parameters["folder"]))).open(PRODUCT).lazy
    row = frame.select(pl.len().alias("row_count"), pl.col("amount").sum()).collect().row(0, named=True)
    return {"row_count": row["row_count"], "amount": str(row["amount"])}


if __name__ == "__main__":
    serve(work)
