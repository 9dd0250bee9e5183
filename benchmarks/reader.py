"""A contender: the mesh's stream and decoder, from a replication slot to typed Arrow tables."""

from __future__ import annotations

import resource
import time
from typing import Any

import pyarrow.compute as pc

from benchmarks.child import Report, serve
from mesh_assets.cdc.decode import Batch, Decoder
from mesh_assets.cdc.stream import ReplicationStream
from mesh_assets.cdc.type import PostgresType

_BATCH_ROWS = 200_000
_WARM_ROWS = 100
_QUIET_SECONDS = 60.0


def _resolve(oid: int, typmod: int) -> PostgresType:
    raise LookupError(f"the benchmark's table has built-in types only, not {oid} ({typmod})")


def _read(parameters: dict[str, Any], slot: str, row_count: int, report: Report) -> dict[str, int]:
    """Read ``row_count`` changes; returns how many of each op there were."""
    count_by_op: dict[str, int] = {}
    taken = 0

    def take(batch: Batch) -> int:
        for _, frame in batch.segments:
            for item in pc.value_counts(frame["_op"]).to_pylist():
                count_by_op[item["values"]] = count_by_op.get(item["values"], 0) + item["counts"]
        return batch.row_count

    decoder = Decoder(_resolve)
    with ReplicationStream(
        parameters["url"], slot=slot, publication=parameters["publication"], start_lsn=0
    ) as stream:
        heard = time.monotonic()
        while taken + decoder.row_count < row_count:
            if stream.receive(0.2):
                stream.consumed(decoder.decode(stream.buffer, stream.start, stream.end))
                heard = time.monotonic()
            elif time.monotonic() - heard > _QUIET_SECONDS:
                raise RuntimeError(f"only {taken + decoder.row_count} of {row_count} changes arrived")
            if decoder.row_count >= _BATCH_ROWS:
                taken += take(decoder.take())
                report(progress=taken)
        take(decoder.take())
    return count_by_op


def work(parameters: dict[str, Any], report: Report) -> dict[str, Any]:
    """Read a slot to the end of its backlog, after loading the compiled kernels on another slot."""
    _read(parameters, parameters["warm_slot"], _WARM_ROWS, report)
    began, began_cpu = time.monotonic(), _cpu_seconds()
    count_by_op = _read(parameters, parameters["slot"], parameters["row_count"], report)
    return {
        "row_count": sum(count_by_op.values()),
        "seconds": time.monotonic() - began,
        "cpu_seconds": _cpu_seconds() - began_cpu,
        "count_by_op": count_by_op,
    }


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    serve(work)
