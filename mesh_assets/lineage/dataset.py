"""Tables as lineage describes them: what stays the same from event to event."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
from openlineage.client.facet_v2 import DatasetFacet

from mesh_assets.contract.model import Contract, TableContract
from mesh_assets.lineage import facet
from mesh_assets.lineage.columns import ColumnSource
from mesh_assets.names import CHANGES, CURRENT, Layout, ProductName, lake_dataset, mesh_dataset

Name = tuple[str, str]
"""OpenLineage namespace and name."""

Columns = Mapping[str, Sequence[ColumnSource]]


@dataclass(frozen=True)
class Dataset:
    """One table that runs read or write.

    Attributes:
        name: OpenLineage namespace and name.
        link: namespace and name by which the mesh knows it.
        warehouse: the lake's root; empty for a table that does not lie in the lake.
        contract, table: what its product promises.
        columns: the sources of its columns, given what columns it has; None: not known.
        inputs: what the inputs in ``columns`` are called in OpenLineage.
        facets: further facets.
    """

    name: Name
    link: Name | None = None
    warehouse: str = ""
    contract: Contract | None = None
    table: TableContract | None = None
    columns: Callable[[Sequence[str]], Columns] | None = None
    inputs: Mapping[str, Name] = field(default_factory=dict)
    facets: Mapping[str, DatasetFacet] = field(default_factory=dict)

    def about(self) -> dict[str, DatasetFacet]:
        """What is known of it whatever columns it has."""
        known: dict[str, DatasetFacet] = {}
        if self.warehouse:
            known["storage"] = facet.storage()
            known["catalog"] = facet.catalog(self.warehouse)
        if self.link is not None:
            known["symlinks"] = facet.symlink(*self.link)
        if self.contract is not None:
            known["ownership"] = facet.dataset_owners(self.contract.owners)
            if tagged := facet.tags(self.contract, self.table):
                known["tags"] = tagged
            text = (self.table.description if self.table else "") or self.contract.description
            if text:
                known["documentation"] = facet.documentation(text)
        return known | dict(self.facets)

    def shape(self, schema: pa.Schema) -> dict[str, DatasetFacet]:
        """Its columns, and where they come from."""
        described = {}
        if self.table is not None:
            described = {column.name: column.description for column in self.table.columns}
        known: dict[str, DatasetFacet] = {"schema": facet.schema_facet(schema, described)}
        if self.columns is not None and (columns := self.columns(schema.names)):
            known["columnLineage"] = facet.column_lineage(columns, self.inputs)
        return known


def changes_dataset(
    layout: Layout,
    name: ProductName,
    table: str,
    uri: str,
    contract: Contract | None,
    *,
    columns: Callable[[Sequence[str]], Columns] | None = None,
    inputs: Mapping[str, Name] | None = None,
) -> Dataset:
    """The change log of one product table."""
    return Dataset(
        lake_dataset(uri),
        mesh_dataset(name, CHANGES, table),
        layout.root,
        contract,
        _table_of(contract, table),
        columns,
        inputs or {},
    )


def current_dataset(
    layout: Layout,
    name: ProductName,
    table: str,
    uri: str,
    contract: Contract | None,
    *,
    changes: Name,
    key: Sequence[str],
) -> Dataset:
    """The current table of one product table, folded from the change log ``changes``."""
    return Dataset(
        lake_dataset(uri),
        mesh_dataset(name, CURRENT, table),
        layout.root,
        contract,
        _table_of(contract, table),
        lambda names: folded_columns(names, key),
        {"changes": changes},
    )


def versions_dataset(layout: Layout, name: ProductName, contract: Contract | None) -> Dataset:
    """The version log of one product."""
    return Dataset(lake_dataset(layout.versions(name)), mesh_dataset(name, "versions"), layout.root, contract)


def same_columns(input: str) -> Callable[[Sequence[str]], Columns]:
    """Each of the row's columns is the input's of the same name."""

    def columns(names: Sequence[str]) -> Columns:
        rows = [name for name in names if not name.startswith("_")]
        return {name: [ColumnSource(input, name, "DIRECT", "IDENTITY")] for name in rows}

    return columns


def folded_columns(names: Sequence[str], key: Sequence[str]) -> Columns:
    """The columns of a current table: those of the last change of each key."""
    latest = [ColumnSource("changes", name, "INDIRECT", "GROUP_BY") for name in key]
    latest += [
        ColumnSource("changes", "_op", "INDIRECT", "FILTER"),
        ColumnSource("changes", "_rejected_by", "INDIRECT", "FILTER"),
        ColumnSource("changes", "_seq", "INDIRECT", "SORT"),
    ]
    return {name: [ColumnSource("changes", name, "DIRECT", "IDENTITY"), *latest] for name in names}


def _table_of(contract: Contract | None, table: str) -> TableContract | None:
    if contract is None:
        return None
    return next((one for one in contract.tables if one.name == table), None)
