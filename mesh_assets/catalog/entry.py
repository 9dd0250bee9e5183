"""One product as the enterprise catalog knows it, wherever its folder is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from mesh_assets.catalog import history
from mesh_assets.catalog.canonical import Canonical, Shape
from mesh_assets.catalog.graph import Graph
from mesh_assets.catalog.local import CheckRecord
from mesh_assets.catalog.shape import CHANGES, CHECKS, COLUMNS, DATASETS
from mesh_assets.names import Layout

Row = Mapping[str, Any]
_VERSION_COUNT = 10


@dataclass(frozen=True)
class Entry:
    """What the catalog's tables hold of a product.

    Attributes:
        tables: rows of ``datasets``, in the order of their names.
        columns: rows of ``columns`` by table, in order.
        checks: the newest outcome of each rule.
        versions: rows of ``changes``: the newest versions, newest first.
        made_of: the tables that it is directly made of.
        consumers: the products that are directly made of it.
    """

    product: str
    tables: tuple[Row, ...]
    columns: Mapping[str, tuple[Row, ...]]
    checks: tuple[CheckRecord, ...]
    versions: tuple[Row, ...]
    made_of: tuple[str, ...]
    consumers: tuple[str, ...]

    @classmethod
    def load(cls, layout: Layout, product: str) -> Entry | None:
        """Read it; None if the catalog does not know the product."""
        tables = sorted(_rows(layout, DATASETS, product), key=lambda row: str(row["table"]))
        if not tables:
            return None
        columns = sorted(_rows(layout, COLUMNS, product), key=lambda row: int(row["ordinal"]))
        changes = Canonical(layout.enterprise(CHANGES.name), CHANGES)
        versions = _rows(layout, CHANGES, product, history.buckets_of(changes, product))
        known = CheckRecord.model_fields
        graph = Graph.load(layout)
        return cls(
            product,
            tuple(tables),
            {
                table: tuple(row for row in columns if row["table"] == table)
                for table in (str(row["table"]) for row in tables)
            },
            tuple(
                CheckRecord(**{name: row[name] for name in known if row[name] is not None})
                for row in sorted(_rows(layout, CHECKS, product), key=lambda row: str(row["rule"]))
            ),
            tuple(sorted(versions, key=lambda row: -int(row["version"]))[:_VERSION_COUNT]),
            graph.made_of(product),
            graph.consumers(product),
        )


def _rows(
    layout: Layout, shape: Shape, product: str, buckets: list[str] | None = None
) -> list[dict[str, Any]]:
    rows = Canonical(layout.enterprise(shape.name), shape).read(buckets)
    found: list[dict[str, Any]] = rows.filter(pc.field("product") == product).to_pylist(
        maps_as_pydicts="strict"
    )
    return found
