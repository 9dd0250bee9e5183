"""The local catalog: one product's own record, published beside its data as ``catalog/record.json``.

The record is all that the enterprise catalog needs of a product. It is made from the product's
folder and from its tables, so it can be written again at any time; it is replaced as a whole.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import DeltaError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mesh_assets.catalog.releases import Releases
from mesh_assets.contract.discovery import Discovery, Product, discover
from mesh_assets.contract.loader import from_content
from mesh_assets.contract.model import Contract
from mesh_assets.errors import LakeError, LayoutUnknown, MeshError, TableMissing
from mesh_assets.lake.current import Current
from mesh_assets.lake.file import overlapping
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.storage import storage_of
from mesh_assets.lake.table import Table
from mesh_assets.lake.version import VersionLog, VersionRow
from mesh_assets.names import CHANGES, CURRENT, Layout, ProductName
from mesh_assets.quality.concealment import (
    concealed_statistics,
    restricted,
    told_outcome,
)

FORMAT = 1
RECORD_FILE = "record.json"
PUBLISH_SECONDS = 10.0
VERSION_COUNT = 32
"""How many of the newest versions a record carries: a reader that looks often needs no other file."""

_STORAGE_ERRORS = (MeshError, DeltaError, OSError, pa.ArrowException, pl.exceptions.PolarsError)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DomainRecord(_Model):
    """The product's domain."""

    name: str
    description: str = ""
    owner: str = ""


class ContractRecord(_Model):
    """The contract in force, whole."""

    version: str
    hash: str
    file: str
    content: dict[str, Any]


class ReleaseRecord(_Model):
    """One released contract: which columns it promised, and since when."""

    version: str
    hash: str
    released_at: datetime
    columns: dict[str, list[str]]


class SchemaRecord(_Model):
    """One version of a table's schema at its source."""

    number: int
    recorded_at: datetime
    columns: dict[str, str] = Field(description="Source type by column name.")


class TableRecord(_Model):
    """One table as it lies in the lake; a Delta version of -1 says that it is not there yet."""

    name: str
    change_count: int = 0
    changes_delta_version: int = -1
    current_delta_version: int = -1
    folded_seq: int = -1
    folded_row_count: int = 0
    columns: dict[str, str] = Field(default={}, description="Arrow type by column name.")
    schemas: list[SchemaRecord] = []


class InputRecord(_Model):
    """What the product is made of: a table of its source, or a table of another product."""

    kind: Literal["source", "product"]
    name: str = Field(description="domain.source, or domain.product.")
    table: str = Field(description="schema.table at the source, or the product's table.")
    output: str = Field(default="", description="The table that it feeds; empty: not known which.")
    key: dict[str, str] = Field(default={}, description="Key path: own column -> the input's column.")


class CheckRecord(_Model):
    """How one rule came out at the newest evaluation."""

    rule: str
    table: str = ""
    columns: list[str] = []
    outcome: str
    severity: str = "error"
    blocking: bool = False
    dimension: str = ""
    description: str = ""
    message: str = ""
    observed: str = ""
    unexpected_count: int | None = None
    row_count: int | None = None
    quarantined_count: int = 0
    version: int | None = None
    run_id: str = ""
    at: datetime | None = None


class PositionRecord(_Model):
    """How far one input was read."""

    lsn: int
    ordinal: int = 0
    end_lsn: int = 0


class VersionRecord(_Model):
    """One product version (:class:`mesh_assets.lake.version.VersionRow`)."""

    version: int
    tables: dict[str, int]
    positions: dict[str, PositionRecord]
    lsn: int | None = None
    row_count: dict[str, int]
    contract_hash: str
    code_version: str
    run_id: str
    actor: str
    parents: dict[str, int]
    committed_at: datetime
    created_at: datetime
    previous_hash: str
    hash: str
    generations: dict[str, int] = {}


class LocalRecord(_Model):
    """A product's record.

    Attributes:
        versions: the newest ones, oldest first; all others are in the product's version log.
        statistics: the newest rows of the product's statistics table.
        consumers: products that subscribe, as far as was known when this was written.
    """

    format: int
    product: str
    derived: bool
    published_at: datetime
    code_version: str
    domain: DomainRecord
    contract: ContractRecord
    releases: list[ReleaseRecord] = []
    tables: list[TableRecord] = []
    inputs: list[InputRecord] = []
    consumers: list[str] = []
    checks: list[CheckRecord] = []
    statistics: list[dict[str, Any]] = []
    versions: list[VersionRecord] = []

    @property
    def name(self) -> ProductName:
        """``domain.product``."""
        return ProductName.parse(self.product)

    @cached_property
    def promised(self) -> Contract:
        """The contract in force."""
        return from_content(self.contract.content, Path(self.contract.file))

    def to_json(self) -> bytes:
        """The record as its file holds it."""
        plain = self.model_dump(mode="json")
        text = json.dumps(plain, sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False)
        return f"{text}\n".encode()


def parse(data: bytes, where: str) -> LocalRecord:
    """Read a record's file.

    Raises:
        LayoutUnknown: if a newer program wrote it.
        LakeError: if it is damaged.
    """
    try:
        record = LocalRecord.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}"
        found = _format(data)
    else:
        if record.format <= FORMAT:
            return record
        found = record.format
    if found > FORMAT:
        raise LayoutUnknown(
            f"{where} has format {found}; this program knows formats up to {FORMAT}",
            hint="update the program: a newer one wrote here",
        )
    raise LakeError(
        f"{where} is damaged ({problem})", hint="remove it: the product's next shift writes it again"
    )


def _format(data: bytes) -> int:
    """The format that a record of another shape says it has; 0 if it says nothing."""
    try:
        found = json.loads(data).get("format")
    except (ValueError, AttributeError):
        return 0
    return found if isinstance(found, int) else 0


def read(layout: Layout, name: ProductName) -> LocalRecord | None:
    """A product's published record; None before the first.

    Raises:
        LakeError: if it is damaged, or a newer program wrote it.
    """
    storage = storage_of(layout.catalog(name))
    try:
        return parse(storage.read(RECORD_FILE), storage.address(RECORD_FILE))
    except FileNotFoundError:
        return None


def publish(layout: Layout, discovery: Discovery, name: ProductName) -> LocalRecord:
    """Make a product's record from its folder and its tables, and put it in place.

    Raises:
        UnknownName, ContractError: if there is no such product, or it is broken.
        StorageFull: if the disk is full.
    """
    record = make(layout, discovery, name)
    storage_of(layout.catalog(name)).write(RECORD_FILE, record.to_json())
    return record


class LocalCatalog:
    """Keeps the records of some products published, at most every :data:`PUBLISH_SECONDS`.

    A record that cannot be written is told to ``log`` and tried again when it is next due: the
    catalog never stops the work that it describes.

    Args:
        layout: where the products lie.
        discovery: what the products' folders say.
        names: whose records to keep.
        log: told of a failure and of its end.
        publish_seconds: the least time between two publications.
        clock: tells the time by which that is, in seconds.
    """

    def __init__(
        self,
        layout: Layout,
        discovery: Discovery,
        names: Iterable[ProductName],
        *,
        log: Callable[[str], None] = lambda message: None,
        publish_seconds: float = PUBLISH_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._layout = layout
        self._discovery = discovery
        self._names = tuple(names)
        self._log = log
        self._publish_seconds = publish_seconds
        self._clock = clock
        self._written_at = -float("inf")
        self._failures: dict[ProductName, str] = {}

    @classmethod
    def of(
        cls,
        layout: Layout,
        products: Iterable[Product],
        *,
        log: Callable[[str], None] = lambda message: None,
        publish_seconds: float = PUBLISH_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> LocalCatalog:
        """For who holds products only: domains and consumers are read from the folders beside theirs."""
        chosen = list(products)
        found = discover(chosen[0].folder.parent.parent) if chosen else Discovery()
        whole = Discovery(found.domains, {**found.products, **{one.name: one for one in chosen}}, ())
        names = [one.name for one in chosen]
        return cls(layout, whole, names, log=log, publish_seconds=publish_seconds, clock=clock)

    @property
    def due(self) -> bool:
        """Whether the last publication is long enough ago for another."""
        return self._clock() - self._written_at >= self._publish_seconds

    @property
    def failed(self) -> bool:
        """Whether a record could not be written when that was last tried."""
        return bool(self._failures)

    def write(self, *, failed_only: bool = False) -> bool:
        """Publish now, or try again what could not be written; whether every record could."""
        self._written_at = self._clock()
        for name in tuple(self._failures) if failed_only else self._names:
            try:
                publish(self._layout, self._discovery, name)
            except _STORAGE_ERRORS as error:
                if self._failures.get(name) != str(error):
                    self._log(f"catalog: the record of {name} could not be written: {error}")
                self._failures[name] = str(error)
            else:
                if self._failures.pop(name, None) is not None:
                    self._log(f"catalog: the record of {name} is written again")
        return not self._failures


def make(
    layout: Layout, discovery: Discovery, name: ProductName, *, at: datetime | None = None
) -> LocalRecord:
    """A product's record as its folder and its tables are now.

    Raises:
        UnknownName, ContractError: if there is no such product, or it is broken.
        LakeError: if a table cannot be read.
    """
    product = discovery.product(name)
    contract = product.contract
    domain = discovery.domains.get(name.domain)
    versions = _versions(layout, name)
    return LocalRecord(
        format=FORMAT,
        product=str(name),
        derived=product.derived,
        published_at=(at or datetime.now(UTC)).astimezone(UTC),
        code_version=metadata.version("mesh-assets"),
        domain=DomainRecord(name=name.domain)
        if domain is None
        else DomainRecord(name=domain.name, description=domain.description, owner=domain.owner),
        contract=ContractRecord(
            version=contract.version,
            hash=contract.hash,
            file=str(contract.path),
            content=dict(contract.content),
        ),
        releases=[
            ReleaseRecord(
                version=release.contract.version,
                hash=release.contract.hash,
                released_at=release.released_at,
                columns={
                    table.name: [column.name for column in table.columns] for table in release.contract.tables
                },
            )
            for release in Releases(layout.catalog(name)).all()
        ],
        tables=_tables(layout, product, versions[-1] if versions else None),
        inputs=_inputs(product),
        consumers=[str(one) for one in discovery.consumers(name)],
        checks=_checks(layout.catalog(name, "checks"), contract),
        statistics=_statistics(layout.catalog(name, "statistics"), contract),
        versions=[version_record(row) for row in versions],
    )


def version_record(row: VersionRow) -> VersionRecord:
    """A version as records carry it."""
    positions = {
        name: PositionRecord(lsn=at.lsn, ordinal=at.ordinal, end_lsn=at.end_lsn)
        for name, at in row.positions.items()
    }
    return VersionRecord(
        version=row.version,
        tables=dict(row.tables),
        positions=positions,
        lsn=row.lsn,
        row_count=dict(row.row_count),
        contract_hash=row.contract_hash,
        code_version=row.code_version,
        run_id=row.run_id,
        actor=row.actor,
        parents=dict(row.parents),
        committed_at=row.committed_at,
        created_at=row.created_at,
        previous_hash=row.previous_hash,
        hash=row.hash,
        generations=dict(row.generations),
    )


def _versions(layout: Layout, name: ProductName) -> list[VersionRow]:
    try:
        log = VersionLog.open(layout.versions(name))
    except TableMissing:
        return []
    last = log.records.number
    return log.between(max(1, last - VERSION_COUNT + 1), last)


def _tables(layout: Layout, product: Product, version: VersionRow | None) -> list[TableRecord]:
    schemas = _schemas(layout, product)
    found = []
    for table in product.contract.tables:
        generation = version.generation(table.name) if version else 1
        changes_uri = layout.table(product.name, CHANGES, table.name, generation)
        current_uri = layout.table(product.name, CURRENT, table.name, generation)
        known: dict[str, Any] = {"name": table.name, "schemas": schemas.get(table.physical_name, [])}
        if Table.exists(changes_uri):
            log = ChangeLog.open(changes_uri)
            row = [field for field in log.table.schema if not field.name.startswith("_")]
            known |= {
                "change_count": log.seq + 1,
                "changes_delta_version": log.table.version,
                "columns": {field.name: str(field.type) for field in row},
            }
        if Table.exists(current_uri):
            current = Current.open(current_uri)
            known |= {
                "current_delta_version": current.table.version,
                "folded_seq": current.folded,
                "folded_row_count": current.row_count,
            }
        found.append(TableRecord(**known))
    return found


def _schemas(layout: Layout, product: Product) -> dict[str, list[SchemaRecord]]:
    """Schema versions by ``schema.table`` at the source."""
    source = product.definition.source
    uri = layout.source(product.name.domain, source, "schemas") if source else ""
    if not source or not Table.exists(uri):
        return {}
    found: dict[tuple[str, int], SchemaRecord] = {}
    for row in Table.open(uri).read().to_pylist():
        key = (row["table"], row["schema_version"])
        recorded_at = min(row["recorded_at"], found[key].recorded_at) if key in found else row["recorded_at"]
        columns = {column["name"]: column["type_name"] for column in json.loads(row["columns"])}
        found[key] = SchemaRecord(number=key[1], recorded_at=recorded_at, columns=columns)
    by_table: dict[str, list[SchemaRecord]] = {}
    for (table, _), schema in sorted(found.items()):
        by_table.setdefault(table, []).append(schema)
    return by_table


def _inputs(product: Product) -> list[InputRecord]:
    definition, contract = product.definition, product.contract
    if definition.source is not None:
        return [
            InputRecord(
                kind="source",
                name=f"{product.name.domain}.{definition.source}",
                table=table.physical_name,
                output=table.name,
            )
            for table in contract.tables
        ]
    only = contract.tables[0].name if len(contract.tables) == 1 else ""
    return [
        InputRecord(
            kind="product",
            name=str(one.product),
            table=one.table,
            output=only,
            key=dict(one.key or {}),
        )
        for one in definition.inputs
    ]


def _checks(uri: str, contract: Contract) -> list[CheckRecord]:
    """The outcome of each rule at the newest evaluation in the product's table of outcomes."""
    rows = [told_outcome(row, contract) for row in _newest(uri, "evaluation")]
    known = [name for name in CheckRecord.model_fields if name != "outcome"]
    return [
        CheckRecord(outcome=row["status"], **{name: row[name] for name in known if row.get(name) is not None})
        for row in sorted(rows, key=lambda row: str(row["rule"]))
    ]


def _statistics(uri: str, contract: Contract) -> list[dict[str, Any]]:
    """What is known of the columns since their statistics were last refreshed."""
    hidden = {(table.name, name) for table in contract.tables for name in restricted(table)}
    rows = [
        _plain(concealed_statistics(row) if (row["table"], row["column"]) in hidden else row)
        for row in _newest(uri, "number")
    ]
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))


def _plain(value: Any) -> Any:  # noqa: ANN401 - any value to a JSON one
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and value not in (float("inf"), -float("inf")) and value == value:
        return value
    if value is None or isinstance(value, str | bool | int):
        return value
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _newest(uri: str, column: str) -> list[dict[str, Any]]:
    """The rows with the highest ``column`` of a table in which it only grows."""
    try:
        table = Table.open(uri)
    except TableMissing:
        return []
    files = table.files()
    last = max((file.high[column] for file in files if column in file.high), default=None)
    if last is None:
        return []
    rows = table.read(overlapping(files, column, last, last)).filter(pc.field(column) == last)
    found: list[dict[str, Any]] = rows.to_pylist(maps_as_pydicts="lossy")
    return found
