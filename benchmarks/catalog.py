"""Catalog: what it costs to fold the changes of a thousand products into the enterprise catalog."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import child
from benchmarks.measure import Sampler, process_tree
from benchmarks.record import Record
from benchmarks.stage import Stage
from mesh_assets.catalog import local
from mesh_assets.contract.definition import DomainDefinition, ProductDefinition
from mesh_assets.contract.discovery import Discovery, Product, discover
from mesh_assets.contract.loader import from_content
from mesh_assets.lake.version import InputPosition, VersionLog
from mesh_assets.lineage.event import LineageRun, lake_output
from mesh_assets.lineage.store import LineageStore
from mesh_assets.names import CHANGES, Layout, ProductName

TITLE = "The enterprise catalog of 1,000 products: first fold, fold of every product's changes, rebuild"

_PRODUCTS = 1_000
_DOMAINS = 20
_FIRST_VERSIONS = 2
_NEW_VERSIONS = 2
_LIMIT_SECONDS = 10.0


def run(stage: Stage) -> None:
    """Publish, fold; change every product, fold again; delete, and fold everything once more."""
    count = stage.amount(_PRODUCTS, _DOMAINS)
    layout = Layout(str(stage.folder / "lake"))
    discovery = _discovery(count)
    with stage.progress("publishing", count) as advance:
        _work(layout, discovery, _FIRST_VERSIONS, advance)
    first = _fold(stage, layout, "first fold")
    with stage.progress("changing every product", count) as advance:
        _work(layout, discovery, _NEW_VERSIONS, advance)
    changed = _fold(stage, layout, "fold of changes", search=True)
    nothing = _fold(stage, layout, "fold of nothing")
    one = next(iter(discovery.products))
    _work(layout, Discovery(discovery.domains, {one: discovery.products[one]}), 1, lambda done: None)
    single = _fold(stage, layout, "fold of one product's changes")
    shutil.rmtree(Path(layout.enterprise("x")).parent)
    rebuilt = _fold(stage, layout, "fold after deleting")
    if rebuilt["digest"] != single["digest"]:
        raise child.ContenderError("what was folded in steps differs from what was folded at once")
    table = Table(title="Folds of the catalog", title_justify="left")
    for heading in ("fold", "events", "files written", "seconds", "CPU seconds", "events/CPU-s", "peak MB"):
        table.add_column(heading, justify="left" if heading == "fold" else "right")
    for title, one_fold in (
        ("first", first),
        ("every product changed", changed),
        ("nothing changed", nothing),
        ("one product changed", single),
        ("deleted and folded again", rebuilt),
    ):
        table.add_row(
            title,
            f"{one_fold['event_count']:,}",
            f"{one_fold['file_count']:,}",
            f"{one_fold['seconds']:.2f}",
            f"{one_fold['cpu_seconds']:.2f}",
            f"{one_fold['event_count'] / one_fold['cpu_seconds']:,.0f}",
            f"{one_fold['peak_bytes'] / 1e6:,.0f}",
        )
    stage.console.print(table)
    stage.console.print(
        f"search index over all of it: made in {changed['index_seconds']:.2f} s, "
        f"a search takes {changed['search_seconds'] * 1e3:.0f} ms"
    )
    stage.record(
        Record(
            "catalog_fold",
            f"catalog: fold of {count:,} products' changes",
            changed["seconds"],
            _LIMIT_SECONDS,
            "the limit",
            1,
            "s",
            True,
        )
    )


def _fold(stage: Stage, layout: Layout, title: str, *, search: bool = False) -> dict[str, Any]:
    parameters = {"root": layout.root, "search": search}
    with (
        stage.progress(title),
        child.start("folder", parameters, folder=stage.folder / title.replace(" ", "_")) as contender,
        Sampler(memory={"fold": process_tree(contender.pid)}) as sampler,
    ):
        result = contender.result()
    result["peak_bytes"] = sampler.peak_bytes("fold")
    if result["problems"]:
        raise child.ContenderError("\n".join(result["problems"]))
    return result


def _discovery(count: int) -> Discovery:
    """Products like those of the samples, spread over domains."""
    samples = [
        product
        for product in discover(Path(__file__).resolve().parent.parent / "products").products.values()
        if product.definition.source is not None
    ]
    products = {}
    for number in range(count):
        sample = samples[number % len(samples)].contract
        name = ProductName(f"domain_{number % _DOMAINS:02d}", f"{sample.product}_{number:04d}")
        content = copy.deepcopy(dict(sample.content))
        content |= {"domain": name.domain, "name": name.product, "id": str(name)}
        contract = from_content(content, sample.path)
        products[name] = Product(contract, ProductDefinition(name, "app"), sample.path.parent)
    domains = {
        name: DomainDefinition(name, "A domain of the benchmark.", "team:benchmark")
        for name in (f"domain_{number:02d}" for number in range(_DOMAINS))
    }
    return Discovery(domains, products)


def _work(layout: Layout, discovery: Discovery, version_count: int, advance: Callable[[float], None]) -> None:
    """Every product gets versions, one run's lineage, and its record."""
    with LineageStore(layout.lineage(), log=print, flush_seconds=1e9) as store:
        for number, (name, product) in enumerate(discovery.products.items(), 1):
            tables = [table.name for table in product.contract.tables]
            log = VersionLog(layout.versions(name))
            shift = LineageRun(f"mesh.{name.domain}", f"{name.product}.capture", "CAPTURE", streaming=True)
            uris = [layout.table(name, CHANGES, table) for table in tables]
            events = [shift.start(outputs=[lake_output(uri) for uri in uris])]
            for _ in range(version_count):
                step = log.records.number + 1
                now = datetime.now(UTC)
                log.append(
                    tables=dict.fromkeys(tables, 100 * step),
                    positions={"app": InputPosition(1_000 * step, 0, 1_000 * step + 8)},
                    row_count={"c": 60, "u": 35, "d": 5},
                    contract_hash=product.contract.hash,
                    code_version="benchmark",
                    run_id=shift.run_id,
                    actor="benchmark",
                    committed_at=now,
                )
                written = [lake_output(uri, version=step, first_version=step, row_count=100) for uri in uris]
                events.append(shift.running(outputs=written))
            events.append(shift.complete())
            store.emit(*events, urgent=False)
            local.publish(layout, discovery, name)
            advance(number)
