"""``python -m benchmarks [NAME ...] [--scale S]``: run benchmarks one after the other, print and record."""

from __future__ import annotations

import argparse
import fcntl
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from rich.console import Console

from benchmarks.record import PROJECT, RESULTS, Record, record_table, revision
from benchmarks.stage import Stage

NAMES = (
    "capture",
    "landed",
    "latency",
    "fold",
    "commit",
    "mesh",
    "expectations",
    "derive",
    "derived",
    "catalog",
    "lineage",
)


def main() -> int:
    """Run what the command line names; returns 0 if all of it ran, whether the goals are met or not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"some of {', '.join(NAMES)}; all if left out"
    )
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="the same as NAME")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the amounts of data")
    parser.add_argument(
        "--folder", type=Path, default=PROJECT / ".mesh" / "benchmarks", help="where to keep data meanwhile"
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a goal is not met")
    arguments = parser.parse_args()
    names = [name for text in [*arguments.names, *arguments.only] for name in text.replace(",", " ").split()]
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    console = Console(width=None if sys.stdout.isatty() else 140)
    # A shell that starts this in the background leaves SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with _alone(arguments.folder, console):
        try:
            return _run(names or list(NAMES), arguments, console)
        except KeyboardInterrupt:
            console.print("stopped")
            return 130


@contextmanager
def _alone(folder: Path, console: Console) -> Iterator[None]:
    """Refuse to run beside another run: both would only measure each other."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"[red]benchmarks already run in {folder}")
            sys.exit(2)
        yield


def _run(names: list[str], arguments: argparse.Namespace, console: Console) -> int:
    memory = psutil.virtual_memory().total / 1e9
    console.print(
        f"{psutil.cpu_count()} cores, {memory:.0f} GB of memory, load {psutil.getloadavg()[0]:.1f}, "
        f"Python {sys.version.split()[0]}"
    )
    revision()  # Before the tree can change under a run of several minutes.
    records: list[Record] = []
    failed: list[str] = []
    for name in names:
        benchmark = importlib.import_module(f"benchmarks.{name}")
        console.rule(f"[bold]{name}[/]: {benchmark.TITLE}", align="left")
        stage = Stage(arguments.folder.absolute() / name, arguments.scale, console)
        try:
            with stage.empty():
                benchmark.run(stage)
        except Exception:  # noqa: BLE001 - one benchmark that fails does not take the others along
            failed.append(name)
            console.print(f"[red]{name} failed:[/]\n{traceback.format_exc()}", markup=True)
        records += stage.records
    if records:
        console.print(record_table(records))
        if arguments.scale == 1:
            console.print(f"written to {RESULTS.relative_to(PROJECT)}/")
        else:
            console.print(f"[yellow]at scale {arguments.scale:g} these prove nothing; none is written[/]")
    if failed:
        console.print(f"[red]failed: {', '.join(failed)}")
    missed = any(not record.met for record in records)
    return 1 if failed or (arguments.strict and missed) else 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Like every program that wrote Delta: its runtime may abort while the interpreter exits.
    os._exit(code)
