"""Column lineage of derived products as Dagster shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import dagster as dg

from mesh_assets.names import CURRENT
from mesh_assets.orchestration.asset import asset_key

if TYPE_CHECKING:
    # Loading it loads the Delta Lake library, which a code server has no need of.
    from mesh_assets.derive import DerivePlan

_DIRECT = "DIRECT"


def derived_lineage(
    plan: DerivePlan, log: Callable[[str], None] | None = None
) -> Mapping[str, dg.TableColumnLineage]:
    """By table: which columns of the inputs each column is made of; empty if that is not known (yet).

    A column that no value becomes part of, a count for example, is shown to be of what decides over it.
    """
    from mesh_assets.derive.reading import change_logs, columns_made, schemas_of

    schemas = schemas_of(plan, change_logs(plan))
    if schemas is None:
        return {}
    found = columns_made(plan, schemas, log=log)
    keys = {one.name: asset_key(one.product, CURRENT, one.table) for one in plan.inputs}
    lineage: dict[str, dg.TableColumnLineage] = {}
    for table, columns in (found or {}).items():
        deps = {}
        for column, sources in columns.items():
            chosen = [one for one in sources if one.kind == _DIRECT] or list(sources)
            pairs = dict.fromkeys((keys[one.input], one.column) for one in chosen)
            deps[column] = [dg.TableColumnDep(asset_key=key, column_name=name) for key, name in pairs]
        lineage[table] = dg.TableColumnLineage(deps)
    return lineage
