"""What ``mesh up`` shows: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mesh_assets.local.sight import ProductSight, Sight, SourceSight, age_seconds

_PLAIN_SECONDS = 10.0
_ORIGIN_WIDTH = 40


class Show:
    """Shows sights and messages until closed.

    Args:
        console: where to; a terminal gets a live table, anything else a line per source now and then.
        addresses: what to call and open, by name.
    """

    def __init__(self, console: Console, addresses: dict[str, str]) -> None:
        self._console = console
        self._addresses = addresses
        self._plain_at = time.monotonic()
        self._live: Live | None = None
        if console.is_terminal:
            # Drawn by our own loop: a thread of rich's would be lost in forked children.
            self._live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> Show:
        if self._live is not None:
            self._live.start(refresh=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def message(self, text: str, style: str = "") -> None:
        """A line above the table."""
        self._console.print(Text(text, style=style), soft_wrap=True)

    def sight(self, sight: Sight) -> None:
        """Draw the newest sight."""
        if self._live is not None:
            self._live.update(render(sight, self._addresses), refresh=True)
        elif time.monotonic() - self._plain_at >= _PLAIN_SECONDS:
            self._plain_at = time.monotonic()
            for line in lines(sight):
                self._console.print(line, soft_wrap=True, highlight=False)


def render(sight: Sight, addresses: dict[str, str]) -> RenderableType:
    """The live table."""
    sources = Table(title="sources", title_justify="left", expand=False)
    for heading, align in (
        ("source", "left"),
        ("lag", "right"),
        ("WAL kept", "right"),
        ("changes/s", "right"),
    ):
        sources.add_column(heading, justify="right" if align == "right" else "left", no_wrap=True)
    sources.add_column("")
    for source in sight.sources:
        sources.add_row(
            source.name,
            _lag(source),
            _size(source.retained_bytes),
            _rate(source.change_rate),
            _problem(source),
        )
    products = Table(title="products", title_justify="left", expand=False)
    for heading in ("product", "rows", "version", "freshness"):
        products.add_column(heading, justify="left" if heading == "product" else "right", no_wrap=True)
    products.add_column("from", no_wrap=True, max_width=_ORIGIN_WIDTH)
    products.add_column("")
    for product in sight.products:
        products.add_row(
            product.name,
            _rows(product),
            str(product.version or "-"),
            _age(product),
            product.origin,
            Text(product.problem, style="red"),
        )
    footer = Text()
    for name, address in addresses.items():
        footer.append(f"{name}  {address}\n", style="bold")
    footer.append(f"{sight.running_runs} runs under way")
    if sight.failed_runs:
        footer.append(f", {len(sight.failed_runs)} failed", style="red")
    footer.append("   Ctrl-C stops everything; the data stays.", style="dim")
    return Group(sources, products, footer)


def lines(sight: Sight) -> Iterable[str]:
    """The same in plain lines, one per source and one for the products."""
    for source in sight.sources:
        problem = f", {source.problem}" if source.problem else ""
        yield (
            f"{source.name}: lag {_lag(source)}, WAL kept {_size(source.retained_bytes)}, "
            f"{_rate(source.change_rate)} changes/s{problem}"
        )
    if sight.products:
        yield "; ".join(
            f"{one.name} v{one.version} {_rows(one)} rows {_age(one)} old" for one in sight.products
        )


def _lag(source: SourceSight) -> str:
    if not source.captured:
        return "not captured yet"
    return "-" if source.lag_seconds is None else f"{source.lag_seconds:.1f} s"


def _size(count: int | None) -> str:
    if count is None:
        return "-"
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.0f} KiB"


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:,.0f}"


def _problem(source: SourceSight) -> Text:
    return Text(source.problem, style="red")


def _rows(product: ProductSight) -> str:
    return "-" if product.row_count is None else f"{product.row_count:,}"


def _age(product: ProductSight) -> str:
    seconds = age_seconds(product.committed_at)
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{max(0.0, seconds):.1f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
