"""``mesh quarantine``: what the gate keeps out of current, and its release."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mesh_assets.cli.terminal import cell, console, counted, emit, finite, table, words
from mesh_assets.lake.position import Lsn
from mesh_assets.product import Mesh
from mesh_assets.quarantine import Entry, Quarantine, quarantine, replay


def listing(mesh: Mesh, names: Sequence[str], *, most: int, as_json: bool) -> int:
    """List the quarantined keys with rule, reason, row and position; returns 0."""
    found = list(quarantine(mesh, names, most=most or None))
    derived = {one.name for one in mesh.discovery.products.values() if one.definition.source is None}
    if as_json:
        emit([record(one, derived=one.name in derived) for one in found])
        return 0
    out = console()
    if not found:
        out.print("nothing is in quarantine")
        return 0
    for one in found:
        rules = ", ".join(f"{rule} {count:,}" for rule, count in one.rules.items())
        made = table(
            "key",
            "change",
            "rules",
            "reason",
            "row",
            "committed at",
            "position",
            title=f"{one.name}.{one.table}: {counted(one.count, 'key')} ({rules})",
        )
        for entry in one.entries:
            made.add_row(
                cell(_pairs(entry.key)),
                cell(entry.op if entry.change_count == 1 else f"{entry.op} ({entry.change_count} wait)"),
                cell("\n".join(reason.rule for reason in entry.reasons), "red"),
                cell("\n".join(dict.fromkeys(r.description for r in entry.reasons if r.description))),
                cell(_pairs({name: value for name, value in entry.row.items() if name not in entry.key})),
                cell(entry.committed_at),
                cell(_position(entry, derived=one.name in derived)),
            )
        out.print(made)
        if one.count > len(one.entries):
            out.print(cell(f"and {one.count - len(one.entries):,} more (--rows 0 shows all)", "dim"))
    return 0


def release(mesh: Mesh, name: str, *, timeout_seconds: float, as_json: bool) -> int:
    """Judge the quarantined changes again; returns 1 if some still fail."""
    answer = replay(mesh, name, timeout_seconds=timeout_seconds)
    if as_json:
        emit({"run": answer.run_id, "tables": {one: vars(done) for one, done in answer.tables.items()}})
    else:
        made = table("table", "released", "still in quarantine", "changes appended", right=("released",))
        for one, done in sorted(answer.tables.items()):
            note = cell(done.refused, "red") if done.refused else cell(f"{done.kept:,}")
            made.add_row(cell(one), cell(f"{done.released:,}"), note, cell(f"{done.row_count:,}"))
        console().print(made)
        for one, done in sorted(answer.tables.items()):
            if done.before:
                text = f"{one}: {counted(done.before, 'key')} had been released already, when run "
                console().print(cell(f"{text}{done.released_by} saw this contract"), soft_wrap=True)
    return 1 if any(done.kept or done.refused for done in answer.tables.values()) else 0


def record(one: Quarantine, *, derived: bool) -> dict[str, Any]:
    """What a table has in quarantine as JSON has it."""
    return {
        "table": f"{one.name}.{one.table}",
        "keys": one.count,
        "changes": one.change_count,
        "rules": dict(one.rules),
        "entries": [
            {
                "key": finite(entry.key),
                "rules": [{"rule": r.rule, "reason": r.description} for r in entry.reasons],
                "row": finite(entry.row),
                "op": entry.op,
                "position": _position(entry, derived=derived),
                "ordinal": entry.ordinal,
                "seq": entry.seq,
                "committed_at": entry.committed_at,
                "captured_at": entry.captured_at,
                "changes": entry.change_count,
            }
            for entry in one.entries
        ],
    }


def _position(entry: Entry, *, derived: bool) -> str:
    return f"version {entry.position}" if derived else str(Lsn(entry.position))


def _pairs(values: Any) -> str:  # noqa: ANN401 - any mapping of values
    return ", ".join(f"{name}={_short(words(value))}" for name, value in values.items())


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"
