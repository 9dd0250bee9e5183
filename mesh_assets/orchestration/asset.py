"""Asset specifications of a product's tables, made from its contract."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

import dagster as dg

from mesh_assets.contract.discovery import Product
from mesh_assets.contract.model import ColumnContract, TableContract
from mesh_assets.errors import MeshError
from mesh_assets.names import CHANGES, CURRENT, Layout, ProductName
from mesh_assets.settings import Settings

COLUMN_LINEAGE = "dagster/column_lineage"
COLUMN_SCHEMA = "dagster/column_schema"
ROW_COUNT = "dagster/row_count"
TABLE_NAME = "dagster/table_name"
URI = "dagster/uri"
SOURCE = "mesh/source"
INPUTS = "mesh/inputs"
VERSION = "mesh/version"

LOG_COLUMNS: Mapping[str, tuple[str, str]] = {
    "_seq": ("bigint", "Our own dense order within this log, from 0."),
    "_op": ("string", "c created, u updated, d deleted, r read by a snapshot, t truncated."),
    "_position": ("bigint", "Commit LSN at the source; of a derived product the version it belongs to."),
    "_ordinal": ("bigint", "Order within the transaction or version, from 0."),
    "_xid": ("bigint", "Transaction at the source; 0 for a snapshot and in a derived product."),
    "_committed_at": ("timestamp", "When the transaction was committed at the source."),
    "_captured_at": ("timestamp", "When the change was captured."),
    "_schema_version": ("int", "Version of the source table's schema."),
    "_unchanged": ("list<string>", "Columns that the source did not send because they did not change."),
    "_before": ("struct", "The row before the change, as far as the replica identity gives it."),
    "_exact": ("map<string, string>", "Exact text of values that do not fit their column's type."),
    "_rejected_by": ("list<string>", "Blocking expectations that the change failed."),
}
"""Columns that a change log has besides the row's: name -> (type, meaning)."""

_MIN_FRESHNESS = timedelta(minutes=5)
_CLASSIFICATIONS = ("public", "internal", "confidential", "restricted")


def asset_key(name: ProductName, kind: str, table: str) -> dg.AssetKey:
    """Dagster's key of one table of a product."""
    return dg.AssetKey(name.asset_key(kind, table))


def group_name(name: ProductName) -> str:
    """Dagster's group of a product; with its domain, since the graph of the whole mesh shows only this."""
    return f"{name.domain}_{name.product}"


def asset_specs(product: Product, settings: Settings) -> list[dg.AssetSpec]:
    """Two assets per table: its change log, and its current rows folded from that."""
    return [
        spec
        for table in product.contract.tables
        for spec in (_changes(product, table, settings), _current(product, table, settings))
    ]


def freshness_window(product: Product) -> timedelta | None:
    """How old a product's last report may be, from the contract's promise of latency.

    Dagster judges the age of the last report, and an idle product is reported only now and then:
    hence at least five minutes. The promise itself is measured as lag.
    """
    promise = product.contract.promise("latency")
    if promise is None or promise.seconds is None:
        return None
    return max(_MIN_FRESHNESS, timedelta(seconds=promise.seconds))


def column_schema(columns: Sequence[ColumnContract], *, log: bool = False) -> dg.TableSchema:
    """Dagster's column schema of a table, or of its change log."""
    return dg.TableSchema(columns=[*map(_column, columns), *(_log_columns() if log else ())])


def captured_schema(
    columns: Sequence[ColumnContract], captured: Mapping[str, str], *, log: bool
) -> dg.TableSchema | None:
    """The column schema of a table that holds more than its contract names; None if it does not.

    Args:
        columns: the contract's.
        captured: type at the source by column.
        log: whether it is the change log.
    """
    named = {column.name for column in columns}
    more = [
        dg.TableColumn(name=name, type=kind, description="Captured, but not in the contract.")
        for name, kind in captured.items()
        if name not in named
    ]
    if not more:
        return None
    return dg.TableSchema(columns=[*map(_column, columns), *more, *(_log_columns() if log else ())])


def broken_spec(name: ProductName, error: MeshError) -> dg.AssetSpec:
    """The asset that stands in for a product whose definition is wrong."""
    return dg.AssetSpec(
        key=[name.domain, name.product],
        group_name=group_name(name),
        description=f"**This product is not loaded.**\n\n```\n{error}\n```",
        kinds={"broken"},
        tags={"mesh/state": "broken"},
    )


def input_keys(product: Product) -> list[dg.AssetKey]:
    """The current tables that a derived product is made of, each once; none for a captured one."""
    return list(
        dict.fromkeys(asset_key(one.product, CURRENT, one.table) for one in product.definition.inputs)
    )


def _changes(product: Product, table: TableContract, settings: Settings) -> dg.AssetSpec:
    if product.derived:
        inputs = ", ".join(sorted({str(one.product) for one in product.definition.inputs}))
        return _spec(
            product,
            table,
            CHANGES,
            settings,
            kinds={"deltalake", "polars"},
            description=(
                f"Every change of `{table.name}` that follows from a change of {inputs}, in order, "
                f"append-only. {_text(product, table)}"
            ),
            deps=input_keys(product),
        )
    return _spec(
        product,
        table,
        CHANGES,
        settings,
        kinds={"deltalake", "postgres"},
        description=(
            f"Every change of `{table.physical_name}` at source `{product.definition.source}`, in order, "
            f"append-only. {_text(product, table)}"
        ),
    )


def _current(product: Product, table: TableContract, settings: Settings) -> dg.AssetSpec:
    window = freshness_window(product)
    return _spec(
        product,
        table,
        CURRENT,
        settings,
        kinds={"deltalake", "polars"},
        description=(
            f"The latest row of every key of `{table.name}`, folded from its change log. "
            f"Reads through the mesh add what is not folded yet. {_text(product, table)}"
        ),
        deps=[asset_key(product.name, CHANGES, table.name)],
        metadata={COLUMN_LINEAGE: _folded(product.name, table)},
        freshness_policy=dg.FreshnessPolicy.time_window(fail_window=window, warn_window=window * 0.7)
        if window
        else None,
    )


def _text(product: Product, table: TableContract) -> str:
    parts = [table.description or product.contract.description]
    if product.contract.usage:
        parts.append(f"\n\n**Usage.** {product.contract.usage}")
    if product.contract.limitations:
        parts.append(f"\n\n**Limitations.** {product.contract.limitations}")
    return " ".join(part for part in parts if part)


def _spec(
    product: Product,
    table: TableContract,
    kind: str,
    settings: Settings,
    *,
    kinds: set[str],
    description: str,
    deps: Sequence[dg.AssetKey] = (),
    freshness_policy: dg.FreshnessPolicy | None = None,
    metadata: Mapping[str, object] | None = None,
) -> dg.AssetSpec:
    contract, name = product.contract, product.name
    classified = [c.classification for c in table.columns if c.classification in _CLASSIFICATIONS]
    tags = {"mesh/layer": kind, "mesh/product": str(name)}
    if classified:
        tags["mesh/classification"] = max(classified, key=_CLASSIFICATIONS.index)
    references: list[dg.LocalFileCodeReference | dg.UrlCodeReference] = [
        dg.LocalFileCodeReference(
            file_path=str(contract.path.absolute()), line_number=table.line, label="contract"
        )
    ]
    code_version = f"{contract.version}-{contract.hash[:8]}"
    origin: dict[str, str] = {SOURCE: f"{name.domain}.{product.definition.source}"}
    if product.derived:
        code_version += f"-{product.code_hash[:8]}"
        origin = {INPUTS: ", ".join(str(one.product) for one in product.definition.inputs)}
        references.append(
            dg.LocalFileCodeReference(file_path=str(product.definition.transform), label="transform")
        )
    return dg.AssetSpec(
        key=asset_key(name, kind, table.name),
        group_name=group_name(name),
        kinds=kinds,
        owners=list(contract.owners),
        code_version=code_version,
        description=description,
        deps=list(deps),
        freshness_policy=freshness_policy,
        tags=tags,
        metadata={
            COLUMN_SCHEMA: column_schema(table.columns, log=kind == CHANGES),
            TABLE_NAME: f"{name}.{table.name}",
            URI: Layout(settings.lake_root).table(name, kind, table.name),
            **origin,
            **(metadata or {}),
            "mesh/contract": contract.id,
            "mesh/contract_version": contract.version,
            "dagster/code_references": dg.CodeReferencesMetadataValue(code_references=references),
        },
    )


def _folded(name: ProductName, table: TableContract) -> dg.TableColumnLineage:
    """A current table's columns are those of its change log."""
    key = asset_key(name, CHANGES, table.name)
    return dg.TableColumnLineage(
        {column.name: [dg.TableColumnDep(asset_key=key, column_name=column.name)] for column in table.columns}
    )


def _column(column: ColumnContract) -> dg.TableColumn:
    other = ["primary key"] if column.key else []
    tags = {"mesh/classification": column.classification} if column.classification else {}
    return dg.TableColumn(
        name=column.name,
        type=column.physical_type or column.logical_type,
        description=column.description or column.business_name or None,
        constraints=dg.TableColumnConstraints(
            nullable=not (column.required or column.key), unique=column.unique, other=other
        ),
        tags=tags,
    )


def _log_columns() -> Iterator[dg.TableColumn]:
    for name, (kind, meaning) in LOG_COLUMNS.items():
        yield dg.TableColumn(name=name, type=kind, description=meaning)


def fingerprint(text: str) -> str:
    """A short name for a longer text, for cursors and tags."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
