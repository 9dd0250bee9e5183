"""How answers look: tables for people, JSON for programs, errors without tracebacks."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mesh_assets.errors import MeshError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_PIPE_COLUMNS = 500
"""Width where no terminal limits it, so that what goes into a file or a pipe is not cut."""


def console(*, errors: bool = False) -> Console:
    """A console on standard output (or standard error) as it is now."""
    from rich.console import Console

    stream = sys.stderr if errors else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _PIPE_COLUMNS
    return Console(file=stream, width=width, highlight=False, soft_wrap=False, emoji=False)


def table(*headings: str, title: str = "", right: Sequence[str] = (), lines: bool = False) -> Table:
    """An empty table; columns named in ``right`` are aligned to the right."""
    from rich import box
    from rich.table import Table

    made = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_lines=lines,
        pad_edge=False,
    )
    for heading in headings:
        made.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    return made


def cell(value: object, style: str = "") -> Text:
    """A value as text; never read as markup."""
    from rich.text import Text

    return Text(words(value), style=style)


def note(text: str, style: str = "dim") -> None:
    """A line for the reader beside the answer, on standard error."""
    console(errors=True).print(text, style=style, markup=False, soft_wrap=True)


def emit(value: object) -> None:
    """Print JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=plain))


def show_error(error: MeshError) -> None:
    """What was wrong, what there is instead, and what to do; on standard error."""
    out = console(errors=True)
    out.print("error: ", style="bold red", end="")
    out.print(error.message, markup=False, soft_wrap=True)
    if error.available:
        out.print(f"  available: {', '.join(error.available)}", markup=False, soft_wrap=True)
    if error.hint:
        out.print(f"  hint: {error.hint}", style="cyan", markup=False, soft_wrap=True)


def words(value: object) -> str:
    """A value for people."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return moment(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, default=plain)
    return str(value)


def plain(value: object) -> Any:  # noqa: ANN401 - any JSON value
    """A value as JSON has it: moments in ISO 8601, exact numbers and bytes (``\\x…``) as text."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    if isinstance(value, Decimal | Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


def finite(value: Any) -> Any:  # noqa: ANN401 - any value
    """NaN and the infinities as text, which JSON has no numbers for."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    if isinstance(value, Mapping):
        return {name: finite(one) for name, one in value.items()}
    return value


def moment(value: datetime) -> str:
    """A moment in UTC to the millisecond."""
    if value.tzinfo is None:
        return value.isoformat(" ", "milliseconds")
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.") + f"{value.microsecond // 1000:03d}Z"


def duration(seconds: float | None) -> str:
    """A length of time in the unit that suits it; ``-`` if it is not known."""
    if seconds is None:
        return "-"
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}" if size == 1 else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def age(value: datetime | None) -> str:
    """How long ago a moment was, by this machine's clock."""
    if value is None:
        return "-"
    return duration(max(0.0, (datetime.now(UTC) - value).total_seconds()))


def size(byte_count: int | None) -> str:
    """A number of bytes in binary units; ``-`` if it is not known."""
    if byte_count is None:
        return "-"
    for limit, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if byte_count >= limit:
            return f"{byte_count / limit:,.1f} {unit}"
    return f"{byte_count} B"


def counted(number: int, noun: str) -> str:
    """``1 row``, ``2,000 rows``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
