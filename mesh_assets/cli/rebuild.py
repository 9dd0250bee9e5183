"""``mesh rebuild``: a product made anew from the logs, held against what stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mesh_assets.cli.terminal import cell, console, emit, finite, note, table
from mesh_assets.derive.rebuild import Example, Rebuild, rebuild
from mesh_assets.product import Mesh

_OPS = {"c": "added", "u": "changed", "d": "removed"}
_STYLES = {"c": "green", "u": "yellow", "d": "red"}


def run(mesh: Mesh, name: str, *, dry_run: bool, as_json: bool) -> int:
    """Rebuild one product; returns 1 if what stood was wrong and nothing was done about it."""
    product = mesh.product(name)
    plan = mesh.derive_plan(name) if product.derived else None
    tell = (lambda text: None) if as_json else note
    done = rebuild(mesh.layout, product, plan, dry_run=dry_run, tell=tell)
    if as_json:
        emit(record(done, dry_run=dry_run))
    else:
        _render(done, dry_run=dry_run)
    return 1 if dry_run and not done.equal else 0


def record(done: Rebuild, *, dry_run: bool) -> dict[str, Any]:
    """A rebuild as JSON has it."""
    return {
        "product": str(done.name),
        "version": done.version,
        "outcome": "equal" if done.equal else "different",
        "dry_run": dry_run,
        "made_of": dict(done.made_of),
        "new_version": done.new_version,
        "tables": [
            {
                "table": one.table,
                "rows": one.row_count,
                **{word: one.op_count.get(op, 0) for op, word in _OPS.items()},
                "swapped": one.swapped,
                "examples": [
                    {
                        "key": finite(dict(example.key)),
                        "kind": _OPS[example.op],
                        "before": finite(dict(example.before)) if example.before is not None else None,
                        "after": finite(dict(example.after)) if example.after is not None else None,
                    }
                    for example in one.examples
                ],
            }
            for one in done.tables
        ],
        "seconds": round(done.seconds, 3),
    }


def _render(done: Rebuild, *, dry_run: bool) -> None:
    out = console()
    made = table(
        "table", "rows", *_OPS.values(), "outcome", title=_title(done), right=("rows", *_OPS.values())
    )
    for one in done.tables:
        counts = [
            cell(f"{one.op_count.get(op, 0):,}", _STYLES[op] if one.op_count.get(op) else "dim")
            for op in _OPS
        ]
        outcome = cell("equal", "green")
        if not one.equal:
            outcome = cell("swapped", "yellow") if one.swapped else cell("different", "bold red")
        made.add_row(cell(one.table), cell(f"{one.row_count:,}"), *counts, outcome)
    out.print(made)
    for one in done.tables:
        for example in one.examples:
            out.print(cell(f"  {_OPS[example.op]:>8}  {_line(example)}", _STYLES[example.op]), soft_wrap=True)
    if done.equal:
        out.print(cell(f"What stands is what the logs make, in {done.seconds:.1f} s.", "green"))
    elif dry_run:
        out.print(cell("Nothing was changed; without --dry-run it is swapped.", "yellow"))
    elif done.new_version is not None:
        out.print(cell(f"Version {done.new_version} has it, after {done.seconds:.1f} s.", "green"))
    else:
        out.print(cell(f"Swapped after {done.seconds:.1f} s.", "green"))


def _title(done: Rebuild) -> str:
    of = ", ".join(f"{name}@{version}" for name, version in done.made_of.items())
    return f"{done.name} version {done.version}" + (f", made of {of}" if of else ", from its own log")


def _line(example: Example) -> str:
    key = _pairs(example.key)
    if example.before is None or example.after is None:
        return f"{key}: {_pairs(example.after or example.before or {})}"
    changes = (f"{name} {example.before[name]!s} -> {value!s}" for name, value in example.after.items())
    return f"{key}: {', '.join(changes)}"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())
