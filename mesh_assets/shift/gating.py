"""The gate of one change log: frames are judged before they are appended, and nothing is left out.

A change that fails a blocking rule is appended all the same, marked with the rules it fails, and
does not reach current. A table without blocking rules in which nothing was ever rejected pays nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import pyarrow as pa

from mesh_assets.errors import ContractError
from mesh_assets.lake.log import REJECTED, SEQ, ChangeLog
from mesh_assets.lake.mask import mask_sources
from mesh_assets.lake.quarantine import IMAGE_OPS, Entries, Release, releases
from mesh_assets.lake.read import rows_at
from mesh_assets.quality.gate import Gate


@dataclass(frozen=True)
class Verdict:
    """What became of one frame at the gate.

    Attributes:
        rejected_by: for :meth:`ChangeLog.append`; None: every change is accepted.
        transactions: app transactions that belong into the same commit.
        failed: rule -> changes that fail it.
    """

    rejected_by: pa.Array[Any] | None = None
    transactions: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)

    @property
    def rejected_count(self) -> int:
        """Changes that do not reach current."""
        return 0 if self.rejected_by is None else len(self.rejected_by) - self.rejected_by.null_count


class Guard:
    """Judges what one writer appends to one log.

    Args:
        log: the writer's handle.
        current_uri: the table folded from it, to look up what a change leaves out.
        gate: the table's blocking row rules; None if there are none.

    Raises:
        ContractError: if the table has no key: a change could not be told from its correction.
    """

    def __init__(self, log: ChangeLog, current_uri: str, gate: Gate | None) -> None:
        if gate is not None and not log.key:
            raise ContractError(
                f"{log.table.uri} has no key, so blocking rules ({', '.join(one.id for one in gate.rules)}) "
                "cannot keep a row out and let it in once it is right",
                hint="give the table a primary key, or the rules the severity warning",
            )
        self._log = log
        self._current_uri = current_uri
        self.gate = gate
        if gate is not None and (broken := gate.mark(_probe(log)).broken):
            raise ContractError(
                f"{log.table.uri} cannot be held against its rules: "
                + "; ".join(f"{rule}: {reason}" for rule, reason in broken.items()),
                hint="mend the rules, or give them the severity warning",
            )
        self.entries = Entries(log) if gate is not None or log.transaction(REJECTED) is not None else None

    @property
    def open_count(self) -> int:
        """Keys with an open entry in quarantine."""
        return 0 if self.entries is None else len(self.entries)

    def judge(self, frame: pa.Table) -> Verdict:
        """Judge a frame that is appended next."""
        entries = self.entries
        if entries is None:
            return Verdict()
        rejected_by, failed = None, {}
        if self.gate is not None:
            marks = self.gate.mark(frame, lambda rows, columns: self._previous(frame, rows, columns))
            rejected_by, failed = marks.rejected_by, dict(marks.failed)
            if marks.broken:
                rejected_by = self._doubted(frame, rejected_by, sorted(marks.broken))
        rejected_by = entries.joined(frame, rejected_by)
        return Verdict(rejected_by, entries.taken(frame, rejected_by, self._log.seq + 1), failed)

    def released(self) -> Iterator[tuple[Release, Verdict]]:
        """What releases the entries that pass by now; append each before the next is asked for."""
        for release in releases(self._log, self._whole):
            transactions: Mapping[str, int] = {}
            if self.entries is not None:
                transactions = self.entries.taken(release.frame, release.rejected_by, self._log.seq + 1)
            yield release, Verdict(release.rejected_by, transactions)

    def _whole(self, frame: pa.Table) -> pa.Array[Any] | None:
        if self.gate is None:
            return None
        marks = self.gate.mark(frame)
        if not marks.broken:
            return marks.rejected_by
        return self._doubted(frame, marks.rejected_by, sorted(marks.broken))

    def _doubted(
        self, frame: pa.Table, rejected_by: pa.Array[Any] | None, broken: Sequence[str]
    ) -> pa.Array[Any]:
        """A rule that could not be asked of these rows (its query failed) lets none of them pass."""
        assert self.gate is not None  # It was asked.
        # The next frame is asked afresh.
        self.gate = Gate(self.gate.rules, self._log.key)
        known = [None] * frame.num_rows if rejected_by is None else rejected_by.to_pylist()
        verdicts = [
            sorted({*(rules or ()), *broken}) if op in IMAGE_OPS else None
            for rules, op in zip(known, frame["_op"].to_pylist(), strict=True)
        ]
        return pa.array(verdicts, pa.list_(pa.string()))

    def _previous(self, frame: pa.Table, rows: pa.Array[Any], columns: Sequence[str]) -> pa.Table:
        """Values that a frame's rows leave out, out of the images that the log holds.

        A key with an open entry has no image that counts: its partial changes join the entry anyway.
        """
        log, entries = self._log, self.entries
        assert entries is not None  # There is a gate.
        shape = entries.shape
        first = log.seq + 1
        names = [*shape.key, "_op", "_unchanged", "_before", "_exact"]
        changes = pl.DataFrame(pl.from_arrow(frame.select(names)))
        changes = changes.with_columns(pl.int_range(first, first + pl.len(), dtype=pl.Int64).alias(SEQ))
        asked = pl.DataFrame({SEQ: pl.Series(pl.from_arrow(rows)).cast(pl.Int64) + first})
        final = shape.identified(changes.lazy().join(asked.lazy(), on=SEQ)).select(*shape.identity, SEQ)
        sources, _ = mask_sources(shape, changes.lazy(), final.collect(), has_base=True)
        roots = {f"_root_{name}": name for name in shape.identity}
        asks = asked.join(sources.select(SEQ, *roots), on=SEQ, how="left").rename(roots)
        wanted = (
            asks.select(shape.identity)
            .unique()
            .join(entries.frame, on=shape.identity, how="anti", nulls_equal=bool(shape.inexact))
        )
        # Key columns may be asked for as well.
        values = [pl.col(name).alias(f"_value_{name}") for name in columns]
        held = rows_at(
            log, self._current_uri, log.seq, columns=list(dict.fromkeys([*shape.key, *columns, "_exact"]))
        )
        found = (
            shape.join(shape.identified(held), wanted.lazy(), "semi")
            .select(*shape.identity, *values, "_exact")
            .collect(engine="streaming")
            # Polars 2.1 cannot gather a map column of several chunks.
            .rechunk()
        )
        answers = asks.join(
            found, on=shape.identity, how="left", nulls_equal=bool(shape.inexact), maintain_order="left"
        )
        taken = answers.select(*(pl.col(f"_value_{name}").alias(name) for name in columns), "_exact")
        fields = [*(log.row_schema.field(name) for name in columns), log.table.schema.field("_exact")]
        return taken.to_arrow().cast(pa.schema(fields))


def _probe(log: ChangeLog) -> pa.Table:
    """One row without any value, to see whether rules can be asked of rows of this shape."""
    columns = {field.name: pa.nulls(1, field.type) for field in log.row_schema}
    return pa.table(columns | {"_op": pa.array(["c"])})
