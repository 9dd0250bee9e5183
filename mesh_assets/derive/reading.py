"""Which columns of its inputs a transform reads."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from mesh_assets.derive.plan import DerivePlan
from mesh_assets.lineage.transform import transform_columns


def columns_read(plan: DerivePlan, schemas: Mapping[str, pl.Schema]) -> dict[str, frozenset[str]]:
    """By input the columns that decide on values or rows of the result; all of them if that is not known.

    Args:
        plan: of the product.
        schemas: what the transform gets of each input.
    """
    default = plan.product.contract.default_table
    found = transform_columns(
        plan.transform,
        schemas,
        default.name if default else plan.targets[0].table,
        kept=plan.layout.catalog(plan.name, "lineage"),
    )
    if found is None:
        return {name: frozenset(schema) for name, schema in schemas.items()}
    sources = {source for table in found.values() for column in table.values() for source in column}
    return {name: frozenset(source.column for source in sources if source.input == name) for name in schemas}
