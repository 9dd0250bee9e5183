"""Capture and decode: a million changes from the WAL to Arrow, beside Debezium and pg_recvlogical.

Every contender reads the same WAL through its own copy of one slot. Ours and pg_recvlogical take
turns; Debezium reads a part only, since it takes minutes otherwise, and its start is not counted.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from rich.table import Table

from benchmarks import child
from benchmarks.measure import Sampler, process_tree, walsender
from benchmarks.peers import PeersError, peer_python
from benchmarks.record import Record
from benchmarks.stage import Stage
from benchmarks.workload import (
    PUBLICATION,
    TABLE,
    Backlog,
    copy_slot,
    count_of_first,
    create_orders,
    create_slot,
    drop_slot,
    source_cluster,
    write_backlog,
)
from mesh_assets.local.installation import packaged_programs

TITLE = "Capture and decode to Arrow: 60/30/10 inserts, updates and deletes"

_ROWS = 1_000_000
_ROUNDS = 3
_DEBEZIUM_ROWS = 200_000
_DEBEZIUM_WARM_ROWS = 60_000
_SLOT = "backlog"


@dataclass(frozen=True)
class Reading:
    """One contender's run: rows, seconds, CPU of the client and of the server, peak memory."""

    row_count: int
    seconds: float
    client_seconds: float
    server_seconds: float
    peak_bytes: int

    @property
    def rows_per_second(self) -> float:
        """By the clock."""
        return self.row_count / self.seconds

    @property
    def rows_per_client_second(self) -> float:
        """By the client's CPU."""
        return self.row_count / self.client_seconds


def run(stage: Stage) -> None:
    """Measure all contenders; a peer that cannot run here is named and left out."""
    with source_cluster(stage.folder) as cluster:
        url = create_orders(cluster)
        create_slot(url, _SLOT)
        wanted = stage.amount(_ROWS, 1_000)
        with stage.progress("writing the backlog", wanted) as advance:
            backlog = write_backlog(url, _SLOT, wanted, advance)
        ours: list[Reading] = []
        received: list[Reading] = []
        for number in range(1, _ROUNDS + 1):
            with stage.progress(f"mesh, round {number}", backlog.row_count) as advance:
                ours.append(_read_mesh(stage, backlog, advance))
            with stage.progress(f"pg_recvlogical, round {number}"):
                received.append(_receive(backlog))
        try:
            debezium = _read_debezium(stage, backlog)
        except (PeersError, child.ContenderError) as error:
            debezium = None
            stage.console.print(f"[yellow]Debezium does not run here, so it is left out:[/] {error}")
    _report(stage, ours, received, debezium)


def _report(stage: Stage, ours: list[Reading], received: list[Reading], debezium: Reading | None) -> None:
    table = Table(title="Readers of the same WAL", title_justify="left")
    for heading in (
        "reader",
        "rows",
        "seconds",
        "rows/s",
        "rows/client CPU-s",
        "client us/row",
        "server us/row",
        "peak MB",
    ):
        table.add_column(heading, justify="left" if heading == "reader" else "right")
    named = [(f"mesh, round {number}", reading) for number, reading in enumerate(ours, 1)]
    named += [(f"pg_recvlogical, round {number}", reading) for number, reading in enumerate(received, 1)]
    if debezium is not None:
        named.append(("Debezium (warm, part of the rows)", debezium))
    for name, reading in named:
        table.add_row(
            name,
            f"{reading.row_count:,}",
            f"{reading.seconds:.2f}",
            f"{reading.rows_per_second:,.0f}",
            f"{reading.rows_per_client_second:,.0f}",
            f"{reading.client_seconds / reading.row_count * 1e6:.2f}",
            f"{reading.server_seconds / reading.row_count * 1e6:.2f}",
            f"{reading.peak_bytes / 1e6:,.0f}",
        )
    stage.console.print(table)
    rate = statistics.median(reading.rows_per_second for reading in ours)
    efficiency = statistics.median(reading.rows_per_client_second for reading in ours)
    if debezium is not None:
        stage.record(
            Record(
                "capture_debezium",
                "capture: rows per second",
                rate,
                debezium.rows_per_second,
                "Debezium embedded",
                10,
                "rows/s",
            )
        )
        stage.record(
            Record(
                "capture_debezium_cpu",
                "capture: rows per client CPU-second",
                efficiency,
                debezium.rows_per_client_second,
                "Debezium embedded",
                50,
                "rows/CPU-s",
            )
        )
    stage.record(
        Record(
            "capture_recvlogical",
            "capture: rows per second",
            rate,
            statistics.median(reading.rows_per_second for reading in received),
            "pg_recvlogical to /dev/null",
            1,
            "rows/s",
        )
    )


def _read_mesh(stage: Stage, backlog: Backlog, advance: Callable[[float], None]) -> Reading:
    slot = copy_slot(backlog.url, backlog.slot, "mesh")
    warm_slot = copy_slot(backlog.url, backlog.slot, "mesh_warm")
    parameters = {
        "url": backlog.url,
        "slot": slot,
        "warm_slot": warm_slot,
        "publication": PUBLICATION,
        "row_count": backlog.row_count,
    }
    try:
        with (
            child.start("reader", parameters, folder=stage.folder / "mesh") as contender,
            Sampler(
                memory={"client": process_tree(contender.pid)},
                cpu={"server": walsender(backlog.url, slot)},
            ) as sampler,
        ):
            result = contender.result(advance)
    finally:
        drop_slot(backlog.url, slot)
        drop_slot(backlog.url, warm_slot)
    _check_counts("mesh", result, backlog.row_count_by_op)
    return _reading(result, sampler)


def _read_debezium(stage: Stage, backlog: Backlog) -> Reading:
    python = peer_python(stage.console)
    row_count = min(_DEBEZIUM_ROWS, backlog.row_count)
    slot = copy_slot(backlog.url, backlog.slot, "debezium")
    parameters = {
        "url": backlog.url,
        "slot": slot,
        "publication": PUBLICATION,
        "table": TABLE,
        "row_count": row_count,
        "warm_count": row_count * _DEBEZIUM_WARM_ROWS // _DEBEZIUM_ROWS,
    }
    try:
        with (
            stage.progress("Debezium", row_count) as advance,
            child.start("debezium", parameters, folder=stage.folder / "debezium", python=python) as contender,
            Sampler(
                memory={"client": process_tree(contender.pid)},
                cpu={"server": walsender(backlog.url, slot)},
            ) as sampler,
        ):
            result = contender.result(advance)
    finally:
        drop_slot(backlog.url, slot)
    read_count = sum(result["count_by_op"].values())
    _check_counts("Debezium", result, count_of_first(read_count))
    return _reading(result, sampler, server_rows=read_count)


def _reading(result: dict[str, Any], sampler: Sampler, server_rows: int | None = None) -> Reading:
    """A reading; the server's CPU was seen over ``server_rows`` rows, warm-up included."""
    rows = int(result["row_count"])
    return Reading(
        rows,
        result["seconds"],
        result["cpu_seconds"],
        sampler.cpu_seconds("server") * rows / (server_rows or rows),
        sampler.peak_bytes("client"),
    )


def _check_counts(name: str, result: dict[str, Any], expected: dict[str, int]) -> None:
    """A reader that loses or doubles changes is not fast."""
    if result["count_by_op"] != expected:
        raise child.ContenderError(f"{name} read {result['count_by_op']}, but {expected} were written")


def _receive(backlog: Backlog) -> Reading:
    """Let ``pg_recvlogical`` write the backlog to ``/dev/null``."""
    slot = copy_slot(backlog.url, backlog.slot, "recvlogical")
    address = urlsplit(backlog.url)
    # The password stays out of the process list.
    host = f"{address.username}@{address.hostname}:{address.port}"
    command = [
        str(packaged_programs() / "bin" / "pg_recvlogical"),
        f"--dbname={urlunsplit(address._replace(netloc=host))}",
        f"--slot={slot}",
        "--start",
        "--no-loop",
        "--file=/dev/null",
        f"--endpos={backlog.end_lsn >> 32:X}/{backlog.end_lsn & 0xFFFFFFFF:X}",
        "--option=proto_version=1",
        f"--option=publication_names={PUBLICATION}",
    ]
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        env={**os.environ, "PGPASSWORD": address.password or ""},
        cwd=Path("/"),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        with Sampler(
            memory={"client": process_tree(process.pid)}, cpu={"server": walsender(backlog.url, slot)}
        ) as sampler:
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()
        drop_slot(backlog.url, slot)
    if process.returncode:
        raise child.ContenderError(f"pg_recvlogical ended with exit code {process.returncode}")
    return Reading(
        backlog.row_count,
        seconds,
        usage.ru_utime + usage.ru_stime,
        sampler.cpu_seconds("server"),
        sampler.peak_bytes("client"),
    )
