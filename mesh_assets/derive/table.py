"""One of a derived product's own tables: what stands, and what is appended to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pyarrow as pa

from mesh_assets.contract.document import display
from mesh_assets.contract.model import TableContract
from mesh_assets.derive.difference import Stamp, change_frame, differences
from mesh_assets.derive.exact import Doubts, stored_texts, texts_given, widened, with_texts
from mesh_assets.derive.generation import last_seq, row_schema
from mesh_assets.derive.plan import DerivePlan
from mesh_assets.errors import ContractError, Fenced
from mesh_assets.lake.log import Appended, ChangeLog
from mesh_assets.lake.quarantine import images, last_rows, open_rows
from mesh_assets.lake.shape import Shape
from mesh_assets.lake.table import Table
from mesh_assets.lake.tail import shape_of
from mesh_assets.lake.version import VersionRow, generation_at
from mesh_assets.lake.view import Reader, View, chosen
from mesh_assets.quality.gate import Gate
from mesh_assets.shift.gating import Guard
from mesh_assets.shift.plan import Target
from mesh_assets.shift.replay import Replayed
from mesh_assets.shift.report import TableReport

_NO_TEXTS: frozenset[str] = frozenset()

Versions = Mapping[str, int]
"""The inputs' versions, by product, that an append is for."""


@dataclass
class OwnTable:
    """One of the product's tables, open for appending.

    Attributes:
        shape: of the rows that the contract promises.
        op_count: changes appended in this shift, by op.
        rejected_count: those of them that the gate kept out of current.
    """

    plan: DerivePlan
    target: Target
    contract: TableContract
    log: ChangeLog
    guard: Guard
    reader: Reader
    shape: Shape
    op_count: Counter[str] = field(default_factory=Counter)
    rejected_count: int = 0
    doubts: Doubts = field(default_factory=Doubts)

    @classmethod
    def open(cls, plan: DerivePlan, target: Target, gate: Gate | None, last: VersionRow | None) -> OwnTable:
        """Open the table's log, or create it; columns that the contract has gained are added.

        Args:
            plan: of the product.
            target: the table, where it goes on (:func:`mesh_assets.derive.generation.going_on`).
            gate: its blocking rules.
            last: the product's newest version.

        Raises:
            ContractError: if the log cannot take what the contract promises.
            Fenced: if the table goes on after another version by now.
        """
        contract = target.contract
        assert contract is not None  # A derived table has one.
        schema = row_schema(plan.product, contract)
        begun = target.generation > generation_at(last, target.table)
        if begun and plan.contract_changed():
            # Else a contract that is over would begin a generation after that of the next one.
            raise ContractError(
                f"the log of {plan.name}.{target.table} has come to other columns or another key "
                f"meanwhile, by another contract than the {display(plan.product.contract.path)} known here",
                hint="begin anew: the next shift goes by the contract as it is then",
            )
        after = last_seq(last, target.table) if begun else -1
        if not Table.exists(target.changes_uri):
            log = ChangeLog.create(target.changes_uri, schema, target.key, after=after)
        else:
            log = ChangeLog.open(target.changes_uri)
        if begun and log.after != after:
            raise Fenced(
                f"another writer has appended to {plan.name}.{target.table}: "
                f"{target.changes_uri} goes on from _seq {log.after}, not from {after}",
                hint="open the tables anew",
            )
        log.add_columns([one for one in schema if one.name not in log.row_schema.names])
        kinds = shape_of(log).columns
        promised = pl.Schema({name: kinds[name] for name in log.row_schema.names if name in schema.names})
        return cls(
            plan,
            target,
            contract,
            log,
            Guard(log, target.current_uri, gate),
            Reader(target.changes_uri, target.current_uri),
            Shape(promised, log.key),
        )

    # -- what stands ------------------------------------------------------------------------------

    def view(self) -> View:
        """All that was appended."""
        return self.reader.view(self.log.seq)

    def texts(self, result: pl.LazyFrame) -> frozenset[str]:
        """The columns of which a result, or what stands, may have values outside of their type."""
        promised = frozenset(self.shape.columns)
        return (texts_given(result, self.shape) | self.doubts.columns(self.view())) & promised

    def standing(
        self, unit: pl.DataFrame | None = None, texts: frozenset[str] = _NO_TEXTS
    ) -> tuple[pl.LazyFrame, int]:
        """The rows as the log has them last, also those that the gate keeps out; about how many.

        Args:
            unit: only those with these values.
            texts: columns whose texts are wanted as columns, too.
        """
        view, meta = self.view(), bool(texts)
        rows = view.rows(meta=meta) if unit is None else view.holding(unit, meta=meta)
        rows = stored_texts(rows, self.shape, texts)
        if self.guard.open_count:
            rows = self._with_held(rows, open_rows(self.log), unit, texts)
        return rows, view.row_count

    def stood(self, cut: int, texts: frozenset[str] = _NO_TEXTS) -> tuple[pl.LazyFrame, int]:
        """The rows as the log had them last at a cut, like :meth:`standing`; how many keys are held back."""
        if self.log.seq < cut:
            self.log.refresh()
        rows = stored_texts(self.reader.view(cut).rows(meta=bool(texts)), self.shape, texts)
        opened = open_rows(self.log, cut)
        count = opened.select(self.shape.key).n_unique() if opened.height else 0
        return self._with_held(rows, opened, None, texts) if count else rows, count

    def _with_held(
        self, rows: pl.LazyFrame, opened: pl.DataFrame, unit: pl.DataFrame | None, texts: frozenset[str]
    ) -> pl.LazyFrame:
        """The rows with those that are held back in the places of those that are not."""
        keys = opened.select(self.shape.key).unique()
        kept = rows.join(keys.lazy(), on=self.shape.key, how="anti")
        held = images(self.log, last_rows(shape_of(self.log), opened))
        if unit is not None:
            held = chosen(held, unit.cast({name: self.shape.columns[name] for name in unit.columns}))
        return pl.concat([kept, stored_texts(held, self.shape, texts)])

    # -- appending --------------------------------------------------------------------------------

    def append_differences(
        self, result: pl.LazyFrame, unit: pl.DataFrame | None, versions: Versions, stamp: Stamp
    ) -> list[TableReport]:
        """Append what makes the rows that stand those of a result.

        Args:
            result: what the transform gave.
            unit: the values that it was made for; None for all rows.
        """
        texts = self.texts(result)
        shape, result = widened(self.shape, texts), with_texts(result, self.shape, texts)
        standing, count = self.standing(unit, texts)
        if unit is not None:
            count = 0
        else:
            count += int(result.select(pl.len()).collect().item())
        reports = []
        for found in differences(shape, result, standing, row_count=count):
            ordinal = self._next_ordinal(stamp)
            frame = change_frame(self.shape, self.log.table.schema, found, stamp, ordinal, texts)
            reports.append(self._append(frame, (stamp.version, ordinal + found.height - 1), versions))
        return reports

    def _next_ordinal(self, stamp: Stamp) -> int:
        held = self.log.position(str(self.plan.name))
        return held[1] + 1 if held is not None and held[0] == stamp.version else 0

    def _append(self, frame: pa.Table, position: tuple[int, int], versions: Versions) -> TableReport:
        verdict = self.guard.judge(frame)
        appended = self._logged(
            frame, position, versions, rejected_by=verdict.rejected_by, transactions=verdict.transactions
        )
        self.op_count.update(frame.column("_op").to_pylist())
        self.rejected_count += verdict.rejected_count
        return TableReport(
            self.plan.name,
            self.target.table,
            appended.row_count,
            dict(self.op_count),
            appended.last_seq,
            appended.delta_version,
            {one.name: one.physical_type for one in self.contract.columns},
            self.rejected_count,
        )

    def note(self, nothing: pa.Table, number: int, transactions: Mapping[str, int]) -> None:
        """Append no change, with something to remember.

        Args:
            number: of the next version.
        """
        position = self.log.position(str(self.plan.name)) or (number, -1)
        self._logged(nothing, position, {}, transactions=transactions, empty=True)

    def replay(self, versions: Versions) -> Replayed:
        """Judge again what is quarantined.

        Args:
            versions: of the inputs, that the newest version was made of.

        Raises:
            Fenced: if another writer has appended.
        """
        done = Replayed()
        position = self.log.position(str(self.plan.name)) or (0, -1)
        for release, verdict in self.guard.released():
            appended = 0
            if release.frame.num_rows:
                appended = self._logged(
                    release.frame,
                    position,
                    versions,
                    rejected_by=verdict.rejected_by,
                    transactions=verdict.transactions,
                ).row_count
            done += Replayed(release.released, release.kept, appended)
        return done

    def _logged(
        self,
        frame: pa.Table,
        position: tuple[int, int],
        versions: Versions,
        *,
        rejected_by: pa.Array[Any] | None = None,
        transactions: Mapping[str, int],
        empty: bool = False,
    ) -> Appended:
        return self.log.append(
            frame,
            source=str(self.plan.name),
            position=position,
            captured_at=datetime.now(UTC),
            schema_version=1,
            rejected_by=rejected_by,
            transactions={**{f"{name}/lsn": version for name, version in versions.items()}, **transactions},
            empty=empty,
        )
