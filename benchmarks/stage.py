"""What every benchmark gets: its folder, its size, and a place to show progress and results."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from benchmarks.record import Record


@dataclass
class Stage:
    """Where a benchmark runs.

    Attributes:
        folder: the benchmark's own, on the disk whose fsync is to be measured; empty at the start.
        scale: factor on the amounts of data; only 1 gives the promised figures.
        console: for tables and remarks.
        records: the figures so far.
    """

    folder: Path
    scale: float
    console: Console
    records: list[Record] = field(default_factory=list)

    def amount(self, full: int, least: int = 1) -> int:
        """``full`` at this scale."""
        return max(least, round(full * self.scale))

    def record(self, record: Record) -> None:
        """Keep and write one figure; at another scale than 1 it is only shown."""
        self.records.append(record)
        if self.scale == 1:
            record.write()

    @contextmanager
    def progress(self, title: str, total: float | None = None) -> Iterator[Callable[[float], None]]:
        """Show a bar; what is yielded takes the amount done so far."""
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            *([MofNCompleteColumn()] if total else []),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        ) as bars:
            task = bars.add_task(title, total=total)
            yield lambda done: bars.update(task, completed=done)

    @contextmanager
    def empty(self) -> Iterator[None]:
        """Keep the folder for the time of one benchmark only."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        try:
            yield
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
