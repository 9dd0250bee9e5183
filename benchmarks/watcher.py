"""A user who reads the product again and again through the mesh and notes what is visible when."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.child import Report, asked_to_end, serve
from benchmarks.organisation import PRODUCT, settings_of
from benchmarks.writer import LANE_WIDTH
from mesh_assets.product import Mesh


def work(parameters: dict[str, Any], report: Report) -> dict[str, Any]:
    """Read until asked to end; returns (time after, newest order per lane, read seconds) of each."""
    products = Path(parameters["products"]) if "products" in parameters else None
    mesh = Mesh(settings_of(Path(parameters["folder"]), products))
    reads: list[tuple[float, dict[int, int], float]] = []
    began_cpu = time.process_time()
    while not asked_to_end.is_set():
        began = time.monotonic()
        frame = mesh.open(PRODUCT).lazy
        newest = (
            frame.filter(pl.col("order_id") >= LANE_WIDTH)
            .group_by(lane=pl.col("order_id") // LANE_WIDTH - 1)
            .agg(pl.col("order_id").max())
            .collect()
        )
        now = time.monotonic()
        reads.append((now, dict(newest.iter_rows()), now - began))
        report(progress=sum(order % LANE_WIDTH + 1 for order in newest["order_id"]))
        asked_to_end.wait(parameters["pause_seconds"])
    return {"reads": reads, "cpu_seconds": time.process_time() - began_cpu}


if __name__ == "__main__":
    serve(work)
