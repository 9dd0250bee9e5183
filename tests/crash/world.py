"""A source, an application, a lake, and shifts that run as processes of their own and can be killed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import psycopg

from mesh_assets.cdc.decode import Decoder
from mesh_assets.cdc.source import Source, SourceConfig
from mesh_assets.contract.discovery import discover
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.version import VersionLog
from mesh_assets.names import Layout, ProductName
from mesh_assets.parity import ParityResult, parity
from mesh_assets.shift.plan import CapturePlan, Target
from mesh_assets.shift.replay import Desk
from tests.crash import workload
from tests.crash.pool import KILLED, Order, Pool

WITNESS = "witness"
_PRODUCTS = Path(__file__).parent / "products"
PRODUCT = ProductName("shop", "everything")


def plan_for(url: str, lake: Path | str, *, gated: bool = False) -> CapturePlan:
    """One product over all tables of the test application; ``gated``: some changes fail its rules."""
    layout = Layout(str(lake))
    targets = tuple(
        Target(
            PRODUCT,
            table,
            source_table,
            key,
            layout.table(PRODUCT, "changes", table),
            layout.table(PRODUCT, "current", table),
        )
        for source_table, (table, key) in sorted(workload.TABLES.items())
    )
    name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
    return CapturePlan(
        SourceConfig(
            domain="shop",
            name="app",
            url=url,
            tables=tuple(workload.TABLES),
            slot=f"mesh_{name}",
            publication="mesh_shop_app",
        ),
        layout,
        targets,
        {PRODUCT: "0" * 64},
        {},
        discover(_PRODUCTS).products if gated else {},
    )


@dataclass
class Verdict:
    """What the lake lacks or has twice, held against an independent reading of the source's log."""

    changes: int = 0
    lost: int = 0
    doubled: int = 0
    parity: dict[str, ParityResult] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Nothing lost, nothing doubled, every table equal at one position, and every version sound."""
        return not (self.lost or self.doubled or self.problems or self.differing)

    @property
    def differing(self) -> list[ParityResult]:
        """The tables that differ from the source."""
        return [result for result in self.parity.values() if not result.equal]

    def sentence(self) -> str:
        """The verdict in words."""
        counts = f"{self.changes:,} changes, {self.lost} lost, {self.doubled} doubled"
        return "\n".join([counts, *self.problems, *(result.sentence() for result in self.differing)])


class World:
    """One test's world. The witness is a second slot that nobody but the test reads."""

    def __init__(self, url: str, lake: Path, seed: int, *, gated: bool = False) -> None:
        self.url = url
        self.gated = gated
        self.plan = plan_for(url, lake)
        self.lake = lake
        self.kills = 0
        workload.create(url)
        self.application = workload.Application(url, seed)

    def witness(self) -> None:
        """Begin to watch; only after the first shift has created the publication."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(
                "select pg_create_logical_replication_slot(%s, 'pgoutput')", (self._witness_slot,)
            )

    @property
    def _witness_slot(self) -> str:
        return f"{WITNESS}_{self.plan.source.slot}"

    def order(self, failpoint: str = "") -> Order:
        """What a shift process shall do in this world."""
        return Order(self.url, str(self.lake), failpoint, self.gated)

    def ask_replay(self) -> None:
        """Ask the next shift to judge again what is in quarantine."""
        Desk(self.plan.layout, PRODUCT).ask()

    def rejected_count(self) -> int:
        """Changes in the logs that did not reach current when they came."""
        logs = [ChangeLog.open(target.changes_uri) for target in self.plan.targets]
        return sum(log.scan(columns=["_rejected_by"]).collect()["_rejected_by"].count() for log in logs)

    def shift(self, pool: Pool, failpoint: str = "", *, timeout_seconds: float = 120) -> int:
        """Run one shift as a process; returns its exit code, :data:`KILLED` where it died at its failpoint.

        Raises:
            AssertionError: if it hung, or ended with an error.
        """
        # On a slow machine the server takes its time to notice that the process before was killed.
        process = pool.go(replace(self.order(failpoint), claim_seconds=timeout_seconds / 2))
        try:
            code = process.wait(timeout_seconds)
            if code is None:
                raise AssertionError(f"the shift hung:\n{process.output()}")
            if code == KILLED:
                self.kills += 1
            elif code:
                raise AssertionError(f"the shift failed:\n{process.output()}")
            return code
        finally:
            process.close()

    def expected(self) -> dict[str, list[tuple[int, int, str]]]:
        """Every change since :meth:`witness`: ``schema.table`` -> (commit LSN, ordinal, op)."""
        with Source(self.plan.source) as source, psycopg.connect(self.url, autocommit=True) as connection:
            decoder = Decoder(
                source.resolve, key_of=lambda _, schema, name: workload.TABLES[f"{schema}.{name}"][1]
            )
            cursor = connection.execute(
                "select data from pg_logical_slot_peek_binary_changes(%s, null, null, 'proto_version', '1', "
                "'publication_names', %s)",
                (self._witness_slot, self.plan.source.publication),
                binary=True,
            )
            frames = bytearray()
            for (message,) in cursor:
                frames += b"d" + (len(message) + 29).to_bytes(4, "big") + b"w" + bytes(24) + message
            buffer = np.frombuffer(bytes(frames), np.uint8)
            start = 0
            changes: dict[str, list[tuple[int, int, str]]] = {}
            while start < len(buffer):
                start = decoder.decode(buffer, start, len(buffer))
            for relation, frame in decoder.take().segments:
                rows = zip(
                    frame["_position"].to_pylist(),
                    frame["_ordinal"].to_pylist(),
                    frame["_op"].to_pylist(),
                    strict=True,
                )
                changes.setdefault(relation.qualified_name, []).extend(rows)
        return changes

    def verify(self) -> Verdict:
        """Hold the lake against the source and the witness."""
        verdict = Verdict()
        for source_table, expected in self.expected().items():
            target = next(one for one in self.plan.targets if one.source_table == source_table)
            log = ChangeLog.open(target.changes_uri)
            names = ["_seq", "_position", "_ordinal", "_op", "_rejected_by"]
            rows = log.scan(columns=names).collect().sort("_seq")
            if rows["_seq"].to_list() != list(range(rows.height)):
                verdict.problems.append(f"{source_table}: _seq is not dense")
            # What was released from quarantine stands in the log once more.
            place = ["_position", "_ordinal", "_op"]
            first = rows.filter(pl.col("_rejected_by").is_not_null()).unique(place, keep="first")
            again = rows.join(first.select(*place, _first="_seq"), on=place)
            again = again.filter((pl.col("_seq") > pl.col("_first")) & (pl.col("_op") != "r"))
            if again.height != again.unique(place).height:
                verdict.problems.append(f"{source_table}: a change was released twice")
            rows = rows.join(again, on="_seq", how="anti")
            held = Counter(
                row for row in rows.select("_position", "_ordinal", "_op").iter_rows() if row[2] != "r"
            )
            wanted = Counter(expected)
            begun = min(wanted)[0]
            held = Counter({row: count for row, count in held.items() if row[0] >= begun})
            verdict.changes += wanted.total()
            verdict.lost += (wanted - held).total()
            verdict.doubled += (held - wanted).total()
        for target in self.plan.targets:
            verdict.parity[target.source_table] = parity(self.plan, target)
        verdict.problems += self._version_problems()
        return verdict

    def _version_problems(self) -> Iterator[str]:
        """What is wrong with the product's versions: each seals the one before, the last holds everything."""
        versions = VersionLog.open(self.plan.layout.versions(PRODUCT))
        latest = versions.latest()
        rows = versions.between(1, latest.version) if latest else []
        if [row.version for row in rows] != list(range(1, len(rows) + 1)):
            yield "the product's versions are not dense"
        for before, row in pairwise([None, *rows]):
            assert row is not None
            if row.previous_hash != (before.hash if before else "") or row.hash != row.digest():
                yield f"version {row.version} does not seal the one before"
            if before and any(row.tables[table] < seq for table, seq in before.tables.items()):
                yield f"version {row.version} goes back behind the one before"
        held = {target.table: ChangeLog.open(target.changes_uri).seq for target in self.plan.targets}
        if latest is None or latest.tables != held:
            yield f"the last version has {latest.tables if latest else None}, the logs hold {held}"

    def close(self) -> None:
        """Disconnect and drop the slots."""
        self.application.close()
        with psycopg.connect(self.url, autocommit=True) as connection:
            for slot in (self.plan.source.slot, self._witness_slot):
                connection.execute(
                    "select pg_drop_replication_slot(slot_name) from pg_replication_slots "
                    "where slot_name = %s and not active",
                    (slot,),
                )
