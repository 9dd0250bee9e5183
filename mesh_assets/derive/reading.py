"""What a transform reads of its inputs, and which of their columns it makes its own of.

A text that it gets or gives beside a column (``<column>_exact``) is part of that column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import polars as pl
from deltalake.exceptions import DeltaError

from mesh_assets.contract.definition import EXACT_SUFFIX
from mesh_assets.derive.plan import DerivePlan
from mesh_assets.errors import MeshError
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.version import VersionLog, VersionRow
from mesh_assets.lineage.columns import ColumnLineage, ColumnSource, everything
from mesh_assets.lineage.transform import transform_columns
from mesh_assets.names import ProductName


def change_logs(plan: DerivePlan, heads: Mapping[ProductName, VersionRow] | None = None) -> dict[str, str]:
    """By input the change log that it is read from, at these versions or at the newest ones."""
    rows: Mapping[ProductName, VersionRow | None] = heads or {
        name: VersionLog(plan.layout.versions(name)).latest() for name in plan.input_products
    }
    return {one.name: one.changes_uri(rows[one.product]) for one in plan.inputs}


def schemas_of(plan: DerivePlan, logs: Mapping[str, str]) -> dict[str, pl.Schema] | None:
    """What the transform gets of each input; None while one of them cannot be read.

    Args:
        plan: of the product.
        logs: by input the change log that it is read from.
    """
    try:
        return {
            one.name: one.schema(pl.DataFrame(ChangeLog.open(logs[one.name]).row_schema.empty_table()).schema)
            for one in plan.inputs
        }
    except (MeshError, DeltaError, OSError):
        return None


def columns_made(
    plan: DerivePlan, schemas: Mapping[str, pl.Schema], *, log: Callable[[str], None] | None = None
) -> ColumnLineage | None:
    """By table and column the columns of the inputs that it is made of; None if that cannot be found out.

    Args:
        plan: of the product.
        schemas: what the transform gets of each input.
        log: told why there is no answer.
    """
    kept = plan.layout.catalog(plan.name, "lineage")
    found = transform_columns(plan.transform, schemas, plan.single_table, kept=kept, log=log)
    if found is None:
        return None
    texts = {
        table.name: {column.name + EXACT_SUFFIX: column.name for column in table.columns}
        for table in plan.product.contract.tables
    }
    made: ColumnLineage = {}
    for table, columns in found.items():
        mine = made.setdefault(table, {})
        for name, sources in columns.items():
            own = texts.get(table, {}).get(name, name)
            mine[own] = _own(plan, (*mine.get(own, ()), *sources))
    return made


def columns_possible(
    plan: DerivePlan, schemas: Mapping[str, pl.Schema], columns: Iterable[str]
) -> dict[str, tuple[ColumnSource, ...]]:
    """The answer that is never wrong: each of the product's columns of any column of its inputs."""
    return {name: _own(plan, sources) for name, sources in everything(schemas, columns).items()}


def columns_read(plan: DerivePlan, schemas: Mapping[str, pl.Schema]) -> dict[str, frozenset[str]]:
    """By input the columns that decide on values or rows of the result; all of them if that is not known.

    Args:
        plan: of the product.
        schemas: what the transform gets of each input.
    """
    made = columns_made(plan, schemas)
    if made is None:
        return {one.name: frozenset(map(one.column, schemas[one.name])) for one in plan.inputs}
    sources = {source for table in made.values() for column in table.values() for source in column}
    return {name: frozenset(source.column for source in sources if source.input == name) for name in schemas}


def _own(plan: DerivePlan, sources: Iterable[ColumnSource]) -> tuple[ColumnSource, ...]:
    """The same in the columns that the inputs' tables have."""
    named = {one.name: one for one in plan.inputs}
    return tuple(dict.fromkeys(one._replace(column=named[one.input].column(one.column)) for one in sources))
