"""``mesh parity``: source and lake compared, table by table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mesh_assets.cli.terminal import cell, console, counted, emit, finite, table
from mesh_assets.contract.discovery import Product
from mesh_assets.contract.model import TableContract
from mesh_assets.errors import MeshError, UnknownName
from mesh_assets.lake.position import Lsn
from mesh_assets.parity import ParityResult
from mesh_assets.product import Mesh


@dataclass(frozen=True)
class Outcome:
    """What became of one table.

    Attributes:
        result: the verdict, or why there is none.
        parked: it differs, and its table cannot take its changes now.
    """

    name: str
    result: ParityResult | MeshError
    parked: bool = False

    @property
    def equal(self) -> bool:
        """Whether it was compared, and source and lake hold the same rows."""
        return isinstance(self.result, ParityResult) and self.result.equal


def compare(mesh: Mesh, names: Sequence[str], *, as_json: bool) -> int:
    """Compare the tables; returns 1 if one differs or cannot be compared."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    chosen = mesh.select(names)
    if not chosen:
        raise UnknownName("there is no product to compare", hint="look at `mesh validate`")
    outcomes: list[Outcome] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(errors=True), transient=True) as progress:
        task = progress.add_task("", total=len(chosen))
        for product, one in chosen:
            name = f"{product.name}.{one.name}"
            progress.update(task, description=name)
            try:
                result = mesh.parity(name)
                outcomes.append(
                    Outcome(name, result, parked=not result.equal and _is_parked(mesh, product, one))
                )
            except MeshError as error:
                # The others are compared all the same.
                outcomes.append(Outcome(name, error))
            progress.advance(task)
    if as_json:
        emit([record(one) for one in outcomes])
    else:
        _render(outcomes)
    return 0 if all(one.equal for one in outcomes) else 1


def _is_parked(mesh: Mesh, product: Product, one: TableContract) -> bool:
    if product.definition.source is None:
        return False
    status = mesh.source_status(product.name.domain, product.definition.source)
    return any(parked.source_table == one.physical_name for parked in status.parked)


def record(one: Outcome) -> dict[str, Any]:
    """One comparison as JSON has it."""
    outcome = one.result
    if isinstance(outcome, MeshError):
        return {"table": one.name, "outcome": "error", "error": str(outcome)}
    return {
        "table": one.name,
        "outcome": "equal" if outcome.equal else "different",
        "lsn": str(Lsn(outcome.lsn)) if outcome.version is None else None,
        "version": outcome.version,
        "source_rows": outcome.row_count,
        "lake_rows": outcome.lake_row_count,
        "key_ranges": len(outcome.ranges),
        "different_key_ranges": sum(not found.equal for found in outcome.ranges),
        "differences": [{"key": finite(found.key), "kind": found.kind} for found in outcome.differences],
        "quarantined_keys": outcome.quarantined_count,
        "quarantined": [finite(key) for key in outcome.quarantined],
        "parked": one.parked,
        "seconds": round(outcome.seconds, 3),
    }


def _render(outcomes: Sequence[Outcome]) -> None:
    made = table(
        "table",
        "outcome",
        "rows at source",
        "rows in lake",
        "key ranges",
        "at",
        "seconds",
        right=("rows at source", "rows in lake", "key ranges", "seconds"),
    )
    out = console()
    for compared in outcomes:
        name, outcome = compared.name, compared.result
        if isinstance(outcome, MeshError):
            made.add_row(cell(name), cell("error", "bold red"), "", "", "", "", "")
            continue
        made.add_row(
            cell(name),
            cell("equal", "green") if outcome.equal else cell("different", "bold red"),
            cell(f"{outcome.row_count:,}"),
            cell(f"{outcome.lake_row_count:,}"),
            cell(len(outcome.ranges)),
            cell(Lsn(outcome.lsn) if outcome.version is None else f"version {outcome.version}"),
            cell(f"{outcome.seconds:.1f}"),
        )
    out.print(made)
    for compared in outcomes:
        name, outcome = compared.name, compared.result
        if isinstance(outcome, MeshError):
            out.print(cell(f"{name}: {outcome}", "red"), soft_wrap=True)
        else:
            if compared.parked:
                text = "its table is parked: the changes that are missing wait in the source's parking log"
                out.print(cell(f"{name}: {text}", "yellow"), soft_wrap=True)
            if outcome.quarantined_count:
                keys = "; ".join(
                    ", ".join(f"{column}={value}" for column, value in key.items())
                    for key in outcome.quarantined
                )
                text = f"{counted(outcome.quarantined_count, 'key')} in quarantine, not in current: {keys}"
                out.print(cell(f"{name}: {text}", "yellow"), soft_wrap=True)
            for one in outcome.differences:
                key = ", ".join(f"{column}={value}" for column, value in one.key.items())
                out.print(cell(f"{name}: {key} is {_KINDS[one.kind]}", "red"), soft_wrap=True)


_KINDS = {
    "missing": "at the source but not in the lake",
    "extra": "in the lake but not at the source",
    "different": "not the same in both",
}
