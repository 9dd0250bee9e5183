"""``mesh parity``: source and lake compared, table by table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mesh_assets.cli.terminal import cell, console, emit, table
from mesh_assets.errors import MeshError, UnknownName
from mesh_assets.lake.position import Lsn
from mesh_assets.parity import ParityResult
from mesh_assets.product import Mesh


def compare(mesh: Mesh, names: Sequence[str], *, as_json: bool) -> int:
    """Compare the tables; returns 1 if one differs or cannot be compared."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    chosen = mesh.select(names)
    if not chosen:
        raise UnknownName("there is no product to compare", hint="look at `mesh validate`")
    outcomes: list[tuple[str, ParityResult | MeshError]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(errors=True), transient=True) as progress:
        task = progress.add_task("", total=len(chosen))
        for product, one in chosen:
            name = f"{product.name}.{one.name}"
            progress.update(task, description=name)
            try:
                outcomes.append((name, mesh.parity(name)))
            except MeshError as error:
                # The others are compared all the same.
                outcomes.append((name, error))
            progress.advance(task)
    if as_json:
        emit([record(name, outcome) for name, outcome in outcomes])
    else:
        _render(outcomes)
    return 0 if all(isinstance(one, ParityResult) and one.equal for _, one in outcomes) else 1


def record(name: str, outcome: ParityResult | MeshError) -> dict[str, Any]:
    """One comparison as JSON has it."""
    if isinstance(outcome, MeshError):
        return {"table": name, "outcome": "error", "error": str(outcome)}
    return {
        "table": name,
        "outcome": "equal" if outcome.equal else "different",
        "lsn": str(Lsn(outcome.lsn)),
        "source_rows": outcome.row_count,
        "lake_rows": outcome.lake_row_count,
        "key_ranges": len(outcome.ranges),
        "different_key_ranges": sum(not one.equal for one in outcome.ranges),
        "differences": [{"key": one.key, "kind": one.kind} for one in outcome.differences],
        "seconds": round(outcome.seconds, 3),
    }


def _render(outcomes: Sequence[tuple[str, ParityResult | MeshError]]) -> None:
    made = table(
        "table",
        "outcome",
        "rows at source",
        "rows in lake",
        "key ranges",
        "at LSN",
        "seconds",
        right=("rows at source", "rows in lake", "key ranges", "seconds"),
    )
    out = console()
    for name, outcome in outcomes:
        if isinstance(outcome, MeshError):
            made.add_row(cell(name), cell("error", "bold red"), "", "", "", "", "")
            continue
        made.add_row(
            cell(name),
            cell("equal", "green") if outcome.equal else cell("different", "bold red"),
            cell(f"{outcome.row_count:,}"),
            cell(f"{outcome.lake_row_count:,}"),
            cell(len(outcome.ranges)),
            cell(Lsn(outcome.lsn)),
            cell(f"{outcome.seconds:.1f}"),
        )
    out.print(made)
    for name, outcome in outcomes:
        if isinstance(outcome, MeshError):
            out.print(cell(f"{name}: {outcome}", "red"), soft_wrap=True)
        else:
            for one in outcome.differences:
                key = ", ".join(f"{column}={value}" for column, value in one.key.items())
                out.print(cell(f"{name}: {key} is {_KINDS[one.kind]}", "red"), soft_wrap=True)


_KINDS = {
    "missing": "at the source but not in the lake",
    "extra": "in the lake but not at the source",
    "different": "not the same in both",
}
