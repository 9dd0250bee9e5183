"""One measured figure: ours, what it is held against, and whether the goal is met."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from rich.table import Table

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results"


@cache
def revision(folder: Path = PROJECT) -> str:
    """The git revision of a checkout, with "+" if its files are not those of it; "" outside of one.

    What was found first holds: by then the code that is measured is loaded.
    """

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout.strip()

    try:
        # A folder below another project's checkout is not of its revision.
        if git("rev-parse", "--show-prefix"):
            return ""
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


@dataclass(frozen=True)
class Record:
    """A figure and its reference, as a ratio of which more is better.

    Attributes:
        name: file name of the record, ``<benchmark>_<figure>``.
        title: the figure in words.
        ours: what was measured, in ``unit``.
        reference: the peer's figure, a required rate, or a limit, in ``unit``.
        reference_name: whose figure that is.
        goal: the smallest ratio that meets the promise.
        unit: of ``ours`` and ``reference``.
        less_is_better: for limits and costs: the ratio is then reference / ours.
        spread: how far apart the rounds lie that ``ours`` comes from, in ``unit``; None: not told.
    """

    name: str
    title: str
    ours: float
    reference: float
    reference_name: str
    goal: float
    unit: str
    less_is_better: bool = False
    spread: float | None = None

    @property
    def ratio(self) -> float:
        """How many times as good as the reference; more is better."""
        above, below = (self.reference, self.ours) if self.less_is_better else (self.ours, self.reference)
        return above / below if below else float("inf")

    @property
    def met(self) -> bool:
        """Whether the goal is met."""
        return self.ratio >= self.goal

    def write(self, folder: Path = RESULTS) -> Path:
        """Write the record as ``<folder>/<name>.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{self.name}.json"
        content: dict[str, object] = {
            "name": self.name,
            "ours": self.ours,
            "reference": self.reference,
            "reference_name": self.reference_name,
            "ratio": self.ratio,
            "goal": self.goal,
            "unit": self.unit,
            "commit": revision(),
            "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if self.spread is not None:
            content["spread"] = self.spread
        file.write_text(json.dumps(content, indent=2) + "\n")
        return file


def record_table(records: list[Record]) -> Table:
    """The records as a table, one line per figure."""
    commit, changed, _ = revision().partition("+")
    of = f" of {commit[:12]}{changed}" if commit else ""
    title = f"Figures{of} against their goals, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    for heading in ("ours", "reference"):
        table.add_column(heading, justify="right")
    table.add_column("of")
    for heading in ("ratio", "goal"):
        table.add_column(heading, justify="right")
    table.add_column("met")
    for record in records:
        table.add_row(
            record.title,
            number(record.ours)
            + (f" (spread {number(record.spread)})" if record.spread is not None else "")
            + f" {record.unit}",
            f"{number(record.reference)} {record.unit}",
            record.reference_name,
            f"{record.ratio:.2f}x",
            f"{record.goal:.3g}x",
            "[green]yes[/]" if record.met else "[red]no[/]",
        )
    return table


def number(value: float) -> str:
    """A number with three significant digits or thousands separators."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
