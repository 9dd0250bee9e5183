"""The history of one key: each of its changes with the whole row before and after it.

A change log holds what the source sent: often no old row, and no value of a large column that did
not change. Here both are taken from the change before, so that people see rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl

from mesh_assets.lake.position import Lsn

Row = Mapping[str, Any]

OP_NAMES = {"r": "snapshot", "c": "insert", "u": "update", "d": "delete", "t": "truncate"}


@dataclass(frozen=True)
class KeyChange:
    """One change of one key.

    Attributes:
        seq: its place in the change log.
        op: ``r`` read by a snapshot, ``c`` inserted, ``u`` updated, ``d`` deleted, ``t`` truncated.
        committed_at: when its transaction committed, by the source's clock; for ``r``: when it was read.
        captured_at: when it was appended to the change log.
        xid: the transaction's id at the source; 0 for ``r``.
        lsn: the position of the transaction's commit.
        ordinal: the change's place in its transaction.
        before: the row before; None if there was none, only what is known of it if that is less.
        after: the row after; None if there is none.
        changed: names of the columns that differ, in the table's order.
        moved: the key itself changed: the row left for another key, or came from one.
        rejected_by: the expectations that keep it out of the current table.
    """

    seq: int
    op: str
    committed_at: datetime
    captured_at: datetime
    xid: int
    lsn: Lsn
    ordinal: int
    before: Row | None
    after: Row | None
    changed: tuple[str, ...]
    moved: bool = False
    rejected_by: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What happened, in a word."""
        if self.moved:
            return "key moved"
        return OP_NAMES[self.op]


def key_history(changes: pl.DataFrame) -> list[KeyChange]:
    """Turn the log rows of one key (and truncates between them) into rows before and after.

    Args:
        changes: change-log rows in the order of ``_seq``.
    """
    columns = [name for name in changes.columns if not name.startswith("_")]
    found: list[KeyChange] = []
    image: Row | None = None
    removed_seq, removed = -2, image
    for record in changes.to_arrow().to_pylist():
        op, seq = record["_op"], record["_seq"]
        given = _given(record, columns)
        if op == "t" and image is None:
            continue
        before = image
        moved = op == "c" and given is not None
        if moved:
            # The removal of the old key is the row before, if that is in this history at all.
            before = removed if removed_seq == seq - 1 and removed is not None else given
        elif given is not None and (before is None or op == "u"):
            before = given
        after = None if op in "dt" else _after(record, columns, before)
        if op == "d":
            removed_seq, removed = seq, before
        left = moved and removed_seq == seq - 1
        image = None if left else after
        found.append(
            KeyChange(
                seq=seq,
                op=op,
                committed_at=record["_committed_at"],
                captured_at=record["_captured_at"],
                xid=record["_xid"] or 0,
                lsn=Lsn(record["_position"]),
                ordinal=record["_ordinal"],
                before=before,
                after=after,
                changed=_changed(columns, before, after),
                moved=moved,
                rejected_by=tuple(record["_rejected_by"] or ()),
            )
        )
    return found


def _given(record: Row, columns: list[str]) -> Row | None:
    """What the source sent of the old row; None if nothing."""
    before = record.get("_before")
    if before is None:
        return None
    exact = _exact(record)
    values = {name: exact.get(f"_before.{name}", before.get(name)) for name in columns}
    if record["_op"] == "u":
        # An update that keeps its key brings an old row only with REPLICA IDENTITY FULL: all of it.
        return values
    return _known(values)


def _after(record: Row, columns: list[str], before: Row | None) -> Row:
    exact, unchanged = _exact(record), set(record["_unchanged"] or ())
    after = {name: exact.get(name, record[name]) for name in columns if name not in unchanged}
    return {
        name: after[name] if name in after else (before or {})[name]
        for name in columns
        if name in after or name in (before or {})
    }


def _known(values: Row) -> Row:
    """Where the source may have sent a key alone, a null says nothing."""
    return {name: value for name, value in values.items() if value is not None}


def _exact(record: Row) -> dict[str, str]:
    return dict(record.get("_exact") or ())


def _changed(columns: list[str], before: Row | None, after: Row | None) -> tuple[str, ...]:
    if before is None or after is None:
        return tuple(name for name in columns if name in (before or after or {}))
    return tuple(
        name
        for name in columns
        if name in after and not (name in before and _same(before[name], after[name]))
    )


def _same(left: object, right: object) -> bool:
    # NaN is the only value that differs from itself.
    return bool(left == right or (left != left and right != right))
