"""An analyst who reads one customer's row of a derived product again and again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.child import Report, asked_to_end, serve
from benchmarks.organisation import settings_of
from mesh_assets.errors import MeshError
from mesh_assets.product import Mesh

_PRODUCT = "sales.customer_360"


def work(parameters: dict[str, Any], report: Report) -> dict[str, Any]:
    """Read until asked to end; returns (seconds since 1970, orders) after each read with another count."""
    mesh = Mesh(settings_of(Path(parameters["folder"]), Path(parameters["products"])))
    seen: list[tuple[float, int]] = []
    while not asked_to_end.is_set():
        try:
            frame = mesh.open(_PRODUCT).lazy
        except MeshError:
            # Not derived yet.
            asked_to_end.wait(parameters["pause_seconds"])
            continue
        rows = frame.filter(pl.col("customer_id") == parameters["customer_id"]).select("order_count")
        count = int(rows.collect()["order_count"].sum())
        if not seen or seen[-1][1] != count:
            seen.append((time.time(), count))
            report(progress=count)
        asked_to_end.wait(parameters["pause_seconds"])
    return {"seen": seen}


if __name__ == "__main__":
    serve(work)
