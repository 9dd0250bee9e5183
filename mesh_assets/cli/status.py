"""``mesh status``: what runs, how far each source is captured, how fresh each product is."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mesh_assets.cli.installation import running
from mesh_assets.cli.terminal import age, cell, console, counted, duration, emit, moment, size, table
from mesh_assets.lake.position import Lsn
from mesh_assets.product import Mesh
from mesh_assets.status import ProductStatus, SourceStatus

_STATE_STYLES = {"shift running": "green", "idle": "", "not captured": "yellow"}


def show(mesh: Mesh, *, as_json: bool) -> None:
    """Print how everything stands, whether the mesh runs or not."""
    up = _running(mesh)
    names = mesh.captured_sources()
    with ThreadPoolExecutor(max_workers=max(1, len(names))) as pool:
        sources = list(pool.map(lambda name: mesh.source_status(*name), names))
    products = [mesh.product_status(product) for product in mesh.discovery.products.values()]
    broken = [(folder.name, str(error)) for folder, error in mesh.discovery.broken]
    if as_json:
        emit(
            {
                "running": bool(up),
                "pid": up.get("pid"),
                "addresses": up.get("addresses", {}),
                "home": str(mesh.settings.home.absolute()),
                "lake": mesh.settings.lake_root,
                "sources": [source_record(one) for one in sources],
                "products": [product_record(one) for one in products],
                "broken": [{"name": name, "error": error} for name, error in broken],
            }
        )
        return
    _render(mesh, up, sources, products, broken)


def source_record(one: SourceStatus) -> dict[str, Any]:
    """A source's status as JSON has it."""
    ledger, head = one.ledger, one.head
    return {
        "name": f"{one.domain}.{one.source}",
        "state": one.state,
        "lag_seconds": one.lag_seconds,
        "held_lsn": str(Lsn(ledger.end_lsn)) if ledger else None,
        "held_until": ledger.observed_at.isoformat() if ledger else None,
        "slot_confirmed_lsn": str(Lsn(head.slot_confirmed_lsn)) if head and head.slot_confirmed_lsn else None,
        "slot_active": head.active if head else None,
        "wal_retained_bytes": head.retained_bytes if head else None,
        "wal_status": head.wal_status or None if head else None,
        "problem": str(one.problem) if one.problem else None,
        "parked": [
            {
                "table": parked.source_table,
                "changes": parked.change_count,
                "since": parked.since.isoformat(),
                "lsn": str(parked.lsn),
                "reason": parked.reason or None,
            }
            for parked in one.parked
        ],
        "gaps": [
            {
                "reason": gap.reason,
                "from_lsn": str(gap.from_lsn),
                "to_lsn": str(gap.to_lsn),
                "found_at": gap.found_at.isoformat(),
            }
            for gap in one.gaps
        ],
    }


def product_record(one: ProductStatus) -> dict[str, Any]:
    """A product's status as JSON has it."""
    return {
        "name": str(one.name),
        "version": one.version.version if one.version else None,
        "newest_change_at": one.version.committed_at.isoformat() if one.version else None,
        "version_created_at": one.version.created_at.isoformat() if one.version else None,
        "inputs": [
            {"name": str(read.name), "version": read.held or None, "newest_version": read.newest or None}
            for read in one.inputs
        ],
        "problem": one.problem or None,
        "quarantined_keys": one.quarantined_count,
        "failing_checks": list(one.failing),
        "tables": [
            {
                "name": held.table,
                "rows": held.row_count,
                "changes": held.change_count,
                "changes_not_folded": held.tail_count,
                "quarantined_keys": held.quarantined_count,
                "changes_delta_version": held.changes_delta_version,
                "current_delta_version": held.current_delta_version,
            }
            for held in one.tables
        ],
    }


def _running(mesh: Mesh) -> dict[str, Any]:
    found: dict[str, Any] = running(mesh.settings)
    pid = found.get("pid")
    if not isinstance(pid, int):
        return {}
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        # It was killed, and could not take its record away.
        return {}
    except PermissionError:
        return found
    return found


def _render(
    mesh: Mesh,
    up: dict[str, Any],
    sources: list[SourceStatus],
    products: list[ProductStatus],
    broken: list[tuple[str, str]],
) -> None:
    out = console()
    if up:
        addresses = ", ".join(f"{name} {address}" for name, address in up.get("addresses", {}).items())
        out.print(cell(f"the mesh is up (process {up['pid']}): {addresses}", "green"), soft_wrap=True)
    else:
        out.print(cell(f"the mesh is not up; its data is in {mesh.settings.home.absolute()}"), soft_wrap=True)
    out.print(_source_table(sources))
    out.print(_product_table(products))
    asleep = [] if up else [one for one in sources if one.problem and _embedded(mesh, one)]
    if asleep:
        out.print(cell("the embedded databases answer only while the mesh is up", "dim"), soft_wrap=True)
    for source in sources:
        name = f"{source.domain}.{source.source}"
        if source.problem and source not in asleep:
            out.print(cell(f"{name}: {source.problem}", "red"), soft_wrap=True)
        for parked in source.parked:
            out.print(
                cell(
                    f"{name}: {parked.source_table} is parked: "
                    f"{counted(parked.change_count, 'change')} since {moment(parked.since)} wait"
                    + (f": {parked.reason}" if parked.reason else ""),
                    "red",
                ),
                soft_wrap=True,
            )
        for gap in source.gaps[-3:]:
            out.print(
                cell(
                    f"{name}: a gap was found {age(gap.found_at)} ago ({gap.from_lsn} to {gap.to_lsn}), and "
                    f"its tables were read again: {gap.reason}",
                    "yellow",
                ),
                soft_wrap=True,
            )
    for product in products:
        if product.problem:
            out.print(cell(f"{product.name} stays as it is: {product.problem}", "red"), soft_wrap=True)
        for failing in product.failing:
            out.print(cell(f"{product.name} fails a blocking rule: {failing}", "red"), soft_wrap=True)
    if any(product.quarantined_count for product in products):
        out.print(cell("what is in quarantine, and why: mesh quarantine", "dim"), soft_wrap=True)
    for folder, error in broken:
        out.print(cell(f"{folder} is left out: {error}", "red"), soft_wrap=True)


def _embedded(mesh: Mesh, source: SourceStatus) -> bool:
    """Whether the source's address is the one that ``mesh up`` left."""
    settings = mesh.settings
    given = settings.source_variable(source.domain, source.source) in os.environ
    return not given and settings.source_file(source.domain, source.source).exists()


def _source_table(sources: list[SourceStatus]) -> Any:  # noqa: ANN401 - a rich renderable
    made = table(
        "source",
        "state",
        "lag",
        "held up to",
        "slot confirmed",
        "slot",
        "WAL kept",
        "WAL status",
        title="sources",
        right=("lag", "WAL kept"),
    )
    for one in sources:
        head, ledger = one.head, one.ledger
        made.add_row(
            cell(f"{one.domain}.{one.source}"),
            cell(one.state, _STATE_STYLES.get(one.state, "red")),
            cell(duration(one.lag_seconds)),
            cell(Lsn(ledger.end_lsn) if ledger else "-"),
            cell(Lsn(head.slot_confirmed_lsn) if head and head.slot_confirmed_lsn else "-"),
            cell(("active" if head.active else "inactive") if head else "-"),
            cell(size(head.retained_bytes if head else None)),
            cell((head.wal_status or "no slot") if head else "-"),
        )
    return made


def _product_table(products: list[ProductStatus]) -> Any:  # noqa: ANN401 - a rich renderable
    made = table(
        "product",
        "version",
        "newest change",
        "table",
        "rows",
        "changes",
        "not folded",
        "quarantine",
        title="products",
        right=("version", "newest change", "rows", "changes", "not folded", "quarantine"),
    )
    for one in products:
        version = one.version
        first = [
            cell(one.name),
            cell(version.version if version else "-"),
            cell(f"{age(version.committed_at)} ago" if version else "-"),
        ]
        for held in one.tables:
            made.add_row(
                *first,
                cell(held.table),
                cell(f"{held.row_count:,}"),
                cell(f"{held.change_count:,}"),
                cell(f"{held.tail_count:,}" if held.tail_count else "-"),
                cell(f"{held.quarantined_count:,}", "red") if held.quarantined_count else cell("-"),
            )
            first = [cell(""), cell(""), cell("")]
        if not one.tables:
            text = "nothing derived yet" if one.inputs else "nothing captured yet"
            made.add_row(*first, cell(text, "yellow"), "", "", "", "")
    return made
