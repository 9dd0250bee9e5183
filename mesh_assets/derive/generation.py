"""In which generation of its log a derived product's table goes on.

What is logged keeps its type and its key. Where a contract gives a column another type, or the table
another key, the rows go to a new log beside the old one: its next generation. It counts ``_seq`` on from
where the old one ends, and is nothing to readers until a version row names it.
"""

from __future__ import annotations

import pyarrow as pa

from mesh_assets.contract.arrow import arrow_type
from mesh_assets.contract.discovery import Product
from mesh_assets.contract.document import display
from mesh_assets.contract.model import TableContract
from mesh_assets.errors import ContractError
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.version import VersionRow
from mesh_assets.names import CHANGES, Layout


def generation_of(layout: Layout, product: Product, table: TableContract, last: VersionRow | None) -> int:
    """The generation that takes a table's rows: the one in which it stands, or the first later one that can.

    Args:
        layout: of the lake.
        product: whose table.
        table: as its contract promises it now.
        last: the product's newest version.
    """
    standing = number = last.generation(table.name) if last else 1
    try:
        schema = row_schema(product, table)
    except ContractError:
        # Told when the table is opened.
        return standing
    while ChangeLog.exists(uri := layout.table(product.name, CHANGES, table.name, number)):
        log = ChangeLog.open(uri)
        # One that a killed attempt left is gone on with, unless the one that stands has grown since.
        begun = number == standing or log.after == last_seq(last, table.name)
        if begun and fits(log, table, schema):
            break
        number += 1
    return number


def fits(log: ChangeLog, table: TableContract, schema: pa.Schema) -> bool:
    """Whether a log can take a table's rows; columns that it lacks can be added to it."""
    held = log.row_schema
    return log.key == table.key and all(
        one.name not in held.names or held.field(one.name).type == one.type for one in schema
    )


def last_seq(last: VersionRow | None, table: str) -> int:
    """The last ``_seq`` of a table at a version; -1 for none."""
    return last.tables.get(table, -1) if last else -1


def row_schema(product: Product, table: TableContract) -> pa.Schema:
    """The columns of one of a product's tables, in the types that its contract gives them.

    Raises:
        ContractError: if a column's type is not known.
    """
    fields = []
    for column in table.columns:
        kind = arrow_type(column)
        if kind is None:
            raise ContractError(
                f"{display(product.contract.path)}:{column.line}: column {column.name!r} of "
                f"{table.name!r} does not say how it is stored",
                hint="add physicalType, for example bigint, numeric(14,2), text or timestamptz",
            )
        fields.append(pa.field(column.name, kind))
    return pa.schema(fields)
