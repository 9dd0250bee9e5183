"""A contender: one fold of the enterprise catalog, in a process of its own."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.child import Report, serve
from mesh_assets.catalog import enterprise
from mesh_assets.catalog.search import SearchIndex
from mesh_assets.names import Layout


def work(parameters: dict[str, Any], report: Report) -> dict[str, Any]:
    """Fold what is published; returns seconds, CPU seconds, and what a search costs afterwards."""
    del report
    layout = Layout(parameters["root"])
    began, began_cpu = time.perf_counter(), time.process_time()
    summary = enterprise.fold(layout)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    index_seconds = search_seconds = 0.0
    if parameters.get("search"):
        with SearchIndex() as index:
            began = time.perf_counter()
            index.refresh(layout)
            index_seconds = time.perf_counter() - began
            began = time.perf_counter()
            index.search("orders customer")
            search_seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "index_seconds": index_seconds,
        "search_seconds": search_seconds,
        "product_count": summary.product_count,
        "event_count": summary.event_count,
        "file_count": sum(summary.file_count.values()),
        "problems": list(summary.problems),
        "digest": enterprise.digest(layout),
    }


if __name__ == "__main__":
    serve(work)
