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
from mesh_assets.derive.plan import DerivePlan
from mesh_assets.errors import ContractError
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.version import VersionRow, generation_at
from mesh_assets.names import CHANGES
from mesh_assets.shift.plan import Target


def going_on(plan: DerivePlan, last: VersionRow | None) -> tuple[Target, ...]:
    """A product's tables, each where its rows go after a version under the plan's contract.

    Who appends asks when nobody else does any more, and when what a crash tore is moved aside.

    Args:
        plan: of the product.
        last: its newest version.
    """
    return tuple(
        target.at(plan.layout, _generation(plan, plan.product.contract.table(target.table), last))
        for target in plan.targets
    )


def _generation(plan: DerivePlan, table: TableContract, last: VersionRow | None) -> int:
    """In which a table's rows go on: the one in which it stands, or the first later one that takes them."""
    standing = number = generation_at(last, table.name)
    try:
        schema = row_schema(plan.product, table)
    except ContractError:
        # Told when the table is opened.
        return standing
    while ChangeLog.exists(uri := plan.layout.table(plan.name, CHANGES, table.name, number)):
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
