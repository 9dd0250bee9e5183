"""The versions of one product, and which cut a version, a moment or a position means.

A **cut** gives each table of the product the last ``_seq`` it includes; reading a product means
reading every table at one cut. A version names a cut at a transaction boundary and seals it: its
hash covers all of its fields, the hash of the version before among them.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pyarrow as pa

from mesh_assets.errors import AsOfRefused, LakeError
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.position import Lsn
from mesh_assets.lake.record import RecordLog

AsOf = int | datetime | Lsn | str
"""A version number, a moment (without a zone: UTC), an :class:`Lsn`, or the text of any of them."""

_MOMENT = pa.timestamp("us", tz="UTC")
_COUNTS = pa.map_(pa.string(), pa.int64())
_SCHEMA = pa.schema(
    [
        ("version", pa.int64()),
        ("tables", _COUNTS),
        (
            "positions",
            pa.list_(
                pa.struct(
                    [
                        ("input", pa.string()),
                        ("lsn", pa.int64()),
                        ("ordinal", pa.int64()),
                        ("end_lsn", pa.int64()),
                    ]
                )
            ),
        ),
        ("lsn", pa.int64()),
        ("row_count", _COUNTS),
        ("contract_hash", pa.string()),
        ("code_version", pa.string()),
        ("run_id", pa.string()),
        ("actor", pa.string()),
        ("parents", _COUNTS),
        ("committed_at", _MOMENT),
        ("created_at", _MOMENT),
        ("previous_hash", pa.string()),
        ("hash", pa.string()),
        ("generations", _COUNTS),
    ]
)


@dataclass(frozen=True, slots=True)
class InputPosition:
    """How far one input was read: for a source its LSNs, for a product its version as ``lsn``."""

    lsn: int
    ordinal: int = 0
    end_lsn: int = 0


class _Lying:
    """What says in which generation a product's tables lie."""

    __slots__ = ()
    generations: Mapping[str, int]

    def generation(self, table: str) -> int:
        """In which generation a table lies."""
        return self.generations.get(table, 1)


@dataclass(frozen=True, slots=True)
class VersionRow(_Lying):
    """One product version.

    Attributes:
        version: dense from 1.
        tables: the last ``_seq`` that belongs to it, per table.
        positions: how far each input was read.
        row_count: changes since the version before, per op.
        contract_hash: of the contract it was made under.
        code_version: of the program that made it.
        run_id: of the run that made it.
        actor: who ran it.
        parents: versions of the input products.
        committed_at: the running maximum of the changes' commit times.
        created_at: when the row was written.
        previous_hash: the hash of the version before; empty for the first.
        hash: sha256 over the canonical JSON of all other fields (``generations`` only if it has any).
        generations: of the tables that lie in another than the first (:meth:`Layout.table`).
    """

    version: int
    tables: Mapping[str, int]
    positions: Mapping[str, InputPosition]
    row_count: Mapping[str, int]
    contract_hash: str
    code_version: str
    run_id: str
    actor: str
    parents: Mapping[str, int]
    committed_at: datetime
    created_at: datetime
    previous_hash: str = ""
    hash: str = ""
    generations: Mapping[str, int] = field(default_factory=dict)

    @property
    def lsn(self) -> int | None:
        """The commit LSN it reaches, if it has exactly one input."""
        return next(iter(self.positions.values())).lsn if len(self.positions) == 1 else None

    def digest(self) -> str:
        """What ``hash`` must be."""
        record = {
            "version": self.version,
            "tables": dict(self.tables),
            "positions": {name: asdict(position) for name, position in self.positions.items()},
            "row_count": dict(self.row_count),
            "contract_hash": self.contract_hash,
            "code_version": self.code_version,
            "run_id": self.run_id,
            "actor": self.actor,
            "parents": dict(self.parents),
            "committed_at": _text(self.committed_at),
            "created_at": _text(self.created_at),
            "previous_hash": self.previous_hash,
            **({"generations": dict(self.generations)} if self.generations else {}),
        }
        canonical = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Cut(_Lying):
    """One consistent place in all tables of a product.

    Attributes:
        version: the version that is exactly this cut; None if it lies between two.
        tables: the last ``_seq`` included, per table; -1 for none.
        lsn: the highest commit LSN included, if the product has exactly one input.
        committed_at: the running maximum of commit times.
        generations: of the tables that lie in another than the first.
    """

    version: int | None
    tables: Mapping[str, int]
    lsn: int | None
    committed_at: datetime
    generations: Mapping[str, int] = field(default_factory=dict)


def generation_at(row: VersionRow | Cut | None, table: str) -> int:
    """In which generation a table lies at a version or cut; the first before there is one."""
    return row.generation(table) if row else 1


@dataclass(frozen=True, slots=True)
class Horizon:
    """How far the ledger has observed the product's source: as of never looks beyond it.

    Attributes:
        tables: the last durable ``_seq`` of each of the product's tables.
        lsn: everything that committed up to here is held.
        observed_at: by the source's clock; every transaction that commits later commits after it.
    """

    tables: Mapping[str, int]
    lsn: int
    observed_at: datetime


def parse_as_of(text: str) -> int | datetime | Lsn:
    """Read a version number, an LSN (``X/Y``) or an ISO 8601 moment.

    Raises:
        AsOfRefused: if the text is none of them.
    """
    if text.isdecimal():
        return int(text)
    try:
        return Lsn.parse(text) if "/" in text else _zoned(datetime.fromisoformat(text))
    except ValueError:
        raise AsOfRefused(
            f"{text!r} is no version, position or moment",
            hint="write a version number such as 12, a position such as 0/16B3748, "
            "or a moment such as 2026-03-01T12:00:00+01:00",
        ) from None


class VersionLog:
    """The versions of one product; the table is created by the first append."""

    def __init__(self, uri: str) -> None:
        self.records = RecordLog(
            uri,
            _SCHEMA,
            column="version",
            statistics=["committed_at", "lsn"],
            description="One row per product version: a consistent cut over all of its tables.",
        )

    @classmethod
    def ensure(cls, uri: str) -> VersionLog:
        """Open the product's version log, or create it now."""
        log = cls(uri)
        log.records.create()
        return log

    @classmethod
    def open(cls, uri: str) -> VersionLog:
        """Open an existing version log.

        Raises:
            TableMissing: if the product has none yet.
        """
        log = cls(uri)
        _ = log.records.table
        return log

    def append(
        self,
        *,
        tables: Mapping[str, int],
        positions: Mapping[str, InputPosition],
        row_count: Mapping[str, int],
        contract_hash: str,
        code_version: str,
        run_id: str,
        actor: str,
        committed_at: datetime | None,
        parents: Mapping[str, int] | None = None,
        created_at: datetime | None = None,
        generations: Mapping[str, int] | None = None,
    ) -> VersionRow:
        """Append the next version, durably.

        Args:
            tables: the cut.
            positions: how far each input was read.
            row_count: changes since the version before, per op.
            contract_hash: of the contract in force.
            code_version: of this program.
            run_id: of the run.
            actor: who runs it.
            committed_at: the latest commit time among the new changes; an earlier one than the
                version before has is raised to that, and None means that there are none.
            parents: versions of the input products.
            created_at: now, unless a test says otherwise.
            generations: in which each table lies; the first where nothing is said.

        Raises:
            Fenced: if another writer has appended a version.
            LakeError: if a table's ``_seq`` or generation is below that of the version before.
            StorageFull: if the disk is full.
        """
        previous = self.latest()
        created = _zoned(created_at or datetime.now(UTC))
        later = {table: number for table, number in (generations or {}).items() if number > 1}
        reached = _zoned(committed_at) if committed_at is not None else None
        if previous is not None:
            if back := [t for t, seq in previous.tables.items() if tables.get(t, seq) < seq]:
                raise LakeError(f"{self.records.uri}: tables {back} go back behind the version before")
            if older := [t for t in tables if later.get(t, 1) < previous.generation(t)]:
                raise LakeError(f"{self.records.uri}: tables {older} go back to an earlier generation")
            reached = max(previous.committed_at, reached or previous.committed_at)
        draft = VersionRow(
            version=self.records.number + 1,
            tables=dict(tables),
            positions=dict(positions),
            row_count=dict(row_count),
            contract_hash=contract_hash,
            code_version=code_version,
            run_id=run_id,
            actor=actor,
            parents=dict(parents or {}),
            committed_at=reached or created,
            created_at=created,
            previous_hash=previous.hash if previous else "",
            generations=later,
        )
        row = _sealed(draft)
        self.records.append(_record(row))
        return row

    def refresh(self) -> int:
        """Move to the newest version; returns its number (0: none). Only for readers."""
        return self.records.refresh()

    def latest(self) -> VersionRow | None:
        """The newest version."""
        record = self.records.latest()
        return None if record is None else _row(record)

    def at(self, version: int) -> VersionRow | None:
        """One version by its number."""
        record = self.records.at(version)
        return None if record is None else _row(record)

    def between(self, first: int, last: int) -> list[VersionRow]:
        """Versions by number, inclusive, in order."""
        return [_row(record) for record in self.records.between(first, last)]

    def generations(self, table: str, upto: Cut | VersionRow) -> list[tuple[int, int]]:
        """The generations of a table up to a cut, oldest first, each with the last ``_seq`` that counts."""
        last = self.latest()
        number = upto.version or (last.version if last else 0)
        found = [(upto.generation(table), upto.tables.get(table, -1))]
        while found[0][0] > 1:
            number = bisect_left(
                range(1, number + 1), found[0][0], key=lambda version: generation_at(self.at(version), table)
            )
            row = self.at(number)
            if row is None:
                break
            found.insert(0, (row.generation(table), row.tables.get(table, -1)))
        return found

    def resolve(
        self,
        as_of: AsOf | None,
        *,
        log: Callable[[str, int], ChangeLog],
        horizon: Horizon | None = None,
    ) -> Cut:
        """The cut that a version, a moment or a position means.

        A moment means: up to the last position whose running maximum of commit times is not later,
        over all tables (commit times are not in the order of positions). An LSN means: all
        transactions whose commit LSN is not above it. None means the newest version.

        Args:
            as_of: what was asked for.
            log: opens the change log of a table by the name it has in ``tables``, and its generation;
                called only for the tables that changed around the moment asked for.
            horizon: what the ledger has observed beyond the newest version.

        Raises:
            AsOfRefused: before the first version, or beyond what was observed; says the range.
        """
        latest = self.latest()
        if latest is None:
            raise AsOfRefused("the product has no version yet", hint="run its capture once")
        asked = parse_as_of(as_of) if isinstance(as_of, str) else as_of
        if asked is None:
            return _cut(latest)
        if isinstance(asked, datetime):
            return self._between(latest, "committed_at", _zoned(asked), log, horizon)
        if isinstance(asked, Lsn):
            if latest.lsn is None:
                raise AsOfRefused(
                    f"the product has {len(latest.positions)} inputs, so one position does not say where",
                    hint="ask for a version or a moment",
                )
            return self._between(latest, "lsn", asked, log, horizon)
        row = self.at(asked)
        if row is None:
            raise AsOfRefused(f"there is no version {asked}", available=[f"1 to {latest.version}"])
        return _cut(row)

    def _between(
        self,
        latest: VersionRow,
        column: str,
        value: datetime | Lsn,
        log: Callable[[str, int], ChangeLog],
        horizon: Horizon | None,
    ) -> Cut:
        """The cut for a bound on ``committed_at`` or ``lsn``, looking only between two versions."""
        found = self.records.last_upto(column, value)
        if found is None:
            raise self._refused(column, value, latest, horizon)
        below = _row(found)
        after = self.at(below.version + 1) if below.version < latest.version else latest
        assert after is not None  # Versions are dense.
        # A next generation comes as a whole with its version: until then its table is what it was.
        same = [table for table in after.tables if after.generation(table) == below.generation(table)]
        upper = {table: after.tables[table] for table in same}
        if below.version == latest.version:
            observed = horizon is not None and value <= _reach(horizon, column)
            if value > found[column] and not observed:
                raise self._refused(column, value, latest, horizon)
            # Also at the version's own moment: several transactions may have committed then.
            for table, seq in horizon.tables.items() if horizon is not None and observed else ():
                upper[table] = max(seq, upper.get(table, -1))
        lower = {table: below.tables.get(table, -1) for table in upper}
        rows = [
            _coordinates(log(table, below.generation(table)), lower[table], seq).with_columns(
                table=pl.lit(table)
            )
            for table, seq in upper.items()
            if seq > lower[table]
        ]
        if not rows:
            return _cut(below)
        return _narrowed(below, upper, pl.concat(rows), value)

    def _refused(
        self, column: str, value: datetime | Lsn, latest: VersionRow, horizon: Horizon | None
    ) -> AsOfRefused:
        first = self.at(1)
        assert first is not None  # There is a latest.
        if column == "lsn":
            start: Any = Lsn(first.lsn or 0)
            end: Any = Lsn(max(latest.lsn or 0, horizon.lsn if horizon else 0))
        else:
            start = first.committed_at
            end = max(latest.committed_at, horizon.observed_at if horizon else latest.committed_at)
        asked, begins, ends = (str(moment) for moment in (value, start, end))
        where = "before the first version" if value < start else "beyond what was observed"
        return AsOfRefused(f"{asked} is {where}", available=[f"{begins} to {ends}"])


def _coordinates(log: ChangeLog, after: int, upto: int) -> pl.DataFrame:
    columns = ["_seq", "_position", "_ordinal", "_committed_at"]
    return log.scan(after, upto, columns).collect()


def _narrowed(below: VersionRow, upper: Mapping[str, int], rows: pl.DataFrame, value: datetime | Lsn) -> Cut:
    """Cut the rows between two versions before the first position that lies beyond ``value``."""
    if isinstance(value, Lsn):
        beyond = rows.filter(pl.col("_position") > int(value))
    else:
        late = rows.filter(pl.col("_committed_at") > value)
        first = late.select("_position", "_ordinal").sort("_position", "_ordinal").head(1).rows()
        beyond = rows.clear()
        if first:
            position, ordinal = first[0]
            at = pl.col("_position")
            beyond = rows.filter((at > position) | ((at == position) & (pl.col("_ordinal") >= ordinal)))
    starts = dict(beyond.group_by("table").agg(pl.col("_seq").min()).iter_rows())
    tables = {table: starts.get(table, seq + 1) - 1 for table, seq in upper.items()}
    limits = pl.DataFrame(
        {"table": list(tables), "limit": list(tables.values())}, schema_overrides={"limit": pl.Int64}
    )
    kept = rows.join(limits, on="table").filter(pl.col("_seq") <= pl.col("limit"))
    if kept.is_empty():
        return _cut(below)
    position, moment = kept.select(pl.col("_position").max(), pl.col("_committed_at").max()).row(0)
    return Cut(
        version=None,
        tables={**below.tables, **tables},
        lsn=None if below.lsn is None else max(below.lsn, position),
        committed_at=max(below.committed_at, moment or below.committed_at),
        generations=dict(below.generations),
    )


def _reach(horizon: Horizon, column: str) -> Any:  # noqa: ANN401 - what the column holds
    return Lsn(horizon.lsn) if column == "lsn" else _zoned(horizon.observed_at)


def _cut(row: VersionRow) -> Cut:
    return Cut(row.version, dict(row.tables), row.lsn, row.committed_at, dict(row.generations))


def _sealed(row: VersionRow) -> VersionRow:
    values = {name: getattr(row, name) for name in VersionRow.__slots__}
    return VersionRow(**(values | {"hash": row.digest()}))


def _record(row: VersionRow) -> dict[str, Any]:
    return {
        "version": row.version,
        "tables": sorted(row.tables.items()),
        "positions": [{"input": name, **asdict(at)} for name, at in sorted(row.positions.items())],
        "lsn": row.lsn,
        "row_count": sorted(row.row_count.items()),
        "contract_hash": row.contract_hash,
        "code_version": row.code_version,
        "run_id": row.run_id,
        "actor": row.actor,
        "parents": sorted(row.parents.items()),
        "committed_at": row.committed_at,
        "created_at": row.created_at,
        "previous_hash": row.previous_hash,
        "hash": row.hash,
        "generations": sorted(row.generations.items()) or None,
    }


def _row(record: Mapping[str, Any]) -> VersionRow:
    return VersionRow(
        version=record["version"],
        tables=dict(record["tables"]),
        positions={
            at["input"]: InputPosition(at["lsn"], at["ordinal"], at["end_lsn"]) for at in record["positions"]
        },
        row_count=dict(record["row_count"]),
        contract_hash=record["contract_hash"],
        code_version=record["code_version"],
        run_id=record["run_id"],
        actor=record["actor"],
        parents=dict(record["parents"]),
        committed_at=record["committed_at"],
        created_at=record["created_at"],
        previous_hash=record["previous_hash"],
        hash=record["hash"],
        generations=dict(record.get("generations") or ()),
    )


def _zoned(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _text(moment: datetime) -> str:
    return _zoned(moment).isoformat(timespec="microseconds")
