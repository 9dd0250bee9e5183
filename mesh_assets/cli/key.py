"""``mesh changes``: the history of one key, change by change."""

from __future__ import annotations

from typing import Any

from mesh_assets.cli.terminal import cell, console, counted, emit, finite, moment, note, table
from mesh_assets.errors import UnknownName
from mesh_assets.history import KeyChange, Row
from mesh_assets.product import Mesh

_STYLES = {"c": "green", "r": "cyan", "u": "yellow", "d": "red", "t": "red"}


def show(
    mesh: Mesh, name: str, keys: list[str], as_of: str | None = None, *, all_columns: bool, as_json: bool
) -> int:
    """Print every change of a key (up to ``as_of``); returns 1 if there never was one."""
    key: str | dict[str, object] = keys[0]
    if len(keys) > 1:
        key = dict(_pair(one) for one in keys)
    history = mesh.history(name, key, as_of=as_of)
    if as_json:
        emit([record(one) for one in history])
        return 0 if history else 1
    if not history:
        note(f"{name} never had the key {', '.join(keys)}", "yellow")
        return 1
    out, made = console(), table("when", "what", "transaction", "column", "before", "after")
    for number, one in enumerate(history):
        if number:
            made.add_section()
        _add(made, one, all_columns=all_columns)
    out.print(made)
    note(f"{counted(len(history), 'change')} of {name} {', '.join(keys)}")
    return 0


def record(one: KeyChange) -> dict[str, Any]:
    """A change as JSON has it."""
    return {
        "seq": one.seq,
        "op": one.op,
        "what": one.name,
        "committed_at": one.committed_at.isoformat(),
        "captured_at": one.captured_at.isoformat(),
        "xid": one.xid or None,
        "lsn": str(one.lsn),
        "ordinal": one.ordinal,
        "before": finite(one.before),
        "after": finite(one.after),
        "changed": list(one.changed),
        "rejected_by": list(one.rejected_by),
    }


def _pair(text: str) -> tuple[str, object]:
    column, equals, value = text.partition("=")
    if not equals:
        raise UnknownName(
            f"{text!r} does not name a key column", hint="write --key column=value for each column"
        )
    return column, value


def _add(made: Any, one: KeyChange, *, all_columns: bool) -> None:  # noqa: ANN401 - a rich table
    changed = set(one.changed)
    columns = list(dict.fromkeys([*(one.before or {}), *(one.after or {})]))
    if not all_columns and one.before is not None and one.after is not None:
        columns = [name for name in columns if name in changed]
    transaction = f"{one.xid} at {one.lsn}" if one.xid else f"at {one.lsn}"
    what = f"{one.name}, rejected by {', '.join(one.rejected_by)}" if one.rejected_by else one.name
    first = [cell(moment(one.committed_at)), cell(what, _STYLES[one.op]), cell(transaction)]
    if not columns:
        # An update that set every column to what it was.
        made.add_row(*first, cell("nothing changed", "dim"), "", "")
    for name in columns:
        both = one.before is not None and one.after is not None
        marked = "bold" if both and name in changed else ""
        made.add_row(
            *first,
            cell(name, marked),
            _value(one.before, name, "bold red" if marked else "red" if one.after is None else "dim"),
            _value(one.after, name, "bold green" if marked else "dim" if both else "green"),
        )
        first = [cell(""), cell(""), cell("")]


def _value(row: Row | None, name: str, style: str) -> Any:  # noqa: ANN401 - a rich text
    if row is None or name not in row:
        return cell("")
    return cell("null", "dim italic") if row[name] is None else cell(row[name], style)
