"""The consolidated change history: one row per version of every product.

A product's versions are a chain: each holds the hash of the one before. So what is folded already
says by its last hash whether the product's log goes on from there; if not, all of it is read again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mesh_assets.catalog.canonical import Bucket, Canonical, Content, bucket_of
from mesh_assets.catalog.local import LocalRecord, VersionRecord
from mesh_assets.catalog.shape import CHANGES
from mesh_assets.errors import LakeError, TableMissing
from mesh_assets.lake.table import Table
from mesh_assets.names import Layout, ProductName

SEGMENT = 1024
"""Versions that are sealed together: a file of their own, which is never written again."""

_LOG = [name for name in CHANGES.schema.names if name not in ("product", "domain", "change_count")]
_FINGERPRINT = 16
_GENERATIONS = "generations"


def contents(
    layout: Layout, table: Canonical, records: Sequence[LocalRecord], problems: list[str]
) -> dict[str, Content]:
    """What must be put into the table so that it holds every version that the records tell of.

    What cannot be read is added to ``problems``; such a product keeps the rows that it has, and is
    tried again by the next fold.
    """
    live = table.buckets()
    by_bucket: dict[str, list[LocalRecord]] = {}
    for record in records:
        by_bucket.setdefault(bucket_of(record.product), []).append(record)
    found: dict[str, Content] = {}
    for bucket in sorted({*by_bucket, *(name.split("-")[0] for name in live)}):
        own = sorted(by_bucket.get(bucket, ()), key=lambda record: record.product)
        mine = {name: one for name, one in live.items() if name.split("-")[0] == bucket}
        found |= _bucket(layout, table, bucket, mine, own, problems)
    return found


def buckets_of(table: Canonical, product: str) -> list[str]:
    """The buckets that hold versions of one product."""
    bucket = bucket_of(product)
    return [name for name in table.buckets() if name == bucket or name.startswith(f"{bucket}-{product}-")]


def _bucket(
    layout: Layout,
    table: Canonical,
    bucket: str,
    live: Mapping[str, Bucket],
    records: list[LocalRecord],
    problems: list[str],
) -> dict[str, Content]:
    print_ = _fingerprint(records)
    open_now = live.get(bucket)
    sealed = {name: one for name, one in live.items() if name != bucket}
    wanted = {
        _sealed_name(bucket, record.product, number)
        for record in records
        for number in range(_latest(record) // SEGMENT)
    }
    if (open_now.fingerprint if open_now else "") == print_ and wanted == set(sealed):
        return {}
    held = table.read([bucket])
    found: dict[str, Content] = {}
    open_rows: list[pa.Table] = []
    for record in records:
        try:
            rows, again = _rows(layout, record, held, sealed, bucket)
        except LakeError as error:
            problems.append(str(error))
            print_ = ""
            wanted |= {name for name in sealed if name.startswith(f"{bucket}-{record.product}-")}
            open_rows.append(held.filter(pc.field("product") == record.product))
            continue
        cut = _latest(record) // SEGMENT
        for number in range(cut):
            name = _sealed_name(bucket, record.product, number)
            if name in sealed and not again:
                continue
            segment = _between(rows, number * SEGMENT + 1, (number + 1) * SEGMENT)
            found[name] = Content(segment, _last_hash(segment))
        open_rows.append(_between(rows, cut * SEGMENT + 1, _latest(record)))
    for name in sealed.keys() - wanted:
        found[name] = Content(CHANGES.schema.empty_table())
    open_rows.append(CHANGES.schema.empty_table())
    found[bucket] = Content(pa.concat_tables(open_rows), print_)
    return found


def _rows(
    layout: Layout, record: LocalRecord, held: pa.Table, sealed: Mapping[str, Bucket], bucket: str
) -> tuple[pa.Table, bool]:
    """The versions of a product beyond its sealed segments; all of them, and True, if the chain broke."""
    latest = _latest(record)
    mine = held.filter(pc.field("product") == record.product)
    sealed_count = sum(name.startswith(f"{bucket}-{record.product}-") for name in sealed)
    last = max([sealed_count * SEGMENT, *mine["version"].to_pylist()])
    # The hash that the next version must go on from; a sealed file carries that of its last version.
    if mine.num_rows:
        ending = str(mine.sort_by("version")["hash"][-1].as_py())
    elif sealed_count:
        ending = sealed[_sealed_name(bucket, record.product, sealed_count - 1)].fingerprint
    else:
        ending = ""
    if latest < last:
        return _log(layout, record, 1), True
    if latest == last:
        goes_on = not latest or record.versions[-1].hash.startswith(ending)
        return (mine, False) if goes_on else (_log(layout, record, 1), True)
    tail = [row for row in record.versions if row.version > last]
    added = _table(record, tail) if tail[0].version == last + 1 else _log(layout, record, last + 1)
    before = str(added["previous_hash"][0].as_py())
    if not (before.startswith(ending) if last else not before):
        return _log(layout, record, 1), True
    return pa.concat_tables([mine, added]), False


def _log(layout: Layout, record: LocalRecord, first: int) -> pa.Table:
    """A product's versions from its own version log, up to the one its record names.

    Raises:
        LakeError: if the log does not hold them.
    """
    latest = _latest(record)
    if not latest:
        return CHANGES.schema.empty_table()
    uri = layout.versions(record.name)
    try:
        log = Table.open(uri)
    except TableMissing:
        raise LakeError(f"the record of {record.product} tells of version {latest}, {uri} is gone") from None
    rows = log.read(columns=[name for name in _LOG if name in log.schema.names])
    number = pc.field("version")
    rows = rows.filter((number >= first) & (number <= latest)).sort_by("version")
    if rows.num_rows != latest - first + 1 or rows["hash"][-1].as_py() != record.versions[-1].hash:
        raise LakeError(
            f"{uri} does not hold versions {first} to {latest} as the record of {record.product} tells",
            hint="the record is older than the log: the product's next shift writes it again",
        )
    return _complete(rows, record.name)


def _table(record: LocalRecord, versions: Sequence[VersionRecord]) -> pa.Table:
    """Versions that the record carries, as rows."""
    plain: list[dict[str, Any]] = [
        {
            **version.model_dump(),
            "tables": sorted(version.tables.items()),
            "row_count": sorted(version.row_count.items()),
            "parents": sorted(version.parents.items()),
            "generations": sorted(version.generations.items()) or None,
            "positions": [
                {"input": name, **at.model_dump()} for name, at in sorted(version.positions.items())
            ],
        }
        for version in versions
    ]
    schema = pa.schema([CHANGES.schema.field(name) for name in _LOG])
    return _complete(pa.Table.from_pylist(plain, schema=schema), record.name)


def _complete(rows: pa.Table, name: ProductName) -> pa.Table:
    count = rows.num_rows
    totals = [sum(number for _, number in ops or ()) for ops in rows["row_count"].to_pylist()]
    known = {
        "product": pa.repeat(pa.scalar(str(name)), count),
        "domain": pa.repeat(pa.scalar(name.domain), count),
        "change_count": pa.array(totals, pa.int64()),
    }
    if _GENERATIONS not in rows.column_names:
        # A version log to which nothing was appended since there are generations.
        known[_GENERATIONS] = pa.nulls(count, CHANGES.schema.field(_GENERATIONS).type)
    for column, values in known.items():
        rows = rows.append_column(column, values)
    return rows.select(CHANGES.schema.names).cast(CHANGES.schema)


def _between(rows: pa.Table, first: int, last: int) -> pa.Table:
    number = pc.field("version")
    return rows.filter((number >= first) & (number <= last))


def _last_hash(rows: pa.Table) -> str:
    return str(rows.sort_by("version")["hash"][-1].as_py())[:_FINGERPRINT]


def _latest(record: LocalRecord) -> int:
    return record.versions[-1].version if record.versions else 0


def _sealed_name(bucket: str, product: str, number: int) -> str:
    return f"{bucket}-{product}-{number:06d}"


def _fingerprint(records: Sequence[LocalRecord]) -> str:
    """Of what an open bucket holds: the hash of each product's newest version covers all before it."""
    beyond = [record for record in records if _latest(record) % SEGMENT]
    if not beyond:
        return ""
    told = "\n".join(f"{record.product} {_latest(record)} {record.versions[-1].hash}" for record in beyond)
    return hashlib.sha256(told.encode()).hexdigest()[:_FINGERPRINT]
